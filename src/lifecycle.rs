//! How far an instance is on its way to stop, and what it must finish first. Owns the phase and the count of calls in
//! flight; the server decides when each phase begins.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::problem::{Code, Problem};

/// How long a request that is on its way may take to arrive once calls are refused.
const LATE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Phase {
    /// It takes calls.
    Serving,
    /// Its peers can know that it will stop, and it still takes calls.
    Draining,
    /// It refuses new calls and finishes those in flight.
    Refusing,
    /// It waits for nothing any more: connections are closed.
    Cut,
}

/// The problem of a call to an instance that takes no new calls.
pub(crate) fn refusal() -> Problem {
    let detail = "this instance is stopping and takes no new calls";
    Problem::new(Code::Draining, detail)
}

/// The phase of one instance and its calls in flight.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: watch::Sender<Phase>,
    in_flight: TaskTracker,
}

/// One call in flight, however many hold it; the drain waits until all of them dropped it.
pub(crate) type InFlight = Arc<TaskTrackerToken>;

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            in_flight: TaskTracker::new(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.phase() > Phase::Serving
    }

    /// The phase from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Counts a call in flight from here on.
    ///
    /// # Errors
    /// [`Code::Draining`] when the instance refuses new calls.
    pub(crate) fn admit(&self) -> Result<InFlight, Problem> {
        // Counted before the phase is read: a drain that begins now either refuses the call or waits for it.
        let token = self.in_flight.token();
        if self.phase() >= Phase::Refusing {
            return Err(refusal());
        }
        Ok(Arc::new(token))
    }

    /// Counts a call in this lifecycle, and in no other. One that is `counted` here already is not refused, whatever the
    /// phase.
    pub(crate) fn take_over(&self, counted: &mut Option<InFlight>) -> Result<InFlight, Problem> {
        let is_here =
            |token: &&InFlight| TaskTracker::ptr_eq(token.task_tracker(), &self.in_flight);
        let in_flight = match counted.as_ref().filter(is_here) {
            Some(token) => Arc::clone(token),
            None => self.admit()?,
        };
        *counted = Some(Arc::clone(&in_flight));
        Ok(in_flight)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Goes on to `phase`; there is no way back to an earlier one.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    pub(crate) async fn reached(&self, phase: Phase) {
        // The sender is a part of `self`, and cannot be gone.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Waits until a stopping instance gives up on requests that have arrived only in part.
    pub(crate) async fn requests_are_overdue(&self) {
        self.reached(Phase::Refusing).await;
        time::sleep(LATE).await;
    }

    pub(crate) async fn idle(&self) {
        self.in_flight.close();
        self.in_flight.wait().await;
    }
}
