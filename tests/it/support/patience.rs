//! Waiting for what happens in its own time: patiently, never for a fixed time.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How long anything may take before a test gives up; far above what it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
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

/// How late this machine wakes who sleeps, measured until this is dropped: a bound on time is stated against it.
pub(crate) struct Wakes {
    worst: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Wakes {
    /// Measures from now on.
    pub(crate) fn watch() -> Self {
        let worst = Arc::<AtomicU64>::default();
        let seen = Arc::clone(&worst);
        let task = tokio::spawn(async move {
            loop {
                let due = Instant::now() + PAUSE;
                tokio::time::sleep_until(due).await;
                let late = u64::try_from(due.elapsed().as_micros()).unwrap();
                seen.fetch_max(late, Ordering::Relaxed);
            }
        });
        Self {
            worst,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The latest that anybody was woken so far.
    pub(crate) fn worst(&self) -> Duration {
        Duration::from_micros(self.worst.load(Ordering::Relaxed))
    }
}
