//! The stream of events: what it says, to whom, to how many, and how it ends.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    cluster::Cluster,
    patience::{eventually, in_time},
    process::{Answer, Environment, Process, answer},
};

/// One event.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: Option<String>,
    name: String,
    data: Value,
}

/// A stream that is being read.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn of(instance: &Process) -> Self {
        Self::with(instance, &[]).await
    }

    async fn with(instance: &Process, headers: &[(&'static str, &str)]) -> Self {
        let response = ask(instance, headers).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            text: String::new(),
        }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        in_time("an event", async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let event = parsed(event);
                    self.text = rest.to_owned();
                    return Some(event);
                }
                let chunk = self.response.chunk().await.unwrap()?;
                self.text.push_str(str::from_utf8(&chunk).unwrap());
            }
        })
        .await
    }

    /// The next one of this name.
    async fn next_of(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.unwrap();
            if event.name == name {
                return event;
            }
        }
    }
}

fn ask(instance: &Process, headers: &[(&'static str, &str)]) -> reqwest::RequestBuilder {
    let client = Client::builder().no_proxy().build().unwrap();
    let request = client.get(format!("http://{}/events", instance.address));
    let add = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| {
        request.header(*name, *value)
    };
    headers.iter().fold(request, add)
}

/// What an instance answers that starts no stream.
async fn refused(instance: &Process, headers: &[(&'static str, &str)]) -> Answer {
    // A stream would have no end.
    in_time("a refusal", answer(ask(instance, headers)))
        .await
        .unwrap()
}

fn parsed(text: &str) -> Event {
    let fields = text.lines().map(|line| line.split_once(": ").unwrap());
    let fields: BTreeMap<_, _> = fields.collect();
    Event {
        id: fields.get("id").map(|id| (*id).to_owned()),
        name: fields["event"].to_owned(),
        data: serde_json::from_str(fields["data"]).unwrap(),
    }
}

#[tokio::test]
async fn an_instance_that_dies_is_an_event_and_one_that_comes_back_too() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .start()
        .await;
    let mut events = Events::of(cluster.instance("iad-1")).await;
    let address = cluster.instance("syd-2").address;
    cluster.instance("syd-2").kill();
    cluster.instance_mut("syd-2").ended().await;
    let mut change = async |state: &str, reason: &str| {
        loop {
            let mut change = events.next_of("peer").await.data;
            let got = change["reason"].take();
            // On a busy machine, a probe of another one, or of this one before, may be late.
            if change["instance"] == "syd-2" && got.as_str().unwrap().contains(reason) {
                let expected = json!({"region": "syd", "instance": "syd-2", "address": address, "state": state, "reason": null});
                assert_eq!(change, expected);
                return;
            }
        }
    };
    change("suspect", "Connection refused").await;
    cluster.restart("syd-2").await;
    change("ready", "it answered the probe").await;
}

#[tokio::test]
async fn a_call_is_an_event_with_its_path_and_counted() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .functions()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let mut events = Events::of(iad).await;
    let first = events.next().await.unwrap();
    let nothing = json!({"in_flight": 0, "running": 0, "queued": 0, "regions": []});
    assert_eq!(
        (first.id, first.name.as_str(), first.data),
        (None, "counts", nothing)
    );

    let secret = json!(["a secret"]);
    let mut got = Vec::new();
    for (region, function, args) in [
        ("syd", "String.upcase", &secret),
        ("iad", "Kernel.raise", &secret),
        ("mars", "String.upcase", &secret),
    ] {
        let answered = iad.call(region, function, args.clone()).await;
        let event = events.next_of("call").await;
        let meta = &answered.body["meta"];
        let problem = |member: &str, none: &str| match answered.status {
            200 => serde_json::from_str(none).unwrap(),
            _ => answered.body[member].clone(),
        };
        let expected = json!({
            "request_id": meta["request_id"], "function": function, "region": region, "instance": meta["instance"],
            "attempts": meta["attempts"], "executed": problem("executed", "\"yes\""), "code": problem("code", "null"),
            "elapsed_ms": meta["elapsed_ms"],
        });
        assert_eq!(event.data, expected);
        got.push((event.data["code"].clone(), event.id.unwrap()));
    }
    let codes: Vec<_> = got.iter().map(|(code, _)| code.clone()).collect();
    assert_eq!(
        codes,
        [
            json!(null),
            json!("function_failed"),
            json!("region_unknown")
        ]
    );
    let (boot, _) = got[0].1.split_once('.').unwrap();
    let ids: Vec<_> = got.iter().map(|(_, id)| id.clone()).collect();
    assert_eq!(ids, [1, 2, 3].map(|number| format!("{boot}.{number}")));

    // Counted once, over all the events with counts that have come.
    let mut sums = BTreeMap::new();
    let mut failures = Vec::new();
    while sums.values().sum::<u64>() < 3 {
        let counts = events.next_of("counts").await.data;
        for region in counts["regions"].as_array().unwrap() {
            *sums
                .entry(region["region"].clone().to_string())
                .or_default() += region["calls"].as_u64().unwrap();
            assert!(region["p50_ms"].is_number() && region["p99_ms"].is_number());
            failures.extend(region["failures"].as_array().unwrap().clone());
        }
    }
    let one = |name: &str| (name.to_owned(), 1);
    assert_eq!(
        sums,
        BTreeMap::from([one("null"), one("\"iad\""), one("\"syd\"")])
    );
    let failure =
        |code: &str, executed: &str| json!({"code": code, "executed": executed, "calls": 1});
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures.contains(&failure("function_failed", "yes")));
    assert!(failures.contains(&failure("region_unknown", "no")));
}

#[tokio::test]
async fn a_region_that_a_client_invented_is_counted_under_none_whatever_the_problem_is() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let mut events = Events::of(iad).await;
    let nothing = json!({"in_flight": 0, "running": 0, "queued": 0, "regions": []});
    assert_eq!(events.next().await.unwrap().data, nothing);
    let cast = async |region: &str, call: &Value| {
        let request = iad.request(&format!("/rpc/{region}"), &call.to_string());
        answer(request.header("prefer", "respond-async"))
            .await
            .unwrap()
    };
    let held = json!({"module": "Test", "function": "block", "args": ["x"], "timeout_ms": 60_000});
    assert_eq!(cast("iad", &held).await.status, 202);
    // No more calls may run for which nobody waits, whichever region this one names.
    let refused = cast("mars", &held).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    let meta = &refused.body["meta"];
    let expected = json!({
        "request_id": meta["request_id"], "function": "Test.block", "region": "mars", "instance": null,
        "attempts": 0, "executed": "no", "code": "overloaded", "elapsed_ms": meta["elapsed_ms"],
    });
    assert_eq!(events.next_of("call").await.data, expected);
    let mut counts = Value::Null;
    while counts["regions"].as_array().is_none_or(Vec::is_empty) {
        counts = events.next_of("counts").await.data;
    }
    let region = &counts["regions"][0];
    let failure = json!({"code": "overloaded", "executed": "no", "calls": 1});
    let expected = json!({
        "in_flight": counts["in_flight"], "running": counts["running"], "queued": 0,
        "regions": [{
            "region": null, "calls": 1, "failures": [failure], "p50_ms": region["p50_ms"], "p99_ms": region["p99_ms"],
        }],
    });
    assert_eq!(counts, expected);
    cluster.release("x");
}

