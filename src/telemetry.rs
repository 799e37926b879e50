//! Logs of `fly-rpc serve`: lines for people on a terminal, JSON lines elsewhere, always on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Sends logs that pass `filter` to stderr, panics among them; once in a process.
pub(crate) fn init(filter: &str) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr);
    if io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_target(false).init();
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
}
