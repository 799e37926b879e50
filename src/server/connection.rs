//! One client's connection, served by hyper, to which this adds timeouts for a client that sends no head, takes no answer, or
//! goes on sending a refused body; and what the connection holds counts in its place and in the memory budget until the kernel
//! has the last byte of an answer.

use std::{
    convert::Infallible,
    future, io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use axum::{
    body::{self, Bytes},
    http::{Request, StatusCode},
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered, task::AtomicWaker};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{self, Instant, Sleep},
};

use super::places::{Place, Serving, Usage};
use crate::{
    http::{Crowded, Reached, Routes},
    lifecycle::{Lifecycle, Phase},
    memory::{Budget, Reserved, Share},
};

/// The most headers of a request that hyper reads. This and the next limit are above those of `http`, which answers with
/// a problem document; what is above these gets hyper's bare 431.
const MAX_HEADERS: usize = 256;
/// The largest head of a request that hyper reads, in bytes.
const MAX_HEAD: usize = 128 << 10;
/// The most bytes of an answer that the kernel holds unsent.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;
/// How long a connection without a request so far stays open when the instance stops.
const FIRST_REQUEST: Duration = Duration::from_millis(100);
/// How long a request's head may take to arrive, and how long a kept-alive connection may be idle. hyper has such a bound
/// too, and makes a timer of its own for each request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of an answer that waits for it.
const STALL: Duration = Duration::from_secs(10);
/// What hyper reads a head into to begin with, in bytes.
const FIRST_BUFFER: usize = 8 << 10;
/// How long a connection is kept, after a refusal, for the rest of a request that nobody reads.
const LINGER: Duration = Duration::from_secs(1);

/// How often a connection is polled before its task makes way for others.
const POLLS: u32 = 8;

