//! The HTTP side of one instance: every route and every layer, in one list each. Turns requests into calls, and their
//! outcomes into answers; decides nothing about where a call runs.
//!
//! A client's call passes `layers.rs` and `auth.rs` on its way to `rpc.rs`, which reads it with `request.rs` and answers with
//! `response.rs`. One that a peer forwarded is a line in `internal.rs`.

mod auth;
mod cluster;
pub(crate) mod documents;
mod each;
mod events;
mod explain;
pub(crate) mod health;
mod internal;
mod layers;
mod metrics;
mod openapi;
mod pages;
mod replay;
mod request;
mod response;
mod rpc;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, State, connect_info::Connected},
    handler::Handler,
    http::{Request, Uri},
    middleware::{self, Next},
    response::Response,
    routing,
    serve::IncomingStream,
};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::net::TcpListener;
use tower::Service;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::auth::Audience;
#[cfg(feature = "dev")]
pub(crate) use self::auth::check_site;
use crate::{
    declaration::Declaration,
    dispatch::Dispatcher,
    name::FunctionName,
    problem::{Code, Problem},
    protocol,
};

/// The paths of the pages, in the words of axum.
const PAGES: [&str; 4] = ["/docs", "/docs/{*file}", "/ui", "/ui/{*file}"];
/// The paths of the routes for instances, in the words of axum.
const INTERNAL: [&str; 2] = ["/internal/{*rest}", "/metrics"];

type DispatcherState = State<Arc<Dispatcher>>;

/// The address by which a request reached this instance, as an extension of the request.
///
/// An instance puts it on every request that it accepts; a program that embeds one has axum do so, by
/// `into_make_service_with_connect_info`.
#[derive(Clone, Copy, Debug)]
pub struct Reached(pub std::net::SocketAddr);

impl Connected<IncomingStream<'_, TcpListener>> for Reached {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        // Without an address, the other side has gone already.
        let unknown = std::net::SocketAddr::from(([0; 4], 0));
        Self(stream.io().local_addr().unwrap_or(unknown))
    }
}

/// Marks a request on a connection that is kept for instances and health checks, while clients keep busy as many as they
/// may.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowded;

#[derive(Clone, Debug)]
pub(crate) struct Routes {
    router: Router,
    /// Set on listeners for clients.
    calls: Option<Arc<Dispatcher>>,
}

