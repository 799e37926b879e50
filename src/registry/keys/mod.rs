//! Where the outcomes of calls with an idempotency key are remembered: in this process, or in a store that outlives it and
//! that all instances share. Owns the choice, and what is the same in both.

mod fingerprint;
mod local;
#[cfg(feature = "redis")]
mod store;

use std::{sync::Arc, time::Duration};

use self::local::LocalKeys;
#[cfg(feature = "redis")]
pub(crate) use self::store::Store;
use crate::{
    call::Call,
    deadline::Deadline,
    lifecycle::InFlight,
    name::IdempotencyKey,
    problem::{Code, Problem},
    reply::Outcome,
};

/// How long a key is remembered after its call ended.
const LIFE: Duration = Duration::from_secs(600);

/// What remembers keys.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    Here(Arc<LocalKeys>),
    #[cfg(feature = "redis")]
    Stored(Arc<Store>),
}

/// What is known of a call with a key.
pub(super) enum Known {
    /// Nothing: whoever holds the claim runs it.
    Nothing(Claim),
    /// The outcome of an earlier run, or why it is not to be run now.
    Outcome(Outcome),
}

/// The right, and the duty, to run a call; its outcome is what all others wait for.
pub(super) enum Claim {
    Here(local::LocalClaim),
    #[cfg(feature = "redis")]
    Stored(store::StoredClaim),
}

impl Keys {
    pub(crate) fn here() -> Self {
        Self::Here(Arc::new(LocalKeys::new()))
    }

    /// Whether any instance knows what another has run.
    pub(crate) fn are_shared(&self) -> bool {
        !matches!(self, Self::Here(_))
    }

    /// How many keys this process remembers; `None` with a store.
    pub(crate) fn count(&self) -> Option<usize> {
        match self {
            Self::Here(keys) => Some(keys.count()),
            #[cfg(feature = "redis")]
            Self::Stored(_) => None,
        }
    }

    /// Whether the store answers; `None` without one.
    pub(crate) fn store_is_up(&self) -> Option<bool> {
        match self {
            Self::Here(_) => None,
            #[cfg(feature = "redis")]
            Self::Stored(store) => Some(store.is_up()),
        }
    }

    /// Makes the changes in the store that are pending, once the tasks that run calls have ended.
    pub(crate) async fn flush(&self) {
        match self {
            Self::Here(_) => {}
            #[cfg(feature = "redis")]
            Self::Stored(store) => store.flush().await,
        }
    }

    /// What is known of `call` under `key`; waits until `deadline` for one that runs.
    pub(super) async fn claim(
        &self,
        key: &IdempotencyKey,
        call: &Call,
        deadline: Deadline,
    ) -> Known {
        match self {
            Self::Here(keys) => keys.claim(key, call, deadline).await,
            #[cfg(feature = "redis")]
            Self::Stored(store) => store.claim(key, call, deadline).await,
        }
    }
}

impl Claim {
    /// The call has started: from now on it may have run. One whose claim is dropped before that did not.
    pub(super) fn begin(&mut self) {
        match self {
            Self::Here(claim) => claim.begin(),
            #[cfg(feature = "redis")]
            Self::Stored(claim) => claim.begin(),
        }
    }

    /// Gives the outcome to all who wait, and remembers it unless the function provably did not run.
    ///
    /// # Cancel safety
    /// Once it was polled, dropping this future loses nothing: a task of its own tells the store, and the call is `in_flight`
    /// until it has.
    pub(super) async fn settle(self, outcome: &Outcome, in_flight: Option<InFlight>) {
        match self {
            Self::Here(claim) => {
                claim.settle(outcome);
                drop(in_flight);
            }
            #[cfg(feature = "redis")]
            Self::Stored(claim) => claim.settle(outcome, in_flight).await,
        }
    }
}

fn mismatch() -> Problem {
    let detail =
        "the idempotency key belongs to a call of another function or with other arguments";
    Problem::new(Code::IdempotencyMismatch, detail)
}

fn not_kept() -> Problem {
    let detail = "the call with this key ran, and its result was too large to be kept";
    Problem::new(Code::ResultNotKept, detail)
}
