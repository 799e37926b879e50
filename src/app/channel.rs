//! The HTTP connections to the app: over TCP or a unix socket, kept for a second at most, so that no server's keep-alive
//! ends just when a call leaves. Owns whether a request left; what an answer means is decided in `answer.rs`.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
    rt,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    task,
    time::{self, Instant},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::{AppAddress, AppUrl},
    memory::{Budget, Reserved, Share},
};

/// How long an idle connection is kept. Measured: gunicorn's sync worker closes at once and says so, its gthread after
/// 2 s, uvicorn after 5 s, Node after 5 s, Puma after 20 s.
const IDLE: Duration = Duration::from_secs(1);
/// How long a connection may take: the app is on this machine.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a connection that was just used may take until it can be used again.
const READY: Duration = Duration::from_millis(10);
/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The connections to one app.
#[derive(Debug)]
pub(super) struct Channel {
    url: AppUrl,
    host: HeaderValue,
    /// What answers count in while they are read.
    memory: Arc<Budget>,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection; it is closed when this is dropped.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

/// What the app answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Result<Vec<u8>, Unread>,
    /// For the body.
    pub(super) _memory: Option<Reserved>,
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

impl Channel {
    /// The connections to the app at `url`; none yet.
    pub(super) fn new(url: &AppUrl, memory: Arc<Budget>) -> Self {
        let host = match &url.address {
            AppAddress::Tcp(address) => HeaderValue::from_str(address).ok(),
            AppAddress::Unix(_) => None,
        };
        Self {
            url: url.clone(),
            host: host.unwrap_or(HeaderValue::from_static("localhost")),
            memory,
            idle: Mutex::default(),
        }
    }

    /// Where the app is.
    pub(super) fn url(&self) -> &AppUrl {
        &self.url
    }

    /// The whole answer to the request that `build` makes once there is a connection, its body at most `limit` bytes.
    ///
    /// # Cancel safety
    /// Dropping this future closes the connection, which most servers see as the end of the request.
    pub(super) async fn exchange(
        &self,
        limit: usize,
        build: impl Fn() -> Request<Full<Bytes>>,
    ) -> Result<Answer, Broken> {
        while let Some(mut connection) = self.idle().await {
            // One that closed before anything was sent: the next one.
            if let Some(sent) = connection.send(self.with_host(build())).await {
                return self.answer(connection, sent?, limit).await;
            }
        }
        let mut connection = self.connect().await.map_err(Broken::Unreachable)?;
        match connection.send(self.with_host(build())).await {
            Some(sent) => self.answer(connection, sent?, limit).await,
            None => Err(Broken::Unreachable(io::ErrorKind::ConnectionReset.into())),
        }
    }

    fn with_host(&self, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        request
            .headers_mut()
            .insert(header::HOST, self.host.clone());
        request
    }

    async fn answer(
        &self,
        connection: Connection,
        response: http::Response<Incoming>,
        limit: usize,
    ) -> Result<Answer, Broken> {
        let (head, body) = response.into_parts();
        let mut memory = self.memory.take(0);
        let body = read(body, limit, &mut memory).await?;
        // One whose answer was not read to its end is closed.
        if body.is_ok() {
            self.keep(connection);
        }
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
            _memory: Some(memory),
        })
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(Idle {
            connection,
            since: Instant::now(),
        });
    }

    /// The connection that was used last, ready for use.
    async fn idle(&self) -> Option<Connection> {
        loop {
            let Idle { connection, since } = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.pop()?
            };
            if since.elapsed() < IDLE
                && let Some(connection) = connection.ready().await
            {
                return Some(connection);
            }
        }
    }

    /// Closes the connections that were idle for too long.
    pub(super) fn close_idle(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < IDLE && !idle.connection.sender.is_closed());
    }

    async fn connect(&self) -> io::Result<Connection> {
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let connecting = async {
            match &self.url.address {
                AppAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Connection::over(TokioIo::new(stream)).await
                }
                AppAddress::Unix(path) => {
                    Connection::over(TokioIo::new(UnixStream::connect(path).await?)).await
                }
            }
        };
        time::timeout(CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(timed_out()))
    }
}

impl Connection {
    async fn over<S>(stream: S) -> io::Result<Self>
    where
        S: rt::Read + rt::Write + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        let task = task::spawn(async move {
            // What goes wrong is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// The same connection, once it can send; `None` when it is closed, or still busy with what was sent before.
    async fn ready(mut self) -> Option<Self> {
        match time::timeout(READY, self.sender.ready()).await {
            Ok(Ok(())) => Some(self),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// The head of the answer to `request`; `None` when nothing was sent because the connection is closed.
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Option<Result<http::Response<Incoming>, Broken>> {
        match self.sender.try_send_request(request).await {
            Ok(response) => Some(Ok(response)),
            Err(mut error) => match error.take_message() {
                Some(_) => None,
                None => Some(Err(lost(error.error()))),
            },
        }
    }
}

/// A body of at most `limit` bytes, which `memory` has room for.
async fn read(
    mut body: Incoming,
    limit: usize,
    memory: &mut Reserved,
) -> Result<Result<Vec<u8>, Unread>, Broken> {
    let promised = body.size_hint().lower();
    if promised > limit as u64 {
        return Ok(Err(Unread::TooLong));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| lost(&error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Ok(Err(Unread::TooLong));
        }
        if memory.grow(data.len(), Share::Results).is_err() {
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
