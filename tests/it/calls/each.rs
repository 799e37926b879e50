//! `POST /each/{regions}`: one call on many instances, some of which fail, hang, or answer more than there is room for.

use std::collections::BTreeMap;

use reqwest::Response;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    asking::{LATE_MS, blocking, broken_cluster, run, two_regions},
    cluster::Cluster,
    patience::{eventually, in_time},
    process::{Answer, Process, answer},
};

/// The entries of an answer as region, instance, result and the problem's code and executed.
fn entries(answer: &Answer) -> Vec<Value> {
    assert_eq!(
        (answer.status, answer.content_type.as_str()),
        (200, "application/json"),
        "{answer:?}"
    );
    let entries = answer.body["results"].as_array().unwrap();
    entries.iter().map(brief).collect()
}

fn brief(entry: &Value) -> Value {
    let problem = &entry["problem"];
    let brief = match problem {
        Value::Null => entry["result"].clone(),
        _ => {
            assert_eq!(entry["result"], Value::Null, "{entry}");
            json!({"code": problem["code"], "executed": problem["executed"]})
        }
    };
    json!([entry["region"], entry["instance"], brief])
}

fn counts(answer: &Answer) -> (u64, u64) {
    let meta = &answer.body["meta"];
    (
        meta["asked"].as_u64().unwrap(),
        meta["succeeded"].as_u64().unwrap(),
    )
}

async fn each(via: &Process, regions: &str, call: &Value) -> Answer {
    via.post(&format!("/each/{regions}"), &call.to_string())
        .await
}

fn my_region() -> Value {
    json!({"module": "Fly.RPC", "function": "my_region"})
}

async fn three() -> Cluster {
    Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .start()
        .await
}

#[tokio::test]
async fn every_instance_that_is_known_has_an_entry() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    let everybody = each(iad, "all", &my_region()).await;
    let id = everybody.headers["x-request-id"].clone();
    let elapsed = everybody.body["meta"]["elapsed_ms"].clone();
    assert!(elapsed.as_f64().unwrap() > 0.0);
    assert_eq!(
        everybody.body,
        json!({
            "results": [
                {"region": "iad", "instance": "iad-1", "result": "iad", "problem": null},
                {"region": "syd", "instance": "syd-1", "result": "syd", "problem": null},
                {"region": "syd", "instance": "syd-2", "result": "syd", "problem": null},
            ],
            "meta": {"asked": 3, "succeeded": 3, "elapsed_ms": elapsed, "request_id": id},
        })
    );
    // As many as may be named; one that is named twice counts once.
    let syd = each(iad, &["syd"; 32].join(","), &my_region()).await;
    assert_eq!(
        entries(&syd),
        [
            json!(["syd", "syd-1", "syd"]),
            json!(["syd", "syd-2", "syd"])
        ]
    );
    // From an instance that is itself among them, by an encoded comma, and a region where there is nobody.
    let some = each(cluster.instance("syd-1"), "primary%2Cmars", &my_region()).await;
    let nobody = json!(["mars", null, {"code": "region_unknown", "executed": "no"}]);
    assert_eq!(entries(&some), [json!(["iad", "iad-1", "iad"]), nobody]);
    assert_eq!(counts(&some), (2, 1));
    let problem = &some.body["results"][1]["problem"];
    assert_eq!(
        (&problem["status"], &problem["meta"]["attempts"]),
        (&json!(404), &json!(0))
    );
}

#[tokio::test]
async fn one_of_each_region_is_asked_as_a_call_for_the_region_is() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    for _ in 0..8 {
        let mut call = run("one", &json!({"per": "region"}));
        call["idempotent"] = true.into();
        let answer = each(iad, "all", &call).await;
        assert_eq!(counts(&answer), (2, 2));
    }
    assert_eq!(cluster.runs()["one"], 16);
    cluster.instance("syd-2").kill();
    for _ in 0..8 {
        let call = run("two", &json!({"per": "region", "idempotent": true}));
        assert_eq!(counts(&each(iad, "syd", &call).await), (1, 1));
    }
}

