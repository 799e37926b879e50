//! Keys in a store that outlives processes: any instance takes a repeat, whoever ran the call, and nothing runs twice
//! whatever dies.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    asking::{LATE_MS, blocking, failure, run},
    cluster::Cluster,
    fault::{Fault, FaultProxy},
    load::quiet,
    patience::eventually,
    process::{Answer, Process, answer},
    redis::Redis,
};

/// A cluster whose instances share what they remember.
async fn cluster(redis: &Redis) -> Cluster {
    cluster_with(&redis.url()).await
}

/// The same with its store at `url`.
async fn cluster_with(url: &str) -> Cluster {
    let cluster = Cluster::builder().region("iad", 1).region("syd", 2);
    let cluster = cluster.functions().set("RPC_KEY_STORE", url);
    let cluster = cluster.start().await;
    until_all_up(&cluster, 1).await;
    cluster
}

/// Each instance finds out by itself, when it renews its lease.
async fn until_all_up(cluster: &Cluster, up: u64) {
    for instance in &cluster.instances {
        until_up(instance, up).await;
    }
}

async fn until_up(instance: &Process, up: u64) {
    let look = async || instance.metric("fly_rpc_key_store_up").await;
    eventually("the store's state", look, |now| *now == Some(up)).await;
}

async fn keyed(via: &Process, region: &str, key: &str, call: &Value) -> Answer {
    let request = via.request(&format!("/rpc/{region}"), &call.to_string());
    answer(request.header("idempotency-key", key))
        .await
        .unwrap()
}

/// The same on a busy machine: a store is away for whom it keeps waiting for a second, and such calls are sent once more.
async fn keyed_until_answered(via: &Process, region: &str, key: &str, call: &Value) -> Answer {
    let sent = async || keyed(via, region, key, call).await;
    eventually("an answer", sent, |answer| answer.status != 503).await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.headers.contains_key("idempotency-replayed")
}

#[tokio::test]
async fn any_instance_takes_a_repeat_also_when_who_ran_it_is_gone() {
    let redis = Redis::start().await;
    let mut cluster = cluster(&redis).await;
    let call = run("a", &json!({}));
    let first = keyed(cluster.instance("iad-1"), "syd", "key", &call).await;
    assert_eq!((first.result(), is_replayed(&first)), (&json!("a"), false));
    let ran = first.instance().to_owned();
    cluster.instance(&ran).kill();
    cluster.instance_mut(&ran).ended().await;
    // In another region too, and by the other one in syd.
    for (via, region) in [("iad-1", "syd"), ("iad-1", "iad")] {
        let again = keyed(cluster.instance(via), region, "key", &call).await;
        assert_eq!((again.result(), is_replayed(&again)), (&json!("a"), true));
    }
    assert_eq!(cluster.runs()["a"], 1);
    let other = keyed(
        cluster.instance("iad-1"),
        "syd",
        "key",
        &run("b", &json!({})),
    )
    .await;
    assert_eq!(other.problem(), (422, "idempotency_mismatch", "no"));
    // What a function says of its data, its own error, and that a result was too large, are known everywhere.
    let fail = json!({"module": "Test", "function": "token_fail", "args": ["0/7"]});
    for (region, is_repeat) in [("syd", false), ("iad", true)] {
        let failed = keyed(cluster.instance("iad-1"), region, "fail", &fail).await;
        assert_eq!(failed.problem(), (424, "function_failed", "yes"));
        assert_eq!(failed.body["error"]["kind"], "Refusal");
        assert_eq!(failed.body["meta"]["consistency"], "0/7");
        assert_eq!(is_replayed(&failed), is_repeat);
    }
    let large = json!({"module": "Test", "function": "large", "args": ["l", 2 << 20]});
    keyed(cluster.instance("iad-1"), "syd", "large", &large)
        .await
        .result();
    let again = keyed(cluster.instance("iad-1"), "iad", "large", &large).await;
    assert_eq!(again.problem(), (410, "result_not_kept", "yes"));
    assert_eq!(cluster.runs()["l"], 1);
}

#[tokio::test]
async fn a_repeat_waits_for_the_call_that_runs_on_another_instance() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let block = blocking("latch", &json!({}));
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let repeats = async {
        cluster.until_started("latch").await;
        let early = blocking("latch", &json!({"timeout_ms": LATE_MS}));
        let late = keyed(syd, "syd", "key", &early).await;
        assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));
        assert!(!is_replayed(&late), "the first one still runs");
        let repeat = keyed(iad, "iad", "key", &block);
        let release = async {
            sleep(Duration::from_millis(20)).await;
            cluster.release("latch");
        };
        tokio::join!(repeat, release).0
    };
    let (first, repeat) = tokio::join!(keyed(iad, "syd", "key", &block), repeats);
    assert_eq!(
        (first.result(), is_replayed(&first)),
        (&json!("released"), false)
    );
    assert_eq!(
        (repeat.result(), is_replayed(&repeat)),
        (&json!("released"), true)
    );
    assert_eq!(cluster.starts("latch").len(), 1);
}

