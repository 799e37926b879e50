//! The signals that stop a process, SIGTERM and SIGINT, alike; and SIGUSR1, which asks for more of its log.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// SIGUSR1 from now on; it does not end the process by itself.
///
/// # Errors
/// The signal cannot be listened for.
#[cfg(feature = "cli")]
pub(crate) fn more_log() -> io::Result<Signal> {
    signal(SignalKind::user_defined1())
}

impl Signals {
    /// Listens; from here on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
