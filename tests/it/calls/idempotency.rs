//! `Idempotency-Key`: a repeat gets the same outcome without a second run, wherever it is asked.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    asking::{LATE_MS, block, blocking, failure, run, two_regions},
    cluster::{Cluster, instances_in_state},
    fault::{Fault, Scope},
    patience::eventually,
    process::{Answer, Process, answer},
};

/// The answer to `call` in `region` under `key`.
async fn keyed(via: &Process, region: &str, key: &str, call: &Value) -> Answer {
    let request = via.request(&format!("/rpc/{region}"), &call.to_string());
    answer(request.header("idempotency-key", key))
        .await
        .unwrap()
}

/// The same under way.
fn under_way(via: &Process, region: &str, key: &str, call: &Value) -> JoinHandle<Answer> {
    let request = via.request(&format!("/rpc/{region}"), &call.to_string());
    let request = request.header("idempotency-key", key);
    tokio::spawn(async { answer(request).await.unwrap() })
}

/// What an answer says besides when and how it was asked.
fn outcome(answer: &Answer) -> Value {
    let mut outcome = answer.body.clone();
    outcome.as_object_mut().unwrap().remove("meta");
    outcome["status"] = json!(answer.status);
    outcome
}

/// Whether an answer is marked as the outcome of an earlier call, in the header and in `meta` alike.
fn is_replayed(answer: &Answer) -> bool {
    let header = answer.headers.get("idempotency-replayed");
    let member = answer.body["meta"].get("replayed");
    assert_eq!(header.is_some(), member.is_some(), "{header:?} {member:?}");
    assert!(header.is_none_or(|header| header == "true"));
    assert!(member.is_none_or(|member| member == true));
    header.is_some()
}

/// Two regions, so that every repeat has several ways to its instance.
async fn two_by_three() -> Cluster {
    let cluster = Cluster::builder()
        .region("iad", 2)
        .region("syd", 3)
        .functions();
    cluster.start().await
}

#[tokio::test]
async fn a_repeat_gets_the_same_outcome_whoever_is_asked() {
    let cluster = two_by_three().await;
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..24 {
        let (key, id) = (format!("key-{number}"), format!("id-{number}"));
        let mut ran_on = None;
        // From another region, and from inside it, including the instance that ran it.
        for instance in &cluster.instances {
            let answer = keyed(instance, "syd", &key, &run(&id, &json!({}))).await;
            assert_eq!(answer.result(), &json!(id));
            assert_eq!(is_replayed(&answer), ran_on.is_some());
            let place = answer.instance().to_owned();
            assert_eq!(ran_on.get_or_insert(place.clone()), &place);
        }
        *places.entry(ran_on.unwrap()).or_default() += 1;
    }
    let once = (0..24).map(|number| (format!("id-{number}"), 1)).collect();
    assert_eq!(cluster.runs(), once);
    // One of three has none of 24 keys with probability 3 × (2/3)^24, about 1 in 5,600; ids and keys are fixed.
    assert_eq!(places.len(), 3, "{places:?}");
}

#[tokio::test]
async fn a_key_in_quotes_is_the_same_key() {
    let cluster = two_by_three().await;
    let iad = cluster.instance("iad-1");
    for key in ["k-1", "\"k-1\""] {
        let answer = keyed(iad, "syd", key, &run("one", &json!({}))).await;
        assert_eq!(answer.result(), "one");
    }
    assert_eq!(cluster.runs(), [("one".to_owned(), 1)].into());
}

