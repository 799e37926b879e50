//! One connection to one peer: an HTTP/1.1 upgrade of `POST /internal/exec`, then lines in both directions.
//!
//! A caller who finds nothing under way writes its line to the socket itself; where calls are under way it adds its line,
//! and the connection's task, woken once for all of them, writes them together. The same task reads the answers. Calls
//! that wait together travel together, and no call waits for another.
//!
//! Silence is the signal that something is wrong, not a call that takes long: calls under way and nothing heard cause a
//! ping, and silence after that a probe of the peer on another connection, which alone decides whether it is suspect.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, OptionFuture};
use tokio::{
    io::AsyncReadExt,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::Notify,
    task,
    time::{self, Instant, Interval, MissedTickBehavior},
};

use super::{
    LARGE, LargeResults,
    open::open,
    outbox::{Ending, Idle, Outbox},
};
use crate::{
    call::Call,
    cluster::{CallSignal, Cluster, Peer},
    deadline::Deadline,
    local::LocalInstance,
    problem::{Code, Problem},
    protocol::{
        PeerState,
        lines::{self, CallLine, Frame, Lines},
    },
    reply::{NO_ROOM, Returned, TOO_LONG},
};

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

/// A connection to a peer, or one that is being made.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    pub(super) local: Arc<LocalInstance>,
    cluster: Arc<Cluster>,
    large_results: Arc<LargeResults>,
    /// When its clock started.
    pub(super) started: Instant,
    pub(super) outbox: Outbox,
    pub(super) socket: OnceLock<OwnedWriteHalf>,
    woken: Notify,
    /// Whether calls wait and nothing was heard for long.
    is_silent: AtomicBool,
}

impl Connection {
    /// A connection to `peer`, for [`run`] to open.
    pub(super) fn new(
        peer: Peer,
        local: Arc<LocalInstance>,
        cluster: Arc<Cluster>,
        large_results: Arc<LargeResults>,
    ) -> Self {
        Self {
            peer,
            local,
            cluster,
            large_results,
            started: Instant::now(),
            outbox: Outbox::default(),
            socket: OnceLock::new(),
            woken: Notify::new(),
            is_silent: AtomicBool::new(false),
        }
    }

    /// Lets a call leave as soon as it can, and waits for its end.
    ///
    /// # Cancel safety
    /// When this is dropped, a call that has not left never leaves; one that has is cancelled, and its answer is dropped.
    pub(super) async fn call(
        &self,
        call: &Call,
        line: &CallLine<'_>,
        deadline: Deadline,
    ) -> Ending {
        let socket = self.socket.get();
        let submitted = self
            .outbox
            .submit(call, line, deadline, self.started, socket);
        let mut taken = match submitted {
            Ok(taken) => taken,
            Err(ending) => return ending,
        };
        match taken.left {
            Some(calls) => self.local.metrics.peers.left_together(calls),
            None => self.woken.notify_one(),
        }
        let place = scopeguard::guard(taken.id, |id| self.forget(id));
        let answered = match taken.is_watched {
            true => Some((&mut taken.answer).await),
            false => deadline.bound(&mut taken.answer).await,
        };
        let id = scopeguard::ScopeGuard::into_inner(place);
        match answered {
            Some(ending) => ending.unwrap_or(Ending::Lost),
            None => {
                let ending = self.outbox.give_up(id, &mut taken.answer);
                self.woken.notify_one();
                ending
            }
        }
    }

    /// Forgets the caller of a call, and cancels the call at once if it left.
    fn forget(&self, id: u64) {
        self.outbox.forget(id);
        let flushed = self.socket.get().map(|socket| self.outbox.flush(socket));
        match flushed {
            Some(Ok(Some(calls))) => self.local.metrics.peers.left_together(calls),
            // The connection's task goes on with it, or finds out what is wrong.
            Some(Ok(None) | Err(_)) | None => self.woken.notify_one(),
        }
    }

    /// Whether bytes came lately, or none are waited for.
    pub(super) fn is_heard(&self) -> bool {
        !self.is_silent.load(Ordering::Relaxed)
    }

    /// Ends it now: calls under way may have run.
    pub(super) fn cut(&self) {
        self.outbox.end(&Ending::Lost, &Ending::Unsent);
        self.woken.notify_one();
    }
}

