//! One connection to one peer, as its callers have it: lines that wait for the kernel, and callers that wait for answers,
//! under one lock. A caller who finds nothing under way writes its line to the socket itself; where calls are under way it
//! adds its line, and the connection's task, woken once for all of them, writes them together.
//!
//! On that lock hangs `executed`. A call is provably not run as long as no byte of its line was handed to the kernel, and
//! may have run from then on. Each call knows the place of its line in everything that the connection ever writes, so that
//! one comparison decides; a line that was not handed over is overwritten with blanks when its caller gives up.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use tokio::{
    net::tcp::OwnedWriteHalf,
    sync::{Notify, oneshot},
    time::Instant,
};

use super::LargeResults;
use crate::{
    call::Call,
    cluster::{Cluster, Peer},
    deadline::Deadline,
    local::LocalInstance,
    name::FunctionName,
    problem::Problem,
    protocol::lines::{self, CallLine, END_OF_CALL, KEPT},
    reply::Returned,
};

/// The most bytes of calls that wait for the kernel; more are refused.
const MAX_WAITING: usize = 16 << 20;
/// The size of arguments, in bytes, up to which a copy costs less than to have the kernel gather them.
const COPIED: usize = 16 << 10;

/// The time left, in milliseconds, above which a call's deadline is watched by the connection's task, which looks at all of them
/// at each of its ticks: a timer for each call, in the wheel that all threads share, would cost about 1 µs. Well above two
/// ticks.
const WATCHED_ABOVE: u64 = 300;

/// A connection to a peer, or one that is being made.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    pub(super) local: Arc<LocalInstance>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) large_results: Arc<LargeResults>,
    /// When its clock started.
    pub(super) started: Instant,
    queue: Mutex<Queue>,
    /// Set once it stands. Its task owns it: the socket is closed when that ends, whoever still has this connection.
    socket: OnceLock<Weak<OwnedWriteHalf>>,
    /// Wakes its task, where that has something to write or an end to see.
    pub(super) woken: Notify,
    /// Whether calls wait and nothing was heard for long.
    pub(super) is_silent: AtomicBool,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// With the peer's answer.
    Answered(Result<Returned, Box<Problem>>),
    /// The peer answered with something else than the contract.
    Garbled,
    /// With an answer that is too large, or for which the memory budget has no room.
    Dropped(Box<Problem>),
    /// The connection ended after the call left.
    Lost,
    /// The peer was found suspect after the call left.
    Silent,
    /// The deadline passed after the call left.
    Expired,
    /// The deadline passed before it left.
    ExpiredUnsent,
    /// The connection takes no further calls, or ended before it left.
    Unsent,
    /// Too much waits to be written.
    Full,
    /// No connection could be made.
    NoConnection,
    /// Who answers at the address did not prove to be the peer.
    WrongInstance,
}

/// What waits to be written, and who waits for an answer.
#[derive(Debug, Default)]
struct Queue {
    status: Status,
    /// What waits to be written, behind what was.
    bytes: Vec<u8>,
    /// How many of `bytes` were handed to the kernel.
    handed: usize,
    /// How many bytes were handed over before `bytes[0]`.
    base: u64,
    /// The most that waited at once since the last tick, in bytes.
    most: usize,
    calls: HashMap<u64, PendingCall>,
    next_id: u64,
    /// Calls whose lines were added since the last flush.
    added: u32,
    is_flush_due: bool,
    /// Whether a call that left passed its deadline and nothing came since then.
    is_unanswered: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Status {
    /// The connection is being made; lines wait.
    #[default]
    Opening,
    Open,
    /// No further call is taken; those under way may still be answered.
    Retired,
    Over,
}

#[derive(Debug)]
struct PendingCall {
    answer: oneshot::Sender<Ending>,
    name: FunctionName,
    /// Where its line begins and ends in everything that the connection ever writes.
    line: std::ops::Range<u64>,
    /// Whether it ends at once when the peer is found suspect, although its line has left: its caller may try again.
    may_move: bool,
    /// Its deadline, where the connection's task ends it then.
    watched: Option<Deadline>,
}

impl Connection {
    /// A connection to `peer`, for [`run`](super::task::run) to open.
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
            queue: Mutex::default(),
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
        let (id, mut answer, is_watched) = match self.submit(call, line, deadline) {
            Ok(taken) => taken,
            Err(ending) => return ending,
        };
        let place = scopeguard::guard(id, |id| self.forget(id));
        let answered = match is_watched {
            true => Some((&mut answer).await),
            false => deadline.bound(&mut answer).await,
        };
        let id = scopeguard::ScopeGuard::into_inner(place);
        match answered {
            Some(ending) => ending.unwrap_or(Ending::Lost),
            None => {
                let ending = self.give_up(id, &mut answer);
                self.woken.notify_one();
                ending
            }
        }
    }

