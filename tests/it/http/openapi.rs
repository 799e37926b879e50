//! The OpenAPI document: one text, in the repository, in the binary and on the wire.

use std::io::Read as _;

use flate2::read::GzDecoder;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::process::{Environment, Process};

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
    let local = Process::start(&listening()).await;
    let served = local.get("/openapi.json").await;
    assert_eq!(
        served.body,
        serde_json::from_str::<serde_json::Value>(&kept).unwrap()
    );
}

fn listening() -> Environment {
    Environment::from([("RPC_LISTEN", "127.0.0.1:0".to_owned())])
}

/// What `value` is, where it refers to another place of `document`.
pub(crate) fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(place) => document.pointer(&place[1..]).unwrap(),
        None => value,
    }
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
        let response = resolved(&document, &call[&status]);
        let example = &response["content"]["application/problem+json"]["examples"][code]["value"];
        // The first is between instances; the second is answered where there is no operation.
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
        assert_ne!(object.get("default"), Some(&Value::Null), "{object:?}");
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
    let instance = Process::start(&listening()).await;
    let page = instance.get("/docs").await;
    assert_eq!(
        (page.status, page.content_type.as_str()),
        (200, "text/html; charset=utf-8")
    );
    let policy = "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self'; \
        base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let text = page.body.as_str().unwrap();
    assert!(!text.contains("://"), "{text}");
    for path in [
        "/docs",
        "/docs/problems",
        "/docs/docs.js",
        "/docs/docs.css",
        "/docs/swagger-ui.css",
    ] {
        let file = instance.get(path).await;
        assert_eq!(file.status, 200, "{path}");
        assert_eq!(file.headers["content-security-policy"], policy, "{path}");
    }
    for path in ["/docs/", "/docs/index.html", "/docs/a/b"] {
        assert_eq!(instance.get(path).await.problem().0, 404, "{path}");
    }
}