#[tokio::test]
async fn a_call_whose_process_died_may_have_run_and_is_not_run_again() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let block = blocking("latch", &json!({}));
    let iad = cluster.instance("iad-1");
    let killing = async {
        let ran = cluster.until_started("latch").await;
        cluster.instance(&ran).kill();
    };
    let (first, ()) = tokio::join!(keyed(iad, "syd", "key", &block), killing);
    // The other one of `syd` was asked what came of it, and knew.
    assert_eq!(failure(&first), ("peer_lost", "maybe", 2));
    for region in ["iad", "syd"] {
        let again = keyed(iad, region, "key", &block).await;
        assert_eq!(failure(&again), ("peer_lost", "maybe", 1));
        assert!(is_replayed(&again), "{again:?}");
        let died = "the process that had the call with this key ended, and may have run it";
        assert_eq!(again.detail(), died);
    }
    assert_eq!(cluster.starts("latch").len(), 1);
}

#[tokio::test]
async fn a_process_that_stood_still_settles_its_claim_when_it_goes_on() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let block =
        json!({"module": "Test", "function": "block", "args": ["latch"], "timeout_ms": 60_000});
    let iad = cluster.instance("iad-1");
    let repeat = async {
        let ran = cluster.until_started("latch").await;
        // It lives, and nobody can know.
        cluster.instance(&ran).pause().await;
        let repeat = keyed(iad, "iad", "key", &block).await;
        assert_eq!(repeat.problem(), (502, "peer_lost", "maybe"));
        cluster.release("latch");
        cluster.instance(&ran).resume();
        let again = async || keyed(iad, "iad", "key", &block).await;
        let again = eventually("the outcome", again, |again| again.status == 200).await;
        assert_eq!(
            (again.result(), is_replayed(&again)),
            (&json!("released"), true)
        );
    };
    tokio::join!(keyed(iad, "syd", "key", &block), repeat);
    assert_eq!(cluster.starts("latch").len(), 1);
}

/// The leases of all have run out then, also of those who live.
#[tokio::test]
async fn a_store_that_was_away_makes_nobody_dead() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let mut cluster = cluster_with(&format!("redis://{}", proxy.address)).await;
    cluster.add_with("fra", "RPC_KEY_STORE", &redis.url()).await;
    let (syd, fra) = (cluster.instance("syd-1"), cluster.instance("fra-1"));
    until_up(fra, 1).await;
    let block =
        json!({"module": "Test", "function": "block", "args": ["latch"], "timeout_ms": 60_000});
    let away = async {
        cluster.until_started("latch").await;
        proxy.break_all(Fault::Refuse).await;
        let leases = async || {
            redis
                .ask("KEYS *:process:*")
                .await
                .matches("fly-rpc:")
                .count()
        };
        eventually("the end of leases", leases, |count| *count == 1).await;
        // Another connection, as after a restart of the store.
        redis.ask("CLIENT KILL TYPE normal").await;
        let other = async || {
            keyed(fra, "fra", "other", &run("a", &json!({})))
                .await
                .status
        };
        eventually("a call with a key", other, |status| *status == 200).await;
        let looks = async || redis.commands("get").await;
        let before = looks().await;
        let waited = async {
            eventually("looks of one that waits", looks, |now| *now > before + 5).await;
            proxy.heal().await;
            until_up(syd, 1).await;
            cluster.release("latch");
        };
        tokio::join!(keyed(fra, "fra", "key", &block), waited).0
    };
    let (first, repeat) = tokio::join!(keyed(syd, "syd", "key", &block), away);
    assert_eq!(first.result(), "released");
    assert_eq!(
        (repeat.result(), is_replayed(&repeat)),
        (&json!("released"), true)
    );
    assert_eq!(cluster.starts("latch").len(), 1);
}

#[tokio::test]
async fn a_full_store_refuses_new_keys_and_forgets_no_other() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let known = run("a", &json!({}));
    assert_eq!(keyed(iad, "iad", "known", &known).await.result(), "a");
    let block =
        json!({"module": "Test", "function": "block", "args": ["latch"], "timeout_ms": 60_000});
    let full = async {
        cluster.until_started("latch").await;
        let set = redis.ask("CONFIG SET maxmemory 1").await;
        assert!(set.starts_with("+OK"), "{set}");
        // Longer than a lease lasts.
        for _ in 0..6 {
            until_renewed(&redis, &cluster).await;
        }
        let again = keyed(syd, "syd", "known", &known).await;
        assert_eq!((again.result(), is_replayed(&again)), (&json!("a"), true));
        let new = keyed(iad, "iad", "new", &run("b", &json!({}))).await;
        assert_eq!(new.problem(), (503, "overloaded", "no"));
        let detail = "the store of RPC_KEY_STORE is full and takes no new key; calls without an idempotency key run";
        assert_eq!(new.detail(), detail);
        cluster.release("latch");
    };
    let (first, ()) = tokio::join!(keyed(iad, "iad", "key", &block), full);
    assert_eq!(first.result(), "released");
    let repeat = async {
        // It waits until there is room for the outcome.
        let looks = async || redis.commands("get").await;
        let before = looks().await;
        eventually("looks of one that waits", looks, |now| *now > before + 5).await;
        redis.ask("CONFIG SET maxmemory 0").await;
    };
    let (again, ()) = tokio::join!(keyed(syd, "syd", "key", &block), repeat);
    assert_eq!(
        (again.result(), is_replayed(&again)),
        (&json!("released"), true)
    );
    assert!(!cluster.runs().contains_key("b"));
    assert!(!iad.log().contains("is away"), "{}", iad.log());
}

