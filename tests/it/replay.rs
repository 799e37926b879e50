//! Calls that Fly Proxy replays in their region: when, how often, and what becomes of those whose replay reaches nobody.

use std::{collections::BTreeMap, net::SocketAddr};

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::{
    asking::two_regions,
    cluster::{Builder, Cluster},
    fly_proxy::{Delivery, FlyProxy, Machine, Separator},
    process::{Answer, Process, answer},
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

/// The fields of `fly-replay`, and its timeout in milliseconds.
fn fields(header: &str) -> (BTreeMap<&str, &str>, u64) {
    let mut fields: BTreeMap<_, _> = header
        .split(';')
        .map(|field| field.split_once('=').unwrap())
        .collect();
    let timeout = fields
        .remove("timeout")
        .unwrap()
        .strip_suffix("ms")
        .unwrap();
    (fields, timeout.parse().unwrap())
}

#[tokio::test]
async fn a_call_is_replayed_in_its_region_under_one_request_id() {
    let cluster = regions().start().await;
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
        assert!(source.ends_with(&format!("state={id}")), "{source}");
        assert_eq!(
            (
                &replied.body["meta"]["attempts"],
                replied.headers.get("fly-replay")
            ),
            (&json!(1), None)
        );
    }
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
    for (request, region, instance) in [
        (iad.request("/rpc/syd", &call.to_string()), "syd", None),
        (
            iad.request("/rpc/syd", &pinned.to_string()),
            "syd",
            Some("syd-2"),
        ),
        (syd.request("/rpc/primary", &call.to_string()), "iad", None),
        // Fly Proxy may know a Machine there that discovery does not see, and start it.
        (iad.request("/rpc/fra", &call.to_string()), "fra", None),
    ] {
        let told = answered(asked(request)).await;
        assert_eq!(told.problem(), (409, "replay", "no"));
        let (fields, timeout) = fields(&told.headers["fly-replay"]);
        let mut expected = BTreeMap::from([
            ("region", region),
            ("fallback", "prefer_self"),
            ("state", "the-one"),
        ]);
        expected.extend(instance.map(|instance| ("instance", instance)));
        assert_eq!(fields, expected);
        assert!((1..=1500).contains(&timeout), "{timeout}");
        assert_eq!(
            [&told.body["meta"]["region"], &told.body["meta"]["attempts"]],
            [&json!(region), &json!(0)]
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
        "header rpc-route must be proxy, replay or auto, and given once"
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
    let cluster = regions().set("RPC_MAX_BODY", "2MiB").start().await;
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
