//! Documents as HTTP answers: the only place that turns a problem's status into a response.

use axum::{
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::Response,
};
use serde::Serialize;

use crate::{
    dispatch::Outcome,
    json,
    memory::{Budget, Share},
    problem::{FunctionError, Problem},
    reply::{ProblemDocument, Reply, Returned},
};

/// The size of results that are never refused, in bytes: a problem would be no smaller.
const ALWAYS: usize = 512;

/// Tells that the outcome is that of an earlier call with the same idempotency key.
const REPLAYED: &str = "idempotency-replayed";

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// `200` with `document`.
pub(super) fn ok(document: &impl Serialize) -> Response {
    with(StatusCode::OK, JSON, json::to_vec(document))
}

/// The outcome, or where the memory budget has no room for its result, that it found none.
pub(super) fn with_room(mut outcome: Outcome, memory: &Budget) -> Outcome {
    if let Ok(Returned { json, replayed }) = &outcome.result {
        let size = json.get().len();
        if size > ALWAYS && !memory.has_room(size, Share::Results) {
            let detail = format!("the result of {size} bytes found no room in RPC_MAX_MEMORY");
            let lost = FunctionError::new("ResultDropped", detail);
            outcome.result = Err(Problem {
                replayed: *replayed,
                ..Problem::function_failed(lost)
            });
        }
    }
    outcome
}

/// What came of a call.
pub(super) fn outcome(outcome: Outcome) -> Response {
    let Outcome { result, meta } = outcome;
    let is_replayed = meta.replayed;
    let mut response = match result {
        Ok(Returned { json, .. }) => ok(&Reply { result: json, meta }),
        Err(failure) => problem(&ProblemDocument::new(failure, meta)),
    };
    if is_replayed {
        let yes = HeaderValue::from_static("true");
        response.headers_mut().insert(REPLAYED, yes);
    }
    response
}

/// A problem document with its status, and `Retry-After` where waiting helps.
pub(super) fn problem(document: &ProblemDocument) -> Response {
    let status = StatusCode::from_u16(document.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = with(status, PROBLEM_JSON, json::to_vec(document));
    if let Some(seconds) = document.code.retry_after() {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn with(status: StatusCode, content_type: HeaderValue, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
