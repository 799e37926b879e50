//! Where a call stands in a trace (W3C Trace Context): read from a request, handed on to the peer, and joined with the
//! spans of this process where those are exported.

#[cfg_attr(not(feature = "otlp"), path = "unrecorded.rs")]
mod recorded;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

pub use self::recorded::continue_traces;
use self::recorded::{are_recorded, join};
pub(crate) use self::recorded::{current, ended};
use tracing::{Span, error_span, field::Empty};

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

/// The span around a call from its arrival to its answer, a part of the trace of `parent`, where spans are recorded. Where
/// they are not there is none: one costs 1 to 2 µs, and what this crate logs of a call names the request itself.
pub(crate) fn call_span(request_id: &RequestId, parent: Option<TraceParent>) -> Span {
    if !are_recorded() {
        return Span::none();
    }
    let span = error_span!("call", request_id = request_id.as_str(), otel.kind = Empty);
    join(&span, parent);
    span
}

/// The same around a call that a peer forwarded.
pub(crate) fn exec_span(request_id: &RequestId, parent: Option<TraceParent>) -> Span {
    if !are_recorded() {
        return Span::none();
    }
    let span = error_span!("exec", request_id = request_id.as_str(), otel.kind = Empty);
    join(&span, parent);
    span
}

/// The span around a function that runs here: that of its call where spans are recorded, else one of its own, so that what the
/// function logs has the request's id; none for one that `logs` nothing.
pub(crate) fn function_span(request_id: &RequestId, logs: bool) -> Span {
    match (are_recorded(), logs) {
        (true, _) => Span::current(),
        // There whatever the level of the filter.
        (false, true) => error_span!("function", request_id = request_id.as_str()),
        (false, false) => Span::none(),
    }
}

impl FromStr for TraceParent {
    type Err = InvalidName;

    /// Later versions may have more behind the flags, which is ignored, as the specification asks.
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

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceParent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: &str = Deserialize::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
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
