//! Apps beside instances of a cluster: a call finds an instance that has the function, and the policy that a function
//! declares holds wherever it is called from.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{self, Instant};

use super::{App, TOKEN, parts, until_state};
use crate::support::{
    asking::LATE_MS,
    cluster::{Builder, Cluster},
    command,
    patience::eventually,
    process::{Answer, Process, answer},
    redis::Redis,
};

/// A cluster with an app beside each instance of `syd`, and none beside the one of `iad`.
async fn cluster(apps: usize) -> (Cluster, Vec<App>) {
    cluster_with(Cluster::builder(), apps).await
}

/// The same, of instances that `builder` describes.
async fn cluster_with(builder: Builder, apps: usize) -> (Cluster, Vec<App>) {
    let mut cluster = builder.region("iad", 1).start().await;
    let mut beside = Vec::new();
    for number in 0..apps {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("app.sock");
        let app = App::start_at(folder, socket.to_str().unwrap()).await;
        let url = format!("unix:{}:/rpc", app.place);
        cluster
            .add_with_all("syd", &[("RPC_APP_URL", &url), ("RPC_APP_TOKEN", TOKEN)])
            .await;
        let name = format!("syd-{}", number + 1);
        until_state(cluster.instance(&name), "up").await;
        beside.push(app);
    }
    cluster.announce_all();
    cluster.until_all_see_all().await;
    (cluster, beside)
}

async fn call(via: &Process, region: &str, function: &str, args: Value) -> Answer {
    let (module, function) = function.rsplit_once('.').unwrap();
    via.rpc(
        region,
        &json!({"module": module, "function": function, "args": args}),
    )
    .await
}

#[tokio::test]
async fn a_call_goes_where_the_function_is_also_to_a_sibling() {
    let (cluster, mut apps) = cluster(2).await;
    let (iad, first) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let offer = |app: &App, name: &str| app.offer(&json!({"functions": {name: {}}}));
    offer(&apps[1], "App.run");
    offer(&apps[0], "Other.only");
    // What one of two has, at every call, from another region and from the sibling.
    for via in [iad, first] {
        let ran = async || call(via, "syd", "App.run", json!(["a"])).await;
        let by_the_second = |answer: &Answer| answer.body["meta"]["instance"] == "syd-2";
        eventually("the second one", ran, by_the_second).await;
        for _ in 0..20 {
            let answer = call(via, "syd", "App.run", json!(["b"])).await;
            assert_eq!(parts(&answer), ("ok".to_owned(), "\"b\"".to_owned()));
        }
    }
    let explained = first
        .get("/regions/syd/explain?function=App.run")
        .await
        .body;
    let chosen = |explained: &Value| -> Vec<bool> {
        let candidates = explained["candidates"].as_array().unwrap().iter();
        candidates
            .map(|candidate| candidate["chosen"].as_bool().unwrap())
            .collect()
    };
    assert_eq!(chosen(&explained), [false, true]);
    let policy = |timeout: u64, from: &str, concurrency: Value| {
        json!({
            "timeout_ms": timeout, "timeout_from": from, "idempotent": false, "idempotent_from": "setting",
            "concurrency": concurrency,
        })
    };
    assert_eq!(explained["policy"], policy(5_000, "setting", Value::Null));
    let declared = json!({"App.run": {"timeout_ms": 900, "concurrency": 3}});
    apps[1].offer(&json!({"functions": declared}));
    let explained = async || {
        let path = "/regions/syd/explain?function=App.run";
        iad.get(path).await.body["policy"].clone()
    };
    let expected = policy(900, "function", json!(3));
    eventually("the policy", explained, |policy| *policy == expected).await;
    // When its app ends, the region has nobody who could, and whose function it was is known, before and after the others
    // know of it.
    apps[1].kill().await;
    let refused = async || {
        for via in [iad, first] {
            let gone = call(via, "syd", "App.run", json!(["c"])).await;
            assert_eq!(gone.problem(), (503, "function_unavailable", "no"));
        }
    };
    let is_reported = async || {
        refused().await;
        let path = "/regions/syd/explain?function=App.run";
        let got = iad.get(path).await.body;
        let second = got["candidates"][1].clone();
        (second["app"].clone(), second["reason"].clone())
    };
    let down = (
        json!("down"),
        json!("ready; no instance has App.run, and its app, which is down, may have it"),
    );
    eventually("the app's end", is_reported, |got| *got == down).await;
    for _ in 0..10 {
        refused().await;
    }
}

