//! The log: it never stops or slows the service, whatever becomes of its reader.

use std::{
    io::{PipeWriter, Write},
    process::{ExitStatus, Stdio},
};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    cluster::Cluster,
    patience::{eventually, in_time},
    process::{Environment, Process, answer},
};

/// Serves two calls and stops, with its log going to `stderr`.
async fn serves_with(stderr: PipeWriter) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command.arg("serve");
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    let mut local = Process::spawn_with_stderr(command, &environment, Stdio::from(stderr)).await;
    for word in ["one", "two"] {
        let call = local.call("local", "String.upcase", json!([word]));
        let answer = in_time("a call", call).await;
        assert_eq!(answer.result(), &word.to_uppercase());
    }
    local.terminate();
    local.ended().await
}

#[tokio::test]
async fn a_closed_log_harms_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(serves_with(writer).await.code(), Some(0));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // Fills the pipe and waits in it until the reader is gone.
    let filled = std::thread::spawn(move || while filler.write_all(&[b'\n'; 4096]).is_ok() {});
    assert_eq!(serves_with(writer).await.code(), Some(0));
    drop(reader);
    filled.join().unwrap();
}

/// The lines with `message` that `instance` writes about the request `id`, once there is one.
async fn lines(instance: &Process, message: &str, id: &str) -> Vec<Value> {
    let found = async || {
        let log = instance.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["message"] == message)
            .filter(|line| line["request_id"] == id || line["span"]["request_id"] == id)
            .collect::<Vec<_>>()
    };
    eventually(message, found, |found| !found.is_empty()).await
}

#[tokio::test]
async fn one_request_id_is_in_the_logs_of_both_instances_and_of_the_function() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .functions()
        .start()
        .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = r#"{"module":"Test","function":"log","args":["from the function"]}"#;
    let request = iad
        .request("/rpc/syd", call)
        .header("x-request-id", "the-one");
    assert_eq!(answer(request).await.unwrap().result(), "from the function");
    let edge = lines(iad, "call", "the-one").await;
    let told = |line: &Value| (line["function"].clone(), line["instance"].clone());
    assert_eq!(
        edge.iter().map(told).collect::<Vec<_>>(),
        [(json!("Test.log"), json!("syd-1"))]
    );
    let exec = lines(syd, "exec", "the-one").await;
    assert_eq!((exec.len(), &exec[0]["function"]), (1, &json!("Test.log")));
    assert_eq!(lines(syd, "from the function", "the-one").await.len(), 1);
}

#[tokio::test]
async fn a_failed_attempt_is_logged_under_the_request_id_and_its_cause_beside_it() {
    let mut cluster = Cluster::builder().region("syd", 1).start().await;
    cluster.add_with("iad", "RPC_POLL_INTERVAL", "60s").await;
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    let iad = cluster.instance("iad-1");
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    let request = iad
        .request("/rpc/syd", call)
        .header("x-request-id", "the-one");
    let refused = answer(request).await.unwrap();
    assert_eq!(refused.problem(), (502, "peer_unreachable", "no"));
    let attempt = lines(iad, "attempt failed", "the-one").await;
    let told = ["level", "instance", "code", "executed", "detail"].map(|name| &attempt[0][name]);
    let detail = "no connection to instance syd-1";
    assert_eq!(told, ["WARN", "syd-1", "peer_unreachable", "no", detail]);
    let log = iad.log();
    assert!(
        log.contains("\"message\":\"no connection\"") && log.contains("Connection refused"),
        "{log}"
    );
    assert_eq!(lines(iad, "call failed", "the-one").await.len(), 1);
}
