//! The HTTP side of one instance: every route and every layer, in one list each. Turns requests into calls and what
//! came of them into answers; decides nothing about where a call runs.

mod answer;
mod body;
mod clock;
mod context;
mod docs;
mod documents;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guard;
mod head;
mod hygiene;
mod internal;
mod lines;
mod log;
mod metrics;
mod openapi;
mod reading;
mod replay;
mod rpc;
mod site;
mod upgrade;

use std::sync::Arc;

use axum::{
    Router,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    middleware::{self, Next},
    response::Response,
    routing,
    serve::IncomingStream,
};
use tokio::net::TcpListener;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::context::Context;
#[cfg(feature = "cli")]
pub(crate) use self::documents::{
    CandidateDocument, ExplanationDocument, InstanceDocument, RegionsDocument, UnplacedDocument,
};
use crate::{
    access::Access,
    call::Timeouts,
    cluster::Cluster,
    config::{Identity, Limits, Route},
    dispatch::Dispatcher,
    lifecycle::Lifecycle,
    memory::Budget,
    metrics::Metrics,
    name::BootId,
    problem::{Code, Problem},
    protocol,
    registry::Executor,
};

/// The paths of [`internal()`], in the words of axum.
const INTERNAL: [&str; 2] = ["/internal/{*rest}", "/metrics"];

/// What a call between instances holds besides its client's body, in bytes.
const ENVELOPE: usize = 4 << 10;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    /// Who this instance is.
    pub identity: Identity,
    /// Which run of it.
    pub boot: BootId,
    /// Who may ask what.
    pub access: Access,
    /// Where it answers its peers, as `/regions` tells.
    pub address: std::net::SocketAddr,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// How calls for other regions get there.
    pub route: Route,
    /// What it takes on.
    pub limits: Limits,
    /// The bytes that may wait in it.
    pub memory: Arc<Budget>,
    /// How far it is on its way to stop.
    pub lifecycle: Arc<Lifecycle>,
    /// Its functions.
    pub executor: Arc<Executor>,
    /// Its peers.
    pub cluster: Arc<Cluster>,
    /// Where calls go.
    pub dispatcher: Arc<Dispatcher>,
    /// What it counts.
    pub metrics: Metrics,
}

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

/// On a request: clients keep as many connections busy as they may, and what is left is for instances and health checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowded;

/// The routes of the public listener: `/internal/*` is among them only where it has no listener of its own.
pub(crate) fn public_router(app: Arc<App>, with_internal: bool) -> Router {
    let (routes, _) = public().split_for_parts();
    let routes = routes
        .route("/docs", routing::get(docs::show))
        .route("/docs/problems", routing::get(docs::show_problems))
        .route("/docs/{file}", routing::get(docs::show_file));
    if with_internal {
        layered(app, routes.merge(internal()))
    } else {
        layered(app, routes)
    }
}

/// Each path of [`public_router`] as a route of its own, for a program that has other paths too.
pub(crate) fn mounted_router(app: Arc<App>, with_internal: bool) -> Router {
    let (_, document) = public().split_for_parts();
    let paths = document.paths.paths.into_keys();
    let internal: &[&str] = if with_internal { &INTERNAL } else { &[] };
    let others = ["/docs"]
        .iter()
        .chain(internal)
        .map(|path| (*path).to_owned());
    let own = middleware::from_fn_with_state(Arc::clone(&app), reached);
    // A service, because axum takes no router at a path.
    let whole = public_router(app, with_internal).layer(own).into_service();
    paths.chain(others).fold(Router::new(), |router, path| {
        router.route_service(&path, whole.clone())
    })
}

/// Puts the address on a request that a program's server accepted: what axum was told of the connection, else where the
/// program said that it listens.
async fn reached(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions_mut();
    let told = extensions.get::<ConnectInfo<Reached>>().map(|told| told.0);
    if extensions.get::<Reached>().is_none() {
        extensions.insert(told.unwrap_or(Reached(app.address)));
    }
    next.run(request).await
}

/// The routes of the listener for instances.
pub(crate) fn internal_router(app: Arc<App>) -> Router {
    layered(app, internal())
}

/// The routes of the listener for scrapers, which bear no token.
pub(crate) fn metrics_router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/metrics", routing::get(metrics::show))
        .route("/healthz", routing::get(reading::get_liveness))
        .route("/readyz", routing::get(reading::get_readiness));
    framed(app, with_fallbacks(routes))
}

fn layered(app: Arc<App>, routes: Router<Arc<App>>) -> Router {
    let guard = middleware::from_fn_with_state(Arc::clone(&app), guard::admit);
    framed(app, with_fallbacks(routes).layer(guard))
}

fn with_fallbacks(routes: Router<Arc<App>>) -> Router<Arc<App>> {
    routes
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
}

/// The layers of every listener, the outermost last.
fn framed(app: Arc<App>, routes: Router<Arc<App>>) -> Router {
    routes
        .layer(middleware::from_fn(hygiene::inspect))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            context::establish,
        ))
        .with_state(app)
}

/// The OpenAPI document of the public routes, as JSON.
pub fn openapi_json() -> String {
    openapi::to_json(&openapi::finished(public().into_openapi()))
}

fn public() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::description())
        .routes(routes!(rpc::call_function))
        .routes(routes!(reading::list_regions))
        .routes(routes!(reading::get_region))
        .routes(routes!(explain::explain_region))
        .routes(routes!(reading::list_functions))
        .routes(routes!(reading::get_liveness))
        .routes(routes!(reading::get_readiness))
        .routes(routes!(openapi::get_description))
}

fn internal() -> Router<Arc<App>> {
    Router::new()
        .route(protocol::INTRODUCTION, routing::get(internal::introduce))
        .route(protocol::FUNCTIONS, routing::get(internal::functions))
        .route(protocol::EXEC, routing::post(internal::exec))
        .route("/metrics", routing::get(metrics::show))
}

async fn not_found(context: Context) -> axum::response::Response {
    context.refuse(
        None,
        Problem::new(
            Code::NotFound,
            "no such route; /openapi.json lists the routes",
        ),
    )
}

async fn method_not_allowed(context: Context) -> axum::response::Response {
    context.refuse(
        None,
        Problem::new(
            Code::MethodNotAllowed,
            "this route has other methods; see the header allow",
        ),
    )
}
