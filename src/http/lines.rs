//! `POST /internal/exec` with many calls, a line each: every line runs by itself, and its answer is written as soon as it
//! is there, together with what else is ready. A slow line holds up nothing.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use futures_util::{FutureExt, StreamExt, stream, stream::FuturesUnordered};
use tokio::{sync::watch, time};
use tracing::{Instrument, Span};

use super::{App, ENVELOPE, context::Context, log};
use crate::{
    call::Exec,
    dispatch::Outcome,
    lifecycle::Phase,
    link::{DRAINING_LINE, Lines, NDJSON, once_around, write_answer},
    problem::{Code, Problem},
    reply::Meta,
    trace,
};

/// How long a request without a call under way may stay open.
const IDLE: Duration = Duration::from_secs(30);
/// How long it may stay open once the instance refuses calls: peers were told, and end it themselves.
const GRACE: Duration = Duration::from_secs(1);

/// One call at work.
type Running = Pin<Box<dyn Future<Output = (Option<u64>, Outcome)> + Send>>;

/// Answers the lines of `body`.
pub(super) fn answer(app: Arc<App>, context: Context, body: Body) -> Response {
    let mut exchange = Exchange {
        lines: Lines::new(app.limits.max_body + ENVELOPE),
        phase: app.lifecycle.watch(),
        context,
        body: Some(body.into_data_stream()),
        running: FuturesUnordered::new(),
        is_told: false,
        out: Vec::new(),
        app,
    };
    exchange.tell_phase();
    let pieces = stream::unfold(exchange, async |mut exchange| {
        let piece = exchange.next_piece().await?;
        Some((Ok::<_, Infallible>(piece), exchange))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
}

struct Exchange {
    app: Arc<App>,
    context: Context,
    /// What still comes; `None` once it has ended.
    body: Option<BodyDataStream>,
    lines: Lines,
    running: FuturesUnordered<Running>,
    phase: watch::Receiver<Phase>,
    /// Whether the peer was told that this instance is draining.
    is_told: bool,
    out: Vec<u8>,
}

impl Exchange {
    /// What is ready to be sent, or `None` when all is answered.
    async fn next_piece(&mut self) -> Option<Bytes> {
        while self.out.is_empty() {
            if self.body.is_none() && self.running.is_empty() {
                return None;
            }
            let patience = match *self.phase.borrow() {
                Phase::Refusing => GRACE,
                Phase::Serving | Phase::Draining => IDLE,
            };
            tokio::select! {
                chunk = next_chunk(&mut self.body) => self.take(chunk.as_ref()),
                Some((id, outcome)) = self.running.next() => self.put(id, outcome),
                Ok(()) = self.phase.changed() => self.tell_phase(),
                () = time::sleep(patience), if self.running.is_empty() => self.body = None,
            }
        }
        self.put_ready();
        if !self.running.is_empty() {
            // Functions that are about to end send their answers along.
            once_around().await;
            self.put_ready();
        }
        Some(std::mem::take(&mut self.out).into())
    }

    /// Starts the calls of the lines that came.
    fn take(&mut self, chunk: Option<&Bytes>) {
        match chunk {
            Some(chunk) => self.lines.push(chunk),
            None => self.body = None,
        }
        loop {
            match self.lines.next() {
                Ok(Some(line)) => self.start(&line),
                Ok(None) if chunk.is_none() => match self.lines.rest() {
                    Some(rest) => self.start(&rest),
                    None => return,
                },
                Ok(None) => return,
                Err(_) => {
                    let detail = "a line is longer than RPC_MAX_BODY allows";
                    self.refuse(None, Problem::new(Code::BodyTooLarge, detail));
                    self.body = None;
                    return;
                }
            }
        }
    }

    fn start(&mut self, line: &[u8]) {
        let arrived = time::Instant::now();
        match Exec::from_line(line, self.app.timeouts) {
            (id, Ok(exec)) => {
                let app = Arc::clone(&self.app);
                let request_id = exec.request_id.clone();
                let request_id = request_id.unwrap_or_else(|| self.context.request_id.clone());
                let span = request_id.exec_span();
                trace::join(&span, exec.call.trace);
                let run = async move {
                    let outcome = app.dispatcher.exec(&exec, request_id, arrived).await;
                    let problem = outcome.result.as_ref().err();
                    trace::ended(&Span::current(), &exec.call.name, None, problem);
                    log::exec(&exec.call.name, &outcome);
                    (id, outcome)
                };
                self.running.push(Box::pin(run.instrument(span)));
            }
            (id, Err(problem)) => self.refuse(id, problem),
        }
    }

    fn refuse(&mut self, id: Option<u64>, problem: Problem) {
        let region = Some(self.app.identity.region.clone());
        let meta = Meta::untried(region, Duration::ZERO, self.context.request_id.clone());
        write_answer(&mut self.out, id, Err(problem), meta);
    }

    fn put(&mut self, id: Option<u64>, outcome: Outcome) {
        write_answer(&mut self.out, id, outcome.result, outcome.meta);
    }

    /// What else is ready travels along.
    fn put_ready(&mut self) {
        while let Some(Some((id, outcome))) = self.running.next().now_or_never() {
            self.put(id, outcome);
        }
    }

    fn tell_phase(&mut self) {
        let is_draining = *self.phase.borrow_and_update() > Phase::Serving;
        if is_draining && !self.is_told {
            self.is_told = true;
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
