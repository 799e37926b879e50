//! One instance, put together: the registry, discovery, dispatch and the server, started and stopped as one; also inside a
//! program that has an HTTP server of its own.

use std::{fs, future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use futures_util::future::OptionFuture;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "redis")]
use crate::registry::Store;
use crate::{
    app,
    cluster::{Cluster, DiscoveryError},
    config::{Config, ConfigError, DrainConfig, Identity},
    dispatch::Dispatcher,
    http,
    lifecycle::Lifecycle,
    link::Link,
    local::LocalInstance,
    memory::{self, Budget},
    metrics::Metrics,
    name::{BootId, debug_as_text},
    registry::{Executor, Keys, Registry, RegistryError},
    rpc::Rpc,
    server::{self, Drained, Server, Shares},
};

/// Why an instance does not start.
#[derive(thiserror::Error)]
pub enum StartError {
    /// Settings that contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A registration that cannot stand.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An address cannot be bound.
    #[error("{setting}: cannot listen on {address}: {source}")]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// What was to be bound.
        address: String,
        /// Why it was not.
        source: io::Error,
    },
    /// Discovery cannot start.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
}

debug_as_text!(StartError);

/// A running instance: it serves and discovers until it is shut down.
///
/// Dropping it leaves it running; [`Instance::shutdown`] and [`Instance::run_until_signal`] stop it in order.
#[derive(Debug)]
pub struct Instance {
    address: SocketAddr,
    internal_address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    dispatcher: Arc<Dispatcher>,
    server: Server,
    /// What serves a child of this process, and where.
    child: Option<(SocketAddr, Server)>,
}

impl Instance {
    /// Binds, serves and starts discovery, with `registry`'s functions and those of `Fly.RPC`.
    ///
    /// It takes calls when this returns. The first discovery round goes on in the background: a call for a region that is
    /// not known yet waits for its end, within the call's timeout.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, registry: Registry) -> Result<Self, StartError> {
        Self::launch(config, registry, None, false).await
    }

    /// Starts it. A program that serves the public routes itself says at which address: `mounted_at`. With a child, they are
    /// also served on a listener for the child alone. That stays open until [`Instance::end`], because the app may still
    /// call other instances while it stops, when nobody else's calls are taken any more.
    pub(crate) async fn launch(
        config: Config,
        registry: Registry,
        mounted_at: Option<SocketAddr>,
        has_child: bool,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let listeners = Listeners::bind(&config, mounted_at, has_child).await?;
        let (address, internal_address) = (listeners.address, listeners.internal_address());
        let metrics_address = listeners.scrapers.as_ref().map(|(_, address)| *address);
        // Only a bound address shows whether other machines reach it: a name such as fly-local-6pn does not.
        config.check_exposure(address, internal_address)?;
        for prefix in &config.service_links {
            tracing::debug!(%prefix, "variables of a Service of Kubernetes are no settings");
        }
        config.warn_about_shutdown(has_child);
        if config.machine.runs_release_command {
            tracing::info!("this Machine runs a release command: it joins no cluster");
        }
        let (drain, shares) = (config.drain, config.serves_internal_publicly());
        let dispatcher = assemble(config, registry, internal_address)?;
        let (server, child) = listeners.serve(&dispatcher, shares, drain);
        Ok(Self {
            address,
            internal_address,
            metrics_address,
            dispatcher,
            server,
            child,
        })
    }

    /// Where the child of this process finds it.
    #[cfg(feature = "cli")]
    pub(crate) fn child_address(&self) -> SocketAddr {
        let child = self.child.as_ref();
        child.map_or(self.address, |(address, _)| *address)
    }

    /// Where it serves the public routes.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves its peers; the same where that has no listener of its own.
    pub fn internal_address(&self) -> SocketAddr {
        self.internal_address
    }

    /// Where it serves scrapers, which send no token, if it does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.dispatcher.local.identity
    }

    /// The handle for calls from this process.
    pub fn rpc(&self) -> Rpc {
        Rpc::new(Arc::clone(&self.dispatcher))
    }

    /// Waits until the first discovery round is over, found or not.
    ///
    /// No call needs this: one for a region that is not known yet waits by itself.
    pub async fn ready(&self) {
        self.dispatcher.cluster.first_round().await;
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain at once, which is [`Drained::Cut`] where a
    /// call was in flight.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub async fn run_until_signal(self) -> io::Result<Drained> {
        self.run_until(future::pending()).await
    }

    /// Serves until `stop` or a signal, then drains; a signal during the drain ends it at once, which is [`Drained::Cut`]
    /// where a call was in flight.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub async fn run_until(self, stop: impl Future<Output = ()> + Send) -> io::Result<Drained> {
        let (mut signals, hurry) = (Signals::listen()?, CancellationToken::new());
        let drained = self.drain_after(stop, &mut signals, &hurry).await;
        self.end().await;
        Ok(drained)
    }

    /// Serves until `stop` or one of `signals`, then drains; another signal cuts that short and cancels `hurry`. What runs in
    /// the background goes on until [`Instance::end`].
    pub(crate) async fn drain_after(
        &self,
        stop: impl Future<Output = ()> + Send,
        signals: &mut Signals,
        hurry: &CancellationToken,
    ) -> Drained {
        tokio::select! {
            () = stop => {}
            () = signals.next() => {}
        }
        tracing::info!("stopping: draining; a second signal ends it at once");
        tokio::select! {
            drained = self.server.drain() => drained,
            () = signals.next() => {
                hurry.cancel();
                self.server.cut().await
            }
        }
    }

    /// Drains the child's listener, once the child has ended: the calls that it began go on for the drain timeout, or until
    /// `hurry`.
    #[cfg(feature = "cli")]
    pub(crate) async fn drain_child(&self, hurry: &CancellationToken) -> Drained {
        let Some((_, server)) = &self.child else {
            return Drained::Whole;
        };
        match hurry.run_until_cancelled(server.drain()).await {
            Some(drained) => drained,
            None => server.cut().await,
        }
    }

    /// Ends what runs in the background, and closes what is served to a child of this process.
    pub(crate) async fn end(&self) {
        if let Some((_, server)) = &self.child {
            server.cut().await;
        }
        let LocalInstance { tasks, stop, .. } = &*self.dispatcher.local;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        // Calls that were stopped with their tasks gave up their keys, of which the store does not know yet.
        self.dispatcher.executor.keys.flush().await;
    }

    /// Stops in order: announces the stop to its peers and still serves for the drain delay; then refuses new calls and
    /// finishes those in flight, at most for the drain timeout. Who calls it again waits for the rest of that.
    pub async fn shutdown(&self) -> Drained {
        let drained = self.server.drain().await;
        self.end().await;
        drained
    }
}

