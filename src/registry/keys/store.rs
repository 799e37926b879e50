//! The outcomes of calls with an idempotency key in a Redis or Valkey that all instances share: a key is claimed before its
//! function runs and gets its outcome after that, so that any instance may take a repeat.
//!
//! A claim is a value that nobody else writes, and whoever settles it replaces exactly that value. Each process has a lease,
//! which it renews once a second; without a fresh one it claims nothing. A call whose process has none any more is taken to
//! have ended without an outcome, and is not run again, because it may have run. Where that process only stood still, it settles
//! its claim later all the same.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, ErrorKind, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task,
    time::{self, Instant},
};

use super::{Known, LIFE, fingerprint::Fingerprint, mismatch, not_kept};
use crate::{
    call::Call,
    config::KeyStoreUrl,
    deadline::{Deadline, whole_ms},
    json,
    lifecycle::InFlight,
    local::LocalInstance,
    memory::{Budget, Reserved, Share},
    name::{BootId, IdempotencyKey, RequestId, random_word},
    problem::{Code, Executed, Problem},
    reply::{Meta, Outcome, ProblemDocument, Returned},
};

/// How long the lease of a process lasts: until it ends, others take the process to be alive.
const LEASE: Duration = Duration::from_secs(4);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(1);
/// For how long a process claims keys after a renewal: it stops well before others take it for dead.
const FRESH: Duration = Duration::from_secs(3);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(1);
/// The pause before a store that cannot be reached is connected to again.
const REST: Duration = Duration::from_millis(200);
/// The shortest and the longest time between two looks at a call that runs on another instance.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// The part of the memory budget that is enough for all looks at the same time.
const LOOKS_PART: usize = 4;
/// How many repeats wait here for calls that run.
const WAITERS: usize = 1024;
/// The largest outcome that is kept, in bytes.
const MAX_KEPT: usize = 1 << 20;
/// The most bytes of changes that are kept for a store that does not answer, and the part of the memory budget that they may
/// take.
const MAX_PENDING: (usize, usize) = (32 << 20, 8);

/// Renews a lease. Only one that is not there needs room, so that a full store takes no process for dead.
const RENEW: &str = "if redis.call('PEXPIRE',KEYS[1],ARGV[1])==0 then \
                     redis.call('SET',KEYS[1],1,'PX',ARGV[1]) end \
                     return 1";
/// Replaces a value by another if it is still the same. It may be the other already, if the answer to an earlier try was lost.
const REPLACE: &str = "local now=redis.call('GET',KEYS[1]) \
                       if now==ARGV[2] then return 1 end \
                       if now~=ARGV[1] then return 0 end \
                       redis.call('SET',KEYS[1],ARGV[2],'PX',ARGV[3]) \
                       return 1";
/// Removes a claim if it is still the same, and puts a mark where there is none.
///
/// A claim that was given up before anybody saw it made may still be on its way, on a connection that is dead to this end.
/// With a mark in its place it can be made no more, and whoever claims the key next replaces the mark: only then does a claim
/// cost a second command. A claim that would replace an earlier mark, which alone has no fingerprint, is kept out by a new one.
const UNDO: &str = "local now=redis.call('GET',KEYS[1]) \
                    if now==ARGV[1] then redis.call('DEL',KEYS[1]) \
                    elseif not now or string.sub(now,1,17)=='{\"fingerprint\":\"\"' then \
                    redis.call('SET',KEYS[1],ARGV[2],'PX',ARGV[3]) end \
                    return 1";

pub(crate) struct Store {
    client: Client,
    /// What every name in it begins with.
    prefix: String,
    boot: BootId,
    /// The connection, and when the lease of this process was renewed over it.
    live: watch::Sender<Option<Live>>,
    /// Notified when a command found the connection broken.
    broken: Notify,
    waiters: Semaphore,
    /// For looks at what is stored.
    looks: Semaphore,
    pending: Mutex<Pending>,
    /// Held while pending changes are made.
    making: Semaphore,
    memory: Arc<Budget>,
}

/// Without its client, which has the password.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("is_up", &self.is_up())
            .finish_non_exhaustive()
    }
}

/// Changes that could not be made because the store did not answer.
#[derive(Debug)]
struct Pending {
    /// In the order in which they are tried.
    changes: VecDeque<Change>,
    /// What they take.
    reserved: Reserved,
    /// The most that they may take, in bytes.
    most: usize,
}

