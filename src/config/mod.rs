//! Flags and environment into one checked `Config`, built once at start. The only file that reads the environment.
//! A setting that is unknown, unreadable or contradicts another stops the start: nothing is guessed.

mod exposure;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::{collections::BTreeMap, net::SocketAddr, str::FromStr, time::Duration};

pub use self::settings::{SETTINGS, Setting};
use self::values::{
    Values, app_dns_name, clients, cluster_tokens, count, dns_names, dns_server, duration, error,
    host_and_port, is_ours, log_filter, port, region, size, truth, word,
};
use crate::{
    access::Access,
    call::{MAX_TIMEOUT, Timeouts},
    name::{InstanceId, InvalidName},
    region::Region,
    token::Token,
};

/// A setting that stops the start.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {detail}")]
pub struct ConfigError {
    setting: String,
    detail: String,
}

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

/// What one instance takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// The largest result of a function, in bytes.
    pub max_result: usize,
    /// Calls that may run here at once; more are refused.
    pub max_in_flight: usize,
}

/// How an instance stops.
#[derive(Clone, Copy, Debug)]
pub struct DrainConfig {
    /// How long it still takes calls after it told its peers.
    pub delay: Duration,
    /// How long calls in flight may finish after that.
    pub timeout: Duration,
}

/// Everything that an instance is told at start; the default is a cluster of one on `127.0.0.1:8080`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this instance is.
    pub identity: Identity,
    /// `host:port` to serve on; port 0 takes a free one.
    pub listen: String,
    /// `host:port` for what instances ask of each other; shares `listen` when `None`.
    pub internal_listen: Option<String>,
    /// Who may ask it what.
    pub access: Access,
    /// How peers are found.
    pub discovery: DiscoveryConfig,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// The longest wait for a connection to a peer.
    pub connect_timeout: Duration,
    /// What this instance takes on.
    pub limits: Limits,
    /// How it stops.
    pub drain: DrainConfig,
    /// The `tracing` filter of `fly-rpc serve`; a program that embeds the crate sets up its own logs.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        let local =
            || Region::from_str("local").unwrap_or_else(|_| unreachable!("local is a region"));
        Self {
            identity: Identity {
                region: local(),
                primary: local(),
                instance: InstanceId::random(),
                app: None,
                release: None,
            },
            listen: "127.0.0.1:8080".to_owned(),
            internal_listen: None,
            access: Access::default(),
            discovery: DiscoveryConfig {
                names: Vec::new(),
                server: None,
                peer_port: None,
                poll_interval: Duration::from_secs(5),
            },
            timeouts: Timeouts {
                default: Duration::from_secs(5),
                max: Duration::from_secs(60),
            },
            connect_timeout: Duration::from_secs(1),
            limits: Limits {
                max_body: 1 << 20,
                max_result: 8 << 20,
                max_in_flight: 1024,
            },
            drain: DrainConfig {
                delay: Duration::from_secs(3),
                timeout: Duration::from_secs(20),
            },
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// The configuration that the environment describes.
    ///
    /// # Errors
    /// A variable that starts with `RPC_` and is none of [`SETTINGS`], a value that does not parse, or settings that
    /// contradict each other; the message is one line that names the setting and what would be right.
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
        let mut values = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            if !is_ours(&name) {
                continue;
            }
            let value = value
                .into_string()
                .map_err(|_| error(&name, "the value is not UTF-8"))?;
            values.insert(name, value);
        }
        values.extend(flags.map(|(name, value)| (name.to_owned(), value)));
        Self::from_values(&Values(values))
    }

    fn from_values(values: &Values) -> Result<Self, ConfigError> {
        values.refuse_unknown()?;
        let default = Self::default();
        let names = values.get("RPC_DNS_NAME", dns_names)?;
        let (fly_region, my_region) = (
            values.get("FLY_REGION", region)?,
            values.get("MY_REGION", region)?,
        );
        let config = Self {
            identity: Identity {
                region: fly_region.or(my_region).unwrap_or(default.identity.region),
                primary: values
                    .get("PRIMARY_REGION", region)?
                    .unwrap_or(default.identity.primary),
                instance: values
                    .get("FLY_MACHINE_ID", word)?
                    .unwrap_or(default.identity.instance),
                release: values.text("FLY_IMAGE_REF")?,
                app: values.text("FLY_APP_NAME")?,
            },
            listen: values
                .get("RPC_LISTEN", host_and_port)?
                .unwrap_or(default.listen),
            internal_listen: values.get("RPC_INTERNAL_LISTEN", host_and_port)?,
            access: Access {
                cluster: values
                    .secret("RPC_TOKEN", cluster_tokens)?
                    .unwrap_or_default(),
                clients: values
                    .secret("RPC_CLIENT_TOKENS", clients)?
                    .unwrap_or_default(),
                allow_anonymous: values.get("RPC_ALLOW_ANONYMOUS", truth)?.unwrap_or(false),
            },
            discovery: DiscoveryConfig {
                names: match names {
                    Some(names) => names,
                    None => values
                        .get("FLY_APP_NAME", app_dns_name)?
                        .into_iter()
                        .collect(),
                },
                server: values.get("RPC_DNS_SERVER", dns_server)?,
                peer_port: values.get("RPC_PEER_PORT", port)?,
                poll_interval: values
                    .get("RPC_POLL_INTERVAL", duration)?
                    .unwrap_or(default.discovery.poll_interval),
            },
            timeouts: Timeouts {
                default: values
                    .get("RPC_DEFAULT_TIMEOUT", duration)?
                    .unwrap_or(default.timeouts.default),
                max: values
                    .get("RPC_MAX_TIMEOUT", duration)?
                    .unwrap_or(default.timeouts.max),
            },
            connect_timeout: values
                .get("RPC_CONNECT_TIMEOUT", duration)?
                .unwrap_or(default.connect_timeout),
            limits: Limits {
                max_body: values
                    .get("RPC_MAX_BODY", size)?
                    .unwrap_or(default.limits.max_body),
                max_result: values
                    .get("RPC_MAX_RESULT", size)?
                    .unwrap_or(default.limits.max_result),
                max_in_flight: values
                    .get("RPC_MAX_IN_FLIGHT", count)?
                    .unwrap_or(default.limits.max_in_flight),
            },
            drain: DrainConfig {
                delay: values
                    .get("RPC_DRAIN_DELAY", duration)?
                    .unwrap_or(default.drain.delay),
                timeout: values
                    .get("RPC_DRAIN_TIMEOUT", duration)?
                    .unwrap_or(default.drain.timeout),
            },
            log: values.get("RPC_LOG", log_filter)?.unwrap_or(default.log),
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks what no value shows by itself.
    ///
    /// # Errors
    /// A default timeout above the maximum, a duration above 24 h, a zero where there must be time, a discovery setting
    /// without effect, or tokens that contradict each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let discovery = &self.discovery;
        let takes_peer_port = |name: &DnsName| matches!(name, DnsName::Host(_, None));
        if self.timeouts.default > self.timeouts.max {
            return Err(error(
                "RPC_DEFAULT_TIMEOUT",
                "is above RPC_MAX_TIMEOUT; lower it or raise RPC_MAX_TIMEOUT",
            ));
        }
        for (variable, duration) in [
            ("RPC_POLL_INTERVAL", discovery.poll_interval),
            ("RPC_MAX_TIMEOUT", self.timeouts.max),
            ("RPC_CONNECT_TIMEOUT", self.connect_timeout),
            ("RPC_DRAIN_DELAY", self.drain.delay),
            ("RPC_DRAIN_TIMEOUT", self.drain.timeout),
        ] {
            if duration > MAX_TIMEOUT {
                return Err(error(variable, "must be 24h or less"));
            }
        }
        if self.timeouts.default < Duration::from_millis(1) {
            return Err(error("RPC_DEFAULT_TIMEOUT", "must be 1ms or more"));
        }
        if self.connect_timeout.is_zero() {
            return Err(error(
                "RPC_CONNECT_TIMEOUT",
                "must be above zero, for example 1s",
            ));
        }
        if discovery.poll_interval < Duration::from_millis(50) {
            return Err(error(
                "RPC_POLL_INTERVAL",
                "must be 50ms or more, for example 5s",
            ));
        }
        if discovery.server.is_some() && discovery.names.is_empty() {
            return Err(error(
                "RPC_DNS_SERVER",
                "has no effect without RPC_DNS_NAME; set that too, or unset this",
            ));
        }
        if discovery.peer_port.is_some() && !discovery.names.iter().any(takes_peer_port) {
            let detail = "has no effect: no name in RPC_DNS_NAME is resolved by A and AAAA without a port of its own";
            return Err(error("RPC_PEER_PORT", detail));
        }
        self.check_access()
    }
}

/// The base URL that the commands which call an instance use when they are given none.
pub(crate) fn default_url() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the file that reads the environment"
    )]
    std::env::var("FLY_RPC_URL").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned())
}

/// The token that the commands which call an instance bear, if any.
pub(crate) fn client_token() -> Result<Option<Token>, ConfigError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the file that reads the environment"
    )]
    let Ok(text) = std::env::var("FLY_RPC_TOKEN") else {
        return Ok(None);
    };
    let token = text.parse();
    token
        .map(Some)
        .map_err(|invalid: InvalidName| error("FLY_RPC_TOKEN", &invalid.to_string()))
}