#[tokio::test]
async fn an_attempt_that_fails_is_an_event_before_its_call() {
    let cluster = Cluster::builder()
        .region("iad", 2)
        .region("syd", 1)
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let mut events = Events::of(iad).await;
    let blocking = syd.call("syd", "Test.block", json!(["x"]));
    let refused = async {
        cluster.until_started("x").await;
        let refused = iad.call("syd", "Kernel.+", json!([1, 2])).await;
        cluster.release("x");
        refused
    };
    let (_, refused) = tokio::join!(blocking, refused);
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    let id = &refused.body["meta"]["request_id"];
    let attempt = events.next_of("attempt").await.data;
    let expected = json!({
        "request_id": id, "region": "syd", "instance": "syd-1", "code": "overloaded", "executed": "no",
    });
    assert_eq!(attempt, expected);
    assert_eq!(&events.next_of("call").await.data["request_id"], id);
}

const ALL: &str = "all-0123456789abcdef0123456789abcdef";
const FEW: &str = "few-0123456789abcdef0123456789abcdef";

async fn with_clients() -> Process {
    let clients = format!("all:{ALL},few:{FEW}:regions=iad:functions=String.*");
    Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_CLIENT_TOKENS", clients),
    ]))
    .await
}

#[tokio::test]
async fn a_client_sees_the_calls_that_it_may_make() {
    let instance = with_clients().await;
    for headers in [&[][..], &[("authorization", "Bearer of-nobody")]] {
        let refused = refused(&instance, headers).await;
        assert_eq!(refused.problem(), (401, "unauthenticated", "no"));
    }
    let bearer = |token: &str| format!("Bearer {token}");
    let mut all = Events::with(&instance, &[("authorization", &bearer(ALL))]).await;
    let mut few = Events::with(&instance, &[("authorization", &bearer(FEW))]).await;
    for (region, function) in [
        ("iad", "length"),
        ("mars", "length"),
        ("iad", "sleep"),
        ("iad", "upcase"),
    ] {
        let module = if function == "sleep" {
            "Process"
        } else {
            "String"
        };
        let args = if function == "sleep" {
            json!([0])
        } else {
            json!(["fly"])
        };
        let body = json!({"module": module, "function": function, "args": args}).to_string();
        let request = instance.request(&format!("/rpc/{region}"), &body);
        answer(request.bearer_auth(ALL)).await.unwrap();
    }
    let mut seen = Vec::new();
    for (events, count) in [(&mut all, 4), (&mut few, 2)] {
        let mut functions = Vec::new();
        for _ in 0..count {
            let data = events.next_of("call").await.data;
            functions.push(data["function"].as_str().unwrap().to_owned());
        }
        seen.push(functions.join(" "));
    }
    let expected = [
        "String.length String.length Process.sleep String.upcase",
        "String.length String.upcase",
    ];
    assert_eq!(seen, expected);
    // The one for a region that nobody has seen is counted under none.
    for (events, regions) in [
        (&mut all, &[json!(null), json!("iad")][..]),
        (&mut few, &[json!("iad")]),
    ] {
        let counts = events.next_of("counts").await.data;
        let counted = counts["regions"].as_array().unwrap().iter();
        let counted: Vec<_> = counted.map(|of| of["region"].clone()).collect();
        assert_eq!(counted, regions);
    }
}

