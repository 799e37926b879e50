//! The outcomes of calls with an idempotency key in this process: the same key and call get the same outcome without a second
//! run, and wait for it while it runs.
//!
//! That a key ran is remembered for the whole ten minutes: where there is no room for another key, the new one is refused
//! and none is forgotten. An owner may have as many keys as are free for all others, so that one alone has at most half
//! of them and no number of owners fills the rest. Results are kept as long as there is room: the largest of the owner
//! with the most bytes goes first.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::{Known, LIFE, fingerprint::Fingerprint, mismatch, not_kept};
use crate::{
    call::Call,
    deadline::Deadline,
    name::{IdempotencyKey, KeyOwner},
    problem::{Code, Executed, Problem},
    reply::{Outcome, Returned},
};

/// What a result takes besides its text, in bytes.
const OVERHEAD: usize = 192;

/// How many keys of all owners are remembered.
const MAX_KEYS: usize = 1 << 18;
/// How many bytes of results are remembered.
const MAX_RESULTS: usize = 32 << 20;
/// How many repeats wait for one running call.
const MAX_WAITERS: usize = 64;

/// An outcome that others may wait for.
type Awaited = watch::Receiver<Option<Arc<Outcome>>>;

/// The outcomes by owner and key.
#[derive(Debug)]
pub(crate) struct LocalKeys {
    max_keys: usize,
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    owners: HashMap<Option<KeyOwner>, Owned>,
    /// Keys of all owners.
    keys: usize,
    /// Bytes of all results.
    bytes: usize,
}

/// The keys of one owner.
#[derive(Debug, Default)]
struct Owned {
    by_key: HashMap<Fingerprint, KnownKey>,
    /// The keys that ended, in this order.
    ended: VecDeque<(Instant, Fingerprint)>,
    /// The results that are kept, by size.
    results: BTreeSet<(usize, Fingerprint)>,
    bytes: usize,
}

#[derive(Debug)]
struct KnownKey {
    fingerprint: Fingerprint,
    state: KeyState,
}

#[derive(Debug)]
enum KeyState {
    /// It runs; others may wait for it.
    Running(watch::Sender<Option<Arc<Outcome>>>),
    /// It ended.
    Ended(Arc<Outcome>),
    /// It ended, and its result was dropped for want of room.
    Dropped,
}

/// What is known of a call now.
#[derive(Debug)]
enum Recall {
    /// Nothing: whoever holds the claim runs it.
    New(LocalClaim),
    /// It runs now.
    Running(Awaited),
    /// It ran.
    Ended(Arc<Outcome>),
    /// It is not to be run now, and this is why.
    Refused(Problem),
}

/// The right, and the duty, to run a call; its outcome is what all others wait for.
#[derive(Debug)]
pub(in crate::registry) struct LocalClaim {
    keys: Arc<LocalKeys>,
    owner: Option<KeyOwner>,
    key: Fingerprint,
    has_started: bool,
    is_settled: bool,
}

impl LocalKeys {
    pub(super) fn new() -> Self {
        Self {
            max_keys: MAX_KEYS,
            contents: Mutex::default(),
        }
    }

    /// How many keys are remembered, those of calls that run included.
    pub(super) fn count(&self) -> usize {
        let mut contents = self.lock();
        contents.forget_old(Instant::now());
        contents.keys
    }

    /// What is known of `call` under `key`; waits until `deadline` for one that runs.
    pub(super) async fn claim(
        self: &Arc<Self>,
        key: &IdempotencyKey,
        call: &Call,
        deadline: Deadline,
    ) -> Known {
        loop {
            let outcome = match self.recall(key, call) {
                Recall::New(claim) => return Known::Nothing(super::Claim::Here(claim)),
                Recall::Refused(problem) => return Known::Outcome(Err(problem)),
                Recall::Ended(outcome) => outcome.as_ref().clone(),
                Recall::Running(outcome) => match deadline.bound(awaited(outcome)).await {
                    // The first call did not run, so this one may.
                    Some(Err(problem)) if problem.executed == Executed::No => continue,
                    Some(outcome) => outcome,
                    // That it still runs is no outcome of it.
                    None => return Known::Outcome(Err(Problem::still_running(&call.name))),
                },
            };
            return Known::Outcome(Returned::replayed(outcome));
        }
    }

