//! The path that calls take to their peers, and what each end of a call says about whether the function ran. Knows one
//! attempt; whether there is another is dispatch's decision.

mod connection;
mod task;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use scopeguard::ScopeGuard;
use tokio::sync::Semaphore;

use self::{
    connection::{Connection, Ending},
    task::run,
};
use crate::{
    call::Call,
    cluster::{CallSignal, Cluster, Peer},
    deadline::Deadline,
    local::LocalInstance,
    name::{FunctionName, RequestId},
    problem::{Code, Executed, Problem},
    protocol::{Exec, lines::CallLine},
    reply::Outcome,
};

/// The size, in bytes, above which a call, or a function's result, travels alone: it would hold up others.
const LARGE: usize = 64 << 10;
/// How many functions with large results are remembered.
const LARGE_FUNCTIONS: u64 = 1024;
/// How many large calls travel to one peer at once, each on a connection of its own; more wait.
const LARGE_AT_ONCE: usize = 64;
/// The most connections on which calls are still under way besides the one that further calls share.
const MAX_RETIRED: usize = 8;
/// How many peers are known before those without a connection are forgotten.
const UNSWEPT: usize = 64;
/// How often a call that never left because its connection ended is given to a new one.
const TRIES: usize = 3;
/// A call that a peer ends as too late with so much time left was delayed by nothing but a wrong clock.
const CLOCK_ERROR: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Link {
    local: Arc<LocalInstance>,
    cluster: Arc<Cluster>,
    /// How long opening a connection may take.
    connect_timeout: Duration,
    peers: Mutex<Peers>,
    large_results: Arc<LargeResults>,
}

/// The functions whose last result was large: their calls travel alone, so that their results hold up no others. The next
/// result that is small ends it.
#[derive(Debug)]
struct LargeResults {
    functions: Cache<FunctionName, ()>,
    /// False until a result was large: until then, no call looks into the cache.
    is_any: AtomicBool,
}

/// The connections to all peers.
#[derive(Debug, Default)]
struct Peers {
    by_address: BTreeMap<SocketAddr, PeerConnections>,
    /// How many were left when those without a connection were last forgotten.
    left: usize,
}

/// The connections to one peer.
#[derive(Debug)]
struct PeerConnections {
    /// The one that calls share.
    shared: Option<Arc<Connection>>,
    /// Those before it, the oldest first, while calls are under way there.
    retired: Vec<Weak<Connection>>,
    /// Connections for large calls that carry no call now.
    spare: Vec<Arc<Connection>>,
    large: Arc<Semaphore>,
}

impl Link {
    pub(crate) fn new(
        local: Arc<LocalInstance>,
        cluster: Arc<Cluster>,
        connect_timeout: Duration,
    ) -> Self {
        Self {
            local,
            cluster,
            connect_timeout,
            peers: Mutex::default(),
            large_results: Arc::new(LargeResults {
                functions: Cache::new(LARGE_FUNCTIONS),
                is_any: AtomicBool::new(false),
            }),
        }
    }

    /// Runs `call` on `peer` within `deadline`.
    ///
    /// # Errors
    /// The problem that the peer answered with; [`Code::PeerUnreachable`] or [`Code::Overloaded`] when nothing was sent;
    /// [`Code::PeerLost`] when something may have been and no answer of ours came, or when the peer was found suspect and
    /// the call is idempotent or has a key; [`Code::DeadlineExceeded`].
    pub(crate) async fn exec(
        &self,
        peer: &Peer,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
    ) -> Outcome {
        let line = Exec::line(&peer.region, call, request_id);
        let ending = match line.len() > LARGE || self.large_results.has(&call.name) {
            true => self.send_alone(peer, call, &line, deadline).await,
            false => self.send_together(peer, call, &line, deadline).await,
        };
        self.outcome(peer, call, ending)
    }

    /// Sends a call with those that wait for the same peer; on a new connection where the old one ended first.
    async fn send_together(
        &self,
        peer: &Peer,
        call: &Call,
        line: &CallLine<'_>,
        deadline: Deadline,
    ) -> Ending {
        let (mut last, mut ended) = (Ending::Unsent, None);
        for _ in 0..=TRIES {
            let connection = self.shared_connection(peer, ended.as_ref());
            last = connection.call(call, line, deadline).await;
            match &last {
                Ending::Unsent => {}
                Ending::Answered(Err(problem)) if is_misjudged(problem, deadline) => {
                    connection.retire();
                    if problem.executed != Executed::No {
                        return last;
                    }
                }
                _ => return last,
            }
            ended = Some(connection);
        }
        last
    }