impl Routes {
    /// Answers `request`.
    ///
    /// A call is given straight to its handler, inside the same layer. axum's router would do the same with three boxes,
    /// for the route, the layer and the handler, and would move the request and its future into each.
    pub(crate) async fn answer(mut self, request: Request<Incoming>) -> Response {
        match self.calls {
            Some(dispatcher) if rpc::is_call(&request) => {
                let call = |request| rpc::call_function.call(request, Arc::clone(&dispatcher));
                layers::answer(&dispatcher, Audience::Clients, request.map(Body::new), call).await
            }
            _ => match Box::pin(self.router.call(request)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        }
    }
}

impl From<Router> for Routes {
    fn from(router: Router) -> Self {
        let calls = None;
        Self { router, calls }
    }
}

/// The routes of the public listener: `/internal/*` is among them only where it has no listener of its own.
pub(crate) fn public_routes(dispatcher: Arc<Dispatcher>, with_internal: bool) -> Routes {
    Routes {
        calls: Some(Arc::clone(&dispatcher)),
        router: public_router(dispatcher, with_internal),
    }
}

fn public_router(dispatcher: Arc<Dispatcher>, with_internal: bool) -> Router {
    // An unknown path counts as a route for clients, so that one that is forgotten below is not open.
    let clients = Router::from(clients()).fallback(not_found);
    let instances = instances(with_internal);
    layers::around(clients, &dispatcher, Audience::Clients)
        .merge(layers::around(instances, &dispatcher, Audience::Instances))
        .merge(layers::around(open(), &dispatcher, Audience::Anyone))
        .with_state(dispatcher)
}

pub(crate) fn internal_routes(dispatcher: Arc<Dispatcher>) -> Routes {
    let routes = instances(true).fallback(not_found);
    layers::around(routes, &dispatcher, Audience::Instances)
        .with_state(dispatcher)
        .into()
}

/// The routes of the listener for scrapers, which send no token.
pub(crate) fn metrics_routes(dispatcher: Arc<Dispatcher>) -> Routes {
    let routes = Router::new()
        .route("/metrics", routing::get(metrics::show))
        .route("/healthz", routing::get(health::get_liveness))
        .route("/readyz", routing::get(health::get_readiness))
        .fallback(not_found);
    layers::around(routes, &dispatcher, Audience::Anyone)
        .with_state(dispatcher)
        .into()
}

/// The OpenAPI document of the public routes, as JSON.
pub fn openapi_json() -> String {
    openapi::to_json(&openapi::finished(documented().into_openapi()))
}

/// The OpenAPI document with an operation for each of `functions` that declares its parameters.
pub(crate) fn openapi_with<'a>(
    functions: impl IntoIterator<Item = (FunctionName, &'a Declaration)>,
) -> Value {
    let document = openapi::finished(documented().into_openapi());
    openapi::with_functions(&document, functions)
}

fn documented() -> OpenApiRouter<Arc<Dispatcher>> {
    OpenApiRouter::with_openapi(openapi::description())
        .merge(clients())
        .merge(documented_open())
}

fn clients() -> OpenApiRouter<Arc<Dispatcher>> {
    OpenApiRouter::new()
        .routes(routes!(rpc::call_function))
        .routes(routes!(rpc::call_function_by_path))
        .routes(routes!(cluster::list_regions))
        .routes(routes!(cluster::get_region))
        .routes(routes!(explain::explain_region))
        .routes(routes!(cluster::list_functions))
        .routes(routes!(each::call_each))
        .routes(routes!(events::stream_events))
}

/// The routes without a token, as far as they are in the OpenAPI document.
fn documented_open() -> OpenApiRouter<Arc<Dispatcher>> {
    OpenApiRouter::new()
        .routes(routes!(health::get_liveness))
        .routes(routes!(health::get_readiness))
        .routes(routes!(openapi::get_description))
}

/// The routes without a token.
fn open() -> Router<Arc<Dispatcher>> {
    let documented = Router::from(documented_open());
    PAGES.into_iter().fold(documented, |router, path| {
        router.route(path, routing::get(pages::show))
    })
}

/// The routes of the cluster's instances. Other paths below `/internal`, and all of them where instances have a listener of
/// their own, are routes too: an instance gets a 404, and a stranger a 401, so that they show nothing of what is there.
fn instances(are_here: bool) -> Router<Arc<Dispatcher>> {
    let unknown = Router::new()
        .route("/internal", routing::any(not_found))
        .route("/internal/", routing::any(not_found))
        .route("/internal/{*rest}", routing::any(not_found));
    if !are_here {
        return unknown.route("/metrics", routing::any(not_found));
    }
    unknown
        .route(protocol::INTRODUCTION, routing::get(internal::introduce))
        .route(protocol::FUNCTIONS, routing::get(internal::functions))
        .route(protocol::EXEC, routing::post(internal::exec))
        .route("/metrics", routing::get(metrics::show))
}

async fn not_found(uri: Uri) -> Problem {
    // Those that are most like it.
    let routes = match uri.path().split('/').nth(1).unwrap_or_default() {
        "rpc" => {
            "POST /rpc/{region} and POST /rpc/{region}/{module}/{function}, which run a function"
        }
        "each" => {
            "POST /each/{regions}, which runs the function that its body names on every instance"
        }
        "regions" => "GET /regions, /regions/{region} and /regions/{region}/explain",
        "functions" => "GET /functions, the functions of the instance that is asked",
        "internal" | "metrics" => {
            "/metrics and what instances ask of each other, unless RPC_INTERNAL_LISTEN is set: then that has them"
        }
        _ => {
            "/ui, a page that shows the cluster, and /docs and /openapi.json, which list its routes"
        }
    };
    let detail = format!("no such route here; the public listener has {routes}");
    Problem::new(Code::NotFound, detail)
}

/// Each path of [`public_routes`] as a route of its own, for a program that has other paths too.
pub(crate) fn mounted_router(dispatcher: Arc<Dispatcher>, with_internal: bool) -> Router {
    let paths = documented().into_openapi().paths.paths.into_keys();
    let internal: &[&str] = if with_internal { &INTERNAL } else { &[] };
    let others = PAGES.iter().chain(internal);
    let others = others.map(|path| (*path).to_owned());
    let own = middleware::from_fn_with_state(Arc::clone(&dispatcher), reached);
    // A service, because axum takes no router at a path.
    let whole = public_router(dispatcher, with_internal)
        .layer(own)
        .into_service();
    paths.chain(others).fold(Router::new(), |router, path| {
        router.route_service(&path, whole.clone())
    })
}

/// Puts the address on a request that a program's server accepted: what axum knows of the connection, else where the
/// program said that it listens.
async fn reached(
    State(dispatcher): DispatcherState,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let extensions = request.extensions_mut();
    if extensions.get::<Reached>().is_none() {
        let connection = extensions.get::<ConnectInfo<Reached>>();
        let reached =
            connection.map_or(Reached(dispatcher.local.address), |connection| connection.0);
        extensions.insert(reached);
    }
    next.run(request).await
}
