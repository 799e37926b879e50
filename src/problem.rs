//! What goes wrong with a call, and whether its function ran: the only table of codes and statuses.
//! Knows nothing of HTTP beyond a status number; `reply.rs` writes a problem as a document.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    memory::{NoRoom, Reserved},
    name::{ConsistencyToken, FunctionName, InstanceId, InvalidName},
};

/// The longest `detail`, in bytes.
const MAX_DETAIL: usize = 256;

/// The longest cause in the log, in bytes.
const MAX_CAUSE: usize = 4 << 10;

/// Did the function run? Every problem answers this.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Executed {
    /// It provably did not: nothing was sent, or the peer refused before running it.
    No,
    /// The call may have left this instance and no complete answer came.
    Maybe,
    /// It ran.
    Yes,
}

impl Executed {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Maybe => "maybe",
            Self::Yes => "yes",
        }
    }
}

impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The table: variant, wire name, HTTP status, what `executed` may be (the first unless said otherwise), title.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident $wire:literal $status:literal $($executed:ident)|+ $title:literal;)*) => {
        /// What went wrong, as a word for programs.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $wire)] $code,)*
        }

        impl Code {
            /// Every code, in the order of the table in the documents.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $wire,)* }
            }

            /// The HTTP status that it travels with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$code => $status,)* }
            }

            /// One phrase for people, the same for every problem of this code.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$code => $title,)* }
            }

            /// When a problem has it.
            pub(crate) const fn meaning(self) -> &'static str {
                match self { $(Self::$code => concat!($($doc),+).trim_ascii(),)* }
            }

            /// What `executed` may be with it; the first is the one unless said otherwise.
            pub const fn executed(self) -> &'static [Executed] {
                match self { $(Self::$code => &[$(Executed::$executed),+],)* }
            }
        }
    };
}