    /// Takes `call` as `line`. Where nothing else is under way the line goes to the socket at once, and nobody is woken for it.
    /// Returns its id, what gets its ending, and whether the connection's task ends it at its deadline; else its caller does.
    fn submit(
        &self,
        call: &Call,
        line: &CallLine<'_>,
        deadline: Deadline,
    ) -> Result<(u64, oneshot::Receiver<Ending>, bool), Ending> {
        let mut queue = self.lock();
        if matches!(queue.status, Status::Retired | Status::Over) {
            return Err(Ending::Unsent);
        }
        let waits = queue.bytes.len() - queue.handed;
        if waits > 0 && waits + line.len() > MAX_WAITING {
            return Err(Ending::Full);
        }
        let now = Instant::now();
        let timeout_ms = deadline.remaining_ms(now);
        let timeout_ms = timeout_ms.ok_or(Ending::ExpiredUnsent)?;
        let (answer, receiver) = oneshot::channel();
        let id = queue.next_id;
        queue.next_id += 1;
        let start = queue.end();
        let at_us = u64::try_from((now - self.started).as_micros()).unwrap_or(u64::MAX);
        lines::begin_call(&mut queue.bytes, id, timeout_ms, at_us, line);
        let is_alone = queue.calls.is_empty() && waits == 0;
        let is_open = queue.status == Status::Open;
        let args = line.args();
        let socket = self.socket.get().filter(|_| is_alone && is_open);
        let left = match socket.and_then(Weak::upgrade) {
            // An error shows when the socket is read.
            Some(socket) => queue.flush_with(args, &socket).unwrap_or(Some(0)),
            None => queue.flush_later(args),
        };
        let is_watched = is_open && timeout_ms > WATCHED_ABOVE;
        let pending = PendingCall {
            answer,
            name: call.name.clone(),
            line: start..queue.end(),
            may_move: call.idempotent || call.key.is_some(),
            watched: is_watched.then_some(deadline),
        };
        queue.calls.insert(id, pending);
        drop(queue);
        match left {
            Some(calls) => self.local.metrics.peers.left_together(calls),
            None => self.woken.notify_one(),
        }
        Ok((id, receiver, is_watched))
    }

    /// Forgets the caller of the call `id`, which is cancelled at once where it left; where it did not, it never leaves.
    fn forget(&self, id: u64) {
        let mut queue = self.lock();
        queue.take_back(id);
        let socket = self.socket.get().and_then(Weak::upgrade);
        let flushed = socket.map(|socket| queue.flush(&socket));
        drop(queue);
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
        self.end(&Ending::Lost, &Ending::Unsent);
        self.woken.notify_one();
    }

    /// Hands what waits to the kernel: how many calls left now, or `None` where it does not take all.
    pub(super) fn flush(&self, socket: &OwnedWriteHalf) -> io::Result<Option<u32>> {
        self.lock().flush(socket)
    }

    /// It stands: `first` goes before every call, and so into the queue before callers find the `socket`.
    pub(super) fn open(&self, first: &[u8], socket: &Arc<OwnedWriteHalf>) {
        let mut queue = self.lock();
        queue.bytes.splice(0..0, first.iter().copied());
        let shift = first.len() as u64;
        for call in queue.calls.values_mut() {
            call.line = call.line.start + shift..call.line.end + shift;
        }
        if queue.status == Status::Opening {
            queue.status = Status::Open;
        }
        drop(queue);
        self.socket.get_or_init(|| Arc::downgrade(socket));
    }

    /// Adds a line that is not a call.
    pub(super) fn add(&self, line: &[u8]) {
        self.lock().bytes.extend_from_slice(line);
    }

