//! What handlers return: a document, the outcome of a call, or a problem. The only place that turns a problem's status into
//! a response.

use axum::{
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    json,
    name::ConsistencyToken,
    problem::Problem,
    region::Region,
    reply::{ProblemDocument, Reply, Report, Returned},
};

/// The media type of documents.
pub(super) const JSON: &str = "application/json";

/// Marks the outcome of an earlier call with the same idempotency key.
const REPLAYED: &str = "idempotency-replayed";

/// `200` with a document.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        with(StatusCode::OK, JSON, json::to_vec(&self.0))
    }
}

/// A request that is refused before any instance was tried.
///
/// A handler does not know the request's id, or how long it took. So the response is empty and carries the refusal as an
/// extension, from which the outermost layer writes the document.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) problem: Problem,
    /// The region that the request names, where that was read before.
    pub(super) region: Option<Region>,
}

impl Refusal {
    /// A refusal of a request that names `region`, if it names one.
    pub(super) fn new(problem: Problem, region: Option<&Region>) -> Self {
        let region = region.cloned();
        Self { problem, region }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = Response::default();
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        Refusal::new(self, None).into_response()
    }
}

impl IntoResponse for Report {
    fn into_response(self) -> Response {
        let Self { result, meta } = self;
        // Before `meta` is moved into the body.
        let (is_replayed, consistency) = (meta.replayed, meta.consistency.clone());
        let mut response = match result {
            Ok(Returned { json, .. }) => {
                let size = json.get().len();
                let body = json::to_vec_around(size, &Reply { result: json, meta });
                with(StatusCode::OK, JSON, body)
            }
            Err(problem) => problem_document(&ProblemDocument::new(problem, meta)),
        };
        if is_replayed {
            let yes = HeaderValue::from_static("true");
            response.headers_mut().insert(REPLAYED, yes);
        }
        let consistency = consistency.map(|token| HeaderValue::try_from(token.as_str()));
        if let Some(Ok(token)) = consistency {
            response
                .headers_mut()
                .insert(ConsistencyToken::HEADER, token);
        }
        response
    }
}

/// A problem document with its status, and `Retry-After` where waiting helps.
pub(super) fn problem_document(document: &ProblemDocument) -> Response {
    let problem = &document.problem;
    let status = StatusCode::from_u16(problem.status());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = with(status, "application/problem+json", json::to_vec(document));
    if let Some(seconds) = problem.code.retry_after() {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn with(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