    /// Sends a large call on a connection of its own, for its bytes would hold up those of others.
    async fn send_alone(
        &self,
        peer: &Peer,
        call: &Call,
        line: &CallLine<'_>,
        deadline: Deadline,
    ) -> Ending {
        let large = self.with_peer(peer, |to_peer| Arc::clone(&to_peer.large));
        let Some(_place) = deadline.acquire(&large).await else {
            return Ending::ExpiredUnsent;
        };
        let mut last = Ending::Unsent;
        for _ in 0..TRIES {
            let spare = self.with_peer(peer, PeerConnections::spare);
            let connection = spare.unwrap_or_else(|| self.open(peer));
            // Without an answer, also when the caller goes away, the connection is closed.
            let connection = scopeguard::guard(connection, |connection| connection.cut());
            last = connection.call(call, line, deadline).await;
            match &last {
                Ending::Unsent => {}
                Ending::Answered(Err(problem)) if is_misjudged(problem, deadline) => {
                    // The others are as old as this one, or about as old.
                    self.with_peer(peer, |to_peer| to_peer.spare.clear());
                    if problem.executed != Executed::No {
                        return last;
                    }
                }
                Ending::Answered(_) => {
                    let connection = ScopeGuard::into_inner(connection);
                    self.with_peer(peer, |to_peer| to_peer.spare.push(connection));
                    return last;
                }
                _ => return last,
            }
        }
        last
    }

    /// The connection that calls to `peer` share; another one than `ended`, opened where there is none. It may be one that
    /// takes no calls any more, which the caller finds out when it submits: a check here would take the connection's lock
    /// while it holds the link's.
    fn shared_connection(&self, peer: &Peer, ended: Option<&Arc<Connection>>) -> Arc<Connection> {
        let is_other =
            |shared: &&Arc<Connection>| ended.is_none_or(|ended| !Arc::ptr_eq(ended, shared));
        let mut peers = self.lock();
        if let Some(to_peer) = peers.by_address.get(&peer.address)
            && let Some(shared) = to_peer.shared.as_ref().filter(is_other)
        {
            return Arc::clone(shared);
        }
        let to_peer = peers.to(peer.address);
        let shared = self.open(peer);
        let old = to_peer.shared.replace(Arc::clone(&shared));
        // If the old one is over, the one before it goes on: a peer that drains refuses the calls on each new connection while
        // it answers those that it took.
        if let Some(old) = old.filter(|old| !old.is_over()) {
            to_peer.retire(&old);
        }
        shared
    }

    fn open(&self, peer: &Peer) -> Arc<Connection> {
        let (local, cluster) = (Arc::clone(&self.local), Arc::clone(&self.cluster));
        let large_results = Arc::clone(&self.large_results);
        let connection = Connection::new(peer.clone(), local, cluster, large_results);
        let connection = Arc::new(connection);
        let (stop, timeout) = (self.local.stop.clone(), self.connect_timeout);
        // However the task ends, also where the link or the runtime stops before it begins: what left and was not answered is
        // lost, and nothing leaves any more.
        let served = scopeguard::guard(Arc::clone(&connection), |connection| connection.cut());
        self.local
            .tasks
            .spawn(async move { stop.run_until_cancelled(run(&served, timeout)).await });
        connection
    }

    fn with_peer<T>(&self, peer: &Peer, what: impl FnOnce(&mut PeerConnections) -> T) -> T {
        what(self.lock().to(peer.address))
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls wait to leave for peers.
    pub(crate) fn queued(&self) -> usize {
        let peers = self.lock();
        let to_peers = peers.by_address.values();
        let shared = to_peers.filter_map(|to_peer| to_peer.shared.as_ref());
        shared.map(|connection| connection.queued()).sum()
    }

    /// What the end of a call means for its caller. What it says of the peer, the connection's task reports, and
    /// [`Link::peer_problem`].
    fn outcome(&self, peer: &Peer, call: &Call, ending: Ending) -> Outcome {
        let instance = &peer.instance;
        let maybe_late =
            |detail: String| Problem::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe);
        Err(match ending {
            Ending::Answered(Ok(result)) => {
                let size = result.json.get().len();
                self.large_results.note(&call.name, size);
                return Ok(result);
            }
            Ending::Answered(Err(problem)) => self.peer_problem(peer, call, *problem),
            Ending::Garbled => Problem::new(
                Code::PeerLost,
                format!("instance {instance} answered with something else than our contract"),
            ),
            Ending::Dropped(problem) => {
                self.large_results.note(&call.name, usize::MAX);
                *problem
            }
            Ending::Lost => Problem::new(
                Code::PeerLost,
                format!("the connection to instance {instance} was lost after the call"),
            ),
            Ending::Silent => Problem::new(
                Code::PeerLost,
                format!("instance {instance} took the call and does not answer any more"),
            ),
            Ending::NoConnection | Ending::Unsent => Problem::new(
                Code::PeerUnreachable,
                format!("no connection to instance {instance}"),
            ),
            Ending::WrongInstance => Problem::new(
                Code::PeerUnreachable,
                format!("another process answers at the address of instance {instance}"),
            ),
            Ending::Full => Problem::new(
                Code::Overloaded,
                format!("too many calls wait to be sent to instance {instance}"),
            ),
            Ending::ExpiredUnsent => Problem::new(
                Code::DeadlineExceeded,
                format!("the deadline passed before the call was sent to instance {instance}"),
            ),
            Ending::Expired => maybe_late(format!(
                "instance {instance} did not answer {} before the deadline",
                call.name
            )),
        })
    }

