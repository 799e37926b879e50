//! A peer that answers nothing: a probe decides whether it is suspect, the timeouts of calls do not.

use serde_json::json;

use crate::support::{
    asking::{blocking, two_regions},
    cluster::{Cluster, instances_in_state},
    patience::eventually,
};

#[tokio::test]
async fn calls_slower_than_their_deadlines_do_not_make_their_peer_suspect() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let slow = blocking("slow", &json!({"timeout_ms": 1000}));
    for _ in 0..4 {
        let late = iad.rpc("syd", &slow).await;
        assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));
    }
    let later = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(later.result(), "syd");
    let log = iad.log();
    assert!(!log.contains(r#""state":"suspect""#), "{log}");
}

#[tokio::test]
async fn one_call_to_a_peer_that_hangs_makes_it_suspect() {
    let mut cluster = Cluster::builder()
        .region("syd", 1)
        .functions()
        .start()
        .await;
    let all = ["iad-1", "syd-1"];
    cluster.add_with_one_round("iad", &all).await;
    let iad = cluster.instance("iad-1");
    let first = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(first.result(), "syd");
    cluster.instance("syd-1").pause().await;
    let call = json!({"module": "Fly.RPC", "function": "my_region", "timeout_ms": LATE_MS});
    let late = iad.rpc("syd", &call).await;
    assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));
    let suspects = async || instances_in_state(iad, "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    cluster.instance("syd-1").resume();
}
