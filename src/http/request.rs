//! What handlers take from a request: the regions in its path, the call in its path, headers and body. A body is JSON by its
//! content type, and within the size limit, a time limit and the memory budget; it is refused unread where the headers already
//! say so.

use std::{str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{
        HeaderMap, HeaderName, HeaderValue, Uri,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
        request::Parts,
    },
};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use super::replay::ROUTE;
use crate::{
    call::{Args, Call, Per, Timeouts},
    config::settings::digits,
    deadline::Deadline,
    declaration::Policy,
    dispatch::Dispatcher,
    json, lifecycle,
    memory::{Reserved, Share},
    name::{ConsistencyToken, FunctionName, IdempotencyKey, InstanceId, InvalidName, Name},
    problem::{Code, Problem},
    protocol::{CLOCK, FORWARDED, NONCE, PROOF, STATE, lines::NDJSON},
    trace,
};

/// Makes a repeat of a call the same call.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// What the data that the function reads must have seen.
const AFTER: HeaderName = HeaderName::from_static("rpc-after");
const TIMEOUT: HeaderName = HeaderName::from_static("rpc-timeout-ms");
const IDEMPOTENT: HeaderName = HeaderName::from_static("rpc-idempotent");
const INSTANCE: HeaderName = HeaderName::from_static("rpc-instance");
const TRACEPARENT: HeaderName = HeaderName::from_static(trace::TRACEPARENT);

/// How the names of our own headers begin.
const OWN: &str = "rpc-";
/// Those that stand for members of the body, where the path names the function.
static IN_PLACE_OF: [(HeaderName, &str); 3] = [
    (TIMEOUT, "timeout_ms"),
    (IDEMPOTENT, "idempotent"),
    (INSTANCE, "instance"),
];

/// How long a body may take to arrive; hyper has no limit of its own.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How many copies of a body are in memory at once: the body as it came, and what was read from it.
const COPIES: usize = 2;
/// The first size of the buffer for a body without a length.
const FIRST: usize = 4 << 10;
/// The largest first size of the buffer for a body with a length: a length costs its sender nothing.
const PROMISED: usize = 64 << 10;

/// What the path names behind its first segment: a region, or a list of some.
///
/// It is read as it was sent: an encoded character is not one of a region, and axum's own `Path` would decode it. Only a
/// comma may be encoded: clients that are generated from the OpenAPI document encode it.
pub(super) struct InPath<T>(pub(super) T);

impl<S: Sync, T: FromStr<Err = InvalidName>> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let segment = parts.uri.path().split('/').nth(2).unwrap_or_default();
        let named = match segment.contains('%') {
            true => segment.replace("%2C", ",").replace("%2c", ",").parse(),
            false => segment.parse(),
        };
        named.map(Self).map_err(Problem::invalid_region)
    }
}

/// The call of `POST /rpc/{region}`, or of one whose path names the function too; and the size of its body in bytes.
pub(super) async fn call(
    dispatcher: &Dispatcher,
    head: &Parts,
    body: Body,
) -> Result<(Call, usize), Problem> {
    let headers = &head.headers;
    // What the head alone is refused for comes before the body is read.
    refuse_forwarded(headers)?;
    let function = function(&head.uri)?;
    let form = if function.is_some() {
        Form::Path
    } else {
        Form::Body
    };
    check_own(headers, form)?;
    let (call, body) = match function {
        Some(name) => call_by_path(dispatcher, name, headers, body).await?,
        None => {
            let body =
                json_body(dispatcher, headers, body, dispatcher.local.limits.max_body).await?;
            (
                Call::from_json(&body.bytes, dispatcher.local.timeouts)?,
                body,
            )
        }
    };
    let size = body.bytes.len();
    Ok((finished(call, headers, body)?, size))
}

/// The call of `POST /each/{regions}`, and on how many instances of each region it is to run.
pub(super) async fn fan_out(
    dispatcher: &Dispatcher,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Call, Per), Problem> {
    refuse_forwarded(headers)?;
    check_own(headers, Form::FanOut)?;
    let body = json_body(dispatcher, headers, body, dispatcher.local.limits.max_body).await?;
    let (call, per) = Call::from_fan_out(&body.bytes, dispatcher.local.timeouts)?;
    Ok((finished(call, headers, body)?, per))
}

/// Refuses a request of another instance, which would have this one forward it.
fn refuse_forwarded(headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(FORWARDED) {
        return Ok(());
    }
    let detail = "an instance forwarded this call to /rpc; peers take calls at /internal/exec";
    Err(Problem::new(Code::LoopDetected, detail))
}

/// The form of a call, by which the headers differ that it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// The body names the function.
    Body,
    /// The path does.
    Path,
    FanOut,
}

