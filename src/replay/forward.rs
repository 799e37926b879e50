//! A request too large for Fly Proxy to replay, sent to the primary region over the private network: its body is passed on
//! as it comes, and the answer comes back whole, up to a bound.

use std::{error::Error, io, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderName, Request, Response, Uri,
    header::{
        CONNECTION, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
    request::Parts,
    uri::Authority,
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc, time};
use tokio_util::task::AbortOnDropHandle;

use super::body::{Patience, discard};

/// Marks a request that came from another region this way: it is never sent on.
pub(super) const FORWARDED: HeaderName = HeaderName::from_static("fly-rpc-forwarded");
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 8 << 20;
const NO_ANSWER: &str = "gave no answer";
/// What is between two hops only (RFC 9110, section 7.6.1).
const OF_A_HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// The answer of the application at `to` (`host:port`) to a request, whose body is sent as it comes; what is left of that is
/// thrown away with `patience`. `None` where no connection could be made `within` this time, so that nothing was sent.
///
/// # Errors
/// What the other side did instead of answering, for people.
///
/// # Cancel safety
/// Dropping this closes the connection.
pub(super) async fn forward<B>(
    to: &str,
    within: Duration,
    head: Parts,
    body: B,
    patience: Patience,
) -> Option<Result<Response<Bytes>, &'static str>>
where
    B: Body,
    B::Data: Send + 'static,
{
    let Some((mut sender, task)) = connect(to, within).await else {
        discard(body, patience).await;
        return None;
    };
    let (pieces, taken) = mpsc::channel(1);
    let passed_on = stream::unfold(taken, async |mut taken: mpsc::Receiver<_>| {
        Some((taken.recv().await?, taken))
    });
    let request = request(to, head, StreamBody::new(passed_on).boxed_unsync());
    let mut passing = pin!(pass_on(body, pieces, patience));
    let answering = async {
        let answered = sender.send_request(request).await;
        let (mut head, body) = answered.map_err(|_| NO_ANSWER)?.into_parts();
        let whole = Limited::new(body, MAX_ANSWER).collect().await;
        let body = whole.map_err(|why| match why.is::<LengthLimitError>() {
            true => "gave an answer too large to be passed back",
            false => NO_ANSWER,
        })?;
        drop_hop(&mut head.headers);
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    let mut answering = pin!(answering);
    Some(tokio::select! {
        answered = &mut answering => {
            // Nothing takes the rest of the body.
            drop(task);
            passing.await;
            answered
        }
        () = &mut passing => answering.await,
    })
}

/// A connection to `to`, which is closed when the task is dropped.
async fn connect<B>(to: &str, within: Duration) -> Option<(SendRequest<B>, AbortOnDropHandle<()>)>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let connecting = time::timeout(within, TcpStream::connect(to));
    let stream = connecting.await.ok()?.ok()?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    // An error reaches the future that waits for the answer.
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    Some((sender, AbortOnDropHandle::new(task)))
}

/// Passes a body on, piece by piece, and reads on where nothing takes them any more, so that the answer arrives.
async fn pass_on<B: Body>(
    body: B,
    pieces: mpsc::Sender<io::Result<Frame<B::Data>>>,
    patience: Patience,
) {
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        let is_cut = frame.is_err();
        let frame = frame.map_err(|_| io::ErrorKind::UnexpectedEof.into());
        if pieces.send(frame).await.is_err() {
            discard(body, patience).await;
            return;
        }
        if is_cut {
            return;
        }
    }
}

/// The request as the next hop gets it.
fn request<B>(to: &str, head: Parts, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    let target = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    *request.uri_mut() = target.parse::<Uri>().unwrap_or_default();
    let headers = request.headers_mut();
    *headers = head.headers;
    drop_hop(headers);
    headers.insert(FORWARDED, http::HeaderValue::from_static("1"));
    // HTTP/2 has the host in the target.
    let host = head.uri.authority().map_or(to, Authority::as_str);
    if let (false, Ok(host)) = (headers.contains_key(HOST), host.parse()) {
        headers.insert(HOST, host);
    }
    request
}

/// Removes what is between two hops only, and what `connection` names besides.
fn drop_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_A_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}