#[tokio::test]
async fn what_a_function_declares_holds_where_it_is_called_from() {
    let (cluster, apps) = cluster(1).await;
    let iad = cluster.instance("iad-1");
    let declared = json!({"functions": {"App.hold": {"timeout_ms": LATE_MS}, "App.raw": {"idempotent": true}}});
    apps[0].offer(&declared);
    let known = async || {
        let answer = call(iad, "syd", "App.hold", json!(["a"])).await;
        (
            answer.problem().1.to_owned(),
            answer.body["meta"]["elapsed_ms"].as_f64().unwrap(),
        )
    };
    // The setting is five seconds.
    let in_time =
        |(code, elapsed): &(String, f64)| code == "deadline_exceeded" && *elapsed < 5_000.0;
    eventually("the declared timeout", known, in_time).await;
    // What the call says comes first.
    let body = json!({"module": "App", "function": "hold", "args": ["b"], "timeout_ms": 60_000});
    let request = iad.request("/rpc/syd", &body.to_string());
    let longer = tokio::spawn(async move { answer(request).await.unwrap() });
    apps[0].until_runs("b").await;
    // Two attempts of what may run twice, were there two instances; with one, it is lost as it would be without.
    let lost = call(iad, "syd", "App.raw", json!(["c", ""])).await;
    assert_eq!(lost.problem(), (502, "function_lost", "maybe"));
    // In its own region the same holds.
    let here = call(cluster.instance("syd-1"), "syd", "App.hold", json!(["d"])).await;
    assert_eq!(here.problem(), (504, "deadline_exceeded", "maybe"));
    assert!(here.body["meta"]["elapsed_ms"].as_f64().unwrap() < 5_000.0);
    // That one ran for the declared time, after the longer one had started.
    apps[0].set("release");
    let longer = longer.await.unwrap();
    assert_eq!(parts(&longer), ("ok".to_owned(), "\"b\"".to_owned()));
}

#[tokio::test]
async fn what_may_run_twice_is_tried_again_and_what_may_not_is_not() {
    let (cluster, apps) = cluster(2).await;
    let iad = cluster.instance("iad-1");
    let declared = |idempotent: bool| json!({"functions": {"App.die": {"idempotent": idempotent}}});
    apps.iter().for_each(|app| app.offer(&declared(false)));
    let known = async || iad.get("/regions").await.status;
    eventually("an answer", known, |status| *status == 200).await;
    let runs = || {
        apps.iter()
            .map(|app| app.runs().values().sum::<u32>())
            .sum::<u32>()
    };
    let lost = call(iad, "syd", "App.die", json!(["a"])).await;
    assert_eq!(lost.problem(), (502, "function_lost", "maybe"));
    assert_eq!(runs(), 1);
    // Not the one app that is left.
    let body = json!({"module": "App", "function": "die", "args": ["b"], "idempotent": true});
    let lost = iad.rpc("syd", &body).await;
    assert_eq!(lost.problem(), (502, "function_lost", "maybe"));
    assert_eq!(runs(), 2);
}

#[tokio::test]
async fn what_may_run_twice_is_tried_on_another_instance_of_the_own_region() {
    let (cluster, apps) = cluster(2).await;
    let syd = cluster.instance("syd-1");
    for (idempotent, attempts) in [(false, 1), (true, 2)] {
        let id = idempotent.to_string();
        let body =
            json!({"module": "App", "function": "raw", "args": [id, ""], "idempotent": idempotent});
        let lost = syd.rpc("syd", &body).await;
        assert_eq!(lost.problem(), (502, "function_lost", "maybe"));
        assert_eq!(lost.body["meta"]["attempts"], attempts);
        let runs = apps.iter().map(|app| app.runs().get(&id).copied());
        let runs: Vec<_> = runs.map(Option::unwrap_or_default).collect();
        assert_eq!(runs, [1, attempts - 1]);
    }
}

