//! The clusters that most tests ask, calls of the test's functions, and what their answers say.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    cluster::{Builder, Cluster},
    process::{Answer, Process, answer},
};

/// The timeout in milliseconds of a call that is to be late: also on a busy machine it has started, or left, before.
pub(crate) const LATE_MS: u64 = 3_000;

/// A call of `Test.run` that ends at once, with `more` members.
pub(crate) fn run(id: &str, more: &Value) -> Value {
    with(
        json!({"module": "Test", "function": "run", "args": [id, 0], "timeout_ms": 30_000}),
        more,
    )
}

/// A call of `Test.block`, with `more` members.
pub(crate) fn blocking(name: &str, more: &Value) -> Value {
    with(
        json!({"module": "Test", "function": "block", "args": [name], "timeout_ms": 60_000}),
        more,
    )
}

fn with(mut call: Value, more: &Value) -> Value {
    for (member, value) in more.as_object().unwrap() {
        call[member] = value.clone();
    }
    call
}

/// A call of `Test.block` under way, with `more` members.
pub(crate) fn block(via: &Process, region: &str, name: &str, more: &Value) -> JoinHandle<Answer> {
    let request = via.request(&format!("/rpc/{region}"), &blocking(name, more).to_string());
    tokio::spawn(async { answer(request).await.unwrap() })
}

/// Code, executed and attempts.
pub(crate) fn failure(answer: &Answer) -> (&str, &str, u64) {
    let (_, code, executed) = answer.problem();
    (
        code,
        executed,
        answer.body["meta"]["attempts"].as_u64().unwrap(),
    )
}

/// `iad-1` and `syd-1`, to be completed and started by the test.
pub(crate) fn two_regions() -> Builder {
    Cluster::builder().region("iad", 1).region("syd", 1)
}

/// `iad` calls `syd` through proxies.
pub(crate) async fn broken_cluster(syd: usize) -> Cluster {
    let cluster = Cluster::builder().region("iad", 1).region("syd", syd);
    cluster.functions().proxied().start().await
}
