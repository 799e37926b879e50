//! One instance, put together: the registry, discovery, dispatch and the server, started and stopped as one.

mod embedded;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::embedded::Embedded;
use crate::{
    app,
    cluster::{Cluster, DiscoveryError},
    config::{Config, ConfigError, DrainConfig, Identity},
    dispatch::{Background, Dispatcher},
    http::{self, App, Descriptions},
    lifecycle::Lifecycle,
    link::Link,
    memory::{self, Budget},
    metrics::Metrics,
    name::BootId,
    registry::{Executor, Keys, Registry, RegistryError},
    rpc::Rpc,
    server::{self, Door, Drained, Server, Shares},
    signal::Signals,
};
#[cfg(feature = "redis")]
use crate::{config::KeyStoreUrl, registry::Store};

/// Why an instance does not start.
#[derive(Debug, thiserror::Error)]
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

/// A running instance: it serves and discovers until it is shut down.
///
/// Dropping it leaves it running; [`Instance::shutdown`] and [`Instance::run_until_signal`] stop it in order.
#[derive(Debug)]
pub struct Instance {
    core: Core,
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
        Self::launch(config, registry, false).await
    }

    /// Starts it, with a child also on a listener for the app that this process runs: that stays open until
    /// [`Instance::end`], so that the app's calls are forwarded while it stops, when no other calls are taken any more.
    pub(crate) async fn launch(
        config: Config,
        registry: Registry,
        has_child: bool,
    ) -> Result<Self, StartError> {
        let (core, _, _) = Core::start(config, registry, None, has_child).await?;
        Ok(Self { core })
    }

    /// Where the child of this process finds it.
    #[cfg(feature = "cli")]
    pub(crate) fn child_address(&self) -> SocketAddr {
        let child = self.core.child.as_ref();
        child.map_or(self.address(), |(address, _)| *address)
    }

    /// Where it serves the public routes.
    pub fn address(&self) -> SocketAddr {
        self.core.address
    }

    /// Where it serves its peers; the same where that has no listener of its own.
    pub fn internal_address(&self) -> SocketAddr {
        self.core.internal_address
    }

    /// Where it serves scrapers, which send no token, if it does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.core.metrics_address
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.core.identity
    }

    /// The handle for calls from this process.
    pub fn rpc(&self) -> Rpc {
        self.core.rpc.clone()
    }

    /// Waits until the first discovery round is over, found or not.
    ///
    /// No call needs this: one for a region that is not known yet waits by itself.
    pub async fn ready(&self) {
        self.core.cluster.first_round().await;
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain at once.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub async fn run_until_signal(self) -> io::Result<Drained> {
        self.run_until(std::future::pending()).await
    }

    /// Serves until `stop` or a signal, then drains; a signal during the drain ends it at once.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub async fn run_until(self, stop: impl Future<Output = ()> + Send) -> io::Result<Drained> {
        let drained = self.drain_after(stop, &mut Signals::listen()?).await;
        self.end().await;
        Ok(drained.unwrap_or(Drained::Cut))
    }

    /// Serves until `stop` or one of `signals`, then drains; `None` when another signal cut that short. What runs in the
    /// background goes on until [`Instance::end`].
    pub(crate) async fn drain_after(
        &self,
        stop: impl Future<Output = ()> + Send,
        signals: &mut Signals,
    ) -> Option<Drained> {
        tokio::select! {
            () = stop => {}
            () = signals.next() => {}
        }
        tracing::info!("stopping: draining; a second signal ends it at once");
        tokio::select! {
            drained = self.core.server.drain() => Some(drained),
            () = signals.next() => None,
        }
    }

    /// Ends what runs in the background, and what is served to a child of this process.
    pub(crate) async fn end(&self) {
        self.core.end().await;
    }

    /// Stops in order: announces the stop to its peers and still serves for the drain delay; then refuses new calls and
    /// finishes those in flight, at most for the drain timeout.
    pub async fn shutdown(&self) -> Drained {
        self.core.shutdown().await
    }
}

