//! One stream to one peer: a request to `/internal/exec` whose body is written as calls come and whose answer is read as
//! they end. Calls that wait together leave together; one that waits alone leaves at once. No call waits for another.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame as BodyFrame;
use http_body_util::StreamBody;
use reqwest::RequestBuilder;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    hearing::Hearing,
    once_around,
    pending::{Answer, GivenUp, Pending, Queued},
};
use crate::{cluster::Cluster, deadline::Deadline, metrics::HopMetrics};

/// How many calls may wait to leave.
const QUEUE: usize = 1024;
/// How many bytes of calls leave together before the next piece begins.
const PIECE: usize = 64 << 10;
/// How long a stream stays without calls: well below the time after which the peer ends it.
pub(super) const IDLE: Duration = Duration::from_secs(4);
/// How many unanswered calls in a row retire a stream.
const DOUBTS: u32 = 3;

/// A stream to a peer, or one that is about to be.
#[derive(Debug)]
pub(super) struct Stream {
    queue: mpsc::Sender<Queued>,
    shared: Arc<Shared>,
}

/// What both sides of a stream know.
#[derive(Debug)]
pub(super) struct Shared {
    /// The calls that left.
    pub(super) pending: Pending,
    /// Whether a connection stands, so that calls may leave.
    pub(super) is_connected: AtomicBool,
    /// Takes no further calls.
    pub(super) retired: CancellationToken,
    metrics: Arc<HopMetrics>,
}

impl Shared {
    /// Whether nothing leaves any more and nothing is waited for.
    pub(super) fn is_done(&self) -> bool {
        self.retired.is_cancelled() && self.pending.is_empty()
    }
}

/// Why a call is not taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotTaken {
    /// As many calls wait as may.
    Full,
    /// The stream ends; another may be opened.
    Over,
}

/// How a call ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// With the peer's answer, or in place of it with what came.
    Answer(Answer),
    /// At its deadline, after it left.
    Late { peer_is_silent: bool },
    /// At its deadline, before it left.
    LateHere,
    /// It never left: no connection could be made.
    NoConnection,
    /// It never left: the stream ended first.
    NeverLeft,
}

impl Stream {
    /// Opens a stream with `request`, in the background until `stop`.
    pub(super) fn open(
        request: RequestBuilder,
        address: SocketAddr,
        max_answer: usize,
        cluster: Arc<Cluster>,
        metrics: Arc<HopMetrics>,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, calls) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            pending: Pending::default(),
            is_connected: AtomicBool::new(false),
            retired: CancellationToken::new(),
            metrics,
        });
        let hearing = Hearing::new(Arc::clone(&shared), address, cluster, max_answer);
        let request = request.body(body(calls, Arc::clone(&shared)));
        (Self { queue, shared }, hearing.run(request))
    }

    /// Whether it takes calls.
    pub(super) fn is_open(&self) -> bool {
        !self.queue.is_closed() && !self.shared.retired.is_cancelled()
    }

    /// How many calls wait to leave.
    pub(super) fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Notes that a call was not answered and nothing else was heard. The connection may be dead without our knowing:
    /// after a few such calls the next ones try another, which tells.
    pub(super) fn doubt(&self) {
        if self.shared.pending.doubt() >= DOUBTS {
            self.shared.retired.cancel();
        }
    }

    /// Lets a call leave as soon as it can, and waits for its end.
    ///
    /// # Errors
    /// See [`NotTaken`].
    ///
    /// # Cancel safety
    /// When this is dropped, a call that has not left never leaves, and the answer to one that has is dropped.
    pub(super) async fn call(&self, tail: Vec<u8>, deadline: Deadline) -> Result<Ending, NotTaken> {
        let (answer, receiver) = oneshot::channel();
        let pending = &self.shared.pending;
        let mut ticket = Ticket {
            pending,
            id: pending.next_id(),
            receiver,
            is_settled: false,
        };
        let heard_before = pending.heard();
        let queued = Queued {
            id: ticket.id,
            tail,
            deadline,
            answer,
        };
        self.queue.try_send(queued).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Over,
        })?;
        // A queue that closes while a call enters may keep it without ever giving it back.
        if self.queue.is_closed() && pending.take_back(ticket.id, &mut ticket.receiver) {
            return Ok(Ending::NeverLeft);
        }
        let answered = deadline.bound(&mut ticket.receiver).await;
        ticket.is_settled = true;
        Ok(match answered {
            Some(Ok(answer)) => Ending::Answer(answer),
            Some(Err(_)) if deadline.remaining_ms().is_none() => Ending::LateHere,
            Some(Err(_)) if self.shared.is_connected.load(Ordering::Acquire) => Ending::NeverLeft,
            Some(Err(_)) => Ending::NoConnection,
            None => match pending.give_up(ticket.id, heard_before, &mut ticket.receiver) {
                GivenUp::Answered(answer) => Ending::Answer(answer),
                GivenUp::Left { peer_is_silent } => Ending::Late { peer_is_silent },
                GivenUp::Stayed => Ending::LateHere,
            },
        })
    }
}

/// A caller's place among the calls; given back when the caller goes away.
struct Ticket<'a> {
    pending: &'a Pending,
    id: u64,
    receiver: oneshot::Receiver<Answer>,
    is_settled: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.pending.forget(self.id);
        }
    }
}

/// The request's body: what waits, as soon as the connection takes more, until the stream is idle or retired.
fn body(calls: mpsc::Receiver<Queued>, shared: Arc<Shared>) -> reqwest::Body {
    let pieces = stream::unfold((calls, shared), async |(mut calls, shared)| {
        shared.is_connected.store(true, Ordering::Release);
        let piece = next_piece(&mut calls, &shared).await?;
        Some((Ok::<_, Infallible>(BodyFrame::data(piece)), (calls, shared)))
    });
    reqwest::Body::wrap(StreamBody::new(pieces))
}

async fn next_piece(calls: &mut mpsc::Receiver<Queued>, shared: &Shared) -> Option<Bytes> {
    let mut piece = Vec::new();
    while piece.is_empty() {
        let first = tokio::select! {
            first = calls.recv() => first?,
            () = shared.retired.cancelled(), if !calls.is_closed() => {
                calls.close();
                continue;
            }
            () = time::sleep(IDLE), if !calls.is_closed() => {
                if shared.pending.is_empty() {
                    shared.retired.cancel();
                }
                continue;
            }
        };
        // A call that is alone leaves at once. Where others are under way, the callers whose answers came together are
        // about to call again together.
        if !shared.pending.is_empty() {
            once_around().await;
        }
        let more = || calls.try_recv().ok();
        let left = shared.pending.depart(first, more, &mut piece, PIECE);
        shared.metrics.left_together(left);
    }
    Some(piece.into())
}
