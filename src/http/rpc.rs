//! `POST /rpc/{region}`: a call from a client. One whose path names the function too is read in `path.rs`.

pub(super) mod path;

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, request::Parts},
    response::{IntoResponse, Response, Result},
};
use scopeguard::ScopeGuard;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{Instrument, Span};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::{
    App, AppState, auth,
    documents::Accepted,
    head::lists,
    layers::Context,
    log,
    openapi::CallProblems,
    replay,
    request::json_body,
    response::{Json, Refusal, with_room},
};
use crate::{
    access::Caller,
    call::Call,
    config::Route,
    dispatch::Outcome,
    name::{ConsistencyToken, RequestId},
    problem::{Code, Problem},
    protocol::FORWARDED,
    region::Targets,
    replay::REPLAY,
    reply::{Meta, Reply},
    trace::{self, TRACEPARENT},
};

/// Makes a repeat of a call the same call.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// What the data that the function reads must have seen.
const AFTER: HeaderName = HeaderName::from_static("rpc-after");
/// Where the call stands in a trace.
const TRACE: HeaderName = HeaderName::from_static(TRACEPARENT);
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
    State(app): AppState,
    Extension(context): Extension<Context>,
    Extension(caller): Extension<Caller>,
    mut targets: Targets,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    targets.within = caller.regions().map(<[_]>::to_vec);
    let primary = &app.identity.primary;
    let refuse = |problem| Refusal::new(problem, targets.first(primary));
    auth::check_regions(&caller, targets.named(primary)).map_err(refuse)?;
    let mut request = read(&app, &parts, body).await.map_err(refuse)?;
    auth::check_function(&caller, &request.call.name).map_err(refuse)?;
    app.dispatcher.put_under_policy(&targets, &mut request.call);
    if let Some(answer) = replay::ask(&app, &context, &parts, &request, &targets) {
        log::replay(&caller, &request.call.name, &targets, &context.request_id);
        return Ok(answer);
    }
    let CallRequest { mut call, size, .. } = request;
    call.key_owner = caller.key_owner();
    let arrived = replay::first_arrival(&context, &parts.headers, &call);
    let span = trace::call_span(&context.request_id, call.trace);
    let request_id = context.request_id;
    let about = About {
        app: Arc::clone(&app),
        caller,
        call: Arc::new(call),
        targets,
        request_id: request_id.clone(),
        span: span.clone(),
    };
    let call = Arc::clone(&about.call);
    let mut outcome = if lists(&parts.headers, &PREFER, RESPOND_ASYNC) {
        match about.in_background(arrived).instrument(span).await {
            Ok(accepted) => return Ok(accepted),
            Err(refused) => refused,
        }
    } else {
        // Runs where this future is dropped at its await, because the client went away.
        let awaited = scopeguard::guard((), |()| about.abandoned());
        let ran = app
            .dispatcher
            .dispatch(&about.targets, &call, request_id, arrived);
        let outcome = ran.instrument(span).await;
        ScopeGuard::into_inner(awaited);
        outcome
    };
    replay::came_back(&parts.headers, &mut outcome);
    let outcome = with_room(outcome, &app.memory);
    about.ended(&outcome);
    let others = replay::to_others(&app, &parts, size, &call, arrived, &outcome);
    let others = others.map(|others| [(REPLAY, others)]);
    Ok((others, outcome).into_response())
}

/// Whether `request` is one of [`call_function`], or of [`path::call_function_by_path`], which hands on to it.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
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
    app: Arc<App>,
    caller: Caller,
    call: Arc<Call>,
    targets: Targets,
    request_id: RequestId,
    span: Span,
}

impl About {
    fn ended(&self, outcome: &Outcome) {
        let problem = outcome.result.as_ref().err();
        let region = outcome.meta.region.as_ref();
        trace::ended(&self.span, &self.call.name, region, problem);
        let calls = &self.app.metrics.calls;
        calls.of_client(self.caller.name(), problem);
        log::call(&self.caller, &self.call.name, outcome);
    }

