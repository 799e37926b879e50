//! The HTTP client that instances use: straight to the address, no proxy, no redirect, bounded bodies.
//! A proxy from the environment or a redirect would hand calls, and later the cluster's token, to another host.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use reqwest::{Body, Client, ClientBuilder, Response, redirect};

/// How long an idle connection is kept: well below the 10 s after which the server closes it, so that a call does not
/// meet a connection that is just being closed.
const IDLE: Duration = Duration::from_secs(4);

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
pub(crate) async fn body(response: Response, limit: usize) -> Result<Bytes, String> {
    let body = Limited::new(Body::from(response), limit).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => format!("the answer is longer than {limit} bytes"),
        false => "the answer was cut short".to_owned(),
    })?;
    Ok(body.to_bytes())
}
