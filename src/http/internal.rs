//! `/internal/*`: what instances ask of each other. A call that arrives here runs here or not at all.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::HeaderValue,
    response::Response,
};
use tracing::Instrument;

use super::{App, ENVELOPE, answer, body, context::Context, lines, log, upgrade};
use crate::{
    config::Identity,
    lifecycle::Phase,
    protocol::{DRAINING, Exec, Introduction, PROTOCOL, Readiness, STATE},
    trace,
};

/// `GET /internal/region`: who this instance is.
pub(super) async fn introduce(State(app): State<Arc<App>>) -> Response {
    let Identity {
        region,
        primary,
        instance,
        app: name,
        release,
    } = app.identity.clone();
    let serves = app.lifecycle.phase() == Phase::Serving;
    answer::ok(&Introduction {
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
    })
}

/// `GET /internal/functions`: the catalogue behind the hash.
pub(super) async fn functions(State(app): State<Arc<App>>) -> Response {
    answer::ok(app.executor.catalogue())
}

/// `POST /internal/exec`: one call that a peer forwarded, or many, a line each, or a connection for more.
pub(super) async fn exec(
    State(app): State<Arc<App>>,
    context: Context,
    request: Request,
) -> Response {
    if upgrade::is_asked(request.headers()) {
        return upgrade::accept(app, context, request);
    }
    let (parts, body) = request.into_parts();
    if body::is_ndjson(&parts.headers) {
        return lines::body(app, context, body);
    }
    let exec = match body::json(
        &parts.headers,
        body,
        app.limits.max_body + ENVELOPE,
        &app.memory,
    )
    .await
    {
        Ok(body) => Exec::from_json(&body.bytes, app.timeouts).map(|mut exec| {
            exec.call.memory = Some(Arc::new(body.reserved));
            exec
        }),
        Err(problem) => Err(problem),
    };
    let mut response = match exec {
        Ok(exec) => {
            let span = context.request_id.exec_span();
            trace::join(&span, exec.call.trace);
            let outcome = app
                .dispatcher
                .exec(&exec, context.request_id, context.arrived)
                .instrument(span.clone())
                .await;
            let outcome = answer::with_room(outcome, &app.memory);
            trace::ended(&span, &exec.call.name, None, outcome.result.as_ref().err());
            log::exec(&exec.call.name, &outcome);
            answer::outcome(outcome)
        }
        Err(problem) => context.refuse(Some(app.identity.region.clone()), problem),
    };
    if app.lifecycle.phase() > Phase::Serving {
        response
            .headers_mut()
            .insert(STATE, HeaderValue::from_static(DRAINING));
    }
    response
}
