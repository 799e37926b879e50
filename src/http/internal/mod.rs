//! `/internal/*`: the routes of the cluster's instances. A call that arrives here runs here or not at all: alone, as a line
//! among others, or on a connection that both ends keep. `lines.rs` reads lines and answers them.

mod lines;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONNECTION, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::{
    Api, ApiState,
    auth::ProvenToken,
    layers::Context,
    request::{is_ndjson, json_body},
    response::{Json, Refusal, with_room},
};
use crate::{
    dispatch::Report,
    lifecycle::Phase,
    problem::{Code, Problem},
    protocol::{
        CLOCK, CatalogueDocument, DRAINING, Exec, FUNCTIONS, INTRODUCTION, Introduction, LINES,
        NONCE, PROOF, PROTOCOL, Readiness, STATE, Statement, lines::control, new_nonce,
    },
    token::Proof,
    trace,
};

/// What a call between instances holds besides its client's body, in bytes.
const ENVELOPE: usize = 4 << 10;
/// By how much two clocks may run apart: 200 millionths, twice what ordinary quartz does.
const DRIFT: i128 = 5_000;

/// Set where a probe came with a proof in place of the token: its answer has one in turn, made of that very token.
type Proven = Option<Extension<ProvenToken>>;

/// `GET /internal/region`: who this instance is.
pub(super) async fn introduce(State(api): ApiState, proven: Proven) -> Response {
    let identity = api.identity.clone();
    let introduction = Json(Introduction {
        region: identity.region,
        instance: identity.instance,
        boot: Some(api.boot.clone()),
        app: identity.app,
        release: identity.release,
        primary: identity.primary,
        state: match api.lifecycle.is_stopping() {
            true => Readiness::Draining,
            false => Readiness::Ready,
        },
        protocol: PROTOCOL,
        catalogue: api.executor.catalogue().hash().clone(),
        app_state: api.executor.app().map(|beside| beside.status().health),
    });
    (proof(&api, INTRODUCTION, proven), introduction).into_response()
}

/// `GET /internal/functions`: the catalogue behind the hash.
pub(super) async fn functions(State(api): ApiState, proven: Proven) -> Response {
    let catalogue = Json(CatalogueDocument::from(&*api.executor.catalogue()));
    (proof(&api, FUNCTIONS, proven), catalogue).into_response()
}

/// The header of an answer at `path` with the proof that the sender of the probe wants in turn.
fn proof(api: &Api, path: &str, proven: Proven) -> Option<[(&'static str, String); 1]> {
    let Extension(ProvenToken { token, challenge }) = proven?;
    let answers = Statement::Answers {
        path,
        instance: &api.identity.instance,
        region: &api.identity.region,
        boot: Some(&api.boot),
    };
    Some([(PROOF, challenge.prove(&token, answers).to_string())])
}

/// `POST /internal/exec`: one call that a peer forwarded, or many, a line each, or a connection for more.
pub(super) async fn exec(
    State(api): ApiState,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    if is_upgrade(request.headers()) {
        return accept(api, context, request);
    }
    let (parts, body) = request.into_parts();
    if is_ndjson(&parts.headers) {
        return lines::body(api, context, body);
    }
    let answer = match run(&api, context, &parts.headers, body).await {
        Ok(report) => report.into_response(),
        Err(problem) => Refusal::new(problem, Some(&api.identity.region)).into_response(),
    };
    // No peer of this release reads it: that an instance drains is a line on the connection to it.
    let is_stopping = api.lifecycle.is_stopping();
    let state = is_stopping.then_some([(STATE, DRAINING)]);
    (state, answer).into_response()
}

async fn run(
    api: &Api,
    context: Context,
    headers: &HeaderMap,
    body: Body,
) -> Result<Report, Problem> {
    let limit = api.limits.max_body + ENVELOPE;
    let body = json_body(headers, body, limit, &api.memory).await?;
    let mut exec = Exec::from_json(&body.bytes, api.timeouts)?;
    exec.call.memory = Some(Arc::new(body.reserved));
    let span = trace::exec_span(&context.request_id, exec.call.trace);
    let report = api
        .dispatcher
        .exec(&exec, context.request_id, context.arrived)
        .instrument(span.clone())
        .await;
    let report = with_room(report, &api.memory);
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

/// What the first line of a connection must prove.
#[derive(Debug)]
struct Confirmation {
    proven: ProvenToken,
    nonce: String,
}

impl Confirmation {
    fn is_given_by(&self, line: &[u8]) -> bool {
        let ProvenToken { token, challenge } = &self.proven;
        let proof = control(line).and_then(|control| control.proof?.parse().ok());
        let confirms = Statement::Confirms { nonce: &self.nonce };
        proof.is_some_and(|proof: Proof| challenge.is_proven(token, confirms, &proof))
    }
}

pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).map(HeaderValue::as_bytes) == Some(LINES.as_bytes())
}

