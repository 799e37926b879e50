//! `POST /internal/exec` with many calls, a line each: every line runs by itself, and its answer is written as soon as it
//! is there, together with what else is ready. A slow line holds up nothing.
//!
//! Lines come in the body of a request, or on a connection that another instance upgraded. On the latter the instance that
//! asks may take calls back, asks for signs of life, and stamps each line with the time on the connection's clock.

use std::{collections::HashSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::{self, FuturesUnordered},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    task,
    time::{self, Instant, MissedTickBehavior},
};
use tracing::{Instrument, Span};

use super::{Clock, Confirmation, ENVELOPE, ended};
use crate::{
    dispatch::Report,
    gate::Waiting,
    http::{Api, layers::Context, response::with_room},
    lifecycle::Phase,
    memory::{Reserved, Share},
    problem::{Code, Problem},
    protocol::{
        Exec,
        lines::{DRAINING_LINE, KEPT, Lines, NDJSON, PONG_LINE, TooLong, control, write_answer},
    },
    reply::Meta,
    trace,
};

/// How long a request without a call under way may stay open.
const IDLE: Duration = Duration::from_secs(30);
/// How long it may stay open once the instance refuses calls: peers know, and end it themselves.
const GRACE: Duration = Duration::from_secs(1);
/// The size of lines that are not counted by themselves while their calls run, in bytes: `RPC_MAX_IN_FLIGHT` bounds them.
const SMALL: usize = 1 << 10;
/// How many bytes are read, or gathered to be written, before what is there is worked on.
const PIECE: usize = 256 << 10;

/// How many calls of one exchange may be at work or wait to be written before no further line is read, at the least; twice
/// `RPC_MAX_IN_FLIGHT` where that is more, so that calls beyond that limit are refused, and pings answered, at once.
const MIN_MAX_RUNNING: usize = 2048;

