//! `/internal/*`: what instances ask of each other. A call that arrives here runs here or not at all.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::HeaderValue,
    response::Response,
};

use super::{App, answer, body, context::Context};
use crate::{
    call::Exec,
    cluster::{Introduction, PROTOCOL, Willingness},
    config::Identity,
    lifecycle::Phase,
    link::{DRAINING, STATE},
};

/// What a call between instances holds besides its client's body, in bytes.
const ENVELOPE: usize = 4 << 10;

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
        app: name,
        release,
        primary,
        state: if serves {
            Willingness::Ready
        } else {
            Willingness::Draining
        },
        protocol: PROTOCOL,
        catalogue: app.executor.catalogue().hash().clone(),
    })
}

/// `GET /internal/functions`: the catalogue behind the hash.
pub(super) async fn functions(State(app): State<Arc<App>>) -> Response {
    answer::ok(app.executor.catalogue())
}

/// `POST /internal/exec`: one call that a peer forwarded.
pub(super) async fn exec(
    State(app): State<Arc<App>>,
    context: Context,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let exec = match body::json(&parts.headers, body, app.limits.max_body + ENVELOPE).await {
        Ok(body) => Exec::from_json(&body, app.timeouts),
        Err(problem) => Err(problem),
    };
    let mut response = match exec {
        Ok(exec) => answer::outcome(
            app.dispatcher
                .exec(&exec, context.request_id, context.arrived)
                .await,
        ),
        Err(problem) => context.refuse(Some(app.identity.region.clone()), problem),
    };
    if app.lifecycle.phase() > Phase::Serving {
        response
            .headers_mut()
            .insert(STATE, HeaderValue::from_static(DRAINING));
    }
    response
}
