//! `GET /metrics`: what is counted, under which labels, and who may read it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::support::{
    asking::{block, blocking, two_regions},
    cluster::Cluster,
    network::Network,
    patience::{eventually, in_time},
    process::{Answer, Environment, Process, answer},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Checks that a text is of the format before OpenMetrics: each metric has help and a type of that format, and its samples
/// bear its name.
fn assert_older_format(text: &str) {
    assert!(
        !text.contains("# EOF") && !text.contains("# UNIT"),
        "{text}"
    );
    let (mut described, mut metric) = (None, (String::new(), ""));
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["#", "HELP", name, _, ..] => described = Some(name),
            ["#", "TYPE", name, kind] => {
                assert_eq!(described.take(), Some(name), "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                metric = (name.to_owned(), kind);
            }
            _ => {
                let name = line.split(['{', ' ']).next().unwrap();
                let is_part = |part: &str| name == format!("{}{part}", metric.0);
                let is_histogram = metric.1 == "histogram";
                let is_its = match is_histogram {
                    true => ["_bucket", "_sum", "_count"].into_iter().any(is_part),
                    false => is_part(""),
                };
                assert!(is_its, "{line} of {metric:?}");
            }
        }
    }
}

/// Every sample in an answer of `/metrics`, by its name and labels.
fn samples(answer: &Answer) -> BTreeMap<String, f64> {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(
        (answer.status, answer.content_type.as_str()),
        (200, content_type)
    );
    let text = answer.body.as_str().unwrap();
    assert_older_format(text);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

async fn scrape(instance: &Process) -> BTreeMap<String, f64> {
    samples(&instance.get("/metrics").await)
}

/// The samples of `name`, which is followed by its labels, that are not zero.
fn of<'a>(samples: &'a BTreeMap<String, f64>, name: &str) -> Vec<(&'a str, f64)> {
    let found = samples.iter().filter_map(|(sample, value)| {
        let labels = sample.strip_prefix(name)?.strip_prefix('{')?;
        Some((labels.strip_suffix('}')?, *value))
    });
    found.filter(|(_, value)| *value != 0.0).collect()
}

