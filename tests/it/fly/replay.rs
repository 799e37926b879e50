//! Calls that Fly Proxy replays in their region: when, how often, and what becomes of those whose replay reaches nobody.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::support::{
    asking::{block, blocking, two_regions},
    cluster::{Builder, Cluster},
    fly_proxy::{Delivery, FlyProxy, Machine, Separator},
    patience::{eventually, in_time},
    process::{Answer, Process, answer},
    raw,
};

/// `iad` is the primary region; every instance has the functions of the tests.
fn regions() -> Builder {
    Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .set("RPC_ROUTE", "auto")
}

/// Every instance as a Machine that Fly Proxy reaches.
fn machines(cluster: &Cluster) -> Vec<Machine> {
    let machine =
        |instance: &Process| Machine::new(&instance.name, &instance.region, instance.address);
    cluster.instances.iter().map(machine).collect()
}

/// An edge in `iad` in front of `cluster`.
async fn edge(cluster: &Cluster) -> FlyProxy {
    FlyProxy::start("iad", machines(cluster)).await
}

/// An edge in `iad` that reaches nobody in `syd`; the instances reach each other.
async fn edge_without_syd(cluster: &mut Cluster) -> FlyProxy {
    let nobody: SocketAddr = cluster.free_address();
    let mut machines = machines(cluster);
    for machine in machines
        .iter_mut()
        .filter(|machine| machine.region == "syd")
    {
        machine.address = nobody;
    }
    FlyProxy::start("iad", machines).await
}

fn run(id: &str) -> String {
    json!({"module": "Test", "function": "run", "args": [id, 0]}).to_string()
}

async fn answered(request: RequestBuilder) -> Answer {
    answer(request).await.unwrap()
}

/// The Machines that a request was delivered to.
fn way(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries
        .iter()
        .map(|delivery| delivery.machine.as_str())
        .collect()
}

/// What `fly-replay` asks for: its fields, without those that are read apart.
struct Asked<'a> {
    fields: BTreeMap<&'a str, &'a str>,
    preferred: Option<&'a str>,
    timeout: u64,
    request_id: &'a str,
    left: u64,
}

impl<'a> Asked<'a> {
    fn of(answer: &'a Answer) -> Self {
        let header = answer.headers["fly-replay"].as_str();
        let fields = header
            .split(';')
            .map(|field| field.split_once('=').unwrap());
        let mut fields: BTreeMap<_, _> = fields.collect();
        let timeout = fields
            .remove("timeout")
            .unwrap()
            .strip_suffix("ms")
            .unwrap();
        let (request_id, left) = fields.remove("state").unwrap().split_once('~').unwrap();
        Self {
            preferred: fields.remove("prefer_instance"),
            fields,
            timeout: timeout.parse().unwrap(),
            request_id,
            left: left.parse().unwrap(),
        }
    }
}

