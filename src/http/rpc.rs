//! `POST /rpc/{region}` and `POST /rpc/{region}/{module}/{function}`: a call from a client, from its admission to its answer.

use std::{fmt::Display, sync::Arc};

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderName, Method, StatusCode},
    response::{IntoResponse, Response, Result},
};
use scopeguard::ScopeGuard;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{Instrument, Span};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::{
    Api, ApiState, auth,
    documents::Accepted,
    layers::Context,
    openapi::CallProblems,
    replay,
    request::{self, CallRequest, InPath, lists},
    response::{Json, Refusal},
};
use crate::{
    access::Caller,
    call::Call,
    dispatch::Report,
    name::{FunctionName, InstanceId, RequestId},
    region::{Region, Targets},
    replay::REPLAY,
    reply::{Meta, Reply},
    trace,
};

/// What the client prefers (RFC 7240), and which of it is honored.
const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The preference of a client that does not wait for the end of its call.
const RESPOND_ASYNC: &str = "respond-async";

/// A call: which function, with which arguments, for how long.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CallRequest)]
pub(super) struct CallDocument {
    /// The function's module.
    #[schema(pattern = r"^[!-~]{1,128}$", example = "String")]
    module: String,
    /// The function.
    #[schema(pattern = r"^[!-~]{1,128}$", example = "upcase")]
    function: String,
    /// Its arguments, any JSON values, passed on exactly as received. Where the function declares its parameters, an object by
    /// their names is taken too.
    #[schema(value_type = Vec<Value>, required = false, max_items = 256, example = json!(["fly"]))]
    args: Option<Vec<Box<RawValue>>>,
    /// How long to wait, in milliseconds; at most what `RPC_MAX_TIMEOUT` allows, 60000 where it is not set. 5000 where
    /// neither this nor `RPC_DEFAULT_TIMEOUT` says otherwise.
    #[schema(value_type = u64, required = false, minimum = 1, maximum = 86_400_000, example = 5000)]
    timeout_ms: Option<u64>,
    /// Whether the function may run twice: allows another attempt after one that may have run. False when it is not
    /// given.
    // No `default`: openapi-typescript takes a member that has one for required.
    #[schema(value_type = bool, required = false, example = false)]
    idempotent: Option<bool>,
    /// Only on this instance of the region.
    #[schema(value_type = String, required = false, pattern = r"^[A-Za-z0-9._\-]{1,128}$", example = "148e21dad76789")]
    instance: Option<String>,
}

/// What any call may say in headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the document is made of it")]
pub(super) struct CallHeaders {
    /// Makes a repeat of this call the same call of the same client: within ten minutes it is not run again by the instance
    /// that ran it, and gets the outcome of the first, marked by the header idempotency-replayed. The same key with another
    /// function or other values as arguments is refused. 1 to 128 visible ASCII characters; may stand in quotes, which do
    /// not count. The memory is that of one process: it does not outlive a restart, and a change of the region's instances
    /// moves keys
    #[param(
        rename = "Idempotency-Key",
        pattern = "^(\"[!-~]{1,128}\"|[!#-~][!-~]{0,127})$"
    )]
    idempotency_key: Option<String>,
    /// A consistency token, as an earlier answer gave it in `rpc-consistency`: the function reads data that has seen it, or
    /// says that it did not run, and the next instance, or region of the list, is asked. Only the app knows what it means.
    /// 1 to 256 visible ASCII characters
    #[param(rename = "rpc-after", pattern = "^[!-~]{1,256}$")]
    after: Option<String>,
    /// How the call gets to another region: `proxy` forwards it; `replay` answers 409 with the header `fly-replay`, on which
    /// Fly Proxy replays it there; `auto` is `replay` behind Fly Proxy, else `proxy`. What `RPC_ROUTE` says when it is not
    /// given
    #[param(rename = "rpc-route", pattern = "^(proxy|replay|auto)$")]
    route: Option<String>,
    /// `respond-async` (RFC 7240): the answer is 202 as soon as the call is admitted, and the instance sees the call through
    /// by itself. With an idempotency key, the same call sent later without this header waits for its outcome, or gets it
    #[param(rename = "prefer")]
    prefer: Option<String>,
    /// Kept when it is 1 to 128 letters, digits, `.`, `_` and `-`, else replaced; in the answer, and in the logs of every instance it met
    #[param(rename = "x-request-id")]
    request_id: Option<String>,
    /// The trace that the call is part of (W3C Trace Context); passed on to the instance that runs it
    #[param(rename = "traceparent")]
    trace: Option<String>,
}

