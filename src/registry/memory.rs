//! The outcomes of calls with an idempotency key: the same key and call get the same outcome without a second run, and
//! wait for it while it runs. Bounded by the bytes that it keeps and by ten minutes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::{
    call::Call,
    name::IdempotencyKey,
    problem::{Code, Executed, Problem},
};

/// How long an outcome is remembered.
const LIFE: Duration = Duration::from_secs(600);
/// The most bytes of outcomes that are remembered.
const CAPACITY: u64 = 64 << 20;
/// What an outcome weighs besides its text.
const OVERHEAD: usize = 512;

/// A result, or why there is none.
pub(crate) type Outcome = Result<Box<RawValue>, Problem>;

/// The outcomes by key.
///
/// Running calls stand apart from the cache, because a cache may refuse or evict an entry and then a second run would
/// start beside the first.
#[derive(Debug)]
pub(super) struct Memory {
    running: Mutex<HashMap<IdempotencyKey, Running>>,
    finished: Cache<IdempotencyKey, Finished>,
}

#[derive(Clone, Debug)]
struct Running {
    fingerprint: Fingerprint,
    outcome: watch::Receiver<Option<Arc<Outcome>>>,
}

#[derive(Clone, Debug)]
struct Finished {
    fingerprint: Fingerprint,
    outcome: Arc<Outcome>,
}

/// A call's function and arguments, hashed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Fingerprint([u8; 32]);

/// What the memory knows of a call.
#[derive(Debug)]
pub(super) enum Recall {
    /// Nothing: whoever holds the claim runs it.
    New(Claim),
    /// It runs now.
    Running(watch::Receiver<Option<Arc<Outcome>>>),
    /// It ran.
    Finished(Arc<Outcome>),
    /// The key belongs to another call.
    Mismatch,
}

/// The right, and the duty, to run a call; its outcome is what all others wait for.
#[derive(Debug)]
pub(super) struct Claim {
    memory: Arc<Memory>,
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    outcome: watch::Sender<Option<Arc<Outcome>>>,
}

impl Memory {
    /// An empty memory.
    pub(super) fn new() -> Self {
        let weigh = |_: &IdempotencyKey, finished: &Finished| {
            u32::try_from(OVERHEAD + size(&finished.outcome)).unwrap_or(u32::MAX)
        };
        // Least recently used, because the default policy may refuse a new entry in favour of an old one.
        let finished = Cache::builder()
            .weigher(weigh)
            .max_capacity(CAPACITY)
            .time_to_live(LIFE)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self {
            running: Mutex::default(),
            finished,
        }
    }

    /// What is known of `call` under `key`.
    pub(super) fn recall(self: &Arc<Self>, key: &IdempotencyKey, call: &Call) -> Recall {
        let fingerprint = Fingerprint::of(call);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = running.get(key) {
            return match known.fingerprint == fingerprint {
                true => Recall::Running(known.outcome.clone()),
                false => Recall::Mismatch,
            };
        }
        if let Some(known) = self.finished.get(key) {
            return match known.fingerprint == fingerprint {
                true => Recall::Finished(known.outcome),
                false => Recall::Mismatch,
            };
        }
        let (sender, outcome) = watch::channel(None);
        running.insert(
            key.clone(),
            Running {
                fingerprint,
                outcome,
            },
        );
        Recall::New(Claim {
            memory: Arc::clone(self),
            key: key.clone(),
            fingerprint,
            outcome: sender,
        })
    }
}

impl Claim {
    /// Tells the outcome to all who wait, and remembers it unless the function provably did not run.
    pub(super) fn settle(self, outcome: &Outcome) {
        let outcome = Arc::new(outcome.clone());
        let ran = !matches!(outcome.as_ref(), Err(problem) if problem.executed == Executed::No);
        if ran {
            let finished = Finished {
                fingerprint: self.fingerprint,
                outcome: Arc::clone(&outcome),
            };
            self.memory.finished.insert(self.key.clone(), finished);
        }
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Claim {
    /// After [`Claim::settle`] the outcome is in the cache already, so that no gap is left between the two.
    fn drop(&mut self) {
        self.memory
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

/// The outcome of a call that runs elsewhere in this process.
pub(super) async fn awaited(mut outcome: watch::Receiver<Option<Arc<Outcome>>>) -> Outcome {
    match outcome.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.as_ref().clone(),
        Ok(None) | Err(_) => Err(Problem::new(
            Code::Internal,
            "the call with this key ended without an outcome",
        )),
    }
}

impl Fingerprint {
    /// Names hold no NUL, so that no two calls give the same text.
    fn of(call: &Call) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(format!("{}\0{}\0", call.name.module, call.name.function));
        hasher.update(call.args.raw().get());
        Self(hasher.finalize().into())
    }
}

fn size(outcome: &Outcome) -> usize {
    match outcome {
        Ok(result) => result.get().len(),
        Err(problem) => problem.error.as_ref().map_or(0, |error| {
            error.message.len() + error.data.as_ref().map_or(0, |data| data.get().len())
        }),
    }
}