#[tokio::test]
async fn without_the_store_no_call_with_a_key_runs_and_all_others_do() {
    let mut redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let iad = cluster.instance("iad-1");
    redis.kill().await;
    let refused = keyed(iad, "syd", "key", &run("a", &json!({}))).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert!(refused.detail().contains("RPC_KEY_STORE"), "{refused:?}");
    let ran = iad.rpc("syd", &run("b", &json!({}))).await;
    assert_eq!(ran.result(), "b");
    assert!(!cluster.runs().contains_key("a"));
    redis.restart().await;
    let call = run("a", &json!({}));
    let again = async || keyed(iad, "syd", "key", &call).await.status;
    eventually("calls with a key", again, |status| *status == 200).await;
    assert_eq!(cluster.runs()["a"], 1);
    for instance in &cluster.instances {
        let key = format!("at-{}", instance.name);
        let call = run(&key, &json!({}));
        let runs = async || keyed(instance, &instance.region, &key, &call).await.status;
        eventually("calls with a key", runs, |status| *status == 200).await;
    }
    // One that stands still is as good as none, and what ends meanwhile is stored when it goes on.
    let block =
        json!({"module": "Test", "function": "block", "args": ["latch"], "timeout_ms": 60_000});
    let standing = async {
        cluster.until_started("latch").await;
        redis.signal(Signal::SIGSTOP);
        until_all_up(&cluster, 0).await;
        let refused = keyed(iad, "syd", "other", &run("c", &json!({}))).await;
        assert_eq!(refused.problem(), (503, "overloaded", "no"));
        cluster.release("latch");
    };
    let (first, ()) = tokio::join!(keyed(iad, "syd", "block", &block), standing);
    assert_eq!(first.result(), "released");
    redis.signal(Signal::SIGCONT);
    until_all_up(&cluster, 1).await;
    // Whoever looked first may have taken the process for dead.
    let again = keyed(iad, "iad", "block", &block).await;
    assert!(again.status == 200 || again.problem() == (502, "peer_lost", "maybe"));
    assert_eq!(cluster.starts("latch").len(), 1);
    let ran = keyed(iad, "syd", "other", &run("c", &json!({}))).await;
    assert_eq!(ran.result(), "c");
    assert_eq!(cluster.runs()["c"], 1);
}

/// The lease would find it out a second later: the first call that does has the store connected to again.
#[tokio::test]
async fn a_broken_connection_to_the_store_is_replaced_when_a_call_finds_it_out() {
    const BREAKS: u32 = 10;
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let iad = cluster.instance("iad-1");
    let call = run("a", &json!({}));
    let mut without = Duration::ZERO;
    for number in 0..BREAKS {
        let key = format!("{number}");
        let again = async || keyed(iad, "iad", &key, &call).await.status;
        redis.ask("CLIENT KILL TYPE normal").await;
        let broken = Instant::now();
        eventually("a call with a key", again, |status| *status == 200).await;
        without += broken.elapsed();
    }
    assert_eq!(cluster.runs()["a"], 10);
    // Half a second each, on average, if the lease alone were to find it out.
    assert!(without < BREAKS * Duration::from_millis(250), "{without:?}");
}

#[tokio::test]
async fn a_repeat_that_waits_for_a_call_when_the_store_goes_may_have_run() {
    let mut redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let block = blocking("latch", &json!({}));
    let iad = cluster.instance("iad-1");
    let losing = async {
        cluster.until_started("latch").await;
        let kill = async {
            // Only a repeat that saw the call run asks whether its process lives.
            let seen = async || redis.commands("exists").await;
            eventually("the repeat", seen, |seen| *seen > 0).await;
            redis.kill().await;
        };
        let (repeat, ()) = tokio::join!(keyed(iad, "iad", "key", &block), kill);
        assert_eq!(repeat.problem(), (503, "overloaded", "maybe"));
        cluster.release("latch");
    };
    let (first, ()) = tokio::join!(keyed(iad, "syd", "key", &block), losing);
    assert_eq!(first.result(), "released");
}

