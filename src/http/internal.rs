//! `/internal/*`: the routes of the cluster's instances. A call that arrives here runs here or not at all: alone, or as a
//! line among others. Every line runs by itself, and its answer is written as soon as it is there, together with what else
//! is ready. A slow line holds up nothing.
//!
//! Lines come in the body of a request, or on a connection that another instance upgraded. On the latter the instance that
//! asks may take calls back, asks for signs of life, and stamps each line with the time on the connection's clock.

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode, Version,
        header::{CONNECTION, CONTENT_TYPE, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{self, BoxFuture, OptionFuture},
    stream::{self, FuturesUnordered},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    task,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::{
    io::{ReaderStream, StreamReader},
    task::AbortOnDropHandle,
};
use tracing::{Instrument, Span};

use super::{
    DispatcherState,
    auth::ProvenToken,
    cluster::own_state,
    layers::Context,
    request::{is_ndjson, json_body, lists},
    response::{Json, Refusal},
};
use crate::{
    dispatch::Dispatcher,
    gate::{WaitingCalls, in_own_task},
    lifecycle::Phase,
    local::LocalInstance,
    memory::{Reserved, Share},
    name::random_word,
    problem::{Code, Problem},
    protocol::{
        CLOCK, CatalogueDocument, Clock, DRAINING, Exec, FUNCTIONS, INTRODUCTION, Introduction,
        LINES, NONCE, PROOF, PROTOCOL, STATE, Statement,
        lines::{
            CHANGED_LINE, DRAINING_LINE, KEPT, Lines, NDJSON, PONG_LINE, TooLong, control,
            write_answer,
        },
    },
    reply::{Meta, Report},
    token::Proof,
    trace,
};

/// What a call between instances holds besides its client's body, in bytes.
const ENVELOPE: usize = 4 << 10;

/// Set where a probe came with a proof instead of the token: its answer bears a proof too, made with the same token.
type Proven = Option<Extension<ProvenToken>>;

/// `GET /internal/region`: who this instance is.
pub(super) async fn introduce(State(dispatcher): DispatcherState, proven: Proven) -> Response {
    let identity = dispatcher.local.identity.clone();
    let introduction = Json(Introduction {
        region: identity.region,
        instance: identity.instance,
        boot: Some(dispatcher.local.boot.clone()),
        app: identity.app,
        release: identity.release,
        primary: identity.primary,
        state: own_state(&dispatcher),
        protocol: PROTOCOL,
        catalogue: dispatcher.executor.catalogue().hash().clone(),
        app_state: dispatcher
            .executor
            .app()
            .map(|beside| beside.status().health),
    });
    (proof(&dispatcher.local, INTRODUCTION, proven), introduction).into_response()
}

/// `GET /internal/functions`: the catalogue behind the hash.
pub(super) async fn functions(State(dispatcher): DispatcherState, proven: Proven) -> Response {
    let catalogue = Json(CatalogueDocument::from(&*dispatcher.executor.catalogue()));
    (proof(&dispatcher.local, FUNCTIONS, proven), catalogue).into_response()
}

/// The header of an answer at `path` with the proof that the sender of the probe wants in turn.
fn proof(local: &LocalInstance, path: &str, proven: Proven) -> Option<[(&'static str, String); 1]> {
    let Extension(ProvenToken { token, challenge }) = proven?;
    let answers = Statement::Answers {
        path,
        instance: &local.identity.instance,
        region: &local.identity.region,
        boot: Some(&local.boot),
    };
    Some([(PROOF, challenge.prove(&token, answers).to_string())])
}

/// `POST /internal/exec`: one call that a peer forwarded, or many, a line each, or a connection for more.
pub(super) async fn exec(
    State(dispatcher): DispatcherState,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    if is_upgrade(&request) {
        return accept(dispatcher, context, request);
    }
    let (parts, body) = request.into_parts();
    if is_ndjson(&parts.headers) {
        return body_of_lines(dispatcher, context, body);
    }
    let answer = match run(&dispatcher, context, &parts.headers, body).await {
        Ok(report) => report.into_response(),
        Err(problem) => {
            Refusal::new(problem, Some(&dispatcher.local.identity.region)).into_response()
        }
    };
    // For other clients: to a peer, a line on the connection says that this instance drains.
    let is_stopping = dispatcher.lifecycle.is_stopping();
    let state = is_stopping.then_some([(STATE, DRAINING)]);
    (state, answer).into_response()
}

async fn run(
    dispatcher: &Dispatcher,
    context: Context,
    headers: &HeaderMap,
    body: Body,
) -> Result<Report, Problem> {
    let limit = dispatcher.local.limits.max_body + ENVELOPE;
    let body = json_body(dispatcher, headers, body, limit).await?;
    let mut exec = Exec::from_json(&body.bytes, dispatcher.local.timeouts)?;
    exec.call.memory = Some(Arc::new(body.reserved));
    let span = trace::exec_span(&context.request_id, exec.call.trace);
    let report = dispatcher
        .exec(&exec, context.request_id, context.arrived)
        .instrument(span.clone())
        .await;
    ended(&span, &exec, &report);
    Ok(report)
}

/// Traces and logs the end of a call that a peer forwarded; the peer logs what it means for the client.
fn ended(span: &Span, exec: &Exec, report: &Report) {
    let (function, request_id) = (&exec.call.name, &report.meta.request_id);
    let elapsed_ms = report.meta.elapsed_ms;
    let problem = report.result.as_ref().err();
    trace::ended(span, function, None, problem);
    match problem {
        None => tracing::debug!(%function, elapsed_ms, %request_id, "exec"),
        Some(Problem { code, executed, .. }) => {
            tracing::info!(%function, %code, %executed, elapsed_ms, %request_id, "exec");
        }
    }
}

/// Whether a request asks for a connection of lines (RFC 9110, section 7.8).
pub(super) fn is_upgrade(request: &Request) -> bool {
    let headers = request.headers();
    headers.get(UPGRADE).map(HeaderValue::as_bytes) == Some(LINES.as_bytes())
        && request.version() == Version::HTTP_11
        && lists(headers, &CONNECTION, "upgrade")
}

/// Answers a request that asks for a connection, and serves it in the background until either side ends it. Also while the
/// instance refuses new calls: a repeat of a call that it took is not a new one, and only the executor knows which are.
fn accept(dispatcher: Arc<Dispatcher>, context: Context, mut request: Request) -> Response {
    let clock_us = request
        .headers()
        .get(CLOCK)
        .and_then(|at| at.to_str().ok()?.parse().ok());
    let clock = Clock::new(clock_us.unwrap_or(0), context.arrived);
    let proven = request.extensions().get::<ProvenToken>();
    let proofs = proven.map(|proven| proofs(&dispatcher.local, proven));
    let (own, awaited) = proofs.unzip();
    let upgraded = hyper::upgrade::on(&mut request);
    let lifecycle = Arc::clone(&dispatcher.lifecycle);
    // This task needs no tracker: it holds the connection's place, for which the drain waits.
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let connection = TokioIo::new(upgraded);
                // A peer that does not read delays the stop no longer than a client does.
                tokio::select! {
                    // The answers of calls that have ended are written first.
                    biased;
                    _ = serve(dispatcher, context, Some(clock), awaited, connection) => {}
                    () = lifecycle.reached(Phase::Cut) => {}
                }
            }
            Err(error) => tracing::debug!(%error, "a connection for calls was not made"),
        }
    });
    // RFC 9110, section 15.2.2.
    let upgrade = [(CONNECTION, "upgrade"), (UPGRADE, LINES)];
    (StatusCode::SWITCHING_PROTOCOLS, upgrade, own, ()).into_response()
}

