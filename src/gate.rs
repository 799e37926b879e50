//! How many calls run at once in one place, a function or an app: so many run, as many again wait in order, more are
//! refused. One that waits does so no longer than its caller.

use std::{
    collections::HashMap,
    convert::Infallible,
    panic,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::{self, JoinError},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    deadline::Deadline,
    name::FunctionName,
    problem::{Code, Problem},
};

/// A limit of calls that run at once.
#[derive(Debug)]
pub(crate) struct Gate {
    /// How many go through at once.
    limit: AtomicUsize,
    /// A place for each that runs or waits.
    places: Permits,
    /// Held by the first of those that wait: they keep their order while permits are withdrawn.
    first: Semaphore,
    running: Permits,
}

/// Permits, of which there may be fewer while some are taken: whoever gets one while some are `owed` destroys it, and asks
/// for another.
#[derive(Debug)]
struct Permits {
    all: Arc<Semaphore>,
    owed: AtomicUsize,
}

/// The gates before a call, in order.
pub(crate) type Gates = [Option<Arc<Gate>>; 2];

/// What a call holds while it runs: its places, and its turns.
pub(crate) type Turn = Vec<OwnedSemaphorePermit>;

/// The waiting calls of one connection by their ids. Dropping the sender of a call tells it that its caller gave up.
#[derive(Debug, Default)]
pub(crate) struct WaitingCalls(Mutex<HashMap<u64, oneshot::Sender<Infallible>>>);

/// The name of a call among those of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    waiting: Arc<WaitingCalls>,
    id: u64,
}

/// Runs `call` in a task of its own, which goes on while the returned future is not polled, and is dropped with it.
/// Without a task, a call that has its turn would not be polled while its connection waits for a slow reader, and would
/// block the gate even after its deadline.
pub(crate) fn in_own_task<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let task = AbortOnDropHandle::new(task::spawn(call));
    async move {
        match task.await.map_err(JoinError::try_into_panic) {
            Ok(ended) => ended,
            Err(Ok(panic)) => panic::resume_unwind(panic),
            // The runtime stops, and with it whoever waits here.
            Err(Err(_)) => future::pending().await,
        }
    }
}

impl WaitingCalls {
    pub(crate) fn ticket(self: &Arc<Self>, id: u64) -> Ticket {
        let waiting = Arc::clone(self);
        Ticket { waiting, id }
    }

    /// The caller of the call `id` gives it up: it waits no longer.
    pub(crate) fn give_up(&self, id: u64) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Infallible>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The output of `wait`; `None` if the caller gave up first.
    pub(crate) async fn wait<T>(&self, mut wait: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        if let Some(at_once) = future::poll_immediate(&mut wait).await {
            return Some(at_once);
        }
        let (kept, given_up) = oneshot::channel();
        self.waiting.lock().insert(self.id, kept);
        let _place = scopeguard::guard(self, |ticket| ticket.waiting.give_up(ticket.id));
        tokio::select! {
            waited = wait => Some(waited),
            _ = given_up => None,
        }
    }
}

impl Gate {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            places: Permits::new(limit.saturating_mul(2)),
            first: Semaphore::new(1),
            running: Permits::new(limit),
            limit: limit.into(),
        }
    }

    /// Lets `limit` calls through at once from now on. Those that run already count, and go on also where they are more.
    pub(crate) fn set_limit(&self, limit: usize) {
        let was = self.limit.swap(limit, Ordering::Relaxed);
        self.places.resize(2 * was, 2 * limit);
        self.running.resize(was, limit);
    }

    /// Whether a call runs or waits: each holds its place.
    pub(crate) fn is_used(&self) -> bool {
        Arc::strong_count(&self.places.all) > 1
    }

    /// Waits for the turn of a call of `name`.
    ///
    /// # Errors
    /// [`Code::Overloaded`] when as many wait as may, [`Code::DeadlineExceeded`] when the deadline passes first.
    pub(crate) async fn enter(
        &self,
        name: &FunctionName,
        deadline: Deadline,
    ) -> Result<[OwnedSemaphorePermit; 2], Problem> {
        let place = loop {
            let Ok(place) = Arc::clone(&self.places.all).try_acquire_owned() else {
                let limit = self.limit.load(Ordering::Relaxed);
                let detail =
                    format!("{name}: {limit} calls run and {limit} wait, which is the limit");
                return Err(Problem::new(Code::Overloaded, detail));
            };
            if let Some(place) = self.places.unless_owed(place) {
                break place;
            }
        };
        let running = deadline.bound(async {
            let _first = self.first.acquire().await;
            loop {
                let running = Arc::clone(&self.running.all).acquire_owned().await.ok()?;
                if let Some(running) = self.running.unless_owed(running) {
                    return Some(running);
                }
            }
        });
        // A turn may come too late: when the calls before it ended at the same deadline.
        let running = running.await.flatten();
        let running = running.filter(|_| !deadline.has_passed());
        let running = running.ok_or_else(|| Problem::not_started(name))?;
        Ok([place, running])
    }
}

impl Permits {
    fn new(count: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))),
            owed: AtomicUsize::new(0),
        }
    }

    /// Changes how many there are. Those above the new number that are taken become owed.
    fn resize(&self, was: usize, now: usize) {
        self.all.add_permits(now.saturating_sub(was));
        let fewer = was.saturating_sub(now);
        let owed = fewer - self.all.forget_permits(fewer);
        self.owed.fetch_add(owed, Ordering::Relaxed);
    }

    /// `permit`, unless one is owed: then this one is withdrawn.
    fn unless_owed(&self, permit: OwnedSemaphorePermit) -> Option<OwnedSemaphorePermit> {
        let one_less = |owed: usize| owed.checked_sub(1);
        let order = Ordering::Relaxed;
        if self.owed.fetch_update(order, order, one_less).is_ok() {
            permit.forget();
            return None;
        }
        Some(permit)
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