#[tokio::test]
async fn there_are_so_many_streams_and_one_that_ends_makes_room() {
    let instance = local().await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(Events::of(&instance).await);
    }
    let refused = refused(&instance, &[]).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert_eq!(
        refused.detail(),
        "as many clients listen as this instance has streams for, or this client has 4 of them"
    );
    assert_eq!(refused.headers["retry-after"], "1");
    let answered = instance.call("local", "Kernel.+", json!([1, 2])).await;
    assert_eq!(answered.result(), 3);
    streams.pop();
    let status = async || ask(&instance, &[]).send().await.unwrap().status();
    eventually("room", status, |status| *status == StatusCode::OK).await;
    for stream in &mut streams {
        stream.next_of("call").await;
    }
}

#[tokio::test]
async fn a_client_leaves_streams_for_the_others() {
    let instance = with_clients().await;
    let [all, few] = [ALL, FEW].map(|token| format!("Bearer {token}"));
    let few = &[("authorization", &*few)];
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(Events::with(&instance, few).await);
    }
    let refused = refused(&instance, few).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert_eq!(
        refused.detail(),
        "as many clients listen as this instance has streams for, or this client has 4 of them"
    );
    Events::with(&instance, &[("authorization", &*all)]).await;
    streams.pop();
    let status = async || ask(&instance, few).send().await.unwrap().status();
    eventually("room", status, |status| *status == StatusCode::OK).await;
}

