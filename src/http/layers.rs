//! The one layer around every route: gives a request its [`Context`], lets it pass if it comes from the route's
//! [`Audience`], and finishes its response. A problem that a handler returned becomes its document, a log line and a count
//! here, and nowhere else.

use std::sync::Arc;

use axum::{
    Router,
    body::HttpBody,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{CACHE_CONTROL, CONNECTION},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

use super::{
    App, auth, head, log,
    response::{Refusal, problem_document},
};
use crate::{
    lifecycle::Phase,
    memory::Share,
    name::RequestId,
    problem::{Code, Problem},
    protocol, replay,
    reply::{Meta, ProblemDocument},
};

/// The size of documents that are always sent, in bytes: those for health checks and probes.
const SMALL: usize = 4 << 10;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One request: its id and when it arrived. An extension of every request.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) request_id: RequestId,
    pub(super) arrived: Instant,
}

impl Context {
    /// The context of a request that just arrived: its id is the one in its headers where that is valid, else a new one.
    fn new(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID);
        let given = given.and_then(|id| id.to_str().ok()?.parse().ok());
        // A replay goes on under the id that the first instance gave the request.
        let kept = given.or_else(|| replay::request_id(headers));
        Self {
            request_id: kept.unwrap_or_else(RequestId::fresh),
            arrived: Instant::now(),
        }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug)]
pub(super) enum Audience {
    /// Anybody.
    Anyone,
    /// Clients, see [`auth::clients`].
    Clients,
    /// The cluster's instances, see [`auth::instances`].
    Instances,
}

/// Puts the layer around `routes`, their 404s and 405s included, which show a stranger nothing that way.
///
/// One layer and not one for each purpose: axum boxes a request's future once more for each.
pub(super) fn around(
    routes: Router<Arc<App>>,
    app: &Arc<App>,
    audience: Audience,
) -> Router<Arc<App>> {
    let state = (Arc::clone(app), audience);
    let layer = async |State((app, audience)): State<(Arc<App>, Audience)>, request, next: Next| {
        answer(&app, audience, request, |request| next.run(request)).await
    };
    routes.layer(middleware::from_fn_with_state(state, layer))
}

/// Gives the request its context, has `next` answer it, and finishes the response.
pub(super) async fn answer<F: Future<Output = Response>>(
    app: &App,
    audience: Audience,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let context = Context::new(request.headers());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let mut response = match head::refuse(&request) {
        Some(refused) => refused,
        None => {
            request.extensions_mut().insert(context.clone());
            match audience {
                Audience::Anyone => next(request).await,
                Audience::Clients => auth::clients(app, request, next).await.into_response(),
                Audience::Instances => auth::instances(app, request, next).await.into_response(),
            }
        }
    };
    if method == Method::GET && !has_room(app, uri.path(), &response) {
        let detail = "what waits in this instance takes as much of RPC_MAX_MEMORY as it may";
        response = Problem::new(Code::Overloaded, detail).into_response();
    }
    let id = HeaderValue::from_str(context.request_id.as_str());
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        let headers = std::mem::take(response.headers_mut());
        response = refused(app, context, refusal, &method, uri.path());
        response.headers_mut().extend(headers);
    }
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    if let Ok(id) = id {
        headers.insert(REQUEST_ID, id);
    }
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    // A client must not send its next request on a connection that is about to be closed.
    if app.lifecycle.phase() > Phase::Serving && !is_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The document of a request that was refused before any instance was tried; logged and counted.
fn refused(app: &App, context: Context, refusal: Refusal, method: &Method, path: &str) -> Response {
    let Refusal {
        problem,
        region,
        client,
    } = refusal;
    let meta = Meta::untried(region, context.arrived.elapsed(), context.request_id);
    let document = ProblemDocument::new(problem, meta);
    app.metrics.calls.refused(document.problem.code);
    log::refusal(method, path, client.as_ref(), &document);
    problem_document(&document)
}

/// Whether the memory budget has room for a document that was asked for: anybody may ask for one and not read it.
fn has_room(app: &App, path: &str, response: &Response) -> bool {
    let size = usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX);
    let share = match path {
        "/metrics" | protocol::FUNCTIONS => Share::Results,
        _ => Share::Strangers,
    };
    size <= SMALL || app.memory.has_room(size, share)
}
