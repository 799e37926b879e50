//! One instance, put together: the registry, discovery, dispatch and the server, started and stopped as one.
//! And the handle by which the program that embeds it calls other regions.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    call::{Args, Call, Timeouts},
    cluster::{Cluster, DiscoveryError},
    config::{Config, ConfigError, Identity},
    dispatch::Dispatcher,
    http::{self, App},
    lifecycle::Lifecycle,
    link::Link,
    name::{FunctionName, IdempotencyKey, InstanceId, InvalidName, RequestId},
    problem::{Code, Executed, FunctionError, Problem},
    region::Target,
    registry::{Executor, Registry, RegistryError},
    server::{self, Drained, Server},
    signal::Signals,
};

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
    /// The HTTP client cannot be built.
    #[error("the HTTP client for calls cannot be built: {0}")]
    Client(#[from] reqwest::Error),
}

/// A running instance: it serves and discovers until it is shut down.
///
/// Dropping it leaves it running; [`Instance::shutdown`] and [`Instance::run_until_signal`] stop it in order.
#[derive(Debug)]
pub struct Instance {
    address: SocketAddr,
    internal_address: SocketAddr,
    identity: Identity,
    rpc: Rpc,
    server: Server,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Instance {
    /// Binds, serves and starts discovery, with `registry`'s functions and those of `Fly.RPC`.
    ///
    /// It takes calls when this returns; the first discovery round goes on in the background.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config, registry: Registry) -> Result<Self, StartError> {
        config.validate()?;
        let (listener, address) = listen("RPC_LISTEN (--listen)", &config.listen).await?;
        let own = match &config.internal_listen {
            Some(listen_on) => {
                Some(listen("RPC_INTERNAL_LISTEN (--internal-listen)", listen_on).await?)
            }
            None => None,
        };
        let internal_address = own.as_ref().map_or(address, |(_, address)| *address);
        config.check_exposure(address, internal_address)?;
        let Config {
            identity,
            access,
            discovery,
            timeouts,
            connect_timeout,
            limits,
            drain,
            ..
        } = config;
        let registry = registry.finish(&identity)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let lifecycle = Arc::new(Lifecycle::new());
        let executor = Arc::new(Executor::new(registry, limits, Arc::clone(&lifecycle)));
        let cluster = Arc::new(Cluster::start(
            &discovery,
            &identity,
            internal_address.port(),
            access.own_token(),
            &tasks,
            stop.clone(),
        )?);
        let link = Link::new(
            Arc::clone(&cluster),
            connect_timeout,
            limits.max_result,
            access.own_token(),
            tasks.clone(),
            stop.clone(),
        )?;
        let dispatcher = Arc::new(Dispatcher::new(
            identity.clone(),
            Arc::clone(&lifecycle),
            Arc::clone(&executor),
            Arc::clone(&cluster),
            link,
        ));
        let rpc = Rpc {
            dispatcher: Arc::clone(&dispatcher),
            timeouts,
        };
        let app = Arc::new(App {
            identity: identity.clone(),
            access,
            address: internal_address,
            timeouts,
            limits,
            lifecycle: Arc::clone(&lifecycle),
            executor,
            cluster,
            dispatcher,
        });
        let mut listeners = vec![(
            listener,
            http::public_router(Arc::clone(&app), own.is_none()),
        )];
        listeners.extend(own.map(|(listener, _)| (listener, http::internal_router(app))));
        let server = Server::start(listeners, lifecycle, drain);
        Ok(Self {
            address,
            internal_address,
            identity,
            rpc,
            server,
            stop,
            tasks,
        })
    }