#[tokio::test]
async fn what_another_release_stored_may_have_run() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let iad = cluster.instance("iad-1");
    let call = run("a", &json!({}));
    assert_eq!(keyed(iad, "iad", "key", &call).await.result(), "a");
    let names = redis.ask("KEYS *:key:*").await;
    let name = names.lines().find(|line| line.starts_with("fly-rpc:"));
    let store = format!("SET {} later KEEPTTL", name.unwrap());
    assert!(redis.ask(&store).await.starts_with("+OK"));
    let again = keyed(iad, "iad", "key", &call).await;
    assert_eq!(again.problem(), (503, "overloaded", "maybe"));
    assert!(
        again.detail().starts_with("another release wrote"),
        "{again:?}"
    );
}

#[tokio::test]
async fn an_outcome_whose_storing_nobody_saw_is_stored_once_and_no_claim_is_lost() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let tries = async || redis.changes().await;
    for number in 0..20 {
        let (latch, before) = (format!("latch-{number}"), tries().await);
        let block = blocking(&latch, &json!({}));
        let standing = async {
            cluster.until_started(&latch).await;
            redis.pause().await;
            cluster.release(&latch);
        };
        let (first, ()) = tokio::join!(keyed(iad, "iad", &latch, &block), standing);
        assert_eq!(first.result(), "released");
        redis.signal(Signal::SIGCONT);
        eventually("a try", tries, |now| *now > before).await;
        until_up(iad, 1).await;
        until_up(syd, 1).await;
        let again = keyed(syd, "syd", &latch, &block).await;
        assert_eq!(
            (again.result(), is_replayed(&again)),
            (&json!("released"), true)
        );
        // What was logged of the second try is there.
        let other = format!("other-{number}");
        let another = async || keyed(iad, "iad", &other, &run("a", &json!({}))).await;
        eventually("a call with a key", another, |answer| answer.status == 200).await;
        let log = iad.log();
        assert!(!log.contains("claim was gone"), "{log}");
        // On a busy machine the store was known to be away before, and there was one try, besides that of the other key.
        if tries().await - before > 2 {
            return;
        }
    }
    panic!("it never came about");
}

#[tokio::test]
async fn a_claim_that_arrives_after_it_was_given_up_holds_up_no_repeat() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = cluster_with(&format!("redis://{}", proxy.address)).await;
    let iad = cluster.instance("iad-1");
    // What is on its way on the connections that stand waits there, whatever is said on new ones.
    proxy.break_all(Fault::Forget).await;
    let call = run("a", &json!({}));
    let refused = keyed(iad, "iad", "key", &call).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    let given_up = async || redis.changes().await;
    eventually("the claim's end", given_up, |count| *count > 0).await;
    until_arrived(&redis, &proxy).await;
    until_all_up(&cluster, 1).await;
    let again = keyed(iad, "syd", "key", &call).await;
    assert_eq!((again.result(), is_replayed(&again)), (&json!("a"), false));
    let repeat = keyed(iad, "iad", "key", &call).await;
    assert_eq!((repeat.result(), is_replayed(&repeat)), (&json!("a"), true));
    assert_eq!(cluster.runs()["a"], 1);
}

/// Heals `proxy`, and waits until what was on its way on a connection that its client gave up is over.
async fn until_arrived(redis: &Redis, proxy: &FaultProxy) {
    let connections = async || {
        let clients = redis.ask("CLIENT LIST").await;
        clients.matches(" cmd=").count()
    };
    let before = connections().await;
    proxy.heal().await;
    eventually("what was on its way", connections, |now| *now < before).await;
}

/// Whether `call` is refused by `via`, whose claim is given up after it looked at what is stored and was sent by `proxy`, where
/// it stands still. On a busy machine it may have been through before.
async fn is_given_up_on_its_way(
    redis: &Redis,
    proxy: &FaultProxy,
    via: &Process,
    id: &str,
    call: &Value,
) -> bool {
    let (looks, changes) = (
        async || redis.commands("get").await,
        async || redis.changes().await,
    );
    let before = (looks().await, changes().await);
    // The answer to the look comes late, and what is sent after it stands still.
    let late = Fault::Delay(Duration::from_millis(300));
    proxy.break_all(late).await;
    let forgetting = async {
        eventually("the look", looks, |now| *now > before.0).await;
        proxy.break_all(Fault::Forget).await;
    };
    let (refused, ()) = tokio::join!(keyed(via, &via.region, id, call), forgetting);
    if refused.status == 200 {
        return false;
    }
    assert_eq!(refused.status, 503, "{refused:?}");
    eventually("the claim's end", changes, |now| *now > before.1).await;
    true
}