pub(super) fn body(api: Arc<Api>, context: Context, body: Body) -> Response {
    let mut exchange = Exchange::new(api, context, None);
    exchange.announce_phase();
    let request = (exchange, Some(body.into_data_stream()));
    let pieces = stream::unfold(request, async |(mut exchange, mut body)| {
        let piece = exchange.next_piece(&mut body).await?;
        Some((Ok::<_, Infallible>(piece), (exchange, body)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
}

/// Answers the lines that come on `connection` until either side ends it. Nothing runs before the line of `confirmation`
/// has come, where one is wanted.
pub(super) async fn serve(
    api: Arc<Api>,
    context: Context,
    clock: Clock,
    mut confirmation: Option<Confirmation>,
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
) {
    let mut exchange = Exchange::new(api, context, Some(clock));
    exchange.announce_phase();
    let mut tick = time::interval(GRACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = Duration::ZERO;
    loop {
        if connection.write_all(&exchange.out).await.is_err() {
            return;
        }
        exchange.clear_written();
        tokio::select! {
            biased;
            // What has ended goes before what is to begin: otherwise answers pile up behind a peer that sends on and on.
            Some((id, report)) = exchange.running.next() => exchange.put(id, report),
            read = connection.read_buf(exchange.lines.room()), if exchange.may_read() => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
                exchange.gather(&mut connection);
                idle = Duration::ZERO;
                // A peer that sends more than there is room for loses its connection.
                if exchange.lines.count().is_err() {
                    return;
                }
                if !exchange.take_together(&mut confirmation).await {
                    return;
                }
                // What is left of a line and finds no room now is counted again at the next read.
                let _ = exchange.lines.count();
            }
            Ok(()) = exchange.phase.changed() => {
                if *exchange.phase.borrow() == Phase::Cut {
                    return;
                }
                exchange.announce_phase();
            }
            _ = tick.tick() => {
                idle += GRACE;
                exchange.give_back();
            }
        }
        exchange.put_ready();
        if !exchange.running.is_empty() {
            // Functions that are about to end send their answers along.
            task::yield_now().await;
            exchange.put_ready();
        }
        if exchange.running.is_empty() && exchange.out.is_empty() && idle > exchange.patience() {
            return;
        }
    }
}

struct Exchange {
    api: Arc<Api>,
    context: Context,
    lines: Lines,
    /// Set where lines have the time on the connection's clock.
    clock: Option<Clock>,
    /// The calls at work, each with the id of its line.
    running: FuturesUnordered<BoxFuture<'static, (Option<u64>, Report)>>,
    /// Those of them that have not started.
    waiting: Arc<Waiting>,
    phase: watch::Receiver<Phase>,
    /// Whether the peer knows that this instance is draining.
    is_announced: bool,
    out: Vec<u8>,
    /// What `out` takes of the memory budget, so that the next of many results finds no room for it.
    unwritten: Reserved,
}

impl Exchange {
    fn new(api: Arc<Api>, context: Context, clock: Option<Clock>) -> Self {
        Self {
            lines: Lines::new(api.limits.max_body + ENVELOPE, &api.memory),
            clock,
            running: FuturesUnordered::new(),
            waiting: Arc::default(),
            phase: api.lifecycle.watch(),
            is_announced: false,
            out: Vec::new(),
            unwritten: api.memory.take(0),
            context,
            api,
        }
    }

    /// What is ready to be sent, or `None` when all is answered.
    async fn next_piece(&mut self, body: &mut Option<BodyDataStream>) -> Option<Bytes> {
        while self.out.is_empty() {
            if body.is_none() && self.running.is_empty() {
                return None;
            }
            let patience = self.patience();
            tokio::select! {
                biased;
                Some((id, report)) = self.running.next() => self.put(id, report),
                chunk = next_chunk(body), if self.may_read() => self.take(chunk.as_ref(), body).await,
                Ok(()) = self.phase.changed() => self.announce_phase(),
                () = time::sleep(patience), if self.running.is_empty() => *body = None,
            }
        }
        self.put_ready();
        // From here on it counts as part of the answer.
        self.unwritten.clear();
        Some(std::mem::take(&mut self.out).into())
    }

    fn may_read(&self) -> bool {
        let twice = self.api.limits.max_in_flight.saturating_mul(2);
        self.running.len() < twice.max(MIN_MAX_RUNNING)
    }

    fn patience(&self) -> Duration {
        match *self.phase.borrow() {
            Phase::Refusing | Phase::Cut => GRACE,
            Phase::Serving | Phase::Draining => IDLE,
        }
    }

    /// Starts the calls of the lines that came in a body.
    async fn take(&mut self, chunk: Option<&Bytes>, body: &mut Option<BodyDataStream>) {
        match chunk {
            Some(chunk) => self.lines.push(chunk),
            None => *body = None,
        }
        loop {
            match self.lines.next() {
                Ok(Some(line)) => self.start(&line).await,
                Ok(None) if chunk.is_none() => match self.lines.rest() {
                    Some(rest) => self.start(&rest).await,
                    None => return,
                },
                Ok(None) => return,
                Err(too_long) => self.refuse_line(&too_long),
            }
        }
    }

    /// Reads on as long as there is something: what arrived together is read before the first of it runs.
    fn gather(&mut self, connection: &mut (impl AsyncRead + Unpin)) {
        let mut gathered = 0;
        while gathered < PIECE
            && let Some(Ok(length @ 1..)) = connection.read_buf(self.lines.room()).now_or_never()
        {
            gathered += length;
        }
    }

    /// Forgets what was written. A large buffer is kept for the next answers as long as the budget is little used.
    fn clear_written(&mut self) {
        self.out.clear();
        self.unwritten.clear();
        let size = self.out.capacity();
        if size > KEPT && self.unwritten.grow(size, Share::Spare).is_err() {
            self.out.shrink_to(KEPT);
        }
    }

    /// Gives the memory back that nothing is in.
    fn give_back(&mut self) {
        self.lines.give_back();
        self.out.shrink_to_fit();
        self.unwritten.clear();
    }

    /// Starts the calls of the lines that arrived together, unless they were taken back meanwhile, and gives up those that wait
    /// and were taken back now; `false` where the connection was to be confirmed first and was not.
    async fn take_together(&mut self, confirmation: &mut Option<Confirmation>) -> bool {
        let (mut calls, mut cancelled) = (Vec::new(), HashSet::new());
        loop {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(_) if confirmation.is_some() => return false,
                Err(too_long) => {
                    self.refuse_line(&too_long);
                    continue;
                }
            };
            if let Some(wanted) = confirmation.take() {
                if !wanted.is_given_by(&line) {
                    tracing::warn!("a connection for calls was not confirmed");
                    return false;
                }
                continue;
            }
            match control(&line) {
                None => calls.push(line),
                Some(control) => {
                    cancelled.extend(control.cancel);
                    if control.ping.is_some() {
                        self.out.extend_from_slice(PONG_LINE);
                    }
                }
            }
        }
        for id in &cancelled {
            self.waiting.give_up(*id);
        }
        for line in calls {
            self.start_unless(&line, &cancelled).await;
        }
        true
    }

    async fn start(&mut self, line: &[u8]) {
        self.start_unless(line, &HashSet::new()).await;
    }

    async fn start_unless(&mut self, line: &[u8], cancelled: &HashSet<u64>) {
        let mut arrived = Instant::now();
        match Exec::from_line(line, self.api.timeouts) {
            (Some(id), _) if cancelled.contains(&id) => {}
            (id, Ok(mut exec)) => {
                if line.len() > SMALL {
                    match self.api.memory.reserve(line.len(), Share::Results) {
                        Ok(reserved) => exec.call.memory = Some(Arc::new(reserved)),
                        Err(problem) => return self.refuse(id, problem),
                    }
                }
                exec.call.ticket = id.map(|id| self.waiting.ticket(id));
                if let (Some(clock), Some(at_us)) = (&mut self.clock, exec.at_us) {
                    // What the line took longer than others counts against its deadline.
                    let delay = clock.delay(at_us, arrived);
                    arrived = arrived.checked_sub(delay).unwrap_or(arrived);
                }
                let api = Arc::clone(&self.api);
                let request_id = exec.request_id.clone();
                let request_id = request_id.unwrap_or_else(|| self.context.request_id.clone());
                let span = trace::exec_span(&request_id, exec.call.trace);
                let run = async move {
                    let report = api.dispatcher.exec(&exec, request_id, arrived).await;
                    ended(&Span::current(), &exec, &report);
                    (id, report)
                };
                // Most functions end at once.
                let mut run = run.instrument(span).boxed();
                match future::poll_immediate(run.as_mut()).await {
                    Some((id, report)) => self.put(id, report),
                    None => self.running.push(run),
                }
            }
            (id, Err(problem)) => self.refuse(id, problem),
        }
    }

    /// Refuses the call of a line, and throws the line away as it comes: those behind it are others' calls.
    fn refuse_line(&mut self, line: &TooLong) {
        let (instance, most) = (&self.api.identity.instance, self.api.limits.max_body);
        let detail =
            format!("instance {instance} takes a body of at most {most} bytes (RPC_MAX_BODY)");
        self.refuse(line.id, Problem::new(Code::BodyTooLarge, detail));
        self.lines.skip();
    }

    fn refuse(&mut self, id: Option<u64>, problem: Problem) {
        let region = Some(self.api.identity.region.clone());
        let meta = Meta::untried(region, Duration::ZERO, self.context.request_id.clone());
        let result = Err(problem);
        self.write(id, Report { result, meta });
    }

    fn put(&mut self, id: Option<u64>, report: Report) {
        let report = with_room(report, &self.api.memory);
        self.write(id, report);
    }

    fn write(&mut self, id: Option<u64>, report: Report) {
        let before = self.out.len();
        if before == 0 {
            self.unwritten.clear();
        }
        write_answer(&mut self.out, id, report.result, report.meta);
        self.unwritten.take(self.out.len() - before);
    }

    /// What else is ready travels along.
    fn put_ready(&mut self) {
        while self.out.len() < PIECE
            && let Some(Some((id, report))) = self.running.next().now_or_never()
        {
            self.put(id, report);
        }
    }

    fn announce_phase(&mut self) {
        let is_draining = *self.phase.borrow_and_update() > Phase::Serving;
        if is_draining && !self.is_announced {
            self.is_announced = true;
            self.out.extend_from_slice(DRAINING_LINE);
        }
    }
}

/// The next chunk; `None` at the end, or where the sender was cut off. Waits for ever once it has ended.
async fn next_chunk(body: &mut Option<BodyDataStream>) -> Option<Bytes> {
    match body {
        Some(body) => body.next().await?.ok(),
        None => std::future::pending().await,
    }
}