#[tokio::test]
async fn what_is_remembered_as_lost_is_not_asked_for_again() {
    let redis = Redis::start().await;
    let stored = Cluster::builder().set("RPC_KEY_STORE", &redis.url());
    for builder in [Cluster::builder(), stored] {
        let (cluster, apps) = cluster_with(builder, 2).await;
        let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
        let call = json!({"module": "App", "function": "raw", "args": ["a", ""]});
        let mut outcomes = Vec::new();
        for via in [iad, syd, iad] {
            let request = via.request("/rpc/syd", &call.to_string());
            let request = request.header("idempotency-key", "key");
            let keyed = async || answer(request.try_clone().unwrap()).await.unwrap();
            // Until the store is there, it does not run.
            let known = |answer: &Answer| answer.body["code"] != "overloaded";
            let lost = eventually("an answer", keyed, known).await;
            assert_eq!(lost.problem(), (502, "function_lost", "maybe"));
            let meta = &lost.body["meta"];
            outcomes.push((meta["attempts"].clone(), meta["replayed"] == true));
        }
        let once = |is_replayed| (json!(1), is_replayed);
        assert_eq!(outcomes, [once(false), once(true), once(true)]);
        let runs = apps.iter().map(|app| app.lines("runs").len());
        assert_eq!(runs.sum::<usize>(), 1);
    }
}

/// Callers of `App.run` in `syd` by way of one instance, each of whose calls has an id of its own.
struct Callers<'a> {
    via: &'a Process,
    calls: Cell<u32>,
    is_over: Cell<bool>,
}

impl Callers<'_> {
    /// Calls until it is over; no call may fail.
    async fn call(&self) {
        while !self.is_over.get() {
            let id = self.calls.replace(self.calls.get() + 1).to_string();
            let answer = call(self.via, "syd", "App.run", json!([id])).await;
            assert_eq!(parts(&answer), ("ok".to_owned(), format!("\"{id}\"")));
        }
    }

    /// Waits for as many more calls; how many attempts after the first were made meanwhile.
    async fn second_attempts_in(&self, calls: u32) -> u64 {
        let before = failovers(self.via).await;
        let until = self.calls.get() + calls;
        let made = async || self.calls.get();
        eventually("more calls", made, |made| *made >= until).await;
        failovers(self.via).await - before
    }
}

/// The attempts in `syd` after the first one of a call.
async fn failovers(via: &Process) -> u64 {
    let failovers = "fly_rpc_failovers_total{target_region=\"syd\"}";
    via.metric(failovers).await.unwrap_or(0)
}

#[tokio::test]
async fn a_deploy_in_which_half_lack_a_function_fails_no_call() {
    const CALLERS: u32 = 16;
    const CALLS: u32 = 500;
    let (cluster, apps) = cluster(4).await;
    let iad = cluster.instance("iad-1");
    let offer = |app: &App, name: &str| app.offer(&json!({"functions": {name: {}}}));
    apps.iter().for_each(|app| offer(app, "App.run"));
    let chosen = async || {
        let path = "/regions/syd/explain?function=App.run";
        let got = iad.get(path).await.body;
        [0, 1, 2, 3].map(|number| got["candidates"][number]["chosen"] == true)
    };
    eventually("who has it", &chosen, |chosen| *chosen == [true; 4]).await;
    let callers = Callers {
        via: iad,
        calls: Cell::new(0),
        is_over: Cell::new(false),
    };
    let deploy = async {
        callers.second_attempts_in(CALLERS).await;
        // One instance after the other: who answers has the function, or says that it did not run it.
        for (number, now) in [[false, true, true, true], [false, false, true, true]]
            .into_iter()
            .enumerate()
        {
            offer(&apps[number], "Other.only");
            eventually("its end", &chosen, |chosen| *chosen == now).await;
        }
        // Those that were under way when the last of it became known.
        let before = callers.second_attempts_in(2 * CALLERS).await;
        let after = callers.second_attempts_in(CALLS).await;
        for app in &apps[..2] {
            offer(app, "App.run");
        }
        eventually("its return", &chosen, |chosen| *chosen == [true; 4]).await;
        callers.second_attempts_in(CALLERS).await;
        callers.is_over.set(true);
        (before, after)
    };
    let calling = join_all((0..CALLERS).map(|_| callers.call()));
    let ((before, after), _) = tokio::join!(deploy, calling);
    eprintln!("second attempts: {before} at the end of the change, then {after} of {CALLS} calls");
    assert!(after <= u64::from(CALLS / 100), "{after}");
    let mut runs = BTreeMap::<String, u32>::new();
    for (id, count) in apps.iter().flat_map(App::runs) {
        *runs.entry(id).or_default() += count;
    }
    assert_eq!(runs.len(), callers.calls.get() as usize);
    assert!(runs.values().all(|count| *count == 1));
}