codes! {
    /// Not one JSON value: empty, truncated, BOM, bad UTF-8, deeper than 64, trailing bytes.
    InvalidJson "invalid_json" 400 No "Body is not one JSON value";
    /// JSON of another shape: missing, unknown, duplicate or wrongly typed member, bad name, bad timeout.
    InvalidRequest "invalid_request" 400 No "Request does not have the right shape";
    /// The path's region breaks the rule for regions.
    InvalidRegion "invalid_region" 400 No "Region is not well-formed";
    /// No token, or a wrong one.
    Unauthenticated "unauthenticated" 401 No "Token is missing or wrong";
    /// The client may not do this, or the request came a way that it must not.
    Forbidden "forbidden" 403 No "Request is not allowed";
    /// A region that no instance was ever seen in.
    RegionUnknown "region_unknown" 404 No "No instance was ever seen in this region";
    /// The instance asked for is not in that region.
    InstanceUnknown "instance_unknown" 404 No "Instance is not in this region";
    /// No candidate has the function.
    FunctionUnknown "function_unknown" 404 No "No such function";
    /// No such route.
    NotFound "not_found" 404 No "No such route";
    /// The route exists, for other methods.
    MethodNotAllowed "method_not_allowed" 405 No "Method is not allowed on this route";
    /// Fly Proxy is asked to replay the request in another region; only who is not behind it sees this.
    Replay "replay" 409 No "Fly Proxy is asked to replay the request";
    /// The body is larger than `RPC_MAX_BODY`.
    BodyTooLarge "body_too_large" 413 No "Body is too large";
    /// The path with its query is longer than 8192 bytes.
    TargetTooLong "target_too_long" 414 No "Path and query are too long";
    /// The content type is not JSON, or the body is encoded.
    UnsupportedMediaType "unsupported_media_type" 415 No "Content type is not supported";
    /// The request has more than 100 headers, or more than 64 KiB of them.
    HeadersTooLarge "headers_too_large" 431 No "Headers are too large";
    /// Between instances: the peer is not in the region, or not the instance, that the caller expects.
    WrongRegion "wrong_region" 421 No "Instance is not where the caller expects it";
    /// The function's own arguments do not fit.
    InvalidArguments "invalid_arguments" 422 No "Arguments do not fit the function";
    /// The same `Idempotency-Key` with another call.
    IdempotencyMismatch "idempotency_mismatch" 422 No "Idempotency key belongs to another call";
    /// The function ran and returned an error.
    FunctionFailed "function_failed" 424 Yes "Function returned an error";
    /// The call with this `Idempotency-Key` ran, and its result was too large to be kept for a repeat.
    ResultNotKept "result_not_kept" 410 Yes "Call ran, and its result is not kept";
    /// The function panicked; the process lives on.
    FunctionPanicked "function_panicked" 500 Yes "Function panicked";
    /// A bug of ours.
    Internal "internal" 500 Maybe "Internal error";
    /// Every attempt failed to connect.
    PeerUnreachable "peer_unreachable" 502 No "No attempt could connect";
    /// Sent, then reset, cut short, or answered with something else than our contract.
    PeerLost "peer_lost" 502 Maybe "Connection to the instance was lost";
    /// The app was asked for the function and its connection was lost, or it answered with something else than its contract.
    FunctionLost "function_lost" 502 Maybe "App gave no answer of its contract";
    /// The function's app does not run, or does not answer.
    FunctionUnavailable "function_unavailable" 503 No "App with the function is not available";
    /// The region is known, and no instance of it can be reached now.
    RegionUnavailable "region_unavailable" 503 No "Region has no reachable instance";
    /// The first discovery round did not finish within the deadline, or DNS has not answered so far.
    DiscoveryPending "discovery_pending" 503 No "Discovery has not found any region yet";
    /// The instance is stopping and takes no new calls.
    Draining "draining" 503 No "Instance is draining";
    /// The instance runs as many calls as it may.
    Overloaded "overloaded" 503 No|Maybe "Instance is overloaded";
    /// The deadline passed.
    DeadlineExceeded "deadline_exceeded" 504 No|Maybe "Deadline passed";
    /// A call arrived that was already forwarded.
    LoopDetected "loop_detected" 508 No "Call was forwarded before";
}

impl Code {
    /// The code of this word, if this release knows it.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == word)
    }

    /// The code that leads to the same next step as one that this release does not know.
    pub(crate) fn nearest(status: u16, executed: Executed) -> Self {
        match executed {
            Executed::No if status < 500 => Self::InvalidArguments,
            Executed::No => Self::Overloaded,
            Executed::Maybe => Self::PeerLost,
            Executed::Yes => Self::FunctionFailed,
        }
    }

    /// Seconds to wait before asking again, for refusals that pass by themselves.
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::Draining
            | Self::Overloaded
            | Self::DiscoveryPending
            | Self::FunctionUnavailable
            | Self::RegionUnavailable => Some(1),
            _ => None,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error that a function returned, as its caller reads it.
