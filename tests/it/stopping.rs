//! Signals: what is in flight is finished, what is new is refused, and the exit code tells.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    cluster::{Cluster, instances_in_state},
    patience::{eventually, in_time},
    process::{Process, answer},
};

fn block(
    instance: &Process,
    name: &str,
) -> tokio::task::JoinHandle<reqwest::Result<crate::process::Answer>> {
    let call = json!({"module": "Test", "function": "block", "args": [name], "timeout_ms": 60_000});
    tokio::spawn(answer(
        instance.request(&format!("/rpc/{}", instance.region), &call.to_string()),
    ))
}

#[tokio::test]
async fn a_signal_with_nothing_in_flight_ends_with_0() {
    for signal in [Process::terminate, Process::interrupt] {
        let mut cluster = Cluster::builder().region("iad", 1).start().await;
        signal(cluster.instance("iad-1"));
        assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(0));
    }
}

#[tokio::test]
async fn calls_in_flight_are_finished_and_new_ones_refused() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .functions()
        .start()
        .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let held = block(syd, "held");
    cluster.until_marked("held.started").await;
    syd.terminate();

    let refused = async || syd.call("syd", "Kernel.+", json!([1, 2])).await;
    let refused = eventually("refusal", refused, |answer| answer.status == 503).await;
    assert_eq!(refused.problem(), (503, "draining", "no"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(syd.get("/readyz").await.problem(), (503, "draining", "no"));
    assert_eq!(syd.get("/healthz").await.status, 200);
    let from_afar = iad.call("syd", "Kernel.+", json!([1, 2])).await;
    assert_eq!(from_afar.problem(), (503, "draining", "no"));
    let draining = async || instances_in_state(iad, "draining").await;
    eventually("peers know", draining, |seen| seen.contains("syd-1")).await;

    cluster.release("held");
    assert_eq!(held.await.unwrap().unwrap().result(), "released");
    assert_eq!(cluster.instance_mut("syd-1").ended().await.code(), Some(0));
}

#[tokio::test]
async fn calls_are_still_served_during_the_drain_delay() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .set("RPC_DRAIN_DELAY", "60s")
        .start()
        .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    syd.terminate();
    let told = async || syd.get("/internal/region").await.body["state"].clone();
    eventually("the peers are told", told, |state| state == "draining").await;
    assert_eq!(syd.get("/readyz").await.problem(), (503, "draining", "no"));
    assert_eq!(iad.call("syd", "Kernel.+", json!([1, 2])).await.result(), 3);
}

#[tokio::test]
async fn what_outlives_the_drain_timeout_is_cut_and_told_by_the_exit_code() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .start()
        .await;
    let held = block(cluster.instance("iad-1"), "held");
    cluster.until_marked("held.started").await;
    cluster.instance("iad-1").terminate();
    assert!(held.await.unwrap().is_err());
    cluster.instance_mut("iad-1").ended().await;
}

#[tokio::test]
async fn the_program_ends_with_1_when_something_was_cut() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let mut half_sent = TcpStream::connect(iad.address).await.unwrap();
    half_sent.write_all(b"POST /rpc/iad HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
    assert_eq!(iad.get("/healthz").await.status, 200);
    iad.terminate();
    let mut rest = Vec::new();
    // A reset or a plain end: the connection is gone either way.
    let _ = in_time("the cut", half_sent.read_to_end(&mut rest)).await;
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DRAIN_DELAY", "60s")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    iad.terminate();
    eventually(
        "draining",
        async || iad.get("/readyz").await.status,
        |status| *status == 503,
    )
    .await;
    iad.interrupt();
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(1));
}