#[tokio::test]
async fn an_app_that_is_down_costs_no_call_where_another_has_the_function() {
    let (cluster, mut apps) = cluster(2).await;
    let (iad, first) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    apps[0].kill().await;
    // Also where nobody knows it yet.
    for number in 0..40 {
        for (name, via) in [("there", iad), ("here", first)] {
            let id = format!("{name}-{number}");
            let answer = call(via, "syd", "App.run", json!([id])).await;
            assert_eq!(parts(&answer), ("ok".to_owned(), format!("\"{id}\"")));
        }
    }
    assert_eq!(apps[0].runs(), [].into());
    let runs = apps[1].runs();
    assert_eq!((runs.len(), runs.values().sum()), (80, 80), "{runs:?}");
}

/// An app that is away for a moment does not know what ran beside it, but its instance does.
#[tokio::test]
async fn a_key_stays_with_its_instance_while_the_app_is_down() {
    let (cluster, mut apps) = cluster(2).await;
    let iad = cluster.instance("iad-1");
    let keyed = async |key: &str, more: Value| {
        let mut call = json!({"module": "App", "function": "run", "args": [key]});
        call.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let request = iad.request("/rpc/syd", &call.to_string());
        answer(request.header("idempotency-key", key))
            .await
            .unwrap()
    };
    apps[0].kill().await;
    let refused = async || {
        let mut refused = BTreeSet::new();
        for number in 0..20 {
            let key = number.to_string();
            let answer = keyed(&key, json!({})).await;
            if answer.status != 200 {
                assert_eq!(answer.problem(), (503, "function_unavailable", "no"));
                assert_eq!(answer.instance(), "syd-1");
                refused.insert(key);
            }
        }
        refused
    };
    let once = refused().await;
    assert_eq!(refused().await, once);
    assert!((1..20).contains(&once.len()), "{once:?}");
    let moved = keyed("may-run-twice", json!({"idempotent": true})).await;
    assert_eq!(moved.instance(), "syd-2");
    apps[0].restart().await;
    until_state(cluster.instance("syd-1"), "up").await;
    assert_eq!(refused().await, [].into());
    let runs = apps.iter().flat_map(App::runs);
    assert!(runs.map(|(_, count)| count).all(|count| count == 1));
}

/// Has all apps offer `App.raw` as idempotent, and waits until `iad` knows.
async fn offer_idempotent(apps: &[App], iad: &Process) {
    let list = json!({"functions": {"App.raw": {"idempotent": true}, "App.run": {}}});
    apps.iter().for_each(|app| app.offer(&list));
    let known = async || {
        let path = "/regions/syd/explain?function=App.raw";
        iad.get(path).await.body["policy"]["idempotent"].clone()
    };
    eventually("the policy", known, |known| known == true).await;
}