/// A connection over which the lease of this process was renewed.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// When it was, for the first time and for the last.
    since: Instant,
    renewed: Instant,
}

/// Replaces the value of a key, if that is still `from`.
#[derive(Clone, Debug)]
struct Change {
    name: String,
    from: String,
    to: To,
    /// For how long it is kept.
    life: Duration,
}

#[derive(Clone, Debug)]
enum To {
    /// This.
    Value(String),
    /// Nothing, because it never ran, and a mark in the place of a value that is still on its way.
    Mark,
}

/// What is stored of a key.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    fingerprint: String,
    state: State,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It runs in the process `boot`; `claim` is unique.
    Running {
        boot: BootId,
        claim: String,
    },
    Returned(Returned),
    Failed(Box<ProblemDocument>),
    /// It ran, and its outcome was too large to be kept.
    NotKept,
    /// Its task ended without an outcome, and may have run it.
    Lost,
    /// In the place of a claim that was given up but may still arrive; the word is unique.
    GivenUp(String),
}

/// The right, and the duty, to run a call; or a claim that is being made.
pub(in crate::registry) struct StoredClaim {
    store: Arc<Store>,
    fingerprint: String,
    name: String,
    /// What is stored until it is settled, and empty from then on.
    value: String,
    /// Whether the call may have run.
    has_started: bool,
}

impl Store {
    /// The store at `url` for the instance `local`, and the task that keeps this process connected until that stops.
    pub(crate) fn new(
        url: KeyStoreUrl,
        local: &LocalInstance,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let app = local.identity.app.as_deref().unwrap_or_default();
        let (memory, stop) = (Arc::clone(&local.memory), local.stop.clone());
        let store = Arc::new(Self {
            client: url.client,
            prefix: format!("fly-rpc:{app}"),
            boot: local.boot.clone(),
            live: watch::Sender::new(None),
            broken: Notify::new(),
            waiters: Semaphore::new(WAITERS),
            looks: Semaphore::new((memory.limit / LOOKS_PART / MAX_KEPT).max(1)),
            pending: Mutex::new(Pending::within(&memory)),
            making: Semaphore::new(1),
            memory,
        });
        let kept = Arc::clone(&store);
        (store, async move {
            stop.run_until_cancelled(kept.keep()).await;
        })
    }

