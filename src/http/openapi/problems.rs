//! The problems that each route may answer with, as the document lists them: a response for each status, an example for
//! each code. The examples are answers of a real cluster; a test asks one again and compares.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};
use utoipa::{
    IntoResponses,
    openapi::{RefOr, Response},
};

use super::{header, part};
use crate::{
    problem::{Code, Executed, FunctionError, Problem},
    reply::{Meta, ProblemDocument},
};

/// Defines what the documentation of a route names: its problems, as responses.
macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $($code:ident)*;)*) => {
        $($(#[$doc])*
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                responses(&[$(Code::$code),*])
            }
        })*
    };
}

problems! {
    /// Of a call: every code that a client can meet.
    CallProblems:
        InvalidJson InvalidRequest InvalidRegion Unauthenticated Forbidden RegionUnknown InstanceUnknown FunctionUnknown MethodNotAllowed
        Replay BodyTooLarge TargetTooLong UnsupportedMediaType HeadersTooLarge InvalidArguments IdempotencyMismatch FunctionFailed ResultNotKept
        FunctionPanicked Internal PeerUnreachable PeerLost FunctionLost FunctionUnavailable RegionUnavailable DiscoveryPending Draining Overloaded
        DeadlineExceeded LoopDetected;
    /// Of a fan-out: what becomes of its calls is in its entries.
    EachProblems:
        InvalidJson InvalidRequest InvalidRegion Unauthenticated Forbidden MethodNotAllowed BodyTooLarge TargetTooLong UnsupportedMediaType
        HeadersTooLarge DiscoveryPending Draining Overloaded LoopDetected;
    /// Of one region.
    RegionProblems:
        InvalidRequest InvalidRegion Unauthenticated RegionUnknown MethodNotAllowed TargetTooLong HeadersTooLarge
        DiscoveryPending;
    /// Of the explanation of one region.
    ExplainProblems:
        InvalidRequest InvalidRegion Unauthenticated RegionUnknown MethodNotAllowed TargetTooLong HeadersTooLarge;
    /// Of what else clients may read.
    ClusterProblems: InvalidRequest Unauthenticated MethodNotAllowed TargetTooLong HeadersTooLarge;
    /// Of the stream of events.
    EventProblems: InvalidRequest Unauthenticated MethodNotAllowed TargetTooLong HeadersTooLarge Draining Overloaded;
    /// Of readiness.
    ReadinessProblems: InvalidRequest MethodNotAllowed TargetTooLong HeadersTooLarge FunctionUnavailable DiscoveryPending Draining;
    /// Of the routes without a token.
    OpenProblems: InvalidRequest MethodNotAllowed TargetTooLong HeadersTooLarge;
}

/// What the response of any other status says.
const LATER: &str =
    "Another problem, of this release or of a later one: take it by its status and `executed`.";

/// A response for each status of `codes`, and one for what a later release may answer.
fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(*code);
    }
    let takes_a_body = codes.contains(&Code::InvalidJson);
    by_status
        .into_iter()
        .map(|(status, codes)| (status.to_string(), response(&codes, takes_a_body)))
        .chain([(
            "default".to_owned(),
            problem(LATER, &Map::new(), &Map::new()),
        )])
        .map(|(status, response)| (status, part(response)))
        .collect()
}

/// The response of a problem, with headers and examples by their names.
fn problem(
    description: &str,
    headers: &Map<String, Value>,
    examples: &Map<String, Value>,
) -> Value {
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    json!({
        "description": description,
        "headers": headers,
        "content": {"application/problem+json": {"schema": schema, "examples": examples}},
    })
}

/// The response of `codes`, which have one status.
fn response(codes: &[Code], takes_a_body: bool) -> Value {
    let titles = codes
        .iter()
        .map(|code| format!("`{code}`: {}.", code.title()));
    let description = titles.collect::<Vec<_>>().join(" ");
    let examples = codes.iter().map(|code| {
        let document = document(*code, takes_a_body);
        let example = json!({"summary": code.title(), "value": document});
        (code.to_string(), example)
    });
    let mut headers = Map::new();
    let mut add = |name: &str, kind: &str, description: &str, example: &Value| {
        headers.insert(name.to_owned(), header(kind, description, example));
    };
    if codes.iter().any(|code| code.retry_after().is_some()) {
        let seconds = "Seconds to wait before another call; not with every code";
        add("Retry-After", "integer", seconds, &json!(1));
    }
    if codes.contains(&Code::Replay) {
        let region = "Where Fly Proxy is to replay the request";
        let example = "region=syd;prefer_instance=syd-1;timeout=2499ms;fallback=prefer_self;state=01M8452GRJX2VJVKXD6FQ0T3AB~4999";
        add("fly-replay", "string", region, &json!(example));
    }
    if codes.contains(&Code::Overloaded) {
        let another =
            "That Fly Proxy is to try another Machine; only behind it, and not with every code";
        let example = "elsewhere=true;timeout=2499ms;fallback=prefer_self;state=01M8452GRJX2VJVKXD6FQ0T3AB~4999";
        add("fly-replay", "string", another, &json!(example));
    }
    if codes.contains(&Code::MethodNotAllowed) {
        let methods = if takes_a_body { "POST" } else { "GET,HEAD" };
        let which = "The methods of this route";
        add("Allow", "string", which, &json!(methods));
    }
    if codes.contains(&Code::Unauthenticated) {
        let how = "How to authenticate (RFC 6750); `error` where the token that was sent is wrong";
        let example = "Bearer error=\"invalid_token\"";
        add("WWW-Authenticate", "string", how, &json!(example));
    }
    problem(&description, &headers, &examples.collect())
}

