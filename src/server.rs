//! Listens, accepts and serves connections, and stops in order: notify the peers, refuse, finish, close.
//! Its own accept loop, because `axum::serve` never times out a half-sent header or a silent connection.

mod answering;
mod open_files;
mod places;
mod self_wakes;
mod stream;

use std::{
    convert::Infallible,
    future, io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Once},
    time::Duration,
};

use axum::http::{Request, StatusCode};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "cli")]
pub(crate) use self::open_files::raise as raise_open_files;
pub(crate) use self::open_files::{Shares, now as open_files};
use self::{
    answering::Answering,
    places::{Place, Places},
    self_wakes::SelfWakes,
    stream::{Refused, Stream},
};
use crate::{
    config::DrainConfig,
    http::{Crowded, Reached, Routes},
    lifecycle::{Lifecycle, Phase},
    memory::Budget,
};

/// The most headers of a request that hyper reads. This and the next limit are above those of `http`, which answers with
/// a problem document; what is above these gets hyper's bare 431.
const MAX_HEADERS: usize = 256;
/// The largest head of a request that hyper reads, in bytes.
const MAX_HEAD: usize = 128 << 10;
/// Connections that the kernel holds for a listener until they are accepted.
const BACKLOG: u32 = 1024;
/// The most bytes of an answer that the kernel holds unsent.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;
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

/// What is served where.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    routes: Routes,
    /// How many connections it holds.
    most: usize,
    /// How many of them clients may keep busy; the others are for instances and health checks.
    for_clients: usize,
}

impl Door {
    /// A door at which `most` connections are held, `for_clients` of them for clients' requests.
    pub(crate) fn new(
        listener: TcpListener,
        routes: Routes,
        most: usize,
        for_clients: usize,
    ) -> Self {
        Self {
            listener,
            routes,
            most,
            for_clients,
        }
    }

    /// A door that is not for clients.
    pub(crate) fn of_instances(listener: TcpListener, routes: Routes, most: usize) -> Self {
        Self::new(listener, routes, most, most)
    }
}

/// Listeners that serve until they are drained.
#[derive(Debug)]
pub(crate) struct Server {
    lifecycle: Arc<Lifecycle>,
    drain: DrainConfig,
    /// The accept loops, and every connection for as long as its socket is open, upgraded or not.
    connections: TaskTracker,
    accepting: CancellationToken,
}

impl Server {
    /// Serves at each door in the background.
    pub(crate) fn start(
        doors: impl Iterator<Item = Door>,
        lifecycle: Arc<Lifecycle>,
        drain: DrainConfig,
        memory: &Arc<Budget>,
    ) -> Self {
        let server = Self {
            lifecycle,
            drain,
            connections: TaskTracker::new(),
            accepting: CancellationToken::new(),
        };
        for door in doors {
            let accept_loop = AcceptLoop {
                places: Places::new(door.most, door.for_clients),
                door,
                connections: server.connections.clone(),
                lifecycle: Arc::clone(&server.lifecycle),
                memory: Arc::clone(memory),
            };
            let accepting = server.accepting.clone();
            server.connections.spawn(async move {
                accepting.run_until_cancelled(accept_loop.run()).await;
            });
        }
        server
    }

    /// Stops in order: notifies the peers and still serves for the drain delay; then refuses new calls and finishes those
    /// in flight, at most for the drain timeout; then closes every connection.
    pub(crate) async fn drain(&self) -> Drained {
        self.lifecycle.advance(Phase::Draining);
        time::sleep(self.drain.delay).await;
        self.lifecycle.advance(Phase::Refusing);
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
        self.cut().await;
        Drained::Cut
    }

    /// Closes every connection, whatever is in flight.
    pub(crate) async fn cut(&self) {
        self.accepting.cancel();
        self.connections.close();
        self.lifecycle.advance(Phase::Cut);
        self.connections.wait().await;
    }
}

