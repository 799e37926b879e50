//! The path that calls take to their peers, and what each end of a call says about whether the function ran. Knows one
//! attempt; whether there is another is dispatch's decision.

mod alone;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hearing;
#[cfg(feature = "internals")]
pub(crate) mod internals;
mod large;
mod pending;
mod sent;
mod stream;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, header::CONTENT_TYPE};
use serde_json::value::RawValue;
use tokio::task;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::frames::{DRAINING_LINE, Lines, NDJSON, write_answer};
use self::{
    large::{LARGE, LargeResults},
    pending::Answer,
    stream::{Ending, NotTaken, Stream},
};
use crate::{
    call::{Call, Exec},
    client,
    cluster::{Cluster, Encounter, Peer},
    deadline::Deadline,
    metrics::HopMetrics,
    name::RequestId,
    problem::{Code, Executed, Problem},
    reply::ProblemDocument,
    token::Token,
};

/// Tells a peer that the call was already forwarded, so that it is never forwarded again.
pub(crate) const FORWARDED: &str = "rpc-forwarded";
/// Tells, on an answer to a peer, that the instance is draining.
pub(crate) const STATE: &str = "rpc-state";
/// The value of [`STATE`] on a draining instance.
pub(crate) const DRAINING: &str = "draining";

/// Room for what an answer holds besides the result.
const ENVELOPE: usize = 64 << 10;
/// Idle connections kept to one peer for calls that travel alone.
const IDLE_CONNECTIONS: usize = 16;
/// How often a call that never left because its stream ended is given to a new one.
const TRIES: usize = 3;