    fn recall(self: &Arc<Self>, key: &IdempotencyKey, call: &Call) -> Recall {
        // Before the lock, because the time it takes grows with the arguments.
        let fingerprint = Fingerprint::of_call(call);
        let key = Fingerprint::of_key(key);
        let mut contents = self.lock();
        let contents = &mut *contents;
        // There is no timer: old keys are removed when the next call with a key comes.
        contents.forget_old(Instant::now());
        let owned = contents.owners.entry(call.key_owner.clone()).or_default();
        if let Some(entry) = owned.by_key.get(&key) {
            return entry.recall(fingerprint);
        }
        let own = owned.by_key.len();
        // An owner may have as many as are free.
        if own >= self.max_keys - contents.keys {
            return Recall::Refused(share_is_used(own));
        }
        let entry = KnownKey {
            fingerprint,
            state: KeyState::Running(watch::channel(None).0),
        };
        owned.by_key.insert(key, entry);
        contents.keys += 1;
        Recall::New(LocalClaim {
            keys: Arc::clone(self),
            owner: call.key_owner.clone(),
            key,
            has_started: false,
            is_settled: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalClaim {
    /// The call may have run from now on.
    pub(super) fn begin(&mut self) {
        self.has_started = true;
    }

    /// Gives the outcome to all who wait, and remembers it unless the function provably did not run.
    pub(super) fn settle(mut self, outcome: &Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: &Outcome) {
        // A claim that was settled is dropped too, when another call may have the key already.
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let ran = !matches!(outcome, Err(problem) if problem.executed == Executed::No);
        // Its bytes count in the bounds of what is remembered, not in the memory budget.
        let mut outcome = outcome.clone();
        Returned::hold(&mut outcome, None);
        let outcome = Arc::new(outcome);
        let mut contents = self.keys.lock();
        let state = ran.then(|| KeyState::Ended(Arc::clone(&outcome)));
        let size = size(&outcome);
        let was = contents.end(&self.owner, self.key, state, size);
        contents.drop_results();
        // Whoever waits may run at once, and must find this unlocked.
        drop(contents);
        if let Some(KeyState::Running(waiting)) = was {
            waiting.send_replace(Some(outcome));
        }
    }
}

impl Drop for LocalClaim {
    /// A call whose task ended without an outcome may have run, and its outcome is not known. One that was given up before it
    /// started did not: who waits for it may run it.
    fn drop(&mut self) {
        self.end(&Err(match self.has_started {
            true => without_outcome(),
            false => given_up(),
        }));
    }
}

impl Contents {
    /// Forgets what ended longer ago than [`LIFE`].
    fn forget_old(&mut self, now: Instant) {
        self.owners.retain(|_, owned| {
            let before = (owned.by_key.len(), owned.bytes);
            while let Some((ended, key)) = owned.ended.front()
                && now.duration_since(*ended) >= LIFE
            {
                let key = *key;
                owned.ended.pop_front();
                owned.remove(key);
            }
            self.keys -= before.0 - owned.by_key.len();
            self.bytes -= before.1 - owned.bytes;
            owned.shrink();
            !owned.by_key.is_empty()
        });
    }

    /// Replaces the state of a running call by `state`, or forgets the key where that is `None`. Returns the state before.
    fn end(
        &mut self,
        owner: &Option<KeyOwner>,
        key: Fingerprint,
        state: Option<KeyState>,
        size: usize,
    ) -> Option<KeyState> {
        let owned = self.owners.get_mut(owner)?;
        let Some(state) = state else {
            let entry = owned.by_key.remove(&key)?;
            self.keys -= 1;
            return Some(entry.state);
        };
        let entry = owned.by_key.get_mut(&key)?;
        let was = std::mem::replace(&mut entry.state, state);
        owned.ended.push_back((Instant::now(), key));
        if size > 0 {
            owned.results.insert((size, key));
            owned.bytes += size;
            self.bytes += size;
        }
        Some(was)
    }

    /// Drops results until [`MAX_RESULTS`] are left: always the largest of the owner that has the most bytes.
    fn drop_results(&mut self) {
        while self.bytes > MAX_RESULTS {
            let Some(owned) = self.owners.values_mut().max_by_key(|owned| owned.bytes) else {
                return;
            };
            let Some((size, key)) = owned.results.pop_last() else {
                return;
            };
            owned.bytes -= size;
            self.bytes -= size;
            if let Some(entry) = owned.by_key.get_mut(&key) {
                entry.state = KeyState::Dropped;
            }
        }
    }
}

impl Owned {
    fn remove(&mut self, key: Fingerprint) {
        if let Some(entry) = self.by_key.remove(&key)
            && let KeyState::Ended(outcome) = entry.state
        {
            let size = size(&outcome);
            if self.results.remove(&(size, key)) {
                self.bytes -= size;
            }
        }
    }

    /// Frees the memory of keys that were removed.
    fn shrink(&mut self) {
        if self.by_key.capacity() > 1024 && self.by_key.len() < self.by_key.capacity() / 4 {
            self.by_key.shrink_to_fit();
            self.ended.shrink_to_fit();
        }
    }
}

impl KnownKey {
    fn recall(&self, fingerprint: Fingerprint) -> Recall {
        if self.fingerprint != fingerprint {
            return Recall::Refused(mismatch());
        }
        match &self.state {
            KeyState::Running(waiting) if waiting.receiver_count() >= MAX_WAITERS => {
                let detail = format!(
                    "the call with this key runs, and {MAX_WAITERS} repeats wait for it, which is the limit"
                );
                Recall::Refused(Problem::new(Code::Overloaded, detail).executed(Executed::Maybe))
            }
            KeyState::Running(waiting) => Recall::Running(waiting.subscribe()),
            KeyState::Ended(outcome) => Recall::Ended(Arc::clone(outcome)),
            KeyState::Dropped => Recall::Refused(not_kept()),
        }
    }
}

/// The outcome of a call that runs now, for a repeat of it.
async fn awaited(mut outcome: Awaited) -> Outcome {
    match outcome.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.as_ref().clone(),
        Ok(None) | Err(_) => Err(without_outcome()),
    }
}

fn without_outcome() -> Problem {
    Problem::new(
        Code::Internal,
        "the call with this key ended without an outcome",
    )
}

fn given_up() -> Problem {
    let detail = "the call with this key was given up before it started";
    Problem::new(Code::DeadlineExceeded, detail)
}

fn share_is_used(keys: usize) -> Problem {
    let detail = format!(
        "this client has {keys} idempotency keys of the last ten minutes here, which is the limit; none is forgotten early"
    );
    Problem::new(Code::Overloaded, detail)
}

/// The bytes that an outcome takes; 0 for a problem without data, which is never dropped.
fn size(outcome: &Outcome) -> usize {
    match outcome {
        Err(problem) if problem.error.is_none() => 0,
        _ => OVERHEAD + Returned::size(outcome),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::value::RawValue;
    use tokio::time;

    use super::*;
    use crate::config::Config;

    fn call(owner: &str) -> Call {
        let timeouts = Config::default().timeouts;
        let call = Call::from_json(br#"{"module":"M","function":"f"}"#, timeouts).unwrap();
        Call {
            key_owner: Some(owner.parse().unwrap()),
            ..call
        }
    }

    fn recall(keys: &Arc<LocalKeys>, owner: &str, key: u32) -> Recall {
        keys.recall(&key.to_string().parse().unwrap(), &call(owner))
    }

    /// Runs the call, which must be new.
    fn run(keys: &Arc<LocalKeys>, owner: &str, key: u32) {
        let Recall::New(claim) = recall(keys, owner, key) else {
            panic!("{key} of {owner} is not new");
        };
        claim.settle(&Ok(Returned::fresh(RawValue::NULL.to_owned())));
    }

    /// The code of a refusal; `kept` for an outcome that is there, `new` for a call that would run.
    fn known(keys: &Arc<LocalKeys>, owner: &str, key: u32) -> String {
        match recall(keys, owner, key) {
            Recall::New(claim) => {
                claim.settle(&Err(Problem::new(Code::Overloaded, "not run")));
                "new".to_owned()
            }
            Recall::Running(_) => "runs".to_owned(),
            Recall::Ended(_) => "kept".to_owned(),
            Recall::Refused(problem) => problem.code.to_string(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_may_have_as_many_keys_as_are_free_and_none_is_forgotten_early() {
        let keys = Arc::new(LocalKeys {
            max_keys: 8,
            contents: Mutex::default(),
        });
        (0..4).for_each(|key| run(&keys, "a", key));
        time::advance(LIFE - Duration::from_secs(1)).await;
        assert_eq!(known(&keys, "a", 4), "overloaded");
        (0..2).for_each(|key| run(&keys, "b", key));
        assert_eq!(known(&keys, "b", 2), "overloaded");
        run(&keys, "c", 0);
        assert_eq!(known(&keys, "c", 1), "overloaded");
        assert!((0..4).all(|key| known(&keys, "a", key) == "kept"));
        // What ended ten minutes ago is forgotten, and its room is free again.
        time::advance(Duration::from_secs(1)).await;
        assert!((0..4).all(|key| known(&keys, "a", key) == "new"));
        assert!((0..2).all(|key| known(&keys, "b", key) == "kept"));
        time::advance(LIFE).await;
        assert_eq!(known(&keys, "b", 0), "new");
        let known = keys.lock();
        assert_eq!((known.keys, known.bytes), (0, 0));
    }

    #[test]
    fn one_client_alone_has_131072_keys_and_its_first_is_remembered() {
        let keys = Arc::new(LocalKeys::new());
        let share = u32::try_from(MAX_KEYS / 2).unwrap();
        (0..share).for_each(|key| run(&keys, "shop", key));
        for key in share..share + 10 {
            assert_eq!(known(&keys, "shop", key), "overloaded");
        }
        assert_eq!(
            (share, known(&keys, "shop", 0)),
            (131_072, "kept".to_owned())
        );
        run(&keys, "desk", 0);
    }

    #[test]
    fn a_claim_that_is_lost_is_not_run_again() {
        let keys = Arc::new(LocalKeys::new());
        let begun = |mut claim: LocalClaim| claim.begin();
        match recall(&keys, "a", 0) {
            Recall::New(claim) => begun(claim),
            other => panic!("{other:?}"),
        }
        match recall(&keys, "a", 0) {
            Recall::Ended(outcome) => {
                let problem = outcome.as_ref().as_ref().unwrap_err();
                assert_eq!(
                    (problem.code, problem.executed),
                    (Code::Internal, Executed::Maybe)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}