#[tokio::test]
async fn a_partial_failure_is_data() {
    let mut cluster = three().await;
    cluster.add_without_functions("syd").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let iad = cluster.instance("iad-1");
    cluster.instance("syd-1").kill();
    cluster
        .until_ready("iad-1", &["iad-1", "syd-2", "syd-3"])
        .await;
    let answer = each(iad, "all", &run("some", &json!({}))).await;
    assert_eq!(
        entries(&answer),
        [
            json!(["iad", "iad-1", "some"]),
            json!(["syd", "syd-1", {"code": "peer_unreachable", "executed": "no"}]),
            json!(["syd", "syd-2", "some"]),
            json!(["syd", "syd-3", {"code": "function_unknown", "executed": "no"}]),
        ]
    );
    assert_eq!(counts(&answer), (4, 2));
    assert_eq!(cluster.runs()["some"], 2);
    let failed = json!({"module": "Test", "function": "fail", "args": ["all"]});
    let failed = each(iad, "iad", &failed).await;
    let entry = &failed.body["results"][0]["problem"];
    assert_eq!(
        (&entry["code"], &entry["executed"], &entry["error"]["kind"]),
        (&json!("function_failed"), &json!("yes"), &json!("Refusal"))
    );
}

/// The next line of a stream.
async fn line(response: &mut Response, rest: &mut String) -> Option<Value> {
    loop {
        if let Some((line, after)) = rest.split_once('\n') {
            let line = serde_json::from_str(line).unwrap();
            *rest = after.to_owned();
            return Some(line);
        }
        let chunk = in_time("a line", response.chunk()).await.unwrap()?;
        rest.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test]
async fn lines_come_as_soon_as_they_are_there() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    // The one that is held up is an instance that does nothing any more.
    iad.rpc("syd", &run("warm", &json!({"instance": "syd-2"})))
        .await;
    cluster.instance("syd-2").pause().await;
    let call = run("lines", &json!({"timeout_ms": 2 * LATE_MS}));
    let request = iad.request("/each/all", &call.to_string());
    let accepted = request.header("accept", "text/plain;q=0.5, application/x-ndjson;q=0.9");
    let mut response = accepted.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let id = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let mut rest = String::new();
    let mut lines = Vec::new();
    while let Some(line) = line(&mut response, &mut rest).await {
        lines.push(line);
    }
    let last = lines.pop().unwrap();
    assert_eq!(
        (
            &last["meta"]["asked"],
            &last["meta"]["succeeded"],
            &last["meta"]["request_id"]
        ),
        (&json!(3), &json!(2), &json!(id))
    );
    let late = lines.pop().unwrap();
    assert_eq!(
        brief(&late),
        json!(["syd", "syd-2", {"code": "deadline_exceeded", "executed": "maybe"}])
    );
    let mut early: Vec<_> = lines.iter().map(brief).collect();
    early.sort_by_key(ToString::to_string);
    assert_eq!(
        early,
        [
            json!(["iad", "iad-1", "lines"]),
            json!(["syd", "syd-1", "lines"])
        ]
    );
    cluster.instance("syd-2").resume();
}

#[tokio::test]
async fn a_client_that_refuses_lines_gets_none() {
    let cluster = three().await;
    let call = my_region().to_string();
    for accept in [
        "application/json, application/x-ndjson;q=0",
        "application/x-ndjson; q=0.0",
    ] {
        let request = cluster.instance("iad-1").request("/each/all", &call);
        let whole = answer(request.header("accept", accept)).await.unwrap();
        assert_eq!(counts(&whole), (3, 3), "{accept}");
        assert_eq!(whole.content_type, "application/json", "{accept}");
    }
}