#[tokio::test]
async fn repeats_wait_for_the_one_that_runs() {
    let cluster = two_by_three().await;
    for region in ["iad", "syd"] {
        let call = blocking(region, &json!({}));
        let first = under_way(cluster.instance("iad-1"), region, region, &call);
        let ran_on = cluster.until_started(region).await;
        let repeats: Vec<_> = cluster
            .instances
            .iter()
            .map(|instance| under_way(instance, region, region, &call))
            .collect();
        // A repeat that does not wait so long learns that it may have run, and does not disturb the others.
        let hasty = blocking(region, &json!({"timeout_ms": LATE_MS}));
        let hasty = keyed(cluster.instance("iad-2"), region, region, &hasty).await;
        assert_eq!(failure(&hasty).0, "deadline_exceeded");
        assert_eq!(failure(&hasty).1, "maybe");
        // That the first one still runs is no outcome of it.
        assert!(!is_replayed(&hasty), "{hasty:?}");
        assert!(!cluster.is_marked(&format!("{region}.finished")));
        cluster.release(region);
        for answer in [first].into_iter().chain(repeats) {
            let answer = answer.await.unwrap();
            assert_eq!(answer.result(), "released");
            assert_eq!(answer.instance(), ran_on);
        }
        assert_eq!(cluster.starts(region), [ran_on]);
    }
}

#[tokio::test]
async fn a_repeat_of_a_large_call_is_marked_too() {
    let cluster = two_by_three().await;
    let call = json!({"module": "Test", "function": "large", "args": ["one", 100_000], "timeout_ms": 5_000});
    for number in 0..3 {
        let answer = keyed(cluster.instance("iad-1"), "syd", "key", &call).await;
        assert_eq!(answer.result().as_str().unwrap().len(), 100_000);
        assert_eq!(is_replayed(&answer), number > 0);
    }
    assert_eq!(cluster.runs(), [("one".to_owned(), 1)].into());
}