/// What is stored of its key says that an earlier claim was given up, and whoever claims it replaces that.
#[tokio::test]
async fn a_claim_in_the_place_of_one_that_was_given_up_holds_up_no_repeat_either() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = cluster_with(&format!("redis://{}", proxy.address)).await;
    let iad = cluster.instance("iad-1");
    let changes = async || redis.changes().await;
    // The proxy forgets no connection that came about while it forgot others.
    let reconnect = async |key: &str| {
        proxy.heal().await;
        redis.ask("CLIENT KILL TYPE normal").await;
        keyed_until_answered(iad, "iad", key, &run("other", &json!({}))).await;
    };
    for number in 0..20 {
        let id = format!("id-{number}");
        let call = run(&id, &json!({}));
        reconnect(&format!("first-{number}")).await;
        let before = changes().await;
        proxy.break_all(Fault::Forget).await;
        let refused = keyed(iad, "iad", &id, &call).await;
        assert_eq!(refused.problem(), (503, "overloaded", "no"));
        eventually("the first claim's end", changes, |now| *now > before).await;
        reconnect(&format!("second-{number}")).await;
        if !is_given_up_on_its_way(&redis, &proxy, iad, &id, &call).await {
            continue;
        }
        until_arrived(&redis, &proxy).await;
        let again = keyed_until_answered(iad, "iad", &id, &call).await;
        assert_eq!(again.result(), &json!(id));
        assert_eq!(cluster.runs()[&id], 1);
        return;
    }
    panic!("it never came about");
}

/// Who gave that one up may not know yet that the store was told so, and tells it again.
#[tokio::test]
async fn a_claim_that_is_given_up_twice_lets_no_other_arrive_late() {
    let redis = Redis::start().await;
    let (proxy, other_proxy) = (redis.proxy().await, redis.proxy().await);
    let mut cluster = Cluster::builder().region("iad", 1).functions();
    cluster = cluster.set("RPC_KEY_STORE", &format!("redis://{}", proxy.address));
    let mut cluster = cluster.start().await;
    let other_url = format!("redis://{}", other_proxy.address);
    cluster.add_with("fra", "RPC_KEY_STORE", &other_url).await;
    let (iad, fra) = (cluster.instance("iad-1"), cluster.instance("fra-1"));
    let changes = async || redis.changes().await;
    let late = Fault::Delay(Duration::from_millis(500));
    for number in 0..20 {
        let id = format!("id-{number}");
        let call = run(&id, &json!({}));
        proxy.heal().await;
        other_proxy.heal().await;
        redis.ask("CLIENT KILL TYPE normal").await;
        for instance in [iad, fra] {
            let key = format!("{}-{number}", instance.name);
            let other = run("other", &json!({}));
            keyed_until_answered(instance, &instance.region, &key, &other).await;
        }
        let before = changes().await;
        proxy.break_all(Fault::Mute).await;
        let refused = keyed(iad, "iad", &id, &call).await;
        assert_eq!(refused.problem(), (503, "overloaded", "no"));
        // A store that is short of room may forget it.
        for name in redis.ask("KEYS *:key:*").await.lines() {
            if redis.ask(&format!("GET {name}")).await.contains("running") {
                redis.ask(&format!("DEL {name}")).await;
            }
        }
        proxy.break_all(late).await;
        eventually("the first claim's end", changes, |now| *now > before).await;
        proxy.break_all(Fault::Refuse).await;
        // From a renewal to the next one there is time for two late answers.
        until_renewed(&redis, &cluster).await;
        if !is_given_up_on_its_way(&redis, &other_proxy, fra, &id, &call).await {
            continue;
        }
        let before = changes().await;
        proxy.heal().await;
        until_up(iad, 1).await;
        until_renewed(&redis, &cluster).await;
        until_renewed(&redis, &cluster).await;
        // Nor was the first one's end made again if its answer came in time, and the other claim may never have left.
        let clients = redis.ask("CLIENT LIST").await;
        if changes().await == before || clients.matches(" cmd=").count() < 4 {
            continue;
        }
        until_arrived(&redis, &other_proxy).await;
        let again = keyed_until_answered(iad, "iad", &id, &call).await;
        assert_eq!(again.result(), &json!(id));
        assert_eq!(cluster.runs()[&id], 1);
        return;
    }
    panic!("it never came about");
}

#[tokio::test]
async fn a_repeat_that_learns_only_that_its_key_is_taken_may_have_run() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = cluster_with(&format!("redis://{}", proxy.address)).await;
    let block = blocking("latch", &json!({}));
    let iad = cluster.instance("iad-1");
    let learning = async {
        cluster.until_started("latch").await;
        proxy
            .break_all(Fault::Delay(Duration::from_millis(300)))
            .await;
        // One answer comes within this time, and not a second one.
        let early = blocking("latch", &json!({"timeout_ms": 450}));
        let repeat = async || keyed(iad, "iad", "key", &early).await;
        let learns = |repeat: &Answer| repeat.problem() == (504, "deadline_exceeded", "maybe");
        eventually("a repeat that knows", repeat, learns).await;
        proxy.heal().await;
        cluster.release("latch");
    };
    let (first, ()) = tokio::join!(keyed(iad, "iad", "key", &block), learning);
    assert_eq!(first.result(), "released");
    assert_eq!(cluster.starts("latch").len(), 1);
}

