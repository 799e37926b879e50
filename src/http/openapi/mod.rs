//! The OpenAPI document: what it says besides the routes, and `GET /openapi.json`. That serves the stock document; to a client
//! that may list the functions, one with an operation for each function of the cluster that declares its parameters and
//! that the client may call, which `functions.rs` adds.

mod functions;
mod problems;
mod schema;

use std::{
    collections::BTreeMap,
    iter,
    sync::{Arc, LazyLock},
};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header::VARY},
    response::Response,
};
use moka::{policy::EvictionPolicy, sync::Cache};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task;
use utoipa::{
    OpenApi,
    openapi::{
        Content, Object, OpenApi as ApiDocument, Ref, RefOr, Required,
        Response as DocumentedResponse, Responses, Schema,
        path::{Operation, Parameter},
        schema::{SchemaType, Type},
        security::SecurityScheme,
    },
};

pub(super) use self::functions::with_functions;
use super::{
    DispatcherState, auth,
    events::{Counts, Lagged},
    openapi_json, openapi_with,
    pages::Page,
    response::JSON,
};
use crate::{
    access::{Caller, FunctionPattern},
    declaration::MAX_PARAMS,
    dispatch::Dispatcher,
    feed::{EndedCall, FailedAttempt, PeerChange},
    problem::Code,
    protocol::{Catalogue, CatalogueHash},
    reply::ProblemMembers,
};

const DESCRIPTION: &str = "\
Run a named function in a chosen region. Every problem says whether the function ran (`executed`).

A later release may add, without a new version: operations; optional members and headers of requests; members and headers \
of answers; values of `code`, with any status from 400 to 599. So ignore a member that you do not know, and take a `code` \
that you do not know by its status and `executed`. `executed` and `state` get no other values.";

/// The id in examples.
const EXAMPLE_ID: &str = "01M8452GRJX2VJVKXD6FQ0T3AB";

/// The examples of each operation, of its request and of its answers by their status; and what is said of each code of a
/// problem: the region that the request named, how many instances were tried, and the detail. A test asks a real cluster for
/// them.
static EXAMPLES: LazyLock<Value> = LazyLock::new(|| {
    let examples = include_str!("../../../openapi/examples.json");
    serde_json::from_str(examples)
        .unwrap_or_else(|error| unreachable!("the examples are JSON: {error}"))
});

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fly-rpc",
        description = DESCRIPTION,
    ),
    servers((
        url = "http://{address}",
        description = "An instance",
        variables(("address" = (default = "127.0.0.1:8080", description = "Host and port of an instance")))
    )),
    // No route names them: problems are added to all of them, and the data of events is only text there.
    components(schemas(ProblemMembers<'_>, PeerChange<'_>, EndedCall<'_>, FailedAttempt<'_>, Counts, Lagged)),
    tags(
        (name = "rpc", description = "Calls"),
        (name = "cluster", description = "Regions, instances and functions"),
        (name = "health", description = "For health checks"),
        (name = "description", description = "This document"),
    )
)]
struct Description;

/// The document without its routes.
pub(super) fn description() -> ApiDocument {
    let mut document = Description::openapi();
    // utoipa takes the license from Cargo.toml and writes an empty one where there is none.
    document.info.license = None;
    let token = "A client's token, where the instance was given any in `RPC_CLIENT_TOKENS`";
    let scheme = json!({"type": "http", "scheme": "bearer", "description": token});
    if let Some(components) = &mut document.components {
        components.add_security_scheme("client_token", part::<SecurityScheme>(scheme));
    }
    document
}

/// `document` with what no attribute of utoipa says: what operations have in common, their problems and their examples.
pub(super) fn finished(mut document: ApiDocument) -> ApiDocument {
    let components = document.components.get_or_insert_default();
    for (name, of, change) in [
        ("Problem", "Problem", list_codes as fn(&mut Object)),
        (ENTRY_PROBLEM, "Problem", allow_null),
        ("FunctionError", "FunctionError", allow_null),
        ("AppStatus", "AppStatus", allow_null),
        ("FanOutRequest", "CallRequest", fan_out),
    ] {
        if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get(of) {
            let mut object = object.clone();
            change(&mut object);
            components.schemas.insert(name.to_owned(), object.into());
        }
    }
    // Problems of a call, which are the same however it is asked for, and its other answers.
    let mut answers = Responses::new();
    let paths = document.paths.paths.values_mut();
    for operation in paths
        .flat_map(|path| [&mut path.get, &mut path.post])
        .flatten()
    {
        finish(operation);
        match operation.operation_id.as_deref() {
            Some("callFunction") => {
                share_problems(&mut operation.responses, &mut components.responses);
                answers = operation.responses.clone();
            }
            Some("callFunctionByPath") => {
                operation.responses = answers.clone();
                allow_no_args(operation);
            }
            Some("callEach") => finish_fan_out(operation),
            _ => {}
        }
    }
    document
}

