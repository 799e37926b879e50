//! Whether another attempt follows, on which instance, and what the caller reads of several.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    asking::{block, broken_cluster, failure, run, two_regions},
    cluster::{Cluster, instances_in_state},
    fault::{Fault, Scope},
    patience::eventually,
};

#[tokio::test]
async fn a_call_that_did_not_run_on_one_instance_runs_on_another() {
    let mut cluster = two_regions()
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    cluster.add_with("syd", "RPC_MAX_IN_FLIGHT", "8").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let (iad, full) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let held = block(full, "syd", "full", &json!({}));
    cluster.until_marked("full.started").await;

    let mut attempts = Vec::new();
    for number in 0..24 {
        let answer = iad
            .rpc("syd", &run(&format!("call-{number}"), &json!({})))
            .await;
        assert_eq!(answer.result(), &json!(format!("call-{number}")));
        assert_eq!(answer.instance(), "syd-2");
        attempts.push(answer.body["meta"]["attempts"].as_u64().unwrap());
    }
    // Each call meets the full instance first with probability 1/2, until one did: none of 24 is one in 16 million.
    assert!(
        attempts.contains(&2) && attempts.iter().all(|count| *count <= 2),
        "{attempts:?}"
    );
    assert!(
        cluster.runs().values().all(|runs| *runs == 1) && cluster.runs().len() == 24,
        "{:?}",
        cluster.runs()
    );
    let pinned = iad
        .rpc("syd", &run("pinned", &json!({"instance": "syd-1"})))
        .await;
    assert_eq!(failure(&pinned), ("overloaded", "no", 1));
    assert_eq!((pinned.status, &*pinned.headers["retry-after"]), (503, "1"));
    cluster.release("full");
    assert_eq!(held.await.unwrap().result(), "released");
}

#[tokio::test]
async fn an_instance_that_is_full_asks_others_of_its_region_within_the_budget() {
    const CALLS: u64 = 100;
    let cluster = Cluster::builder()
        .region("syd", 4)
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1");
    let cluster = cluster.start().await;
    let syd = cluster.instance("syd-1");
    let mut held = Vec::new();
    for instance in &cluster.instances {
        let name = &instance.name;
        held.push(block(instance, "syd", name, &json!({"instance": name})));
        cluster.until_started(name).await;
    }
    let first = syd.rpc("syd", &run("first", &json!({}))).await;
    assert_eq!(failure(&first), ("overloaded", "no", 3));
    assert_eq!((first.status, &*first.headers["retry-after"]), (503, "1"));
    let (started, mut further) = (Instant::now(), 0);
    for number in 0..CALLS {
        let id = format!("full-{number}");
        let full = syd.rpc("syd", &run(&id, &json!({}))).await;
        let (code, executed, attempts) = failure(&full);
        assert_eq!((code, executed), ("overloaded", "no"));
        further += attempts - 1;
    }
    // A fifth of the calls, three for each second of the ten that count, and one for each of the others whose second of
    // rest is over.
    let seconds = started.elapsed().as_secs();
    let allowed = CALLS / 5 + 30 * (seconds / 10 + 1) + 3 * (seconds + 1);
    assert!(further <= allowed, "{further} in {seconds} s");
    cluster.release("syd-2");
    let call = async || syd.rpc("syd", &run("moved", &json!({}))).await;
    let moved = eventually("a free slot", call, |answer| answer.status == 200).await;
    assert_eq!(
        (moved.result(), moved.instance()),
        (&json!("moved"), "syd-2")
    );
    assert!(moved.body["meta"]["attempts"].as_u64() >= Some(2));
    let pinned = run("pinned", &json!({"instance": "syd-1"}));
    let pinned = syd.rpc("syd", &pinned).await;
    assert_eq!(failure(&pinned), ("overloaded", "no", 1));
    assert_eq!(cluster.runs(), [("moved".to_owned(), 1)].into());
    for (instance, held) in cluster.instances.iter().zip(held) {
        cluster.release(&instance.name);
        assert_eq!(held.await.unwrap().result(), "released");
    }
}