/// An instance whose public routes the program serves, on a listener of its own.
///
/// The program accepts connections, handles signals, and decides when to stop; the instance has its functions, discovers
/// its peers, and calls them. `RPC_INTERNAL_LISTEN` and `RPC_METRICS_LISTEN` are still listened on where they are set;
/// `RPC_LISTEN` is for the program to read. Dropping it leaves discovery running; [`Embedded::drain`] stops it in order.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use fly_rpc::{Config, Embedded, Reached, Registry};
/// use tokio::{
///     net::TcpListener,
///     signal::{
///         ctrl_c,
///         unix::{SignalKind, signal},
///     },
/// };
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
///     let mut terminate = signal(SignalKind::terminate())?;
///     let stop = async move {
///         tokio::select! {
///             _ = ctrl_c() => {}
///             _ = terminate.recv() => {}
///         }
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
        let router = http::mounted_router(Arc::clone(&instance.dispatcher), shares);
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

/// SIGTERM, SIGINT and SIGHUP from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` where it is ignored, as `nohup` has it.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Listens; from here on these signals do not end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: match is_hang_up_ignored() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            Some(_) = OptionFuture::from(self.hang_up.as_mut().map(Signal::recv)) => {}
        }
        // It begins a stop and hurries none: shells and the kernel send it more than once. The handler stays.
        self.hang_up = None;
    }
}

/// Whether whoever started this process has it ignore SIGHUP, by the mask of Linux (proc(5)); taken to be so where that
/// cannot be read.
fn is_hang_up_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = masks
        .next()
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|ignored| ignored & 1 == 1)
}

type Bound = (TcpListener, SocketAddr);

struct Listeners {
    /// For the public routes; `None` where the program serves them itself.
    public: Option<TcpListener>,
    /// Where the public routes are.
    address: SocketAddr,
    internal: Option<Bound>,
    scrapers: Option<Bound>,
    child: Option<Bound>,
}

impl Listeners {
    async fn bind(
        config: &Config,
        mounted_at: Option<SocketAddr>,
        has_child: bool,
    ) -> Result<Self, StartError> {
        let (public, address) = match mounted_at {
            Some(address) => (None, address),
            None => {
                let (listener, address) = listen("RPC_LISTEN (--listen)", &config.listen).await?;
                (Some(listener), address)
            }
        };
        let child = has_child.then_some("127.0.0.1:0");
        let child = listen_if("FLY_RPC_URL, which the app gets", child).await?;
        // A release command has no /internal/*: it is not a peer.
        let internal = config.internal_listen.as_deref();
        let internal = internal.filter(|_| !config.machine.runs_release_command);
        let internal = listen_if("RPC_INTERNAL_LISTEN (--internal-listen)", internal).await?;
        let scrapers = config.metrics_listen.as_deref();
        let scrapers = listen_if("RPC_METRICS_LISTEN (--metrics-listen)", scrapers).await?;
        Ok(Self {
            public,
            address,
            internal,
            scrapers,
            child,
        })
    }

    fn internal_address(&self) -> SocketAddr {
        let internal = self.internal.as_ref();
        internal.map_or(self.address, |(_, address)| *address)
    }

