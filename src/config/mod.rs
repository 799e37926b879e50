//! Flags and environment into one checked `Config`, built once at start. No other module reads the environment.
//! A setting that is unknown, unreadable or contradicts another makes the start fail: nothing is guessed.

#[cfg(feature = "cli")]
mod commands;
mod parts;
mod rules;
mod service_links;
pub(crate) mod settings;
#[cfg(test)]
mod tests;
mod urls;
mod values;

use std::{collections::BTreeMap, sync::Arc};

#[cfg(feature = "cli")]
pub(crate) use self::commands::*;
pub use self::{
    parts::{
        AppConfig, Config, DiscoveryConfig, DnsName, DrainConfig, Identity, Limits, Machine, Route,
    },
    settings::{SETTINGS, Setting},
    urls::{AppAddress, AppUrl, KeyStoreUrl},
};
use self::{settings::*, values::*};
use crate::{
    access::{Access, Client},
    call::Timeouts,
    name::InstanceId,
};

/// A setting that makes the start fail.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {detail}")]
pub struct ConfigError {
    setting: String,
    detail: String,
}

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
    /// A variable that starts with `RPC_` and is neither one of [`SETTINGS`] nor a service link of Kubernetes, a value that does not
    /// parse, or settings that contradict each other; the message is one line that names the setting and what would be right.
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
            let Some(name) = name.into_string().ok().filter(|name| is_ours(name)) else {
                continue;
            };
            let Ok(value) = value.into_string() else {
                let not_utf8 = "the value is not UTF-8";
                return Err(match setting(&name) {
                    Some(setting) => setting.error(not_utf8),
                    None => ConfigError::new(name, not_utf8),
                });
            };
            values.insert(name, value);
        }
        let service_links = service_links::take(&mut values);
        values.extend(flags.map(|(name, value)| (name.to_owned(), value)));
        Ok(Self {
            service_links,
            ..Self::from_values(&Values(values))?
        })
    }

    /// What each setting means: its parser, and its place in the configuration.
    fn from_values(values: &Values) -> Result<Self, ConfigError> {
        values.refuse_unknown()?;
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
                runs_release_command: values.get(RELEASE_COMMAND, one_or_zero)?,
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
}

/// The app that the settings describe, if they name one.
fn app(values: &Values) -> Result<Option<AppConfig>, ConfigError> {
    let others = [
        RPC_APP_TOKEN,
        RPC_APP_CONCURRENCY,
        RPC_APP_STOP_TIMEOUT,
        RPC_APP_ALLOW_ANONYMOUS,
    ];
    let Some(url) = values.given(RPC_APP_URL, parsed)? else {
        return match others.into_iter().find(|setting| values.has(*setting)) {
            Some(setting) => {
                let detail = "has no effect without RPC_APP_URL; set that too, or unset this";
                Err(setting.error(detail))
            }
            None => Ok(None),
        };
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
