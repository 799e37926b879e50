//! A peer that answers nothing: a probe decides whether it is suspect, the timeouts of calls do not.

use std::{cell::Cell, time::Duration};

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    asking::{LATE_MS, blocking, two_regions},
    cluster::{Cluster, instances_in_state, rounds},
    fault::{Fault, Scope},
    patience::eventually,
    process::answer,
};

#[tokio::test]
async fn calls_slower_than_their_deadlines_do_not_make_their_peer_suspect() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let slow = blocking("slow", &json!({"timeout_ms": LATE_MS}));
    for late in join_all((0..4).map(|_| iad.rpc("syd", &slow))).await {
        assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));
    }
    let later = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(later.result(), "syd");
    let log = iad.log();
    let suspects = log
        .lines()
        .filter(|line| line.contains(r#""state":"suspect""#));
    // A probe may find so, on a busy machine.
    let by_calls: Vec<_> = suspects.filter(|line| !line.contains("probe")).collect();
    assert_eq!(by_calls, [""; 0]);
}

/// Also where a connection has to be made first, and the call does not wait until that fails.
#[tokio::test]
async fn one_call_to_a_peer_that_hangs_makes_it_suspect() {
    let mut cluster = Cluster::builder()
        .region("syd", 1)
        .functions()
        .start()
        .await;
    for name in ["iad-1", "iad-2"] {
        cluster.add_with_one_round("iad", &[name, "syd-1"]).await;
    }
    let with_connection = cluster.instance("iad-1");
    let first = with_connection
        .call("syd", "Fly.RPC.my_region", json!([]))
        .await;
    assert_eq!(first.result(), "syd");
    cluster.instance("syd-1").pause().await;
    for (name, timeout_ms, executed) in [("iad-1", LATE_MS, "maybe"), ("iad-2", 200, "no")] {
        let iad = cluster.instance(name);
        let call = json!({"module": "Fly.RPC", "function": "my_region", "timeout_ms": timeout_ms});
        let late = iad.rpc("syd", &call).await;
        assert_eq!(late.problem(), (504, "deadline_exceeded", executed));
        let suspects = async || instances_in_state(iad, "suspect").await;
        eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    }
    cluster.instance("syd-1").resume();
}

#[tokio::test]
async fn an_instance_that_stood_still_itself_takes_no_peer_for_silent() {
    let cluster = two_regions().proxied().start().await;
    let (iad, way) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let three_rounds = async || {
        let seen = rounds(iad).await;
        let later = async || rounds(iad).await;
        eventually("three rounds", later, |now| *now >= seen + 3).await;
    };
    let suspects = || iad.log().matches(r#""state":"suspect""#).count();
    let (number, well) = (Cell::new(0), Cell::new(0));
    let in_a_row = async || {
        cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
        let before = suspects();
        way.set(Fault::Mute, Scope::Probes).await;
        three_rounds().await;
        // A probe is under way, and its time is over when the instance goes on: time passes by itself only.
        iad.pause().await;
        sleep(Duration::from_millis(1_500)).await;
        iad.resume();
        way.heal().await;
        three_rounds().await;
        let mark = format!("mark-{}", number.replace(number.get() + 1));
        let call = json!({"module": "Fly.RPC", "function": "my_region"}).to_string();
        let marked = iad.request("/rpc/iad", &call).header("x-request-id", &mark);
        assert_eq!(answer(marked).await.unwrap().result(), "iad");
        let log = async || iad.log();
        eventually("the log so far", log, |log| log.contains(&mark)).await;
        let is_well = suspects() == before;
        well.set(if is_well { well.get() + 1 } else { 0 });
        well.get()
    };
    // On a busy machine, the probe may have been given up before the instance stands still.
    eventually("no suspect", in_a_row, |times| *times == 3).await;
}