#[tokio::test]
async fn a_claim_whose_call_never_got_its_turn_is_free_when_its_process_has_stopped() {
    for preference in ["wait=60", "respond-async"] {
        let redis = Redis::start().await;
        let cluster = Cluster::builder().region("iad", 1).region("syd", 1);
        let cluster = cluster.functions().set("RPC_KEY_STORE", &redis.url());
        let mut cluster = cluster.set("RPC_DRAIN_TIMEOUT", "200ms").start().await;
        until_all_up(&cluster, 1).await;
        let few = |id: &str| json!({"module": "Test", "function": "few", "args": [id], "timeout_ms": 60_000});
        let (iad, mut cut) = (cluster.instance("iad-1"), JoinSet::new());
        for id in ["a", "b"] {
            cut.spawn(answer(iad.request("/rpc/iad", &few(id).to_string())));
            eventually(id, async || cluster.runs(), |runs| runs.contains_key(id)).await;
        }
        let request = iad.request("/rpc/iad", &few("c").to_string());
        let request = request.header("prefer", preference);
        cut.spawn(answer(request.header("idempotency-key", "key")));
        let claims = async || redis.ask("KEYS *:key:*").await;
        eventually("the claim", claims, |names| names.contains(":key:")).await;
        iad.terminate();
        cluster.instance_mut("iad-1").ended().await;
        assert!(!cluster.runs().contains_key("c"));
        cluster.release("few");
        let again = keyed(cluster.instance("syd-1"), "syd", "key", &few("c")).await;
        assert_eq!((again.result(), is_replayed(&again)), (&json!("c"), false));
    }
}

/// The name of a key that `redis` has and that is none of `others`.
async fn stored_name(redis: &Redis, others: &[String]) -> String {
    let names = redis.ask("KEYS *:key:*").await;
    let mut names = names.lines().filter(|line| line.starts_with("fly-rpc:"));
    let name = names.find(|name| others.iter().all(|other| other != name));
    name.unwrap().to_owned()
}

#[tokio::test]
async fn a_change_that_the_store_refuses_is_given_up_and_holds_up_nothing() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = cluster_with(&format!("redis://{}", proxy.address)).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = |latch: &str| blocking(latch, &json!({}));
    let (good, bad) = (call("good"), call("bad"));
    let losing = async {
        cluster.until_started("good").await;
        let kept = stored_name(&redis, &[]).await;
        // Only then, so that it is known whose name is whose.
        let replacing = async {
            cluster.until_started("bad").await;
            let replaced = stored_name(&redis, &[kept]).await;
            proxy.break_all(Fault::Refuse).await;
            until_all_up(&cluster, 0).await;
            redis.ask(&format!("DEL {replaced}")).await;
            let stored = redis.ask(&format!("HSET {replaced} field 1")).await;
            assert!(stored.starts_with(":1"), "{stored}");
            cluster.release("bad");
        };
        let (replaced, ()) = tokio::join!(keyed(iad, "iad", "bad", &bad), replacing);
        // What is pending first is tried first.
        cluster.release("good");
        replaced
    };
    let (first, replaced) = tokio::join!(keyed(iad, "iad", "good", &good), losing);
    assert_eq!(
        (first.result(), replaced.result()),
        (&json!("released"), &json!("released"))
    );
    proxy.heal().await;
    until_all_up(&cluster, 1).await;
    let again = keyed(syd, "syd", "good", &good).await;
    assert_eq!(
        (again.result(), is_replayed(&again)),
        (&json!("released"), true)
    );
    let log = async || iad.log();
    let lost = "the outcome of a call is lost: its repeats take it to be running";
    let told = eventually("the loss", log, |log| log.contains(lost)).await;
    assert!(told.contains("WRONGTYPE"), "{told}");
    // Another two renewals: the connection lives on, and the change is not tried again.
    until_renewed(&redis, &cluster).await;
    until_renewed(&redis, &cluster).await;
    let log = iad.log();
    let away = "lost the store of idempotency keys";
    let counts = [lost, away].map(|text| log.matches(text).count());
    assert_eq!(counts, [1, 1], "{log}");
    let ran = keyed(iad, "iad", "other", &run("a", &json!({}))).await;
    assert_eq!(ran.result(), "a");
}

/// Waits until each process has renewed its lease.
async fn until_renewed(redis: &Redis, cluster: &Cluster) {
    let instances = u64::try_from(cluster.instances.len()).unwrap();
    let renewals = async || redis.commands("pexpire").await;
    let before = renewals().await;
    let are_all = |now: &u64| *now >= before + instances;
    eventually("renewals", renewals, are_all).await;
}

