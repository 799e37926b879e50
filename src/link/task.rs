//! The task of one connection to one peer: opens it, then reads what comes and writes the calls that wait together.
//!
//! It opens with TCP, then the HTTP/1.1 upgrade of `POST /internal/exec`, in which both ends prove that they know the
//! cluster's secret, on this very connection. The secret itself is never sent, and no call is before the peer has proved who
//! it is. Silence is the signal that something is wrong, not a call that takes long: calls under way and nothing heard cause
//! a ping, and silence after that a probe of the peer on another connection, which alone decides whether it is suspect.

use std::{
    fmt::Display,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, OptionFuture};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task,
    time::{self, Instant, Interval, MissedTickBehavior},
};

use super::{
    LARGE,
    connection::{Connection, Ending, Idle},
};
use crate::{
    cluster::{CallSignal, Peer},
    deadline::Deadline,
    local::LocalInstance,
    memory::NoRoom,
    problem::{Code, Executed, Problem, with_causes},
    protocol::{
        CLOCK, Challenge, EXEC, FORWARDED, LINES, NONCE, PROOF, PeerState, Statement,
        lines::{self, Frame, Lines},
    },
    reply::{NO_ROOM, Outcome, ProblemDocument, Returned, TOO_LONG},
    token::Proof,
};

/// How long the peer may take to answer the upgrade once the connection stands.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// Room for what an answer holds besides the result, in bytes.
const AROUND_RESULT: usize = 64 << 10;
/// The largest problem document that answers the upgrade, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// How often a connection looks after itself.
const TICK: Duration = Duration::from_millis(100);
/// Silence, in ticks, after which the peer is asked for a sign of life.
const PING_AFTER: u32 = 2;
/// Silence after a ping, in ticks besides the usual round trip, after which the peer is probed on another connection.
const PROBE_AFTER: u32 = 1;
/// Silence, in ticks, after which a connection to a peer that answers probes is taken for dead.
const DEAD_AFTER: u32 = 10;
/// Ticks for which calls waited and no whole line came, though bytes did, after which the next calls make another connection:
/// what trickles, or brings one long line, holds up no others.
const CLOGGED_AFTER: u32 = 20;
/// How long a connection stays without calls, in ticks: well below the time after which the peer ends it.
const IDLE_AFTER: u32 = 40;
/// How long one to a draining peer stays without calls, in ticks: such a peer ends it sooner.
const IDLE_AFTER_DRAINING: u32 = 5;
/// Silence, in ticks, after which nothing is waited for any more.
const LOST_AFTER: u32 = 600;
/// Ticks between two measurements of the way to a peer that gets calls.
const MEASURE_AFTER: u32 = 10;
/// Ticks between two mentions of a peer that answers calls.
const MENTION_AFTER: u32 = 10;

/// Opens `connection` within `timeout`, and serves it until it ends.
pub(super) async fn run(connection: &Connection, timeout: Duration) {
    let (read, socket, lines, round_trip) = match open(connection, timeout).await {
        Ok(opened) => opened,
        // None of the calls that waited for it left.
        Err(ending) => {
            let (address, cluster) = (connection.peer.address, &connection.cluster);
            match ending {
                // Where connections are refused, this changes nothing: a known cause stands.
                Ending::NoConnection => cluster.report(address, CallSignal::Unreachable),
                Ending::WrongInstance => cluster.report(address, CallSignal::WrongInstance),
                _ => {}
            }
            return connection.end(&ending, &ending);
        }
    };
    let mut tick = time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let usual = round_trip.as_millis() / TICK.as_millis();
    let driver = Driver {
        connection,
        socket,
        lines,
        is_blocked: false,
        was_heard: false,
        was_answered: false,
        is_draining: false,
        quiet: 0,
        clogged: 0,
        idle: 0,
        since_mention: MENTION_AFTER,
        since_measured: 0,
        asked: None,
        probe_after: PING_AFTER + PROBE_AFTER + u32::try_from(usual).unwrap_or(0),
        verdict: None,
        due: None,
    };
    driver.drive(read, tick).await;
}

