//! The places of one listener: how many connections it holds, and which of them give way when there are no more. Owns the
//! count and who is idle; closing a connection is that connection's own work.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{self, Instant},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long a connection that found no place waits before the idle ones are looked at once more.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// When there is no place left, one in so many connections gives way, so that not every new one looks at all others.
const PART: usize = 16;

#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    for_clients: usize,
    free: Arc<Semaphore>,
    /// Connections whose request is being answered.
    busy: AtomicUsize,
    held: Mutex<HashMap<u64, Arc<Usage>>>,
    next: AtomicU64,
    started: Instant,
}

/// What a connection is doing, known to its socket, to its requests, and to the places.
#[derive(Debug)]
pub(super) struct Usage {
    places: Arc<Places>,
    /// The number of live [`Serving`]s: one for each request, and one for each part of its answer that is not written yet.
    requests: AtomicUsize,
    /// When the last answer was written, in milliseconds since the places were made.
    idle_since: AtomicU64,
    /// Whether it is never asked to give way: it was already, or is no longer HTTP.
    is_passed_over: AtomicBool,
    /// Whether the other side may still be sending a body that was refused.
    is_refused: AtomicBool,
    /// Notified when the place is needed by another connection.
    pub(super) asked_to_give_way: Notify,
    /// Notified when a head has been read.
    pub(super) asked: Notify,
}

/// A connection's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    pub(super) usage: Arc<Usage>,
    _permit: OwnedSemaphorePermit,
    /// The drain waits until this is dropped.
    pub(super) connection: TaskTrackerToken,
}

/// A request at work; the connection is idle once every clone is dropped.
#[derive(Debug)]
pub(super) struct Serving(Arc<Usage>);

impl Places {
    /// `most` places, of which clients may keep `for_clients` busy.
    pub(super) fn new(most: usize, for_clients: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            for_clients,
            free: Arc::new(Semaphore::new(most)),
            busy: AtomicUsize::new(0),
            held: Mutex::default(),
            next: AtomicU64::new(0),
            started: Instant::now(),
        })
    }

    /// A place for one more connection. If there is none, those that have been idle longest give way; while none is idle,
    /// this waits.
    pub(super) async fn take(self: &Arc<Self>, connection: TaskTrackerToken) -> Place {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                break permit;
            }
            self.make_room();
            // Nobody says when a connection becomes idle, so they are looked at again.
            let freed = time::timeout(LOOK_AGAIN, Arc::clone(&self.free).acquire_owned());
            // Nobody closes the semaphore.
            if let Ok(Ok(permit)) = freed.await {
                break permit;
            }
        };
        let usage = Arc::new(Usage {
            idle_since: AtomicU64::new(self.now()),
            places: Arc::clone(self),
            requests: AtomicUsize::new(0),
            is_passed_over: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            asked_to_give_way: Notify::new(),
            asked: Notify::new(),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(number, Arc::clone(&usage));
        Place {
            number,
            usage,
            _permit: permit,
            connection,
        }
    }

    /// Asks those connections to give way that have been idle, or without a whole head, for longest.
    pub(super) fn make_room(&self) {
        let mut idle: Vec<_> = self.held().values().filter_map(Usage::if_idle).collect();
        let count = (self.most / PART).max(1).min(idle.len());
        if count == 0 {
            return;
        }
        idle.select_nth_unstable_by_key(count - 1, |(since, _)| *since);
        for (_, usage) in &idle[..count] {
            usage.is_passed_over.store(true, Ordering::Relaxed);
            // A connection that is being polled right now finds this later.
            usage.asked_to_give_way.notify_one();
        }
    }

    /// Whether a request is being answered.
    pub(super) fn are_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u64, Arc<Usage>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Usage {
    /// Since when it has been idle, unless it is busy or passed over.
    fn if_idle(self: &Arc<Self>) -> Option<(u64, Arc<Self>)> {
        let is_idle = !self.is_busy() && !self.is_passed_over();
        is_idle.then(|| (self.idle_since.load(Ordering::Relaxed), Arc::clone(self)))
    }

    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Acquire) > 0
    }

    /// Since when no request has been answered; since the connection was made, where none came.
    pub(super) fn idle_since(&self) -> Instant {
        self.places.started + Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    /// Notes that a head was read whose answer is to come.
    pub(super) fn serve(self: &Arc<Self>) -> Serving {
        if self.requests.fetch_add(1, Ordering::AcqRel) == 0 {
            self.places.busy.fetch_add(1, Ordering::Relaxed);
        }
        self.asked.notify_one();
        Serving(Arc::clone(self))
    }

    /// Whether clients keep as many connections busy as they may; the others are for instances and health checks.
    pub(super) fn is_crowded(&self) -> bool {
        self.places.busy.load(Ordering::Relaxed) > self.places.for_clients
    }

    pub(super) fn is_passed_over(&self) -> bool {
        self.is_passed_over.load(Ordering::Relaxed)
    }

    /// Whether the latest request was refused with its body unread.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.usage.places.held().remove(&self.number);
    }
}

impl Serving {
    /// Notes whether the request is refused with its body unread.
    pub(super) fn set_refused(&self, is_refused: bool) {
        self.0.is_refused.store(is_refused, Ordering::Relaxed);
    }

    /// Notes that the connection goes on as another protocol, and is not idle without a request.
    pub(super) fn set_upgraded(&self) {
        self.0.is_passed_over.store(true, Ordering::Relaxed);
    }
}

impl Clone for Serving {
    fn clone(&self) -> Self {
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Self(usage) = self;
        // Before the count falls: an idle connection with an old time would be the first to give way.
        usage
            .idle_since
            .store(usage.places.now(), Ordering::Relaxed);
        if usage.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            usage.places.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
