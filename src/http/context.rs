//! What every request gets before a handler sees it: a request id, kept or new, and the instant of its arrival.
//! And what every refusal needs of them.

use std::sync::Arc;

use axum::{
    body::HttpBody,
    extract::{FromRequestParts, Request, State},
    http::{
        HeaderValue, Method, StatusCode,
        header::{CACHE_CONTROL, CONNECTION, HeaderMap},
        request::Parts,
    },
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use super::{App, answer, head, log};
use crate::{
    access::Caller,
    lifecycle::Phase,
    memory::Share,
    name::RequestId,
    problem::{Code, Problem},
    protocol,
    region::Region,
    replay,
    reply::{Meta, ProblemDocument},
};

/// The size of documents that are always sent, in bytes: what health checks and probes are answered.
const SMALL: usize = 4 << 10;

const REQUEST_ID: &str = "x-request-id";

/// One request: its id and when it arrived.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) request_id: RequestId,
    pub(super) arrived: Instant,
}

impl Context {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        // A replay goes on under the id that the first instance gave the request.
        let id = given.or_else(|| replay::request_id(headers));
        let kept = id.and_then(|id| id.parse().ok());
        Self {
            request_id: kept.unwrap_or_else(RequestId::fresh),
            arrived: Instant::now(),
        }
    }

    /// The problem document that answers this request before any instance was tried.
    pub(super) fn refuse(self, region: Option<Region>, problem: Problem) -> Response {
        let meta = Meta::untried(region, self.arrived.elapsed(), self.request_id);
        let document = ProblemDocument::new(problem, meta);
        let mut response = answer::problem(&document);
        let refusal = Refusal {
            document,
            client: None,
        };
        response.extensions_mut().insert(refusal);
        response
    }
}

/// On an answer: that the request was refused before any instance was tried, for the log and the metrics.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) document: ProblemDocument,
    /// Who asked, where that was told before.
    pub(super) client: Option<Caller>,
}

impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let missing = || {
            Self::of(&parts.headers)
                .refuse(None, Problem::new(Code::Internal, "no request context"))
        };
        parts.extensions.get().cloned().ok_or_else(missing)
    }
}

/// The outermost layer: makes the [`Context`], refuses a head that is too large, tells of every refusal, puts the request's
/// id on the answer, forbids to store it where its route says nothing about that, and ends the connection with it once the instance drains, so that no client sends its next request
/// into a connection that is just being closed.
pub(super) async fn establish(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let context = Context::of(request.headers());
    let id = HeaderValue::from_str(context.request_id.as_str());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let asks_document = (method == Method::GET).then(|| context.clone());
    let mut response = match head::check(request.uri(), request.headers()) {
        Ok(()) => {
            request.extensions_mut().insert(context);
            next.run(request).await
        }
        Err(problem) => context.refuse(None, problem),
    };
    if let Some(context) = asks_document
        && !has_room(&app, uri.path(), &response)
    {
        let detail = "what waits in this instance takes as much of RPC_MAX_MEMORY as it may";
        response = context.refuse(None, Problem::new(Code::Overloaded, detail));
    }
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        app.metrics.calls.refused(refusal.document.code);
        log::refusal(&method, uri.path(), &refusal);
    }
    if let Ok(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
        .headers_mut()
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if app.lifecycle.phase() > Phase::Serving && !is_upgrade {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the memory budget has room for a document that was asked for: strangers may ask, and then not take it.
fn has_room(app: &App, path: &str, response: &Response) -> bool {
    let size = usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX);
    let share = match path {
        "/metrics" | protocol::FUNCTIONS => Share::Results,
        _ => Share::Strangers,
    };
    size <= SMALL || app.memory.has_room(size, share)
}