#[tokio::test]
async fn who_calls_all_the_time_learns_of_a_change_by_the_connection() {
    // Answered calls take the place of twelve probes, so of those of two minutes.
    let builder = Cluster::builder().set("RPC_POLL_INTERVAL", "10s");
    let (cluster, apps) = cluster_with(builder, 1).await;
    let iad = cluster.instance("iad-1");
    let calling = async {
        loop {
            let ran = call(iad, "syd", "App.run", json!(["a"])).await;
            assert_eq!(parts(&ran).0, "ok");
        }
    };
    // More than an interval and its jitter.
    let probed = async || {
        let syd = iad.get("/regions/syd/explain?function=App.run").await.body;
        syd["candidates"][0]["last_probe_ms"].as_f64().unwrap()
    };
    let learning = async {
        eventually("calls in place of a probe", probed, |ago| *ago > 13_000.0).await;
        let learned = time::timeout(Duration::from_secs(30), offer_idempotent(&apps, iad));
        assert!(learned.await.is_ok(), "it learned nothing within 30 s");
    };
    tokio::select! {
        () = calling => {}
        () = learning => {}
    }
}

#[tokio::test]
async fn what_a_function_declares_holds_for_the_command_line_too() {
    let (cluster, apps) = cluster(2).await;
    let iad = cluster.instance("iad-1");
    offer_idempotent(&apps, iad).await;
    let url = format!("http://{}", iad.address);
    for (id, more, runs) in [("a", None, 2), ("b", Some("--idempotent=false"), 1)] {
        let command = ["call", "syd", "App.raw", id, "", "--url", &url];
        let command: Vec<_> = command.into_iter().chain(more).collect();
        let (code, _, stderr) = command::run(&command).await;
        assert_eq!(code, 1);
        assert!(stderr.contains("function_lost"), "{stderr}");
        let ran = apps.iter().filter_map(|app| app.runs().get(id).copied());
        assert_eq!(ran.sum::<u32>(), runs, "{more:?}");
    }
}

#[tokio::test]
async fn further_attempts_are_few_where_every_app_is_ill() {
    const CALLS: u32 = 200;
    let (cluster, apps) = cluster(2).await;
    let iad = cluster.instance("iad-1");
    // What may run twice, and is lost each time.
    offer_idempotent(&apps, iad).await;
    let (started, before) = (Instant::now(), failovers(iad).await);
    for number in 0..CALLS {
        let lost = call(iad, "syd", "App.raw", json!([number.to_string(), ""])).await;
        assert_eq!(lost.problem(), (502, "function_lost", "maybe"));
    }
    let further = failovers(iad).await - before;
    let ran: u32 = apps.iter().flat_map(|app| app.runs().into_values()).sum();
    assert_eq!(u64::from(ran), u64::from(CALLS) + further);
    // A fifth of the calls, and three for each second of the ten that count.
    let windows = started.elapsed().as_secs() / 10 + 1;
    assert!(further <= u64::from(CALLS / 5) + 30 * windows, "{further}");
}

#[tokio::test]
async fn a_replay_is_asked_for_within_the_declared_timeout() {
    let (cluster, apps) = cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    apps[0].offer(&json!({"functions": {"App.run": {"timeout_ms": 30_000}}}));
    let body = json!({"module": "App", "function": "run", "args": ["a"]}).to_string();
    let asked = async || {
        let request = iad.request("/rpc/syd", &body).header("rpc-route", "replay");
        let got = answer(request).await.unwrap();
        assert_eq!(got.problem(), (409, "replay", "no"));
        let header = got.headers["fly-replay"].clone();
        let state = header.split_once("state=").unwrap().1;
        let (_, left) = state.split(';').next().unwrap().split_once('~').unwrap();
        left.parse::<u64>().unwrap()
    };
    let left = eventually("the declared timeout", asked, |left| *left > 5_000).await;
    // Where it is replayed, what is left counts against the same timeout.
    let request = syd.request("/rpc/syd", &body).header(
        "fly-replay-src",
        format!("instance=iad-1;region=iad;t=1;state=one~{left}"),
    );
    let ran = answer(request).await.unwrap();
    assert_eq!(parts(&ran), ("ok".to_owned(), "\"a\"".to_owned()));
}