/// Opens `connection`, within `timeout` for TCP and a second for the upgrade: from then on its callers send their calls. Returns
/// both halves of its socket, the lines that came already, and how long the peer took to answer.
///
/// # Errors
/// How the calls end that wait for it; nothing of them was sent.
async fn open(
    connection: &Connection,
    timeout: Duration,
) -> Result<(OwnedReadHalf, Arc<OwnedWriteHalf>, Lines, Duration), Ending> {
    let connecting = TcpStream::connect(connection.peer.address);
    match time::timeout(timeout, connecting).await {
        Ok(Ok(socket)) => time::timeout(HANDSHAKE, upgraded(connection, socket))
            .await
            .unwrap_or_else(|_| Err(none(connection, "no answer to the upgrade in time"))),
        Ok(Err(error)) => {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                let address = connection.peer.address;
                connection.cluster.report(address, CallSignal::Refused);
            }
            Err(none(connection, error))
        }
        Err(_) => Err(none(connection, "no connection in time")),
    }
}

/// Logs why there is no connection, and returns how the calls that wait for it end.
fn none(connection: &Connection, cause: impl Display) -> Ending {
    tracing::warn!(address = %connection.peer.address, %cause, "no connection");
    Ending::NoConnection
}

async fn upgraded(
    connection: &Connection,
    socket: TcpStream,
) -> Result<(OwnedReadHalf, Arc<OwnedWriteHalf>, Lines, Duration), Ending> {
    // Small lines must not wait for the acknowledgement of earlier ones.
    let _ = socket.set_nodelay(true);
    let asked = Instant::now();
    let challenge = Challenge::new(connection.peer.address);
    let failed = |error: hyper::Error| none(connection, with_causes(&error));
    let handshake = http1::handshake(TokioIo::new(socket)).await;
    let (mut sender, driver) = handshake.map_err(failed)?;
    let request = request(connection, &challenge);
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(connection, response).await);
        }
        let protocol = response.headers().get(UPGRADE);
        if protocol.map(HeaderValue::as_bytes) != Some(LINES.as_bytes()) {
            return Err(none(connection, "it switches to another protocol"));
        }
        let first = confirmation(connection, &challenge, response.headers());
        let first = first.ok_or_else(|| {
            let (address, expected) = (connection.peer.address, &connection.peer.instance);
            tracing::warn!(%address, %expected, "who answers there did not prove to be the instance expected");
            Ending::WrongInstance
        })?;
        let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>();
        let parts = parts.map_err(|_| none(connection, "the connection changed its type"))?;
        let (read, write) = parts.io.into_inner().into_split();
        // Nothing is awaited from here on: given up then, calls that left would end as not sent.
        let round_trip = asked.elapsed();
        connection.peer.stats.note_round_trip(round_trip);
        let LocalInstance { limits, memory, .. } = &*connection.local;
        let mut lines = Lines::new(limits.max_result.saturating_add(AROUND_RESULT), memory);
        lines.push(&parts.read_buf);
        let socket = Arc::new(write);
        connection.open(&first, &socket);
        Ok((read, socket, lines, round_trip))
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        exchanged = &mut exchange => exchanged,
        // When the connection has ended, what it was for has come or failed.
        _ = driver.with_upgrades() => exchange.await,
    }
}

fn request(connection: &Connection, challenge: &Challenge) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(EXEC);
    let mut set = |name: HeaderName, value: String| {
        // Addresses, numbers and hexadecimal digits are header values.
        if let Ok(value) = value.parse() {
            request.headers_mut().insert(name, value);
        }
    };
    set(HOST, connection.peer.address.to_string());
    set(CONNECTION, "upgrade".to_owned());
    set(UPGRADE, LINES.to_owned());
    set(FORWARDED, "1".to_owned());
    if let Some(token) = connection.local.access.cluster.first() {
        set(HeaderName::from_static(NONCE), challenge.nonce.clone());
        let proof = challenge.prove(token, Statement::Opens).to_string();
        set(HeaderName::from_static(PROOF), proof);
    }
    let clock_us = connection.started.elapsed().as_micros().to_string();
    set(HeaderName::from_static(CLOCK), clock_us);
    request
}

/// The line that proves to the peer who asks; `None` where the peer did not prove who it is.
fn confirmation(
    connection: &Connection,
    challenge: &Challenge,
    headers: &HeaderMap,
) -> Option<Vec<u8>> {
    let Some(token) = connection.local.access.cluster.first() else {
        return Some(Vec::new());
    };
    let text = |name| headers.get(name)?.to_str().ok();
    let (nonce, proof): (_, Proof) = (text(NONCE)?, text(PROOF)?.parse().ok()?);
    let accepts = Statement::Accepts {
        nonce,
        instance: &connection.peer.instance,
        region: &connection.peer.region,
    };
    let confirms = Statement::Confirms { nonce };
    let is_proven = challenge.is_proven(token, accepts, &proof);
    is_proven.then(|| lines::proof_line(&challenge.prove(token, confirms)))
}

