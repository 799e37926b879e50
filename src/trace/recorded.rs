//! Traces where spans are recorded: the span of a call continues the trace in the request, and the peer's
//! continues that of the span.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TraceParent;
use crate::{name::FunctionName, problem::Problem, region::Region};

/// Whether spans are recorded; spares every call the look for a trace where they are not.
static ARE_RECORDED: AtomicBool = AtomicBool::new(false);

/// Lets calls continue the traces in their requests, and hand on their own.
///
/// For a program that embeds the crate and has a layer of `tracing-opentelemetry` in its own subscriber; `fly-rpc serve`
/// does it by itself where it exports traces.
pub fn continue_traces() {
    ARE_RECORDED.store(true, Ordering::Relaxed);
}

/// Whether spans are recorded.
pub(super) fn are_recorded() -> bool {
    ARE_RECORDED.load(Ordering::Relaxed)
}

/// Where the current span stands in its trace; `None` where spans are not recorded.
pub(crate) fn current() -> Option<TraceParent> {
    if !are_recorded() {
        return None;
    }
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| TraceParent {
        trace: u128::from_be_bytes(span.trace_id().to_bytes()),
        span: u64::from_be_bytes(span.span_id().to_bytes()),
        flags: span.trace_flags().to_u8(),
    })
}

/// Makes `span`, which must not be entered yet, a server's span, and a part of the trace of `parent`.
pub(super) fn join(span: &Span, parent: Option<TraceParent>) {
    span.record("otel.kind", "server");
    if let Some(TraceParent {
        trace,
        span: caller,
        flags,
    }) = parent
    {
        let caller = SpanContext::new(
            TraceId::from_bytes(trace.to_be_bytes()),
            SpanId::from_bytes(caller.to_be_bytes()),
            TraceFlags::new(flags),
            true,
            TraceState::default(),
        );
        // It fails for a span that no layer records, which has no trace to be part of.
        let _ = span.set_parent(Context::new().with_remote_span_context(caller));
    }
}

/// Notes on `span` what was called and what came of it.
pub(crate) fn ended(
    span: &Span,
    function: &FunctionName,
    region: Option<&Region>,
    problem: Option<&Problem>,
) {
    if !are_recorded() {
        return;
    }
    span.set_attribute("rpc.method", function.to_string());
    if let Some(region) = region {
        span.set_attribute("fly_rpc.target_region", region.to_string());
    }
    if let Some(problem) = problem {
        span.set_attribute("error.type", problem.code.as_str());
        span.set_attribute("fly_rpc.executed", problem.executed.as_str());
        span.set_status(Status::error(problem.detail.clone()));
    }
}
