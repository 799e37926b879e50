//! A peer that hangs, or only trickles: what it costs, and what becomes of the calls that wait for it.

use std::{cell::Cell, collections::BTreeSet, fs, time::Duration};

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    asking::{broken_cluster, run, two_regions},
    cluster::{Cluster, instances_in_state},
    fault::{Fault, Scope},
    patience::eventually,
    process::{Process, answer},
};

/// How many file descriptors an instance has open.
fn descriptors(instance: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", instance.pid()))
        .unwrap()
        .count()
}

#[tokio::test]
async fn what_was_sent_to_a_peer_that_hangs_never_starts_after_its_deadline() {
    let cluster = two_regions().functions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    // What a call takes beyond the least that one took is time that it lost: of many, one was not held up.
    for _ in 0..10 {
        let warm = iad.rpc("syd", &run("warm", &json!({}))).await;
        assert_eq!(warm.result(), "warm");
    }
    syd.pause().await;
    let mut calls = JoinSet::new();
    for number in 0..50 {
        let call = run(&format!("late-{number}"), &json!({"timeout_ms": 150}));
        let request = iad.request("/rpc/syd", &call.to_string());
        calls.spawn(async { answer(request).await.unwrap() });
    }
    let answers = calls.join_all().await;
    assert!(answers.iter().all(|answer| answer.status >= 500));
    syd.resume();
    // Answered behind all that waited in the socket.
    let again = async || iad.rpc("syd", &run("again", &json!({}))).await;
    eventually("a call after it", again, |answer| answer.status == 200).await;
    let ran: BTreeSet<String> = cluster.runs().into_keys().collect();
    assert_eq!(ran, ["again", "warm"].map(str::to_owned).into());
}

#[tokio::test]
async fn idempotent_calls_leave_a_peer_that_hangs_long_before_their_deadline() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let call = |number: usize| {
        let members = json!({"timeout_ms": 20_000, "idempotent": true});
        let call = run(&format!("call-{number}"), &members);
        iad.request("/rpc/syd", &call.to_string())
    };
    for number in 0..8 {
        assert_eq!(answer(call(number)).await.unwrap().status, 200);
    }
    let syd = cluster.instance("syd-1");
    let moved = async || {
        syd.resume();
        cluster
            .until_ready("iad-1", &["iad-1", "syd-1", "syd-2"])
            .await;
        syd.pause().await;
        let mut calls = JoinSet::new();
        for number in 8..40 {
            let request = call(number);
            calls.spawn(async { answer(request).await.unwrap() });
        }
        let answers = calls.join_all().await;
        for answer in &answers {
            assert_eq!((answer.status, answer.instance()), (200, "syd-2"));
            // Far from the deadline, also on a machine that is busy.
            let elapsed = answer.body["meta"]["elapsed_ms"].as_f64().unwrap();
            assert!(elapsed < 10_000.0, "{answer:?}");
        }
        let moved = answers.iter();
        let moved = moved.filter(|answer| answer.body["meta"]["attempts"] == 2);
        moved.count()
    };
    // On a busy machine, a probe may find out that it hangs before the first of the calls does.
    eventually("some that waited for it", moved, |moved| *moved > 0).await;
    let suspects = instances_in_state(iad, "suspect").await;
    assert!(suspects.contains("syd-1"), "{suspects:?}");
}

#[tokio::test]
async fn a_peer_that_trickles_costs_two_connections_however_many_calls_wait_for_it() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let warm = iad.rpc("syd", &run("warm", &json!({}))).await;
    assert_eq!(warm.result(), "warm");
    let before = descriptors(iad);
    let drip = Fault::Drip(Duration::from_millis(150));
    syd.set(drip, Scope::Lines).await;
    for _ in 0..20 {
        let mut calls = JoinSet::new();
        for _ in 0..10 {
            let call = run("trickle", &json!({"timeout_ms": 100}));
            let request = iad.request("/rpc/syd", &call.to_string());
            calls.spawn(async { answer(request).await.unwrap() });
        }
        calls.join_all().await;
    }
    let open = async || descriptors(iad);
    eventually("few connections", open, |open| *open <= before + 2).await;
    syd.heal().await;
    let again = async || iad.rpc("syd", &run("again", &json!({}))).await;
    eventually("a call after it", again, |answer| answer.status == 200).await;
    eventually("as before", open, |open| *open <= before + 1).await;
}

#[tokio::test]
async fn a_large_result_slows_no_later_call() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let large = "x".repeat(100 << 10);
    for text in [&large, "small", &large] {
        let echoed = iad.call("syd", "Test.echo", json!([text])).await;
        assert_eq!(echoed.result(), text);
    }
    // The next small one still travels alone; from then on they share one connection.
    iad.call("syd", "Test.echo", json!(["small"])).await;
    let before = syd.posts();
    let mut calls = JoinSet::new();
    for number in 0..20 {
        let call = json!({"module": "Test", "function": "echo", "args": [number]});
        let request = iad.request("/rpc/syd", &call.to_string());
        calls.spawn(async { answer(request).await.unwrap() });
    }
    assert!(
        calls
            .join_all()
            .await
            .iter()
            .all(|answer| answer.status == 200)
    );
    assert!(
        syd.posts() - before <= 1,
        "each had a connection of its own"
    );
}

#[tokio::test]
async fn a_large_call_that_is_late_leaves_no_connection_behind() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let spaces = " ".repeat(100 << 10);
    let before = descriptors(iad);
    let left = Cell::new(0);
    let late = async || {
        let call = format!(
            r#"{{"module":"Test","function":"run","args":["late",60000{spaces}],"timeout_ms":150}}"#
        );
        let late = answer(iad.request("/rpc/syd", &call)).await.unwrap();
        let (_, code, executed) = late.problem();
        assert_eq!(code, "deadline_exceeded");
        // On a busy machine, the time of some is over before they leave.
        left.update(|left| left + u32::from(executed == "maybe"));
        let now = descriptors(iad);
        let left = left.get();
        assert!(now <= before + 8, "{before}, and {now} after {left} calls");
        left
    };
    eventually("twenty that left", late, |left| *left == 20).await;
}