/// The way to every peer.
#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    cluster: Arc<Cluster>,
    max_answer: usize,
    streams: Mutex<HashMap<SocketAddr, Arc<Stream>>>,
    large_results: LargeResults,
    metrics: Arc<HopMetrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Link {
    /// A link that waits `connect_timeout` for a connection and reads results of at most `max_result` bytes, on requests
    /// that bear `token`; its streams run in `tasks` until `stop`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        connect_timeout: Duration,
        max_result: usize,
        token: Option<&Token>,
        metrics: Arc<HopMetrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, reqwest::Error> {
        let client = client::builder(connect_timeout)
            .default_headers(client::authorization(token))
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build()?;
        Ok(Self {
            client,
            cluster,
            max_answer: max_result.saturating_add(ENVELOPE),
            streams: Mutex::default(),
            large_results: LargeResults::new(),
            metrics,
            tasks,
            stop,
        })
    }

    /// Runs `call` on `peer` within `deadline`.
    ///
    /// # Errors
    /// The problem that the peer told; [`Code::PeerUnreachable`] or [`Code::Overloaded`] when nothing was sent;
    /// [`Code::PeerLost`] when something may have been and no answer of ours came; [`Code::DeadlineExceeded`].
    pub(crate) async fn exec(
        &self,
        peer: &Peer,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
    ) -> Result<Box<RawValue>, Problem> {
        let tail = Exec::tail(&peer.region, call, request_id);
        let ending = if tail.len() > LARGE || self.large_results.are_usual_for(&call.name) {
            self.alone(peer, &tail, deadline, request_id).await
        } else {
            self.together(peer, call, tail, deadline, request_id)
                .await?
        };
        if let Ending::Answer(Answer::Told(Ok(result))) = ending {
            self.large_results.note(&call.name, result.get().len());
            return Ok(result);
        }
        Err(self.verdict(peer, call, ending))
    }

    /// Sends a call by itself.
    async fn alone(
        &self,
        peer: &Peer,
        tail: &[u8],
        deadline: Deadline,
        request_id: &RequestId,
    ) -> Ending {
        let max = self.max_answer;
        let ending = alone::call(&self.client, peer, tail, deadline, request_id, max).await;
        self.cluster.met(
            peer.address,
            match ending {
                Ending::Answer(Answer::Told(_)) => Encounter::Answered,
                Ending::Answer(Answer::Garbled | Answer::Lost) => Encounter::Unanswered,
                Ending::NoConnection => Encounter::Unreachable,
                Ending::Late { .. } | Ending::LateHere | Ending::NeverLeft => return ending,
            },
        );
        ending
    }

    /// Sends a call with those that wait for the same peer; to a new stream where the old one ended first.
    async fn together(
        &self,
        peer: &Peer,
        call: &Call,
        mut tail: Vec<u8>,
        deadline: Deadline,
        request_id: &RequestId,
    ) -> Result<Ending, Problem> {
        for _ in 0..TRIES {
            match self.stream(peer.address).call(tail, deadline).await {
                Ok(Ending::NeverLeft) | Err(NotTaken::Over) => {
                    tail = Exec::tail(&peer.region, call, request_id);
                }
                Ok(ending) => return Ok(ending),
                Err(NotTaken::Full) => {
                    let detail = format!(
                        "too many calls wait to be sent to instance {}",
                        peer.instance
                    );
                    return Err(Problem::new(Code::Overloaded, detail));
                }
            }
        }
        Ok(Ending::NoConnection)
    }

    /// The stream to the peer at `address`, opened if there is none.
    fn stream(&self, address: SocketAddr) -> Arc<Stream> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = streams.get(&address).filter(|stream| stream.is_open()) {
            return Arc::clone(stream);
        }
        streams.retain(|_, stream| stream.is_open());
        let request = self
            .client
            .post(format!("http://{address}/internal/exec"))
            .header(CONTENT_TYPE, NDJSON)
            .header(FORWARDED, "1");
        let cluster = Arc::clone(&self.cluster);
        let metrics = Arc::clone(&self.metrics);
        let (stream, run) = Stream::open(request, address, self.max_answer, cluster, metrics);
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { stop.run_until_cancelled(run).await });
        let stream = Arc::new(stream);
        streams.insert(address, Arc::clone(&stream));
        stream
    }

    /// How many calls wait to leave.
    pub(crate) fn queued(&self) -> usize {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.values().map(|stream| stream.queued()).sum()
    }

    /// What the end of a call without a result says: to its caller, and to discovery about the peer.
    fn verdict(&self, peer: &Peer, call: &Call, ending: Ending) -> Problem {
        let instance = &peer.instance;
        let (code, detail) = match ending {
            Ending::Answer(Answer::Told(Err(document))) => return self.told(peer, *document),
            Ending::Answer(Answer::Told(Ok(_))) => {
                (Code::Internal, "a result is no problem".into())
            }
            Ending::Answer(Answer::Garbled) => (
                Code::PeerLost,
                format!("instance {instance} answered with something else than our contract"),
            ),
            Ending::Answer(Answer::Lost) => (
                Code::PeerLost,
                format!("the connection to instance {instance} was lost after the call"),
            ),
            Ending::NoConnection | Ending::NeverLeft => {
                self.cluster.met(peer.address, Encounter::Unreachable);
                (
                    Code::PeerUnreachable,
                    format!("no connection to instance {instance}"),
                )
            }
            Ending::LateHere => (
                Code::DeadlineExceeded,
                format!("the deadline passed before the call was sent to instance {instance}"),
            ),
            Ending::Late { peer_is_silent } => {
                if peer_is_silent {
                    self.doubt(peer.address);
                }
                let detail = format!(
                    "instance {instance} did not answer {} before the deadline",
                    call.name
                );
                return Problem::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe);
            }
        };
        Problem::new(code, detail)
    }

    /// A call was not answered and nothing else came from the peer meanwhile. Its stream may be dead without our
    /// knowing: the next calls try a new connection, which tells.
    fn doubt(&self, address: SocketAddr) {
        let cluster = Arc::clone(&self.cluster);
        self.tasks.spawn(async move { cluster.ask(address).await });
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = streams.get(&address) {
            stream.doubt();
        }
    }

    /// The problem that a peer told, as the caller may hear it: a refusal of our own request is no affair of the
    /// caller's.
    fn told(&self, peer: &Peer, document: ProblemDocument) -> Problem {
        match document.code {
            Code::WrongRegion => {
                self.cluster.met(peer.address, Encounter::Elsewhere);
                document.into_problem()
            }
            Code::Draining => {
                self.cluster.met(peer.address, Encounter::Draining);
                document.into_problem()
            }
            Code::Overloaded
            | Code::FunctionUnknown
            | Code::InvalidArguments
            | Code::IdempotencyMismatch
            | Code::FunctionFailed
            | Code::FunctionPanicked
            | Code::DeadlineExceeded
            | Code::Internal => document.into_problem(),
            code if document.executed == Executed::No => Problem::new(
                Code::PeerUnreachable,
                format!("instance {} refused the request: {code}", peer.instance),
            ),
            code => Problem::new(
                Code::PeerLost,
                format!("instance {} answered {code}", peer.instance),
            ),
        }
    }
}

/// Waits until the tasks that are ready now have run. A task of its own does the waiting, because whoever polls a body
/// may poll it again at any time.
pub(crate) async fn once_around() {
    // The task cannot fail, and if the runtime ends it, there is nothing to wait for.
    let _ = task::spawn(task::yield_now()).await;
}
