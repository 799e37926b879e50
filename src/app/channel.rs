//! The HTTP connections to the app: over TCP or a unix socket, kept for a second at most, so that no server's keep-alive
//! ends just when a call leaves. Owns whether a request left; what an answer means is decided in `answer.rs`.

use std::{
    io::{self, ErrorKind},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{self, Instant},
};
use tokio_util::either::Either;

use crate::{
    config::{AppAddress, AppUrl},
    memory::{Budget, Reserved, Share},
    token::Token,
};

/// How long an idle connection is kept. Measured: gunicorn's sync worker closes at once and says so, its gthread after
/// 2 s, uvicorn after 5 s, Node after 5 s, Puma after 20 s.
const IDLE: Duration = Duration::from_secs(1);
/// How long connecting may take. The app is on this machine, but while the queue of its listener is full (Python's holds
/// five), the kernel tries again only a second later.
const CONNECT: Duration = Duration::from_secs(3);
/// The pause before the next try at a unix socket whose queue is full: the kernel tries again by itself only with TCP.
const AGAIN: Duration = Duration::from_millis(10);
/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The connections to one app, and the token that requests to it carry.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) url: AppUrl,
    pub(super) token: Option<Token>,
    host: HeaderValue,
    /// The budget for the bodies of answers.
    memory: Arc<Budget>,
    /// The connections that carry no call, and since when.
    idle: Mutex<Vec<(AppConnection, Instant)>>,
}

/// A connection; it is closed when this is dropped.
///
/// hyper has the two halves in tasks of their own, which hand each call over and back. Here the call that has the connection
/// drives both, and nothing drives it while it is idle.
#[derive(Debug)]
struct AppConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: Fuse<http1::Connection<Socket, Full<Bytes>>>,
}

type Socket = TokioIo<Either<TcpStream, UnixStream>>;

#[derive(Debug)]
pub(super) struct AppAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Result<Vec<u8>, Unread>,
    /// For the body.
    pub(super) _memory: Reserved,
}

/// Why the body of an answer was not read to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unread {
    /// It is longer than asked for.
    TooLong,
    /// The memory budget has no room for it.
    NoRoom,
}

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Nothing was sent: there is no connection.
    #[error("cannot connect to the app: {0}")]
    Unreachable(io::Error),
    /// The request left, or part of it may have.
    #[error("{0}")]
    Lost(String),
}

impl Broken {
    /// Whether nobody listens there; a listener may also be too busy to accept a connection in time.
    pub(super) fn is_refusal(&self) -> bool {
        let is_refusal = |kind| matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::NotFound);
        matches!(self, Self::Unreachable(error) if is_refusal(error.kind()))
    }
}

impl Channel {
    /// The connections to the app at `url`, which knows `token`; none yet.
    pub(super) fn new(url: &AppUrl, token: Option<Token>, memory: Arc<Budget>) -> Self {
        let host = match &url.address {
            AppAddress::Tcp(address) => HeaderValue::from_str(address).ok(),
            AppAddress::Unix(_) => None,
        };
        Self {
            url: url.clone(),
            token,
            host: host.unwrap_or(HeaderValue::from_static("localhost")),
            memory,
            idle: Mutex::default(),
        }
    }

    /// The whole answer to the request that `build` makes once there is a connection, its body at most `limit` bytes.
    /// `was_sent` says at any time whether part of the request may have left.
    ///
    /// # Cancel safety
    /// Dropping this future closes the connection, which most servers see as the end of the request.
    pub(super) async fn exchange(
        &self,
        limit: usize,
        was_sent: &AtomicBool,
        build: impl Fn() -> Request<Full<Bytes>>,
    ) -> Result<AppAnswer, Broken> {
        // The connection that was used last is the least likely to have been closed; those that are not needed grow old.
        while let Some(connection) = self.last_used() {
            // `None`: it was closed before anything was sent, so the next one is tried.
            let answered = self.exchange_over(connection, limit, was_sent, &build);
            if let Some(answered) = answered.await {
                return answered;
            }
        }
        let connection = self.connect().await.map_err(Broken::Unreachable)?;
        let answered = self.exchange_over(connection, limit, was_sent, build).await;
        answered.unwrap_or_else(|| {
            let closed = ErrorKind::ConnectionReset;
            Err(Broken::Unreachable(closed.into()))
        })
    }

