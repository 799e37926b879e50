//! One line for each call, on the instance that received it and on the one that ran it, under the same request id; and
//! one for each request that was refused before it was a call. Never arguments, results or tokens.

use std::fmt::Display;

use axum::http::Method;

use super::documents::FanOutMeta;
use crate::{
    access::Caller,
    dispatch::Outcome,
    name::{FunctionName, RequestId},
    region::{Regions, Targets},
    reply::ProblemDocument,
};

/// The most bytes of a path in a line.
const PATH: usize = 128;

/// A call from a client, who it is, and what came of the call.
pub(super) fn call(caller: &Caller, function: &FunctionName, outcome: &Outcome) {
    let Outcome { result, meta } = outcome;
    let region = meta.region.as_ref().map_or("", |region| region.as_str());
    let instance = meta
        .instance
        .as_ref()
        .map_or("", |instance| instance.as_str());
    let client = caller.name();
    let request_id = meta.request_id.as_str();
    let (attempts, elapsed_ms) = (meta.attempts, meta.elapsed_ms);
    match result {
        Ok(_) => {
            tracing::info!(
                client, %function, region, instance, executed = "yes", attempts, elapsed_ms, request_id, "call"
            );
        }
        Err(problem) => {
            let (code, executed, detail) = (problem.word(), problem.executed, &problem.detail);
            tracing::warn!(
                client, %function, region, instance, code, %executed, detail, attempts, elapsed_ms, request_id, "call failed"
            );
        }
    }
}

/// A call whose client went away before there was an answer; what runs, runs on.
pub(super) fn abandoned(
    caller: &Caller,
    function: &FunctionName,
    places: &impl Display,
    request_id: &RequestId,
) {
    let client = caller.name();
    tracing::warn!(client, %function, region = %places, executed = "maybe", %request_id, "call abandoned");
}

/// A fan-out of a client, and what came of it; each call is in the log of the instance that ran it.
pub(super) fn fan_out(
    caller: &Caller,
    function: &FunctionName,
    regions: &Regions,
    meta: &FanOutMeta,
) {
    let (client, request_id) = (caller.name(), &meta.request_id);
    let (asked, succeeded, elapsed_ms) = (meta.asked, meta.succeeded, meta.elapsed_ms);
    tracing::info!(
        client, %function, %regions, asked, succeeded, elapsed_ms, %request_id, "fan-out"
    );
}

/// A call that Fly Proxy is asked to replay in `region`; the instance that gets it there logs what came of it.
pub(super) fn replay(
    caller: &Caller,
    function: &FunctionName,
    targets: &Targets,
    request_id: &RequestId,
) {
    tracing::info!(client = caller.name(), %function, region = %targets, %request_id, "replay");
}

/// A request that was refused before it was a call. Its query and body are in no line.
pub(super) fn refusal(
    method: &Method,
    path: &str,
    client: Option<&Caller>,
    document: &ProblemDocument,
) {
    let (elapsed_ms, request_id) = (document.meta.elapsed_ms, &document.meta.request_id);
    let client = client.map_or("", Caller::name);
    let path = &path[..path.floor_char_boundary(PATH)];
    let problem = &document.problem;
    let (status, code, executed) = (problem.status(), problem.code, problem.executed);
    let detail = &problem.detail;
    tracing::info!(
        client, %method, path, status, %code, %executed, detail, elapsed_ms, %request_id, "refused"
    );
}

/// A call that a peer forwarded; the peer logs what it means for the client.
pub(super) fn exec(function: &FunctionName, outcome: &Outcome) {
    let Outcome { result, meta } = outcome;
    let (elapsed_ms, request_id) = (meta.elapsed_ms, &meta.request_id);
    match result {
        Ok(_) => tracing::debug!(%function, elapsed_ms, %request_id, "exec"),
        Err(problem) => {
            let (code, executed) = (problem.code, problem.executed);
            tracing::info!(%function, %code, %executed, elapsed_ms, %request_id, "exec");
        }
    }
}
