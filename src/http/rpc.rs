//! `POST /rpc/{region}` and `POST /rpc/{region}/{module}/{function}`: a call from a client, from its admission to its answer.

use std::{fmt::Display, sync::Arc};

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderName, Method, StatusCode},
    response::{IntoResponse, Response, Result},
};
use scopeguard::ScopeGuard;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::{
    DispatcherState, auth,
    documents::{Accepted, CallDocument, CallHeaders, OptionHeaders},
    layers::Context,
    replay,
    request::{self, InPath, lists},
    response::{Json, Refusal},
};
use crate::{
    access::Caller,
    call::Call,
    dispatch::Dispatcher,
    name::{FunctionName, InstanceId, RequestId},
    region::{Region, Targets},
    replay::REPLAY,
    reply::{Meta, Reply, Report},
    trace,
};

/// What the client prefers (RFC 7240), and which of it is honored.
const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The preference of a client that does not wait for the end of its call.
const RESPOND_ASYNC: &str = "respond-async";

/// Call a function in a region
///
/// Runs `module.function(args)` on an instance of the region, the less busy of two at random, and waits for its result. Of
/// a list of regions, the next one is tried where nothing ran in those before, or `idempotent` says that the function may
/// run twice. Every problem says whether the function ran.
#[utoipa::path(
    post,
    path = "/rpc/{region}",
    operation_id = "callFunction",
    tag = "rpc",
    params(
        (
            "region" = String,
            Path,
            description = "A region such as `syd`; `primary`; `any`, the region that answers nearest and has a ready \
                instance with the function; or a list of up to three of these, such as `syd,primary`, the preferred one \
                first",
            pattern = r"^[a-z0-9][a-z0-9\-]{0,31}(,[a-z0-9][a-z0-9\-]{0,31}){0,2}$",
            example = "syd"
        ),
        CallHeaders,
    ),
    request_body(content = CallDocument, content_type = "application/json"),
    responses(
        (
            status = 200,
            description = "The function's result",
            body = Reply,
            headers(
                (
                    "idempotency-replayed" = Option<bool>,
                    description = "`true` on the outcome of an earlier call with the same idempotency key; else left out"
                ),
                (
                    "rpc-consistency" = Option<String>,
                    description = "What the function said of its data; a later call that sends it as `rpc-after` reads \
                        nothing older. Left out where the function said nothing"
                ),
            )
        ),
        (
            status = 202,
            description = "With `prefer: respond-async`: the call is admitted, and the instance sees it through",
            body = Accepted,
            headers(("preference-applied" = String, description = "`respond-async`"))
        ),
    ),
    security(("client_token" = []), ())
)]
pub(super) async fn call_function(
    State(dispatcher): DispatcherState,
    Extension(context): Extension<Context>,
    Extension(caller): Extension<Caller>,
    InPath(mut targets): InPath<Targets>,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    targets.within = caller.regions().map(<[_]>::to_vec);
    let identity = &dispatcher.local.identity;
    let refuse = |problem| Refusal::new(problem, targets.first(&identity.primary));
    // Before the body is read, which need not be for these.
    auth::check_regions(&caller, targets.named(&identity.primary)).map_err(refuse)?;
    let route = replay::route(&parts.headers, dispatcher.local.route).map_err(refuse)?;
    let (mut call, size) = request::call(&dispatcher, &parts, body)
        .await
        .map_err(refuse)?;
    auth::check_function(&caller, &call.name).map_err(refuse)?;
    // Before everything that depends on the timeout, such as a replay.
    dispatcher.put_under_policy(&targets, &mut call);
    if replay::may_be_replayed(route, &parts, size)
        && let Some(answer) = replay::ask(&dispatcher, &context, &call, &targets)
    {
        // The instance that gets the replay logs how the call ended.
        let (client, function, request_id) = (caller.name(), &call.name, &context.request_id);
        dispatcher.local.metrics.calls.replays_asked.inc();
        tracing::info!(client, %function, region = %targets, %request_id, "replay");
        return Ok(answer);
    }
    call.key_owner = caller.key_owner();
    let arrived = replay::first_arrival(&context, &parts.headers, &call);
    let span = trace::call_span(&context.request_id, call.trace);
    let call = Arc::new(call);
    let log = CallLog {
        dispatcher: Arc::clone(&dispatcher),
        caller,
        function: call.name.clone(),
        regions: targets,
        request_id: context.request_id,
    };
    let mut report = if lists(&parts.headers, &PREFER, RESPOND_ASYNC) {
        let admitted = in_background(&log, &call, arrived, &span);
        match admitted.instrument(span.clone()).await {
            Ok(accepted) => return Ok(accepted),
            Err(refused) => refused,
        }
    } else {
        // Runs if this future is dropped while it waits, because the client went away.
        let awaited = scopeguard::guard((), |()| log.abandoned());
        let request_id = log.request_id.clone();
        let ran = dispatcher.dispatch(&log.regions, &call, request_id, arrived, None);
        let report = ran.instrument(span.clone()).await;
        ScopeGuard::into_inner(awaited);
        report
    };
    replay::came_back(&parts.headers, &mut report);
    if log.caller.is_unlimited() {
        dispatcher.add_nearest(&log.function, &mut report);
    }
    log.ended(&report, &span);
    let others = replay::to_others(identity, &parts, size, &call, arrived, &report);
    let others = others.map(|others| [(REPLAY, others)]);
    Ok((others, report).into_response())
}

