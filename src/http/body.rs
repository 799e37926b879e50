//! Request bodies: JSON by their content type, within the size limit and a time limit, refused before reading where the
//! headers already say so.

use std::time::Duration;

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time;

use crate::{
    link::NDJSON,
    problem::{Code, Problem},
};

/// How long a body may take to arrive; hyper has no limit of its own.
const ARRIVAL: Duration = Duration::from_secs(10);

/// The whole body, at most `limit` bytes.
///
/// # Errors
/// [`Code::UnsupportedMediaType`], [`Code::BodyTooLarge`], or [`Code::InvalidJson`] for a body that was cut short or
/// did not arrive within 10 s.
pub(super) async fn json(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    check_type(headers)?;
    check_length(headers, limit)?;
    let cut = |detail: &str| Problem::new(Code::InvalidJson, detail);
    match time::timeout(ARRIVAL, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(_)) => Err(cut("the body was cut short")),
        Err(_) => Err(cut("the body did not arrive within 10 s")),
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

fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), Problem> {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let is_too_large =
        length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > limit));
    if is_too_large {
        Err(too_large(limit))
    } else {
        Ok(())
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("the body is larger than the {limit} bytes of RPC_MAX_BODY"),
    )
}