#[tokio::test]
async fn a_call_is_replayed_in_its_region_under_one_request_id() {
    let cluster = regions().start().await;
    let iad = cluster.instance("iad-1");
    for separator in [Separator::Semicolon, Separator::Comma] {
        let proxy = FlyProxy::start_with("iad", machines(&cluster), separator).await;
        let replied =
            answered(proxy.post("/rpc/syd", r#"{"module":"Fly.RPC","function":"my_region"}"#))
                .await;
        assert_eq!(replied.result(), "syd");
        let deliveries = proxy.deliveries();
        assert_eq!(deliveries.len(), 2, "{deliveries:?}");
        assert_eq!(deliveries[0].machine, "iad-1");
        assert_eq!(deliveries[1].machine, replied.instance());
        let id = replied.headers["x-request-id"].as_str();
        let source = deliveries[1].replay_src.as_deref().unwrap();
        let (_, left) = source.split_once(&format!("state={id}~")).unwrap();
        assert!(
            (1..=5000).contains(&left.parse::<u64>().unwrap()),
            "{source}"
        );
        assert_eq!(
            (
                &replied.body["meta"]["attempts"],
                replied.headers.get("fly-replay")
            ),
            (&json!(1), None)
        );
    }
    // A call that is on its way was not refused.
    let replays = iad.metric("fly_rpc_replays_asked_total").await;
    let refused = iad.metric("fly_rpc_refused_requests_total{code=\"replay\"}");
    assert_eq!((replays, refused.await), (Some(2), None));
    let log = async || iad.log();
    let replays = |log: &String| log.matches(r#""message":"replay""#).count() == 2;
    let log = eventually("a line for each", log, replays).await;
    assert!(!log.contains(r#""code":"replay""#), "{log}");
}

#[tokio::test]
async fn an_id_that_is_invalid_is_replaced_once_and_one_of_another_application_is_none() {
    let cluster = regions().start().await;
    let proxy = edge(&cluster).await;
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    let invalid = proxy
        .post("/rpc/syd", call)
        .header("x-request-id", "order 17");
    let replied = answered(invalid).await;
    let id = replied.headers["x-request-id"].as_str();
    let source = proxy.deliveries()[1].replay_src.clone().unwrap();
    assert!(source.contains(&format!("state={id}~")), "{id} {source}");
    // What was replayed for a reason of the application's own.
    let source = "instance=edge-1;region=iad;t=1752400000000000;state=tenant-7";
    let iad = cluster.instance("iad-1");
    let ids = [(); 2].map(async |()| {
        let request = iad
            .request("/rpc/iad", call)
            .header("fly-replay-src", source);
        answered(request).await.headers["x-request-id"].clone()
    });
    let [one, other] = ids;
    assert_ne!(one.await, other.await);
}

#[tokio::test]
async fn without_fly_proxy_the_answer_says_where_the_call_is_to_go() {
    let cluster = regions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = json!({"module": "Kernel", "function": "+", "args": [1, 2], "timeout_ms": 3000});
    let mut pinned = call.clone();
    pinned["instance"] = json!("syd-2");
    let asked = |request: RequestBuilder| {
        request
            .header("rpc-route", "replay")
            .header("x-request-id", "the-one")
    };
    let all = ["syd-1", "syd-2"];
    for (request, region, preferred, instance, most) in [
        (
            iad.request("/rpc/syd", &call.to_string()),
            "syd",
            &all[..],
            None,
            1500,
        ),
        (
            iad.request("/rpc/syd", &pinned.to_string()),
            "syd",
            &[],
            Some("syd-2"),
            1500,
        ),
        (
            syd.request("/rpc/primary", &call.to_string()),
            "iad",
            &["iad-1"],
            None,
            1500,
        ),
        (
            iad.request("/rpc/syd,iad", &call.to_string()),
            "\"syd,iad\"",
            &all,
            None,
            1500,
        ),
        (
            iad.request("/rpc/syd,primary,any", &call.to_string()),
            "\"syd,iad,any\"",
            &all,
            None,
            1500,
        ),
        // What Fly can have no region of is left out, and so is a region that no instance was seen in, at first.
        (
            iad.request("/rpc/fra,moon,syd", &call.to_string()),
            "\"syd,fra\"",
            &all,
            None,
            1500,
        ),
        // Fly Proxy may know a Machine there that discovery does not see, and start it: there is nothing else to try.
        (
            iad.request("/rpc/fra", &call.to_string()),
            "fra",
            &[],
            None,
            2700,
        ),
    ] {
        let got = answered(asked(request)).await;
        assert_eq!(got.problem(), (409, "replay", "no"));
        let asks = Asked::of(&got);
        let mut expected = BTreeMap::from([("region", region), ("fallback", "prefer_self")]);
        expected.extend(instance.map(|instance| ("instance", instance)));
        assert_eq!((asks.fields, asks.request_id), (expected, "the-one"));
        assert_eq!(asks.preferred.is_some(), !preferred.is_empty());
        assert!(asks.preferred.is_none_or(|peer| preferred.contains(&peer)));
        assert!((1..=3000).contains(&asks.left), "{got:?}");
        assert!(asks.timeout <= most && asks.timeout + 1 >= asks.left * most / 3000);
        assert_eq!(
            [&got.body["meta"]["region"], &got.body["meta"]["attempts"]],
            [
                &json!(region.trim_matches('"').split(',').next()),
                &json!(0)
            ]
        );
    }
}

#[tokio::test]
async fn a_list_whose_first_region_is_here_is_not_replayed() {
    let cluster = regions().start().await;
    let proxy = edge(&cluster).await;
    let call = json!({"module": "Fly.RPC", "function": "my_region"}).to_string();
    for list in ["iad,syd", "any", "moon,iad,syd"] {
        let answer = answered(proxy.post(&format!("/rpc/{list}"), call.clone())).await;
        assert_eq!(answer.result(), "iad");
        assert_eq!(way(&proxy.deliveries()), ["iad-1"], "{list}");
    }
    let there = answered(proxy.post("/rpc/syd,iad,any", call)).await;
    assert_eq!(there.result(), "syd");
    assert_eq!(proxy.deliveries().len(), 2);
}

#[tokio::test]
async fn a_replay_prefers_a_peer_that_is_ready() {
    let cluster = regions().start().await;
    let iad = cluster.instance("iad-1");
    cluster.instance("syd-1").pause().await;
    cluster.until_ready("iad-1", &["iad-1", "syd-2"]).await;
    for id in 0..10 {
        let request = iad.request("/rpc/syd", &run(&id.to_string()));
        let got = answered(request.header("rpc-route", "replay")).await;
        assert_eq!(Asked::of(&got).preferred, Some("syd-2"));
    }
}

#[tokio::test]
async fn a_call_whose_peers_are_all_suspect_is_forwarded() {
    let cluster = regions().start().await;
    let proxy = edge(&cluster).await;
    for name in ["syd-1", "syd-2"] {
        cluster.instance(name).pause().await;
    }
    cluster.until_ready("iad-1", &["iad-1"]).await;
    // Both together end well before the connection that is tried is given up after a second.
    let call = json!({"module": "Fly.RPC", "function": "my_region", "timeout_ms": 300});
    for pinned in [None, Some("syd-2")] {
        let mut call = call.clone();
        call["instance"] = pinned.into();
        call.as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let answer = in_time(
            "an answer",
            answered(proxy.post("/rpc/syd", call.to_string())),
        )
        .await;
        // On a busy machine, the connection is given up first.
        let (_, code, _) = answer.problem();
        let codes = [
            "deadline_exceeded",
            "peer_unreachable",
            "region_unavailable",
        ];
        assert!(codes.contains(&code), "{answer:?}");
        assert_eq!(way(&proxy.deliveries()), ["iad-1"]);
    }
}

#[tokio::test]
async fn a_replay_brings_the_time_that_is_left_and_no_more() {
    let cluster = regions().start().await;
    let syd = cluster.instance("syd-1");
    let replayed = async |state: &str, timeout_ms: u64| {
        let mut call = blocking("held", &json!({}));
        call["timeout_ms"] = timeout_ms.into();
        let request = syd.request("/rpc/syd", &call.to_string());
        let source = format!("instance=iad-1;region=iad;t=1752400000000000;state={state}");
        in_time(
            "an answer",
            answered(request.header("fly-replay-src", source)),
        )
        .await
    };
    for (state, timeout_ms) in [("one~300", 60_000), ("one~60000", 300), ("one~0", 60_000)] {
        let over = replayed(state, timeout_ms).await;
        assert_eq!(over.problem().1, "deadline_exceeded", "{state}: {over:?}");
        assert_eq!(over.headers["x-request-id"], "one");
    }
    // What cannot be read shortens nothing.
    cluster.release("held");
    for state in [
        "one",
        "one~",
        "one~-1",
        "one~+0",
        "one~1e3",
        "~",
        "one~99999999999999999999",
    ] {
        assert_eq!(
            replayed(state, 30_000).await.result(),
            "released",
            "{state}"
        );
    }
}

#[tokio::test]
async fn the_header_chooses_and_the_setting_is_its_default() {
    let auto = regions().start().await;
    let proxy = two_regions().start().await;
    let through_fly = [("fly-client-ip", "203.0.113.7")];
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&Cluster, &str, Headers<'_>, u16); 9] = [
        (&proxy, "syd", &through_fly, 200),
        (&proxy, "syd", &[("rpc-route", "auto")], 200),
        (&proxy, "syd", &[("rpc-route", "auto"), through_fly[0]], 409),
        (&proxy, "syd", &[("rpc-route", "replay")], 409),
        (&auto, "syd", &[], 200),
        (&auto, "syd", &through_fly, 409),
        (&auto, "syd", &[("fly-forwarded-port", "443")], 409),
        (&auto, "syd", &[("rpc-route", "proxy"), through_fly[0]], 200),
        (&auto, "iad", &through_fly, 200),
    ];
    for (cluster, region, headers, status) in cases {
        let mut request = cluster.instance("iad-1").request(
            &format!("/rpc/{region}"),
            r#"{"module":"Fly.RPC","function":"my_region"}"#,
        );
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = answered(request).await;
        assert_eq!(answer.status, status, "{region} {headers:?}: {answer:?}");
        assert_eq!(
            answer.headers.contains_key("fly-replay"),
            status == 409,
            "{answer:?}"
        );
    }
    let wrong = proxy
        .instance("iad-1")
        .request("/rpc/syd", "{}")
        .header("rpc-route", "elsewhere");
    let refused = answered(wrong).await;
    assert_eq!(refused.problem(), (400, "invalid_request", "no"));
    assert_eq!(
        refused.detail(),
        "header rpc-route must be proxy, replay or auto"
    );
}

#[tokio::test]
async fn a_call_whose_replay_reaches_nobody_is_forwarded() {
    let mut cluster = regions().start().await;
    let proxy = edge_without_syd(&mut cluster).await;
    let replied = answered(proxy.post("/rpc/syd", run("one"))).await;
    assert_eq!(replied.result(), "one");
    assert!(replied.instance().starts_with("syd-"), "{replied:?}");
    let deliveries = proxy.deliveries();
    assert_eq!(way(&deliveries), ["iad-1", "iad-1"]);
    let failed = deliveries[1].replay_failed.as_deref().unwrap();
    assert!(failed.contains("reason=retries_exhausted;"), "{failed}");
    assert_eq!(cluster.runs(), BTreeMap::from([("one".to_owned(), 1)]));
}

#[tokio::test]
async fn a_call_whose_replay_and_whose_region_reach_nobody_gets_the_right_problem() {
    let cluster = regions().start().await;
    let proxy = edge(&cluster).await;
    let unknown = answered(proxy.post("/rpc/fra", run("one"))).await;
    assert_eq!(unknown.problem(), (404, "region_unknown", "no"));
    assert_eq!(way(&proxy.deliveries()), ["iad-1", "iad-1"]);
    // No region of Fly: not even asked.
    let unknown = answered(proxy.post("/rpc/mars", run("one"))).await;
    assert_eq!(unknown.problem(), (404, "region_unknown", "no"));
    assert_eq!(way(&proxy.deliveries()), ["iad-1"]);
    assert_eq!(cluster.runs(), BTreeMap::new());
}

#[tokio::test]
async fn a_machine_that_starts_gets_the_call_or_is_awaited() {
    let mut cluster = regions().start().await;
    cluster.add("fra").await;
    cluster
        .until_ready("iad-1", &["iad-1", "syd-1", "syd-2"])
        .await;
    // Discovery does not see it, because DNS does not name it.
    let starts_in = async |start| {
        let mut machines = machines(&cluster);
        machines.last_mut().unwrap().start = start;
        FlyProxy::start("iad", machines).await
    };
    let mut call = json!({"module": "Fly.RPC", "function": "my_region", "timeout_ms": 30_000});
    let proxy = starts_in(Duration::from_millis(300)).await;
    assert_eq!(
        answered(proxy.post("/rpc/fra", call.to_string()))
            .await
            .result(),
        "fra"
    );
    assert_eq!(way(&proxy.deliveries()), ["iad-1", "fra-1"]);

    let proxy = starts_in(Duration::from_secs(60)).await;
    // A tenth of it is left when nobody was reached.
    call["timeout_ms"] = 10_000.into();
    for pinned in [None, Some("fra-1")] {
        if let Some(pinned) = pinned {
            call["instance"] = pinned.into();
        }
        let waking = answered(proxy.post("/rpc/fra", call.to_string())).await;
        assert_eq!(waking.problem(), (503, "region_unavailable", "no"));
        assert_eq!(waking.headers["retry-after"], "1");
        let got = "region \"fra\": Fly Proxy could not reach a Machine there within ";
        assert!(waking.detail().starts_with(got), "{waking:?}");
        let deliveries = proxy.deliveries();
        assert_eq!(way(&deliveries), ["iad-1", "iad-1"]);
        let failed = deliveries[1].replay_failed.as_deref().unwrap();
        assert!(failed.contains("reason=timeout;"), "{failed}");
    }
}

#[tokio::test]
async fn why_a_replay_reached_nobody_decides_what_the_client_reads() {
    let cluster = regions().start().await;
    let iad = cluster.instance("iad-1");
    for (region, reason, problem) in [
        ("fra", "timeout", (503, "region_unavailable", "no")),
        (
            "fra",
            "retries_exhausted",
            (503, "region_unavailable", "no"),
        ),
        // Neither Fly Proxy nor discovery knows a Machine there.
        ("fra", "no_candidate", (404, "region_unknown", "no")),
        ("fra", "another", (404, "region_unknown", "no")),
    ] {
        let failed = format!("instance=;app=shop;region=fra;reason={reason};elapsed_ms=2500");
        let request = iad.request(&format!("/rpc/{region}"), &run(reason));
        let answer = answered(request.header("fly-replay-failed", failed)).await;
        assert_eq!(answer.problem(), problem, "{reason}");
    }
}

#[tokio::test]
async fn a_primary_region_that_fly_cannot_have_is_not_replayed_to() {
    let environment = BTreeMap::from([
        ("FLY_REGION", "syd".to_owned()),
        ("FLY_MACHINE_ID", "syd-1".to_owned()),
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
    ]);
    let syd = Process::start(&environment).await;
    for route in ["replay", "auto"] {
        let request = syd.request(
            "/rpc/primary",
            r#"{"module":"Fly.RPC","function":"my_region"}"#,
        );
        let request = request
            .header("rpc-route", route)
            .header("fly-client-ip", "203.0.113.7");
        let answer = answered(request).await;
        assert_eq!(answer.problem(), (404, "region_unknown", "no"));
        assert_eq!(answer.headers.get("fly-replay"), None);
    }
}

#[tokio::test]
async fn what_fly_proxy_spent_in_vain_is_time_of_the_call() {
    let cluster = regions().start().await;
    let iad = cluster.instance("iad-1");
    for (elapsed, status) in [
        ("4999999", 504),
        ("18446744073709551616", 200),
        ("soon", 200),
        ("1", 200),
    ] {
        let failed = format!("instance=;app=shop;region=syd;reason=timeout;elapsed_ms={elapsed}");
        let request = iad
            .request("/rpc/syd", &run(elapsed))
            .header("fly-replay-failed", failed);
        let answer = answered(request).await;
        assert_eq!(answer.status, status, "{elapsed}: {answer:?}");
        if status == 504 {
            assert_eq!(answer.problem(), (504, "deadline_exceeded", "no"));
        }
    }
    assert!(!cluster.runs().contains_key("4999999"));
}

#[tokio::test]
async fn more_than_fly_proxy_replays_is_forwarded() {
    let cluster = regions()
        .set("RPC_MAX_BODY", "2MiB")
        .set("RPC_DEFAULT_TIMEOUT", "60s")
        .start()
        .await;
    let proxy = edge(&cluster).await;
    let echo = |length: usize| {
        let text = "x".repeat(length);
        (
            json!({"module": "Test", "function": "echo", "args": [text]}).to_string(),
            text,
        )
    };
    for (length, is_replayed) in [(999_000, true), (1_000_000, false)] {
        let (call, text) = echo(length);
        let replied = answered(proxy.post("/rpc/syd", call)).await;
        assert_eq!(
            (replied.status, &replied.body["result"]),
            (200, &Value::from(text))
        );
        assert!(replied.instance().starts_with("syd-"));
        let deliveries = proxy.deliveries();
        assert_eq!(
            deliveries.len(),
            if is_replayed { 2 } else { 1 },
            "{length}"
        );
    }
}

#[tokio::test]
async fn whatever_a_client_invents_ends_in_one_answer() {
    let cluster = regions().start().await;
    let proxy = edge(&cluster).await;
    let inventions = [
        (
            "fly-replay-src",
            "instance=syd-1;region=syd;t=1;state=made-up",
        ),
        ("fly-replay-src", ""),
        ("fly-replay-failed", "reason=timeout"),
        ("fly-replay-cache-status", "hit"),
        ("fly-replay-cache-status", "miss"),
        ("fly-replay", "region=syd"),
        ("fly-region", "syd"),
        ("fly-replay-cache", "/rpc/*"),
        ("fly-preferred-instance-unavailable", "syd-1"),
    ];
    for (number, (name, value)) in inventions.into_iter().enumerate() {
        for route in ["replay", "auto"] {
            let id = format!("{number}-{route}");
            let request = proxy.post("/rpc/syd", run(&id)).header("rpc-route", route);
            let replied = answered(request.header(name, value)).await;
            assert_eq!(replied.result(), &json!(id), "{name}: {value}");
            assert!(replied.instance().starts_with("syd-"));
            let deliveries = proxy.deliveries();
            let is_replay = name.starts_with("fly-replay-") && name != "fly-replay-cache";
            assert_eq!(
                deliveries.len(),
                if is_replay { 1 } else { 2 },
                "{name}: {deliveries:?}"
            );
        }
    }
    assert!(cluster.runs().values().all(|runs| *runs == 1));
}

#[tokio::test]
async fn a_replay_that_arrives_in_another_region_is_forwarded_and_not_replayed_again() {
    let cluster = regions().start().await;
    // Fly Proxy and the instances disagree on where the Machines are.
    let mut machines = machines(&cluster);
    for machine in &mut machines {
        machine.region = if machine.region == "syd" {
            "iad"
        } else {
            "syd"
        }
        .to_owned();
    }
    let proxy = FlyProxy::start("syd", machines).await;
    let replied = answered(proxy.post("/rpc/syd", run("one"))).await;
    assert_eq!(replied.result(), "one");
    assert!(replied.instance().starts_with("syd-"), "{replied:?}");
    assert_eq!(way(&proxy.deliveries()), ["iad-1", "iad-1"]);
}

#[tokio::test]
async fn a_key_holds_across_replays_and_forwards() {
    let cluster = regions().start().await;
    let proxy = edge(&cluster).await;
    let mut instances = Vec::new();
    for route in ["replay", "proxy", "auto", "replay"] {
        let request = proxy
            .post("/rpc/syd", run("once"))
            .header("rpc-route", route);
        let replied = answered(request.header("idempotency-key", "order-1")).await;
        assert_eq!(replied.result(), "once");
        instances.push(replied.instance().to_owned());
    }
    instances.dedup();
    assert_eq!((instances.len(), cluster.runs()["once"]), (1, 1));
}

#[tokio::test]
async fn a_replay_is_authenticated_where_it_arrives() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let environment = BTreeMap::from([
        ("FLY_REGION", "iad".to_owned()),
        ("FLY_MACHINE_ID", "iad-1".to_owned()),
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_ROUTE", "auto".to_owned()),
        ("RPC_CLIENT_TOKENS", format!("shop:{TOKEN}")),
    ]);
    let iad = Process::start(&environment).await;
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    for (name, value) in [
        ("fly-client-ip", "203.0.113.7"),
        ("fly-replay-src", "instance=syd-1;region=syd;t=1"),
        ("fly-replay-failed", "reason=timeout"),
    ] {
        for region in ["iad", "syd"] {
            let path = format!("/rpc/{region}");
            let refused = answered(iad.request(&path, call).header(name, value)).await;
            assert_eq!(refused.problem(), (401, "unauthenticated", "no"));
            assert_eq!(refused.headers.get("fly-replay"), None);
        }
        let let_in = iad
            .request("/rpc/iad", call)
            .bearer_auth(TOKEN)
            .header(name, value);
        assert_eq!(answered(let_in).await.result(), "iad");
    }
}

/// `iad-1` and `iad-2`, each with all the calls that it may run, and `iad-3`, which they have not discovered.
async fn two_are_full() -> (Cluster, Vec<tokio::task::JoinHandle<Answer>>) {
    let mut cluster = Cluster::builder()
        .region("iad", 0)
        .functions()
        .start()
        .await;
    for _ in 0..2 {
        cluster.add_with("iad", "RPC_MAX_IN_FLIGHT", "1").await;
    }
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let mut held = Vec::new();
    for instance in &cluster.instances {
        let name = &instance.name;
        held.push(block(instance, "iad", name, &json!({"instance": name})));
        cluster.until_started(name).await;
    }
    cluster.add("iad").await;
    (cluster, held)
}

#[tokio::test]
async fn another_machine_takes_the_call_of_one_that_is_overloaded_or_draining() {
    let (cluster, held) = two_are_full().await;
    let iad = cluster.instance("iad-1");
    let mut edges = machines(&cluster);
    edges.remove(1);
    let proxy = FlyProxy::start("iad", edges).await;
    for phase in ["overloaded", "draining"] {
        let refused = async || iad.post("/rpc/iad", &run("refused")).await;
        let refused = eventually(phase, refused, |answer| answer.body["code"] == phase).await;
        // Without Fly Proxy, nobody reads the header.
        assert_eq!(refused.headers.get("fly-replay"), None);
        let replied = answered(proxy.post("/rpc/iad", run(phase))).await;
        assert_eq!(
            (replied.result(), replied.instance()),
            (&json!(phase), "iad-3")
        );
        assert_eq!(way(&proxy.deliveries()), ["iad-1", "iad-3"]);
        if phase == "overloaded" {
            iad.terminate();
        }
    }
    // Also one whose body comes after its head.
    let replayed = async || {
        let (mut stream, body) = (TcpStream::connect(iad.address).await.unwrap(), run("late"));
        let length = body.len();
        let head = format!(
            "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\nfly-client-ip: 203.0.113.7\r\nfly-forwarded-port: 443\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Connections are accepted in order: the head is read when the next is answered.
        assert_eq!(iad.get("/healthz").await.status, 200);
        // Where it was refused before, its end says so.
        let _ = stream.write_all(body.as_bytes()).await;
        raw::next(&mut stream)
            .await
            .headers
            .contains_key("fly-replay")
    };
    eventually("a replay", replayed, |replayed| *replayed).await;
    for (number, held) in (1..).zip(held) {
        cluster.release(&format!("iad-{number}"));
        assert_eq!(held.await.unwrap().result(), "released");
    }
    assert_eq!(cluster.runs().values().sum::<u32>(), 2);
}

#[tokio::test]
async fn a_call_that_a_sibling_takes_is_not_replayed() {
    let (cluster, held) = two_are_full().await;
    let proxy = FlyProxy::start("iad", machines(&cluster)).await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let ran = answered(proxy.post("/rpc/iad", run("one"))).await;
    assert_eq!((ran.result(), ran.instance()), (&json!("one"), "iad-3"));
    assert_eq!(way(&proxy.deliveries()), ["iad-1"]);
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_call_that_no_machine_takes_is_refused_once() {
    let (cluster, _held) = two_are_full().await;
    let alone = machines(&cluster)[..1].to_vec();
    let proxy = FlyProxy::start("iad", alone).await;
    let refused = answered(proxy.post("/rpc/iad", run("one"))).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert_eq!(refused.headers.get("fly-replay"), None);
    assert_eq!(way(&proxy.deliveries()), ["iad-1", "iad-1"]);
    // What asks for this very instance would only come back to it.
    let pinned =
        json!({"module": "Test", "function": "run", "args": ["one", 0], "instance": "iad-1"});
    let refused = answered(proxy.post("/rpc/iad", pinned.to_string())).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert_eq!(way(&proxy.deliveries()), ["iad-1"]);
}

#[tokio::test]
async fn a_repeat_whose_first_call_may_have_run_is_sent_to_no_other_machine() {
    // As many as wait for one call, and one more.
    const REPEATS: usize = 65;
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .start()
        .await;
    // Fly Proxy reaches it, and `iad-1` has not discovered it.
    cluster.add("iad").await;
    let proxy = edge(&cluster).await;
    let keyed = |via: RequestBuilder| {
        let request = via.header("idempotency-key", "key");
        async move { answered(request).await }
    };
    let call = blocking("held", &json!({})).to_string();
    let iad = cluster.instance("iad-1");
    let mut calls = JoinSet::new();
    calls.spawn(keyed(iad.request("/rpc/iad", &call)));
    cluster.until_started("held").await;
    for _ in 0..REPEATS {
        calls.spawn(keyed(proxy.post("/rpc/iad", call.clone())));
    }
    let refused = in_time("a refusal", calls.join_next()).await.unwrap();
    let refused = refused.unwrap();
    assert_eq!(refused.problem(), (503, "overloaded", "maybe"));
    assert_eq!(refused.headers.get("fly-replay"), None);
    cluster.release("held");
    for answer in calls.join_all().await {
        assert_eq!(answer.result(), "released");
    }
    assert_eq!(cluster.starts("held"), ["iad-1"]);
}
