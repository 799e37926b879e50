//! `/internal/*`: the routes of the cluster's instances. A call that arrives here runs here or not at all.

mod clock;
mod lines;
mod upgrade;

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

pub(super) use self::upgrade::{Opening, is_upgrade};
use super::{
    App, AppState,
    layers::Context,
    log,
    request::{is_ndjson, json_body},
    response::{Json, Refusal, with_room},
};
use crate::{
    config::Identity,
    dispatch::Outcome,
    lifecycle::Phase,
    problem::Problem,
    protocol::{CatalogueDocument, DRAINING, Exec, Introduction, PROTOCOL, Readiness, STATE},
    trace,
};

/// What a call between instances holds besides its client's body, in bytes.
const ENVELOPE: usize = 4 << 10;

/// `GET /internal/region`: who this instance is.
pub(super) async fn introduce(State(app): AppState) -> Json<Introduction> {
    let Identity {
        region,
        primary,
        instance,
        app: name,
        release,
    } = app.identity.clone();
    let serves = app.lifecycle.phase() == Phase::Serving;
    Json(Introduction {
        region,
        instance,
        boot: Some(app.boot.clone()),
        app: name,
        release,
        primary,
        state: if serves {
            Readiness::Ready
        } else {
            Readiness::Draining
        },
        protocol: PROTOCOL,
        catalogue: app.executor.catalogue().hash().clone(),
        app_state: app.executor.app().map(|beside| beside.status().health),
    })
}

/// `GET /internal/functions`: the catalogue behind the hash.
pub(super) async fn functions(State(app): AppState) -> Response {
    Json(&CatalogueDocument::from(&*app.executor.catalogue())).into_response()
}

/// `POST /internal/exec`: one call that a peer forwarded, or many, a line each, or a connection for more.
pub(super) async fn exec(
    State(app): AppState,
    Extension(context): Extension<Context>,
    request: Request,
) -> Response {
    if is_upgrade(request.headers()) {
        return upgrade::accept(app, context, request);
    }
    let (parts, body) = request.into_parts();
    if is_ndjson(&parts.headers) {
        return lines::body(app, context, body);
    }
    let answer = match run(&app, context, &parts.headers, body).await {
        Ok(outcome) => outcome.into_response(),
        Err(problem) => Refusal::new(problem, Some(&app.identity.region)).into_response(),
    };
    let is_draining = app.lifecycle.phase() > Phase::Serving;
    let state = is_draining.then_some([(STATE, DRAINING)]);
    (state, answer).into_response()
}

/// Runs the one call in `body`.
async fn run(
    app: &App,
    context: Context,
    headers: &HeaderMap,
    body: Body,
) -> Result<Outcome, Problem> {
    let limit = app.limits.max_body + ENVELOPE;
    let body = json_body(headers, body, limit, &app.memory).await?;
    let mut exec = Exec::from_json(&body.bytes, app.timeouts)?;
    exec.call.memory = Some(Arc::new(body.reserved));
    let span = trace::exec_span(&context.request_id, exec.call.trace);
    let outcome = app
        .dispatcher
        .exec(&exec, context.request_id, context.arrived)
        .instrument(span.clone())
        .await;
    let outcome = with_room(outcome, &app.memory);
    trace::ended(&span, &exec.call.name, None, outcome.result.as_ref().err());
    log::exec(&exec.call.name, &outcome);
    Ok(outcome)
}
