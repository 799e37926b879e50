//! Waiting for what happens in its own time: patiently, never for a fixed time.

use std::{fmt::Debug, time::Duration};

use tokio::time::Instant;

/// How long anything may take before a test gives up; far above what it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(10);

/// Asks `look` until `is_right` likes what it saw, and returns that.
pub(crate) async fn eventually<T: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    is_right: impl Fn(&T) -> bool,
) -> T {
    let started = Instant::now();
    loop {
        let seen = look().await;
        if is_right(&seen) {
            return seen;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{what} did not happen; last seen: {seen:?}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for `future`, and gives up after [`PATIENCE`].
pub(crate) async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}
