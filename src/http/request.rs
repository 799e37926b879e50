//! What handlers take from a request: the target in its path, and its body. A body is JSON by its content type, and within
//! the size limit, a time limit and the memory budget; it is refused unread where the headers already say so.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::FromRequestParts,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
        request::Parts,
    },
};
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::{
    deadline::Deadline,
    memory::{Budget, Reserved, Share},
    name::InvalidName,
    problem::{Code, Problem},
    protocol::lines::NDJSON,
    region::{Regions, Target, Targets},
};

/// How long a body may take to arrive; hyper has no limit of its own.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How often a body is in memory at once: as it came, and what was read from it.
const COPIES: usize = 2;
/// The room for a body whose length is not given, to begin with.
const FIRST: usize = 4 << 10;
/// The most room for one whose length is given, to begin with: a length is a promise that costs its sender nothing.
const PROMISED: usize = 64 << 10;

/// The target of `/regions/{region}`.
///
/// It is taken as it was sent: an encoded character is no character of a region, and axum's own `Path` would decode it.
impl<S: Sync> FromRequestParts<S> for Target {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        second_segment(parts).parse().map_err(invalid_region)
    }
}

/// The targets of `/rpc/{region}` and `/regions/{region}/explain`, in the same way. A comma may be encoded: clients that are
/// generated from the OpenAPI document encode it.
impl<S: Sync> FromRequestParts<S> for Targets {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        commas(second_segment(parts))
            .parse()
            .map_err(invalid_region)
    }
}

/// The regions of `/each/{regions}`, in the same way.
impl<S: Sync> FromRequestParts<S> for Regions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        commas(second_segment(parts))
            .parse()
            .map_err(invalid_region)
    }
}

/// `list` with encoded commas as commas.
fn commas(list: &str) -> String {
    list.replace("%2C", ",").replace("%2c", ",")
}

fn second_segment(parts: &Parts) -> &str {
    parts.uri.path().split('/').nth(2).unwrap_or_default()
}

fn invalid_region(invalid: InvalidName) -> Problem {
    Problem::new(Code::InvalidRegion, invalid.to_string())
}

/// A body as it comes: one buffer, however small the pieces are, and what it takes of the memory budget.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) reserved: Reserved,
    /// The most bytes that may come.
    limit: usize,
}

/// The whole body, at most `limit` bytes.
///
/// # Errors
/// [`Code::UnsupportedMediaType`], [`Code::BodyTooLarge`], [`Code::Overloaded`] where the budget has no room for it, or
/// [`Code::InvalidJson`] for a body that was cut short or did not arrive within 10 s.
pub(super) async fn json_body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    memory: &Arc<Budget>,
) -> Result<Received, Problem> {
    check_type(headers)?;
    let length = length(headers, limit)?;
    // Refused unread where there is no room for all of it.
    let mut reserved = memory.reserve(COPIES * length, Share::Clients)?;
    let first = length.min(PROMISED);
    reserved.give_back(COPIES * (length - first));
    let mut received = Received {
        reserved,
        bytes: Vec::with_capacity(first),
        limit: if length > 0 { length } else { limit },
    };
    let arrival = Deadline::since(Instant::now(), ARRIVAL);
    match arrival.bound(received.fill(body)).await {
        Some(filled) => filled.map(|()| received),
        None => Err(cut("the body did not arrive within 10 s")),
    }
}

/// The same where a body may be left out, which is nothing, whatever its content type.
///
/// # Errors
/// As [`json_body`].
pub(super) async fn optional_json_body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    memory: &Arc<Budget>,
) -> Result<Received, Problem> {
    if !body.is_end_stream() {
        return json_body(headers, body, limit, memory).await;
    }
    Ok(Received {
        bytes: Vec::new(),
        reserved: memory.reserve(0, Share::Clients)?,
        limit,
    })
}

/// What `read` makes of the header `name`, where it is given.
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
    let (Some(value), another) = (values.next(), values.next()) else {
        return Ok(None);
    };
    let value = value.to_str().ok().and_then(read);
    match value.filter(|_| another.is_none()) {
        Some(value) => Ok(Some(value)),
        None => {
            let detail = format!("header {name} must be {rule}, and given once");
            Err(Problem::new(Code::InvalidRequest, detail))
        }
    }
}

impl Received {
    async fn fill(&mut self, mut body: Body) -> Result<(), Problem> {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| cut("the body was cut short"))?;
            let Some(piece) = frame.data_ref() else {
                continue;
            };
            let (length, capacity) = (self.bytes.len() + piece.len(), self.bytes.capacity());
            if length > self.limit {
                return Err(too_large(self.limit));
            }
            if length > capacity {
                let doubled = FIRST.max(2 * capacity).min(self.limit);
                self.make_room(length.max(doubled))?;
            }
            self.bytes.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Makes the buffer hold `capacity` bytes.
    fn make_room(&mut self, capacity: usize) -> Result<(), Problem> {
        let more = capacity.saturating_sub(self.bytes.capacity());
        self.reserved.grow(COPIES * more, Share::Clients)?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
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

/// Whether a content type is JSON (RFC 6839 section 3.1) in the only charset that JSON has (RFC 8259 section 8.1).
fn is_json(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let content_type = content_type.to_ascii_lowercase();
    let mut parts = content_type.split(';').map(str::trim);
    let subtype = parts
        .next()
        .and_then(|media_type| media_type.strip_prefix("application/"))
        .unwrap_or_default();
    let is_token = |text: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        !text.is_empty() && text.bytes().all(is_allowed)
    };
    let mut charsets = parts.filter_map(|parameter| parameter.strip_prefix("charset="));
    (subtype == "json" || subtype.strip_suffix("+json").is_some_and(is_token))
        && charsets.all(|charset| charset.trim_matches('"') == "utf-8")
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