#[tokio::test]
async fn calls_are_counted_where_they_come_in_and_where_they_run() {
    let cluster = two_regions().functions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    for word in ["one", "two"] {
        iad.call("syd", "String.upcase", json!([word]))
            .await
            .result();
    }
    iad.call("iad", "String.upcase", json!(["here"]))
        .await
        .result();
    for (region, function, code) in [
        ("syd", "Kernel.raise", "function_failed"),
        ("syd", "Test.panic", "function_panicked"),
        ("syd", "None.such", "function_unknown"),
        ("syd", "No.more", "function_unknown"),
        ("mars", "String.upcase", "region_unknown"),
        ("venus", "String.upcase", "region_unknown"),
    ] {
        let args = if function == "Kernel.raise" {
            json!(["boom"])
        } else {
            json!([])
        };
        assert_eq!(iad.call(region, function, args).await.problem().1, code);
    }
    iad.post("/rpc/syd", "{").await.problem();
    let (at_iad, at_syd) = (scrape(iad).await, scrape(syd).await);
    let calls = [
        (r#"target_region="iad",code="ok",executed="yes""#, 1.0),
        (
            r#"target_region="other",code="region_unknown",executed="no""#,
            2.0,
        ),
        (
            r#"target_region="syd",code="function_failed",executed="yes""#,
            1.0,
        ),
        (
            r#"target_region="syd",code="function_panicked",executed="yes""#,
            1.0,
        ),
        (
            r#"target_region="syd",code="function_unknown",executed="no""#,
            2.0,
        ),
        (r#"target_region="syd",code="ok",executed="yes""#, 2.0),
    ];
    assert_eq!(of(&at_iad, "fly_rpc_calls_total"), calls);
    assert_eq!(of(&at_iad, "fly_rpc_attempts_total"), calls[2..]);
    assert_eq!(
        of(&at_iad, "fly_rpc_call_duration_seconds_count"),
        [
            ("target_region=\"iad\"", 1.0),
            ("target_region=\"other\"", 2.0),
            ("target_region=\"syd\"", 6.0)
        ]
    );
    assert_eq!(
        of(&at_iad, "fly_rpc_hop_duration_seconds_count"),
        [("target_region=\"syd\"", 6.0)]
    );
    let clients: f64 = of(&at_iad, "fly_rpc_client_calls_total")
        .iter()
        .map(|(_, calls)| calls)
        .sum();
    assert_eq!(clients, 9.0);
    // Besides what the start of the cluster asked for.
    let mut refused = of(&at_iad, "fly_rpc_refused_requests_total");
    refused.retain(|(code, _)| !code.contains("region_unknown") && !code.contains("discovery"));
    assert_eq!(refused, [("code=\"invalid_json\"", 1.0)]);
    assert_eq!(at_iad["fly_rpc_batch_calls_sum"], 6.0);
    let executions = [
        (
            r#"function="Kernel.raise",code="function_failed",executed="yes""#,
            1.0,
        ),
        (r#"function="String.upcase",code="ok",executed="yes""#, 2.0),
        (
            r#"function="Test.panic",code="function_panicked",executed="yes""#,
            1.0,
        ),
        (
            r#"function="other",code="function_unknown",executed="no""#,
            2.0,
        ),
    ];
    assert_eq!(of(&at_syd, "fly_rpc_executions_total"), executions);
    assert_eq!(of(&at_syd, "fly_rpc_calls_total"), []);
    let ran = of(&at_syd, "fly_rpc_function_duration_seconds_count");
    assert_eq!(
        ran,
        [
            ("function=\"Kernel.raise\"", 1.0),
            ("function=\"String.upcase\"", 2.0),
            ("function=\"Test.panic\"", 1.0)
        ]
    );
}

#[tokio::test]
async fn a_function_whose_client_went_away_is_counted_when_it_ends() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let held = block(iad, "iad", "held", &json!({}));
    cluster.until_started("held").await;
    let during = scrape(iad).await;
    assert_eq!(
        (during["fly_rpc_in_flight"], during["fly_rpc_running"]),
        (1.0, 1.0)
    );
    assert_eq!(during["fly_rpc_running_limit"], 1024.0);
    held.abort();
    held.await.unwrap_err();
    let abandoned = async || scrape(iad).await["fly_rpc_abandoned_calls_total"];
    eventually("the client's leaving", abandoned, |count| *count == 1.0).await;
    assert!(iad.log().contains("call abandoned"), "{}", iad.log());
    cluster.release("held");
    let ended = [(r#"function="Test.block",code="ok",executed="yes""#, 1.0)];
    // One answer of /metrics may have what runs from before the end, and what has ended from after it.
    let is_over = |now: &BTreeMap<String, f64>| {
        of(now, "fly_rpc_executions_total") == ended
            && now["fly_rpc_in_flight"] == 0.0
            && now["fly_rpc_running"] == 0.0
    };
    let after = async || scrape(iad).await;
    eventually("the end of the function", after, is_over).await;
}

#[tokio::test]
async fn a_call_in_flight_is_counted_once_however_it_was_asked_for() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let (key, prefer) = ("idempotency-key", ("prefer", "respond-async"));
    let mut number = 0;
    for path in ["/rpc/iad", "/rpc/syd", "/each/all"] {
        for headers in [vec![], vec![key], vec!["prefer"], vec![key, "prefer"]] {
            if path == "/each/all" && headers.contains(&"prefer") {
                continue;
            }
            number += 1;
            let name = format!("held-{number}");
            let mut request = iad.request(path, &blocking(&name, &json!({})).to_string());
            for header in &headers {
                request = match *header {
                    "prefer" => request.header(prefer.0, prefer.1),
                    _ => request.header(key, &name),
                };
            }
            let asked = tokio::spawn(answer(request));
            cluster.until_started(&name).await;
            let in_all = match path {
                "/rpc/iad" => [1, 0],
                _ => [1, 1],
            };
            let counts = async || {
                [
                    iad.in_flight().await,
                    cluster.instance("syd-1").in_flight().await,
                ]
            };
            if path == "/each/all" {
                // The other one may start later.
                let started = async || counts().await[1];
                eventually("the start in syd", started, |count| *count > 0).await;
            }
            assert_eq!(counts().await, in_all, "{path} {headers:?}");
            cluster.release(&name);
            asked.await.unwrap().unwrap();
            eventually("nothing in flight", counts, |counts| *counts == [0, 0]).await;
        }
    }
}

#[tokio::test]
async fn what_a_client_gets_is_what_is_counted_and_logged() {
    let mut cluster = Cluster::builder()
        .region("syd", 1)
        .functions()
        .start()
        .await;
    cluster.add_with("iad", "RPC_MAX_MEMORY", "4MiB").await;
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    let iad = cluster.instance("iad-1");
    let mut events = reqwest::get(format!("http://{}/events", iad.address))
        .await
        .unwrap();
    // Its result finds no room in the answer.
    let large = json!({"module": "Test", "function": "large", "args": ["x", 5 << 20]});
    let dropped = iad.rpc("iad", &large).await;
    assert_eq!(dropped.problem(), (424, "function_failed", "yes"));
    let each = iad.post("/each/iad", &large.to_string()).await;
    assert_eq!(
        each.body["results"][0]["problem"]["code"],
        "function_failed"
    );
    // Fly Proxy reached no Machine there in time.
    let call = json!({"module": "Fly.RPC", "function": "my_region"}).to_string();
    let unreached = iad
        .request("/rpc/mars", &call)
        .header("fly-replay-failed", "reason=timeout");
    let unreached = answer(unreached).await.unwrap();
    assert_eq!(unreached.problem(), (503, "region_unavailable", "no"));
    let counted = scrape(iad).await;
    let calls = [
        (
            r#"target_region="iad",code="function_failed",executed="yes""#,
            2.0,
        ),
        (
            r#"target_region="other",code="region_unavailable",executed="no""#,
            1.0,
        ),
    ];
    assert_eq!(of(&counted, "fly_rpc_calls_total"), calls);
    let clients = [
        (
            r#"client="anonymous",code="function_failed",executed="yes""#,
            1.0,
        ),
        (
            r#"client="anonymous",code="region_unavailable",executed="no""#,
            1.0,
        ),
    ];
    assert_eq!(of(&counted, "fly_rpc_client_calls_total"), clients);
    let mut text = String::new();
    in_time("three events", async {
        while calls_in(&text).len() < 3 {
            let chunk = events.chunk().await.unwrap().unwrap();
            text.push_str(str::from_utf8(&chunk).unwrap());
        }
    })
    .await;
    let codes: Vec<_> = calls_in(&text)
        .into_iter()
        .map(|call| call["code"].clone())
        .collect();
    assert_eq!(
        codes,
        ["function_failed", "function_failed", "region_unavailable"],
        "{text}"
    );
    let log = async || iad.log();
    let has_all = |log: &String| {
        ["function_failed", "region_unavailable"]
            .iter()
            .all(|code| {
                let mut lines = log
                    .lines()
                    .filter(|line| line.contains(r#""message":"call failed""#));
                lines.any(|line| line.contains(code))
            })
    };
    eventually("both in the log", log, has_all).await;
}

#[tokio::test]
async fn what_a_repeat_gets_is_counted_and_its_line_says_so() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let call = r#"{"module":"String","function":"upcase","args":["fly"]}"#;
    let keyed = async |id: &str| {
        let request = iad.request("/rpc/syd", call).header("x-request-id", id);
        let answer = answer(request.header("idempotency-key", "key")).await;
        assert_eq!(answer.unwrap().result(), "FLY");
    };
    for id in ["first", "second"] {
        keyed(id).await;
    }
    assert_eq!(iad.metric("fly_rpc_replayed_total").await, Some(1));
    let marks = async || {
        let log = iad.log();
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        let calls = lines.filter(|line: &Value| line["message"] == "call");
        let mark = |line: Value| (line["request_id"].clone(), line.get("replayed").cloned());
        calls.map(mark).collect::<Vec<_>>()
    };
    let marks = eventually("a line for each", marks, |marks| marks.len() == 2).await;
    let expected = [(json!("first"), None), (json!("second"), Some(json!(true)))];
    assert_eq!(marks, expected);
}

/// The calls in a stream of events, without the counts that stand between them.
fn calls_in(events: &str) -> Vec<Value> {
    events
        .split_inclusive("\n\n")
        .filter(|event| event.ends_with("\n\n"))
        .filter(|event| event.contains("event: call\n"))
        .map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")))
        .map(|data| serde_json::from_str(data.unwrap()).unwrap())
        .collect()
}

/// A cluster in which everything happened that is counted, as `iad-1` counts it.
async fn eventful() -> (Cluster, BTreeMap<String, f64>) {
    let mut cluster = Cluster::builder().region("syd", 2).start().await;
    let all = ["iad-1", "syd-1", "syd-2"];
    cluster.add_with_one_round("iad", &all).await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    let iad = cluster.instance("iad-1");
    let failed_over = async || {
        let call = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
        assert_eq!(call.result(), "syd");
        call.body["meta"]["attempts"].clone()
    };
    eventually("a second attempt", failed_over, |attempts| *attempts == 2).await;
    iad.call("iad", "Fly.RPC.my_region", json!([]))
        .await
        .result();
    iad.post("/rpc/syd", "{").await.problem();
    let suspects = async || scrape(iad).await;
    let is_there = |now: &BTreeMap<_, _>| of(now, "fly_rpc_peers").len() == 2;
    let samples = eventually("a suspect peer", suspects, is_there).await;
    (cluster, samples)
}

#[tokio::test]
async fn failovers_and_peers_are_counted_by_region() {
    let before = SystemTime::now();
    let (_cluster, samples) = eventful().await;
    assert_eq!(
        of(&samples, "fly_rpc_failovers_total"),
        [("target_region=\"syd\"", 1.0)]
    );
    let attempts = of(&samples, "fly_rpc_attempts_total");
    let failed = (
        r#"target_region="syd",code="peer_unreachable",executed="no""#,
        1.0,
    );
    assert_eq!((attempts.len(), attempts[1]), (2, failed));
    let peers = [
        (r#"peer_region="syd",state="ready""#, 1.0),
        (r#"peer_region="syd",state="suspect""#, 1.0),
    ];
    assert_eq!(of(&samples, "fly_rpc_peers"), peers);
    assert!(samples["fly_rpc_discovery_rounds_total"] >= 1.0);
    let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let meanwhile = since_1970(before)..since_1970(SystemTime::now());
    let success = samples["fly_rpc_discovery_last_success_timestamp_seconds"];
    assert!(meanwhile.contains(&success), "{success} in {meanwhile:?}");
    assert_eq!(
        (
            samples["fly_rpc_discovery_stale"],
            samples["fly_rpc_draining"]
        ),
        (0.0, 0.0)
    );
    assert!(samples["fly_rpc_probe_duration_seconds_count"] >= 2.0);
}

/// The metrics that a text names.
fn named(text: &str) -> Vec<&str> {
    let is_in_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let starts = text.match_indices("fly_rpc_").map(|(at, _)| &text[at..]);
    starts
        .map(|rest| {
            rest.split(|character| !is_in_name(character))
                .next()
                .unwrap()
        })
        .collect()
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
    let (_cluster, mut samples) = eventful().await;
    // Neither the app nor the store is there.
    let nobody = Network::free().next_address();
    let with_both = Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_APP_URL", format!("http://{nobody}")),
        ("RPC_APP_TOKEN", TOKEN.to_owned()),
        ("RPC_KEY_STORE", format!("redis://{nobody}")),
    ]))
    .await;
    let of_both = scrape(&with_both).await;
    for down in ["fly_rpc_app_up", "fly_rpc_key_store_up"] {
        assert_eq!(of_both[down], 0.0);
    }
    // The store's keys are not those of this instance.
    assert_eq!(of_both.get("fly_rpc_keys"), None);
    samples.extend(of_both);
    let exists = |name: &str| {
        samples
            .keys()
            .any(|sample| sample.split('{').next() == Some(name))
    };
    for file in ["dashboard.json", "alerts.yaml"] {
        let path = format!("{}/examples/observe/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let names = named(&text);
        assert!(names.len() > 5, "{file} names {names:?}");
        for name in names {
            assert!(
                exists(name),
                "{file} names {name}, which is not in {samples:#?}"
            );
        }
    }
}

async fn get(address: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> Answer {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.get(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request).await.unwrap()
}

#[tokio::test]
async fn metrics_are_for_the_cluster_except_on_a_listener_of_their_own() {
    let mut cluster = Cluster::builder().region("iad", 0).start().await;
    let (inside, scraped) = (cluster.free_address(), cluster.free_address());
    let instance = Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_INTERNAL_LISTEN", inside.to_string()),
        ("RPC_METRICS_LISTEN", scraped.to_string()),
        ("RPC_TOKEN", TOKEN.to_owned()),
        (
            "RPC_CLIENT_TOKENS",
            format!("shop:{}", TOKEN.replace('0', "1")),
        ),
    ]))
    .await;
    assert_eq!(
        instance.get("/metrics").await.problem(),
        (401, "unauthenticated", "no")
    );
    assert_eq!(
        get(inside, "/metrics", &[]).await.problem(),
        (401, "unauthenticated", "no")
    );
    let bearer = format!("Bearer {TOKEN}");
    let token = ("authorization", bearer.as_str());
    let through_proxy = [token, ("fly-client-ip", "1.2.3.4")];
    assert_eq!(
        get(inside, "/metrics", &through_proxy).await.problem(),
        (403, "forbidden", "no")
    );
    samples(&get(inside, "/metrics", &[token]).await);
    assert_eq!(
        get(instance.address, "/metrics", &[token]).await.problem(),
        (404, "not_found", "no")
    );
    let open = samples(&get(scraped, "/metrics", &[]).await);
    let refused = [
        ("code=\"forbidden\"", 1.0),
        ("code=\"not_found\"", 1.0),
        ("code=\"unauthenticated\"", 2.0),
    ];
    assert_eq!(of(&open, "fly_rpc_refused_requests_total"), refused);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(scraped, path, &[]).await.status, 200, "{path}");
    }
    for path in [
        "/regions",
        "/functions",
        "/internal/region",
        "/openapi.json",
        "/rpc/iad",
    ] {
        let elsewhere = get(scraped, path, &[token]).await;
        assert_eq!(elsewhere.problem(), (404, "not_found", "no"), "{path}");
    }
}

