//! How many calls run at once in one place, a function or an app: so many run, as many again wait in order, more are
//! refused.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    deadline::Deadline,
    name::FunctionName,
    problem::{Code, Problem},
};

/// A limit of calls that run at once.
#[derive(Debug)]
pub(crate) struct Gate {
    limit: usize,
    /// A place for each that runs or waits.
    places: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

/// What a call holds while it runs: its place, and its turn.
pub(crate) type Pass = [OwnedSemaphorePermit; 2];

impl Gate {
    /// A gate through which `limit` calls go at once.
    pub(crate) fn new(limit: usize) -> Self {
        let semaphore = |permits: usize| Semaphore::new(permits.min(Semaphore::MAX_PERMITS));
        Self {
            limit,
            places: Arc::new(semaphore(limit.saturating_mul(2))),
            running: Arc::new(semaphore(limit)),
        }
    }

    /// How many go through at once.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Waits for the turn of a call of `name`.
    ///
    /// # Errors
    /// [`Code::Overloaded`] when as many wait as may, [`Code::DeadlineExceeded`] when the deadline passes first.
    pub(crate) async fn enter(
        &self,
        name: &FunctionName,
        deadline: Deadline,
    ) -> Result<Pass, Problem> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let limit = self.limit;
            let detail =
                format!("{name}: as many calls run as may at once ({limit}), and as many wait");
            return Err(Problem::new(Code::Overloaded, detail));
        };
        let turn = deadline.bound(Arc::clone(&self.running).acquire_owned());
        // Nobody closes the semaphore. A turn may come late: when those that ran until now ended at the same deadline.
        let running = turn.await.and_then(Result::ok);
        let running = running.filter(|_| !deadline.has_passed());
        let running = running.ok_or_else(|| Problem::not_started(name))?;
        Ok([place, running])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::problem::Executed;

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_with_the_deadline_comes_too_late() {
        let gate = Gate::new(1);
        let name = FunctionName::new("M", "f").unwrap();
        let deadline = Deadline::since(Instant::now(), Duration::from_millis(10));
        let first = gate.enter(&name, deadline).await.unwrap();
        let ends = async {
            deadline.passed().await;
            drop(first);
        };
        let ((), second) = tokio::join!(ends, gate.enter(&name, deadline));
        let late = second.unwrap_err();
        assert_eq!(
            (late.code, late.executed),
            (Code::DeadlineExceeded, Executed::No)
        );
    }
}