#[tokio::test]
async fn the_page_of_the_cluster_comes_whole_from_the_instance() {
    let instance = Process::start(&listening()).await;
    let page = instance.get("/ui").await;
    assert_eq!(
        (page.status, page.content_type.as_str()),
        (200, "text/html; charset=utf-8")
    );
    let page = page.body.as_str().unwrap().to_owned();
    let names = ["src=\"", "href=\"ui/"].map(|at| page.split_once(at).unwrap().1);
    let mut paths: Vec<_> = names
        .map(|rest| rest.split('"').next().unwrap().trim_start_matches("ui/"))
        .map(str::to_owned)
        .to_vec();
    let mut size = page.len();
    let mut next = 0;
    while let Some(name) = paths.get(next).cloned() {
        let file = instance.get(&format!("/ui/{name}")).await;
        assert_eq!(file.status, 200, "{name}");
        let policy = &file.headers["content-security-policy"];
        assert!(
            policy.starts_with("default-src 'none'; connect-src 'self';"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
        assert_eq!(file.headers["cache-control"], "no-cache");
        assert!(file.headers["etag"].starts_with("W/"), "{name}");
        let text = file.body.as_str().unwrap();
        size += text.len();
        for imported in text
            .lines()
            .filter_map(|line| line.split_once(" from \"./"))
        {
            let imported = imported.1.split('"').next().unwrap().to_owned();
            if !paths.contains(&imported) {
                paths.push(imported);
            }
        }
        next += 1;
    }
    assert_eq!(paths.len(), 8, "{paths:?}");
    assert!(size < 100 << 10, "{size} bytes");
    assert!(!page.contains("style=") && !page.contains("onclick"));
    assert_eq!(instance.get("/ui/").await.problem().0, 404);
    assert_eq!(instance.get("/ui/index.html").await.problem().0, 404);
}

#[tokio::test]
async fn the_type_of_a_problem_leads_to_its_explanation() {
    let instance = Process::start(&listening()).await;
    let refused = instance.get("/regions/mars").await;
    let (page, code) = refused.body["type"]
        .as_str()
        .unwrap()
        .split_once('#')
        .unwrap();
    let page = instance.get(page).await;
    assert_eq!((page.status, code), (200, "region_unknown"));
    let page = page.body.as_str().unwrap();
    let row = "<tr id=\"region_unknown\"><th scope=\"row\">region_unknown</th><td>404</td><td>no</td><td>";
    assert!(page.contains(row), "{page}");
    for code in fly_rpc::Code::ALL {
        let row = page.split(&format!("<tr id=\"{code}\">")).nth(1).unwrap();
        let text = row.split_once("</td></tr>").unwrap().0;
        let meaning = text.rsplit_once("<td>").unwrap().1;
        // It stands in the page as it is.
        assert!(
            meaning.ends_with('.') && !meaning.contains(['<', '>', '&']),
            "{code}: {meaning}"
        );
    }
}

#[tokio::test]
async fn the_document_is_compressed_and_sent_once() {
    let instance = Process::start(&listening()).await;
    let ask = async |name: &str, value: &str| {
        let request =
            reqwest::Client::new().get(format!("http://{}/openapi.json", instance.address));
        request.header(name, value).send().await.unwrap()
    };
    let plain = ask("accept-encoding", "br, gzip;q=0").await;
    assert_eq!(
        (plain.status(), plain.headers().get("content-encoding")),
        (StatusCode::OK, None)
    );
    assert_eq!(plain.headers()["cache-control"], "no-cache");
    let etag = plain.headers()["etag"].to_str().unwrap().to_owned();
    let plain = plain.bytes().await.unwrap();
    let small = ask("accept-encoding", "br;q=1.0, gzip;q=0.8").await;
    assert_eq!(small.headers()["content-encoding"], "gzip");
    assert_eq!(small.headers()["etag"], etag.as_str());
    let small = small.bytes().await.unwrap();
    let mut read = Vec::new();
    GzDecoder::new(small.as_ref())
        .read_to_end(&mut read)
        .unwrap();
    assert_eq!(read, plain);
    assert!(
        small.len() * 5 < plain.len(),
        "{} of {}",
        small.len(),
        plain.len()
    );
    for tag in [&*etag, etag.trim_start_matches("W/")] {
        let known = ask("if-none-match", &format!("\"other\", {tag}")).await;
        assert_eq!(
            (known.status(), known.headers()["etag"].to_str().unwrap()),
            (StatusCode::NOT_MODIFIED, etag.as_str())
        );
        assert!(known.bytes().await.unwrap().is_empty());
    }
    assert_eq!(
        ask("if-none-match", "W/\"other\"").await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn answers_are_not_to_be_stored() {
    let instance = Process::start(&listening()).await;
    for path in [
        "/regions",
        "/functions",
        "/healthz",
        "/readyz",
        "/none",
        "/metrics",
        "/internal/region",
    ] {
        assert_eq!(
            instance.get(path).await.headers["cache-control"],
            "no-store",
            "{path}"
        );
    }
    let answer = instance
        .call("local", "String.upcase", json!(["fly"]))
        .await;
    assert_eq!(answer.headers["cache-control"], "no-store");
}

#[test]
fn every_operation_takes_what_a_later_release_may_answer() {
    let document = document();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let response = |status| resolved(&document, &operation["responses"][status]);
            let later = &response("default")["content"]["application/problem+json"];
            assert_eq!(
                later["schema"]["$ref"], "#/components/schemas/Problem",
                "{method} {path}"
            );
            let allow = &response("405")["headers"]["Allow"]["example"];
            let expected = if method == "get" { "GET,HEAD" } else { "POST" };
            assert_eq!(allow, expected, "{method} {path}");
            let is_open = ["/healthz", "/readyz", "/openapi.json"].contains(&path.as_str());
            let security = if is_open {
                json!([])
            } else {
                json!([{"client_token": []}, {}])
            };
            assert_eq!(operation["security"], security, "{method} {path}");
        }
    }
}

/// The named examples of a body, each with the schema's name.
fn examples(content: &Value) -> Vec<&Value> {
    let media = content
        .as_object()
        .and_then(|content| content.values().next());
    let examples = media.and_then(|media| media["examples"].as_object());
    examples
        .into_iter()
        .flatten()
        .map(|(_, example)| &example["value"])
        .collect()
}

#[tokio::test]
async fn every_body_has_an_example_and_the_calls_among_them_run() {
    let document = document();
    let operations = document["paths"].as_object().unwrap().values();
    for operation in operations.flat_map(|operations| operations.as_object().unwrap().values()) {
        let content = &operation["responses"]["200"]["content"];
        assert!(!examples(content).is_empty(), "{operation}");
        let schema = content["application/json"]["schema"]["$ref"].as_str();
        let Some(name) = schema.and_then(|schema| schema.rsplit('/').next()) else {
            continue;
        };
        let members = document["components"]["schemas"][name]["properties"]
            .as_object()
            .unwrap();
        for example in examples(content) {
            let given: Vec<_> = example.as_object().unwrap().keys().collect();
            assert_eq!(given, members.keys().collect::<Vec<_>>(), "{name}");
        }
    }
    let instance = Process::start(&listening()).await;
    let calls = examples(&document["paths"]["/rpc/{region}"]["post"]["requestBody"]["content"]);
    assert_eq!(calls.len(), 3);
    for call in calls {
        let answer = instance.post("/rpc/local", &call.to_string()).await;
        assert_eq!(answer.status, 200, "{call} {answer:?}");
    }
}

/// What generators make of a schema's name and of its members' names must differ, and so must the values of enumerations,
/// which Go and Kotlin declare beside each other.
#[test]
fn no_schema_is_named_like_its_member_and_no_value_is_declared_twice() {
    let document = document();
    let mut values = Vec::new();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let members = schema["properties"].as_object().into_iter().flatten();
        for (member, _) in members {
            assert!(
                !member.replace('_', "").eq_ignore_ascii_case(name),
                "{name}.{member}"
            );
        }
        values.extend(schema["enum"].as_array().into_iter().flatten());
        // The HTTP libraries of Kotlin have classes of these names.
        assert!(
            !["Call", "Request", "Response"].contains(&name.as_str()),
            "{name}"
        );
    }
    let count = values.len();
    values.sort_by_key(|value| value.to_string());
    values.dedup();
    assert_eq!(values.len(), count);
}