#[tokio::test]
async fn a_user_that_may_run_no_script_is_refused() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let iad = cluster.instance("iad-1");
    let denied = redis.ask("ACL SETUSER default -eval").await;
    assert!(denied.starts_with("+OK"), "{denied}");
    until_all_up(&cluster, 0).await;
    let refused = keyed(iad, "iad", "a", &run("a", &json!({}))).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    let log = async || iad.log();
    let why = "cannot be used: calls with a key are refused";
    let log = eventually("the refusal", log, |log| log.contains(why)).await;
    assert!(log.contains("'eval' command"), "{log}");
    redis.ask("ACL SETUSER default +eval").await;
    until_all_up(&cluster, 1).await;
    let ran = keyed(iad, "iad", "a", &run("a", &json!({}))).await;
    assert_eq!(ran.result(), "a");
    assert_eq!(cluster.runs()["a"], 1);
}

#[tokio::test]
async fn what_a_store_refuses_that_became_a_replica_is_stored_when_it_is_none_any_more() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let block = blocking("latch", &json!({}));
    let demoting = async {
        cluster.until_started("latch").await;
        let demoted = redis.ask("REPLICAOF 127.0.0.1 1").await;
        assert!(demoted.starts_with("+OK"), "{demoted}");
        cluster.release("latch");
    };
    let (first, ()) = tokio::join!(keyed(iad, "iad", "key", &block), demoting);
    assert_eq!(first.result(), "released");
    until_all_up(&cluster, 0).await;
    let refused = keyed(iad, "iad", "other", &run("a", &json!({}))).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    redis.ask("REPLICAOF NO ONE").await;
    until_all_up(&cluster, 1).await;
    let again = keyed(syd, "syd", "key", &block).await;
    assert_eq!(
        (again.result(), is_replayed(&again)),
        (&json!("released"), true)
    );
    assert!(!iad.log().contains("is lost"), "{}", iad.log());
}

/// Calls that end while the store is away.
const OWED: usize = 120;

#[tokio::test]
async fn what_ended_while_the_store_was_away_is_stored_however_slow_it_is_when_it_is_back() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = cluster_with(&format!("redis://{}", proxy.address)).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = blocking("latch", &json!({"instance": "syd-1"}));
    let one = async |via: &Process, key: usize, call: &Value| {
        keyed_until_answered(via, "syd", &format!("key-{key}"), call).await
    };
    let all = async |via, call| join_all((0..OWED).map(|key| one(via, key, call))).await;
    let losing = async {
        let starts = async || cluster.starts("latch").len();
        eventually("all calls", starts, |starts| *starts == OWED).await;
        proxy.break_all(Fault::Refuse).await;
        until_all_up(&cluster, 0).await;
        cluster.release("latch");
    };
    let (first, ()) = tokio::join!(all(syd, &call), losing);
    assert!(first.iter().all(|answer| answer.result() == "released"));
    // All of them together take longer than a process is taken to live that does not say so.
    let slow = Fault::Delay(Duration::from_millis(50));
    proxy.break_all(slow).await;
    until_all_up(&cluster, 1).await;
    let elsewhere = blocking("latch", &json!({"instance": "syd-2"}));
    for again in all(iad, &elsewhere).await {
        assert_eq!(
            (again.result(), is_replayed(&again)),
            (&json!("released"), true)
        );
    }
    assert_eq!(cluster.starts("latch").len(), OWED);
}

#[tokio::test]
async fn a_result_that_finds_no_room_while_the_store_is_away_is_known_to_be_lost() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = Cluster::builder().region("iad", 1).region("syd", 1);
    let cluster = cluster
        .functions()
        .set("RPC_KEY_STORE", &format!("redis://{}", proxy.address))
        // An eighth of it is for what waits for the store.
        .set("RPC_MAX_MEMORY", "4MiB");
    let cluster = cluster.start().await;
    until_all_up(&cluster, 1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = json!({
        "module": "Test", "function": "block_large", "args": ["latch", 600_000], "timeout_ms": 60_000,
    });
    let losing = async {
        cluster.until_started("latch").await;
        proxy.break_all(Fault::Refuse).await;
        until_all_up(&cluster, 0).await;
        cluster.release("latch");
    };
    let first = keyed_until_answered(iad, "iad", "key", &call);
    let (first, ()) = tokio::join!(first, losing);
    assert_eq!(first.result(), &"x".repeat(600_000));
    proxy.heal().await;
    until_all_up(&cluster, 1).await;
    let again = keyed_until_answered(syd, "syd", "key", &call).await;
    assert_eq!(again.problem(), (410, "result_not_kept", "yes"));
    assert_eq!(cluster.starts("latch").len(), 1);
}

