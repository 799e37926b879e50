//! Signals: what is in flight is finished, what is new is refused, and the exit code says how it ended.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::Instant,
};

use crate::support::{
    asking::{block as block_via, blocking, two_regions},
    cluster::{Cluster, instances_in_state},
    patience::{eventually, in_time},
    process::{Answer, Environment, Process, answer},
    raw,
};

/// A call of `Test.block` in the instance's own region under way; an error when it is cut.
fn block(instance: &Process, name: &str) -> JoinHandle<reqwest::Result<Answer>> {
    let call = blocking(name, &json!({})).to_string();
    tokio::spawn(answer(
        instance.request(&format!("/rpc/{}", instance.region), &call),
    ))
}

/// One instance, and its call `held`, which has started.
async fn one_that_holds_a_call() -> (Cluster, JoinHandle<reqwest::Result<Answer>>) {
    let cluster = Cluster::builder().region("iad", 1).functions();
    let cluster = cluster.start().await;
    let held = block(cluster.instance("iad-1"), "held");
    cluster.until_marked("held.started").await;
    (cluster, held)
}

/// Has the processes that are started from now on not ignore SIGHUP, as they would where the tests run under `nohup`: what
/// this process has a handler for is reset in those that it starts.
fn reset_hang_up() {
    // The handler stays.
    drop(signal(SignalKind::hangup()).unwrap());
}