#[tokio::test]
async fn an_instance_that_is_full_for_one_function_gets_calls_of_others() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 3)
        .functions()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let busy = json!([["syd-1", "syd-2"]]);
    let mut attempts = 0;
    for _ in 0..20 {
        let answer = iad.call("syd", "Test.busy_on", busy.clone()).await;
        assert_eq!(
            (answer.result(), answer.instance()),
            (&json!("ran"), "syd-3")
        );
        attempts += answer.body["meta"]["attempts"].as_u64().unwrap();
    }
    // Each of the two refused one call at least.
    assert!(attempts >= 22, "{attempts}");
    let mut met = BTreeSet::new();
    // That these miss one of three has a probability of one in 60 million.
    for _ in 0..45 {
        let answer = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
        assert_eq!(answer.result(), "syd");
        met.insert(answer.instance().to_owned());
    }
    let all = ["syd-1", "syd-2", "syd-3"].map(str::to_owned);
    assert_eq!(met, all.into());
}

#[tokio::test]
async fn a_full_instance_runs_a_call_of_its_region_on_the_idle_one() {
    let mut cluster = Cluster::builder()
        .region("syd", 0)
        .functions()
        .start()
        .await;
    cluster.add_with("syd", "RPC_MAX_IN_FLIGHT", "1").await;
    cluster.add("syd").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let syd = cluster.instance("syd-1");
    let held = block(syd, "syd", "full", &json!({}));
    assert_eq!(cluster.until_started("full").await, "syd-1");
    // More than the budget has: the idle one has room, so that none is spent.
    for number in 0..80 {
        let id = format!("call-{number}");
        let answer = syd.rpc("syd", &run(&id, &json!({}))).await;
        let attempts = answer.body["meta"]["attempts"].as_u64();
        let ran = (answer.result(), answer.instance(), attempts);
        assert_eq!(ran, (&json!(id), "syd-2", Some(2)));
    }
    cluster.release("full");
    assert_eq!(held.await.unwrap().result(), "released");
    assert_eq!(cluster.runs().values().sum::<u32>(), 80);
}

#[tokio::test]
async fn a_maybe_is_tried_on_another_instance_only_when_idempotent() {
    let cluster = broken_cluster(2).await;
    let (iad, bad) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    bad.set(Fault::CutAnswerAfter(0), Scope::Lines).await;
    // The third call in a row without an answer makes it suspect, so there are two to lose, and each call meets the bad
    // instance first with probability 1/2: one of each kind, not once in 40, is one in a million million.
    let (mut lost, mut twice, mut once) = (0, 0, Vec::new());
    for number in 0..80 {
        let id = format!("call-{number}");
        if lost == 0 {
            let answer = iad.rpc("syd", &run(&id, &json!({}))).await;
            if answer.status != 200 {
                assert_eq!(failure(&answer), ("peer_lost", "maybe", 1));
                lost += 1;
            }
            once.push(id);
        } else if twice == 0 {
            let call = run(&id, &json!({"idempotent": true}));
            let answer = iad.rpc("syd", &call).await;
            assert_eq!(answer.instance(), "syd-2");
            twice += u32::from(answer.body["meta"]["attempts"] == 2);
        }
    }
    assert_eq!((lost, twice), (1, 1));
    let runs = cluster.runs();
    assert!(once.iter().all(|id| runs[id] == 1), "{runs:?}");
    let doubled = runs.values().filter(|runs| **runs == 2).count();
    assert_eq!(doubled, usize::try_from(twice).unwrap(), "{runs:?}");
}

