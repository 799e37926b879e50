//! The examples in the OpenAPI document: each is what a running cluster answers.

use std::{collections::BTreeMap, future::pending, sync::mpsc, thread};

use fly_rpc::{CallError, Config, FunctionError, Instance, Registry};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use super::openapi::{document, resolved};
use crate::support::{
    asking::{LATE_MS, block, two_regions},
    cluster::Cluster,
    dns::Mood,
    fault::Fault,
    patience::eventually,
    process::{Answer, Environment, Process, answer},
    raw,
};

const SHOP: &str = "the-token-of-the-client-shop-00000003";
const DESK: &str = "the-token-of-the-client-desk-00000004";
const APP_TOKEN: &str = "the-token-of-the-app-of-this-test-0005";
const UPCASE: &str = r#"{"module":"String","function":"upcase","args":["fly"]}"#;
/// A call that does not wait for the first round.
const HASTY: &str = r#"{"module":"String","function":"upcase","args":["fly"],"timeout_ms":1}"#;

/// Every example of a problem, by code and detail; an example is the same wherever it stands.
fn examples(document: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let operations = document["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|path| path.as_object().unwrap().values());
    for response in
        operations.flat_map(|operation| operation["responses"].as_object().unwrap().values())
    {
        let response = resolved(document, response);
        let examples = &response["content"]["application/problem+json"]["examples"];
        for (code, example) in examples.as_object().into_iter().flatten() {
            let example = timeless(example["value"].clone());
            assert_eq!(example["code"], **code);
            let earlier = found.insert(code_and_detail(&example), example.clone());
            assert!(earlier.is_none_or(|earlier| earlier == example), "{code}");
        }
    }
    found
}

fn code_and_detail(problem: &Value) -> String {
    format!("{}: {}", problem["code"], problem["detail"])
}

/// `body` without what differs from one request to the next.
fn timeless(mut body: Value) -> Value {
    for member in ["elapsed_ms", "request_id"] {
        body["meta"][member] = Value::Null;
    }
    if let Some((before, _)) = body["detail"]
        .as_str()
        .and_then(|it| it.split_once("last seen "))
    {
        body["detail"] = before.into();
    }
    body
}

#[tokio::test]
async fn every_example_of_a_problem_is_what_a_cluster_answers() {
    let mut answers = refusals_of_requests().await;
    answers.push(result_not_kept().await);
    answers.extend(refusals_of_clients().await);
    answers.extend(broken_ways().await);
    answers.extend(full_and_stopping().await);
    answers.push(in_the_first_round().await);
    answers.extend(app_that_ends().await);
    let answered = answers.into_iter().map(|answer| timeless(answer.body));
    let mut answered: BTreeMap<String, Value> = answered
        .map(|body| (code_and_detail(&body), body))
        .collect();
    let mut examples = examples(&document());

    // A runtime that stops takes the HTTP side with it: only the program that embeds the instance hears of it.
    let internal = thread::spawn(in_a_runtime_that_stops).join().unwrap();
    let internal = json!({
        "code": internal.code(), "executed": internal.executed(), "detail": internal.detail(),
    });
    let example = examples.remove(&code_and_detail(&internal)).unwrap();
    assert_eq!(internal["executed"], example["executed"]);

    for (name, example) in examples {
        assert_eq!(answered.remove(&name), Some(example), "{name}");
    }
    assert_eq!(answered, BTreeMap::new());
}

#[tokio::test]
async fn the_example_of_a_result_is_what_a_cluster_answers() {
    let cluster = two_regions().start().await;
    let answer = cluster.instance("iad-1").post("/rpc/syd", UPCASE).await;
    let call = &document()["paths"]["/rpc/{region}"]["post"]["responses"]["200"];
    let example = &call["content"]["application/json"]["examples"]["upcase"]["value"];
    assert_eq!(timeless(answer.body), timeless(example.clone()));
}

/// An app that closes the connection on every call, and then is gone.
async fn app_that_ends() -> [Answer; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/rpc", listener.local_addr().unwrap());
    let app = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(list_functions(BufReader::new(connection)));
        }
    });
    let cluster = two_regions()
        .set("RPC_APP_URL", &url)
        .set("RPC_APP_TOKEN", APP_TOKEN)
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let call = async || iad.call("syd", "Notes.create", json!([])).await;
    let code = |code: &'static str| move |answer: &Answer| answer.body["code"] == code;
    let lost = eventually("a lost call", call, code("function_lost")).await;
    app.abort();
    // Not the first that the call cannot be sent to: once the instance knows that the app is gone.
    let is_down =
        |answer: &Answer| answer.body["detail"] == "Notes.create: the app does not answer";
    let gone = eventually("no app", call, is_down).await;
    [lost, gone]
}

