//! The HTTP client that instances use: straight to the address, no proxy, no redirect, bounded bodies.
//! A proxy from the environment or a redirect would hand calls, and later the cluster's token, to another host.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, Response, redirect};

/// How long an idle connection is kept: well below the 10 s after which the server closes it, so that a call does not
/// meet a connection that is just being closed.
const IDLE: Duration = Duration::from_secs(4);

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It was cut short or could not be decoded.
    #[error("the answer was cut short")]
    Cut(#[source] reqwest::Error),
    /// It is longer than asked for.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// A client builder with what every use has in common.
pub(crate) fn builder(connect_timeout: Duration) -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
}

/// The body of `response`, at most `limit` bytes.
///
/// # Errors
/// See [`BodyError`].
pub(crate) async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, BodyError> {
    let expected = response
        .content_length()
        .and_then(|length| usize::try_from(length).ok())
        .unwrap_or(0);
    let mut body = Vec::with_capacity(expected.min(limit));
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Cut)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