#[tokio::test]
async fn one_that_is_held_delays_no_other_line() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    // The first one that is asked holds, and the others' lines come all the same.
    let holds = json!({"module": "Test", "function": "block_in", "args": ["iad", "held"], "timeout_ms": 60_000});
    let request = iad.request("/each/all", &holds.to_string());
    let lines = request.header("accept", "application/x-ndjson");
    let mut response = lines.send().await.unwrap();
    let mut rest = String::new();
    for _ in 0..2 {
        let passed = line(&mut response, &mut rest).await.unwrap();
        assert_eq!(
            (&passed["region"], &passed["result"]),
            (&json!("syd"), &json!("passed"))
        );
    }
    cluster.until_marked("held.started").await;
    cluster.release("held");
    let released = line(&mut response, &mut rest).await.unwrap();
    assert_eq!(brief(&released), json!(["iad", "iad-1", "released"]));
    let meta = line(&mut response, &mut rest).await.unwrap();
    assert_eq!(meta["meta"]["succeeded"], 3);
    assert_eq!(line(&mut response, &mut rest).await, None);
}

#[tokio::test]
async fn a_client_that_goes_away_is_waited_for_no_more() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    for (name, accept) in [
        ("whole", "application/json"),
        ("lines", "application/x-ndjson"),
    ] {
        let call = blocking(name, &json!({}));
        let request = iad.request("/each/syd", &call.to_string());
        let request = request.header("accept", accept).send();
        let client = tokio::spawn(async move {
            let mut response = request.await.unwrap();
            while response.chunk().await.unwrap().is_some() {}
        });
        let starts = async || cluster.starts(name).len();
        eventually("both started", starts, |starts| *starts == 2).await;
        assert_eq!(iad.in_flight().await, 1);
        client.abort();
        let over = async || iad.in_flight().await;
        eventually("the end of the fan-out", over, |count| *count == 0).await;
        let is_logged = async || iad.log().contains("call abandoned");
        eventually("a line in the log", is_logged, |it| *it).await;
    }
    assert_eq!(iad.log().matches("call abandoned").count(), 2);
    // What ran, runs on.
    assert!(!cluster.is_marked("lines.finished"));
    for name in ["whole", "lines"] {
        cluster.release(name);
        cluster.until_marked(&format!("{name}.finished")).await;
    }
}

/// A fan-out of `call` to all under `key`, whose client does not wait for it.
fn begin(via: &Process, call: &Value, key: Option<&str>) -> JoinHandle<reqwest::Result<Answer>> {
    let mut request = via.request("/each/all", &call.to_string());
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    tokio::spawn(answer(request))
}

#[tokio::test]
async fn what_waits_for_its_turn_never_starts_once_its_client_went_away() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    let few =
        |id: &str| json!({"module": "Test", "function": "few", "args": [id], "timeout_ms": 60_000});
    // Two of them run at once on each instance.
    let running = [begin(iad, &few("a"), None), begin(iad, &few("b"), None)];
    let runs = async || cluster.runs();
    let both = BTreeMap::from(["a", "b"].map(|id| (id.to_owned(), 3)));
    eventually("both run", runs, |runs| *runs == both).await;
    let running_here = async |wanted: u64| {
        for instance in &cluster.instances {
            let count = async || instance.running().await;
            eventually("calls", count, |count| *count == wanted).await;
        }
    };
    running_here(2).await;
    for key in [None, Some("key")] {
        let waiting = begin(iad, &few("c"), key);
        running_here(3).await;
        waiting.abort();
        running_here(2).await;
    }
    cluster.release("few");
    for ended in running {
        assert_eq!(counts(&ended.await.unwrap().unwrap()), (3, 3));
    }
    assert_eq!(cluster.runs(), both);
    // What never started left no trace under its key.
    let again = begin(iad, &few("c"), Some("key")).await.unwrap().unwrap();
    assert_eq!(counts(&again), (3, 3));
    assert_eq!(cluster.runs()["c"], 3);
}

#[tokio::test]
async fn what_was_sent_and_not_read_yet_never_starts_once_its_client_went_away() {
    let cluster = three().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let all = |id: &str| begin(iad, &run(id, &json!({"timeout_ms": 60_000})), None);
    assert_eq!(counts(&all("warm").await.unwrap().unwrap()), (3, 3));
    syd.pause().await;
    let unread = all("unread");
    // Those that read it have run it.
    let runs = async || cluster.runs().get("unread").copied();
    eventually("two runs", runs, |runs| *runs == Some(2)).await;
    unread.abort();
    let over = async || iad.in_flight().await;
    eventually("the end of the fan-out", over, |count| *count == 0).await;
    syd.resume();
    assert_eq!(counts(&all("again").await.unwrap().unwrap()), (3, 3));
    let runs = ["warm", "unread", "again"].map(|id| cluster.runs()[id]);
    assert_eq!(runs, [3, 2, 3]);
}