/// Answers requests for the list, and closes the connection on any other.
async fn list_functions(mut connection: BufReader<TcpStream>) {
    const LIST: &str = r#"{"functions":{"Notes.create":{}}}"#;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if connection.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        if !head.starts_with("GET ") {
            return;
        }
        let (status, list) = match head.contains(APP_TOKEN) {
            true => ("200 OK", LIST),
            false => ("401 Unauthorized", ""),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{list}",
            list.len()
        );
        if connection.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What is wrong with the request, or with the function that it calls.
async fn refusals_of_requests() -> Vec<Answer> {
    let cluster = two_regions().functions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = |function: &str, args: Value| {
        json!({"module": "String", "function": function, "args": args}).to_string()
    };
    let in_syd = |body: &str| iad.request("/rpc/syd", body);
    let keyed = |function: &str| {
        in_syd(&call(function, json!(["fly"]))).header("idempotency-key", "order-1234")
    };
    assert_eq!(answer(keyed("upcase")).await.unwrap().result(), "FLY");
    let sleep = json!({
        "module": "Process", "function": "sleep", "args": [60_000], "timeout_ms": LATE_MS,
    });
    let requests: Vec<RequestBuilder> = vec![
        in_syd(r#"{"module":"String""#),
        in_syd(r#"{"module":"String"}"#),
        iad.request("/rpc/SYD", UPCASE),
        iad.request("/rpc/mars", UPCASE),
        in_syd(r#"{"module":"String","function":"upcase","instance":"syd-9"}"#),
        in_syd(&call("shout", json!(["fly"]))),
        in_syd(&"x".repeat((1 << 20) + 1)),
        in_syd(UPCASE).header("content-encoding", "gzip"),
        in_syd(&call("upcase", json!([1]))),
        keyed("downcase"),
        in_syd(r#"{"module":"Kernel","function":"raise","args":["boom"]}"#),
        in_syd(r#"{"module":"Test","function":"panic"}"#),
        in_syd(UPCASE).header("rpc-forwarded", "1"),
        in_syd(UPCASE).header("rpc-route", "replay"),
        syd.request("/rpc/syd", &sleep.to_string()),
    ];
    let mut answers = Vec::new();
    for request in requests {
        answers.push(answer(request).await.unwrap());
    }
    answers.push(iad.get("/rpc/syd").await);
    let long = format!("/regions?{}", "r".repeat(10_000));
    answers.push(iad.get(&long).await);
    let headers: String = (3..=101)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let head =
        format!("GET /regions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    answers.push(raw::answer(iad.address, head.as_bytes()).await);
    let hosts =
        "GET /regions HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    answers.push(raw::answer(iad.address, hosts.as_bytes()).await);
    answers
}

/// What the repeat of a call gets whose result had no room in the memory of idempotency keys.
async fn result_not_kept() -> Answer {
    let cluster = two_regions().functions().start().await;
    let syd = cluster.instance("syd-1");
    let call = async |number: usize| {
        let call =
            json!({"module": "Test", "function": "large", "args": [number.to_string(), 4 << 20]});
        let request = syd.request("/rpc/syd", &call.to_string());
        answer(request.header("idempotency-key", format!("large-{number}")))
            .await
            .unwrap()
    };
    for number in 0..9 {
        assert_eq!(call(number).await.status, 200);
    }
    for number in 0..9 {
        let again = call(number).await;
        if again.status != 200 {
            return again;
        }
    }
    panic!("36 MiB of results were kept");
}

/// What a client without a token gets, and one outside of its limits.
async fn refusals_of_clients() -> Vec<Answer> {
    let clients = format!("shop:{SHOP},desk:{DESK}:regions=iad");
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_CLIENT_TOKENS", clients),
    ]);
    let iad = Process::start(&environment).await;
    let request = || iad.request("/rpc/syd", UPCASE);
    vec![
        answer(request()).await.unwrap(),
        answer(request().bearer_auth(DESK)).await.unwrap(),
    ]
}

/// What a call meets when its way breaks: before it leaves, once that is known, and after it left.
async fn broken_ways() -> Vec<Answer> {
    let cluster = two_regions().functions().proxied().start().await;
    let (iad, way) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let held = block(iad, "syd", "held", &json!({}));
    cluster.until_started("held").await;
    way.break_all(Fault::Refuse).await;
    let lost = held.await.unwrap();

    let call = async || iad.post("/rpc/syd", UPCASE).await;
    let code = |answer: &Answer| answer.problem().1.to_owned();
    // A probe that fails before the call makes the instance suspect.
    let met = async || {
        way.heal().await;
        cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
        way.break_all(Fault::Refuse).await;
        call().await
    };
    let unreachable = eventually("a call before a probe", met, |answer| {
        code(answer) == "peer_unreachable"
    });
    let unreachable = unreachable.await;
    let unavailable = eventually("it is known", call, |answer| {
        code(answer) == "region_unavailable"
    });
    vec![lost, unreachable, unavailable.await]
}

/// What a call meets when the instance has enough to do, and when the instance asked stops.
async fn full_and_stopping() -> Vec<Answer> {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "2")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let held: Vec<_> = ["one", "two"]
        .map(|name| block(iad, "syd", name, &json!({})))
        .into();
    for name in ["one", "two"] {
        cluster.until_started(name).await;
    }
    let call = async || iad.post("/rpc/syd", UPCASE).await;
    let overloaded = call().await;
    iad.terminate();
    let draining = eventually("a refusal", call, |answer| answer.problem().1 == "draining");
    let draining = draining.await;
    for (name, call) in ["one", "two"].into_iter().zip(held) {
        cluster.release(name);
        assert_eq!(call.await.unwrap().result(), "released");
    }
    vec![overloaded, draining]
}

/// What a call gets while DNS was not heard yet.
async fn in_the_first_round() -> Answer {
    let cluster = Cluster::builder().start().await;
    cluster.dns.set_mood(Mood::Silent);
    let environment = cluster.environment("iad", "iad-1", ([127, 0, 0, 1], 0).into());
    let first_call = async || {
        Process::start(&environment)
            .await
            .post("/rpc/syd", HASTY)
            .await
    };
    // On a busy machine the round may be over before the call.
    let is_in_time = |answer: &Answer| answer.detail().contains("first discovery round");
    eventually("a call in the first round", first_call, is_in_time).await
}

/// What a program hears of its own call when its runtime stops under the function.
fn in_a_runtime_that_stops() -> CallError {
    let runtime = Runtime::new().unwrap();
    let (start, started) = mpsc::channel();
    let registry = Registry::builtin().function("Test", "wait", move |(): ()| {
        let start = start.clone();
        async move {
            // Its next poll is on a worker, which the runtime waits for before it stops its timers.
            tokio::task::yield_now().await;
            start.send(())?;
            pending::<Result<(), FunctionError>>().await
        }
    });
    let config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    let instance = runtime.block_on(Instance::start(config, registry)).unwrap();
    let (rpc, handle) = (instance.rpc().clone(), runtime.handle().clone());
    let call = move || handle.block_on(rpc.call::<()>("local", "Test", "wait", ()));
    let caller = thread::spawn(call);
    started.recv().unwrap();
    runtime.shutdown_background();
    caller.join().unwrap().unwrap_err()
}
