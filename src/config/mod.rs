//! Flags and environment into one checked `Config`, built once at start. The only file that reads the environment.
//! A setting that is unknown, unreadable or contradicts another stops the start: nothing is guessed.

#[cfg(feature = "cli")]
mod commands;
mod exposure;
mod parts;
mod service_links;
mod settings;
mod stopping;
#[cfg(test)]
mod tests;
#[cfg(feature = "cli")]
mod traces;
mod values;

use std::{collections::BTreeMap, time::Duration};

use self::values::{
    Values, address, app_dns_name, clients, cluster_tokens, count, dns_names, dns_server, duration,
    error, flag, host_and_port, is_ours, log_filter, port, region, size, truth, word,
};
#[cfg(feature = "cli")]
pub(crate) use self::{
    commands::{client_token, default_url},
    traces::TraceExport,
};
pub use self::{
    parts::{Config, DiscoveryConfig, DnsName, DrainConfig, Identity, Limits, Machine, Route},
    settings::{SETTINGS, Setting},
};
use crate::{
    access::Access,
    call::{MAX_TIMEOUT, Timeouts},
};

/// A setting that stops the start.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {detail}")]
pub struct ConfigError {
    setting: String,
    detail: String,
}

impl ConfigError {
    /// That the setting `variable` is not right.
    pub(crate) fn new(variable: &str, detail: &str) -> Self {
        error(variable, detail)
    }
}

impl Config {
    /// The configuration that the environment describes.
    ///
    /// # Errors
    /// A variable that starts with `RPC_` and is neither one of [`SETTINGS`] nor a service link of Kubernetes, a value that does not parse, or settings that
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
        let service_links = service_links::take(&mut values);
        values.extend(flags.map(|(name, value)| (name.to_owned(), value)));
        Ok(Self {
            service_links,
            ..Self::from_values(&Values(values))?
        })
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
            machine: Machine {
                private_ip: values.get("FLY_PRIVATE_IP", address)?,
                runs_release_command: values.get("RELEASE_COMMAND", flag)?.unwrap_or(false),
            },
            listen: values
                .get("RPC_LISTEN", host_and_port)?
                .unwrap_or(default.listen),
            internal_listen: values.get("RPC_INTERNAL_LISTEN", host_and_port)?,
            metrics_listen: values.get("RPC_METRICS_LISTEN", host_and_port)?,
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
            route: values.get("RPC_ROUTE", word)?.unwrap_or(default.route),
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
                max_memory: values.get("RPC_MAX_MEMORY", size)?,
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
            service_links: Vec::new(),
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
        // A client's body takes its size twice, of the half that is for clients.
        let least = self.limits.max_body.saturating_mul(4);
        if self.limits.max_memory.is_some_and(|bytes| bytes < least) {
            let detail = "must be four times RPC_MAX_BODY or more; raise it or lower RPC_MAX_BODY";
            return Err(error("RPC_MAX_MEMORY", detail));
        }
        self.check_access()
    }
}