    /// Makes the changes that are pending when the tasks of this instance have ended, within the time of a command.
    pub(super) async fn flush(&self) {
        if let Ok(mut live) = self.live() {
            let until = Instant::now() + COMMAND;
            let made = self.make_pending(&mut live.connection, until);
            let _ = time::timeout_at(until, made).await;
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.live.borrow().as_ref().is_some_and(Live::is_fresh)
    }

    /// Connects, renews the lease of this process until that fails, and connects again.
    async fn keep(&self) {
        let mut logged = String::new();
        loop {
            match self.connect().await {
                Ok(mut connection) => {
                    tracing::info!("connected to the store of idempotency keys");
                    let why = self.renew_until_failure(&mut connection).await;
                    self.live.send_replace(None);
                    tracing::warn!(%why, "lost the store of idempotency keys: calls with a key are refused");
                    logged.clear();
                }
                Err(why) => {
                    let why = why.to_string();
                    if logged != why {
                        tracing::warn!(%why, "the store of idempotency keys cannot be used: calls with a key are refused");
                        logged = why;
                    }
                    time::sleep(REST).await;
                }
            }
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(COMMAND))
            .set_response_timeout(Some(COMMAND));
        let connected = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = connected.await?;
        self.renew(&mut connection).await?;
        Ok(connection)
    }

    /// Renews the lease of this process until that fails, and makes pending changes in between.
    async fn renew_until_failure(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> redis::RedisError {
        loop {
            let next = Instant::now() + RENEWAL;
            self.make_pending(connection, next).await;
            // At once where a command found the connection broken: calls are refused until there is another.
            let _ = time::timeout_at(next, self.broken.notified()).await;
            if let Err(why) = self.renew(connection).await {
                return why;
            }
        }
    }

    /// By a script, as outcomes are stored: a user of the store that may run no scripts claims nothing.
    async fn renew(&self, connection: &mut MultiplexedConnection) -> Result<(), redis::RedisError> {
        let renewed = Instant::now();
        let mut lease = redis::cmd("EVAL");
        lease.arg(RENEW).arg(1).arg(self.lease(&self.boot));
        lease.arg(whole_ms(LEASE));
        lease.query_async::<()>(connection).await?;
        let since = self
            .live
            .borrow()
            .as_ref()
            .map_or(renewed, |live| live.since);
        let connection = connection.clone();
        self.live.send_replace(Some(Live {
            connection,
            since,
            renewed,
        }));
        Ok(())
    }

    /// Makes the pending changes, but only `until` the lease has to be renewed: over a slow network many of them take longer
    /// than it lasts. One that fails goes behind all others. It says nothing of the connection: the renewal of the lease, which
    /// writes too, decides about that.
    async fn make_pending(&self, connection: &mut MultiplexedConnection, until: Instant) {
        // Two tasks would both make the first change, and one would then remove another that was not made: an instance may be
        // stopped twice at once.
        let _alone = self.making.acquire().await;
        while Instant::now() < until {
            // It stays there until it is made: a stop may come first.
            let Some(change) = self.pending().changes.front().cloned() else {
                return;
            };
            let tried = self.try_to_make(&change, connection).await;
            let mut pending = self.pending();
            pending.take();
            let Err(why) = tried else {
                continue;
            };
            pending.put(match why.is_timeout() {
                // It may be too large for the network, and would hold up the lease each time.
                true => change.without_result(),
                false => change,
            });
            return;
        }
    }

    /// Makes `change`. If the store refuses it for good, it is given up.
    ///
    /// # Errors
    /// It is to be tried again.
    async fn try_to_make(
        &self,
        change: &Change,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), redis::RedisError> {
        match change.make(connection).await {
            Ok(made) => change.note(made),
            Err(why) if is_answer(&why) && !passes(&why) => change.give_up(&why),
            Err(why) => {
                self.doubt(&why);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Has the lease renewed now, if `why` says that the connection ended: the renewal shows whether it did.
    fn doubt(&self, why: &redis::RedisError) {
        if why.is_connection_dropped() {
            self.broken.notify_one();
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the lease of the process `boot`.
    fn lease(&self, boot: &BootId) -> String {
        format!("{}:process:{boot}", self.prefix)
    }

    /// Room for what `outcome` takes on its way to the store, as text and in a command; `None` where it is not to be kept: there
    /// is no room, or it is too large.
    fn room_for(&self, outcome: &Outcome) -> Option<Reserved> {
        let size = Returned::size(outcome);
        let room = (size <= MAX_KEPT).then(|| self.memory.reserve(2 * size, Share::Results));
        room.and_then(Result::ok)
    }

    /// What is known of `call` under `key`; waits until `deadline` for one that runs.
    pub(super) async fn claim(
        self: &Arc<Self>,
        key: &IdempotencyKey,
        call: &Call,
        deadline: Deadline,
    ) -> Known {
        let fingerprint = Fingerprint::of_call(call).to_string();
        let owner = call.key_owner.as_ref().map_or("", |owner| owner.as_str());
        let hash = Fingerprint::of_key(key);
        let running = Record {
            fingerprint: fingerprint.clone(),
            state: State::Running {
                boot: self.boot.clone(),
                claim: random_word(),
            },
        };
        let claim = StoredClaim {
            store: Arc::clone(self),
            fingerprint,
            name: format!("{}:key:{owner}:{hash}", self.prefix),
            value: running.text(),
            has_started: false,
        };
        let mut is_found = false;
        let known = self.known(claim, call, deadline, &mut is_found).await;
        known.unwrap_or_else(|why| {
            if let Away::Failed(why) = &why {
                self.doubt(why);
            }
            Known::Outcome(Err(away(&why, is_found)))
        })
    }

    /// Makes `claim`, or gives the outcome of the call that has the key. `is_found` is set while there may be such a call, which
    /// may have run.
    async fn known(
        self: &Arc<Self>,
        mut claim: StoredClaim,
        call: &Call,
        deadline: Deadline,
        is_found: &mut bool,
    ) -> Result<Known, Away> {
        // The call may run until its deadline, and its key is remembered for longer than that.
        let life = LIFE + deadline.remaining();
        let mut pause = LOOKS.0;
        let mut waits = None;
        let late = |is_found: bool| match is_found {
            true => Err(Problem::still_running(&call.name)),
            false => Err(Problem::not_started(&call.name)),
        };
        let outcome = loop {
            // If this fails, or ends at the deadline, the key may have been claimed all the same: the drop of the claim
            // undoes that.
            let found = self.claim_or_look(&mut claim, life, is_found);
            let found = deadline.bound(found).await;
            let Some(found) = found.transpose()? else {
                return Ok(Known::Outcome(late(*is_found)));
            };
            let Some(record) = found else {
                return Ok(Known::Nothing(super::Claim::Stored(claim)));
            };
            if record.fingerprint != claim.fingerprint {
                break Err(mismatch());
            }
            let State::Running { boot, .. } = &record.state else {
                break record.outcome();
            };
            match deadline.bound(self.lives(boot)).await.transpose()? {
                None => break late(*is_found),
                Some(false) => break Record::lost(),
                Some(true) => {}
            }
            if waits.is_none() {
                match self.waiters.try_acquire() {
                    Ok(place) => waits = Some(place),
                    Err(_) => break Err(too_many_wait()),
                }
            }
            if deadline.bound(time::sleep(pause)).await.is_none() {
                break late(*is_found);
            }
            pause = (pause * 2).min(LOOKS.1);
        };
        claim.forget();
        Ok(Known::Outcome(outcome))
    }

    /// The connection, if the lease of this process is fresh.
    fn live(&self) -> Result<Live, Away> {
        match &*self.live.borrow() {
            Some(live) if live.is_fresh() => Ok(live.clone()),
            _ => Err(Away::Silent),
        }
    }

    /// Claims a key that nobody has, in the place of a mark where there is one, or gives what is stored of it. `is_found` says
    /// meanwhile whether there may be a call that has it.
    async fn claim_or_look(
        &self,
        claim: &mut StoredClaim,
        life: Duration,
        is_found: &mut bool,
    ) -> Result<Option<Record>, Away> {
        let mut connection = self.live().inspect_err(|_| claim.forget())?.connection;
        let mut set = redis::cmd("SET");
        set.arg(&claim.name).arg(&claim.value);
        set.arg("NX").arg("PX").arg(whole_ms(life));
        let mut get = redis::cmd("GET");
        get.arg(&claim.name);
        loop {
            let made: Result<Option<String>, _> = set.query_async(&mut connection).await;
            let refused = match made {
                Ok(Some(_)) => return Ok(None),
                Ok(None) => None,
                // The store is full, and may have this key all the same.
                Err(why) if is_full(&why) => Some(why),
                Err(why) => return Err(why.into()),
            };
            // Until it is known what is there.
            *is_found = true;
            // The value may be large, and is not counted before it is there.
            let _place = self.looks.acquire().await;
            let found: Option<String> = get.query_async(&mut connection).await?;
            let Some(found) = found else {
                *is_found = false;
                match refused {
                    Some(why) => return Err(why.into()),
                    // The key may have become free since.
                    None => continue,
                }
            };
            let record: Record = serde_json::from_str(&found).map_err(|_| Away::Strange)?;
            *is_found = !matches!(record.state, State::GivenUp(_));
            if *is_found {
                return Ok(Some(record));
            }
            if self.claim_instead(claim, found, life).await? {
                return Ok(None);
            }
        }
    }

    /// Replaces a mark by the claim. Returns whether the mark was still there.
    async fn claim_instead(
        &self,
        claim: &StoredClaim,
        mark: String,
        life: Duration,
    ) -> Result<bool, Away> {
        let change = Change {
            name: claim.name.clone(),
            from: mark,
            to: To::Value(claim.value.clone()),
            life,
        };
        Ok(change.make(&mut self.live()?.connection).await?)
    }

    /// Whether the process `boot` may be alive. All leases have run out if the store was away: each process that lives then
    /// has as long as a lease lasts to renew its own.
    async fn lives(&self, boot: &BootId) -> Result<bool, Away> {
        let mut live = self.live()?;
        if *boot == self.boot || live.since.elapsed() < LEASE {
            return Ok(true);
        }
        let mut exists = redis::cmd("EXISTS");
        exists.arg(self.lease(boot));
        Ok(exists.query_async(&mut live.connection).await?)
    }
}

impl Live {
    fn is_fresh(&self) -> bool {
        self.renewed.elapsed() < FRESH
    }
}

impl Pending {
    fn within(memory: &Arc<Budget>) -> Self {
        let (most, part) = MAX_PENDING;
        Self {
            changes: VecDeque::new(),
            reserved: memory.take(0),
            most: most.min(memory.limit / part),
        }
    }

    /// Removes the first one.
    fn take(&mut self) {
        if let Some(change) = self.changes.pop_front() {
            self.reserved.give_back(change.size());
        }
    }

    /// Keeps `change` for later; where there is no room for it, without the result of its call, and where there is none for
    /// that either, not at all.
    fn put(&mut self, change: Change) {
        let change = match self.has_room(&change) {
            true => change,
            false => change.without_result(),
        };
        if !self.has_room(&change) {
            tracing::warn!(
                "an outcome is not kept: the store of idempotency keys has been away for too long"
            );
            return;
        }
        self.reserved.take(change.size());
        self.changes.push_back(change);
    }

    fn has_room(&self, change: &Change) -> bool {
        self.reserved.bytes() + change.size() <= self.most
    }
}

impl Change {
    /// Makes it. Returns whether the value was still `from`.
    async fn make(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<bool, redis::RedisError> {
        let mark;
        let (script, to) = match &self.to {
            To::Value(value) => (REPLACE, value),
            // Another one each time: a claim that is to replace the first one must not find it again.
            To::Mark => {
                mark = Record::given_up().text();
                (UNDO, &mark)
            }
        };
        let mut change = redis::cmd("EVAL");
        change.arg(script).arg(1).arg(&self.name).arg(&self.from);
        change.arg(to).arg(whole_ms(self.life));
        change.query_async(connection).await
    }

    /// Warns of an outcome that was not stored, because the change was not `made`. The result may be there all the same, by
    /// a first try that arrived late.
    fn note(&self, made: bool) {
        if !made && matches!(self.to, To::Value(_)) {
            tracing::warn!(
                "an outcome is not stored: its claim was gone, or had an outcome from an earlier try"
            );
        }
    }

    /// Warns of what is lost because the store refuses it, which it answered with `why`.
    fn give_up(&self, why: &redis::RedisError) {
        let lost = match self.to {
            To::Value(_) => "the outcome of a call is lost: its repeats take it to be running",
            To::Mark => "the claim of a call that did not run may stay",
        };
        let name = &self.name;
        tracing::warn!(%why, name, "the store of idempotency keys refuses a change: {lost}");
    }

    /// The same without the result that it would store: then a repeat learns that the call ran, and nothing else.
    fn without_result(mut self) -> Self {
        if let To::Value(text) = &self.to
            && let Ok(record) = serde_json::from_str::<Record>(text)
            && record.has_result()
        {
            let state = State::NotKept;
            self.to = To::Value(Record { state, ..record }.text());
        }
        self
    }

    fn size(&self) -> usize {
        let to = match &self.to {
            To::Value(to) => to.len(),
            To::Mark => 0,
        };
        self.name.len() + self.from.len() + to
    }
}

impl StoredClaim {
    /// The call may have run from now on.
    pub(super) fn begin(&mut self) {
        self.has_started = true;
    }

    /// Stores the outcome for all who wait, and for repeats, unless the function provably did not run.
    pub(super) async fn settle(mut self, outcome: &Outcome, in_flight: Option<InFlight>) {
        let ran = !matches!(outcome, Err(problem) if problem.executed == Executed::No);
        let memory = self.store.room_for(outcome);
        let change = match (ran, &memory) {
            (true, Some(_)) => self.change(State::of(outcome)),
            (true, None) => self.change(State::NotKept),
            (false, _) => self.undo(),
        };
        let store = Arc::clone(&self.store);
        // In a task of its own: it is stored also when the caller goes away.
        let settled = task::spawn(async move {
            let _held = (memory, in_flight);
            let made = match store.live() {
                Ok(mut live) => store
                    .try_to_make(&change, &mut live.connection)
                    .await
                    .is_ok(),
                Err(_) => false,
            };
            if !made {
                store.pending().put(change);
            }
        });
        let _ = settled.await;
    }

    /// The change that gives the claim this `state`; the claim itself is settled from then on.
    fn change(&mut self, state: State) -> Change {
        let text = |state| {
            let fingerprint = self.fingerprint.clone();
            Record { fingerprint, state }.text()
        };
        let to = Some(text(state)).filter(|to| to.len() <= MAX_KEPT);
        let to = To::Value(to.unwrap_or_else(|| text(State::NotKept)));
        self.replaced_by(to)
    }

    /// The change that removes a claim whose call did not run; one that may still arrive is marked as given up.
    fn undo(&mut self) -> Change {
        self.replaced_by(To::Mark)
    }

    fn replaced_by(&mut self, to: To) -> Change {
        Change {
            name: self.name.clone(),
            from: std::mem::take(&mut self.value),
            to,
            life: LIFE,
        }
    }

    /// Settles a claim that was never made, so that its drop changes nothing.
    fn forget(&mut self) {
        self.value.clear();
    }
}

impl Drop for StoredClaim {
    /// A call whose task ended without an outcome may have run, and its outcome is not known. One that was given up before it
    /// started did not.
    fn drop(&mut self) {
        if self.value.is_empty() {
            return;
        }
        let change = match self.has_started {
            true => self.change(State::Lost),
            false => self.undo(),
        };
        self.store.pending().put(change);
    }
}

impl State {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Ok(returned) => Self::Returned(returned.clone()),
            Err(problem) => {
                let meta = Meta::untried(None, Duration::ZERO, RequestId::fresh());
                Self::Failed(Box::new(ProblemDocument::new(problem.clone(), meta)))
            }
        }
    }
}

impl Record {
    fn given_up() -> Self {
        Self {
            fingerprint: String::new(),
            state: State::GivenUp(random_word()),
        }
    }

    fn text(&self) -> String {
        let size = match &self.state {
            State::Returned(returned) => returned.json.get().len(),
            _ => 0,
        };
        String::from_utf8(json::to_vec_around(size, self)).unwrap_or_default()
    }

    /// Whether it is of a call that ran, and what came of it may be large.
    fn has_result(&self) -> bool {
        match &self.state {
            State::Returned(_) => true,
            State::Failed(document) => document.problem.executed == Executed::Yes,
            State::Running { .. } | State::NotKept | State::Lost | State::GivenUp(_) => false,
        }
    }

    fn outcome(self) -> Outcome {
        match self.state {
            State::Returned(returned) => Returned::replayed(Ok(returned)),
            State::Failed(document) => Returned::replayed(Err(document.problem)),
            State::NotKept => Err(not_kept()),
            State::Lost | State::Running { .. } | State::GivenUp(_) => Self::lost(),
        }
    }

    fn lost() -> Outcome {
        let detail = "the process that had the call with this key ended, and may have run it";
        Returned::replayed(Err(Problem::new(Code::PeerLost, detail)))
    }
}

/// Why the store does not answer.
#[derive(Debug, thiserror::Error)]
enum Away {
    #[error("it has not answered for {} s", FRESH.as_secs())]
    Silent,
    #[error("{0}")]
    Failed(#[from] redis::RedisError),
    #[error("another release wrote what it has")]
    Strange,
}

/// Whether the store answered, so that its connection works.
fn is_answer(why: &redis::RedisError) -> bool {
    matches!(why.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// Whether the store refuses a new key because it is full.
fn is_full(why: &redis::RedisError) -> bool {
    why.code() == Some("OOM")
}

/// Whether an answer is about the state of the store, which another try may find changed, and not about the command.
fn passes(why: &redis::RedisError) -> bool {
    let passing = [
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
    ];
    why.code().is_some_and(|code| passing.contains(&code))
}

/// Without the store nobody knows how the call ended: it is not run here, and may have run where a claim `is_found`, or
/// what only another release can read.
fn away(why: &Away, is_found: bool) -> Problem {
    tracing::debug!(%why, "a call with an idempotency key is refused");
    let detail = match why {
        Away::Strange => "another release wrote what the store of RPC_KEY_STORE has of this key",
        Away::Failed(why) if is_full(why) => {
            "the store of RPC_KEY_STORE is full and takes no new key; calls without an idempotency key run"
        }
        Away::Silent | Away::Failed(_) => {
            "the store of RPC_KEY_STORE does not answer this instance; calls without an idempotency key run"
        }
    };
    let problem = Problem::new(Code::Overloaded, detail);
    match is_found || matches!(why, Away::Strange) {
        true => problem.executed(Executed::Maybe),
        false => problem,
    }
}

fn too_many_wait() -> Problem {
    let detail =
        format!("the call with this key runs, and {WAITERS} repeats wait here, which is the limit");
    Problem::new(Code::Overloaded, detail).executed(Executed::Maybe)
}