/// Answers a request that asks for a connection, and serves it in the background until either side ends it.
fn accept(api: Arc<Api>, context: Context, mut request: Request) -> Response {
    if api.lifecycle.phase() >= Phase::Refusing {
        let detail = "this instance is stopping and takes no new calls";
        let problem = Problem::new(Code::Draining, detail);
        return Refusal::new(problem, Some(&api.identity.region)).into_response();
    }
    let clock_us = request
        .headers()
        .get(CLOCK)
        .and_then(|at| at.to_str().ok()?.parse().ok());
    let clock = Clock::new(clock_us.unwrap_or(0), context.arrived);
    let confirmation = request
        .extensions()
        .get::<ProvenToken>()
        .map(|proven| Confirmation {
            proven: proven.clone(),
            nonce: new_nonce(),
        });
    let response = switching(&api, confirmation.as_ref());
    let upgraded = hyper::upgrade::on(&mut request);
    let lifecycle = Arc::clone(&api.lifecycle);
    // No tracker has this task: the drain waits for the place of the connection, which is in it.
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let connection = TokioIo::new(upgraded);
                // A peer that does not read holds up the end no longer than a client does.
                tokio::select! {
                    // First what has ended is written.
                    biased;
                    () = lines::serve(api, context, clock, confirmation, connection) => {}
                    () = lifecycle.reached(Phase::Cut) => {}
                }
            }
            Err(error) => tracing::debug!(%error, "a connection for calls was not made"),
        }
    });
    response
}

/// The answer that switches protocols (RFC 9110, section 15.2.2).
fn switching(api: &Api, confirmation: Option<&Confirmation>) -> Response {
    let proof = confirmation.map(|Confirmation { proven, nonce }| {
        let accepts = Statement::Accepts {
            nonce,
            instance: &api.identity.instance,
            region: &api.identity.region,
        };
        let proof = proven.challenge.prove(&proven.token, accepts);
        [(NONCE, nonce.clone()), (PROOF, proof.to_string())]
    });
    let upgrade = [(CONNECTION, "upgrade"), (UPGRADE, LINES)];
    (StatusCode::SWITCHING_PROTOCOLS, upgrade, proof, ()).into_response()
}

/// How long the lines of one connection were on their way, without comparing clocks.
///
/// Each line has the time on its connection's clock, which the sender started. The difference between the reader's time
/// and that is the delay and an unknown constant; the smallest difference ever seen stands for a line that was not held
/// up, and what a line took beyond it was spent waiting: in the buffers of an instance that hung, or of a network that was
/// cut. Two clocks run apart slowly, so the smallest difference is allowed to grow a little with time.
#[derive(Debug)]
struct Clock {
    started: Instant,
    /// The smallest difference between the reader's and the sender's time, in microseconds, and when it was seen.
    least: (i128, Instant),
}

impl Clock {
    /// The clock of a connection whose upgrade was asked for at `at_us` and arrived at `now`.
    fn new(at_us: u64, now: Instant) -> Self {
        Self {
            started: now,
            least: (-i128::from(at_us), now),
        }
    }

    /// How much longer than the fastest ones the line of `at_us`, read at `now`, was on its way.
    fn delay(&mut self, at_us: u64, now: Instant) -> Duration {
        let micros = |span: Duration| i128::try_from(span.as_micros()).unwrap_or(i128::MAX);
        let difference = micros(now - self.started) - i128::from(at_us);
        let (least, seen) = self.least;
        // Where the sender's clock is the slower one, the difference grows from line to line, and none was held up.
        let usual = least + micros(now - seen) / DRIFT;
        if difference <= usual {
            self.least = (difference, now);
            return Duration::ZERO;
        }
        Duration::from_micros(u64::try_from(difference - usual).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_held_up_is_late_by_what_it_waited() {
        let start = Instant::now();
        let mut clock = Clock::new(500_000, start);
        for (sent_ms, read_ms, late_ms) in [
            (510, 12, 2),
            (530, 28, 0),
            (540, 39, 1),
            (600, 10_098, 10_000),
        ] {
            let delay = clock.delay(sent_ms * 1000, start + Duration::from_millis(read_ms));
            let off = delay.abs_diff(Duration::from_millis(late_ms));
            assert!(off < Duration::from_millis(3), "{delay:?}");
        }
    }

    #[test]
    fn clocks_that_run_apart_make_no_line_late() {
        let start = Instant::now();
        let mut clock = Clock::new(0, start);
        for second in 1..10_000 {
            // The reader's clock is fast by a hundred millionths.
            let now = start + Duration::from_micros(second * 1_000_100);
            assert_eq!(clock.delay(second * 1_000_000, now), Duration::ZERO);
        }
    }
}
