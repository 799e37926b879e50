//! How much an instance remembers of idempotency keys: whose they are, how many there may be, how large their results.

use std::fmt::Write;

use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    asking::run,
    functions::{runs, touch},
    process::{Answer, Environment, Process, answer},
};

const TOKENS: [(&str, &str); 2] = [
    ("shop", "shop-0123456789abcdef0123456789abcdef"),
    ("desk", "desk-0123456789abcdef0123456789abcdef"),
];

/// One instance in `local`, alone.
async fn alone(directory: &TempDir, clients: &[(&str, &str)]) -> Process {
    let mut environment = Environment::from([("RPC_LISTEN", "127.0.0.1:0".to_owned())]);
    let clients: Vec<_> = clients
        .iter()
        .map(|(name, token)| format!("{name}:{token}"))
        .collect();
    if !clients.is_empty() {
        environment.insert("RPC_CLIENT_TOKENS", clients.join(","));
    }
    Process::start_with_functions(&environment, directory.path()).await
}

async fn keyed(instance: &Process, token: &str, key: &str, call: &Value) -> Answer {
    let request = instance
        .request("/rpc/local", &call.to_string())
        .bearer_auth(token)
        .header("idempotency-key", key);
    answer(request).await.unwrap()
}

fn large(id: &str, bytes: usize) -> Value {
    json!({"module": "Test", "function": "large", "args": [id, bytes], "timeout_ms": 30_000})
}

/// Calls as another instance sends them, a line each.
async fn exec(instance: &Process, lines: String) -> Response {
    let request = Client::new()
        .post(format!("http://{}/internal/exec", instance.address))
        .header("content-type", "application/x-ndjson")
        .body(lines);
    request.send().await.unwrap()
}

fn line(id: usize, client: &str, key: &str, function: &str, args: &Value) -> String {
    let call = json!({
        "id": id, "region": "local", "module": "Test", "function": function, "args": args, "timeout_ms": 60_000,
        "client": client, "idempotency_key": key,
    });
    format!("{call}\n")
}

#[tokio::test]
async fn a_key_belongs_to_its_client() {
    let directory = TempDir::new().unwrap();
    let instance = alone(&directory, &TOKENS).await;
    for (name, token) in TOKENS {
        for repeat in [false, true] {
            let answer = keyed(&instance, token, "key", &run("one", &json!({}))).await;
            assert_eq!(answer.result(), "one");
            assert_eq!(
                answer.headers.contains_key("idempotency-replayed"),
                repeat,
                "{name}"
            );
        }
    }
    assert_eq!(runs(directory.path())["one"], 2);
    // Nor can one tell from a refusal that another has the key.
    let first = keyed(&instance, TOKENS[0].1, "own", &run("two", &json!({}))).await;
    assert_eq!(first.result(), "two");
    let other = keyed(&instance, TOKENS[1].1, "own", &run("three", &json!({}))).await;
    assert_eq!(other.result(), "three");
}

#[tokio::test]
async fn large_results_of_one_client_make_no_repeat_of_another_run_again() {
    let directory = TempDir::new().unwrap();
    let instance = alone(&directory, &TOKENS).await;
    let [(_, shop), (_, desk)] = TOKENS;
    let mine = large("mine", 4 << 20);
    keyed(&instance, desk, "mine", &mine).await.result();
    let smallest = large("smallest", 1 << 20);
    keyed(&instance, shop, "smallest", &smallest).await.result();
    for number in 0..40 {
        let (id, bytes) = (format!("large-{number}"), 4 << 20);
        let answer = keyed(&instance, shop, &id, &large(&id, bytes)).await;
        assert_eq!(answer.result().as_str().unwrap().len(), bytes);
    }
    // Of who has most of them, the largest go first.
    for (client, id, call) in [(desk, "mine", mine), (shop, "smallest", smallest)] {
        let again = keyed(&instance, client, id, &call).await;
        assert_eq!(again.headers["idempotency-replayed"], "true", "{again:?}");
    }
    // No call of the first client runs again either, and most results are not kept.
    let mut dropped = 0;
    for number in 0..40 {
        let id = format!("large-{number}");
        let again = keyed(&instance, shop, &id, &large(&id, 4 << 20)).await;
        if again.status != 200 {
            assert_eq!(again.problem(), (410, "result_not_kept", "yes"));
            dropped += 1;
        }
    }
    assert!((32..40).contains(&dropped), "{dropped}");
    assert!(runs(directory.path()).values().all(|runs| *runs == 1));
}

#[tokio::test]
async fn the_memory_of_large_results_is_bounded() {
    let directory = TempDir::new().unwrap();
    let instance = alone(&directory, &TOKENS[..1]).await;
    let before = instance.peak_memory();
    for number in 0..48 {
        let id = format!("large-{number}");
        let answer = keyed(&instance, TOKENS[0].1, &id, &large(&id, 7 << 20)).await;
        assert_eq!(answer.status, 200);
    }
    let after = instance.peak_memory();
    println!("48 results of 7 MiB: peak {before} to {after} KiB");
    assert!(after - before < 160 << 10, "{before} to {after} KiB");
}

#[tokio::test]
async fn a_bounded_number_waits_for_one_key() {
    const LINES: usize = 2_000;
    const WAITERS: usize = 64;
    let directory = TempDir::new().unwrap();
    let instance = alone(&directory, &[]).await;
    let mut lines = String::new();
    for id in 0..LINES {
        write!(
            lines,
            "{}",
            line(id, "shop", "key", "block", &json!(["latch"]))
        )
        .unwrap();
    }
    let mut response = exec(&instance, lines).await;
    let mut answers = String::new();
    let refused = |answers: &str| answers.matches(r#""code":"overloaded""#).count();
    while refused(&answers) < LINES - WAITERS - 1 {
        let piece = response.chunk().await.unwrap().unwrap();
        answers += str::from_utf8(&piece).unwrap();
    }
    assert_eq!(
        answers.matches(r#""executed":"maybe""#).count(),
        refused(&answers)
    );
    touch(directory.path(), "latch.released");
    while let Some(piece) = response.chunk().await.unwrap() {
        answers += str::from_utf8(&piece).unwrap();
    }
    assert_eq!(
        answers.matches(r#""result":"released""#).count(),
        WAITERS + 1
    );
    assert_eq!(answers.matches(r#""replayed":true"#).count(), WAITERS);
}

#[tokio::test]
async fn a_flood_of_new_keys_in_one_exchange_takes_what_is_remembered_of_them() {
    const CALLS: usize = 30_000;
    let directory = TempDir::new().unwrap();
    let instance = alone(&directory, &[]).await;
    let before = instance.peak_memory();
    let lines: String = (0..CALLS)
        .map(|id| {
            let call = json!({
                "id": id, "region": "local", "module": "String", "function": "length", "args": [""],
                "idempotency_key": format!("key-{id}"),
            });
            format!("{call}\n")
        })
        .collect();
    let client = Client::builder().no_proxy().build().unwrap();
    let request = client
        .post(format!("http://{}/internal/exec", instance.address))
        .header("content-type", "application/x-ndjson")
        .body(lines);
    let answers = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(answers.matches("\"result\":0}").count(), CALLS);
    // Without a bound on what is under way it was above 80 MiB.
    let grown = instance.peak_memory() - before;
    assert!(grown < 56 << 10, "{grown} KiB");
}