fn document(code: Code, takes_a_body: bool) -> ProblemDocument {
    let (region, attempts, detail) = match code {
        Code::InvalidRequest if !takes_a_body => ("", 0, "header host is given twice"),
        _ => sample(code),
    };
    let problem = match code {
        Code::FunctionFailed => {
            Problem::function_failed(FunctionError::new("RuntimeError", "boom"))
        }
        Code::DeadlineExceeded => Problem::new(code, detail).executed(Executed::Maybe),
        _ => Problem::new(code, detail),
    };
    let region = (!region.is_empty()).then(|| word(region));
    let meta = Meta {
        instance: (attempts > 0).then(|| word("syd-1")),
        attempts,
        ..Meta::untried(
            region,
            Duration::from_micros(412),
            word("01M8452GRJX2VJVKXD6FQ0T3AB"),
        )
    };
    ProblemDocument::new(problem, meta)
}

fn word<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| unreachable!("{text} is a word"))
}

/// Defines the sample of each code: the region that the request named, if it named one; how many instances were tried;
/// the detail.
macro_rules! samples {
    ($($code:ident $region:literal $attempts:literal $detail:literal;)*) => {
        const fn sample(code: Code) -> (&'static str, u32, &'static str) {
            match code { $(Code::$code => ($region, $attempts, $detail),)* }
        }
    };
}

samples! {
    InvalidJson "syd" 0 "the body is not one JSON value: EOF while parsing an object at line 1 column 18";
    InvalidRequest "syd" 0 "member \"function\" is missing";
    InvalidRegion "" 0 "a region must be \"primary\", \"any\", or 1 to 32 characters of [a-z0-9-], not starting with '-' (\"all\" only alone, for a fan-out)";
    Unauthenticated "" 0 "this route requires a client's token: `authorization: Bearer TOKEN`";
    Forbidden "syd" 0 "client \"desk\" may not call in region \"syd\"";
    RegionUnknown "mars" 0 "no instance was ever seen in region \"mars\"; known regions: iad, syd";
    InstanceUnknown "syd" 0 "instance \"syd-9\" is not in this region";
    FunctionUnknown "syd" 1 "no function String.shout here";
    NotFound "" 0 "no such route here; /docs and /openapi.json of the public listener list those there";
    MethodNotAllowed "" 0 "this route has other methods; see the header allow";
    Replay "syd" 0 "Fly Proxy is to replay this call in region \"syd\"; without it, send the header rpc-route: proxy";
    BodyTooLarge "syd" 0 "the body is larger than the 1048576 bytes of RPC_MAX_BODY";
    TargetTooLong "" 0 "the path and query have 10009 bytes, more than 8192";
    UnsupportedMediaType "syd" 0 "the body must not be encoded; send it without content-encoding";
    HeadersTooLarge "" 0 "the request has 101 headers, more than 100";
    WrongRegion "syd" 0 "this is instance syd-1 of region \"syd\"";
    InvalidArguments "syd" 1 "String.upcase: argument 1: expected a string";
    IdempotencyMismatch "syd" 1 "the idempotency key belongs to a call of another function or with other arguments";
    FunctionFailed "syd" 1 "the function returned an error of kind \"RuntimeError\"";
    ResultNotKept "syd" 1 "the call with this key ran, and its result was too large to be kept";
    FunctionPanicked "syd" 1 "Test.panic panicked; the instance's log has the cause";
    Internal "syd" 1 "the runtime stopped while the function ran";
    PeerUnreachable "syd" 1 "region \"syd\": 1 attempt, none could connect; no connection to instance syd-1";
    PeerLost "syd" 1 "the connection to instance syd-1 was lost after the call";
    FunctionLost "syd" 1 "Notes.create: the connection to the app was lost after the call";
    FunctionUnavailable "syd" 1 "Notes.create: the app does not answer";
    RegionUnavailable "syd" 1 "region \"syd\": 1 known instance, none reachable; last seen 12 s ago";
    DiscoveryPending "syd" 0 "region \"syd\": the first discovery round has not finished yet";
    Draining "syd" 0 "this instance is stopping and takes no new calls";
    Overloaded "syd" 1 "this instance runs 2 calls, as many as RPC_MAX_IN_FLIGHT allows";
    DeadlineExceeded "syd" 1 "Process.sleep was still running at the deadline";
    LoopDetected "syd" 0 "an instance forwarded this call to /rpc; peers take calls at /internal/exec";
}