    /// Where it serves the public routes.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves its peers; the same where that has no listener of its own.
    pub fn internal_address(&self) -> SocketAddr {
        self.internal_address
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The handle for calls from this process.
    pub fn rpc(&self) -> Rpc {
        self.rpc.clone()
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
        Ok(self.run_until_or(stop, Signals::listen()?).await)
    }

    /// The same with signals that were listened for before.
    pub(crate) async fn run_until_or(
        self,
        stop: impl Future<Output = ()> + Send,
        mut signals: Signals,
    ) -> Drained {
        tokio::select! {
            () = stop => {}
            () = signals.next() => {}
        }
        tracing::info!("stopping: draining; a second signal ends it at once");
        tokio::select! {
            drained = self.shutdown() => drained,
            () = signals.next() => Drained::Cut,
        }
    }

    /// Stops in order: tells the peers and still serves for the drain delay; then refuses new calls and finishes those
    /// in flight, at most for the drain timeout.
    pub async fn shutdown(&self) -> Drained {
        let drained = self.server.drain().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        drained
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

/// How a call from this process may run, besides what and where.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// How long to wait; the configured default when `None`, and at most the configured maximum.
    pub timeout: Option<Duration>,
    /// Whether the function may run twice: allows another attempt after one that may have run.
    pub idempotent: bool,
    /// Only on this instance of the region.
    pub instance: Option<InstanceId>,
    /// Makes a repeat of this call the same call: within ten minutes it is not run again, and gets the outcome of the
    /// first.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Calls functions in other regions, or in this one, from this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Rpc {
    dispatcher: Arc<Dispatcher>,
    timeouts: Timeouts,
}

/// Why a call from this process has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct CallError(Box<Problem>);

impl CallError {
    /// What went wrong.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Whether the function ran.
    pub fn executed(&self) -> Executed {
        self.0.executed
    }

    /// One sentence about it.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The function's own error, with [`Code::FunctionFailed`] only.
    pub fn error(&self) -> Option<&FunctionError> {
        self.0.error.as_deref()
    }
}

impl From<Problem> for CallError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<InvalidName> for CallError {
    fn from(invalid: InvalidName) -> Self {
        Problem::new(Code::InvalidRequest, invalid.to_string()).into()
    }
}

impl Rpc {
    /// Runs `module.function(args)` in `region`, or in the primary region when it is `"primary"`, and waits for its
    /// result up to the default timeout.
    ///
    /// `args` is a tuple or list with an item for each argument, `()` for none, or the only argument.
    ///
    /// # Errors
    /// As `POST /rpc/{region}`: the error has a code and says whether the function ran. A result that is no `R` is
    /// [`Code::FunctionFailed`] of the kind `UnexpectedResult`.
    pub async fn call<R: DeserializeOwned>(
        &self,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<R, CallError> {
        self.call_with(CallOptions::default(), region, module, function, args)
            .await
    }

    /// The same with `options`.
    ///
    /// # Errors
    /// As [`Rpc::call`].
    pub async fn call_with<R: DeserializeOwned>(
        &self,
        options: CallOptions,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<R, CallError> {
        let target: Target = region.parse().map_err(|invalid: InvalidName| {
            Problem::new(Code::InvalidRegion, invalid.to_string())
        })?;
        let timeout = options.timeout.unwrap_or(self.timeouts.default);
        if timeout.is_zero() || timeout > self.timeouts.max {
            let detail = format!(
                "the timeout must be above zero and at most {:?}",
                self.timeouts.max
            );
            return Err(Problem::new(Code::InvalidRequest, detail).into());
        }
        let call = Call {
            name: FunctionName {
                module: module.parse()?,
                function: function.parse()?,
            },
            args: Args::from_values(&args)?,
            timeout,
            idempotent: options.idempotent,
            instance: options.instance,
            key: options.idempotency_key,
        };
        let request_id = RequestId::fresh();
        let span = request_id.span();
        let outcome = self
            .dispatcher
            .dispatch(&target, &call, request_id, Instant::now())
            .instrument(span)
            .await;
        let result = outcome.result?;
        serde_json::from_str(result.get()).map_err(|error| unexpected(&error).into())
    }
}

fn unexpected(error: &serde_json::Error) -> Problem {
    Problem::function_failed(FunctionError::new(
        "UnexpectedResult",
        format!("the result has another type: {error}"),
    ))
}