#[tokio::test]
async fn a_signal_with_nothing_in_flight_ends_with_0() {
    reset_hang_up();
    for send in [Process::terminate, Process::interrupt, Process::hang_up] {
        let mut cluster = Cluster::builder().region("iad", 1).start().await;
        send(cluster.instance("iad-1"));
        assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_terminal_that_is_closed_cuts_no_call() {
    reset_hang_up();
    let (mut cluster, held) = one_that_holds_a_call().await;
    let iad = cluster.instance("iad-1");
    iad.hang_up();
    let refused = async || iad.call("iad", "Kernel.+", json!([1, 2])).await;
    eventually("refusal", refused, |answer| answer.status == 503).await;
    // As a shell and the kernel may send one each.
    iad.hang_up();
    cluster.release("held");
    assert_eq!(held.await.unwrap().unwrap().result(), "released");
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_hang_up_ends_nothing_where_it_is_ignored() {
    let mut command = Command::new("sh");
    let serve = "trap '' HUP; exec \"$0\" serve";
    command.args(["-c", serve, env!("CARGO_BIN_EXE_fly-rpc")]);
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    let mut local = Process::spawn(command, &environment).await;
    local.hang_up();
    let answer = local.call("local", "String.upcase", json!(["fly"])).await;
    assert_eq!(answer.result(), "FLY");
    local.terminate();
    assert_eq!(local.ended().await.code(), Some(0));
    assert_eq!(local.log().matches("stopping").count(), 1);
}

#[tokio::test]
async fn calls_in_flight_are_finished_and_new_ones_refused() {
    let mut cluster = two_regions().functions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let held = block(syd, "held");
    cluster.until_marked("held.started").await;
    syd.terminate();

    let refused = async || syd.call("syd", "Kernel.+", json!([1, 2])).await;
    let refused = eventually("refusal", refused, |answer| answer.status == 503).await;
    assert_eq!(refused.problem(), (503, "draining", "no"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(syd.get("/readyz").await.problem(), (503, "draining", "no"));
    assert_eq!(syd.get("/healthz").await.status, 200);
    let from_afar = iad.call("syd", "Kernel.+", json!([1, 2])).await;
    assert_eq!(from_afar.problem(), (503, "draining", "no"));
    let draining = async || instances_in_state(iad, "draining").await;
    eventually("peers know", draining, |seen| seen.contains("syd-1")).await;

    cluster.release("held");
    assert_eq!(held.await.unwrap().unwrap().result(), "released");
    assert_eq!(cluster.instance_mut("syd-1").ended().await.code(), Some(0));
}

#[tokio::test]
async fn calls_are_still_served_during_the_drain_delay() {
    let cluster = two_regions().set("RPC_DRAIN_DELAY", "60s").start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let single = json!({"region": "syd", "module": "Kernel", "function": "+", "args": [1, 2]});
    let single = async || {
        let answer = syd.post("/internal/exec", &single.to_string()).await;
        assert_eq!(answer.result(), 3);
        answer.headers.get("rpc-state").cloned()
    };
    assert_eq!(single().await, None);
    syd.terminate();
    let seen = async || syd.get("/internal/region").await.body["state"].clone();
    eventually("the peers know", seen, |state| state == "draining").await;
    assert_eq!(syd.get("/readyz").await.problem(), (503, "draining", "no"));
    assert_eq!(iad.call("syd", "Kernel.+", json!([1, 2])).await.result(), 3);
    assert_eq!(single().await.unwrap(), "draining");
}

#[tokio::test]
async fn what_is_called_while_an_instance_drains_cuts_no_call_that_is_under_way_there() {
    let cluster = two_regions()
        .functions()
        .set("RPC_DRAIN_DELAY", "60s")
        .start()
        .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let mut held = vec![block_via(iad, "syd", "before", &json!({}))];
    cluster.until_started("before").await;
    syd.terminate();
    let draining = async || instances_in_state(iad, "draining").await;
    eventually("draining", draining, |seen| seen.contains("syd-1")).await;
    for number in 0..8 {
        assert_eq!(iad.call("syd", "Kernel.+", json!([1, 2])).await.result(), 3);
        let name = format!("meanwhile-{number}");
        held.push(block_via(iad, "syd", &name, &json!({})));
        cluster.until_started(&name).await;
        cluster.release(&name);
    }
    cluster.release("before");
    for held in held {
        assert_eq!(held.await.unwrap().result(), "released");
    }
}

#[tokio::test]
async fn a_call_in_flight_goes_on_to_its_next_region_while_its_instance_refuses_others() {
    let mut cluster = two_regions().region("fra", 1).functions().start().await;
    let iad = cluster.instance("iad-1");
    let call = block_via(iad, "syd,fra", "held", &json!({"idempotent": true}));
    cluster.until_started("held").await;
    iad.terminate();
    let refused = async || iad.call("syd", "Kernel.+", json!([1, 2])).await;
    let refused = eventually("refusal", refused, |answer| answer.status == 503).await;
    assert_eq!(refused.problem(), (503, "draining", "no"));
    cluster.instance("syd-1").kill();
    let starts = async || cluster.starts("held");
    eventually("the second attempt", starts, |starts| starts.len() == 2).await;
    cluster.release("held");
    let answer = call.await.unwrap();
    assert_eq!(
        (answer.result(), answer.instance()),
        (&json!("released"), "fra-1")
    );
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(0));
}

#[tokio::test]
async fn calls_to_an_instance_that_drains_share_a_connection_until_it_refuses_them() {
    let mut cluster = two_regions()
        .functions()
        .proxied()
        .set("RPC_DRAIN_DELAY", "2s")
        .start()
        .await;
    let (iad, way) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    cluster.instance("syd-1").terminate();
    let draining = async || instances_in_state(iad, "draining").await;
    eventually("draining", draining, |seen| seen.contains("syd-1")).await;
    let before = way.posts();
    let call = async || iad.call("syd", "Kernel.+", json!([1, 2])).await;
    let mut served = 0;
    let refused = loop {
        let answer = call().await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
    };
    // One that is idle for half a second is closed, so that the instance need not close it while a call is on its way.
    let connections = way.posts() - before;
    assert!(served >= 10, "{served} calls");
    assert!(connections <= 5, "{connections} for {served} calls");
    assert_eq!(refused.problem(), (503, "draining", "no"));
    assert_eq!(cluster.instance_mut("syd-1").ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_outlives_the_drain_timeout_is_cut_and_shown_by_the_exit_code() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .start()
        .await;
    let held = block(cluster.instance("iad-1"), "held");
    cluster.until_marked("held.started").await;
    cluster.instance("iad-1").terminate();
    assert!(held.await.unwrap().is_err());
    cluster.instance_mut("iad-1").ended().await;
}

/// Its end is that of a broken answer: a call that may have run has no line.
#[tokio::test]
async fn an_answer_in_lines_that_was_cut_does_not_look_whole() {
    for number in 0..4 {
        let cluster = Cluster::builder()
            .region("iad", 1)
            .functions()
            .set("RPC_DRAIN_TIMEOUT", "200ms");
        let cluster = cluster.start().await;
        let iad = cluster.instance("iad-1");
        let mut held = blocking("held", &json!({}));
        held["region"] = json!("iad");
        let lines = reqwest::Client::new()
            .post(format!("http://{}/internal/exec", iad.address))
            .header("content-type", "application/x-ndjson")
            .body(format!("{held}\n"));
        let answers = lines.send().await.unwrap();
        cluster.until_started("held").await;
        iad.terminate();
        let answers = in_time("the end", answers.text()).await;
        assert!(answers.is_err(), "{number}: {answers:?}");
    }
}

#[tokio::test]
async fn the_program_ends_with_1_when_a_call_was_cut() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let sleep =
        json!({"module": "Process", "function": "sleep", "args": [60_000], "timeout_ms": 60_000});
    let held = tokio::spawn(answer(iad.request("/rpc/iad", &sleep.to_string())));
    let in_flight = async || iad.in_flight().await;
    eventually("the call", in_flight, |calls| *calls == 1).await;
    iad.terminate();
    assert!(held.await.unwrap().is_err());
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(1));
}

#[tokio::test]
async fn the_program_ends_with_1_when_an_answer_was_cut_that_its_client_did_not_take() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .set("RPC_MAX_BODY", "8MiB")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    // More than the kernel holds for a client that reads nothing.
    let call = json!({"module": "String", "function": "upcase", "args": ["x".repeat(7 << 20)]});
    let (call, mut stream) = (
        call.to_string(),
        TcpStream::connect(iad.address).await.unwrap(),
    );
    let length = call.len();
    let head = format!(
        "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(call.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    iad.terminate();
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_request_whose_body_does_not_arrive_is_refused_soon_after_calls_are() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let iad = cluster.instance("iad-1");
    let mut half_sent = TcpStream::connect(iad.address).await.unwrap();
    half_sent.write_all(b"POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
    assert_eq!(iad.get("/healthz").await.status, 200);
    let signalled = Instant::now();
    iad.terminate();
    let refused = raw::next(&mut half_sent).await;
    assert_eq!(refused.problem(), (503, "draining", "no"));
    assert!(signalled.elapsed() < SOON, "{:?}", signalled.elapsed());
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(0));
}

/// How long a program may take to end that ends at once. It has a margin for busy machines: what it must not wait for takes 2 s.
const AT_ONCE: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DRAIN_DELAY", "60s")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    iad.terminate();
    eventually(
        "draining",
        async || iad.get("/readyz").await.status,
        |status| *status == 503,
    )
    .await;
    iad.interrupt();
    // Nothing was cut.
    assert_eq!(cluster.instance_mut("iad-1").ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_waits_for_no_collector_of_traces() {
    // It takes connections, and answers nothing.
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    for delay in ["60s", "0s"] {
        // A busy machine may hold up one of them; a wait holds up all.
        let mut took = Vec::new();
        while took.len() < 5 && took.iter().all(|it| *it >= AT_ONCE) {
            took.push(second_signal_to_end(delay, &endpoint).await);
        }
        assert!(took.last().is_some_and(|it| *it < AT_ONCE), "{took:?}");
    }
}

/// How long an instance that drains for `delay`, and sends its traces to `endpoint`, takes to end after a second signal.
async fn second_signal_to_end(delay: &str, endpoint: &str) -> Duration {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DRAIN_DELAY", delay)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    assert_eq!(iad.call("iad", "Kernel.+", json!([1, 2])).await.result(), 3);
    iad.terminate();
    match delay {
        "60s" => {
            let state = async || iad.get("/readyz").await.status;
            eventually("draining", state, |status| *status == 503).await;
        }
        // It has drained, and waits for the collector only.
        _ => {
            let is_open = async || TcpStream::connect(iad.address).await.is_ok();
            eventually("the end of the drain", is_open, |is_open| !is_open).await;
        }
    }
    let signalled = Instant::now();
    iad.terminate();
    let ended = cluster.instance_mut("iad-1").ended().await;
    assert_eq!(ended.code(), Some(0));
    signalled.elapsed()
}

#[tokio::test]
async fn every_answer_informs_the_caller_of_a_drain() {
    let mut cluster = Cluster::builder()
        .region("syd", 4)
        .functions()
        .set("RPC_DRAIN_DELAY", "60s")
        .start()
        .await;
    // So that it learns of the drain from answers only.
    let found = ["iad-1", "syd-1", "syd-2", "syd-3", "syd-4"];
    cluster.add_with_one_round("iad", &found).await;
    let syd = ["syd-1", "syd-2", "syd-3", "syd-4"];
    let all: BTreeSet<String> = syd.map(str::to_owned).into();
    for name in syd {
        let instance = cluster.instance(name);
        instance.terminate();
        let seen = async || instance.get("/readyz").await.status;
        eventually("draining", seen, |status| *status == 503).await;
    }
    let iad = cluster.instance("iad-1");
    assert_eq!(instances_in_state(iad, "draining").await, BTreeSet::new());
    for (name, function, args, status) in [
        ("syd-1", "upcase", json!(["fly"]), 200),
        ("syd-2", "upcase", json!([1]), 422),
        ("syd-3", "shout", json!(["fly"]), 404),
        ("syd-4", "upcase", json!([]), 422),
    ] {
        let call =
            json!({"module": "String", "function": function, "args": args, "instance": name});
        assert_eq!(iad.rpc("syd", &call).await.status, status);
    }
    let draining = async || instances_in_state(iad, "draining").await;
    eventually("all are known to drain", draining, |seen| *seen == all).await;
    // No instance is left that does not drain, and these still serve.
    assert_eq!(iad.call("syd", "Kernel.+", json!([1, 2])).await.result(), 3);
}

/// What the first request of a connection may take while the instance stops, with a margin for busy machines; otherwise a
/// head may take 10 s.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_connection_without_a_whole_head_is_just_closed() {
    for (sent, timeout) in [
        (&b""[..], "60s"),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", "60s"),
        (b"POST /rpc/iad HTTP/1.1\r\nho", "60s"),
        (b"POST /rpc/iad HTTP/1.1\r\nho", "500ms"),
    ] {
        let mut cluster = Cluster::builder()
            .region("iad", 1)
            .set("RPC_DRAIN_TIMEOUT", timeout)
            .start()
            .await;
        let iad = cluster.instance("iad-1");
        let mut stream = TcpStream::connect(iad.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        if sent.ends_with(b"\r\n\r\n") {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
        // Connections are accepted in order: this one is known when the next is answered.
        assert_eq!(iad.get("/healthz").await.status, 200);
        let signalled = Instant::now();
        iad.terminate();
        let ended = cluster.instance_mut("iad-1").ended().await;
        let what = (String::from_utf8_lossy(sent), timeout, signalled.elapsed());
        assert_eq!(ended.code(), Some(0), "{what:?}");
        assert!(what.2 < SOON, "{what:?}");
        let mut rest = Vec::new();
        // A reset or a plain end: the connection is gone either way.
        let _ = in_time("the end", stream.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once_also_with_calls_in_flight() {
    let (mut cluster, call) = one_that_holds_a_call().await;
    let iad = cluster.instance("iad-1");
    iad.terminate();
    let seen = async || iad.get("/readyz").await.status;
    eventually("draining", seen, |status| *status == 503).await;
    iad.terminate();
    cluster.instance_mut("iad-1").ended().await;
    assert!(call.await.unwrap().is_err());
    // Also in its log, as every call is.
    let log = cluster.instance("iad-1").log();
    assert_eq!(log.matches("call abandoned").count(), 1, "{log}");
}
