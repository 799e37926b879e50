//! The OpenAPI document: one text, in the repository, in the binary and on the wire.

use std::collections::BTreeMap;

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    process::{Answer, Environment, Process, answer},
};

#[tokio::test]
async fn the_document_is_the_same_everywhere() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let kept = std::fs::read_to_string(path).unwrap();
    let made = fly_rpc::openapi_json();
    let differs = kept
        .lines()
        .zip(made.lines())
        .find(|(kept, made)| kept != made);
    assert!(
        kept.trim_end() == made,
        "{differs:?}; refresh it with: cargo run -- openapi > openapi/openapi.json"
    );
    let local = Process::start(&Environment::from([(
        "RPC_LISTEN",
        "127.0.0.1:0".to_owned(),
    )]))
    .await;
    let served = local.get("/openapi.json").await;
    assert_eq!(
        served.body,
        serde_json::from_str::<serde_json::Value>(&kept).unwrap()
    );
}

fn document() -> Value {
    serde_json::from_str(&fly_rpc::openapi_json()).unwrap()
}

/// Every example of a problem, by code; an example is the same wherever it stands.
fn examples(document: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let operations = document["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|path| path.as_object().unwrap().values());
    for response in
        operations.flat_map(|operation| operation["responses"].as_object().unwrap().values())
    {
        let examples = &response["content"]["application/problem+json"]["examples"];
        for (code, example) in examples.as_object().into_iter().flatten() {
            let earlier = found.insert(code.clone(), example["value"].clone());
            assert!(
                earlier.is_none_or(|earlier| earlier == example["value"]),
                "{code}"
            );
        }
    }
    found
}

/// `answer` without what differs from one request to the next.
fn timeless(mut body: Value) -> Value {
    for member in ["elapsed_ms", "request_id"] {
        body["meta"][member] = Value::Null;
    }
    body
}

#[tokio::test]
async fn the_examples_are_answers_of_a_real_cluster() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .functions()
        .start()
        .await;
    let examples = examples(&document());
    let (mut met, mut differences) = (Vec::new(), Vec::new());
    let mut compare = |code: &str, answer: Answer| {
        let (answered, example) = (timeless(answer.body), timeless(examples[code].clone()));
        if answered != example {
            differences.push(format!("{answered} is not {example}"));
        }
        met.push(code.to_owned());
    };
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = |function: &str, args: Value| json!({"module": "String", "function": function, "args": args});
    let upcase = call("upcase", json!(["fly"])).to_string();
    let request = |path: &str, body: &str| iad.request(path, body);
    let with =
        |name: &'static str, value: &'static str| request("/rpc/syd", &upcase).header(name, value);
    let sleep =
        json!({"module": "Process", "function": "sleep", "args": [60_000], "timeout_ms": 50});
    let pinned = json!({"module": "String", "function": "upcase", "instance": "syd-9"});
    let keyed = |function: &str| {
        request("/rpc/syd", &call(function, json!(["fly"])).to_string())
            .header("idempotency-key", "order-1234")
    };
    let replied = answer(keyed("upcase")).await.unwrap();
    let cases: Vec<(&str, RequestBuilder)> = vec![
        ("invalid_json", request("/rpc/syd", r#"{"module":"String""#)),
        (
            "invalid_request",
            request("/rpc/syd", r#"{"module":"String"}"#),
        ),
        ("invalid_region", request("/rpc/SYD", &upcase)),
        ("region_unknown", request("/rpc/mars", &upcase)),
        ("instance_unknown", request("/rpc/syd", &pinned.to_string())),
        (
            "function_unknown",
            request("/rpc/syd", &call("shout", json!(["fly"])).to_string()),
        ),
        (
            "body_too_large",
            request("/rpc/syd", &"x".repeat((1 << 20) + 1)),
        ),
        ("unsupported_media_type", with("content-encoding", "gzip")),
        (
            "invalid_arguments",
            request("/rpc/syd", &call("upcase", json!([1])).to_string()),
        ),
        ("idempotency_mismatch", keyed("downcase")),
        (
            "function_failed",
            request(
                "/rpc/syd",
                r#"{"module":"Kernel","function":"raise","args":["boom"]}"#,
            ),
        ),
        (
            "function_panicked",
            request("/rpc/syd", r#"{"module":"Test","function":"panic"}"#),
        ),
        (
            "deadline_exceeded",
            syd.request("/rpc/syd", &sleep.to_string()),
        ),
        ("loop_detected", with("rpc-forwarded", "1")),
        ("replay", with("rpc-route", "replay")),
    ];
    for (code, request) in cases {
        compare(code, answer(request).await.unwrap());
    }
    compare("method_not_allowed", iad.get("/rpc/syd").await);
    compare(
        "not_found",
        iad.get(&format!("/regions?{}", "r".repeat(10_000))).await,
    );

    let held = json!({"module": "Test", "function": "block", "args": ["held"]}).to_string();
    let held = tokio::spawn(answer(iad.request("/rpc/syd", &held)));
    cluster.until_marked("held.started").await;
    cluster.instance("syd-1").kill();
    compare("peer_lost", held.await.unwrap().unwrap());
    cluster.instance_mut("syd-1").ended().await;

    let document = document();
    let call = &document["paths"]["/rpc/{region}"]["post"];
    let example = &call["responses"]["200"]["content"]["application/json"]["examples"]["upcase"];
    assert_eq!(timeless(replied.body), timeless(example["value"].clone()));
    assert!(differences.is_empty(), "{differences:#?}");
    let others = [
        "unauthenticated",
        "forbidden",
        "headers_too_large",
        "internal",
        "peer_unreachable",
        "region_unavailable",
        "discovery_pending",
        "draining",
        "overloaded",
    ];
    met.extend(others.map(str::to_owned));
    met.sort();
    assert_eq!(met, examples.into_keys().collect::<Vec<_>>());
}

#[test]
fn every_problem_that_a_client_can_meet_is_documented() {
    let document = document();
    let call = &document["paths"]["/rpc/{region}"]["post"]["responses"];
    for code in fly_rpc::Code::ALL {
        let (status, code) = (code.status().to_string(), code.as_str());
        let example =
            &call[&status]["content"]["application/problem+json"]["examples"][code]["value"];
        // The first is between instances; the second is answered on /rpc/… as invalid_region.
        let elsewhere = ["wrong_region", "not_found"].contains(&code);
        assert_eq!(example["code"] == code, !elsewhere, "{code}");
    }
}

/// Every object in `value`, itself included.
fn objects(value: &Value) -> Vec<&serde_json::Map<String, Value>> {
    match value {
        Value::Object(object) => {
            let below = object.values().flat_map(objects);
            std::iter::once(object).chain(below).collect()
        }
        Value::Array(items) => items.iter().flat_map(objects).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn schemas_are_flat_and_nothing_is_written_for_rust() {
    let document = document();
    for object in objects(&document) {
        for word in ["oneOf", "anyOf", "allOf"] {
            assert!(!object.contains_key(word), "{object:?}");
        }
        if let Some(Value::String(description)) = object.get("description") {
            assert!(
                !description.contains("[`") && !description.contains("::"),
                "{description}"
            );
        }
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        for (member, schema) in schema["properties"].as_object().into_iter().flatten() {
            assert!(
                schema["description"].is_string(),
                "{name}.{member} has no description"
            );
        }
    }
}

#[tokio::test]
async fn the_page_asks_nobody_but_the_instance() {
    let listen = ("RPC_LISTEN", "127.0.0.1:0".to_owned());
    let page = Process::start(&Environment::from([listen]))
        .await
        .get("/docs")
        .await;
    assert_eq!(
        (page.status, page.content_type.as_str()),
        (200, "text/html; charset=utf-8")
    );
    let policy = "default-src 'none'; connect-src 'self'; ";
    assert!(page.headers["content-security-policy"].starts_with(policy));
    let text = page.body.as_str().unwrap();
    assert!(
        text.contains("fetch(\"/openapi.json\")") && !text.contains("://"),
        "{text}"
    );
}