/// Call a function by its path
///
/// As `POST /rpc/{region}`, with the arguments alone as the body: an array, or, where the function declares its parameters,
/// an object by their names; no body is no arguments. An instance's own document has an operation like this one, with named
/// and typed arguments, for each function of its cluster that declares its parameters.
#[utoipa::path(
    post,
    path = "/rpc/{region}/{module}/{function}",
    operation_id = "callFunctionByPath",
    tag = "rpc",
    params(
        (
            "region" = String,
            Path,
            description = "A region such as `syd`; `primary`; `any`, the region that answers nearest and has a ready \
                instance with the function; or a list of up to three of these, the preferred one first",
            pattern = r"^[a-z0-9][a-z0-9\-]{0,31}(,[a-z0-9][a-z0-9\-]{0,31}){0,2}$",
            example = "syd"
        ),
        (
            "module" = String,
            Path,
            description = "The function's module, percent-encoded",
            pattern = "^[!-~]{1,128}$",
            example = "String"
        ),
        (
            "function" = String,
            Path,
            description = "The function, percent-encoded",
            pattern = "^[!-~]{1,128}$",
            example = "upcase"
        ),
        CallHeaders,
        OptionHeaders,
    ),
    request_body(
        content = Vec<Value>,
        description = "The arguments, any JSON values, passed on exactly as received; at most 256",
        content_type = "application/json"
    ),
    security(("client_token" = []), ())
)]
pub(super) async fn call_function_by_path(
    dispatcher: DispatcherState,
    context: Extension<Context>,
    caller: Extension<Caller>,
    targets: InPath<Targets>,
    request: Request,
) -> Result<Response> {
    call_function(dispatcher, context, caller, targets, request).await
}

/// Whether `request` is one of [`call_function`], or of [`call_function_by_path`], which hands on to it.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    // As axum reads the paths of both: no parameter is empty.
    let is_target = |rest: &str| {
        let mut segments = rest.split('/');
        matches!(segments.clone().count(), 1 | 3) && segments.all(|segment| !segment.is_empty())
    };
    let rest = request.uri().path().strip_prefix("/rpc/");
    *request.method() == Method::POST && rest.is_some_and(is_target)
}

/// Starts a call that goes on without its client, and answers that it was admitted.
///
/// # Errors
/// The report of a call that was refused at once.
async fn in_background(
    log: &CallLog<Targets>,
    call: &Arc<Call>,
    arrived: Instant,
    span: &Span,
) -> Result<Response, Report> {
    let (ended_log, ended_span) = (log.clone(), span.clone());
    let ended = move |report: Option<Report>| match report {
        Some(report) => ended_log.ended(&report, &ended_span),
        None => ended_log.abandoned(),
    };
    let (targets, request_id) = (&log.regions, log.request_id.clone());
    log.dispatcher
        .dispatch_in_background(targets, call, request_id.clone(), arrived, ended)
        .await?;
    let region = targets
        .first(&log.dispatcher.local.identity.primary)
        .cloned();
    let meta = Meta::untried(region, arrived.elapsed(), request_id);
    let applied = [(PREFERENCE_APPLIED, RESPOND_ASYNC)];
    Ok((StatusCode::ACCEPTED, applied, Json(Accepted { meta })).into_response())
}

/// Counts and logs how the call of a client ends, without its arguments and its result.
#[derive(Clone)]
pub(super) struct CallLog<R> {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) caller: Caller,
    pub(super) function: FunctionName,
    pub(super) regions: R,
    pub(super) request_id: RequestId,
}

impl CallLog<Targets> {
    /// Counts and logs how a call ended, and notes it on its `span`.
    fn ended(&self, report: &Report, span: &Span) {
        let Report { result, meta } = report;
        let (client, function, problem) =
            (self.caller.name(), &self.function, result.as_ref().err());
        trace::ended(span, function, meta.region.as_ref(), problem);
        self.dispatcher.ended(function, report);
        self.dispatcher
            .local
            .metrics
            .calls
            .of_client(client, problem);
        let region = meta.region.as_ref().map(Region::as_str);
        let instance = meta.instance.as_ref().map(InstanceId::as_str);
        let request_id = meta.request_id.as_str();
        let (attempts, elapsed_ms) = (meta.attempts, meta.elapsed_ms);
        // Left out of the line where it is not.
        let replayed = meta.replayed.then_some(true);
        let Some(problem) = problem else {
            tracing::info!(
                client, %function, region, instance, executed = "yes", replayed, attempts, elapsed_ms, request_id, "call"
            );
            return;
        };
        let (code, executed, detail) = (problem.word(), problem.executed, &problem.detail);
        tracing::warn!(
            client, %function, region, instance, code, %executed, replayed, detail, attempts, elapsed_ms, request_id,
            "call failed"
        );
    }
}

impl<R: Display> CallLog<R> {
    /// The client went away before there was an answer; what runs, runs on.
    pub(super) fn abandoned(&self) {
        self.dispatcher.local.metrics.calls.abandoned.inc();
        let (client, function, request_id) = (self.caller.name(), &self.function, &self.request_id);
        tracing::warn!(client, %function, region = %self.regions, executed = "maybe", %request_id, "call abandoned");
    }
}
