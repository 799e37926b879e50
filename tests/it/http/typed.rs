//! The typed operations of functions that declare their parameters: in the document of every instance of the cluster, for
//! who may list the functions, whatever is declared.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::openapi::resolved;
use crate::{
    app::{App, TOKEN},
    support::{
        asking::two_regions,
        command::run_with,
        patience::eventually,
        process::{Answer, Process, answer},
    },
};

const DESK: &str = "the-token-of-the-client-desk-00000004";

async fn document(instance: &Process, headers: &[(&str, &str)]) -> Answer {
    let url = format!("http://{}/openapi.json", instance.address);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request).await.unwrap()
}

/// The paths of functions, without the one of any function.
fn typed(document: &Value) -> Vec<&str> {
    let paths = document["paths"].as_object().unwrap().keys();
    let of_functions = paths.filter(|path| path.matches('/').count() == 4);
    let of_one = of_functions.filter(|path| !path.contains("{module}"));
    of_one.map(String::as_str).collect()
}

/// Every reference in `value` leads somewhere in `document`.
fn assert_refers(document: &Value, value: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(place)) = members.get("$ref") {
                let place = place.strip_prefix('#').unwrap();
                assert!(document.pointer(place).is_some(), "{place}");
            }
            members.values().for_each(|it| assert_refers(document, it));
        }
        Value::Array(items) => items.iter().for_each(|it| assert_refers(document, it)),
        _ => {}
    }
}

