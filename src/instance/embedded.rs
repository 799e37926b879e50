//! An instance inside a program that has an HTTP server of its own: its routes as a router to be mounted there.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;

use super::{Instance, StartError};
use crate::{
    config::{Config, Identity},
    http,
    registry::Registry,
    rpc::Rpc,
    server::Drained,
};

/// An instance whose public routes the program serves, on a listener of its own.
///
/// The program accepts connections, handles signals, and decides when to stop; the instance has its functions, discovers
/// its peers, and calls them. `RPC_INTERNAL_LISTEN` and `RPC_METRICS_LISTEN` are still listened on where they are set;
/// `RPC_LISTEN` is for the program to read. Dropping it leaves discovery running; [`Embedded::drain`] stops it in order.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use fly_rpc::{Config, Embedded, Reached, Registry};
/// use tokio::{net::TcpListener, signal};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let config = Config::from_env()?;
///     let listener = TcpListener::bind(&config.listen).await?;
///     let instance = Embedded::start(config, Registry::builtin(), listener.local_addr()?).await?;
///     let app = Router::new()
///         .route("/", get(|| async { "the program's own" }))
///         .merge(instance.router())
///         .into_make_service_with_connect_info::<Reached>();
///     let stop = async move {
///         signal::ctrl_c().await.ok();
///         instance.drain().await;
///     };
///     axum::serve(listener, app).with_graceful_shutdown(stop).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Embedded {
    instance: Instance,
    router: Router,
}

impl Embedded {
    /// Starts discovery, with `registry`'s functions and those of `Fly.RPC`, for a program that listens at `address`.
    ///
    /// The port of `address` is where peers are looked for unless `RPC_PEER_PORT` or `RPC_INTERNAL_LISTEN` says otherwise.
    /// It needs the same tokens as `RPC_LISTEN` would: none for loopback.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        config: Config,
        registry: Registry,
        address: SocketAddr,
    ) -> Result<Self, StartError> {
        let shares = config.serves_internal_publicly();
        let instance = Instance::launch(config, registry, Some(address), false).await?;
        let router = http::mounted_router(Arc::clone(&instance.app), shares);
        Ok(Self { instance, router })
    }

    /// The instance's routes, each with all of its layers: to be merged into the program's router, which answers every
    /// other path itself. It is a service of tower too.
    ///
    /// They stand at the root (`/rpc`, `/each`, `/regions`, `/functions`, `/events`, `/healthz`, `/readyz`, `/openapi.json`,
    /// `/docs`, `/ui`, and `/internal` and `/metrics` unless `RPC_INTERNAL_LISTEN` is set), because peers look for them
    /// there. A program with a route of the same path, such as its own `/healthz`, gives this as its `fallback_service`
    /// instead: what the program has then wins.
    ///
    /// With `RPC_TOKEN`, instances prove to each other which address they were reached at: serve it with
    /// `into_make_service_with_connect_info::<Reached>()`, or put a [`Reached`](http::Reached) on each request. Without
    /// it, the address that the instance was started with counts, which must then be the one that DNS gives.
    ///
    /// The server reads heads: it should give a head 10 s and 128 KiB at most, and speak HTTP/1.1.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        self.instance.identity()
    }

    /// The handle for calls from this process.
    pub fn rpc(&self) -> Rpc {
        self.instance.rpc()
    }

    /// Waits until the first discovery round is over, found or not.
    pub async fn ready(&self) {
        self.instance.ready().await;
    }

    /// Stops the instance in order, while the program still serves: announces the stop and takes calls for the drain delay;
    /// then refuses new calls and finishes those in flight, at most for the drain timeout; then ends discovery. The
    /// program stops its server when this has returned.
    pub async fn drain(&self) -> Drained {
        self.instance.shutdown().await
    }
}
