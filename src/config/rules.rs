//! The rules that span settings: ranges that depend on others, settings without effect, tokens, and what lets a stop cut
//! calls. Running functions for whoever asks is remote code execution, so what other machines can reach needs a token, and
//! nothing is open by omission.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::{Config, ConfigError, DnsName, DrainConfig, Limits, Setting, settings::*};
use crate::call::MAX_TIMEOUT;

/// The longest `kill_timeout` that Fly allows: <https://fly.io/docs/reference/configuration/>.
const MAX_KILL_TIMEOUT: Duration = Duration::from_secs(300);

impl Config {
    /// Checks what cannot be checked of each value alone.
    ///
    /// # Errors
    /// A default timeout above the maximum, a duration above 24 h, a zero where there must be time, a size or a number of
    /// calls out of range, a discovery setting without effect, or tokens that contradict each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (discovery, timeouts) = (&self.discovery, self.timeouts);
        require(
            timeouts.default <= timeouts.max,
            RPC_DEFAULT_TIMEOUT,
            "is above RPC_MAX_TIMEOUT; lower it or raise RPC_MAX_TIMEOUT",
        )?;
        for (setting, duration) in [
            (RPC_POLL_INTERVAL, discovery.poll_interval),
            (RPC_MAX_TIMEOUT, timeouts.max),
            (RPC_CONNECT_TIMEOUT, self.connect_timeout),
            (RPC_DRAIN_DELAY, self.drain.delay),
            (RPC_DRAIN_TIMEOUT, self.drain.timeout),
        ] {
            require(duration <= MAX_TIMEOUT, setting, "must be 24h or less")?;
        }
        require(
            timeouts.default >= Duration::from_millis(1),
            RPC_DEFAULT_TIMEOUT,
            "must be 1ms or more",
        )?;
        require(
            !self.connect_timeout.is_zero(),
            RPC_CONNECT_TIMEOUT,
            "must be above zero, for example 1s",
        )?;
        require(
            discovery.poll_interval >= Duration::from_millis(50),
            RPC_POLL_INTERVAL,
            "must be 50ms or more, for example 5s",
        )?;
        require(
            discovery.server.is_none() || !discovery.names.is_empty(),
            RPC_DNS_SERVER,
            "has no effect without RPC_DNS_NAME; set that too, or unset this",
        )?;
        let takes_peer_port = |name: &DnsName| matches!(name, DnsName::Host(_, None));
        require(
            discovery.peer_port.is_none() || discovery.names.iter().any(takes_peer_port),
            RPC_PEER_PORT,
            "has no effect: no name in RPC_DNS_NAME is resolved by A and AAAA without a port of its own",
        )?;
        let limits = &self.limits;
        // A program may have set these; the environment is checked when it is read.
        let size = (SIZES, "must be from 1 byte to 256 TiB");
        let count = (COUNTS, "must be from 1 to usize::MAX / 8");
        for (setting, value, (range, rule)) in [
            (RPC_MAX_BODY, limits.max_body, &size),
            (RPC_MAX_RESULT, limits.max_result, &size),
            (RPC_MAX_IN_FLIGHT, limits.max_in_flight, &count),
        ] {
            require(range.contains(&value), setting, rule)?;
        }
        let least = limits.least_memory();
        require(
            limits.max_memory.is_none_or(|bytes| bytes >= least),
            RPC_MAX_MEMORY,
            "must be four times RPC_MAX_BODY or more; raise it or lower RPC_MAX_BODY",
        )?;
        if let Some(app) = &self.app {
            require(
                app.token.is_some() || app.url.is_unix(),
                RPC_APP_TOKEN,
                "is needed with RPC_APP_URL: make one with `openssl rand -hex 32`, and have the app answer 401 to requests \
                 that do not bear it",
            )?;
            let concurrency = app.concurrency > 0;
            require(concurrency, RPC_APP_CONCURRENCY, "must be 1 or more")?;
            let stops = app.stop_timeout <= MAX_TIMEOUT;
            require(stops, RPC_APP_STOP_TIMEOUT, "must be 24h or less")?;
        }
        self.check_tokens()
    }

    fn check_tokens(&self) -> Result<(), ConfigError> {
        let access = &self.access;
        let clients = &access.clients;
        let names: BTreeSet<_> = clients.iter().map(|client| &client.name).collect();
        let tokens: Vec<_> = clients.iter().map(|client| &client.token).collect();
        require(
            names.len() == clients.len(),
            RPC_CLIENT_TOKENS,
            "has a name twice",
        )?;
        require(all_differ(&access.cluster), RPC_TOKEN, "has an entry twice")?;
        require(all_differ(&tokens), RPC_CLIENT_TOKENS, "has a token twice")?;
        require(
            !tokens.iter().any(|token| access.cluster.contains(token)),
            RPC_CLIENT_TOKENS,
            "has a token of RPC_TOKEN; clients must not have the cluster's secret",
        )?;
        require(
            !access.allow_anonymous || clients.is_empty(),
            RPC_ALLOW_ANONYMOUS,
            "contradicts RPC_CLIENT_TOKENS; unset one of the two",
        )
    }

    /// Checks that no other machine reaches `public`, which serves the public routes, or `internal`, which serves
    /// `/internal/*`, without a token.
    ///
    /// # Errors
    /// An address that is not loopback, without the tokens that keep strangers out.
    pub(crate) fn check_exposure(
        &self,
        public: SocketAddr,
        internal: SocketAddr,
    ) -> Result<(), ConfigError> {
        let access = &self.access;
        if is_exposed(internal) && access.cluster.is_empty() {
            return Err(RPC_TOKEN.error(format!(
                "is needed, because other machines reach /internal/* at {internal}; make one with \
                 `openssl rand -hex 32` and give it to every instance, or listen on 127.0.0.1"
            )));
        }
        if is_exposed(public) && access.clients.is_empty() && !access.allow_anonymous {
            return Err(RPC_CLIENT_TOKENS.error(format!(
                "is needed, because other machines reach /rpc/* at {public}; write name:token with a token of \
                 `openssl rand -hex 32`, or set RPC_ALLOW_ANONYMOUS=true to let everybody call, or listen on 127.0.0.1"
            )));
        }
        Ok(())
    }

    /// Logs what may cut calls when the instance stops, and on Fly the `kill_timeout` of `fly.toml` that a stop needs: a
    /// Machine cannot read the one it has.
    pub(crate) fn warn_about_shutdown(&self, has_child: bool) {
        for warning in self.stop_warnings(has_child) {
            tracing::warn!("{warning}");
        }
        if let Some(kill_timeout) = self.kill_timeout(has_child) {
            tracing::info!(
                "a stop takes up to {kill_timeout:?}: kill_timeout in fly.toml must not be below"
            );
        }
    }

    /// A warning for each setting by which a stop may cut calls.
    pub(super) fn stop_warnings(&self, has_child: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        let (default, timeout) = (self.timeouts.default, self.drain.timeout);
        if default > timeout {
            warnings.push(format!(
                "a stop may cut calls: RPC_DEFAULT_TIMEOUT is {default:?}, but RPC_DRAIN_TIMEOUT gives them {timeout:?}"
            ));
        }
        let stop = self.kill_timeout(has_child);
        if let Some(stop) = stop.filter(|stop| *stop > MAX_KILL_TIMEOUT) {
            warnings.push(format!(
                "a stop may cut calls: by RPC_DRAIN_DELAY and RPC_DRAIN_TIMEOUT it takes up to {stop:?}, but Fly kills a \
                 Machine after {MAX_KILL_TIMEOUT:?} at the latest"
            ));
        }
        warnings
    }

    /// On Fly, the `kill_timeout` that a stop needs. A child has its stop timeout once the calls have ended; then the calls
    /// that it began have the drain timeout once more.
    pub(super) fn kill_timeout(&self, has_child: bool) -> Option<Duration> {
        let DrainConfig { delay, timeout } = self.drain;
        let child = self.app.as_ref().filter(|_| has_child);
        let child = child.map_or(Duration::ZERO, |app| app.stop_timeout + timeout);
        let is_on_fly = self.machine.private_ip.is_some();
        is_on_fly.then_some(delay + timeout + child)
    }
}

impl Limits {
    /// The least `max_memory` that has room for the largest body: a client's body takes twice its size, and clients have half
    /// of the memory.
    pub(crate) fn least_memory(&self) -> usize {
        self.max_body.saturating_mul(4)
    }
}

fn require(holds: bool, setting: Setting, detail: &str) -> Result<(), ConfigError> {
    match holds {
        true => Ok(()),
        false => Err(setting.error(detail)),
    }
}

/// Whether no two are equal. Tokens have no order to sort them by.
fn all_differ<T: PartialEq>(tokens: &[T]) -> bool {
    let mut pairs = tokens.iter().enumerate();
    pairs.all(|(number, token)| !tokens[..number].contains(token))
}

fn is_exposed(address: SocketAddr) -> bool {
    // A socket of both families says ::ffff:127.0.0.1.
    !address.ip().to_canonical().is_loopback()
}
