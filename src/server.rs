//! Listens, accepts and serves connections, and stops in order: notify the peers, refuse, finish, close.
//! Its own accept loop, because `axum::serve` never times out a half-sent header or a silent connection.

mod connection;
mod open_files;
mod places;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpListener,
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::open_files::{Shares, now as open_files};
#[cfg(feature = "cli")]
pub(crate) use self::open_files::{lower as lower_open_files, raise as raise_open_files};
use self::places::Places;
use crate::{
    config::DrainConfig,
    http::Routes,
    lifecycle::{Lifecycle, Phase},
    memory::Budget,
};

/// Connections that the kernel holds for a listener until they are accepted; tokio asks for 128.
const BACKLOG: i32 = 1024;
/// How long the accept loop rests when the process has no file descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Whether everything in flight was finished.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// Everything was finished.
    Whole,
    /// Something had to be cut when the drain timeout passed.
    Cut,
}

/// Listeners that serve until they are drained.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    lifecycle: Arc<Lifecycle>,
    drain: DrainConfig,
    memory: Arc<Budget>,
    /// The accept loops, and every connection for as long as its socket is open, upgraded or not.
    connections: TaskTracker,
    accepting: CancellationToken,
    /// Those of each listener, for the drain.
    places: Vec<Arc<Places>>,
}

impl Server {
    /// A server without a listener.
    pub(crate) fn new(lifecycle: Arc<Lifecycle>, drain: DrainConfig, memory: &Arc<Budget>) -> Self {
        Self {
            lifecycle,
            drain,
            memory: Arc::clone(memory),
            connections: TaskTracker::new(),
            accepting: CancellationToken::new(),
            places: Vec::new(),
        }
    }

    /// Serves `routes` on `listener`, which holds at most `most` connections. Clients may keep `for_clients` of them busy; the
    /// others are for instances and health checks.
    pub(crate) fn open(
        &mut self,
        listener: TcpListener,
        routes: Routes,
        most: usize,
        for_clients: usize,
    ) {
        let places = Places::new(most, for_clients);
        self.places.push(Arc::clone(&places));
        let this = self.clone();
        self.connections.spawn(async move {
            let accept = this.accept(listener, routes, places);
            this.accepting.run_until_cancelled(accept).await;
        });
    }

    async fn accept(&self, listener: TcpListener, routes: Routes, places: Arc<Places>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let place = places.take(self.connections.token()).await;
                    connection::serve(stream, place, &routes, &self.lifecycle, &self.memory);
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    // No file is left: what is idle gives its own back.
                    places.make_room();
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Stops in order: notifies the peers and still serves for the drain delay; then refuses new calls and finishes those
    /// in flight, at most for the drain timeout; then closes every connection.
    pub(crate) async fn drain(&self) -> Drained {
        self.lifecycle.advance(Phase::Draining);
        // A second drain waits only for what is left of the delay.
        let _ = time::timeout(self.drain.delay, self.lifecycle.reached(Phase::Refusing)).await;
        self.lifecycle.advance(Phase::Refusing);
        self.connections.close();
        let deadline = Instant::now() + self.drain.timeout;
        let finished = time::timeout_at(deadline, async {
            // Until then it accepts connections, to answer that it stops: a closed port would not say so.
            self.lifecycle.idle().await;
            self.accepting.cancel();
            self.connections.wait().await;
        });
        if finished.await.is_ok() {
            return Drained::Whole;
        }
        // An answer that its client takes too slowly is cut too; a connection without a request is only closed.
        let is_answering = self.places.iter().any(|places| places.are_busy());
        match self.cut().await {
            Drained::Whole if !is_answering => Drained::Whole,
            _ => Drained::Cut,
        }
    }

    /// Closes every connection, whatever is in flight: [`Drained::Cut`] if any call was.
    pub(crate) async fn cut(&self) -> Drained {
        let in_flight = self.lifecycle.in_flight();
        self.accepting.cancel();
        self.connections.close();
        self.lifecycle.advance(Phase::Cut);
        self.connections.wait().await;
        match in_flight {
            0 => Drained::Whole,
            _ => Drained::Cut,
        }
    }
}

/// The listener bound to `address`, a `host:port`, and where it listens.
///
/// # Errors
/// The host has no address, or none of its addresses can be bound.
pub(crate) async fn bind(address: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    SockRef::from(&listener).listen(BACKLOG)?;
    let local = listener.local_addr()?;
    Ok((listener, local))
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