#[tokio::test]
async fn the_same_call_is_one_of_the_same_value() {
    let cluster = two_by_three().await;
    let iad = cluster.instance("iad-1");
    let post = async |args: &str| {
        let body = format!(r#"{{"module":"Test","function":"echo","args":{args}}}"#);
        let request = iad.request("/rpc/syd", &body);
        answer(request.header("idempotency-key", "key"))
            .await
            .unwrap()
    };
    let first = post(r#"[{"id":300,"text":"\u00e9"}]"#).await;
    assert!(!is_replayed(&first));
    let again = post(r#"[ { "text" : "é", "id" : 300 } ]"#).await;
    assert!(is_replayed(&again));
    assert_eq!(again.result(), first.result());
    // Functions get every digit of a number, and so every digit counts.
    let other = post(r#"[{"id":300.0,"text":"é"}]"#).await;
    assert_eq!(other.problem(), (422, "idempotency_mismatch", "no"));
}

#[tokio::test]
async fn a_key_belongs_to_one_call() {
    let cluster = two_by_three().await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let first = keyed(iad, region, "key", &run("first", &json!({}))).await;
        assert_eq!(first.result(), "first");
        let other_args = keyed(iad, region, "key", &run("second", &json!({}))).await;
        assert_eq!(other_args.problem(), (422, "idempotency_mismatch", "no"));
        let other_function = json!({"module": "String", "function": "upcase", "args": ["first"]});
        let other_function = keyed(iad, region, "key", &other_function).await;
        assert_eq!(
            other_function.problem(),
            (422, "idempotency_mismatch", "no")
        );
        // How long and how to try is not part of what is asked.
        let patient = run("first", &json!({"timeout_ms": 9_000, "idempotent": true}));
        assert_eq!(keyed(iad, region, "key", &patient).await.result(), "first");
    }
    assert_eq!(cluster.runs(), [("first".to_owned(), 2)].into());
}

#[tokio::test]
async fn failures_are_remembered_like_results() {
    let cluster = two_by_three().await;
    for region in ["iad", "syd"] {
        let failing = json!({"module": "Test", "function": "fail", "args": [region]});
        let panicking =
            json!({"module": "Test", "function": "panic_after", "args": [format!("{region}-p")]});
        for (key, call, problem) in [
            ("failing", failing, (424, "function_failed", "yes")),
            ("panicking", panicking, (500, "function_panicked", "yes")),
        ] {
            let first = keyed(cluster.instance("iad-1"), region, key, &call).await;
            assert_eq!(first.problem(), problem);
            assert!(!is_replayed(&first));
            for instance in &cluster.instances {
                let again = keyed(instance, region, key, &call).await;
                assert_eq!(outcome(&again), outcome(&first));
                assert!(is_replayed(&again));
            }
        }
    }
    let once = ["iad", "iad-p", "syd", "syd-p"].map(|id| (id.to_owned(), 1));
    assert_eq!(cluster.runs(), once.into());
}

#[tokio::test]
async fn a_function_that_outlived_its_deadline_is_not_run_again() {
    let cluster = two_by_three().await;
    let call = json!({
        "module": "Test", "function": "run", "args": ["late", 60_000], "timeout_ms": LATE_MS,
    });
    let late = async |instance| {
        let answer = keyed(instance, "syd", "key", &call).await;
        assert_eq!(answer.problem(), (504, "deadline_exceeded", "maybe"));
        is_replayed(&answer)
    };
    assert!(!late(cluster.instance("iad-1")).await);
    // Its deadline is the outcome that is remembered.
    let repeats = join_all(cluster.instances.iter().map(late)).await;
    assert_eq!(repeats, [true; 5]);
    assert_eq!(cluster.runs(), [("late".to_owned(), 1)].into());
}

#[tokio::test]
async fn what_did_not_run_is_not_remembered() {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let held = under_way(iad, region, "other", &blocking(region, &json!({})));
        cluster.until_started(region).await;
        let call = run(region, &json!({}));
        let refused = keyed(iad, region, "key", &call).await;
        assert_eq!(refused.problem(), (503, "overloaded", "no"));
        cluster.release(region);
        held.await.unwrap().result();
        let again = async || keyed(iad, region, "key", &call).await;
        eventually("a run", again, |answer| answer.status == 200).await;

        let misfit = json!({"module": "Test", "function": "run", "args": []});
        let misfit = keyed(iad, region, "fixed", &misfit).await;
        assert_eq!(misfit.problem(), (422, "invalid_arguments", "no"));
        let fixed = run(&format!("{region}-fixed"), &json!({}));
        let fixed = keyed(iad, region, "fixed", &fixed).await;
        assert_eq!(fixed.result(), &json!(format!("{region}-fixed")));
    }
    let once = ["iad", "iad-fixed", "syd", "syd-fixed"].map(|id| (id.to_owned(), 1));
    assert_eq!(cluster.runs(), once.into());
}

#[tokio::test]
async fn after_a_maybe_only_the_same_instance_is_asked_again() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 3)
        .functions()
        .proxied()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let syd = ["syd-1", "syd-2", "syd-3"];
    let mut most = 0;
    for number in 0..6 {
        let (key, id) = (format!("key-{number}"), format!("id-{number}"));
        for name in syd {
            let cut = Fault::CutAnswerAfter(0);
            cluster.proxy(name).set(cut, Scope::Lines).await;
        }
        let posts = || syd.map(|name| cluster.proxy(name).posts());
        let before = posts();
        let lost = keyed(iad, "syd", &key, &run(&id, &json!({}))).await;
        let (code, executed, attempts) = failure(&lost);
        assert_eq!((code, executed), ("peer_lost", "maybe"));
        let asked: Vec<_> = std::iter::zip(posts(), before)
            .map(|(after, before)| after - before)
            .collect();
        assert!(asked.iter().filter(|count| **count > 0).count() <= 1);
        // The first attempt may travel on a stream that is open already.
        let sent = u64::try_from(asked.iter().sum::<usize>()).unwrap();
        assert!((attempts - 1..=attempts).contains(&sent), "{asked:?}");
        most = most.max(attempts);

        // Once it is back, it is the one that knows.
        let suspects = async || instances_in_state(iad, "suspect").await;
        let knows = lost.instance();
        cluster.proxy(knows).break_all(Fault::Refuse).await;
        eventually("a suspect", suspects, |seen| seen.contains(knows)).await;
        for name in syd {
            cluster.proxy(name).heal().await;
        }
        let all = ["iad-1", "syd-1", "syd-2", "syd-3"];
        cluster.until_ready("iad-1", &all).await;
        let again = keyed(iad, "syd", &key, &run(&id, &json!({}))).await;
        assert_eq!(again.result(), &json!(id));
        assert_eq!(again.instance(), knows);
    }
    // On a busy machine, an instance that is too late for a probe is asked no more: not each time.
    assert_eq!(most, 3);
    assert!(cluster.runs().values().all(|runs| *runs == 1));
    assert_eq!(cluster.runs().len(), 6);
}