/// Four instances in `syd`, and one in `iad`, with room for two results of 6 MiB each.
async fn four_in_little_memory() -> Cluster {
    Cluster::builder()
        .region("iad", 1)
        .region("syd", 4)
        .functions()
        .set("RPC_MAX_MEMORY", "16MiB")
        .start()
        .await
}

#[tokio::test]
async fn results_that_find_no_room_become_problems_and_the_room_comes_back() {
    let cluster = four_in_little_memory().await;
    let iad = cluster.instance("iad-1");
    let large = json!({"module": "Test", "function": "large", "args": ["large", 6 << 20], "timeout_ms": 60_000});
    let answer = each(iad, "syd", &large).await;
    let (asked, succeeded) = counts(&answer);
    assert_eq!(asked, 4);
    // Two find room in seven eighths of 16 MiB, and what another instance sends may be refused there too.
    assert!((1..=2).contains(&succeeded), "{succeeded}");
    let results = answer.body["results"].as_array().unwrap();
    for entry in results {
        match &entry["problem"] {
            Value::Null => assert_eq!(entry["result"].as_str().unwrap().len(), 6 << 20),
            problem => assert_eq!(
                (
                    &problem["executed"],
                    &problem["error"]["kind"],
                    &problem["meta"]["consistency"]
                ),
                (&json!("yes"), &json!("ResultDropped"), &json!("large"))
            ),
        }
    }
    assert_eq!(cluster.runs()["large"], 4);
    let again = async || counts(&each(iad, "all", &my_region()).await);
    assert_eq!(again().await, (5, 5));
    let one = json!({"module": "Test", "function": "large", "args": ["one", 6 << 20], "timeout_ms": 60_000});
    assert_eq!(counts(&each(iad, "iad", &one).await), (1, 1));
}

/// An entry of a fan-out of `Test.fail_large`, with an error of this kind.
fn failed_entry(answer: &Answer, instance: &str, error: &Value, entry: &Value) -> Value {
    let elapsed = &entry["problem"]["meta"]["elapsed_ms"];
    assert!(elapsed.is_number(), "{instance}");
    json!({
        "region": "syd", "instance": instance, "result": null,
        "problem": {
            "type": "/docs/problems#function_failed", "title": "Function returned an error", "status": 424,
            "detail": format!("the function returned an error of kind {}", error["kind"]),
            "code": "function_failed", "executed": "yes",
            "meta": {
                "region": "syd", "instance": instance, "attempts": 1, "elapsed_ms": elapsed,
                "consistency": "failed", "request_id": answer.headers["x-request-id"],
            },
            "error": error,
        },
    })
}

#[tokio::test]
async fn errors_that_find_no_room_are_dropped_and_the_room_comes_back() {
    const SIZE: usize = 6 << 20;
    let cluster = four_in_little_memory().await;
    let iad = cluster.instance("iad-1");
    let fail = json!({"module": "Test", "function": "fail_large", "args": ["x", SIZE], "timeout_ms": 60_000});
    let answer = each(iad, "syd", &fail).await;
    assert_eq!(counts(&answer), (4, 0));
    let whole =
        json!({"kind": "Large", "message": "as large as asked for", "data": "x".repeat(SIZE)});
    let dropped = json!({
        "kind": "ErrorDropped", "message": "the error found no room in RPC_MAX_MEMORY", "data": null,
    });
    let entries = answer.body["results"].as_array().unwrap();
    assert_eq!(entries.len(), 4);
    let mut count = 0;
    for (number, entry) in entries.iter().enumerate() {
        let instance = format!("syd-{}", number + 1);
        let is_whole = entry["problem"]["error"]["kind"] == "Large";
        count += usize::from(is_whole);
        let error = if is_whole { &whole } else { &dropped };
        let expected = failed_entry(&answer, &instance, error, entry);
        assert!(*entry == expected, "{instance}");
    }
    // Two find room in seven eighths of 16 MiB.
    assert!((1..=2).contains(&count), "{count} of 4 are whole");
    let again = async || counts(&each(iad, "all", &my_region()).await);
    assert_eq!(again().await, (5, 5));
    let one = each(iad, "iad", &fail).await;
    assert_eq!(one.body["results"][0]["problem"]["error"], whole);
}