    fn abandoned(&self) {
        self.app.metrics.calls.abandoned.inc();
        let name = &self.call.name;
        log::abandoned(&self.caller, name, &self.targets, &self.request_id);
    }

    /// The answer to a call that was admitted and goes on.
    ///
    /// # Errors
    /// What came of one that was refused at once.
    async fn in_background(&self, arrived: Instant) -> Result<Response, Outcome> {
        let (about, request_id) = (self.clone(), self.request_id.clone());
        let ended = move |outcome: Option<Outcome>| match outcome {
            Some(outcome) => about.ended(&outcome),
            None => about.abandoned(),
        };
        self.app
            .dispatcher
            .dispatch_in_background(&self.targets, &self.call, request_id, arrived, ended)
            .await?;
        let region = self.targets.first(&self.app.identity.primary).cloned();
        let meta = Meta::untried(region, arrived.elapsed(), self.request_id.clone());
        let applied = [(PREFERENCE_APPLIED, RESPOND_ASYNC)];
        Ok((StatusCode::ACCEPTED, applied, Json(Accepted { meta })).into_response())
    }
}

/// A call as a client asks for it.
pub(super) struct CallRequest {
    pub(super) call: Call,
    /// How it is to get to another region.
    pub(super) route: Route,
    /// The size of its body in bytes.
    pub(super) size: usize,
}

async fn read(app: &App, head: &Parts, body: Body) -> Result<CallRequest, Problem> {
    let headers = &head.headers;
    refuse_forwarded(headers)?;
    let route = replay::route(headers, app.route)?;
    let (call, body) = match path::function(&head.uri)? {
        Some(name) => path::read(app, name, headers, body).await?,
        None => {
            let body = json_body(headers, body, app.limits.max_body, &app.memory).await?;
            (Call::from_json(&body.bytes, app.timeouts)?, body)
        }
    };
    let mut call = with_headers(call, headers)?;
    let size = body.bytes.len();
    call.memory = Some(Arc::new(body.reserved));
    Ok(CallRequest { call, route, size })
}

/// Refuses a request of another instance, which would have this one forward it.
pub(super) fn refuse_forwarded(headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(FORWARDED) {
        return Ok(());
    }
    let detail = "an instance forwarded this call to /rpc; peers take calls at /internal/exec";
    Err(Problem::new(Code::LoopDetected, detail))
}

/// `call` with what the headers of a request say of it: its key, its token, and what called it.
pub(super) fn with_headers(call: Call, headers: &HeaderMap) -> Result<Call, Problem> {
    let call = with_key(call, headers)?;
    let call = with_token(call, headers)?;
    let trace = headers.get(TRACE);
    Ok(Call {
        trace: trace.and_then(|trace| trace.to_str().ok()?.parse().ok()),
        ..call
    })
}

/// `call` under the key of the request, if it has one.
fn with_key(call: Call, headers: &HeaderMap) -> Result<Call, Problem> {
    match only(headers, &IDEMPOTENCY_KEY)? {
        Some(key) => call.with_key(key),
        None => Ok(call),
    }
}

/// `call` after the consistency token of the request, if it has one.
fn with_token(call: Call, headers: &HeaderMap) -> Result<Call, Problem> {
    let Some(token) = only(headers, &AFTER)? else {
        return Ok(call);
    };
    let after = str::from_utf8(token)
        .ok()
        .and_then(|token| token.parse().ok());
    let after = after.ok_or_else(|| {
        let detail = format!("header rpc-after must be {}", ConsistencyToken::RULE);
        Problem::new(Code::InvalidRequest, detail)
    })?;
    Ok(Call {
        after: Some(after),
        ..call
    })
}

/// The value of a header that may be given once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Problem> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(Problem::new(
            Code::InvalidRequest,
            format!("header {name} is given twice"),
        )),
    }
}
