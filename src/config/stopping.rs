//! What a configuration means for a stop: settings that are allowed, and let a stop cut calls.

use std::time::Duration;

use super::Config;

/// The longest `kill_timeout` that Fly allows: <https://fly.io/docs/reference/configuration/>.
const MAX_KILL_TIMEOUT: Duration = Duration::from_secs(300);

impl Config {
    /// Logs what may cut calls when the instance stops, and on Fly the `kill_timeout` of `fly.toml` that a stop needs: a
    /// Machine cannot read the one it has.
    pub(crate) fn warn_about_shutdown(&self) {
        for warning in self.stop_warnings() {
            tracing::warn!("{warning}");
        }
        if let Some(kill_timeout) = self.kill_timeout() {
            tracing::info!(
                "a stop takes up to {kill_timeout:?}: kill_timeout in fly.toml must not be below"
            );
        }
    }

    /// What may cut calls when the instance stops, a line for each.
    pub(super) fn stop_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (default, timeout) = (self.timeouts.default, self.drain.timeout);
        if default > timeout {
            warnings.push(format!(
                "a stop may cut calls: RPC_DEFAULT_TIMEOUT is {default:?}, but RPC_DRAIN_TIMEOUT gives them {timeout:?}"
            ));
        }
        let stop = self.drain.delay + timeout;
        if self.is_on_fly() && stop > MAX_KILL_TIMEOUT {
            warnings.push(format!(
                "a stop may cut calls: RPC_DRAIN_DELAY and RPC_DRAIN_TIMEOUT are {stop:?}, but Fly kills a Machine after \
                 {MAX_KILL_TIMEOUT:?} at the latest"
            ));
        }
        warnings
    }

    /// The `kill_timeout` that a stop needs, on Fly.
    pub(super) fn kill_timeout(&self) -> Option<Duration> {
        self.is_on_fly()
            .then_some(self.drain.delay + self.drain.timeout)
    }

    fn is_on_fly(&self) -> bool {
        self.machine.private_ip.is_some()
    }
}
