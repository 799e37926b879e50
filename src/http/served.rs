//! Documents that do not change while the process runs, as they go over the wire: compressed once, and not
//! sent again to a client that has them.

use std::io::{self, Write};

use axum::{
    body::Bytes,
    http::{
        HeaderMap, StatusCode,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            VARY,
        },
    },
    response::{IntoResponse, Response},
};
use data_encoding::HEXLOWER;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::head::items;

/// A document in both forms, plain and compressed.
#[derive(Debug)]
pub(crate) struct Document {
    content_type: &'static str,
    plain: Bytes,
    /// `None` where it could not be compressed.
    gzip: Option<Bytes>,
    /// Weak, so that one is enough for both forms.
    etag: String,
}

impl Document {
    /// The document `plain`.
    pub(super) fn new(content_type: &'static str, plain: impl Into<Bytes>) -> Self {
        let plain = plain.into();
        let digits = HEXLOWER.encode(&Sha256::digest(&plain)[..16]);
        Self {
            content_type,
            gzip: compressed(&plain).ok().map(Bytes::from),
            etag: format!("W/\"{digits}\""),
            plain,
        }
    }

    /// The answer to a request for it.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let validator = [
            (CACHE_CONTROL, "no-cache"),
            (VARY, "accept-encoding"),
            (ETAG, &self.etag),
        ];
        if items(request, &IF_NONE_MATCH).any(|tag| tag == "*" || tag == self.etag) {
            return (StatusCode::NOT_MODIFIED, validator).into_response();
        }
        let gzip = self.gzip.as_ref().filter(|_| takes_gzip(request));
        let encoding = gzip.map(|_| [(CONTENT_ENCODING, "gzip")]);
        let content_type = [(CONTENT_TYPE, self.content_type)];
        let body = gzip.unwrap_or(&self.plain).clone();
        (validator, encoding, content_type, body).into_response()
    }
}

fn compressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Whether a request takes gzip: it is named, and not with the weight 0 (RFC 9110, section 12.5.3).
fn takes_gzip(request: &HeaderMap) -> bool {
    items(request, &ACCEPT_ENCODING).any(|item| {
        let (coding, weight) = item.split_once(';').unwrap_or((item, "q=1"));
        let weight = weight
            .trim()
            .strip_prefix("q=")
            .and_then(|weight| weight.parse::<f32>().ok());
        coding.trim().eq_ignore_ascii_case("gzip") && weight.is_some_and(|weight| weight > 0.0)
    })
}
