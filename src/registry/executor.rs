//! Runs functions on this instance: under the limit of calls in flight, within the deadline, each in a task of its own
//! so that a client that goes away, or a panic, harms nothing else.

use std::sync::Arc;

use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::{Catalogue, Registry};
use crate::{
    call::Call,
    config::Limits,
    deadline::Deadline,
    lifecycle::Lifecycle,
    problem::{Code, Executed, FunctionError, Problem},
};

/// Runs the functions of a registry.
#[derive(Debug)]
pub(crate) struct Executor {
    registry: Registry,
    catalogue: Catalogue,
    slots: Arc<Semaphore>,
    limits: Limits,
    lifecycle: Arc<Lifecycle>,
}

impl Executor {
    /// An executor of `registry`'s functions under `limits`.
    pub(crate) fn new(registry: Registry, limits: Limits, lifecycle: Arc<Lifecycle>) -> Self {
        let catalogue = registry.catalogue();
        Self {
            registry,
            catalogue,
            slots: Arc::new(Semaphore::new(limits.max_in_flight)),
            limits,
            lifecycle,
        }
    }

    /// The names of the functions.
    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Runs `call` and waits for its result until `deadline`, when the function is dropped.
    ///
    /// # Errors
    /// Before it ran: [`Code::Draining`], [`Code::Overloaded`], [`Code::DeadlineExceeded`], [`Code::FunctionUnknown`],
    /// [`Code::InvalidArguments`]. After: [`Code::FunctionFailed`], [`Code::FunctionPanicked`], and
    /// [`Code::DeadlineExceeded`] with `executed: maybe`.
    ///
    /// # Cancel safety
    /// Dropping this future does not stop a function that has started; it runs on to its deadline.
    pub(crate) async fn run(
        &self,
        call: &Call,
        deadline: Deadline,
    ) -> Result<Box<RawValue>, Problem> {
        let in_flight = self.lifecycle.admit()?;
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| self.overloaded())?;
        if deadline.has_passed() {
            return Err(Problem::new(
                Code::DeadlineExceeded,
                "the deadline passed before the function started",
            ));
        }
        let run = self.registry.prepare(call)?;
        let task = tokio::spawn(async move {
            let outcome = deadline.bound(run).await;
            drop((slot, in_flight));
            outcome
        });
        match task.await {
            Ok(Some(Ok(result))) => self.bounded(result),
            Ok(Some(Err(error))) => Err(Problem::function_failed(error)),
            Ok(None) => Err(timed_out(call)),
            Err(error) if error.is_panic() => Err(panicked(call)),
            Err(_) => Err(Problem::new(
                Code::Internal,
                "the runtime stopped while the function ran",
            )),
        }
    }

    fn bounded(&self, result: Box<RawValue>) -> Result<Box<RawValue>, Problem> {
        let (size, limit) = (result.get().len(), self.limits.max_result);
        if size <= limit {
            return Ok(result);
        }
        let message =
            format!("the result has {size} bytes, more than the {limit} of RPC_MAX_RESULT");
        Err(Problem::function_failed(FunctionError::new(
            "ResultTooLarge",
            message,
        )))
    }

    fn overloaded(&self) -> Problem {
        let limit = self.limits.max_in_flight;
        Problem::new(
            Code::Overloaded,
            format!("this instance runs {limit} calls, as many as RPC_MAX_IN_FLIGHT allows"),
        )
    }
}

fn timed_out(call: &Call) -> Problem {
    let detail = format!(
        "{} was still running at the deadline and was stopped",
        call.name
    );
    Problem::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe)
}

fn panicked(call: &Call) -> Problem {
    Problem::new(
        Code::FunctionPanicked,
        format!("{} panicked; the instance's log has the cause", call.name),
    )
}