#[tokio::test]
async fn arguments_that_find_no_room_yet_wait_for_it() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 6)
        .set("RPC_MAX_MEMORY", "4MiB")
        .start()
        .await;
    // Twice 700 kB for each that is sent to: one at a time beside the body, in seven eighths of 4 MiB.
    let text = "x".repeat(700_000);
    let length =
        json!({"module": "String", "function": "length", "args": [text], "timeout_ms": 60_000});
    let answer = each(cluster.instance("iad-1"), "all", &length).await;
    assert_eq!(counts(&answer), (7, 7), "{answer:?}");
    for entry in answer.body["results"].as_array().unwrap() {
        assert_eq!(entry["result"], 700_000);
    }
}

/// Nothing runs that would return so much, or fail with it, that it finds no room.
async fn assert_runs_only_with_room(function: &str, args: &Value) {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 6)
        .functions()
        .set("RPC_MAX_MEMORY", "4MiB")
        .start()
        .await;
    let call = json!({"module": "Test", "function": function, "args": args, "timeout_ms": 60_000});
    let answer = each(cluster.instance("iad-1"), "syd", &call).await;
    let entries = answer.body["results"].as_array().unwrap();
    assert_eq!(entries.len(), 6);
    let (mut returned, mut refused) = (0, 0);
    for entry in entries {
        let problem = &entry["problem"];
        if entry["result"] == args[0] || problem["error"]["data"] == args[0] {
            returned += 1;
            continue;
        }
        assert_eq!(
            (&problem["executed"], &problem["error"]),
            (&json!("no"), &Value::Null)
        );
        match problem["code"].as_str() {
            Some("overloaded") => refused += 1,
            // On a busy machine, a connection may come too late.
            code => assert_eq!(code, Some("peer_unreachable")),
        }
    }
    assert!(returned > 0 && refused > 0, "{returned} and {refused}");
}

/// The body and the arguments of one take 2.8 MB in a budget of 4 MiB, and each result that is there 0.7.
const LARGE: usize = 700_000;

#[tokio::test]
async fn nothing_runs_whose_result_would_find_no_room() {
    assert_runs_only_with_room("echo", &json!(["x".repeat(LARGE)])).await;
}

#[tokio::test]
async fn nothing_runs_whose_error_would_find_no_room() {
    assert_runs_only_with_room("fail_large", &json!(["x".repeat(LARGE), 1])).await;
}