/// Refuses a header of our own that would have no effect, as an unknown member of the body is refused: a client that
/// mistypes a name would get another call than it asked for. What peers say to each other means nothing here, whoever
/// sends it.
fn check_own(headers: &HeaderMap, form: Form) -> Result<(), Problem> {
    let is_of_peers = |name: &HeaderName| [NONCE, PROOF, CLOCK, STATE].contains(&name.as_str());
    let own = headers.keys().filter(|name| name.as_str().starts_with(OWN));
    for name in own.filter(|name| *name != AFTER && !is_of_peers(name)) {
        let in_place_of = IN_PLACE_OF.iter().find(|(header, _)| header == name);
        let detail = match (form, in_place_of) {
            (Form::Body | Form::Path, _) if name == ROUTE => continue,
            (Form::Path, Some(_)) => continue,
            (Form::Body, Some((_, member))) => format!(
                "header {name} is for a path that names the function; here it is the member {member} of the body"
            ),
            (Form::Body | Form::Path, None) => format!(
                "unknown header {name:.64}; a call may have {AFTER} and {ROUTE}, and {TIMEOUT}, {IDEMPOTENT} and \
                 {INSTANCE} where its path names the function"
            ),
            (Form::FanOut, _) => format!(
                "header {name:.64} means nothing on /each, where a call may have {AFTER}; its options are members of the body"
            ),
        };
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    Ok(())
}

/// `call` with its key, its consistency token and its trace from the headers of the request, and with what its body takes
/// of the memory budget.
fn finished(mut call: Call, headers: &HeaderMap, body: Received) -> Result<Call, Problem> {
    call.key = header(headers, &IDEMPOTENCY_KEY, IdempotencyKey::RULE, |text| {
        unquoted(text).parse().ok()
    })?;
    call.after = header(headers, &AFTER, ConsistencyToken::RULE, |text| {
        text.parse().ok()
    })?;
    let trace = headers.get(TRACEPARENT);
    call.trace = trace.and_then(|trace| trace.to_str().ok()?.parse().ok());
    call.memory = Some(Arc::new(body.reserved));
    Ok(call)
}

/// The function that a path names behind its region, if it names one.
///
/// It is read as it was sent, so that an encoded slash in a name does not split the path.
fn function(uri: &Uri) -> Result<Option<FunctionName>, Problem> {
    let mut segments = uri.path().split('/').skip(3);
    let (Some(module), Some(function)) = (segments.next(), segments.next()) else {
        return Ok(None);
    };
    Ok(Some(FunctionName {
        module: name("module", module)?,
        function: name("function", function)?,
    }))
}

fn name(what: &str, segment: &str) -> Result<Name, Problem> {
    let decoded = percent_decode_str(segment).decode_utf8();
    let name = decoded.ok().and_then(|text| text.parse().ok());
    name.ok_or_else(|| {
        let detail = format!("the {what} in the path must be {}", Name::RULE);
        Problem::new(Code::InvalidRequest, detail)
    })
}

/// Reads a call whose path names the function: the arguments from the body, the options from the headers. Returns the body
/// as well, because it holds memory of the budget.
async fn call_by_path(
    dispatcher: &Dispatcher,
    name: FunctionName,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Call, Received), Problem> {
    let Timeouts { default, max } = dispatcher.local.timeouts;
    let said = policy(headers, max)?;
    let instance = header(headers, &INSTANCE, InstanceId::RULE, |text| {
        text.parse().ok()
    })?;
    let body = whole(dispatcher, headers, body, dispatcher.local.limits.max_body).await?;
    let args = match body.bytes.as_slice() {
        // Without arguments it may be left out, whatever the content type; of one in chunks, only its end shows that.
        [] => Args::default(),
        bytes => {
            check_type(headers)?;
            arguments(bytes)?
        }
    };
    let call = Call {
        instance,
        ..Call::new(name, args, said, default)
    };
    Ok((call, body))
}

fn arguments(body: &[u8]) -> Result<Args, Problem> {
    Args::from_raw(json::value(body)?).ok_or_else(|| {
        let detail = format!("the body must be {}", Args::RULE);
        Problem::new(Code::InvalidRequest, detail)
    })
}

fn policy(headers: &HeaderMap, max: Duration) -> Result<Policy, Problem> {
    let longest = max.as_millis();
    let timeout = |text: &str| {
        let timeout = Duration::from_millis(digits(text)?);
        (!timeout.is_zero() && timeout <= max).then_some(timeout)
    };
    let rule = format!("an integer from 1 to {longest}");
    Ok(Policy {
        timeout: header(headers, &TIMEOUT, &rule, timeout)?,
        idempotent: header(headers, &IDEMPOTENT, "true or false", |text| {
            text.parse().ok()
        })?,
    })
}

/// A body as it comes: one buffer, however small the pieces are, and what it takes of the memory budget.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) reserved: Reserved,
}