///
/// Any [`std::error::Error`] turns into one through `?`, and its caller reads nothing of it but the kind
/// [`FunctionError::INTERNAL`]: such a text may name a file, a host or a query. It goes to the log of the instance that
/// ran the function, once and with its causes, under the id of the request. What a caller may read is said on purpose,
/// by [`FunctionError::new`] or [`FunctionError::public`].
///
/// ```
/// use fly_rpc::FunctionError;
///
/// fn note(number: &str) -> Result<String, FunctionError> {
///     // The caller reads "ParseIntError: invalid digit found in string".
///     let number: u32 = number.parse().map_err(FunctionError::public)?;
///     // The caller reads "InternalError", and the log has why the file cannot be read.
///     let text = std::fs::read_to_string(format!("/var/notes/{number}"))?;
///     if text.is_empty() {
///         return Err(FunctionError::new("EmptyNote", "there is nothing in it").with_data(&number));
///     }
///     Ok(text)
/// }
/// assert_eq!(note("one").unwrap_err().kind, "ParseIntError");
/// assert_eq!(note("1").unwrap_err().kind, FunctionError::INTERNAL);
/// // A name that says little alone has its crate before it.
/// let error = serde_json::from_str::<u8>("").unwrap_err();
/// assert_eq!(FunctionError::public(error).kind, "serde_json::Error");
/// ```
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[schema(
    description = "An error that a function returned, as the function gave it; null in every other problem."
)]
pub struct FunctionError {
    /// What kind of error, a word for programs.
    #[schema(example = "RuntimeError")]
    pub kind: String,
    /// What happened, for people.
    #[schema(example = "no such account")]
    pub message: String,
    /// Anything else the function says about it, as JSON.
    #[schema(value_type = Value, required)]
    pub data: Option<Box<RawValue>>,
    /// What is for the log only.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) cause: Option<String>,
    /// Whether it says that the function did not run.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) is_refusal: bool,
    /// What it takes of the memory budget, unless it is small.
    #[serde(skip)]
    #[schema(ignore)]
    pub(crate) reserved: Option<Arc<Reserved>>,
}

impl FunctionError {
    /// The kind of an error whose cause is for the log only.
    pub const INTERNAL: &str = "InternalError";

    /// An error of `kind` with a message for people.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            message: message.into(),
            data: None,
            cause: None,
            is_refusal: false,
            reserved: None,
        }
    }

    /// Says that the function did not run, because its data has not seen the token that the call names, or for another
    /// reason that another instance may not have: the caller gets [`Code::Overloaded`] with `executed: no`, and the
    /// next instance, or the next region of the call's list, is asked. Only for a function that changed nothing.
    pub fn not_run(message: impl Into<String>) -> Self {
        Self {
            is_refusal: true,
            ..Self::new("NotRun", message)
        }
    }

    /// `error` with its text for the caller. Its kind is the name of its type; a type that is called `Error` has the name
    /// of its crate before it, as in `rusqlite::Error`.
    pub fn public<E: std::error::Error>(error: E) -> Self {
        let path = std::any::type_name::<E>();
        let path = path.split('<').next().unwrap_or(path);
        let kind = match path.rsplit("::").next().unwrap_or(path) {
            "Error" => path.split("::").next().map(|name| format!("{name}::Error")),
            name => Some(name.to_owned()),
        };
        Self::new(kind.unwrap_or_default(), error.to_string())
    }

    /// The same error with `data`; data that has no JSON form is left out.
    #[must_use]
    pub fn with_data(self, data: &impl Serialize) -> Self {
        Self {
            data: serde_json::value::to_raw_value(data).ok(),
            ..self
        }
    }
}

/// What there is to say, because a test of a function, or `main`, prints this form.
impl fmt::Debug for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        if let Some(data) = &self.data {
            write!(f, "; data: {data}")?;
        }
        if let Some(cause) = &self.cause {
            write!(f, "; cause: {cause}")?;
        }
        Ok(())
    }
}

impl<E: std::error::Error> From<E> for FunctionError {
    fn from(error: E) -> Self {
        let message = "the function failed; the log of the instance has the cause, under the id of the request";
        Self {
            cause: Some(with_causes(&error)),
            ..Self::new(Self::INTERNAL, message)
        }
    }
}

/// A code of a later release, which this one passes on as it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LaterCode {
    /// The word on the wire.
    pub word: String,
    /// The HTTP status that it travels with.
    pub status: u16,
    /// One phrase for people.
    pub title: String,
}

/// `count` of `what`, as in a sentence.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The text of `error` and of each of its causes that says something new, at most [`MAX_CAUSE`] bytes, for a log or a detail.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next.filter(|_| text.len() < MAX_CAUSE) {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.truncate(text.floor_char_boundary(MAX_CAUSE));
    text
}

/// The first bytes of `text`, as many as a detail may have.
pub(crate) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_DETAIL));
    text
}