/// What a call whose body is its arguments says in headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the document is made of it")]
pub(super) struct OptionHeaders {
    /// How long to wait, in milliseconds; at most what `RPC_MAX_TIMEOUT` allows, 60000 where it is not set. What the function
    /// declares, else 5000 or `RPC_DEFAULT_TIMEOUT`, when it is not given
    #[param(rename = "rpc-timeout-ms", minimum = 1, maximum = 86_400_000)]
    timeout: Option<u64>,
    /// Whether the function may run twice: allows another attempt after one that may have run. What the function declares,
    /// else false, when it is not given
    #[param(rename = "rpc-idempotent")]
    idempotent: Option<bool>,
    /// Only on this instance of the region
    #[param(rename = "rpc-instance", pattern = r"^[A-Za-z0-9._\-]{1,128}$")]
    instance: Option<String>,
}

/// How a call is answered that ran, or was admitted.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only the document is made of it")]
pub(super) enum CallAnswers {
    /// The function's result
    #[response(
        status = 200,
        headers(
            (
                "idempotency-replayed" = Option<bool>,
                description = "`true` on the outcome of an earlier call with the same idempotency key; else left out"
            ),
            (
                "rpc-consistency" = Option<String>,
                description = "What the function said of its data; a later call that sends it as `rpc-after` reads nothing \
                    older. Left out where the function said nothing"
            ),
        ),
        examples((
            "upcase" = (
                summary = "String.upcase(\"fly\") in syd, asked of iad",
                value = json!({
                    "result": "FLY",
                    "meta": {
                        "region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": 0.731,
                        "request_id": "01M8452GRJX2VJVKXD6FQ0T3AB",
                    },
                })
            )
        ))
    )]
    Ended(Reply),
    /// With `prefer: respond-async`: the call is admitted, and the instance sees it through
    #[response(
        status = 202,
        headers(("preference-applied" = String, description = "`respond-async`")),
        examples((
            "admitted" = (
                summary = "A call for syd",
                value = json!({
                    "meta": {
                        "region": "syd", "instance": null, "attempts": 0, "elapsed_ms": 0.212,
                        "request_id": "01M8452GRJX2VJVKXD6FQ0T3AB",
                    },
                })
            )
        ))
    )]
    Admitted(Accepted),
}

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
    request_body(
        content = CallDocument,
        content_type = "application/json",
        examples(
            ("upcase" = (
                summary = "String.upcase(\"fly\")",
                value = json!({"module": "String", "function": "upcase", "args": ["fly"]})
            )),
            ("sleep" = (
                summary = "Process.sleep(100): at most a second, and twice where it must be",
                value = json!({
                    "module": "Process", "function": "sleep", "args": [100], "timeout_ms": 1000, "idempotent": true,
                })
            )),
            ("add" = (
                summary = "Kernel.+(1, 2)",
                value = json!({"module": "Kernel", "function": "+", "args": [1, 2]})
            )),
        )
    ),
    responses(
        CallAnswers,
        CallProblems,
    ),
    security(("client_token" = []), ())
)]
pub(super) async fn call_function(
    State(api): ApiState,
    Extension(context): Extension<Context>,
    Extension(caller): Extension<Caller>,
    InPath(mut targets): InPath<Targets>,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    targets.within = caller.regions().map(<[_]>::to_vec);
    let primary = &api.local.identity.primary;
    let refuse = |problem| Refusal::new(problem, targets.first(primary));
    // Before the body is read, which need not be for this.
    auth::check_regions(&caller, targets.named(primary)).map_err(refuse)?;
    let mut request = request::call(&api, &parts, body).await.map_err(refuse)?;
    auth::check_function(&caller, &request.call.name).map_err(refuse)?;
    // Before all that depends on its timeout, a replay among it.
    api.dispatcher.put_under_policy(&targets, &mut request.call);
    if let Some(answer) = replay::ask(&api, &context, &parts, &request, &targets) {
        // The instance that gets it there logs what came of it.
        let (client, function, request_id) =
            (caller.name(), &request.call.name, &context.request_id);
        tracing::info!(client, %function, region = %targets, %request_id, "replay");
        return Ok(answer);
    }
    let CallRequest { mut call, size, .. } = request;
    call.key_owner = caller.key_owner();
    let arrived = replay::first_arrival(&context, &parts.headers, &call);
    let span = trace::call_span(&context.request_id, call.trace);
    let request_id = context.request_id;
    let about = About {
        api: Arc::clone(&api),
        caller,
        call: Arc::new(call),
        targets,
        request_id: request_id.clone(),
        span: span.clone(),
    };
    let call = Arc::clone(&about.call);
    let mut report = if lists(&parts.headers, &PREFER, RESPOND_ASYNC) {
        match about.in_background(arrived).instrument(span).await {
            Ok(accepted) => return Ok(accepted),
            Err(refused) => refused,
        }
    } else {
        // Runs where this future is dropped at its await, because the client went away.
        let awaited = scopeguard::guard((), |()| about.abandoned());
        let ran = api
            .dispatcher
            .dispatch(&about.targets, &call, request_id, arrived, None);
        let report = ran.instrument(span).await;
        ScopeGuard::into_inner(awaited);
        report
    };
    replay::came_back(&parts.headers, &mut report);
    about.ended(&report);
    let others = replay::to_others(&api, &parts, size, &call, arrived, &report);
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
        content_type = "application/json",
        examples(("upcase" = (summary = "String.upcase(\"fly\")", value = json!(["fly"]))))
    ),
    responses(
        CallAnswers,
        CallProblems,
    ),
    security(("client_token" = []), ())
)]
pub(super) async fn call_function_by_path(
    api: ApiState,
    context: Extension<Context>,
    caller: Extension<Caller>,
    targets: InPath<Targets>,
    request: Request,
) -> Result<Response> {
    call_function(api, context, caller, targets, request).await
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

/// What the log, the metrics and the trace say of a call's end.
#[derive(Clone)]
struct About {
    api: Arc<Api>,
    caller: Caller,
    call: Arc<Call>,
    targets: Targets,
    request_id: RequestId,
    span: Span,
}

impl About {
    /// Counts and logs the end of the call, without its arguments and its result.
    fn ended(&self, report: &Report) {
        let Report { result, meta } = report;
        let (client, function, problem) =
            (self.caller.name(), &self.call.name, result.as_ref().err());
        trace::ended(&self.span, function, meta.region.as_ref(), problem);
        self.api.dispatcher.ended(function, report);
        self.api.local.metrics.calls.of_client(client, problem);
        let region = meta.region.as_ref().map_or("", Region::as_str);
        let instance = meta.instance.as_ref().map_or("", InstanceId::as_str);
        let request_id = meta.request_id.as_str();
        let (attempts, elapsed_ms) = (meta.attempts, meta.elapsed_ms);
        let Some(problem) = problem else {
            tracing::info!(
                client, %function, region, instance, executed = "yes", attempts, elapsed_ms, request_id, "call"
            );
            return;
        };
        let (code, executed, detail) = (problem.word(), problem.executed, &problem.detail);
        tracing::warn!(
            client, %function, region, instance, code, %executed, detail, attempts, elapsed_ms, request_id, "call failed"
        );
    }

    fn abandoned(&self) {
        let Self {
            api,
            caller,
            call,
            targets,
            request_id,
            ..
        } = self;
        abandoned(api, caller, &call.name, targets, request_id);
    }

    /// The answer to a call that was admitted and goes on.
    ///
    /// # Errors
    /// What came of one that was refused at once.
    async fn in_background(&self, arrived: Instant) -> Result<Response, Report> {
        let (about, request_id) = (self.clone(), self.request_id.clone());
        let ended = move |report: Option<Report>| match report {
            Some(report) => about.ended(&report),
            None => about.abandoned(),
        };
        self.api
            .dispatcher
            .dispatch_in_background(&self.targets, &self.call, request_id, arrived, ended)
            .await?;
        let region = self
            .targets
            .first(&self.api.local.identity.primary)
            .cloned();
        let meta = Meta::untried(region, arrived.elapsed(), self.request_id.clone());
        let applied = [(PREFERENCE_APPLIED, RESPOND_ASYNC)];
        Ok((StatusCode::ACCEPTED, applied, Json(Accepted { meta })).into_response())
    }
}

/// Counts and logs a call for `regions` whose client went away before there was an answer; what runs, runs on.
pub(super) fn abandoned(
    api: &Api,
    caller: &Caller,
    function: &FunctionName,
    regions: &impl Display,
    request_id: &RequestId,
) {
    api.local.metrics.calls.abandoned.inc();
    let client = caller.name();
    tracing::warn!(client, %function, region = %regions, executed = "maybe", %request_id, "call abandoned");
}
