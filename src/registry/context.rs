//! What a function may know of the call that it runs, and may say besides its result.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::{self, Instant};

use crate::{call::Call, deadline::Deadline, name::ConsistencyToken, problem::FunctionError};

/// The call that a function runs, for [`Registry::function_with_context`](super::Registry::function_with_context).
///
/// A function that reads a replica waits until that has seen what the call names, and one that writes says what it wrote:
///
/// ```
/// use std::time::Duration;
///
/// use fly_rpc::{ConsistencyToken, FunctionError, Registry};
///
/// # async fn replayed(_: &ConsistencyToken) {}
/// # async fn notes() -> Vec<String> { Vec::new() }
/// # async fn insert(_: String) -> ConsistencyToken { "0/3000148".parse().unwrap() }
/// let registry = Registry::new()
///     .function_with_context("Notes", "list", |call, (): ()| async move {
///         if let Some(token) = call.after() {
///             call.wait_until(Duration::from_millis(300), replayed(token)).await?;
///         }
///         Ok(notes().await)
///     })
///     .function_with_context("Notes", "create", |call, (text,): (String,)| async move {
///         call.set_consistency(insert(text).await);
///         Ok(())
///     });
/// assert!(registry.has("Notes", "list"));
/// ```
#[derive(Clone, Debug)]
pub struct CallContext {
    after: Option<ConsistencyToken>,
    deadline: Deadline,
    said: Arc<Said>,
}

#[derive(Debug, Default)]
struct Said {
    consistency: OnceLock<ConsistencyToken>,
    waited: OnceLock<Duration>,
}

impl CallContext {
    pub(super) fn new(call: &Call, deadline: Deadline) -> Self {
        Self {
            after: call.after.clone(),
            deadline,
            said: Arc::default(),
        }
    }

    /// What the data that the function reads must have seen, where the caller named that.
    pub fn after(&self) -> Option<&ConsistencyToken> {
        self.after.as_ref()
    }

    /// The time until the call's deadline, when the function is dropped.
    pub fn remaining(&self) -> Duration {
        self.deadline.remaining()
    }

    /// Says that a later call with `token` reads nothing older than this one wrote or read. The first token
    /// that a function gives counts.
    pub fn set_consistency(&self, token: ConsistencyToken) {
        let _ = self.said.consistency.set(token);
    }

    /// Waits until the data has seen the token, as the end of `caught_up` shows: for `at_most`, and for no more than half
    /// of the time that the call has left, so that another instance can still be asked.
    ///
    /// # Errors
    /// [`FunctionError::not_run`] where it has not: the function returns it before it did anything.
    pub async fn wait_until(
        &self,
        at_most: Duration,
        caught_up: impl Future<Output = ()> + Send,
    ) -> Result<(), FunctionError> {
        let (started, at_most) = (Instant::now(), at_most.min(self.remaining() / 2));
        let waited = time::timeout(at_most, caught_up).await;
        let _ = self.said.waited.set(started.elapsed());
        waited.map_err(|_| {
            let waited = at_most.as_millis();
            FunctionError::not_run(format!("the data here is behind, after {waited} ms"))
        })
    }

    pub(super) fn consistency(&self) -> Option<ConsistencyToken> {
        self.said.consistency.get().cloned()
    }

    /// How long the function waited, where it did.
    pub(super) fn waited(&self) -> Option<Duration> {
        self.said.waited.get().copied()
    }
}