#[tokio::test]
async fn a_scraper_that_prefers_openmetrics_gets_it_by_that_name() {
    let listen = ("RPC_LISTEN", "127.0.0.1:0".to_owned());
    let local = Process::start(&Environment::from([listen])).await;
    let prefers = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let seen = get(local.address, "/metrics", &[("accept", prefers)]).await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(
        (seen.status, seen.content_type.as_str()),
        (200, content_type)
    );
    let text = seen.body.as_str().unwrap();
    assert!(
        text.contains(r#"fly_rpc_build_info{version="0.1.0",release="",local_region="local"} 1"#)
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn what_memory_and_keys_take_of_their_bounds_is_shown() {
    const BYTES: usize = 300_000;
    let cluster = Cluster::builder().region("iad", 1).functions();
    let cluster = cluster.set("RPC_MAX_MEMORY", "16MiB").start().await;
    let iad = cluster.instance("iad-1");
    let limit = iad.metric("fly_rpc_memory_limit_bytes").await;
    assert_eq!(limit, Some(16 << 20));
    let call = json!({"module": "Test", "function": "few", "args": ["x".repeat(BYTES)], "timeout_ms": 60_000});
    assert_eq!(iad.metric("fly_rpc_keys").await, Some(0));
    let held = iad.request("/rpc/iad", &call.to_string());
    let held = held.header("idempotency-key", "key");
    let held = tokio::spawn(async { answer(held).await.unwrap() });
    let bytes = async || iad.metric("fly_rpc_memory_bytes").await.unwrap();
    let has_it = |bytes: &u64| *bytes >= BYTES as u64;
    eventually("its arguments", bytes, has_it).await;
    let keys = async || iad.metric("fly_rpc_keys").await;
    eventually("its key", keys, |keys| *keys == Some(1)).await;
    cluster.release("few");
    assert_eq!(held.await.unwrap().status, 200);
    eventually("room", bytes, |bytes| *bytes < BYTES as u64).await;
    assert_eq!(keys().await, Some(1));
}
