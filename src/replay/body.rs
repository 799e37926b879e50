//! The body of a request that the application here does not get: sent on to the primary region over the private network,
//! where it is too large for Fly Proxy to replay, or read and thrown away, within bounds.
//!
//! A server that answers and closes with unread bytes resets the connection, and the reset may overtake the answer (RFC
//! 9112, section 9.6): a proxy in between then answers 502 itself, and the replay is lost with the answer.

use std::{error::Error, io, pin::pin, time::Duration};

use bytes::{Buf, Bytes};
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

/// The most bytes that are read: what an edge of Fly keeps of a request (PA01 in
/// <https://fly.io/docs/monitoring/error-codes/>).
const MAX_BYTES: usize = 10_000_000;

/// Marks a request that came from another region this way: it is never sent on.
pub(super) const FORWARDED: HeaderName = HeaderName::from_static("fly-rpc-forwarded");
/// The largest answer, in bytes.
const MAX_ANSWER: usize = 8 << 20;
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

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until its next bytes.
    pub(super) stall: Duration,
    /// Until its end.
    pub(super) arrival: Duration,
}

/// What became of a request that was sent on, where no answer came back.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("which gave no answer")]
    NoAnswer,
    #[error("which gave no answer in time")]
    Late,
    #[error("which gave an answer too large to be passed back")]
    TooLarge,
    /// The client stopped sending its body for this time.
    #[error("and no more of it came for {} s", .0.as_secs_f64())]
    Stalled(Duration),
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Incomplete {
    #[error("its body was cut short")]
    Cut,
    #[error("no more of its body came for {} s", .0.as_secs_f64())]
    Stalled(Duration),
    #[error("its body did not arrive whole within {} s", .0.as_secs_f64())]
    Late(Duration),
}

/// Reads `body` to its end and returns its size in bytes. Stops above the bound, with the size so far; a body that says that it
/// is larger is not read.
pub(super) async fn discard<B: Body>(body: B, patience: Patience) -> Result<usize, Incomplete> {
    let said = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if said > MAX_BYTES {
        return Ok(said);
    }
    time::timeout(patience.arrival, read(body, patience.stall))
        .await
        .unwrap_or(Err(Incomplete::Late(patience.arrival)))
}

async fn read<B: Body>(body: B, stall: Duration) -> Result<usize, Incomplete> {
    let mut body = pin!(body);
    let mut size = 0;
    while size <= MAX_BYTES {
        let next = time::timeout(stall, body.frame()).await;
        let Some(frame) = next.map_err(|_| Incomplete::Stalled(stall))? else {
            break;
        };
        let frame = frame.map_err(|_| Incomplete::Cut)?;
        size += frame.data_ref().map_or(0, Buf::remaining);
    }
    Ok(size)
}

/// The answer of the application at `to` (`host:port`) to a request, whose body is sent as it comes, as long as `patience` has
/// it that bytes come; what is left of it is thrown away with `patience`. The other side may take as long as a whole body may
/// to arrive: to take its next bytes, and to answer once it has them all. `None` where no connection could be made `within`
/// this time, so that nothing was sent.
///
/// # Cancel safety
/// Dropping this closes the connection.
pub(super) async fn forward<B>(
    to: &str,
    within: Duration,
    head: Parts,
    body: B,
    patience: Patience,
) -> Option<Result<Response<Bytes>, Unanswered>>
where
    B: Body,
    B::Data: Send + 'static,
{
    let Some((mut sender, task)) = connect(to, within).await else {
        let _ = discard(body, patience).await;
        return None;
    };
    // Not the body itself: what the other side leaves of it is read and thrown away here.
    let (pieces, taken) = mpsc::channel(1);
    let passed_on = stream::unfold(taken, async |mut taken: mpsc::Receiver<Option<_>>| {
        let piece = match taken.recv().await {
            Some(piece) => Ok(piece?),
            // Its end did not come: the other side must not take what it has for the whole.
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        };
        Some((piece, taken))
    });
    let request = request(to, head, StreamBody::new(passed_on).boxed_unsync());
    let mut passing = pin!(pass_on(body, pieces, patience));
    let answering = async {
        let answered = sender.send_request(request).await;
        let (mut head, body) = answered.map_err(|_| Unanswered::NoAnswer)?.into_parts();
        let whole = Limited::new(body, MAX_ANSWER).collect().await;
        let body = whole.map_err(|why| match why.is::<LengthLimitError>() {
            true => Unanswered::TooLarge,
            false => Unanswered::NoAnswer,
        })?;
        drop_hop(&mut head.headers);
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    let mut answering = pin!(answering);
    Some(tokio::select! {
        answered = &mut answering => {
            // Nothing takes the rest of the body.
            drop(task);
            let _ = passing.await;
            answered
        }
        passed = &mut passing => match passed {
            Ok(()) => {
                let answered = time::timeout(patience.arrival, answering).await;
                answered.unwrap_or(Err(Unanswered::Late))
            }
            Err(why) => Err(why),
        },
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

/// Passes a body on, piece by piece and `None` after its end, and reads on where nothing takes them any more, so that the
/// answer arrives.
///
/// # Errors
/// No piece came in time, or one was not taken in time.
async fn pass_on<B: Body>(
    body: B,
    pieces: mpsc::Sender<Option<Frame<B::Data>>>,
    patience: Patience,
) -> Result<(), Unanswered> {
    let mut body = pin!(body);
    loop {
        let next = time::timeout(patience.stall, body.frame()).await;
        let next = next.map_err(|_| Unanswered::Stalled(patience.stall))?;
        let Ok(piece) = next.transpose() else {
            // Cut short: no end is passed on.
            return Ok(());
        };
        let is_end = piece.is_none();
        // Whoever took the pieces has answered, or is gone: an answer that overtakes its request would be lost.
        let taken = time::timeout(patience.arrival, pieces.send(piece)).await;
        if is_end || !matches!(taken, Ok(Ok(()))) {
            if !is_end {
                let _ = discard(body, patience).await;
            }
            return taken.map(|_| ()).map_err(|_| Unanswered::Late);
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
pub(crate) fn drop_hop(headers: &mut HeaderMap) {
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