/// Serves what comes on `tcp` until it ends. The place belongs to the socket, and the drain waits for it. An upgraded socket
/// outlives the task that begins here: whoever took it over holds the place.
pub(super) fn serve(
    tcp: TcpStream,
    place: Place,
    routes: &Routes,
    lifecycle: &Arc<Lifecycle>,
    memory: &Arc<Budget>,
) {
    // Without an address, the other side has gone already.
    let Ok(address) = tcp.local_addr() else {
        return;
    };
    let (routes, memory) = (routes.clone(), Arc::clone(memory));
    let lifecycle = Arc::clone(lifecycle);
    // A connection that is made while the instance refuses calls gets one answer. It is not sent the signal to close, at
    // which hyper would close it without one.
    let is_late = lifecycle.phase() >= Phase::Refusing;
    // Small answers must not wait for the client's acknowledgement of the previous one.
    let _ = tcp.set_nodelay(true);
    // So that a slow reader is seen to read: a socket becomes writable again only once a third of what it holds has
    // gone, which grows to megabytes.
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT);
    let (usage, counted) = (Arc::clone(&place.usage), place.connection.clone());
    let io = TokioIo::new(Stream::new(tcp, place, &memory));
    let served = Arc::clone(&usage);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let serving = served.serve();
        request.extensions_mut().insert(Reached(address));
        if served.is_crowded() {
            request.extensions_mut().insert(Crowded);
        }
        let has_body = !request.body().is_end_stream();
        let (routes, memory) = (routes.clone(), Arc::clone(&memory));
        async move {
            let answer = routes.answer(request).await;
            serving.set_refused(has_body && is_refusal(answer.status()));
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                serving.set_upgraded();
            }
            Ok::<_, Infallible>(answer.map(|body| Answering {
                body,
                serving,
                memory,
            }))
        }
    });
    tokio::spawn(async move {
        // Keeps the drain waiting until the last request has written its log line: the socket has a token too, but is dropped
        // earlier.
        let _counted = counted;
        // Only a signal that was woken is polled: to poll all of them would cost each request more than its parsing.
        let mut signals = FuturesUnordered::from_iter([
            lifecycle.reached(Phase::Cut).map(|()| Signal::Cut).boxed(),
            usage
                .asked_to_give_way
                .notified()
                .map(|()| Signal::GiveWay)
                .boxed(),
            is_overdue(&lifecycle, &usage)
                .map(|()| Signal::GiveWay)
                .boxed(),
        ]);
        if !is_late {
            let may_close = may_close(&lifecycle, &usage).map(|()| Signal::Close);
            signals.push(may_close.boxed());
        }
        let connection = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .keep_alive(!is_late)
            .serve_connection(io, service)
            .with_upgrades();
        let (mut connection, wakes) = (pin!(connection), Arc::<Wakes>::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let ended = loop {
            tokio::select! {
                // A request that came together with a signal is read before the signal is.
                biased;
                ended = future::poll_fn(|cx| wakes.poll(&waker, connection.as_mut(), cx)) => break ended,
                Some(signal) = signals.next() => match signal {
                    Signal::Cut => return,
                    // A request that has just come is answered; one that is not whole is not waited for.
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

/// What a connection is asked besides requests.
enum Signal {
    /// To end now.
    Cut,
    /// To end after the request that it is at, because the instance stops.
    Close,
    /// To make room for another connection, or not to hold up the stop.
    GiveWay,
}

/// Whether an answer may come before the request's body was read.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// Waits until a connection may be asked to close. hyper closes a connection at once that is between two requests, and one
/// whose first request is on its way is the same to it.
async fn may_close(lifecycle: &Lifecycle, usage: &Usage) {
    lifecycle.reached(Phase::Refusing).await;
    // Over at once if the first request came long ago. A connection that nobody uses is closed when the time is over.
    let _ = time::timeout(FIRST_REQUEST, usage.asked.notified()).await;
}

/// Waits until a connection whose request has not come may be closed unanswered, because the instance stops.
async fn is_overdue(lifecycle: &Lifecycle, usage: &Usage) {
    lifecycle.requests_are_overdue().await;
    // Closed earlier, it might be reset before the client has read the refusal.
    if usage.is_refused() {
        time::sleep(LINGER).await;
    }
}

/// A client's socket, which holds its place for as long as it is open, whoever owns it.
#[derive(Debug)]
struct Stream {
    tcp: TcpStream,
    place: Place,
    /// How many bytes of heads came since the last answer, how many of them are counted, and what they take of the memory
    /// budget.
    head: usize,
    counted: usize,
    reserved: Reserved,
    /// Fires when the time for a head is over, or earlier: requests do not move it, it is moved when it fires.
    headless: Pin<Box<Sleep>>,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    fn new(tcp: TcpStream, place: Place, memory: &Arc<Budget>) -> Self {
        Self {
            tcp,
            place,
            head: 0,
            counted: 0,
            reserved: memory.take(0),
            headless: Box::pin(time::sleep(HEAD_TIMEOUT)),
            stalled: None,
            lingering: None,
        }
    }

    /// Counts `bytes` that came of a head; the reader of a body counts that. They are reserved only when more come and the
    /// head is still not whole, because what comes first may be a head with its body.
    fn count_head(&mut self, bytes: usize) -> io::Result<()> {
        let usage = &self.place.usage;
        if usage.is_busy() || usage.is_passed_over() {
            return Ok(());
        }
        // What came before was not a whole head, or a request would be at work.
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

    /// While no request is being answered, waits for the end of the time in which the next head must come.
    fn poll_headless(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let usage = &self.place.usage;
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
            // A request came meanwhile.
            self.headless.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// The result of a write, or an error if the client has taken nothing for too long.
    fn unless_stalled(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            self.reserved.clear();
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
        // Closing a socket with unread bytes resets the connection, and the reset may overtake the answer (RFC 9112, section
        // 9.6): so what still comes of a body that was refused is read and thrown away for a while.
        if !this.place.usage.is_refused() {
            return Poll::Ready(Ok(()));
        }
        // Set once the sending half is closed, so that this goes on here when it is polled again.
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

/// The body of an answer, whose bytes each hold `serving`, and count in `memory`.
///
/// `MapFrame` of http-body-util does not know the size of what it maps, so that each answer would be sent in chunks.
#[derive(Debug)]
struct Answering {
    body: body::Body,
    serving: Serving,
    memory: Arc<Budget>,
}

/// Bytes that hyper has and the kernel has not; hyper drops them when they are written.
struct Unwritten {
    bytes: Bytes,
    _serving: Serving,
    _reserved: Reserved,
}

impl AsRef<[u8]> for Unwritten {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let held = |bytes: Bytes| {
            Bytes::from_owner(Unwritten {
                _reserved: self.memory.take(bytes.len()),
                bytes,
                _serving: self.serving.clone(),
            })
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Nobody polls: a wake goes to the task.
const IDLE: u8 = 0;
/// The future is being polled.
const POLLED: u8 = 1;
/// The future was woken since its last poll began.
const WOKEN: u8 = 2;

/// The wakes of one future, which is polled again at once if it woke itself while it was polled, as hyper's connections do
/// for each request with a body. tokio would put the task at the end of its queue and wake another thread for it: two
/// context switches for each request on an instance that is otherwise idle.
#[derive(Debug, Default)]
struct Wakes {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wakes {
    /// Polls `future`, which is always the same, until it is done or waits for something; `waker` is made of these wakes.
    fn poll<F: Future>(
        &self,
        waker: &Waker,
        mut future: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let Self { state, task } = self;
        // Before the poll: a wake that comes between the end of the poll and the return is for the task.
        task.register(context.waker());
        for _ in 0..POLLS {
            // A swap and not a store, to see what was written before a wake that this replaces.
            state.swap(POLLED, Ordering::SeqCst);
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            let was_not_woken = || {
                let idle = state.compare_exchange(POLLED, IDLE, Ordering::SeqCst, Ordering::SeqCst);
                idle.is_ok()
            };
            if polled.is_ready() || was_not_woken() {
                return polled;
            }
        }
        // It is woken still: that goes to the task, which comes back after others.
        state.swap(IDLE, Ordering::SeqCst);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // While the future is polled, its loop sees this; if it was woken before, its task has been or will be.
        if self.state.swap(WOKEN, Ordering::SeqCst) == IDLE {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future,
        pin::pin,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How often a future that wakes itself the first `times` is polled at once, and its task is woken.
    fn polls_and_wakes(times: u32) -> (u32, u32) {
        let mut polls = 0;
        let count = Arc::<Count>::default();
        {
            let future = pin!(future::poll_fn(|context| {
                polls += 1;
                if polls <= times {
                    context.waker().wake_by_ref();
                }
                Poll::<()>::Pending
            }));
            let waker = Waker::from(Arc::clone(&count));
            let mut context = Context::from_waker(&waker);
            let wakes = Arc::<Wakes>::default();
            let polled = wakes.poll(&Arc::clone(&wakes).into(), future, &mut context);
            assert!(polled.is_pending());
        }
        (polls, count.0.load(Ordering::SeqCst))
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_at_once_and_not_for_ever() {
        assert_eq!(polls_and_wakes(0), (1, 0));
        assert_eq!(polls_and_wakes(1), (2, 0));
        assert_eq!(polls_and_wakes(POLLS - 1), (POLLS, 0));
        assert_eq!(polls_and_wakes(u32::MAX), (POLLS, 1));
    }

    #[test]
    fn a_wake_between_polls_wakes_the_task() {
        let count = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&count));
        let mut inner = None;
        let own = Arc::<Wakes>::default();
        let own_waker = Waker::from(Arc::clone(&own));
        let mut future = pin!(future::poll_fn(|context| {
            inner = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        let mut context = Context::from_waker(&waker);
        for wakes in 1..=2 {
            let polled = own.poll(&own_waker, future.as_mut(), &mut context);
            assert!(polled.is_pending());
            own_waker.wake_by_ref();
            own_waker.wake_by_ref();
            assert_eq!(count.0.load(Ordering::SeqCst), wakes);
        }
        assert!(inner.is_some_and(|inner| inner.will_wake(&own_waker)));
    }
}