    /// Gives the answers that came to those who wait for them.
    pub(super) fn answer(&self, answers: impl Iterator<Item = (u64, Ending)>) {
        let mut queue = self.lock();
        queue.is_unanswered = false;
        for (id, ending) in answers {
            if let Some(call) = queue.calls.remove(&id) {
                // The caller may have gone away.
                let _ = call.answer.send(ending);
            }
        }
    }

    /// Takes back the call `id` at its deadline. Returns its answer, if that came at the last moment, else an ending that
    /// says whether it left.
    fn give_up(&self, id: u64, answer: &mut oneshot::Receiver<Ending>) -> Ending {
        match self.lock().expire(id) {
            Some((_, ending)) => ending,
            None => answer.try_recv().unwrap_or(Ending::Lost),
        }
    }

    /// Gives memory back, ends the watched calls whose deadline has passed, and returns the next deadline. Called at each tick
    /// and when a deadline passes.
    pub(super) fn expire(&self) -> Option<Deadline> {
        let mut queue = self.lock();
        queue.shrink();
        let now = Deadline::since(Instant::now(), Duration::ZERO);
        let mut next: Option<Deadline> = None;
        let mut expired = Vec::new();
        for (id, call) in &queue.calls {
            let Some(deadline) = call.watched else {
                continue;
            };
            if deadline <= now {
                expired.push(*id);
            } else {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
            }
        }
        for id in expired {
            if let Some((call, ending)) = queue.expire(id) {
                let _ = call.answer.send(ending);
            }
        }
        next
    }

    /// Takes no further calls, for the peer was found suspect. Calls that did not leave end, and so do those that may be tried
    /// again.
    pub(super) fn release(&self) {
        let mut queue = self.lock();
        queue.retire();
        let released: Vec<u64> = queue
            .calls
            .iter()
            .filter(|(_, call)| call.may_move || !queue.has_left(&call.line))
            .map(|(id, _)| *id)
            .collect();
        for id in released {
            if let Some((call, has_left)) = queue.take_back(id) {
                let ending = match has_left {
                    true => Ending::Silent,
                    false => Ending::Unsent,
                };
                let _ = call.answer.send(ending);
            }
        }
    }

