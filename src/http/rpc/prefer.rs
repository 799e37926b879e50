//! `prefer: respond-async` (RFC 7240): a call whose client does not wait for its end.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    http::{head::items, response::Json},
    reply::Meta,
};

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Says which preference of the request is honored (RFC 7240, section 3).
const APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const ASYNC: &str = "respond-async";

/// The answer to a call that was admitted and goes on.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Accepted {
    /// What is known so far: no instance, and the request's id, under which the log has the end of the call.
    pub meta: Meta,
}

/// Whether a request prefers an answer at once. Other preferences, and parameters of this one, are ignored.
pub(super) fn is_async(headers: &HeaderMap) -> bool {
    items(headers, &PREFER).any(|preference| {
        let name = preference.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(ASYNC)
    })
}

/// 202 with `meta`.
pub(super) fn accepted(meta: Meta) -> Response {
    let applied = [(APPLIED, HeaderValue::from_static(ASYNC))];
    (StatusCode::ACCEPTED, applied, Json(Accepted { meta })).into_response()
}