/// What runs, with or without a listener of its own for the public routes.
#[derive(Debug)]
struct Core {
    address: SocketAddr,
    internal_address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    identity: Identity,
    rpc: Rpc,
    cluster: Arc<Cluster>,
    server: Server,
    /// What serves a child of this process, and where.
    child: Option<(SocketAddr, Server)>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Core {
    /// Starts everything. The program itself serves the public routes where it says at which address, `mounted_at`; with a
    /// child they are served to that too, at an address of its own. Returns what the routes share, and whether the public
    /// ones share their listener with `/internal/*`.
    async fn start(
        config: Config,
        registry: Registry,
        mounted_at: Option<SocketAddr>,
        has_child: bool,
    ) -> Result<(Self, Arc<App>, bool), StartError> {
        config.validate()?;
        // Without /internal/*, it is no peer.
        let is_peer = !config.machine.runs_release_command;
        let (public, address) = match mounted_at {
            Some(address) => (None, address),
            None => {
                let (listener, address) = listen("RPC_LISTEN (--listen)", &config.listen).await?;
                (Some(listener), address)
            }
        };
        let child = has_child.then_some("127.0.0.1:0");
        let child = listen_if("FLY_RPC_URL, which the app gets", child).await?;
        let own = config.internal_listen.as_deref().filter(|_| is_peer);
        let own = listen_if("RPC_INTERNAL_LISTEN (--internal-listen)", own).await?;
        let scrapers = config.metrics_listen.as_deref();
        let scrapers = listen_if("RPC_METRICS_LISTEN (--metrics-listen)", scrapers).await?;
        let internal_address = own.as_ref().map_or(address, |(_, address)| *address);
        let metrics_address = scrapers.as_ref().map(|(_, address)| *address);
        // Only a bound address shows whether other machines reach it: a name such as fly-local-6pn does not.
        config.check_exposure(address, internal_address)?;
        for prefix in &config.service_links {
            tracing::debug!(%prefix, "variables of a Service of Kubernetes are no settings");
        }
        config.warn_about_shutdown();
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
            drain,
            ..
        } = config;
        if !is_peer {
            tracing::info!("this Machine runs a release command: it joins no cluster");
            discovery.names.clear();
        }
        let memory = Budget::new(limits.max_memory.unwrap_or_else(memory::default_limit));
        let registry = registry.finish(&identity)?;
        let boot = BootId::random();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (lifecycle, of_child) = (Arc::new(Lifecycle::new()), Arc::new(Lifecycle::new()));
        let metrics = Metrics::new(&identity, &boot, registry.names());
        let metrics = Arc::new(metrics);
        let app = app.map(|app| {
            let memory = Arc::clone(&memory);
            app::App::start(&app, limits.max_result, memory, &tasks, stop.clone())
        });
        let keys = match key_store {
            #[cfg(feature = "redis")]
            Some(url) => {
                let store = Store::new(&url, &identity, &boot, stop.clone());
                let (store, kept) = store.map_err(|_| KeyStoreUrl::refused())?;
                tasks.spawn(kept);
                Keys::Stored(store)
            }
            // Built without a client for a store, the program reads no URL of one.
            _ => Keys::here(),
        };
        let executor = Arc::new(Executor::new(
            registry,
            app,
            keys,
            limits,
            Arc::clone(&lifecycle),
            Arc::clone(&metrics),
        ));
        let cluster = Arc::new(Cluster::start(
            &discovery,
            (&identity, &boot),
            internal_address.port(),
            access.own_token(),
            &metrics,
            &tasks,
            stop.clone(),
        )?);
        let link = Link::new(
            Arc::clone(&cluster),
            connect_timeout,
            limits.max_result,
            access.own_token(),
            Arc::clone(&metrics),
            tasks.clone(),
            stop.clone(),
        );
        let background = Background::new(tasks.clone(), stop.clone(), limits.max_in_flight);
        let dispatcher = Arc::new(Dispatcher::new(
            (identity.clone(), boot.clone()),
            timeouts.max,
            (Arc::clone(&lifecycle), Arc::clone(&memory), background),
            Arc::clone(&executor),
            Arc::clone(&cluster),
            link,
            Arc::clone(&metrics),
        ));
        let rpc = Rpc::new(Arc::clone(&dispatcher), timeouts);
        let app = Arc::new(App {
            identity: identity.clone(),
            boot,
            access,
            address: machine.reached_at(internal_address),
            timeouts,
            route,
            limits,
            memory: Arc::clone(&memory),
            lifecycle: Arc::clone(&lifecycle),
            of_child: Arc::clone(&of_child),
            executor,
            cluster: Arc::clone(&cluster),
            dispatcher,
            metrics,
            descriptions: Descriptions::default(),
        });
        let shares = is_peer && own.is_none();
        let places = Shares::of(server::open_files(), memory.limit());
        let clients = if shares {
            places.clients
        } else {
            places.public
        };
        let routes = http::public_router(Arc::clone(&app), shares);
        let internal = http::internal_router(Arc::clone(&app));
        let metrics = http::metrics_router(Arc::clone(&app));
        let doors = [
            public.map(|listener| Door::new(listener, routes, places.public, clients)),
            own.map(|(listener, _)| Door::of_instances(listener, internal, places.internal)),
            scrapers.map(|(listener, _)| Door::of_instances(listener, metrics, places.scrapers)),
        ];
        let doors = doors.into_iter().flatten();
        let server = Server::start(doors, lifecycle, drain, &memory);
        let child = child.map(|(listener, address)| {
            let dispatcher = app.dispatcher.admitted_by(Arc::clone(&of_child));
            let app = App {
                lifecycle: Arc::clone(&of_child),
                dispatcher: Arc::new(dispatcher),
                ..App::clone(&app)
            };
            let router = http::public_router(Arc::new(app), false);
            let door = Door::of_instances(listener, router, places.internal / 2);
            // By then its peers know that it stops.
            let drain = DrainConfig {
                delay: Duration::ZERO,
                ..drain
            };
            let server = Server::start([door].into_iter(), of_child, drain, &memory);
            (address, server)
        });
        let core = Self {
            address,
            internal_address,
            metrics_address,
            identity,
            rpc,
            cluster,
            server,
            child,
            stop,
            tasks,
        };
        Ok((core, app, shares))
    }

    /// Drains, and then ends everything that runs in the background.
    async fn shutdown(&self) -> Drained {
        let drained = self.server.drain().await;
        self.end().await;
        drained
    }

    /// Ends everything that is left after the drain.
    async fn end(&self) {
        if let Some((_, server)) = &self.child {
            server.drain().await;
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn listen_if(
    setting: &'static str,
    address: Option<&str>,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    match address {
        Some(address) => listen(setting, address).await.map(Some),
        None => Ok(None),
    }
}

async fn listen(
    setting: &'static str,
    address: &str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = server::bind(address).await;
    bound.map_err(|source| StartError::Listen {
        setting,
        address: address.to_owned(),
        source,
    })
}