/// Why a call has no result, and whether its function ran.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} (executed: {executed}): {detail}", self.word())]
pub struct Problem {
    /// What went wrong; with `later`, the known code that leads to the same next step.
    pub code: Code,
    /// The code that a peer of a later release gave.
    pub later: Option<Box<LaterCode>>,
    /// Whether the function ran.
    pub executed: Executed,
    /// One sentence for the caller: at most 256 bytes, without a stack, a secret or the body.
    pub detail: String,
    /// The function's own error, with [`Code::FunctionFailed`] only.
    pub error: Option<Box<FunctionError>>,
    /// Whether it is the outcome of an earlier call with the same idempotency key.
    pub replayed: bool,
    /// What the function said of its data, if it ran.
    pub consistency: Option<ConsistencyToken>,
}

impl Problem {
    /// A problem of `code` with what the table says of `executed`; `detail` is cut at 256 bytes.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let detail = cut(detail.into());
        Self {
            code,
            later: None,
            executed: code.executed()[0],
            detail,
            error: None,
            replayed: false,
            consistency: None,
        }
    }

    /// Adds `more` to the detail, where there is room for all of it.
    pub(crate) fn add(&mut self, more: &str) {
        if self.detail.len() + more.len() <= MAX_DETAIL {
            self.detail.push_str(more);
        }
    }

    /// The code's word on the wire.
    pub fn word(&self) -> &str {
        self.later
            .as_ref()
            .map_or(self.code.as_str(), |later| &later.word)
    }

    pub(crate) fn title(&self) -> &str {
        let later = self.later.as_ref();
        later.map_or(self.code.title(), |later| &later.title)
    }

    pub(crate) fn status(&self) -> u16 {
        let later = self.later.as_ref();
        later.map_or(self.code.status(), |later| later.status)
    }

    /// The same problem with another answer to "did it run?".
    #[must_use]
    pub fn executed(self, executed: Executed) -> Self {
        Self { executed, ..self }
    }

    pub(crate) fn invalid_region(invalid: InvalidName) -> Self {
        Self::new(Code::InvalidRegion, invalid.to_string())
    }

    pub(crate) fn no_function(name: &FunctionName, instance: &InstanceId) -> Self {
        let detail = format!("no function {name} on {instance}");
        Self::new(Code::FunctionUnknown, detail)
    }

    pub(crate) fn not_started(name: &FunctionName) -> Self {
        let detail = format!("the deadline passed before {name} started");
        Self::new(Code::DeadlineExceeded, detail)
    }

    pub(crate) fn still_running(name: &FunctionName) -> Self {
        let detail = format!("{name} was still running at the deadline");
        Self::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe)
    }

    pub fn function_failed(error: FunctionError) -> Self {
        let detail = format!("the function returned an error of kind {:?}", error.kind);
        Self {
            error: Some(Box::new(error)),
            ..Self::new(Code::FunctionFailed, detail)
        }
    }
}

impl From<NoRoom> for Problem {
    fn from(NoRoom: NoRoom) -> Self {
        let detail = "the memory budget of this instance (RPC_MAX_MEMORY) is used up";
        Self::new(Code::Overloaded, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_cut_at_a_character_boundary() {
        let problem = Problem::new(Code::InvalidRequest, "é".repeat(200));
        assert_eq!(problem.detail, "é".repeat(128));
        let problem = Problem::new(Code::InvalidRequest, format!("x{}", "é".repeat(200)));
        assert_eq!(problem.detail.len(), 255);
    }

    #[test]
    fn causes_come_in_order_and_are_cut() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Layer(String, #[source] Option<Box<Self>>);
        let layer = |text: &str, cause| Layer(text.to_owned(), cause);
        let error = layer("a", Some(Box::new(layer("b", None))));
        assert_eq!(with_causes(&error), "a: b");
        assert_eq!(
            with_causes(&layer(&"é".repeat(MAX_CAUSE), None)).len(),
            MAX_CAUSE
        );
    }
}