    pub(super) fn retire(&self) {
        self.lock().retire();
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.lock().status, Status::Opening | Status::Open)
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().status == Status::Over
    }

    /// Whether a call that left has no answer yet, or had none at its deadline.
    pub(super) fn awaits(&self) -> bool {
        let queue = self.lock();
        if queue.is_unanswered {
            return true;
        }
        let mut lines = queue.calls.values().map(|call| &call.line);
        lines.any(|line| queue.has_left(line))
    }

    /// The function of the call `id`, if that is under way.
    pub(super) fn function(&self, id: u64) -> Option<FunctionName> {
        self.lock().calls.get(&id).map(|call| call.name.clone())
    }

    pub(super) fn queued(&self) -> usize {
        let queue = self.lock();
        let lines = queue.calls.values().map(|call| &call.line);
        lines.filter(|line| !queue.has_left(line)).count()
    }

    /// Whether a call is under way. If none is, and the connection `may_end` or takes no further calls, as after a cut, it
    /// is over from now on: under one lock, so that no call enters meanwhile.
    pub(super) fn ends_idle(&self, may_end: bool) -> Idle {
        let mut queue = self.lock();
        if !queue.calls.is_empty() {
            return Idle::Busy;
        }
        if may_end || matches!(queue.status, Status::Retired | Status::Over) {
            queue.status = Status::Over;
            return Idle::Over;
        }
        Idle::Waiting
    }

    /// Ends the connection: calls that left end with `left`, the others with `unsent`, and no further call is taken.
    pub(super) fn end(&self, left: &Ending, unsent: &Ending) {
        let mut queue = self.lock();
        queue.status = Status::Over;
        for (_, call) in std::mem::take(&mut queue.calls) {
            let ending = match queue.has_left(&call.line) {
                true => left,
                false => unsent,
            };
            let _ = call.answer.send(ending.clone());
        }
        // The link may keep an ended connection for long, until it opens the next one.
        (queue.bytes, queue.handed) = (Vec::new(), 0);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a connection has calls under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Idle {
    /// It has.
    Busy,
    /// It has none.
    Waiting,
    /// It has none, and takes none any more.
    Over,
}

impl Queue {
    /// The place behind all bytes that were ever added.
    fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn has_left(&self, line: &std::ops::Range<u64>) -> bool {
        line.start < self.base + self.handed as u64
    }

    fn retire(&mut self) {
        if matches!(self.status, Status::Opening | Status::Open) {
            self.status = Status::Retired;
        }
    }

    /// Removes the call `id`, and returns it with whether it left. If it did, the peer is asked not to start it.
    fn take_back(&mut self, id: u64) -> Option<(PendingCall, bool)> {
        let call = self.calls.remove(&id)?;
        let has_left = self.has_left(&call.line);
        if has_left {
            lines::write_cancel(&mut self.bytes, id);
        } else {
            self.blank(&call.line);
        }
        Some((call, has_left))
    }

    /// Removes the call `id`, whose deadline has passed, and returns it with how it ended.
    fn expire(&mut self, id: u64) -> Option<(PendingCall, Ending)> {
        let (call, has_left) = self.take_back(id)?;
        self.is_unanswered |= has_left;
        let ending = match has_left {
            true => Ending::Expired,
            false => Ending::ExpiredUnsent,
        };
        Some((call, ending))
    }

    /// Overwrites a line that was not handed over with blanks.
    fn blank(&mut self, line: &std::ops::Range<u64>) {
        let place = |at: u64| usize::try_from(at - self.base).unwrap_or(usize::MAX);
        let (start, end) = (place(line.start), place(line.end));
        if let Some(text) = self.bytes.get_mut(start..end.saturating_sub(1)) {
            text.fill(b' ');
        }
    }

    /// Adds the rest of a call whose line was begun.
    fn end_call(&mut self, args: &[u8]) {
        self.added += 1;
        self.bytes.extend_from_slice(args);
        self.bytes.extend_from_slice(END_OF_CALL);
    }

    /// Ends the line of a call, and leaves it to the connection's task to write it; `None` if that has to be woken for it.
    fn flush_later(&mut self, args: &[u8]) -> Option<u32> {
        self.end_call(args);
        std::mem::replace(&mut self.is_flush_due, true).then_some(0)
    }

    /// Ends the line of the only call, and hands it to the kernel. Of large `args`, only what the kernel does not take is
    /// copied.
    fn flush_with(&mut self, mut args: &[u8], socket: &OwnedWriteHalf) -> io::Result<Option<u32>> {
        if args.len() > COPIED {
            let begun = self.bytes.len();
            let slices = [IoSlice::new(&self.bytes), IoSlice::new(args)];
            // An error shows again in the flush.
            let written = socket.try_write_vectored(&slices).unwrap_or(0);
            if written > begun {
                args = &args[written - begun..];
                self.base += written as u64;
                self.bytes.clear();
            } else {
                self.handed = written;
            }
        }
        self.end_call(args);
        self.flush(socket)
    }

    fn flush(&mut self, socket: &OwnedWriteHalf) -> io::Result<Option<u32>> {
        while self.handed < self.bytes.len() {
            match socket.try_write(&self.bytes[self.handed..]) {
                Ok(written) => self.handed += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_flush_due = true;
                    self.compact();
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        self.base += self.bytes.len() as u64;
        self.handed = 0;
        self.most = self.most.max(self.bytes.len());
        self.bytes.clear();
        self.is_flush_due = false;
        Ok(Some(std::mem::take(&mut self.added)))
    }

    /// Keeps as much room as was needed since the last time: to allocate it again for each large call costs more than to
    /// copy the call. Without calls, none is kept.
    fn shrink(&mut self) {
        let least = if self.calls.is_empty() { 0 } else { KEPT };
        let most = std::mem::take(&mut self.most).max(least);
        self.bytes.shrink_to(most);
    }

    /// Drops what was handed over once that is more than what waits.
    fn compact(&mut self) {
        if self.handed > self.bytes.len() / 2 {
            self.bytes.drain(..self.handed);
            self.base += self.handed as u64;
            self.handed = 0;
        }
    }
}
