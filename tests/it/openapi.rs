//! The OpenAPI document: one text, in the repository, in the binary and on the wire.

use serde_json::Value;

use crate::process::{Environment, Process};

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

pub(crate) fn document() -> Value {
    serde_json::from_str(&fly_rpc::openapi_json()).unwrap()
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
