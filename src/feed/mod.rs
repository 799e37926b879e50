//! What happens in this instance, for the clients of `GET /events`: peers that change, attempts that fail, a sample of the
//! calls that end, and counts of all of them. Without listeners nothing is gathered: a call costs one atomic read. `http`
//! sends each client the events that it may see.

mod tally;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    time::Instant,
};
use utoipa::ToSchema;

pub(crate) use self::tally::RegionCounts;
use self::tally::Tally;
use crate::{
    json,
    name::{BootId, FunctionName, InstanceId, RequestId},
    problem::{Executed, Problem},
    protocol::PeerState,
    region::Region,
    reply::Meta,
};

const MAX_LISTENERS: usize = 16;
/// How many of them one client may have: it leaves some for others.
const MAX_OF_CLIENT: usize = 4;
/// How many events wait for the slowest listener; it misses those before.
const BACKLOG: usize = 256;
/// How many digits of the boot id stand in the id of an event.
const BOOT_DIGITS: usize = 8;

/// An instance of the cluster is new, has changed, or is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PeerChange<'a> {
    /// Its region.
    #[schema(value_type = String, example = "syd")]
    pub region: &'a Region,
    /// Its id.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: &'a InstanceId,
    /// Where it answers its peers.
    #[schema(value_type = String, example = "[fdaa:0:18:a7b:7d:f066:b83b:2]:8080")]
    pub address: SocketAddr,
    /// Its state from now on; null when it is no longer an instance of the cluster.
    #[schema(value_type = Option<String>, required, example = "suspect")]
    pub state: Option<PeerState>,
    /// Why.
    #[schema(example = "nobody listens there")]
    pub reason: &'a str,
}

/// An attempt at an instance failed; the call may go on to another one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FailedAttempt<'a> {
    /// The id of the call's request.
    #[schema(value_type = String, example = "01J9ZK3V6T8Q4W2XB5N7RCM1DE")]
    pub request_id: &'a RequestId,
    /// The region of the instance.
    #[schema(value_type = String, example = "syd")]
    pub region: &'a Region,
    /// The instance.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: &'a InstanceId,
    /// Why it failed, a problem's code.
    #[schema(example = "peer_unreachable")]
    pub code: &'a str,
    /// Whether the function ran there.
    pub executed: Executed,
}

/// A call that the instance took has ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EndedCall<'a> {
    /// The id of its request.
    #[schema(value_type = String, example = "01J9ZK3V6T8Q4W2XB5N7RCM1DE")]
    pub request_id: &'a RequestId,
    /// The function.
    #[schema(example = "String.upcase")]
    pub function: String,
    /// The region that it was for, or was tried in last.
    #[schema(value_type = Option<String>, required, example = "syd")]
    pub region: Option<&'a Region>,
    /// The instance that ran it or was tried last; null when none was.
    #[schema(value_type = Option<String>, required, example = "148e21dad76789")]
    pub instance: Option<&'a InstanceId>,
    /// How many instances were tried.
    #[schema(example = 1)]
    pub attempts: u32,
    /// Whether the function ran.
    pub executed: Executed,
    /// The problem's code; null when there was a result.
    #[schema(required, example = "peer_lost")]
    pub code: Option<&'a str>,
    /// Milliseconds from its arrival to its answer.
    #[schema(example = 83.2)]
    pub elapsed_ms: f64,
}

#[derive(Debug)]
pub(crate) struct Feed {
    boot: String,
    started: Instant,
    /// A permit for each listener that there may still be: a call reads their number without a lock.
    places: Arc<Semaphore>,
    gathered: Mutex<Gathered>,
    events: broadcast::Sender<Event>,
}

/// What changes with each event.
#[derive(Debug, Default)]
struct Gathered {
    tally: Tally,
    number: u64,
    /// The number of the last event before the latest time without a listener.
    last_before_gap: u64,
    /// The names of the clients that listen, each as often as it does.
    clients: Vec<Weak<str>>,
}

/// One event, as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The function and the region of the call that it is about, which decide who may see it.
    pub call: Option<Arc<(FunctionName, Option<Region>)>>,
    /// A whole event of the format `text/event-stream`.
    pub text: Bytes,
}

/// One listener, until this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub events: broadcast::Receiver<Event>,
    _place: OwnedSemaphorePermit,
    _client: Option<Arc<str>>,
}

impl Feed {
    pub(crate) fn new(boot: &BootId) -> Self {
        Self {
            boot: boot.as_str().chars().take(BOOT_DIGITS).collect(),
            started: Instant::now(),
            places: Arc::new(Semaphore::new(MAX_LISTENERS)),
            gathered: Mutex::default(),
            events: broadcast::Sender::new(BACKLOG),
        }
    }