/// Opens `connection` within `timeout`, and serves it until it ends.
pub(super) async fn run(connection: &Connection, timeout: Duration) {
    let (read, socket, lines, round_trip) = match open(connection, timeout).await {
        Ok(opened) => opened,
        // None of the calls that waited for it left.
        Err(ending) => return connection.outbox.end(&ending, &ending),
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

/// The task of one connection that stands.
struct Driver<'a> {
    connection: &'a Connection,
    socket: &'a OwnedWriteHalf,
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
                if self.connection.outbox.awaits() {
                    tracing::warn!(address = %self.connection.peer.address, %cause, "connection lost");
                    self.report(CallSignal::Unanswered);
                }
                self.connection.cut();
            }
            Over::Nonsense(what) => {
                tracing::warn!(address = %self.connection.peer.address, what, "a peer's answer breaks the contract");
                self.report(CallSignal::Unanswered);
                let outbox = &self.connection.outbox;
                outbox.end(&Ending::Garbled, &Ending::Unsent);
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
                Frame::Answer(id, Ok(returned)) => answers.push((id, self.counted(returned))),
                Frame::Answer(id, Err(problem)) => {
                    is_refusing |= problem.code == Code::Draining;
                    answers.push((id, Ending::Answered(Err(problem))));
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
            self.connection.outbox.ends_idle(true);
        }
        if is_refusing {
            // The peer stops when it has answered the calls that it took, and keeps its connections until this end closes
            // those that it does not need. Before the answers are given, so that no caller sends its next call here.
            self.connection.outbox.retire();
        }
        self.connection.outbox.answer(answers.into_iter());
        self.is_draining |= is_drain_announced;
        let is_due = self.was_answered
            && self.since_mention >= MENTION_AFTER
            && self.connection.outbox.is_open();
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

    /// How a call with this result ends: with it, if the memory budget has room for it.
    fn counted(&self, returned: Returned) -> Ending {
        match returned.counted(&self.connection.local.memory) {
            Ok(returned) => Ending::Answered(Ok(returned)),
            Err(dropped) => Ending::Dropped(Box::new(dropped)),
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
            Frame::Answer(id, Ok(returned)) => (id, returned.dropped(why)),
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
        let left = self.connection.outbox.flush(self.socket);
        let left = left.map_err(Over::Closed)?;
        self.is_blocked = left.is_none();
        let peers = &self.connection.local.metrics.peers;
        peers.left_together(left.unwrap_or_default());
        Ok(())
    }

    /// Ends the calls whose deadline has passed, and notes which comes next.
    fn expire(&mut self) -> Result<(), Over> {
        let next = self.connection.outbox.expire();
        self.due = next.filter(|next| next.remaining() < 2 * TICK);
        self.flush()
    }

    /// What there is to do at each tick.
    fn look_after(&mut self) -> Result<(), Over> {
        self.expire()?;
        self.since_mention = self.since_mention.saturating_add(1);
        let is_heard = std::mem::take(&mut self.was_heard);
        let awaits = self.connection.outbox.awaits();
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
            self.connection.outbox.retire();
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
        let Connection {
            outbox,
            large_results,
            ..
        } = self.connection;
        if let Some((id, came)) = self.lines.begun()
            && came > LARGE
            && let Some(name) = outbox.function(id)
        {
            large_results.note(&name, came);
        }
    }

    /// Ends a connection without calls that is retired, or that had none for long.
    fn check_idle(&mut self, is_tick: bool) -> Result<(), Over> {
        let longest = match self.is_draining {
            true => IDLE_AFTER_DRAINING,
            false => IDLE_AFTER,
        };
        match self.connection.outbox.ends_idle(self.idle >= longest) {
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
        self.connection.outbox.add(lines::PING_LINE);
        self.flush()
    }

    /// What follows from the peer's state, as the probe after a silence found it.
    fn after_probe(&mut self, state: PeerState) {
        self.verdict = None;
        match state {
            PeerState::Suspect => {
                tracing::warn!(address = %self.connection.peer.address, "a peer does not answer; calls that may move do");
                self.connection.outbox.release();
            }
            // The peer lives and this connection does not, as behind a router that forgot it: the next calls make another.
            PeerState::Ready | PeerState::Draining if self.quiet >= DEAD_AFTER => {
                self.connection.outbox.release();
            }
            PeerState::Ready | PeerState::Draining => {}
        }
    }

    fn report(&self, signal: CallSignal) {
        let Connection { cluster, peer, .. } = self.connection;
        cluster.report(peer.address, signal);
    }
}
