//! Listens, accepts and serves connections, and stops in order: tell the peers, refuse, finish, close.
//! Its own accept loop, because `axum::serve` never times out a half-sent header or a silent connection.

mod stream;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use self::stream::{Refused, Stream};
use crate::{
    config::DrainConfig,
    http::Reached,
    lifecycle::{Lifecycle, Phase},
};

/// How long a request's head may take to arrive, and how long a kept-alive connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most headers of a request that hyper reads. This and the next limit are above those of `http`, which answers with
/// a problem document; what is above these gets hyper's bare 431.
const MAX_HEADERS: usize = 256;
/// The largest head of a request that hyper reads, in bytes.
const MAX_HEAD: usize = 128 << 10;
/// The most connections of one listener; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long a connection without a request so far stays open when the instance stops.
const FIRST_REQUEST: Duration = Duration::from_millis(100);
/// How long the accept loop rests when the process has no file descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Whether everything in flight was finished.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// It was.
    Whole,
    /// Something had to be cut when the drain timeout passed.
    Cut,
}

/// Listeners that serve until they are drained.
#[derive(Debug)]
pub(crate) struct Server {
    lifecycle: Arc<Lifecycle>,
    drain: DrainConfig,
    connections: TaskTracker,
    accepting: CancellationToken,
    closing: CancellationToken,
    cut: CancellationToken,
}

impl Server {
    /// Serves each router on its listener in the background.
    pub(crate) fn start(
        listeners: Vec<(TcpListener, Router)>,
        lifecycle: Arc<Lifecycle>,
        drain: DrainConfig,
    ) -> Self {
        let server = Self {
            lifecycle,
            drain,
            connections: TaskTracker::new(),
            accepting: CancellationToken::new(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        for (listener, router) in listeners {
            let accept_loop = AcceptLoop {
                listener,
                router,
                connections: server.connections.clone(),
                closing: server.closing.clone(),
                cut: server.cut.clone(),
            };
            let accepting = server.accepting.clone();
            server.connections.spawn(async move {
                accepting.run_until_cancelled(accept_loop.run()).await;
            });
        }
        server
    }

    /// Stops in order: tells the peers and still serves for the drain delay; then refuses new calls and finishes those
    /// in flight, at most for the drain timeout; then closes every connection.
    pub(crate) async fn drain(&self) -> Drained {
        self.lifecycle.advance(Phase::Draining);
        time::sleep(self.drain.delay).await;
        self.lifecycle.advance(Phase::Refusing);
        self.closing.cancel();
        self.connections.close();
        let deadline = Instant::now() + self.drain.timeout;
        let finished = time::timeout_at(deadline, async {
            self.lifecycle.idle().await;
            self.accepting.cancel();
            self.connections.wait().await;
        });
        if finished.await.is_ok() {
            return Drained::Whole;
        }
        self.abort();
        self.connections.wait().await;
        Drained::Cut
    }

    /// Cuts every connection at once.
    pub(crate) fn abort(&self) {
        self.accepting.cancel();
        self.cut.cancel();
    }
}

/// The listener bound to `address`, a `host:port`, and where it listens.
///
/// # Errors
/// The host has no address, or none of its addresses can be bound.
pub(crate) async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    Ok((listener, local))
}

struct AcceptLoop {
    listener: TcpListener,
    router: Router,
    connections: TaskTracker,
    closing: CancellationToken,
    cut: CancellationToken,
}

impl AcceptLoop {
    async fn run(self) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => self.serve(stream, place),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Without an address, the other side has gone already.
        let Ok(reached) = stream.local_addr() else {
            return;
        };
        let (closing, cut) = (self.closing.clone(), self.cut.clone());
        // A connection that comes later gets one answer: hyper would close it unanswered when told to shut it down.
        let is_late = closing.is_cancelled();
        let router = self.router.clone();
        // Small answers must not wait for the client's acknowledgement of the previous one.
        let _ = stream.set_nodelay(true);
        let refused = Refused::default();
        let io = TokioIo::new(Stream::new(stream, refused.clone()));
        let asked = CancellationToken::new();
        let first = asked.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            first.cancel();
            request.extensions_mut().insert(Reached(reached));
            let has_body = !request.body().is_end_stream();
            let (refused, answered) = (refused.clone(), router.clone().call(request));
            async move {
                let answer = answered.await?;
                refused.set(has_body && answer.status().is_client_error());
                Ok::<_, Infallible>(answer)
            }
        });
        self.connections.spawn(async move {
            let _place = place;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD)
                .keep_alive(!is_late)
                .serve_connection(io, service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let ended = cut.run_until_cancelled(async {
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = may_close(&closing, &asked), if !is_late => connection.as_mut().graceful_shutdown(),
                }
                connection.await
            });
            if let Some(Err(error)) = ended.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

/// Waits until a connection may be told to close: hyper closes one at once that is between two requests, and so also one
/// whose first request is on its way.
async fn may_close(closing: &CancellationToken, asked: &CancellationToken) {
    closing.cancelled().await;
    // A connection that nobody uses closes unanswered when this passes.
    let _ = time::timeout(FIRST_REQUEST, asked.cancelled()).await;
}

/// Whether an error of `accept` tells of the one connection only, so that the next can be accepted at once.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