    /// A peer's problem as the caller may see it: one with the request that this instance made means nothing to the caller.
    fn peer_problem(&self, peer: &Peer, call: &Call, problem: Problem) -> Problem {
        if problem.later.is_some() {
            return problem;
        }
        match problem.code {
            Code::WrongRegion => {
                // A call that names a process may have found another one of the same instance.
                let signal = match call.boot {
                    Some(_) => CallSignal::Questionable,
                    None => CallSignal::WrongInstance,
                };
                self.cluster.report(peer.address, signal);
                problem
            }
            Code::Draining => {
                self.cluster.report(peer.address, CallSignal::Draining);
                problem
            }
            Code::Overloaded
            | Code::BodyTooLarge
            | Code::FunctionUnknown
            | Code::FunctionUnavailable
            | Code::FunctionLost
            | Code::InvalidArguments
            | Code::IdempotencyMismatch
            | Code::FunctionFailed
            | Code::ResultNotKept
            // It is about a process that had the call's key: a peer forwards nothing.
            | Code::PeerLost
            | Code::FunctionPanicked
            | Code::DeadlineExceeded
            | Code::Internal => problem,
            code if problem.executed == Executed::No => Problem::new(
                Code::PeerUnreachable,
                format!("instance {} refused the request: {code}", peer.instance),
            ),
            code => Problem::new(
                Code::PeerLost,
                format!("instance {} answered {code}", peer.instance),
            ),
        }
    }
}

impl LargeResults {
    fn has(&self, name: &FunctionName) -> bool {
        self.is_any.load(Ordering::Relaxed) && self.functions.contains_key(name)
    }

    /// Notes the size of a function's result, in bytes.
    fn note(&self, name: &FunctionName, size: usize) {
        if size > LARGE {
            self.is_any.store(true, Ordering::Relaxed);
            self.functions.insert(name.clone(), ());
        } else if self.has(name) {
            self.functions.invalidate(name);
        }
    }
}

impl Peers {
    /// The connections to the peer at `address`. Peers without one are forgotten when another is added and as many were added
    /// as were left the last time: to look at all of them for each would cost a large fan-out their number squared.
    fn to(&mut self, address: SocketAddr) -> &mut PeerConnections {
        let is_due = self.by_address.len() >= UNSWEPT.max(2 * self.left);
        if is_due && !self.by_address.contains_key(&address) {
            self.by_address.retain(|_, to_peer| to_peer.is_used());
            self.left = self.by_address.len();
        }
        self.by_address.entry(address).or_default()
    }
}

impl PeerConnections {
    /// Keeps `old` until its calls have ended. Of those before it, only ones on which bytes come are kept, as over a slow path:
    /// a peer that hangs costs two connections, however many calls wait for it.
    fn retire(&mut self, old: &Arc<Connection>) {
        let others = std::mem::take(&mut self.retired);
        let others: Vec<_> = others.iter().filter_map(Weak::upgrade).collect();
        let (mut heard, silent): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|older| older.is_heard());
        let beyond = (heard.len() + 1).saturating_sub(MAX_RETIRED);
        for older in heard.drain(..beyond).chain(silent) {
            older.cut();
        }
        heard.push(Arc::clone(old));
        self.retired = heard.iter().map(Arc::downgrade).collect();
    }

    /// A connection for a large call, if one carries none now.
    fn spare(&mut self) -> Option<Arc<Connection>> {
        self.spare.retain(|connection| connection.is_open());
        self.spare.pop()
    }

    /// Whether a connection is open, or a large call under way.
    fn is_used(&self) -> bool {
        self.shared
            .iter()
            .chain(&self.spare)
            .any(|connection| connection.is_open())
            || self.large.available_permits() < LARGE_AT_ONCE
    }
}

impl Default for PeerConnections {
    fn default() -> Self {
        Self {
            shared: None,
            retired: Vec::new(),
            spare: Vec::new(),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }
}

/// Whether a peer took a call for late, or ended it as late, although it has much time left: one of the two machines stood
/// still while its clock did not. A new connection starts with new clocks.
fn is_misjudged(problem: &Problem, deadline: Deadline) -> bool {
    problem.code == Code::DeadlineExceeded
        && !problem.replayed
        && deadline.remaining() > CLOCK_ERROR
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn peers_without_a_connection_are_forgotten_when_they_are_half_of_all() {
        let mut peers = Peers::default();
        let address = |number: u32| SocketAddr::from((Ipv4Addr::from(number), 1));
        let large_call = |number| Arc::clone(&peers.to(address(number)).large).try_acquire_owned();
        let used: Vec<_> = (0..100).map(large_call).collect();
        for departed in 100..10_000 {
            peers.to(address(departed));
            assert!(peers.by_address.len() <= 2 * used.len());
        }
        assert!((0..100).all(|number| peers.by_address.contains_key(&address(number))));
        drop(used);
        for departed in 10_000..10_200 {
            peers.to(address(departed));
        }
        assert!(peers.by_address.len() <= UNSWEPT);
    }
}
