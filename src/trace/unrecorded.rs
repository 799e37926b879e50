//! Traces in a build without the feature `otlp`: the `traceparent` of a request is handed on, and nothing is recorded here.

use tracing::Span;

use super::TraceParent;
use crate::{name::FunctionName, problem::Problem, region::Region};

/// Does nothing in a build without the feature `otlp`.
pub fn continue_traces() {}

/// Whether spans are recorded: they are not.
pub(super) fn are_recorded() -> bool {
    false
}

/// Where the current span stands in its trace: nowhere.
pub(crate) fn current() -> Option<TraceParent> {
    None
}

/// Does nothing.
pub(super) fn join(_: &Span, _: Option<TraceParent>) {}

/// Does nothing.
pub(crate) fn ended(_: &Span, _: &FunctionName, _: Option<&Region>, _: Option<&Problem>) {}