/// Nobody has found out yet that it hangs, and there is no connection on which its silence would show.
#[tokio::test]
async fn a_key_stays_with_an_instance_that_hangs_before_a_connection_to_it_is_made() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .start()
        .await;
    let all = ["iad-1", "iad-2", "syd-1", "syd-2"];
    cluster.add_with_one_round("iad", &all).await;
    let (first, second) = (cluster.instance("iad-1"), cluster.instance("iad-2"));
    let call = run("once", &json!({}));
    let ran = keyed(first, "syd", "key", &call).await;
    let holds = cluster.instance(ran.instance());
    holds.pause().await;
    for region in ["syd", "syd,iad"] {
        let refused = keyed(second, region, "key", &call).await;
        assert_eq!(refused.problem(), (502, "peer_unreachable", "no"));
    }
    holds.resume();
    let again = async || keyed(second, "syd", "key", &call).await;
    let again = eventually("its outcome", again, |answer| answer.status == 200).await;
    assert!(is_replayed(&again));
    assert_eq!(cluster.runs(), [("once".to_owned(), 1)].into());
}

#[tokio::test]
async fn keys_pass_over_instances_that_lack_the_function_or_drain_however_many() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 4)
        .functions()
        .start()
        .await;
    let of_keys = async |cluster: &Cluster, from: u32| {
        let iad = cluster.instance("iad-1");
        for number in from..from + 20 {
            let id = number.to_string();
            let answer = keyed(iad, "syd", &id, &run(&id, &json!({}))).await;
            assert_eq!((answer.result(), answer.instance()), (&json!(id), "syd-1"));
        }
    };
    let iad = cluster.instance("iad-1");
    let drained = ["syd-2", "syd-3", "syd-4"];
    let mut held = Vec::new();
    for name in drained {
        held.push(block(iad, "syd", name, &json!({"instance": name})));
        cluster.until_started(name).await;
        let instance = cluster.instance(name);
        instance.terminate();
        let call = run("never", &json!({"instance": name}));
        let refused = async || iad.rpc("syd", &call).await.status;
        eventually("refusal", refused, |status| *status == 503).await;
    }
    of_keys(&cluster, 0).await;
    for name in drained {
        cluster.release(name);
    }
    for held in held {
        held.await.unwrap().result();
    }
    for _ in 0..4 {
        cluster.add_without_functions("syd").await;
    }
    cluster.announce_all();
    let all = ["iad-1", "syd-1", "syd-5", "syd-6", "syd-7", "syd-8"];
    cluster.until_ready("iad-1", &all).await;
    cluster.until_one_is_chosen("iad-1").await;
    of_keys(&cluster, 20).await;
}

#[tokio::test]
async fn a_keyed_call_of_a_function_that_nobody_has_is_not_sent_to_everybody() {
    let cluster = Cluster::builder().region("iad", 1).region("syd", 8);
    let cluster = cluster.start().await;
    let call = json!({"module": "No", "function": "where", "args": []});
    for via in ["iad-1", "syd-1"] {
        for key in ["a", "b", "c", "d"] {
            let refused = keyed(cluster.instance(via), "syd", key, &call).await;
            let (code, executed, attempts) = failure(&refused);
            assert_eq!((code, executed), ("function_unknown", "no"));
            assert!(attempts <= 3, "{via}: {attempts}");
        }
    }
}

#[tokio::test]
async fn another_process_of_the_instance_does_not_run_what_its_predecessor_may_have_run() {
    let mut cluster = two_regions().functions().start().await;
    for number in 0..12 {
        let name = format!("latch-{number}");
        cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
        let call = blocking(&name, &json!({}));
        let call = under_way(cluster.instance("iad-1"), "syd", &name, &call);
        cluster.until_started(&name).await;
        cluster.release(&name);
        cluster.instance("syd-1").kill();
        cluster.restart("syd-1").await;
        let answer = call.await.unwrap();
        // It may have ended in the moment before it was killed.
        if answer.status != 200 {
            let (code, executed, _) = failure(&answer);
            assert_eq!((code, executed), ("peer_lost", "maybe"));
        }
        assert_eq!(cluster.starts(&name).len(), 1, "{name}");
    }
}

