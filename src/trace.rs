//! Where a call stands in a trace (W3C Trace Context): read from a request, handed on to the peer, and joined with the
//! spans of this process where those are exported.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
};

use tracing::{Span, error_span};

pub(crate) use self::recorded::{current, ended};
use crate::name::{InvalidName, RequestId};

/// The header of a request, and the member of a call between instances.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// What called this: a span of a trace (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

/// Whether spans are recorded, which they never are in a build without the feature `otlp`. Where they are not, no call
/// looks for its trace.
static ARE_RECORDED: AtomicBool = AtomicBool::new(false);

/// Lets calls continue the traces in their requests, and hand on their own; does nothing in a build without the feature
/// `otlp`.
///
/// For a program that embeds the crate and has a layer of `tracing-opentelemetry` in its own subscriber; `fly-rpc serve`
/// does it by itself where it exports traces.
pub fn continue_traces() {
    ARE_RECORDED.store(cfg!(feature = "otlp"), Ordering::Relaxed);
}

fn are_recorded() -> bool {
    ARE_RECORDED.load(Ordering::Relaxed)
}

/// The span around a call from its arrival to its answer, a part of the trace of `parent`. There is none where spans are
/// not recorded: it would cost 1 to 2 µs, and the lines that this crate logs of a call name the request themselves.
pub(crate) fn call_span(request_id: &RequestId, parent: Option<TraceParent>) -> Span {
    let id = request_id.as_str();
    part_of(parent, || {
        error_span!("call", request_id = id, otel.kind = "server")
    })
}

/// The span around a call that a peer forwarded.
pub(crate) fn exec_span(request_id: &RequestId, parent: Option<TraceParent>) -> Span {
    let id = request_id.as_str();
    part_of(parent, || {
        error_span!("exec", request_id = id, otel.kind = "server")
    })
}

/// A span as a part of the trace of `parent`; none where spans are not recorded.
fn part_of(parent: Option<TraceParent>, span: impl FnOnce() -> Span) -> Span {
    match are_recorded() {
        true => recorded::join(span(), parent),
        false => Span::none(),
    }
}

/// The span around a function that runs here: that of its call where spans are recorded, else one of its own, so that what the
/// function logs has the request's id; none for one that `logs` nothing.
pub(crate) fn function_span(request_id: &RequestId, logs: bool) -> Span {
    match (are_recorded(), logs) {
        (true, _) => Span::current(),
        // An error, so that the span is there at every level of the filter.
        (false, true) => error_span!("function", request_id = request_id.as_str()),
        (false, false) => Span::none(),
    }
}

impl FromStr for TraceParent {
    type Err = InvalidName;

    /// A later version may have more behind the flags, which is ignored, as the specification asks.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        const RULE: InvalidName = InvalidName::new(
            "traceparent",
            "two, thirty-two, sixteen and two lowercase hexadecimal digits, joined by '-'",
        );
        let mut parts = text.split('-');
        let mut next = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            part.bytes().all(is_digit).then_some(part)
        };
        let fields = (|| Some((next(2)?, next(32)?, next(16)?, next(2)?)))();
        let (version, trace, span, flags) = fields.ok_or(RULE)?;
        let is_first_version = version == "00";
        if version == "ff" || (is_first_version && parts.next().is_some()) {
            return Err(RULE);
        }
        let found = Self {
            trace: u128::from_str_radix(trace, 16).map_err(|_| RULE)?,
            span: u64::from_str_radix(span, 16).map_err(|_| RULE)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| RULE)?,
        };
        if found.trace == 0 || found.span == 0 {
            return Err(RULE);
        }
        Ok(found)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

/// Spans as those of OpenTelemetry.
#[cfg(feature = "otlp")]
mod recorded {
    use opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use super::{TraceParent, are_recorded};
    use crate::{name::FunctionName, problem::Problem, region::Region};

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

    /// `span`, which must not be entered yet, as a part of the trace of `parent`.
    pub(super) fn join(span: Span, parent: Option<TraceParent>) -> Span {
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
        span
    }

    /// Notes on `span` which function was called, and how the call ended.
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
}

/// Without the feature `otlp` no span is recorded: the `traceparent` of a request is handed on as it came.
#[cfg(not(feature = "otlp"))]
mod recorded {
    use tracing::Span;

    use super::TraceParent;
    use crate::{name::FunctionName, problem::Problem, region::Region};

    pub(crate) fn current() -> Option<TraceParent> {
        None
    }

    pub(super) fn join(span: Span, _: Option<TraceParent>) -> Span {
        span
    }

    pub(crate) fn ended(_: &Span, _: &FunctionName, _: Option<&Region>, _: Option<&Problem>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_specification_allows_is_read_and_nothing_else() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parse = |text: &str| text.parse::<TraceParent>();
        assert_eq!(parse(GOOD).unwrap().to_string(), GOOD);
        let later = GOOD.replacen("00", "cc", 1) + "-what-the-future-holds";
        assert_eq!(parse(&later).unwrap().to_string(), GOOD);
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &format!("{GOOD}-more"),
            &format!("{GOOD} "),
            &GOOD[..54],
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("4bf9", "+bf9"),
        ] {
            parse(bad).unwrap_err();
        }
    }
}
