//! A client's connection as the server reads and writes it, with what hyper has not: bounds on a client that sends no
//! request, on one that does not take its answer, and on the wait, when the connection is closed, for one that still sends
//! what was refused.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{self, Instant, Sleep},
};

use super::places::Place;
use crate::memory::{Budget, Reserved, Share};

/// How long a request's head may take to arrive, and how long a kept-alive connection may be idle. hyper has such a bound
/// too, and makes a timer of its own for each request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of an answer that waits for it.
const STALL: Duration = Duration::from_secs(10);
/// What hyper reads a head into to begin with, in bytes.
const FIRST_BUFFER: usize = 8 << 10;
/// How long a connection is kept, after a refusal, for the rest of a request that nobody reads.
const LINGER: Duration = Duration::from_secs(1);

/// Whether the other side may still be sending a body that was refused.
///
/// Closing a socket with unread bytes resets the connection, and the reset may overtake the answer (RFC 9112, section
/// 9.6): so what still comes is read and thrown away for a while.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused(Arc<AtomicBool>);

impl Refused {
    /// Notes whether the latest request was refused with its body unread.
    pub(super) fn set(&self, refused: bool) {
        self.0.store(refused, Ordering::Relaxed);
    }
}

/// A client's connection, which has its place for as long as it is open, in whose hands it may be.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TcpStream,
    place: Place,
    /// What came of heads since the last answer, and what it takes of the memory budget.
    head: usize,
    counted: usize,
    reserved: Reserved,
    memory: Arc<Budget>,
    refused: Refused,
    /// Set for the end of the time that a head has, or for earlier.
    headless: Pin<Box<Sleep>>,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, place: Place, refused: Refused, memory: Arc<Budget>) -> Self {
        Self {
            tcp,
            place,
            head: 0,
            counted: 0,
            reserved: memory.take(0),
            memory,
            refused,
            headless: Box::pin(time::sleep(HEAD_TIMEOUT)),
            stalled: None,
            lingering: None,
        }
    }

    /// Counts `bytes` that came, unless they are of a body, which its reader counts. They are reserved once more come and
    /// the head is still not whole: what comes at once may be a head with its body.
    fn count_head(&mut self, bytes: usize) -> io::Result<()> {
        let usage = self.place.usage();
        if usage.is_busy() || usage.is_passed_over() {
            return Ok(());
        }
        let (whole, before) = (self.head, self.counted);
        self.head += bytes;
        if whole <= before.max(FIRST_BUFFER) {
            return Ok(());
        }
        self.counted = whole;
        // The buffer doubles when it is full.
        let room = self.reserved.grow(2 * (whole - before), Share::Strangers);
        room.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    /// Waits for the end of the time that the next head has, while no request is being answered.
    fn poll_headless(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let usage = self.place.usage();
        if usage.is_passed_over() {
            return Poll::Pending;
        }
        // Polled while a request is being answered too: hyper need not read again between its end and the next head.
        while self.headless.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let since = match usage.is_busy() {
                true => now,
                false => usage.idle_since(),
            };
            let end = since + HEAD_TIMEOUT;
            if end <= now {
                return Poll::Ready(());
            }
            // A request came meanwhile: the timer is moved once, not by each of them.
            self.headless.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// What became of a write, unless the client has taken nothing for too long.
    fn unless_stalled(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            if self.counted > 0 {
                self.reserved = self.memory.take(0);
            }
            (self.head, self.counted) = (0, 0);
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(time::sleep(STALL)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.tcp).poll_read(context, buffer) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                ready!(self.poll_headless(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Poll::Ready(self.count_head(buffer.filled().len() - before))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.unless_stalled(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(context, bytes);
        self.unless_stalled(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(context))?;
        }
        if !this.refused.0.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let lingering = this
            .lingering
            .get_or_insert_with(|| Box::pin(time::sleep(LINGER)));
        let mut discarded = [0; 8 << 10];
        while lingering.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            ready!(Pin::new(&mut this.tcp).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
