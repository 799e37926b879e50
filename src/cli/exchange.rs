//! One request of a command and its answer, on a connection of its own. No proxy and no redirect: either would hand the
//! user's token to somebody else.

use std::{error::Error, time::Duration};

use bytes::Bytes;
#[cfg(feature = "https")]
use http::uri::Scheme;
use http::{HeaderValue, Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{client::conn::http1, rt};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{net::TcpStream, time};
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

#[cfg(feature = "https")]
use super::tls::{self, TlsError};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// How long a connection may take, and TLS on it.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// There is no connection; nothing was sent.
    NoConnection(Cause),
    /// There is no TLS on the connection; nothing was sent.
    #[cfg(feature = "https")]
    NoTls(TlsError),
    /// The request was sent, and no whole answer came within this time.
    TooLate(Duration),
    /// The request was sent, and no whole answer came.
    Cut(Cause),
    /// The answer has more bytes than are read.
    TooLong(usize),
}

type Cause = Box<dyn Error + Send + Sync>;

/// What is answered to `request`, whose URI is absolute, within `timeout` from when the connection stands.
pub(super) async fn exchange(
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), Unanswered> {
    let socket = connect(request.uri().clone()).await?;
    #[cfg(feature = "https")]
    if request.uri().scheme() == Some(&Scheme::HTTPS) {
        let host = request.uri().host().unwrap_or_default();
        let secured = time::timeout(CONNECT, tls::secure(socket, host)).await;
        let socket = secured.unwrap_or(Err(TlsError::TooLate(CONNECT)));
        let socket = socket.map_err(Unanswered::NoTls)?;
        return answer(TokioIo::new(socket), request, timeout).await;
    }
    answer(TokioIo::new(socket), request, timeout).await
}

async fn connect(uri: Uri) -> Result<TcpStream, Unanswered> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    match time::timeout(CONNECT, connector.oneshot(uri)).await {
        Ok(Ok(socket)) => Ok(socket.into_inner()),
        Ok(Err(error)) => Err(Unanswered::NoConnection(error.into())),
        Err(_) => {
            let cause = format!("no connection within {CONNECT:?}");
            Err(Unanswered::NoConnection(cause.into()))
        }
    }
}

async fn answer<S: rt::Read + rt::Write + Send + Unpin + 'static>(
    socket: S,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), Unanswered> {
    let answered = time::timeout(timeout, async {
        let (mut sender, connection) = http1::handshake(socket).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(in_origin_form(request)).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        Ok((status, body.collect().await?.to_bytes()))
    });
    match answered.await {
        Ok(answered) => answered.map_err(|error: Cause| match error.is::<LengthLimitError>() {
            true => Unanswered::TooLong(MAX_ANSWER),
            false => Unanswered::Cut(error),
        }),
        Err(_) => Err(Unanswered::TooLate(timeout)),
    }
}

/// `request` as it is sent to the server itself: its target is the path, its `Host` the rest (RFC 9112, section 3.2.1).
fn in_origin_form(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let parts = std::mem::take(request.uri_mut()).into_parts();
    // What stands in a URI is a header value.
    let host = parts
        .authority
        .and_then(|host| HeaderValue::try_from(host.as_str()).ok());
    request.headers_mut().extend(host.map(|host| (HOST, host)));
    if let Some(path) = parts.path_and_query {
        *request.uri_mut() = path.into();
    }
    request
}