/// The listener bound to `address`, a `host:port`, and where it listens.
///
/// # Errors
/// The host has no address, or none of its addresses can be bound.
pub(crate) async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let mut failure = io::Error::new(io::ErrorKind::InvalidInput, "the host has no address");
    for address in lookup_host(address).await? {
        match listen(address) {
            Ok(listener) => {
                let local = listener.local_addr()?;
                return Ok((listener, local));
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

struct AcceptLoop {
    door: Door,
    places: Arc<Places>,
    connections: TaskTracker,
    lifecycle: Arc<Lifecycle>,
    memory: Arc<Budget>,
}

impl AcceptLoop {
    async fn run(self) {
        loop {
            match self.door.listener.accept().await {
                Ok((stream, _)) => {
                    let Some(place) = self.places.take(self.connections.token()).await else {
                        return;
                    };
                    self.serve(stream, place);
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    // No file is left: what is idle gives its own back.
                    self.places.make_room();
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, place: Place) {
        // Without an address, the other side has gone already.
        let Ok(address) = stream.local_addr() else {
            return;
        };
        let lifecycle = Arc::clone(&self.lifecycle);
        // A connection that comes later gets one answer: hyper would close it unanswered when asked to shut it down.
        let is_late = lifecycle.phase() >= Phase::Refusing;
        let routes = self.door.routes.clone();
        // Small answers must not wait for the client's acknowledgement of the previous one.
        let _ = stream.set_nodelay(true);
        // So that a slow reader is seen to read: a socket becomes writable again only once a third of what it holds has
        // gone, which grows to megabytes.
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
        let refused = Refused::default();
        let usage = Arc::clone(place.usage());
        let io = TokioIo::new(Stream::new(
            stream,
            place,
            refused.clone(),
            Arc::clone(&self.memory),
        ));
        let asked = CancellationToken::new();
        let (first, served) = (asked.clone(), Arc::clone(&usage));
        let first_request = Once::new();
        let memory = Arc::clone(&self.memory);
        let service = service_fn(move |mut request: Request<Incoming>| {
            // Cancelling takes a lock each time.
            first_request.call_once(|| first.cancel());
            let serving = served.serve();
            request.extensions_mut().insert(Reached(address));
            if served.is_crowded() {
                request.extensions_mut().insert(Crowded);
            }
            let has_body = !request.body().is_end_stream();
            let (served, refused) = (Arc::clone(&served), refused.clone());
            let (routes, memory) = (routes.clone(), Arc::clone(&memory));
            async move {
                let answer = routes.answer(request).await;
                refused.set(has_body && is_refusal(answer.status()));
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    served.is_upgraded();
                }
                Ok::<_, Infallible>(answer.map(|body| Answering {
                    body,
                    serving,
                    memory,
                }))
            }
        });
        // Its place, which the drain waits for, is the socket's: it may outlive this task in other hands.
        tokio::spawn(async move {
            // Of these, only one that was woken is polled: together they would cost each request more than its parsing.
            let mut signals = FuturesUnordered::from_iter([
                lifecycle.reached(Phase::Cut).map(|()| Signal::Cut).boxed(),
                usage.asked_to_give_way().map(|()| Signal::GiveWay).boxed(),
            ]);
            if !is_late {
                let may_close = may_close(&lifecycle, &asked).map(|()| Signal::Close);
                signals.push(may_close.boxed());
            }
            let connection = http1::Builder::new()
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD)
                .keep_alive(!is_late)
                .serve_connection(io, service)
                .with_upgrades();
            let (mut connection, self_wakes) = (pin!(connection), SelfWakes::new());
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = future::poll_fn(|cx| self_wakes.poll(connection.as_mut(), cx)) => break ended,
                    Some(signal) = signals.next() => match signal {
                        Signal::Cut => return,
                        // A request that has just come is answered; whatever else there is of one is let go.
                        Signal::GiveWay if !usage.is_busy() => return,
                        Signal::GiveWay | Signal::Close => connection.as_mut().graceful_shutdown(),
                    },
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

/// What a connection is asked besides requests.
enum Signal {
    /// To end now.
    Cut,
    /// To end after the request that it is at, because the instance stops.
    Close,
    /// To make room for another connection.
    GiveWay,
}

/// Whether an answer may come before the request's body was read.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE
}

/// Waits until a connection may be asked to close: hyper closes one at once that is between two requests, and so also one
/// whose first request is on its way.
async fn may_close(lifecycle: &Lifecycle, asked: &CancellationToken) {
    lifecycle.reached(Phase::Refusing).await;
    // A connection that nobody uses closes unanswered when this passes.
    let _ = time::timeout(FIRST_REQUEST, asked.cancelled()).await;
}

/// Whether an error of `accept` is about the one connection only, so that the next can be accepted at once.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
