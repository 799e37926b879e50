//! The problems that each operation may answer with, as the document lists them: a response for each status, an example for
//! each code. The examples are answers of a real cluster; a test asks one again and compares.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Response};

use super::{EXAMPLE_ID, EXAMPLES, header, part};
use crate::{
    problem::{Code, Executed, FunctionError, Problem},
    region::Region,
    reply::{Meta, ProblemDocument},
};

/// Whether `operation` may answer with `code`.
fn may_answer(operation: &str, code: Code) -> bool {
    use Code::*;
    let own: &[Code] = match operation {
        // Every code that a client can meet.
        "callFunction" => return !matches!(code, NotFound | WrongRegion),
        // What becomes of its calls is in its entries.
        "callEach" => &[
            InvalidJson,
            InvalidRegion,
            Unauthenticated,
            Forbidden,
            BodyTooLarge,
            UnsupportedMediaType,
            DiscoveryPending,
            Draining,
            Overloaded,
            LoopDetected,
        ],
        "getRegion" => &[
            InvalidRegion,
            Unauthenticated,
            Forbidden,
            RegionUnknown,
            DiscoveryPending,
            Overloaded,
        ],
        "explainRegion" => &[
            InvalidRegion,
            Unauthenticated,
            Forbidden,
            RegionUnknown,
            FunctionUnknown,
            Overloaded,
        ],
        "listRegions" | "listFunctions" => &[Unauthenticated, Forbidden, Overloaded],
        "streamEvents" => &[Unauthenticated, Forbidden, Draining, Overloaded],
        "getReadiness" => &[FunctionUnavailable, DiscoveryPending, Draining],
        _ => &[],
    };
    let any = [
        InvalidRequest,
        MethodNotAllowed,
        TargetTooLong,
        HeadersTooLarge,
    ];
    any.contains(&code) || own.contains(&code)
}

/// What the response of any other status says.
const LATER: &str =
    "Another problem, of this release or of a later one: take it by its status and `executed`.";

/// A response for each status of the problems of `operation`, and one for what a later release may answer.
pub(super) fn responses(operation: &str) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in Code::ALL {
        if may_answer(operation, *code) {
            by_status.entry(code.status()).or_default().push(*code);
        }
    }
    let takes_a_body = may_answer(operation, Code::InvalidJson);
    let later = problem(LATER, &Map::new(), &Map::new());
    let known = by_status.into_iter();
    known
        .map(|(status, codes)| (status.to_string(), response(&codes, takes_a_body)))
        .chain([("default".to_owned(), later)])
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
    let name = match code {
        Code::InvalidRequest if !takes_a_body => "invalid_request without a body",
        _ => code.as_str(),
    };
    let example = EXAMPLES["problems"][name].clone();
    let (region, attempts, detail): (Option<Region>, u32, String) = part(example);
    let problem = match code {
        Code::FunctionFailed => {
            Problem::function_failed(FunctionError::new("RuntimeError", "boom"))
        }
        Code::DeadlineExceeded => Problem::new(code, detail).executed(Executed::Maybe),
        _ => Problem::new(code, detail),
    };
    let elapsed = Duration::from_micros(412);
    let meta = Meta {
        instance: (attempts > 0).then(|| part("syd-1".into())),
        attempts,
        ..Meta::untried(region, elapsed, part(EXAMPLE_ID.into()))
    };
    ProblemDocument::new(problem, meta)
}
