//! `POST /rpc/{region}/{module}/{function}`: the function is in the path, the arguments are the body, and what else the
//! call says is in headers. Reads such a call; what becomes of it is the same as with any other.

use std::time::Duration;

use axum::{
    Extension,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, Uri},
    response::{Response, Result},
};
use percent_encoding::percent_decode_str;
use utoipa::IntoParams;

use super::{App, AppState, CallAnswers, CallHeaders, call_function};
use crate::{
    access::Caller,
    call::{Args, Call, Options, Timeouts},
    http::{
        layers::Context,
        openapi::CallProblems,
        request::{Received, header, optional_json_body},
    },
    json,
    name::{FunctionName, InstanceId, Name},
    problem::{Code, Problem},
    region::Targets,
};

const TIMEOUT: HeaderName = HeaderName::from_static("rpc-timeout-ms");
const IDEMPOTENT: HeaderName = HeaderName::from_static("rpc-idempotent");
const INSTANCE: HeaderName = HeaderName::from_static("rpc-instance");

/// What a call whose body is its arguments says in headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the document is made of it")]
pub(in crate::http) struct OptionHeaders {
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
pub(in crate::http) async fn call_function_by_path(
    app: AppState,
    context: Extension<Context>,
    caller: Extension<Caller>,
    targets: Targets,
    request: Request,
) -> Result<Response> {
    call_function(app, context, caller, targets, request).await
}

/// The function that a path names behind its region, if it names one.
///
/// It is taken as it was sent, so that a slash in a name, which is encoded, is no part of the path.
pub(super) fn function(uri: &Uri) -> Result<Option<FunctionName>, Problem> {
    let mut segments = uri.path().split('/').skip(3);
    let (Some(module), Some(function)) = (segments.next(), segments.next()) else {
        return Ok(None);
    };
    Ok(Some(FunctionName {
        module: name("module", module)?,
        function: name("function", function)?,
    }))
}

fn name(what: &str, segment: &str) -> Result<Name, Problem> {
    let decoded = percent_decode_str(segment).decode_utf8();
    let name = decoded.ok().and_then(|text| text.parse().ok());
    name.ok_or_else(|| {
        let detail = format!("the {what} in the path must be {}", Name::RULE);
        Problem::new(Code::InvalidRequest, detail)
    })
}

/// The call of `name` with the arguments in `body` and the options in `headers`; the body too, for what it holds.
pub(super) async fn read(
    app: &App,
    name: FunctionName,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Call, Received), Problem> {
    let Timeouts { default, max } = app.timeouts;
    let options = options(headers, max)?;
    let body = optional_json_body(headers, body, app.limits.max_body, &app.memory).await?;
    let args = match body.bytes.as_slice() {
        [] => Args::default(),
        bytes => arguments(bytes)?,
    };
    Ok((Call::new(name, args, options, default), body))
}

fn arguments(body: &[u8]) -> Result<Args, Problem> {
    Args::from_raw(json::value(body)?).ok_or_else(|| {
        let detail = format!("the body must be {}", Args::RULE);
        Problem::new(Code::InvalidRequest, detail)
    })
}

fn options(headers: &HeaderMap, max: Duration) -> Result<Options, Problem> {
    let longest = max.as_millis();
    let timeout = |text: &str| {
        let timeout = Duration::from_millis(text.parse().ok()?);
        (!timeout.is_zero() && timeout <= max).then_some(timeout)
    };
    let rule = format!("an integer from 1 to {longest}");
    Ok(Options {
        timeout: header(headers, &TIMEOUT, &rule, timeout)?,
        idempotent: header(headers, &IDEMPOTENT, "true or false", |text| {
            text.parse().ok()
        })?,
        instance: header(headers, &INSTANCE, InstanceId::RULE, |text| {
            text.parse().ok()
        })?,
    })
}