fn assert_whole(document: &Value) {
    assert_refers(document, document);
    let paths = document["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|path| path.as_object().unwrap().values());
    let plain = |id: &Value| id.as_str().unwrap().replace('_', "").to_lowercase();
    let ids: Vec<_> = operations.map(|it| plain(&it["operationId"])).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let names: BTreeSet<_> = schemas.keys().map(|name| name.to_lowercase()).collect();
    assert_eq!(names.len(), schemas.len());
}

#[tokio::test]
async fn every_instance_has_an_operation_for_each_function_wherever_it_runs() {
    let mut cluster = two_regions().functions().start().await;
    cluster.add_without_functions("fra").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let fra = cluster.instance("fra-1");
    let shown = async || document(fra, &[]).await.body;
    let has_it = |document: &Value| !typed(document).is_empty();
    let document = eventually("the operation", shown, has_it).await;
    assert_whole(&document);
    let of_functions = ["/rpc/{region}/Test/no_params", "/rpc/{region}/Test/pair"];
    assert_eq!(typed(&document), of_functions);
    let operation = &document["paths"]["/rpc/{region}/Test/pair"]["post"];
    let stock = &document["paths"]["/rpc/{region}/{module}/{function}"]["post"];
    assert_eq!(operation["operationId"], "test_pair");
    assert_eq!(operation["summary"], "Both as they came");
    assert_eq!(operation["security"], stock["security"]);
    let statuses = |operation: &Value| -> Vec<String> {
        let responses = operation["responses"].as_object().unwrap();
        // A typed operation waits for its result.
        let waited = responses.keys().filter(|status| *status != "202");
        waited.cloned().collect()
    };
    assert_eq!(statuses(operation), statuses(stock));
    assert_eq!(operation["responses"]["202"], Value::Null);
    let headers = |operation: &Value| -> Vec<(String, Value)> {
        let all = operation["responses"]["200"]["headers"]
            .as_object()
            .unwrap();
        let all = all.iter();
        all.map(|(name, header)| (name.clone(), resolved(&document, header).clone()))
            .collect()
    };
    assert_eq!(headers(operation), headers(stock));
    assert_eq!(operation["responses"]["422"], stock["responses"]["422"]);
    let parameters = |operation: &Value| -> Vec<Value> {
        let all = operation["parameters"].as_array().unwrap().iter();
        let all = all.map(|it| resolved(&document, it));
        let mut all: Vec<_> = all
            .filter(|it| !["module", "function", "prefer"].contains(&it["name"].as_str().unwrap()))
            .cloned()
            .collect();
        all.sort_by_key(|it| it["name"].to_string());
        all
    };
    assert_eq!(parameters(operation), parameters(stock));
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body["$ref"], "#/components/schemas/TestPairArgs");
    assert_eq!(
        resolved(&document, body),
        &json!({
            "type": "object",
            "description": "The arguments of `Test.pair`.",
            "properties": {"first": {}, "second": {"type": "array", "items": {}}},
            "required": ["first", "second"],
            "additionalProperties": false,
        })
    );
    let reply = &operation["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(reply["$ref"], "#/components/schemas/TestPairReply");
    assert_eq!(
        resolved(&document, reply)["properties"],
        json!({
            "result": {"type": "array", "items": {}, "description": "The two"},
            "meta": {"$ref": "#/components/schemas/Meta"},
        })
    );
    // Types are for generators: the function takes what it takes.
    let called = fra
        .post("/rpc/syd/Test/pair", r#"{"second":1,"first":2}"#)
        .await;
    assert_eq!(called.result(), &json!([2, 1]));
}

/// What an app may list that does not fit a document as it stands.
fn hostile() -> Value {
    let param = |name: &str, schema: Value| json!({"name": name, "schema": schema});
    let mut functions = json!({
        "Notes.create": {"params": [param("title", json!({"type": "string"}))], "doc": "One\n\"\"\" */ two"},
        "notes.Create": {"params": [param("title", json!({"$ref": "#/components/schemas/Gone"}))]},
        "Notes.create2": {"params": []},
        "Call.function": {"params": []},
        "MyNotes.RPC.createAll?": {"params": []},
        "2.f": {"params": []},
        "a\"\"\".*/": {"params": []},
        "Kernel.+": {"params": [param("a", json!(1)), param("b", json!({"type": "nothing"}))]},
        "{region}.{x}": {"params": [param("a-b", json!({})), param("a_b", json!({}))]},
        "Notes.tree": {
            "params": [{"name": "large", "schema": {"description": "x".repeat(20_000)}}],
            "result": {
                "$ref": "#/$defs/Args",
                "$defs": {"Args": {"properties": {"below": {"type": "array", "items": {"$ref": "#/$defs/Args"}}}}},
            },
        },
        "Notes.undeclared": {},
    });
    for number in 0..40 {
        functions[format!("Many.f{number}")] = json!({"params": [], "result": {"oneOf": [{}, {}]}});
    }
    json!({ "functions": functions })
}

#[tokio::test]
async fn no_declaration_breaks_the_document_and_each_change_is_in_it() {
    let app = App::start().await;
    app.offer(&hostile());
    let instance = app.instance(&[]).await;
    let answered = document(&instance, &[]).await;
    let described = &answered.body;
    assert_whole(described);
    assert_eq!(typed(described).len(), 50);
    let id = |path: &str| described["paths"][path]["post"]["operationId"].clone();
    assert_eq!(id("/rpc/{region}/Notes/create"), "notes_create");
    assert_eq!(id("/rpc/{region}/Notes/create2"), "notes_create2");
    assert_eq!(id("/rpc/{region}/notes/Create"), "notes_create_3");
    assert_eq!(id("/rpc/{region}/Call/function"), "call_function_2");
    let create_all = id("/rpc/{region}/MyNotes.RPC/createAll%3F");
    assert_eq!(create_all, "my_notes_rpc_create_all");
    assert_eq!(id("/rpc/{region}/2/f"), "fn_2_f");
    assert_eq!(id("/rpc/{region}/a%22%22%22/%2A%2F"), "a_x2ax2f");
    assert_eq!(id("/rpc/{region}/Kernel/%2B"), "kernel_x2b");
    assert_eq!(id("/rpc/{region}/%7Bregion%7D/%7Bx%7D"), "region_x");
    let schema = |name: &str| described["components"]["schemas"][name].clone();
    assert_eq!(
        schema("NotesCreate3Args")["properties"],
        json!({"title": {}})
    );
    assert_eq!(schema("RegionXArgs")["properties"], Value::Null);
    assert_eq!(
        schema("NotesTreeReply")["properties"]["result"],
        json!({"$ref": "#/components/schemas/NotesTreeArgs"})
    );
    assert_eq!(schema("NotesTreeArgs2")["properties"], json!({"large": {}}));
    let create = &described["paths"]["/rpc/{region}/Notes/create"]["post"];
    assert_eq!(create["summary"], "One ''' * / two");
    let none = &described["paths"]["/rpc/{region}/Call/function"]["post"];
    assert_eq!(none["requestBody"], Value::Null);

    let etag = answered.headers["etag"].clone();
    let again = document(&instance, &[("if-none-match", &etag)]).await;
    assert_eq!(again.status, 304);
    app.offer(&json!({"functions": {"App.run": {"params": [{"name": "id"}]}}}));
    let renewed = async || document(&instance, &[("if-none-match", &etag)]).await;
    let renewed = eventually("another document", renewed, |it| it.status == 200).await;
    assert_eq!(typed(&renewed.body), ["/rpc/{region}/App/run"]);
    app.offer(&json!({"functions": {"App.run": {}}}));
    let stock = serde_json::from_str::<Value>(&fly_rpc::openapi_json()).unwrap();
    let shown = async || document(&instance, &[]).await.body;
    eventually("the stock document", shown, |now| *now == stock).await;
}

#[tokio::test]
async fn the_command_line_writes_the_document_that_an_instance_would() {
    let app = App::start().await;
    app.offer(&hostile());
    let instance = app.instance(&[]).await;
    let url = app.environment()["RPC_APP_URL"].clone();
    let arguments = ["openapi", "--app-url", &url];
    let (code, stdout, stderr) = run_with(&arguments, &[("RPC_APP_TOKEN", TOKEN)]).await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    let written: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(written, document(&instance, &[]).await.body);
    let (code, stdout, stderr) = run_with(&arguments, &[("RPC_APP_TOKEN", &"x".repeat(40))]).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("GET of it must answer 200"), "{stderr}");
}

#[tokio::test]
async fn names_that_are_one_in_every_language_cost_no_more_than_others() {
    const SIGNS: &str = "!%&()*+,-.:;<=>?@[]";
    // Of no letter and no digit, so that generators cannot tell them apart.
    let names = SIGNS
        .chars()
        .flat_map(|one| SIGNS.chars().map(move |two| format!("{one}{two}")));
    let names: Vec<_> = names.take(330).collect();
    let references = names
        .iter()
        .map(|name| json!({"$ref": format!("#/$defs/{name}")}));
    let objects = names
        .iter()
        .map(|name| (name.clone(), json!({"properties": {}})));
    let schema = json!({
        "anyOf": Vec::from_iter(references), "$defs": Map::from_iter(objects),
    });
    let params = (0..62).map(|number| json!({"name": format!("p{number}"), "schema": schema}));
    let app = App::start().await;
    app.offer(&json!({"functions": {"Odd.names": {"params": Vec::from_iter(params)}}}));
    let url = app.environment()["RPC_APP_URL"].clone();
    let (started, arguments) = (Instant::now(), ["openapi", "--app-url", &url]);
    let (code, stdout, stderr) = run_with(&arguments, &[("RPC_APP_TOKEN", TOKEN)]).await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(started.elapsed() < Duration::from_secs(60));
    let written: Value = serde_json::from_str(&stdout).unwrap();
    let schemas = written["components"]["schemas"].as_object().unwrap();
    let made = schemas.keys().filter(|name| name.starts_with("OddNames"));
    // Each of them, the arguments, and the reply.
    assert_eq!(made.count(), 62 * 330 + 2);
}

#[tokio::test]
async fn strangers_and_other_sites_see_the_stock_document_and_clients_what_they_may_call() {
    let app = App::start().await;
    let params = json!({"params": [{"name": "a"}]});
    app.offer(&json!({"functions": {"App.run": params, "App.fail": params}}));
    let stock = serde_json::from_str::<Value>(&fly_rpc::openapi_json()).unwrap();
    let open = app.instance(&[]).await;
    assert_eq!(typed(&document(&open, &[]).await.body).len(), 2);
    for header in [("origin", "http://evil.example"), ("host", "evil.example")] {
        let shown = document(&open, &[header]).await.body;
        assert!(shown == stock, "{header:?}: {:?}", typed(&shown));
    }
    let clients = format!("desk:{DESK}:functions=App.fail");
    let mut environment = app.environment();
    environment.insert("RPC_CLIENT_TOKENS", clients);
    let guarded = Process::start(&environment).await;
    let bearer = format!("Bearer {DESK}");
    let desk = async || document(&guarded, &[("authorization", &bearer)]).await;
    let has_it = |answer: &Answer| !typed(&answer.body).is_empty();
    let desk = eventually("the function", desk, has_it).await;
    assert_eq!(typed(&desk.body), ["/rpc/{region}/App/fail"]);
    let wrong = format!("Bearer {}", "x".repeat(40));
    for headers in [&[][..], &[("authorization", wrong.as_str())]] {
        let stranger = document(&guarded, headers).await;
        assert!(
            stranger.status == 200 && stranger.body == stock,
            "{headers:?}"
        );
    }
}
