//! Deadline: an instant in memory, milliseconds left on the wire, never a time of day, so that clocks may disagree.

use std::{future, pin::pin, sync::Arc, task::Poll, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
    time::{self, Instant},
};

/// The instant at which a call's answer is due, whatever it still waits for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn since(instant: Instant, timeout: Duration) -> Self {
        Self(instant + timeout)
    }

    /// The time left; zero once it has passed.
    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whole milliseconds left at `now`, as a peer is given them; `None` when less than one is left, so nothing more is
    /// started.
    pub(crate) fn remaining_ms(self, now: Instant) -> Option<u64> {
        let ms = whole_ms(self.0.saturating_duration_since(now));
        (ms > 0).then_some(ms)
    }

    pub(crate) fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    pub(crate) async fn passed(self) {
        time::sleep_until(self.0).await;
    }

    /// What `future` gives, or `None` when the deadline passes first; the future is dropped then.
    ///
    /// The timer is made, on the heap, only once the future has to wait: most calls need none, and would carry its size
    /// along.
    pub(crate) async fn bound<F: Future>(self, future: F) -> Option<F::Output> {
        let (mut future, mut timer) = (pin!(future), None);
        future::poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            // Unconstrained: the future may use up the budget of its task each time, and the timer would then never fire.
            let new = || Box::pin(task::unconstrained(self.passed()));
            let timer = timer.get_or_insert_with(new);
            timer.as_mut().poll(context).map(|()| None)
        })
        .await
    }

    /// A permit of `permits`, which nobody closes; `None` when the deadline passes first.
    pub(crate) async fn acquire(self, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let permit = self.bound(Arc::clone(permits).acquire_owned()).await;
        permit.and_then(Result::ok)
    }
}

/// `span` in whole milliseconds, rounded down.
pub(crate) fn whole_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_once_and_stays_passed() {
        let deadline = Deadline::since(Instant::now(), Duration::from_millis(1500));
        assert_eq!(deadline.remaining_ms(Instant::now()), Some(1500));
        assert_eq!(deadline.bound(async { 7 }).await, Some(7));
        time::advance(Duration::from_micros(1_499_500)).await;
        assert_eq!(
            (deadline.remaining_ms(Instant::now()), deadline.has_passed()),
            (None, false)
        );
        assert_eq!(deadline.bound(std::future::pending::<()>()).await, None);
        assert!(deadline.has_passed());
    }

    #[tokio::test]
    async fn a_future_that_never_waits_for_long_is_bound_too() {
        let busy = async {
            loop {
                task::consume_budget().await;
            }
        };
        let deadline = Deadline::since(Instant::now(), Duration::from_millis(20));
        assert_eq!(deadline.bound(busy).await, None::<()>);
    }
}