#[tokio::test]
async fn an_earlier_maybe_survives_a_later_no() {
    let cluster = broken_cluster(2).await;
    let iad = cluster.instance("iad-1");
    cluster.proxy("syd-2").break_all(Fault::Refuse).await;
    let suspects = async || instances_in_state(iad, "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-2")).await;
    // The ready one is tried first, and may have run it; the suspect one surely did not.
    cluster
        .proxy("syd-1")
        .set(Fault::CutAnswerAfter(0), Scope::Lines)
        .await;
    let answer = iad
        .rpc("syd", &run("one", &json!({"idempotent": true})))
        .await;
    assert_eq!(failure(&answer), ("peer_lost", "maybe", 2));
    assert_eq!(cluster.runs()["one"], 1);
}

#[tokio::test]
async fn an_idempotent_call_on_an_instance_that_dies_runs_on_another() {
    let cluster = broken_cluster(2).await;
    let iad = cluster.instance("iad-1");
    let call = block(iad, "syd", "often", &json!({"idempotent": true}));
    let first = cluster.until_started("often").await;
    cluster.instance(&first).kill();
    cluster.release("often");
    let answer = call.await.unwrap();
    assert_eq!(answer.result(), "released");
    assert_eq!(answer.body["meta"]["attempts"], 2);
    assert_ne!(answer.instance(), first);
}

#[tokio::test]
async fn a_peer_that_drains_says_so_and_nothing_ran() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .start()
        .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let held = block(syd, "syd", "held", &json!({}));
    cluster.until_marked("held.started").await;
    syd.terminate();
    let refuses = async || syd.rpc("syd", &run("local", &json!({}))).await.status;
    eventually("refusal", refuses, |status| *status == 503).await;
    let pinned = iad
        .rpc("syd", &run("pinned", &json!({"instance": "syd-1"})))
        .await;
    assert_eq!(
        (pinned.status, failure(&pinned)),
        (503, ("draining", "no", 1))
    );
    let moved = iad.rpc("syd", &run("moved", &json!({}))).await;
    assert_eq!(
        (moved.result(), moved.instance()),
        (&json!("moved"), "syd-2")
    );
    let runs = cluster.runs();
    assert_eq!((runs.get("pinned"), runs["moved"]), (None, 1));
    cluster.release("held");
    assert_eq!(held.await.unwrap().result(), "released");
}

#[tokio::test]
async fn a_function_that_only_some_instances_have_runs_on_those() {
    let mut cluster = two_regions().functions().start().await;
    cluster.add_without_functions("syd").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let iad = cluster.instance("iad-1");
    cluster.until_one_is_chosen("iad-1").await;
    for number in 0..10 {
        let answer = iad
            .rpc("syd", &run(&format!("call-{number}"), &json!({})))
            .await;
        assert_eq!(answer.instance(), "syd-1");
        assert_eq!(answer.body["meta"]["attempts"], 1);
    }
    let pinned = iad
        .rpc("syd", &run("pinned", &json!({"instance": "syd-2"})))
        .await;
    assert_eq!(
        (pinned.status, failure(&pinned)),
        (404, ("function_unknown", "no", 1))
    );
    assert_eq!(pinned.detail(), "no function Test.run on syd-2");
    let nowhere = iad.call("syd", "Test.nothing", json!([])).await;
    assert_eq!(
        (nowhere.status, failure(&nowhere).0, failure(&nowhere).1),
        (404, "function_unknown", "no")
    );
}

#[tokio::test]
async fn an_instance_that_came_while_an_attempt_ran_gets_the_next_one() {
    let mut cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let call = block(iad, "syd", "held", &json!({"idempotent": true}));
    assert_eq!(cluster.until_started("held").await, "syd-1");
    cluster.add("syd").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    cluster.instance("syd-1").kill();
    let starts = async || cluster.starts("held");
    let starts = eventually("the next attempt", starts, |starts| starts.len() > 1).await;
    assert_eq!(starts, ["syd-1", "syd-2"]);
    cluster.release("held");
    let answer = call.await.unwrap();
    assert_eq!(
        (answer.result(), answer.instance()),
        (&json!("released"), "syd-2")
    );
}
