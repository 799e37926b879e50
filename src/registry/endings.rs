//! How a call on this instance can end besides a result within its limit: the problems, and what they tell.

use serde_json::value::RawValue;

use crate::{
    name::FunctionName,
    problem::{Code, Executed, FunctionError, Problem},
    reply::{Outcome, Returned},
};

/// A result within its limit, in bytes.
pub(super) fn bounded(result: Box<RawValue>, limit: usize) -> Outcome {
    let size = result.get().len();
    if size <= limit {
        return Ok(Returned::fresh(result));
    }
    let message = format!("the result has {size} bytes, more than the {limit} of RPC_MAX_RESULT");
    Err(Problem::function_failed(FunctionError::new(
        "ResultTooLarge",
        message,
    )))
}

/// A function's own error within the limit that its result has; what its caller is not told goes to the log.
pub(super) fn failed(name: &FunctionName, mut error: FunctionError, limit: usize) -> Outcome {
    if let Some(cause) = error.take_cause() {
        tracing::error!(function = %name, cause, "function failed");
    }
    if error.is_refusal() {
        let detail = format!("{name}: {}", error.message);
        return Err(Problem::new(Code::Overloaded, detail));
    }
    Err(Problem::function_failed(cut(error, limit)))
}

fn cut(error: FunctionError, limit: usize) -> FunctionError {
    let data = error.data.as_ref().map_or(0, |data| data.get().len());
    if error.kind.len() + error.message.len() + data <= limit {
        return error;
    }
    let message =
        format!("the function's error is larger than the {limit} bytes of RPC_MAX_RESULT");
    FunctionError::new("ErrorTooLarge", message)
}

pub(super) fn never_started(name: &FunctionName) -> Problem {
    Problem::new(
        Code::DeadlineExceeded,
        format!("the deadline passed before {name} started"),
    )
}

pub(super) fn timed_out(name: &FunctionName) -> Problem {
    let detail = format!("{name} was still running at the deadline");
    Problem::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe)
}

pub(super) fn panicked(name: &FunctionName) -> Problem {
    Problem::new(
        Code::FunctionPanicked,
        format!("{name} panicked; the instance's log has the cause"),
    )
}

pub(super) fn stopped() -> Problem {
    Problem::new(Code::Internal, "the runtime stopped while the function ran")
}