#[tokio::test]
async fn keys_that_break_the_rule_are_refused_by_the_header() {
    let cluster = two_by_three().await;
    let iad = cluster.instance("iad-1");
    let call = run("never", &json!({}));
    let rule = "header idempotency-key must be 1 to 128 visible ASCII characters";
    for key in ["", "\"\"", "a b", "é", &"k".repeat(129)] {
        let answer = keyed(iad, "syd", key, &call).await;
        assert_eq!(answer.problem(), (400, "invalid_request", "no"), "{key:?}");
        assert_eq!(answer.detail(), rule, "{key:?}");
    }
    let request = iad.request("/rpc/syd", &call.to_string());
    let twice = request
        .header("idempotency-key", "a")
        .header("idempotency-key", "a");
    let twice = answer(twice).await.unwrap();
    assert_eq!(twice.problem(), (400, "invalid_request", "no"));
    assert_eq!(twice.detail(), "header idempotency-key is given twice");
    assert_eq!(cluster.runs(), [].into());
    let longest = keyed(iad, "syd", &"k".repeat(128), &run("longest", &json!({}))).await;
    assert_eq!(longest.result(), "longest");
}

#[tokio::test]
async fn a_call_whose_turn_never_came_did_not_run_with_a_key_too() {
    let cluster = Cluster::builder().region("iad", 1).functions();
    let cluster = cluster.start().await;
    let iad = cluster.instance("iad-1");
    // Which instance a key picks is known once the first round is over.
    let warm = async || {
        keyed(iad, "iad", "warm", &run("warm", &json!({})))
            .await
            .status
    };
    eventually("a first call", warm, |status| *status == 200).await;
    let few = |name: &str, timeout: u32| json!({"module": "Test", "function": "few", "args": [name], "timeout_ms": timeout});
    let running = ["a", "b"].map(|name| under_way(iad, "iad", name, &few(name, 60_000)));
    let runs = async || cluster.runs().len();
    eventually("both run", runs, |count| *count == 3).await;
    for key in ["c", "d", "e", "f", "g"] {
        let late = keyed(iad, "iad", key, &few(key, 100)).await;
        assert_eq!(late.problem(), (504, "deadline_exceeded", "no"));
    }
    cluster.release("few");
    for running in running {
        assert_eq!(running.await.unwrap().status, 200);
    }
    assert_eq!(cluster.runs().len(), 3);
}

#[tokio::test]
async fn a_repeat_runs_the_call_that_it_waited_for_and_that_did_not_run() {
    const EXPIRED: &str =
        r#"fly_rpc_executions_total{function="Test.few",code="deadline_exceeded",executed="no"}"#;
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let few = |name: &str, timeout: u32| json!({"module": "Test", "function": "few", "args": [name], "timeout_ms": timeout});
    for region in ["iad", "syd"] {
        let place = cluster.instance(&format!("{region}-1"));
        let running = async || place.running().await;
        let busy = ["a", "b"].map(|name| {
            let name = format!("{region}-{name}");
            under_way(iad, region, &name, &few(&name, 60_000))
        });
        eventually("both run", running, |running| *running == 2).await;
        let first = under_way(iad, region, "key", &few(region, 6_000));
        eventually("the first waits", running, |running| *running == 3).await;
        let repeats = [0; 3].map(|_| under_way(iad, region, "key", &few(region, 60_000)));
        let first = first.await.unwrap();
        assert_eq!(first.problem().1, "deadline_exceeded");
        // Its caller may know that before the instance does.
        let expired = async || place.metric(EXPIRED).await;
        eventually("its end there", expired, |expired| *expired == Some(1)).await;
        cluster.release("few");
        let mut replayed = 0;
        for repeat in repeats {
            let repeat = repeat.await.unwrap();
            assert_eq!(repeat.result(), region);
            replayed += usize::from(is_replayed(&repeat));
        }
        assert_eq!((replayed, cluster.runs()[region]), (2, 1));
        for busy in busy {
            busy.await.unwrap().result();
        }
        cluster.hold("few");
    }
}

