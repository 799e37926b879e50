//! Flags and environment into one checked `Config`, built once at start. No other module reads the environment.
//! A setting that is unknown, unreadable or contradicts another makes the start fail: nothing is guessed.

#[cfg(feature = "cli")]
mod commands;
mod environment;
mod rules;
pub(crate) mod settings;
#[cfg(test)]
mod tests;
mod urls;

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

#[cfg(feature = "cli")]
pub(crate) use self::commands::*;
use self::settings::*;
pub use self::{
    settings::{SETTINGS, Setting},
    urls::{AppAddress, AppUrl, KeyStoreUrl},
};
use crate::{
    access::{Access, Client},
    call::Timeouts,
    name::{InstanceId, InvalidName, debug_as_text},
    region::Region,
    token::Token,
};

/// Who this instance is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its region.
    pub region: Region,
    /// The primary region.
    pub primary: Region,
    /// Its id, unique in the cluster.
    pub instance: InstanceId,
    /// Its application; peers of another application are not peers.
    pub app: Option<String>,
    /// Its release, shown to people.
    pub release: Option<String>,
}

/// What a process on Fly knows of its Machine: <https://fly.io/docs/machines/runtime-environment/>.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// Its address in the private network, which peers reach.
    pub private_ip: Option<IpAddr>,
    /// Whether it was started for a release command only: it has no address in DNS, and joins no cluster.
    pub runs_release_command: bool,
}

impl Machine {
    /// The address at which peers reach what listens at `address`, which may stand for all addresses of the Machine.
    pub(crate) fn reached_at(self, address: SocketAddr) -> SocketAddr {
        match self.private_ip {
            Some(ip) if address.ip().is_unspecified() => SocketAddr::new(ip, address.port()),
            _ => address,
        }
    }
}

/// One entry of what discovery resolves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DnsName {
    /// A host whose A and AAAA records are peers, at this port or else the peer port.
    Host(String, Option<u16>),
    /// A service (its name starts with `_`) whose SRV records are peers and carry the port.
    Service(String),
    /// A peer's address, not resolved.
    Address(SocketAddr),
}

/// How a call for another region gets there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Route {
    /// Over a link: the instance asked forwards it.
    #[default]
    Proxy,
    /// By an answer with `fly-replay`, on which Fly Proxy sends the request once more to the other region.
    Replay,
    /// As `Replay` where the request came through Fly Proxy, else as `Proxy`.
    Auto,
}

impl FromStr for Route {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text {
            "proxy" => Ok(Self::Proxy),
            "replay" => Ok(Self::Replay),
            "auto" => Ok(Self::Auto),
            _ => Err(InvalidName::new("a route", "proxy, replay or auto")),
        }
    }
}

/// How peers are found.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// What is resolved; empty for a cluster of one.
    pub names: Vec<DnsName>,
    /// The DNS server to ask; the system's when `None`.
    pub server: Option<SocketAddr>,
    /// The port of peers found by A and AAAA; the port that serves `/internal/*` when `None`.
    pub peer_port: Option<u16>,
    /// The time between two rounds, ± 20 %; 50 ms or more.
    pub poll_interval: Duration,
}

/// The app beside an instance.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// Where it serves its functions.
    pub url: AppUrl,
    /// The token in every request to it; only an app at a unix socket needs none.
    pub token: Option<Token>,
    /// Calls in it at once, 1 or more; as many again wait.
    pub concurrency: usize,
    /// How long a child process may take to stop.
    pub stop_timeout: Duration,
    /// Whether its functions are offered although it gives its list without the token.
    pub allow_anonymous: bool,
}

/// What one instance takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// The largest result of a function, in bytes.
    pub max_result: usize,
    /// Calls that may run here at once; more are refused.
    pub max_in_flight: usize,
    /// The bytes of heads, bodies and answers that may wait here; a quarter of the memory that the process may use when `None`.
    pub max_memory: Option<usize>,
}

/// How an instance stops.
#[derive(Clone, Copy, Debug)]
pub struct DrainConfig {
    /// How long it still takes calls after its peers know that it stops.
    pub delay: Duration,
    /// How long calls in flight may finish after that.
    pub timeout: Duration,
}

/// All settings of an instance; the default is a cluster of one on `127.0.0.1:8080`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this instance is.
    pub identity: Identity,
    /// The Machine it runs on.
    pub machine: Machine,
    /// `host:port` to serve on; port 0 takes a free one.
    pub listen: String,
    /// `host:port` for what instances ask of each other; shares `listen` when `None`.
    pub internal_listen: Option<String>,
    /// `host:port` for scrapers, which send no token: metrics and health only; no such listener when `None`.
    pub metrics_listen: Option<String>,
    /// Who may ask it what.
    pub access: Access,
    /// How peers are found.
    pub discovery: DiscoveryConfig,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// The longest wait for a connection to a peer.
    pub connect_timeout: Duration,
    /// How calls for other regions get there, unless a request says otherwise.
    pub route: Route,
    /// The app beside it, whose functions it offers.
    pub app: Option<AppConfig>,
    /// Where all instances remember idempotency keys; each by itself when `None`.
    pub key_store: Option<KeyStoreUrl>,
    /// What this instance takes on.
    pub limits: Limits,
    /// How it stops.
    pub drain: DrainConfig,
    /// The `tracing` filter of `fly-rpc serve`; a program that embeds the crate sets up its own logs.
    pub log: String,
    /// Prefixes of the variables that Kubernetes sets for a Service, such as `RPC_PUBLIC` for `rpc-public`: they are not
    /// settings, and a line at start says so.
    pub service_links: Vec<String>,
}

/// A setting that makes the start fail.
#[derive(thiserror::Error)]
#[error("{setting}: {detail}")]
pub struct ConfigError {
    setting: String,
    detail: String,
}