/// Adds its problems, examples and ids of requests.
fn finish(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            parameter.schema.iter_mut().for_each(deny_null);
        }
    }
    let id = operation.operation_id.as_deref().unwrap_or_default();
    let examples = &EXAMPLES["operations"][id];
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        illustrate(body.content.values_mut(), &examples["request"]);
    }
    let responses = &mut operation.responses.responses;
    responses.extend(problems::responses(id));
    for (status, response) in responses {
        if let RefOr::T(response) = response {
            let id = header("string", "The request's id", &json!(EXAMPLE_ID));
            response.headers.insert("x-request-id".to_owned(), part(id));
            illustrate(response.content.values_mut(), &examples[status]);
        }
    }
}

/// Puts `examples`, if there are any, into the first of `contents`.
fn illustrate<'a>(mut contents: impl Iterator<Item = &'a mut RefOr<Content>>, examples: &Value) {
    if let (Some(RefOr::T(content)), Value::Object(_)) = (contents.next(), examples) {
        content.examples = part(examples.clone());
    }
}

/// Moves the problems of a call to what operations share, and leaves references to them.
fn share_problems(
    answers: &mut Responses,
    shared: &mut BTreeMap<String, RefOr<DocumentedResponse>>,
) {
    let responses = answers.responses.iter_mut();
    for (status, response) in responses.filter(|(status, _)| !status.starts_with('2')) {
        let which = match status.as_str() {
            "default" => "Later",
            code => code,
        };
        let name = format!("CallProblem{which}");
        let reference = RefOr::Ref(Ref::from_response_name(&name));
        shared.insert(name, std::mem::replace(response, reference));
    }
}

/// Makes the body optional, because a call without one has no arguments, and bounds it: utoipa has no attribute for the
/// most items of an array that is a whole body.
fn allow_no_args(operation: &mut Operation) {
    let Some(RefOr::T(body)) = &mut operation.request_body else {
        return;
    };
    body.required = None;
    for content in body.content.values_mut() {
        if let RefOr::T(content) = content
            && let Some(RefOr::T(Schema::Array(args))) = &mut content.schema
        {
            args.max_items = Some(MAX_PARAMS);
        }
    }
}

/// Makes the body of a call that of a fan-out, with `per` in place of `instance`.
fn fan_out(body: &mut Object) {
    let per = json!({
        "type": "string",
        "description": "Whether every instance of each region is asked, once whatever `idempotent` says, or one of each, with \
            the attempts of a call: `instance` when it is not given.",
        "pattern": "^(instance|region)$",
    });
    body.description = Some("A call that many instances run.".to_owned());
    body.properties.remove("instance");
    body.properties.insert("per".to_owned(), part(per));
}

/// A fan-out has the headers of a call, but is never replayed, and always waited for. utoipa takes a body that is only
/// referred to for optional.
fn finish_fan_out(operation: &mut Operation) {
    let is_for_one_call = |parameter: &RefOr<Parameter>| matches!(parameter, RefOr::T(it) if ["rpc-route", "prefer"].contains(&it.name.as_str()));
    if let Some(parameters) = &mut operation.parameters {
        parameters.retain(|parameter| !is_for_one_call(parameter));
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        body.required = Some(Required::True);
    }
}

/// A parameter is there or not; utoipa allows null for one that is optional, as it does for a member.
fn deny_null(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema
        && let SchemaType::Array(types) = &object.schema_type
        && let Some(one) = types.iter().find(|one| **one != Type::Null)
    {
        object.schema_type = one.clone().into();
    }
}

/// A reference that may be null needs `oneOf`, which generators turn into a class of its own: the schema itself may be
/// null instead.
fn allow_null(object: &mut Object) {
    object.schema_type = SchemaType::from_iter([Type::Object, Type::Null]);
}

/// The schema of a problem in an entry of a fan-out, which may be null.
const ENTRY_PROBLEM: &str = "FanOutProblem";