#[tokio::test]
async fn a_result_that_takes_too_long_on_its_way_to_the_store_holds_up_no_other_key() {
    let redis = Redis::start().await;
    let proxy = redis.proxy().await;
    let cluster = Cluster::builder().region("iad", 1).functions();
    let cluster = cluster.set("RPC_KEY_STORE", &format!("redis://{}", proxy.address));
    let cluster = cluster.start().await;
    until_all_up(&cluster, 1).await;
    let iad = cluster.instance("iad-1");
    // Longer than a command may take, and than the lease's renewal behind it may wait.
    proxy.break_all(Fault::NarrowThere(600_000)).await;
    let large = json!({"module": "Test", "function": "large", "args": ["l", 900_000]});
    keyed(iad, "iad", "large", &large).await.result();
    // Refusals of the time until it is given up are none of one call after another.
    let times_away = || {
        iad.log()
            .matches("lost the store of idempotency keys")
            .count()
    };
    let steady = async || {
        let before = times_away();
        for _ in 0..6 {
            until_renewed(&redis, &cluster).await;
        }
        times_away() - before
    };
    eventually("a store that stays there", steady, |away| *away == 0).await;
    let small = keyed_until_answered(iad, "iad", "small", &run("a", &json!({}))).await;
    assert_eq!(small.result(), "a");
    let again = keyed_until_answered(iad, "iad", "large", &large).await;
    assert!(is_replayed(&again) || again.problem() == (410, "result_not_kept", "yes"));
    assert_eq!(cluster.runs()["l"], 1);
}

/// Keys, each sent twice.
const KEYS: usize = 4_000;
/// How many send them at once.
const SENDERS: usize = 24;
/// How long an answer may take.
const LOST: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_thousand_keys_sent_twice_run_once_while_instances_of_all_kinds_are_killed() {
    let _quiet = quiet().await;
    let redis = Redis::start().await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::builder().region("iad", 2).region("syd", 3);
    let cluster = cluster.functions().set("RPC_KEY_STORE", &redis.url());
    let mut cluster = cluster.start().await;
    let entries = ["iad-1", "iad-2"].map(|name| cluster.instance(name).address);
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        senders.spawn(async move {
            // With a timeout, so that a request that is lost in the client ends too.
            let client = Client::builder().no_proxy().timeout(LOST);
            let client = client.build().unwrap();
            let mut ends = Vec::new();
            for number in (sender..KEYS).step_by(SENDERS) {
                for entry in [entries[number % 2], entries[(number + 1) % 2]] {
                    ends.push(send(&client, entry, number).await);
                }
            }
            ends
        });
    }
    let (mut kills, started) = (0, Instant::now());
    while !senders.is_empty() && kills < 20 {
        // Three of four are of instances that run calls.
        let names = ["syd-1", "syd-2", "syd-3", "iad-1", "iad-2"];
        let name = match kills % 4 {
            3 => names[random.random_range(3..5)],
            _ => names[random.random_range(0..3)],
        };
        sleep(Duration::from_millis(random.random_range(200..600))).await;
        cluster.instance(name).kill();
        kills += 1;
        cluster.restart(name).await;
    }
    let ends: Vec<End> = senders.join_all().await.into_iter().flatten().collect();
    let runs = cluster.runs();
    let twice = runs.values().filter(|runs| **runs > 1).count();
    let count = |end: End| ends.iter().filter(|other| **other == end).count();
    println!(
        "{:.1?}: {KEYS} keys sent twice, {kills} kills: {} ran, {twice} twice; {} results, {} maybe, {} not answered",
        started.elapsed(),
        runs.len(),
        count(End::Ran),
        count(End::Maybe),
        count(End::Nothing)
    );
    assert_eq!((twice, ends.len()), (0, 2 * KEYS));
    assert!(kills >= 15 && count(End::Ran) > KEYS, "{kills} kills");
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Ran,
    Maybe,
    Nothing,
}

/// Sends a key until the answer is no refusal.
async fn send(client: &Client, entry: std::net::SocketAddr, number: usize) -> End {
    let body = run(&format!("id-{number}"), &json!({})).to_string();
    for _ in 0..200 {
        let request = client
            .post(format!("http://{entry}/rpc/syd"))
            .header("content-type", "application/json")
            .header("idempotency-key", format!("key-{number}"))
            .body(body.clone());
        match answer(request).await {
            Ok(answer) if answer.status == 200 => return End::Ran,
            Ok(answer) if answer.body["executed"] == "maybe" => return End::Maybe,
            // Its entry is gone, or it did not run.
            Ok(_) | Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    End::Nothing
}

#[tokio::test]
async fn a_store_that_stands_still_keeps_no_call_beyond_its_deadline() {
    let redis = Redis::start().await;
    let cluster = cluster(&redis).await;
    let iad = cluster.instance("iad-1");
    let late = async || {
        until_up(iad, 1).await;
        redis.signal(Signal::SIGSTOP);
        let late = keyed(iad, "iad", "k", &run("a", &json!({"timeout_ms": 100}))).await;
        redis.signal(Signal::SIGCONT);
        let (_, code, executed) = late.problem();
        assert_eq!(executed, "no");
        code.to_owned()
    };
    // On a busy machine, it may be known already that the store is away.
    let late = eventually("a deadline", late, |code| code != "overloaded").await;
    assert_eq!(late, "deadline_exceeded");
    until_up(iad, 1).await;
    let again = keyed(iad, "iad", "k", &run("a", &json!({}))).await;
    assert_eq!(again.result(), "a");
}