/// How calls end if the answer is not an upgrade. Who refuses has not proved who it is: its text is not shown, and only that it
/// is full is believed, until the next probe.
async fn refusal(connection: &Connection, response: Response<Incoming>) -> Ending {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL)
        .collect()
        .await;
    let document: Option<ProblemDocument> = body
        .ok()
        .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
    let code = document.map(|document| document.problem.code);
    let Some(code @ Code::Overloaded) = code else {
        let said = code.map_or_else(String::new, |code| format!(", {code}"));
        return none(
            connection,
            format!("it refused the upgrade with status {status}{said}"),
        );
    };
    let Peer {
        address, instance, ..
    } = &connection.peer;
    tracing::warn!(%address, %code, "a peer refuses calls");
    connection
        .cluster
        .report(*address, CallSignal::Questionable);
    let detail = format!("instance {instance} takes no further connection");
    Ending::Answered(Err(Box::new(Problem::new(code, detail))))
}

/// The task of one connection that stands.
struct Driver<'a> {
    connection: &'a Connection,
    socket: Arc<OwnedWriteHalf>,
    lines: Lines,
    /// Whether the kernel takes nothing more for now.
    is_blocked: bool,
    /// Whether a byte came since the last tick.
    was_heard: bool,
    /// Whether a whole line came since the last tick.
    was_answered: bool,
    /// Whether the peer said that it drains.
    is_draining: bool,
    /// Ticks for which calls waited and nothing was heard.
    quiet: u32,
    /// Ticks for which calls waited and no whole line came.
    clogged: u32,
    /// Ticks without a call under way since the last answer.
    idle: u32,
    since_mention: u32,
    since_measured: u32,
    /// When the peer was asked for a sign of life that it has not given yet.
    asked: Option<Instant>,
    probe_after: u32,
    /// The probe that decides whether the peer is suspect, while it is under way.
    verdict: Option<BoxFuture<'static, PeerState>>,
    /// The first deadline of a call that is watched, once it is so near that the next tick may come too late.
    due: Option<Deadline>,
}

/// What ends a connection.
enum Over {
    /// Nothing is left to do.
    Done,
    /// The peer, or the network, ended it.
    Closed(io::Error),
    /// What came is nothing of ours, and nothing behind it can be trusted.
    Nonsense(&'static str),
}

impl Driver<'_> {
    async fn drive(mut self, mut read: OwnedReadHalf, mut tick: Interval) {
        let over = match self.rounds(&mut read, &mut tick).await {
            Ok(never) => match never {},
            Err(over) => over,
        };
        match over {
            Over::Done => {}
            Over::Closed(cause) => {
                if self.connection.awaits() {
                    tracing::warn!(address = %self.connection.peer.address, %cause, "connection lost");
                    self.report(CallSignal::Questionable);
                }
                self.connection.cut();
            }
            Over::Nonsense(what) => {
                tracing::warn!(address = %self.connection.peer.address, what, "a peer's answer breaks the contract");
                self.report(CallSignal::Questionable);
                self.connection.end(&Ending::Garbled, &Ending::Unsent);
            }
        }
    }