/// The proof that this instance accepts a connection, in headers with a nonce; and the proof that the other end must make of
/// that nonce in its first line.
fn proofs(local: &LocalInstance, proven: &ProvenToken) -> ([(&'static str, String); 2], Proof) {
    let ProvenToken { token, challenge } = proven;
    let nonce = random_word();
    let accepts = Statement::Accepts {
        nonce: &nonce,
        instance: &local.identity.instance,
        region: &local.identity.region,
    };
    let accepts = challenge.prove(token, accepts).to_string();
    let confirms = challenge.prove(token, Statement::Confirms { nonce: &nonce });
    ([(NONCE, nonce), (PROOF, accepts)], confirms)
}

/// How long a request without a call under way may stay open.
const IDLE: Duration = Duration::from_secs(30);
/// How long it may stay open once the instance refuses calls: peers know, and end it themselves.
const GRACE: Duration = Duration::from_secs(1);
/// The size of lines that are not counted by themselves while their calls run, in bytes: `RPC_MAX_IN_FLIGHT` bounds them.
const SMALL: usize = 1 << 10;
/// How many bytes are read, or gathered to be written, before what is there is worked on.
const PIECE: usize = 256 << 10;
/// The same of the body of an answer, whose unread bytes are not counted in the memory budget.
const BODY_PIECE: usize = 16 << 10;

/// No further line is read while this many calls of one exchange are at work or wait to be written. It is twice
/// `RPC_MAX_IN_FLIGHT` where that is more, so that calls beyond that limit are refused, and pings answered, at once.
const MIN_MAX_RUNNING: usize = 2048;

/// Answers the lines in the body of a request by lines in that of the answer.
fn body_of_lines(dispatcher: Arc<Dispatcher>, context: Context, body: Body) -> Response {
    let lines = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    let (answers, written) = io::duplex(BODY_PIECE);
    let served = serve(dispatcher, context, None, None, io::join(lines, written));
    // Whoever does not want the answers any more gives up the calls that have not started.
    let served = AbortOnDropHandle::new(task::spawn(served.in_current_span()));
    let pieces = ReaderStream::with_capacity(answers, BODY_PIECE);
    // A body that lacks the answer to a call, which may have run, must not look whole.
    let end = stream::once(served).filter_map(async |served| {
        let is_whole = served.unwrap_or(false);
        (!is_whole).then(|| Err(std::io::ErrorKind::UnexpectedEof.into()))
    });
    let pieces = Body::from_stream(pieces.chain(end));
    ([(CONTENT_TYPE, NDJSON)], pieces).into_response()
}

/// Answers the lines that come on `connection` until either side ends it. The first line must give the proof that is
/// `awaited`, if one is. Without a `clock` it is the body of a request, which ends before its answers do, and that
/// of the answer. Returns whether every line was answered.
async fn serve(
    dispatcher: Arc<Dispatcher>,
    context: Context,
    clock: Option<Clock>,
    awaited: Option<Proof>,
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
) -> bool {
    let is_body = clock.is_none();
    // A peer that calls all the time probes rarely, and would learn late that the app changed, also if it did before this
    // connection.
    let app = dispatcher.executor.app().filter(|_| !is_body);
    let mut app = app.map(|app| app.changes());
    let mut exchange = Exchange::new(dispatcher, context, clock, awaited);
    exchange.announce_phase();
    let mut tick = time::interval(GRACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut idle, mut has_ended) = (Duration::ZERO, false);
    loop {
        if connection.write_all(&exchange.out).await.is_err() {
            return false;
        }
        exchange.clear_written();
        if has_ended && exchange.running.is_empty() {
            return true;
        }
        tokio::select! {
            biased;
            // What has ended goes before what is to begin: otherwise answers pile up behind a peer that sends on and on.
            Some((id, report)) = exchange.running.next() => exchange.put(id, report),
            read = connection.read_buf(exchange.lines.room()), if !has_ended && exchange.may_read() => {
                match read {
                    Ok(1..) => exchange.gather(&mut connection),
                    _ if is_body => {
                        has_ended = true;
                        // The last line may have no end of its own.
                        exchange.lines.push(b"\n");
                    }
                    _ => return false,
                }
                idle = Duration::ZERO;
                if !exchange.take_together().await {
                    return false;
                }
            }
            Ok(()) = exchange.phase.changed() => {
                if *exchange.phase.borrow() == Phase::Cut {
                    return false;
                }
                exchange.announce_phase();
            }
            Some(Ok(())) = OptionFuture::from(app.as_mut().map(|app| app.changed())) => {
                exchange.out.extend_from_slice(CHANGED_LINE);
            }
            _ = tick.tick() => {
                idle = match exchange.running.is_empty() {
                    true => idle + GRACE,
                    false => Duration::ZERO,
                };
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
            // The rest of a body that did not come may be calls.
            return !is_body;
        }
    }
}

struct Exchange {
    dispatcher: Arc<Dispatcher>,
    context: Context,
    lines: Lines,
    /// Set where lines have the time on the connection's clock.
    clock: Option<Clock>,
    /// What the next line must prove before any call runs.
    awaited: Option<Proof>,
    /// The calls at work, each with the id of its line.
    running: FuturesUnordered<BoxFuture<'static, (Option<u64>, Report)>>,
    /// Those of them that have not started.
    waiting: Arc<WaitingCalls>,
    phase: watch::Receiver<Phase>,
    /// Whether the peer knows that this instance is draining.
    is_announced: bool,
    out: Vec<u8>,
    /// What `out` takes of the memory budget, so that of many results the next may find no room.
    unwritten: Reserved,
}

impl Exchange {
    fn new(
        dispatcher: Arc<Dispatcher>,
        context: Context,
        clock: Option<Clock>,
        awaited: Option<Proof>,
    ) -> Self {
        Self {
            lines: Lines::new(
                dispatcher.local.limits.max_body + ENVELOPE,
                &dispatcher.local.memory,
            ),
            clock,
            awaited,
            running: FuturesUnordered::new(),
            waiting: Arc::default(),
            phase: dispatcher.lifecycle.watch(),
            is_announced: false,
            out: Vec::new(),
            unwritten: dispatcher.local.memory.take(0),
            context,
            dispatcher,
        }
    }

    fn may_read(&self) -> bool {
        let twice = self.dispatcher.local.limits.max_in_flight.saturating_mul(2);
        self.running.len() < twice.max(MIN_MAX_RUNNING)
    }

    fn patience(&self) -> Duration {
        match *self.phase.borrow() {
            Phase::Refusing | Phase::Cut => GRACE,
            Phase::Serving | Phase::Draining => IDLE,
        }
    }

    /// Reads on as long as there is something: all lines that arrived together are read before the first of their calls
    /// runs.
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

    /// Gives the memory of empty buffers back.
    fn give_back(&mut self) {
        self.lines.give_back();
        self.out.shrink_to_fit();
        self.unwritten.clear();
    }

    /// Starts the calls of the lines that arrived together, except those that one of the lines cancels; a call that waits
    /// is given up when it is cancelled. Returns `false` if the connection was to be confirmed first and was not.
    async fn take_together(&mut self) -> bool {
        let (mut calls, mut cancelled) = (Vec::new(), HashSet::new());
        loop {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(_) if self.awaited.is_some() => return false,
                Err(too_long) => {
                    self.refuse_line(too_long);
                    continue;
                }
            };
            if let Some(awaited) = self.awaited.take() {
                let given = control(&line).and_then(|control| control.proof?.parse().ok());
                if given != Some(awaited) {
                    tracing::warn!("a connection for calls was not confirmed");
                    return false;
                }
                continue;
            }
            // In a body every line is a call.
            match control(&line).filter(|_| self.clock.is_some()) {
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
            self.start(&line, &cancelled).await;
        }
        self.count_rest();
        true
    }

    /// Counts what has come of a line that is not whole; where there is no room for it, its call is refused.
    fn count_rest(&mut self) {
        if let Err(no_room) = self.lines.count() {
            let id = self.lines.begun().map(|(id, _)| id);
            self.refuse(id, no_room.into());
            self.lines.skip();
        }
    }

    /// Starts the call of a line, unless it is among the `cancelled`.
    async fn start(&mut self, line: &[u8], cancelled: &HashSet<u64>) {
        let mut arrived = Instant::now();
        match Exec::from_line(line, self.dispatcher.local.timeouts) {
            (Some(id), _) if cancelled.contains(&id) => {}
            (id, Ok(mut exec)) => {
                if line.len() > SMALL {
                    match self
                        .dispatcher
                        .local
                        .memory
                        .reserve(line.len(), Share::Results)
                    {
                        Ok(reserved) => exec.call.memory = Some(Arc::new(reserved)),
                        Err(no_room) => return self.refuse(id, no_room.into()),
                    }
                }
                exec.call.ticket = id.map(|id| self.waiting.ticket(id));
                if let (Some(clock), Some(at_us)) = (&mut self.clock, exec.at_us) {
                    // What the line took longer than the fastest ones counts against its deadline.
                    let delay = clock.delay(at_us, arrived);
                    arrived = arrived.checked_sub(delay).unwrap_or(arrived);
                }
                let dispatcher = Arc::clone(&self.dispatcher);
                let request_id = exec.request_id.clone();
                let request_id = request_id.unwrap_or_else(|| self.context.request_id.clone());
                let span = trace::exec_span(&request_id, exec.call.trace);
                let run = async move {
                    let report = dispatcher.exec(&exec, request_id, arrived).await;
                    ended(&Span::current(), &exec, &report);
                    (id, report)
                };
                // Most functions end at once.
                let mut run = run.instrument(span).boxed();
                match future::poll_immediate(run.as_mut()).await {
                    Some((id, report)) => self.put(id, report),
                    None => self.running.push(in_own_task(run).boxed()),
                }
            }
            (id, Err(problem)) => self.refuse(id, problem),
        }
    }

    /// Refuses the call of a line that is too long, and discards the line as it comes: those behind it are other calls.
    fn refuse_line(&mut self, TooLong(id): TooLong) {
        let local = &self.dispatcher.local;
        let (instance, most) = (&local.identity.instance, local.limits.max_body);
        let detail =
            format!("instance {instance} takes a body of at most {most} bytes (RPC_MAX_BODY)");
        self.refuse(id, Problem::new(Code::BodyTooLarge, detail));
        self.lines.skip();
    }

    fn refuse(&mut self, id: Option<u64>, problem: Problem) {
        let region = Some(self.dispatcher.local.identity.region.clone());
        let meta = Meta::untried(region, Duration::ZERO, self.context.request_id.clone());
        self.put(id, Report::new(Err(problem), meta));
    }

    /// Adds an answer to those that are to be written.
    fn put(&mut self, id: Option<u64>, report: Report) {
        let before = self.out.len();
        if before == 0 {
            self.unwritten.clear();
        }
        write_answer(&mut self.out, id, report);
        self.unwritten.take(self.out.len() - before);
    }

    /// Adds the other answers that are ready.
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