#[tokio::test]
async fn a_repeat_waits_for_the_one_that_runs_also_where_its_instance_refuses_new_calls() {
    let mut cluster = Cluster::builder()
        .region("iad", 2)
        .region("syd", 2)
        .functions()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let call = |timeout_ms: u64| blocking("held", &json!({"timeout_ms": timeout_ms}));
    let first = under_way(iad, "syd", "key", &call(60_000));
    let ran_on = cluster.until_started("held").await;
    let drains = cluster.instance(&ran_on);
    drains.terminate();
    let other = json!({"module": "Kernel", "function": "+", "args": [1, 2], "instance": ran_on});
    let refused = async || drains.rpc("syd", &other).await;
    eventually("refusal", refused, |answer| answer.status == 503).await;
    let sibling = ["syd-1", "syd-2"].into_iter().find(|name| *name != ran_on);

    // Each has to make a connection first.
    let ways = ["iad-2", sibling.unwrap()].map(|name| cluster.instance(name));
    let repeats = ways.map(|way| under_way(way, "syd", "key", &call(60_000)));
    for way in ways {
        let in_flight = async || way.in_flight().await;
        eventually("the repeat", in_flight, |calls| *calls == 1).await;
    }
    // Calls that are refused meanwhile, on the connection of the first too, end none of those that wait.
    for way in [iad, ways[0], ways[1]] {
        for _ in 0..5 {
            let refused = way.rpc("syd", &other).await;
            assert_eq!(refused.problem(), (503, "draining", "no"));
        }
    }
    // Behind the repeats; also where the instance itself is asked.
    let asked = [
        (ways[0], "syd"),
        (ways[1], "syd"),
        (drains, "syd"),
        (drains, "syd,iad"),
    ];
    for (way, region) in asked {
        let hasty = async || keyed(way, region, "key", &call(300)).await;
        // On a busy machine, the time of some is over before they leave.
        let hasty = eventually("a repeat that waited", hasty, |answer| {
            let (_, code, executed) = answer.problem();
            assert_eq!(code, "deadline_exceeded");
            executed == "maybe"
        });
        assert_eq!(hasty.await.instance(), ran_on);
        let new = run("new", &json!({"instance": ran_on}));
        let new = keyed(way, "syd", "new", &new).await;
        assert_eq!(new.problem(), (503, "draining", "no"));
    }
    cluster.release("held");
    assert_eq!(first.await.unwrap().result(), "released");
    for repeat in repeats {
        let repeat = repeat.await.unwrap();
        assert_eq!(
            (repeat.result(), repeat.instance(), is_replayed(&repeat)),
            (&json!("released"), &*ran_on, true)
        );
    }
    assert_eq!(cluster.starts("held"), [&*ran_on]);
    let drained = cluster.instance_mut(&ran_on).ended().await;
    assert_eq!(drained.code(), Some(0));
}

/// Whoever executes it logs it as it is told to nobody.
#[tokio::test]
async fn a_repeat_whose_caller_gives_up_may_have_run() {
    let cluster = two_regions().functions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = blocking("held", &json!({}));
    let first = under_way(syd, "syd", "key", &call);
    cluster.until_started("held").await;
    let repeat = under_way(iad, "syd", "key", &call);
    let in_flight = async || iad.in_flight().await;
    eventually("the repeat", in_flight, |calls| *calls == 1).await;
    // Behind it: a call whose end arrives with it never begins.
    let behind = iad.call("syd", "Kernel.+", json!([1, 2])).await;
    assert_eq!(behind.result(), 3);
    repeat.abort();
    let given_up = async || {
        let log = syd.log();
        let mut ended = log
            .lines()
            .map(|line| -> Value { serde_json::from_str(line).unwrap() });
        ended.find(|line| line["message"] == "exec" && line["code"] == "deadline_exceeded")
    };
    let given_up = eventually("its end", given_up, Option::is_some).await;
    assert_eq!(given_up.unwrap()["executed"], "maybe");
    cluster.release("held");
    assert_eq!(first.await.unwrap().result(), "released");
}