    /// A further listener, of the client with this name if it is one; `None` when there are as many as may be, at all or of
    /// that client.
    pub(crate) fn listen(&self, client: Option<&str>) -> Option<Listener> {
        let mut gathered = self.gathered();
        let is_same = |it: &&Weak<str>| it.upgrade().is_some_and(|it| Some(&*it) == client);
        if gathered.clients.iter().filter(is_same).count() >= MAX_OF_CLIENT {
            return None;
        }
        // What happened since the last listener left has no number, so that nobody could say how much was missed.
        if !self.has_listeners() {
            gathered.last_before_gap = gathered.number;
        }
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let client: Option<Arc<str>> = client.map(Into::into);
        gathered.clients.retain(|it| it.strong_count() > 0);
        gathered.clients.extend(client.as_ref().map(Arc::downgrade));
        Some(Listener {
            events: self.events.subscribe(),
            _place: place,
            _client: client,
        })
    }

    /// How many events came after the one with the id `last`; `None` when that was of another run, or nobody listened for a
    /// while since.
    pub(crate) fn missed_since(&self, last: &str) -> Option<u64> {
        let (boot, number) = last.split_once('.')?;
        let number: u64 = number.parse().ok().filter(|_| boot == self.boot)?;
        let gathered = self.gathered();
        let is_known = number > gathered.last_before_gap;
        is_known.then(|| gathered.number.saturating_sub(number))
    }

    pub(crate) fn peer_changed(&self, change: &PeerChange<'_>) {
        if self.has_listeners() {
            self.send(&mut self.gathered(), "peer", None, change);
        }
    }

    pub(crate) fn attempt_failed(&self, function: &FunctionName, attempt: &FailedAttempt<'_>) {
        if !self.has_listeners() {
            return;
        }
        let mut gathered = self.gathered();
        if gathered.tally.shows_another(self.now().as_secs(), true) {
            let call = (function.clone(), Some(attempt.region.clone()));
            self.send(&mut gathered, "attempt", Some(call), attempt);
        }
    }

    /// Counts a call for the region that is `known`, which is `None` where no instance was ever seen in it, and sends its
    /// event, which names the region that the call was for.
    pub(crate) fn call_ended(
        &self,
        function: &FunctionName,
        meta: &Meta,
        known: Option<&Region>,
        problem: Option<&Problem>,
    ) {
        if self.has_listeners() {
            self.gather(function, meta, known, problem);
        }
    }

    // Apart from the look whether there are listeners: nearly all calls have none.
    #[cold]
    fn gather(
        &self,
        function: &FunctionName,
        meta: &Meta,
        known: Option<&Region>,
        problem: Option<&Problem>,
    ) {
        let now = self.now();
        let mut gathered = self.gathered();
        gathered.tally.count(known, problem, meta.elapsed_ms, now);
        let is_failure = problem.is_some();
        if !gathered.tally.shows_another(now.as_secs(), is_failure) {
            return;
        }
        let ended = EndedCall {
            request_id: &meta.request_id,
            function: function.to_string(),
            region: meta.region.as_ref(),
            instance: meta.instance.as_ref(),
            attempts: meta.attempts,
            executed: problem.map_or(Executed::Yes, |problem| problem.executed),
            code: problem.map(Problem::word),
            elapsed_ms: meta.elapsed_ms,
        };
        let call = (function.clone(), meta.region.clone());
        self.send(&mut gathered, "call", Some(call), &ended);
    }

    /// What was counted while there were listeners.
    pub(crate) fn totals(&self) -> Vec<RegionCounts> {
        self.gathered().tally.totals(self.now())
    }

    fn has_listeners(&self) -> bool {
        self.places.available_permits() < MAX_LISTENERS
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sends an event under the next number, which `gathered`, being locked, keeps in order.
    fn send(
        &self,
        gathered: &mut Gathered,
        name: &str,
        call: Option<(FunctionName, Option<Region>)>,
        data: &impl Serialize,
    ) {
        gathered.number += 1;
        let id = format!("{}.{}", self.boot, gathered.number);
        let event = Event {
            call: call.map(Arc::new),
            text: event_text(Some(&id), name, data),
        };
        // The last listener may have gone.
        let _ = self.events.send(event);
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event in the format `text/event-stream`: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
pub(crate) fn event_text(id: Option<&str>, name: &str, data: &impl Serialize) -> Bytes {
    let id = id.map_or(String::new(), |id| format!("id: {id}\n"));
    let start = format!("{id}event: {name}\ndata: ").into_bytes();
    // JSON has no raw line break.
    [start, json::to_vec(data), b"\n\n".to_vec()]
        .concat()
        .into()
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::RecvError;

    use super::*;

    #[tokio::test]
    async fn a_slow_listener_learns_how_many_it_missed() {
        let feed = Feed::new(&BootId::random());
        let mut listener = feed.listen(None).unwrap();
        let address = ([127, 0, 0, 1], 1).into();
        let (region, instance) = ("syd".parse().unwrap(), "syd-1".parse().unwrap());
        let change = PeerChange {
            region: &region,
            instance: &instance,
            address,
            state: Some(PeerState::Ready),
            reason: "it answers",
        };
        for _ in 0..BACKLOG + 7 {
            feed.peer_changed(&change);
        }
        let missed = listener.events.recv().await.unwrap_err();
        assert_eq!(missed, RecvError::Lagged(7));
        listener.events.recv().await.unwrap();
    }
}