#[tokio::test]
async fn a_repeat_with_the_same_key_runs_nowhere_twice() {
    let cluster = three().await;
    let iad = cluster.instance("iad-1");
    let keyed = async |per: &str, id: &str| {
        let call = run(id, &json!({"per": per})).to_string();
        let request = iad.request("/each/all", &call);
        answer(request.header("idempotency-key", id)).await.unwrap()
    };
    for (per, runs) in [("instance", 3), ("region", 2)] {
        for is_repeat in [false, true] {
            let answer = keyed(per, per).await;
            assert_eq!(counts(&answer), (runs, runs));
            assert_eq!(u64::from(cluster.runs()[per]), runs);
            for entry in answer.body["results"].as_array().unwrap() {
                assert_eq!(entry.get("replayed").is_some(), is_repeat, "{entry}");
            }
        }
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_fan_out() {
    let mut cluster = three().await;
    let iad = cluster.instance("iad-1");
    let call = blocking("drained", &json!({})).to_string();
    let request = iad.request("/each/syd", &call);
    let fan_out = tokio::spawn(async { answer(request).await.unwrap() });
    cluster.until_started("drained").await;
    iad.terminate();
    let refuses = async || iad.rpc("syd", &run("new", &json!({}))).await.status;
    eventually("refusal", refuses, |status| *status == 503).await;
    let refused = each(iad, "all", &run("new", &json!({}))).await;
    assert_eq!(refused.problem(), (503, "draining", "no"));
    cluster.release("drained");
    assert_eq!(counts(&fan_out.await.unwrap()), (2, 2));
    assert!(cluster.instance_mut("iad-1").ended().await.success());
}

#[tokio::test]
async fn what_is_no_fan_out_is_refused() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let no_any =
        "each item of a fan-out must be a region or \"primary\"; \"any\" does not say which region";
    let no_region = "a region must be \"primary\", \"any\", or 1 to 32 characters of [a-z0-9-], not starting with '-', and not \"all\" \
                     or \"each\" (to run on every instance, POST /each/all)";
    let many: Vec<_> = (0..33).map(|number| format!("r{number}")).collect();
    for (regions, call, code, detail) in [
        ("any", my_region(), "invalid_region", no_any),
        ("syd,any", my_region(), "invalid_region", no_any),
        ("syd,all", my_region(), "invalid_region", no_region),
        ("syd,", my_region(), "invalid_region", no_region),
        (
            &many.join(","),
            my_region(),
            "invalid_region",
            "a fan-out must be in one to 32 regions, or in all",
        ),
        (
            "all",
            json!({"module": "M", "function": "f", "per": "machine"}),
            "invalid_request",
            "member \"per\" must be \"instance\" or \"region\"",
        ),
        (
            "all",
            json!({"module": "M", "function": "f", "instance": "iad-1"}),
            "invalid_request",
            "member \"instance\" is for a call on one instance; POST /rpc/{region} takes it",
        ),
    ] {
        let refused = each(iad, regions, &call).await;
        assert_eq!(refused.problem(), (400, code, "no"), "{regions}");
        assert_eq!(refused.detail(), detail);
    }
    assert_eq!(iad.get("/each/all").await.problem().0, 405);
    let looped = iad.request("/each/all", &my_region().to_string());
    let looped = answer(looped.header("rpc-forwarded", "1")).await.unwrap();
    assert_eq!(looped.problem(), (508, "loop_detected", "no"));
}

#[tokio::test]
async fn a_client_that_is_limited_names_its_regions() {
    const DESK: &str = "desk-0123456789abcdef0123456789abcdef";
    let mut cluster = two_regions().start().await;
    let clients = format!("desk:{DESK}:regions=iad:functions=Fly.RPC.*");
    cluster.add_with("iad", "RPC_CLIENT_TOKENS", &clients).await;
    let iad = cluster.instance("iad-2");
    let asked = async |regions: &str, call: &Value| {
        let request = iad.request(&format!("/each/{regions}"), &call.to_string());
        answer(request.bearer_auth(DESK)).await.unwrap()
    };
    assert_eq!(asked("iad", &my_region()).await.status, 200);
    for (regions, call, detail) in [
        ("all", my_region(), "in all regions"),
        ("iad,syd", my_region(), "in region \"syd\""),
        (
            "iad",
            json!({"module": "String", "function": "upcase"}),
            "String.upcase",
        ),
    ] {
        let refused = asked(regions, &call).await;
        assert_eq!(refused.problem(), (403, "forbidden", "no"), "{regions}");
        assert_eq!(
            refused.detail(),
            format!("client \"desk\" may not call {detail}")
        );
    }
}

#[tokio::test]
async fn a_lost_connection_is_reported_in_its_entry() {
    use crate::support::fault::{Fault, Scope};
    let cluster = broken_cluster(2).await;
    let iad = cluster.instance("iad-1");
    let fault = Fault::CutAnswerAfter(0);
    cluster.proxy("syd-1").set(fault, Scope::Lines).await;
    let answer = each(iad, "syd", &run("lost", &json!({"idempotent": true}))).await;
    assert_eq!(
        entries(&answer),
        [
            json!(["syd", "syd-1", {"code": "peer_lost", "executed": "maybe"}]),
            json!(["syd", "syd-2", "lost"]),
        ]
    );
    // Asked once each, and the one that was lost may have run.
    assert!((1..=2).contains(&cluster.runs()["lost"]));
}