pub(super) fn entry_problem() -> RefOr<Schema> {
    let mut problem = Ref::from_schema_name(ENTRY_PROBLEM);
    "Why there is no result; null where there is one.".clone_into(&mut problem.description);
    problem.into()
}

/// The codes of this release, where generators do not make a closed type of them: `code` is an open set.
fn list_codes(problem: &mut Object) {
    if let Some(RefOr::T(Schema::Object(code))) = problem.properties.get_mut("code") {
        code.extensions = Some(part(json!({"x-extensible-enum": Code::ALL})));
    }
}

pub(super) fn to_json(document: &ApiDocument) -> String {
    let json = document.to_pretty_json();
    json.unwrap_or_else(|error| unreachable!("an OpenAPI document has a JSON form: {error}"))
}

fn header(kind: &str, description: &str, example: &Value) -> Value {
    json!({"schema": {"type": kind}, "description": description, "example": example})
}

/// A part of the document, from its JSON: shorter than utoipa's builders, and as it is read in the end.
fn part<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json)
        .unwrap_or_else(|error| unreachable!("this is a part of an OpenAPI document: {error}"))
}

/// How many documents are kept: one for each limit of clients, as long as the functions stay the same.
const KEPT: u64 = 4;

static STOCK: LazyLock<Page> = LazyLock::new(|| Page::new(JSON, openapi_json()));

/// What a document is made of: the functions, and those of them that the client may call.
type Sources = (Vec<CatalogueHash>, Option<Vec<FunctionPattern>>);

/// The last documents with functions. The sources say all that is in one: instances in one process share them.
static WITH_FUNCTIONS: LazyLock<Cache<Sources, Arc<Page>>> = LazyLock::new(|| {
    let cache = Cache::builder().max_capacity(KEPT);
    cache.eviction_policy(EvictionPolicy::lru()).build()
});

/// Get this document
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getDescription",
    tag = "description",
    params((
        "If-None-Match" = Option<String>,
        Header,
        description = "The `etag` of the document that the client has"
    )),
    responses(
        (
            status = 200,
            description = "The OpenAPI document, with an `etag`; compressed where `accept-encoding` names gzip. Who may list the \
                functions finds an operation for each function of the cluster that declares its parameters",
            body = Value,
        ),
        (status = 304, description = "The client has it"),
    ),
    security()
)]
pub(super) async fn get_description(
    State(dispatcher): DispatcherState,
    request: Request,
) -> Response {
    let document = match auth::known_caller(&dispatcher.local.access, &request) {
        Some(caller) => of_functions(&dispatcher, caller).await,
        None => None,
    };
    let document = document.as_deref().unwrap_or(&STOCK);
    let mut response = document.answer(request.headers());
    let depends = HeaderValue::from_static("authorization");
    response.headers_mut().append(VARY, depends);
    response
}

/// The document for `caller`; `None` where no function of the cluster declares its parameters.
async fn of_functions(dispatcher: &Dispatcher, caller: Caller) -> Option<Arc<Page>> {
    let own = dispatcher.executor.catalogue();
    let mut others = dispatcher.cluster.catalogues();
    others.remove(own.hash());
    // What this instance declares comes first, where a peer of another release declares something else.
    let mut catalogues: Vec<_> = iter::once(own).chain(others.into_values()).collect();
    catalogues.retain(|it| it.iter().any(|(_, declared)| declared.params.is_some()));
    if catalogues.is_empty() {
        return None;
    }
    let hashes = catalogues.iter().map(|it| it.hash().clone()).collect();
    let sources = (hashes, caller.functions().map(<[_]>::to_vec));
    if let Some(known) = WITH_FUNCTIONS.get(&sources) {
        return Some(known);
    }
    // Megabytes may have to be compressed; requests that come meanwhile wait for the same document.
    let build = move || WITH_FUNCTIONS.get_with(sources, || Arc::new(build(&catalogues, &caller)));
    task::spawn_blocking(build).await.ok()
}

fn build(catalogues: &[Arc<Catalogue>], caller: &Caller) -> Page {
    let mut functions = BTreeMap::new();
    for (name, declared) in catalogues.iter().flat_map(|catalogue| catalogue.iter()) {
        if declared.params.is_some() && caller.may_call(name) {
            functions.entry(name.clone()).or_insert(declared);
        }
    }
    Page::new(JSON, openapi_with(functions).to_string())
}