    async fn rounds(
        &mut self,
        read: &mut OwnedReadHalf,
        tick: &mut Interval,
    ) -> Result<std::convert::Infallible, Over> {
        // What came with the answer to the upgrade.
        self.take_lines()?;
        self.flush()?;
        loop {
            tokio::select! {
                read = read.read_buf(self.lines.room()) => match read {
                    Ok(0) => return Err(Over::Closed(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {
                        self.was_heard = true;
                        if self.take_lines()? > 1 {
                            // Callers whose answers came together are about to call again together. For one alone, a
                            // yield would only wake another thread.
                            task::yield_now().await;
                        }
                        self.flush()?;
                    }
                    Err(error) => return Err(Over::Closed(error)),
                },
                () = self.connection.woken.notified() => {
                    task::yield_now().await;
                    self.flush()?;
                    // It may have been cut.
                    self.check_idle(false)?;
                }
                ready = self.socket.writable(), if self.is_blocked => {
                    ready.map_err(Over::Closed)?;
                    self.flush()?;
                }
                _ = tick.tick() => self.look_after()?,
                Some(()) = OptionFuture::from(self.due.map(Deadline::passed)) => self.expire()?,
                Some(state) = OptionFuture::from(self.verdict.as_mut()) => self.after_probe(state),
            }
        }
    }

    /// Gives the lines that came to the callers who wait for them; returns how many were answers.
    fn take_lines(&mut self) -> Result<usize, Over> {
        let mut answers = Vec::new();
        let (mut is_drain_announced, mut is_refusing) = (false, false);
        let outcome = loop {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break Ok(()),
                // The peer may have a larger limit. Other calls on the connection go on.
                Err(lines::TooLong(_)) => match self.skip(TOO_LONG) {
                    Some(ended) => {
                        answers.push(ended);
                        continue;
                    }
                    None => break Err("a line is longer than RPC_MAX_RESULT, and no answer"),
                },
            };
            self.was_answered = true;
            match lines::read_answer(&line) {
                Frame::Answer(id, outcome) => {
                    let outcome = outcome.map_err(|problem| *problem);
                    is_refusing |=
                        matches!(&outcome, Err(problem) if problem.code == Code::Draining);
                    answers.push((id, self.counted(outcome)));
                }
                Frame::Garbled(id) => answers.push((id, Ending::Garbled)),
                Frame::Draining => is_drain_announced = true,
                Frame::Changed => self.report(CallSignal::Changed),
                Frame::Pong => {
                    if let Some(asked) = self.asked.take() {
                        let stats = &self.connection.peer.stats;
                        stats.note_round_trip(asked.elapsed());
                    }
                }
                Frame::Other => {}
                Frame::Nonsense => break Err("a line is no answer"),
            }
        };
        answers.extend(self.without_room());
        let answered = answers.len();
        if answered > 0 {
            // Of short calls one after the other, few are under way at a tick.
            self.idle = 0;
        }
        if is_drain_announced {
            // A connection without calls ends here before the peer ends it. One that was made for a call stays until that
            // is answered.
            self.connection.ends_idle(true);
        }
        if is_refusing {
            // The peer stops when it has answered the calls that it took, and keeps its connections until this end closes
            // those that it does not need. Before the answers are given, so that no caller sends its next call here.
            self.connection.retire();
        }
        self.connection.answer(answers.into_iter());
        self.is_draining |= is_drain_announced;
        let is_due =
            self.was_answered && self.since_mention >= MENTION_AFTER && self.connection.is_open();
        if is_drain_announced || is_due {
            self.since_mention = 0;
            self.report(match self.is_draining {
                true => CallSignal::Draining,
                false => CallSignal::Answered,
            });
        }
        outcome.map_err(Over::Nonsense)?;
        if is_refusing {
            // Over at once where nothing is under way: the next connection is then no reason to give up the one before it,
            // on which calls may be.
            self.check_idle(false)?;
        }
        Ok(answered)
    }

    /// How a call with this outcome ends: with it, if the memory budget has room for it.
    fn counted(&self, mut outcome: Outcome) -> Ending {
        match Returned::count(&mut outcome, &self.connection.local.memory) {
            Ok(()) => Ending::Answered(outcome.map_err(Box::new)),
            Err(NoRoom) => Ending::Dropped(Box::new(Returned::dropped(outcome, NO_ROOM))),
        }
    }

    /// Counts what has come of a long line. If there is no room for it, the rest is discarded, and its call ends.
    fn without_room(&mut self) -> Option<(u64, Ending)> {
        self.lines.count().err()?;
        self.skip(NO_ROOM)
    }

    /// Discards the first line, and ends the call that it answers with `why`; `None` if it answers no call.
    fn skip(&mut self, why: (&str, &str)) -> Option<(u64, Ending)> {
        let (id, problem) = match self.lines.skip() {
            Frame::Answer(id, Ok(returned)) => (id, Returned::dropped(Ok(returned), why)),
            Frame::Answer(id, Err(problem)) if problem.executed == Executed::Yes => {
                (id, Returned::dropped(Err(*problem), why))
            }
            Frame::Answer(id, Err(_)) | Frame::Garbled(id) => (
                id,
                Problem::new(Code::PeerLost, format!("a peer's answer {}", why.1)),
            ),
            Frame::Draining | Frame::Changed | Frame::Pong | Frame::Other | Frame::Nonsense => {
                return None;
            }
        };
        Some((id, Ending::Dropped(Box::new(problem))))
    }

    fn flush(&mut self) -> Result<(), Over> {
        let left = self.connection.flush(&self.socket);
        let left = left.map_err(Over::Closed)?;
        self.is_blocked = left.is_none();
        let peers = &self.connection.local.metrics.peers;
        peers.left_together(left.unwrap_or_default());
        Ok(())
    }

    /// Ends the calls whose deadline has passed, and notes which comes next.
    fn expire(&mut self) -> Result<(), Over> {
        let next = self.connection.expire();
        self.due = next.filter(|next| next.remaining() < 2 * TICK);
        self.flush()
    }

    /// What there is to do at each tick.
    fn look_after(&mut self) -> Result<(), Over> {
        self.expire()?;
        self.since_mention = self.since_mention.saturating_add(1);
        let is_heard = std::mem::take(&mut self.was_heard);
        let awaits = self.connection.awaits();
        self.since_measured += 1;
        if self.since_measured >= MEASURE_AFTER && (awaits || self.was_answered) {
            self.ping()?;
        }
        if std::mem::take(&mut self.was_answered) {
            self.clogged = 0;
        } else if awaits || self.clogged > 0 {
            self.clogged += 1;
        }
        if self.clogged >= CLOGGED_AFTER {
            self.connection.retire();
        }
        if is_heard {
            self.quiet = 0;
        } else if self.quiet >= PING_AFTER || awaits {
            // From the ping on, silence counts also when the calls have been given up meanwhile.
            self.quiet += 1;
            self.after_silence()?;
        }
        let is_silent = self.quiet >= DEAD_AFTER;
        self.connection
            .is_silent
            .store(is_silent, Ordering::Relaxed);
        self.note_large();
        self.check_idle(true)
    }

    /// Notes the function whose result is large as soon as what has come of it says so: on a slow path its end is far, and the
    /// next ones would wait behind it.
    fn note_large(&self) {
        if let Some((id, came)) = self.lines.begun()
            && came > LARGE
            && let Some(name) = self.connection.function(id)
        {
            self.connection.large_results.note(&name, came);
        }
    }

    /// Ends a connection without calls that is retired, or that had none for long.
    fn check_idle(&mut self, is_tick: bool) -> Result<(), Over> {
        let longest = match self.is_draining {
            true => IDLE_AFTER_DRAINING,
            false => IDLE_AFTER,
        };
        match self.connection.ends_idle(self.idle >= longest) {
            Idle::Over => return Err(Over::Done),
            Idle::Busy => self.idle = 0,
            Idle::Waiting if is_tick => {
                self.idle += 1;
                self.lines.give_back();
            }
            Idle::Waiting => {}
        }
        Ok(())
    }

    /// What follows from silence while calls are under way.
    fn after_silence(&mut self) -> Result<(), Over> {
        if self.quiet == PING_AFTER {
            self.ping()?;
        }
        let since = self.quiet.checked_sub(self.probe_after);
        if since.is_some_and(|since| since % DEAD_AFTER == 0) && self.verdict.is_none() {
            let Connection { cluster, peer, .. } = self.connection;
            let (cluster, address) = (Arc::clone(cluster), peer.address);
            self.verdict = Some(Box::pin(async move { cluster.probe(address).await }));
        }
        if self.quiet >= LOST_AFTER {
            return Err(Over::Closed(io::ErrorKind::TimedOut.into()));
        }
        Ok(())
    }

    /// Asks the peer for a sign of life, which is a measurement too.
    fn ping(&mut self) -> Result<(), Over> {
        self.since_measured = 0;
        self.asked.get_or_insert_with(Instant::now);
        self.connection.add(lines::PING_LINE);
        self.flush()
    }

    /// What follows from the peer's state, as the probe after a silence found it.
    fn after_probe(&mut self, state: PeerState) {
        self.verdict = None;
        match state {
            PeerState::Suspect => {
                tracing::warn!(address = %self.connection.peer.address, "a peer does not answer; calls that may move do");
                self.connection.release();
            }
            // The peer lives and this connection does not, as behind a router that forgot it: the next calls make another.
            PeerState::Ready | PeerState::Draining if self.quiet >= DEAD_AFTER => {
                self.connection.release();
            }
            PeerState::Ready | PeerState::Draining => {}
        }
    }

    fn report(&self, signal: CallSignal) {
        let Connection { cluster, peer, .. } = self.connection;
        cluster.report(peer.address, signal);
    }
}