debug_as_text!(ConfigError);

impl ConfigError {
    fn new(setting: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            setting: setting.into(),
            detail: detail.into(),
        }
    }
}

impl Config {
    /// The configuration that the environment describes.
    ///
    /// # Errors
    /// A variable that starts with `RPC_` and is neither one of [`SETTINGS`] nor a service link of Kubernetes, a value that
    /// does not parse, or settings that contradict each other. The message is one line that names the setting and what would
    /// be right.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_env_and_flags(std::iter::empty())
    }

    /// The configuration that the environment describes, where `flags` (by the variable of the same meaning) win.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn from_env_and_flags(
        flags: impl Iterator<Item = (&'static str, String)>,
    ) -> Result<Self, ConfigError> {
        let (mut values, service_links) = environment::read()?;
        // After the variables, over which they win.
        values.extend(flags.map(|(name, value)| (name.to_owned(), value)));
        Ok(Self {
            service_links,
            ..Self::from_values(&Values(values))?
        })
    }

    /// What each setting means: its parser, and its place in the configuration.
    fn from_values(values: &Values) -> Result<Self, ConfigError> {
        values.refuse_unknown()?;
        // Both are read, so that a wrong value is refused even where the other one counts.
        let own_region = values.given(FLY_REGION, word)?;
        let other_region = values.given(MY_REGION, word)?;
        let names = match values.given(RPC_DNS_NAME, dns_names)? {
            Some(names) => names,
            None => Vec::from_iter(values.given(FLY_APP_NAME, app_dns_name)?),
        };
        let clients: Option<Vec<Client>> = values.secret(RPC_CLIENT_TOKENS, secrets)?;
        let config = Self {
            identity: Identity {
                region: match own_region.or(other_region) {
                    Some(region) => region,
                    None => values.get(FLY_REGION, word)?,
                },
                primary: values.get(PRIMARY_REGION, word)?,
                instance: values
                    .given(FLY_MACHINE_ID, word)?
                    .unwrap_or_else(InstanceId::random),
                app: values.given(FLY_APP_NAME, parsed)?,
                release: values.given(FLY_IMAGE_REF, parsed)?,
            },
            machine: Machine {
                private_ip: values.given(FLY_PRIVATE_IP, address)?,
                runs_release_command: values.get(RELEASE_COMMAND, is_one)?,
            },
            listen: values.get(RPC_LISTEN, host_and_port)?,
            internal_listen: values.given(RPC_INTERNAL_LISTEN, host_and_port)?,
            metrics_listen: values.given(RPC_METRICS_LISTEN, host_and_port)?,
            access: Access {
                cluster: values.secret(RPC_TOKEN, secrets)?.unwrap_or_default(),
                clients: clients.into_iter().flatten().map(Arc::new).collect(),
                allow_anonymous: values.get(RPC_ALLOW_ANONYMOUS, true_or_false)?,
            },
            discovery: DiscoveryConfig {
                names,
                server: values.given(RPC_DNS_SERVER, dns_server)?,
                peer_port: values.given(RPC_PEER_PORT, port)?,
                poll_interval: values.get(RPC_POLL_INTERVAL, duration)?,
            },
            timeouts: Timeouts {
                default: values.get(RPC_DEFAULT_TIMEOUT, duration)?,
                max: values.get(RPC_MAX_TIMEOUT, duration)?,
            },
            connect_timeout: values.get(RPC_CONNECT_TIMEOUT, duration)?,
            route: values.get(RPC_ROUTE, word)?,
            app: app(values)?,
            key_store: values.secret(RPC_KEY_STORE, parsed)?,
            limits: Limits {
                max_body: values.get(RPC_MAX_BODY, size)?,
                max_result: values.get(RPC_MAX_RESULT, size)?,
                max_in_flight: values.get(RPC_MAX_IN_FLIGHT, count)?,
                max_memory: values.given(RPC_MAX_MEMORY, size)?,
            },
            drain: DrainConfig {
                delay: values.get(RPC_DRAIN_DELAY, duration)?,
                timeout: values.get(RPC_DRAIN_TIMEOUT, duration)?,
            },
            log: values.get(RPC_LOG, log_filter)?,
            service_links: Vec::new(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Whether `/internal/*` is among the routes of the public listener. A release command does not serve it, because it is
    /// not a peer.
    pub(crate) fn serves_internal_publicly(&self) -> bool {
        self.internal_listen.is_none() && !self.machine.runs_release_command
    }
}

/// The app that the settings describe, if they name one.
fn app(values: &Values) -> Result<Option<AppConfig>, ConfigError> {
    let Some(url) = values.given(RPC_APP_URL, parsed)? else {
        // A setting without effect is a mistake: its author expects one.
        for setting in [
            RPC_APP_TOKEN,
            RPC_APP_CONCURRENCY,
            RPC_APP_STOP_TIMEOUT,
            RPC_APP_ALLOW_ANONYMOUS,
        ] {
            if values.0.contains_key(setting.variable) {
                let detail = "has no effect without RPC_APP_URL; set that too, or unset this";
                return Err(setting.error(detail));
            }
        }
        return Ok(None);
    };
    Ok(Some(AppConfig {
        url,
        token: values.secret(RPC_APP_TOKEN, parsed)?,
        concurrency: values.get(RPC_APP_CONCURRENCY, count)?,
        stop_timeout: values.get(RPC_APP_STOP_TIMEOUT, duration)?,
        allow_anonymous: values.get(RPC_APP_ALLOW_ANONYMOUS, true_or_false)?,
    }))
}

impl Default for Config {
    fn default() -> Self {
        Self::from_values(&Values::default())
            .unwrap_or_else(|error| unreachable!("the defaults are valid: {error}"))
    }
}