    /// Serves `dispatcher` on every listener; where it `shares` the public one, instances are served there too. The child's
    /// listener has a server of its own, which stops later.
    fn serve(
        self,
        dispatcher: &Arc<Dispatcher>,
        shares: bool,
        drain: DrainConfig,
    ) -> (Server, Option<(SocketAddr, Server)>) {
        let (memory, lifecycle) = (&dispatcher.local.memory, &dispatcher.lifecycle);
        let places = Shares::of(server::open_files(), memory.limit);
        let clients = match shares {
            true => places.clients,
            false => places.public,
        };
        let mut server = Server::new(Arc::clone(lifecycle), drain, memory);
        if let Some(listener) = self.public {
            let routes = http::public_routes(Arc::clone(dispatcher), shares);
            server.open(listener, routes, places.public, clients);
        }
        if let Some((listener, _)) = self.internal {
            let routes = http::internal_routes(Arc::clone(dispatcher));
            server.open(listener, routes, places.internal, places.internal);
        }
        if let Some((listener, _)) = self.scrapers {
            let routes = http::metrics_routes(Arc::clone(dispatcher));
            server.open(listener, routes, places.scrapers, places.scrapers);
        }
        let child = self.child.map(|(listener, address)| {
            let own = Arc::clone(&dispatcher.other_lifecycle);
            let of_child = Dispatcher {
                lifecycle: Arc::clone(&own),
                other_lifecycle: Arc::clone(lifecycle),
                ..Dispatcher::clone(dispatcher)
            };
            let routes = http::public_routes(Arc::new(of_child), false);
            // By then its peers know that it stops.
            let drain = DrainConfig {
                delay: Duration::ZERO,
                ..drain
            };
            let mut server = Server::new(own, drain, memory);
            server.open(listener, routes, places.child, places.child);
            (address, server)
        });
        (server, child)
    }
}

/// Makes the parts of an instance at `internal_address`, each from those before it.
fn assemble(
    config: Config,
    registry: Registry,
    internal_address: SocketAddr,
) -> Result<Arc<Dispatcher>, StartError> {
    let Config {
        identity,
        machine,
        access,
        mut discovery,
        timeouts,
        connect_timeout,
        route,
        app,
        key_store,
        limits,
        ..
    } = config;
    if machine.runs_release_command {
        discovery.names.clear();
    }
    let memory = Budget::new(limits.max_memory.unwrap_or_else(memory::default_limit));
    let (room, least) = (memory.limit, limits.least_memory());
    if room < least {
        tracing::warn!(
            "the largest bodies are refused: RPC_MAX_MEMORY is {room} bytes by what there is here, and RPC_MAX_BODY takes \
             {least}; set the one or lower the other"
        );
    }
    let registry = registry.finish(&identity)?;
    let boot = BootId::random();
    let metrics = Arc::new(Metrics::new(&identity, &boot, registry.names()));
    let local = Arc::new(LocalInstance {
        address: machine.reached_at(internal_address),
        identity,
        boot,
        access,
        route,
        timeouts,
        limits,
        memory,
        metrics,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    });
    let app = app.map(|app| {
        let (memory, stop) = (Arc::clone(&local.memory), local.stop.clone());
        let (instance, tasks) = (local.identity.instance.clone(), &local.tasks);
        app::App::start(instance, &app, limits.max_result, memory, tasks, stop)
    });
    let keys = match key_store {
        #[cfg(feature = "redis")]
        Some(url) => {
            let (store, kept) = Store::new(url, &local);
            local.tasks.spawn(kept);
            Keys::Stored(store)
        }
        // Built without a client for a store, the program reads no URL of one.
        _ => Keys::here(),
    };
    let lifecycle = Arc::new(Lifecycle::new());
    let executor = Arc::new(Executor::new(
        registry,
        app,
        keys,
        Arc::clone(&local),
        Arc::clone(&lifecycle),
    ));
    let port = internal_address.port();
    let cluster = Cluster::start(&local, Arc::clone(&executor), &discovery, port)
        // What runs in the background already.
        .inspect_err(|_| local.stop.cancel())?;
    let cluster = Arc::new(cluster);
    let link = Link::new(Arc::clone(&local), Arc::clone(&cluster), connect_timeout);
    Ok(Arc::new(Dispatcher {
        local,
        lifecycle,
        other_lifecycle: Arc::new(Lifecycle::new()),
        executor,
        cluster,
        link: Arc::new(link),
        budgets: Arc::default(),
        in_background: Arc::new(Semaphore::new(limits.max_in_flight)),
    }))
}

async fn listen_if(
    setting: &'static str,
    address: Option<&str>,
) -> Result<Option<Bound>, StartError> {
    match address {
        Some(address) => listen(setting, address).await.map(Some),
        None => Ok(None),
    }
}

async fn listen(setting: &'static str, address: &str) -> Result<Bound, StartError> {
    let bound = server::bind(address).await;
    bound.map_err(|source| StartError::Listen {
        setting,
        address: address.to_owned(),
        source,
    })
}