/// The whole body, which is JSON by its content type, at most `limit` bytes.
///
/// # Errors
/// [`Code::UnsupportedMediaType`], or what [`whole`] returns.
pub(super) async fn json_body(
    dispatcher: &Dispatcher,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Received, Problem> {
    check_type(headers)?;
    whole(dispatcher, headers, body, limit).await
}

/// The whole body, at most `limit` bytes.
///
/// # Errors
/// [`Code::BodyTooLarge`], [`Code::Overloaded`] where the budget has no room for it,
/// [`Code::InvalidJson`] for a body that was cut short or did not arrive within 10 s, or [`Code::Draining`] for one that is
/// still on its way a second after the instance began to refuse calls.
async fn whole(
    dispatcher: &Dispatcher,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Received, Problem> {
    let length = length(headers, limit)?;
    // Refused unread where there is no room for all of it.
    let mut reserved = dispatcher
        .local
        .memory
        .reserve(COPIES * length, Share::Clients)?;
    let first = length.min(PROMISED);
    reserved.give_back(COPIES * (length - first));
    let mut received = Received {
        reserved,
        bytes: Vec::with_capacity(first),
    };
    // hyper ends a body at the length that was given, so that the buffer need never be larger.
    let limit = if length > 0 { length } else { limit };
    let arrival = Deadline::since(Instant::now(), ARRIVAL);
    let filled = tokio::select! {
        biased;
        filled = arrival.bound(received.fill(body, limit)) => filled,
        // A whole body would be refused or replayed elsewhere too; the drain waits no longer for it.
        () = dispatcher.lifecycle.requests_are_overdue() => return Err(lifecycle::refusal()),
    };
    match filled {
        Some(filled) => filled.map(|()| received),
        None => Err(cut("the body did not arrive within 10 s")),
    }
}

impl Received {
    async fn fill(&mut self, mut body: Body, limit: usize) -> Result<(), Problem> {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| cut("the body was cut short"))?;
            let Some(piece) = frame.data_ref() else {
                continue;
            };
            let (length, capacity) = (self.bytes.len() + piece.len(), self.bytes.capacity());
            if length > limit {
                return Err(too_large(limit));
            }
            if length > capacity {
                let wanted = length.max(FIRST.max(2 * capacity).min(limit));
                // Before the allocation, for which there may be no room.
                let more = COPIES * (wanted - capacity);
                self.reserved.grow(more, Share::Clients)?;
                self.bytes.reserve_exact(wanted - self.bytes.len());
            }
            self.bytes.extend_from_slice(piece);
        }
        Ok(())
    }
}

/// Whether the body is lines of JSON, with nothing around it.
pub(super) fn is_ndjson(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type == Some(NDJSON.as_bytes()) && !headers.contains_key(CONTENT_ENCODING)
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: &str| Err(Problem::new(Code::UnsupportedMediaType, detail));
    let is_encoded =
        |encoding: &HeaderValue| !encoding.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).iter().any(is_encoded) {
        return refused("the body must not be encoded; send it without content-encoding");
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    match (types.next().map(HeaderValue::to_str), types.next()) {
        (_, Some(_)) => refused("header content-type is given twice"),
        (Some(Ok(content_type)), None) if is_json(content_type) => Ok(()),
        _ => refused("the content type must be application/json, in UTF-8"),
    }
}

/// Whether a content type is `application/json`, in the only charset that JSON has (RFC 8259 section 8.1).
fn is_json(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let content_type = content_type.to_ascii_lowercase();
    let mut parts = content_type.split(';').map(str::trim);
    let is_json = parts.next() == Some("application/json");
    let mut charsets = parts.filter_map(|parameter| parameter.strip_prefix("charset="));
    is_json && charsets.all(|charset| charset.trim_matches('"') == "utf-8")
}

/// The length in the headers; 0 where there is none.
fn length(headers: &HeaderMap, limit: usize) -> Result<usize, Problem> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match usize::try_from(length.unwrap_or_default()) {
        Ok(length) if length <= limit => Ok(length),
        _ => Err(too_large(limit)),
    }
}

fn cut(detail: &str) -> Problem {
    Problem::new(Code::InvalidJson, detail)
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("the body is larger than the {limit} bytes of RPC_MAX_BODY"),
    )
}

/// What `read` takes from the value of the header `name`; `None` if it is not given.
///
/// # Errors
/// [`Code::InvalidRequest`] with the `rule` that the value breaks, or that it is given twice.
pub(super) fn header<T>(
    headers: &HeaderMap,
    name: &HeaderName,
    rule: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Problem> {
    let mut values = headers.get_all(name).iter();
    let wrong = |what: &str| Problem::new(Code::InvalidRequest, format!("header {name} {what}"));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let value = value.to_str().ok().and_then(read);
            value
                .map(Some)
                .ok_or_else(|| wrong(&format!("must be {rule}")))
        }
        (Some(_), Some(_)) => Err(wrong("is given twice")),
    }
}

/// `text` without the quotes around it, if it has them.
fn unquoted(text: &str) -> &str {
    let inner = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or(text)
}

pub(super) fn items<'a>(
    headers: &'a HeaderMap,
    name: &'a HeaderName,
) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

/// Whether a header that is a list has `word`, whatever its parameters, unless its weight is 0 (RFC 9110, section 12.4.2).
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let is_nothing = |parameter: &str| {
        let weight = parameter.trim().strip_prefix("q=");
        weight.is_some_and(|weight| !weight.parse().is_ok_and(|weight: f32| weight > 0.0))
    };
    items(headers, name).any(|item| {
        let mut parts = item.split(';');
        let found = parts.next().unwrap_or_default().trim();
        found.eq_ignore_ascii_case(word) && !parts.any(is_nothing)
    })
}