async fn local() -> Process {
    Process::start(&Environment::from([(
        "RPC_LISTEN",
        "127.0.0.1:0".to_owned(),
    )]))
    .await
}

#[tokio::test]
async fn of_many_calls_all_are_counted_and_some_are_shown() {
    let instance = local().await;
    let mut events = Events::of(&instance).await;
    events.next_of("counts").await;
    let started = Instant::now();
    let calls = (0..200).map(|_| instance.call("local", "Kernel.+", json!([1, 2])));
    join_all(calls).await;
    let took = started.elapsed().as_secs();
    let (mut counted, mut shown, mut seconds) = (0, 0, 0);
    while counted < 200 || seconds < 2 {
        let event = events.next().await.unwrap();
        match event.name.as_str() {
            "call" => shown += 1,
            "counts" => {
                let regions = event.data["regions"].as_array().unwrap();
                counted += regions
                    .first()
                    .map_or(0, |region| region["calls"].as_u64().unwrap());
                seconds += 1;
            }
            name => panic!("{name}"),
        }
    }
    assert_eq!(counted, 200);
    // The first twenty of each second.
    assert!((20..=20 * (took + 2)).contains(&shown), "{shown}");
}

#[tokio::test]
async fn who_comes_back_learns_how_many_events_were_missed() {
    let instance = local().await;
    let mut stays = Events::of(&instance).await;
    let mut goes = Events::of(&instance).await;
    let call = async || instance.call("local", "Kernel.+", json!([1, 2])).await;
    call().await;
    let last = goes.next_of("call").await.id.unwrap();
    drop(goes);
    call().await;
    call().await;
    for _ in 0..3 {
        stays.next_of("call").await;
    }
    let of_another_run = "00000000.7".to_owned();
    for (last, missed) in [(&last, json!(2)), (&of_another_run, json!(null))] {
        let mut again = Events::with(&instance, &[("last-event-id", last)]).await;
        let first = again.next().await.unwrap();
        assert_eq!((first.name.as_str(), first.id), ("lagged", None));
        assert_eq!(first.data, json!({"missed": missed}));
    }
    let last = {
        call().await;
        stays.next_of("call").await.id.unwrap()
    };
    let mut again = Events::with(&instance, &[("last-event-id", &last)]).await;
    assert_eq!(again.next().await.unwrap().name, "counts");
    // While nobody listens, nobody counts.
    drop((stays, again));
    let first = async || {
        let mut alone = Events::with(&instance, &[("last-event-id", &last)]).await;
        alone.next().await.unwrap()
    };
    let is_unknown = |event: &Event| event.name == "lagged" && event.data["missed"].is_null();
    eventually("a gap", first, is_unknown).await;
}

#[tokio::test]
async fn a_stream_ends_with_the_instance_and_none_begins_while_it_drains() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let mut events = Events::of(iad).await;
    let held = iad.call("iad", "Test.block", json!(["x"]));
    let stopping = async {
        cluster.until_started("x").await;
        iad.terminate();
        let change = events.next_of("peer").await;
        let expected = json!({
            "region": "iad", "instance": "iad-1", "address": iad.address, "state": "draining",
            "reason": "it is stopping",
        });
        assert_eq!((change.id, change.data), (None, expected));
        assert_eq!(events.next().await, None);
        let refused = refused(iad, &[]).await;
        assert_eq!(refused.problem(), (503, "draining", "no"));
        cluster.release("x");
    };
    let (held, ()) = tokio::join!(held, stopping);
    assert_eq!(held.result(), "released");
}