    /// The same over `connection`; `None` when nothing was sent because it is closed.
    async fn exchange_over(
        &self,
        mut connection: AppConnection,
        limit: usize,
        was_sent: &AtomicBool,
        build: impl Fn() -> Request<Full<Bytes>>,
    ) -> Option<Result<AppAnswer, Broken>> {
        let mut request = build();
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        was_sent.store(true, Ordering::Relaxed);
        let answered = connection.send(request, limit, self.memory.take(0)).await;
        // The time until the next connection stands is none in which the function may run.
        was_sent.store(answered.is_some(), Ordering::Relaxed);
        let answered = answered?;
        // A connection whose answer was not read to its end is closed.
        if answered.as_ref().is_ok_and(|answer| answer.body.is_ok()) {
            self.idle().push((connection, Instant::now()));
        }
        Some(answered)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(AppConnection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_used(&self) -> Option<AppConnection> {
        let mut idle = self.idle();
        while let Some((connection, since)) = idle.pop() {
            if since.elapsed() < IDLE
                && let Some(connection) = connection.ready()
            {
                return Some(connection);
            }
        }
        None
    }

    pub(super) fn close_idle(&self) {
        self.idle().retain(|(_, since)| since.elapsed() < IDLE);
    }

    async fn connect(&self) -> io::Result<AppConnection> {
        let connecting = async {
            match &self.url.address {
                AppAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    AppConnection::over(Either::Left(stream)).await
                }
                AppAddress::Unix(path) => loop {
                    match UnixStream::connect(path).await {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            time::sleep(AGAIN).await;
                        }
                        connected => break AppConnection::over(Either::Right(connected?)).await,
                    }
                },
            }
        };
        let connected = time::timeout(CONNECT, connecting).await;
        connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }
}

impl AppConnection {
    async fn over(stream: Either<TcpStream, UnixStream>) -> io::Result<Self> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(io::Error::other)?;
        let connection = Self {
            sender,
            driver: driver.fuse(),
        };
        connection.ready().ok_or(ErrorKind::ConnectionReset.into())
    }

    /// The same connection, if it can send; `None` when it is closed, or still busy with what was sent before.
    fn ready(mut self) -> Option<Self> {
        // This shows whether the app has closed the connection.
        let _ = (&mut self.driver).now_or_never();
        (!self.driver.is_terminated() && self.sender.is_ready()).then_some(self)
    }

    /// The answer to `request`, its body as [`read`] reads it; `None` when nothing was sent because the connection is closed.
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        limit: usize,
        mut memory: Reserved,
    ) -> Option<Result<AppAnswer, Broken>> {
        let response = self.sender.try_send_request(request);
        let mut answered = pin!(async move {
            match response.await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let body = read(body, limit, &mut memory).await;
                    Some(body.map(|body| AppAnswer {
                        status: head.status,
                        headers: head.headers,
                        body,
                        _memory: memory,
                    }))
                }
                // hyper gives the request back where it has not begun to write it.
                Err(mut error) => match error.take_message() {
                    Some(_) => None,
                    None => Some(Err(lost(error.error()))),
                },
            }
        });
        tokio::select! {
            // The driver comes first, so that an answer that it reads is taken at once.
            biased;
            // An error reaches the caller that waits for the answer.
            _ = &mut self.driver => answered.await,
            answered = &mut answered => answered,
        }
    }
}

/// A body of at most `limit` bytes, which `memory` has room for.
async fn read(
    mut body: Incoming,
    limit: usize,
    memory: &mut Reserved,
) -> Result<Result<Vec<u8>, Unread>, Broken> {
    // A body whose announced length is too long is not read at all.
    let promised = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if promised > limit {
        return Ok(Err(Unread::TooLong));
    }
    if memory.grow(promised, Share::Results).is_err() {
        return Ok(Err(Unread::NoRoom));
    }
    let mut bytes = Vec::with_capacity(promised);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| lost(&error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Ok(Err(Unread::TooLong));
        }
        // The announced length is counted already.
        let more = (bytes.len() + data.len()).saturating_sub(memory.bytes());
        if memory.grow(more, Share::Results).is_err() {
            return Ok(Err(Unread::NoRoom));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Ok(bytes))
}

fn lost(error: &hyper::Error) -> Broken {
    Broken::Lost(if error.is_parse() {
        format!("the app's answer is not HTTP: {error}")
    } else {
        "the connection to the app was lost after the call".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use tokio::task;

    use super::*;

    /// Inside, because nobody outside can close a connection just between the look at it and the request.
    #[tokio::test]
    async fn a_request_that_comes_back_was_not_sent() {
        let url = "unix:/none.sock:/rpc".parse().unwrap();
        let channel = Channel::new(&url, None, Budget::new(1 << 20));
        let (near, far) = UnixStream::pair().unwrap();
        let connection = AppConnection::over(Either::Right(near)).await.unwrap();
        drop(far);
        // The runtime learns that it is closed.
        task::yield_now().await;
        let was_sent = AtomicBool::default();
        let request = || Request::new(Full::default());
        let exchanged = channel.exchange_over(connection, 1, &was_sent, request);
        assert!(exchanged.await.is_none());
        assert!(!was_sent.load(Ordering::Relaxed));
    }
}
