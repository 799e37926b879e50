//! Calls of the test's functions, and what their answers tell.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    cluster::Cluster,
    process::{Answer, Process, answer},
};

/// A call of `Test.run` that ends at once, with `more` members.
pub(crate) fn run(id: &str, more: &Value) -> Value {
    let mut call =
        json!({"module": "Test", "function": "run", "args": [id, 0], "timeout_ms": 5_000});
    for (member, value) in more.as_object().unwrap() {
        call[member] = value.clone();
    }
    call
}

/// A call of `Test.block` under way, with `more` members.
pub(crate) fn block(via: &Process, region: &str, name: &str, more: &Value) -> JoinHandle<Answer> {
    let mut call =
        json!({"module": "Test", "function": "block", "args": [name], "timeout_ms": 60_000});
    for (member, value) in more.as_object().unwrap() {
        call[member] = value.clone();
    }
    let request = via.request(&format!("/rpc/{region}"), &call.to_string());
    tokio::spawn(async { answer(request).await.unwrap() })
}

/// Code, executed and attempts.
pub(crate) fn told(answer: &Answer) -> (&str, &str, u64) {
    let (_, code, executed) = answer.problem();
    (
        code,
        executed,
        answer.body["meta"]["attempts"].as_u64().unwrap(),
    )
}

/// `iad` calls `syd` through proxies; no connection within 300 ms is none.
pub(crate) async fn broken_cluster(syd: usize) -> Cluster {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", syd)
        .functions()
        .proxied()
        .set("RPC_CONNECT_TIMEOUT", "300ms");
    cluster.start().await
}
