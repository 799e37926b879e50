//! The memory budget: whatever waits, in requests that come slowly and in answers that nobody takes, the process stays
//! within a figure that follows from `RPC_MAX_MEMORY`, answers health checks meanwhile, and serves again afterwards.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time,
};

use crate::support::{
    asking::blocking,
    cluster::Cluster,
    fault::{Fault, Scope},
    open_files::raise_open_files,
    patience::{eventually, in_time},
    process::{Environment, Process},
    raw,
    redis::Redis,
};

const MAX_MEMORY: &str = "64MiB";
/// The most resident memory: the budget, as much again for copies and for what the allocator keeps, and the idle process
/// with the test's own functions in it.
const MOST_KIB: u64 = (2 * 64 + 48) << 10;
const MIB: usize = 1 << 20;

async fn start(directory: &TempDir) -> Process {
    start_with(directory, &[]).await
}

async fn start_with(directory: &TempDir, settings: &[(&'static str, String)]) -> Process {
    raise_open_files();
    let mut environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_LOG", "warn".to_owned()),
        ("RPC_MAX_MEMORY", MAX_MEMORY.to_owned()),
    ]);
    environment.extend(settings.iter().cloned());
    Process::start_with_functions(&environment, directory.path()).await
}

/// A call of `Test.echo` with `size` bytes, which it returns.
fn echo(size: usize) -> Vec<u8> {
    let text = "x".repeat(size);
    format!(r#"{{"module":"Test","function":"echo","args":["{text}"]}}"#).into_bytes()
}

fn head(length: &str) -> Vec<u8> {
    format!(
        "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
    )
    .into_bytes()
}

async fn send(instance: &Process, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(instance.address).await.unwrap();
    // The instance may refuse it and close before it is all sent.
    let _ = time::timeout(Duration::from_secs(2), stream.write_all(bytes)).await;
    stream
}

/// The state after the test's load is over.
async fn assert_serves_again(instance: &Process) {
    let peak = instance.peak_memory();
    eprintln!("{} MiB at most", peak >> 10);
    assert!(peak < MOST_KIB, "{peak} KiB");
    let call = async || {
        instance
            .call("iad", "Test.echo", json!(["x".repeat(MIB / 2)]))
            .await
            .status
    };
    eventually("served again", call, |status| *status == 200).await;
    assert!(instance.peak_memory() < MOST_KIB);
}

async fn assert_alive(instance: &Process) {
    assert_eq!(instance.get("/healthz").await.status, 200);
    assert_eq!(instance.get("/internal/region").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hundred_slow_bodies() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let mut slow = Vec::new();
    let body = echo(MIB - 100);
    let most = [
        head(&format!("content-length: {}", body.len())),
        body[..MIB - 1000].to_vec(),
    ]
    .concat();
    for number in 0..400 {
        slow.push(send(&instance, &most).await);
        if number % 50 == 0 {
            assert_alive(&instance).await;
        }
    }
    // The last ones were refused before they were read.
    let mut last = slow.pop().unwrap();
    let refused = raw::next(&mut last).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert_eq!(refused.headers["retry-after"], "1");
    drop(slow);
    assert_serves_again(&instance).await;
}

/// In bodies of lines, of which each is a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_lines_that_do_not_end() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let head = "POST /internal/exec HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let call = |id: u32, text: &str| {
        format!(
            r#"{{"id":{id},"region":"iad","module":"Test","function":"echo","args":["{text}"]}}"#
        )
    };
    let long = call(1, &"x".repeat(MIB - 1000));
    let begun = head.to_owned() + &chunk(long.trim_end_matches("\"]}"));
    let mut slow = Vec::new();
    for number in 0..100 {
        slow.push(send(&instance, begun.as_bytes()).await);
        if number % 50 == 0 {
            assert_alive(&instance).await;
        }
    }
    // A further one is refused before its end comes, and the line behind it is not.
    let mut last = TcpStream::connect(instance.address).await.unwrap();
    let rest = chunk(&format!("\"]}}\n{}\n", call(2, "behind")));
    let all = begun + &rest;
    in_time("taking it", last.write_all(all.as_bytes()))
        .await
        .unwrap();
    let mut heard = Vec::new();
    in_time("both answers", async {
        while !heard.ends_with(b"{\"id\":2,\"result\":\"behind\"}\n\r\n") {
            assert_ne!(last.read_buf(&mut heard).await.unwrap(), 0);
        }
    })
    .await;
    let heard = String::from_utf8(heard).unwrap();
    let refused = heard.lines().find(|line| line.starts_with("{\"id\":1,"));
    let refused: Value = serde_json::from_str(refused.unwrap()).unwrap();
    let (code, executed) = (&refused["problem"]["code"], &refused["problem"]["executed"]);
    assert_eq!((code, executed), (&json!("overloaded"), &json!("no")));
    drop(slow);
    assert_serves_again(&instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hundred_results_that_nobody_takes() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let body = echo(MIB - 100);
    let call = [head(&format!("content-length: {}", body.len())), body].concat();
    let mut unread = JoinSet::new();
    for _ in 0..400 {
        let socket = TcpSocket::new_v4().unwrap();
        // So that the kernel takes little of it.
        socket.set_recv_buffer_size(4096).unwrap();
        let (address, call) = (instance.address, call.clone());
        unread.spawn(async move {
            let mut stream = socket.connect(address).await.unwrap();
            let _ = time::timeout(Duration::from_secs(5), stream.write_all(&call)).await;
            stream
        });
    }
    let mut streams = Vec::new();
    while let Some(stream) = unread.join_next().await {
        streams.push(stream.unwrap());
        assert_alive(&instance).await;
    }
    drop(streams);
    assert_serves_again(&instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_partial_heads() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let half = format!(
        "GET /rpc HTTP/1.1\r\nhost: localhost\r\nx: {}",
        "x".repeat(126 << 10)
    );
    let mut heads = Vec::new();
    for number in 0..1000 {
        heads.push(send(&instance, half.as_bytes()).await);
        if number % 100 == 0 {
            assert_alive(&instance).await;
        }
    }
    assert_alive(&instance).await;
    drop(heads);
    assert_serves_again(&instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_in_chunks_of_one_byte_take_their_bytes() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let body = echo(MIB / 4);
    let chunks = body
        .iter()
        .flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    let call = [head("transfer-encoding: chunked"), chunks.collect()].concat();
    let mut slow = JoinSet::new();
    for _ in 0..48 {
        let (address, call) = (instance.address, call.clone());
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // All but its end; the instance may refuse it before.
            let _ = stream.write_all(&call).await;
            stream
        });
    }
    let sent = slow.join_all().await;
    assert_alive(&instance).await;
    drop(sent);
    assert_serves_again(&instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_calls_of_a_megabyte_at_once() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let body = String::from_utf8(echo(1_000_000)).unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..512 {
        let request = instance.request("/rpc/iad", &body);
        calls.spawn(crate::support::process::answer(request));
    }
    let (mut served, mut refused) = (0, 0);
    for answer in calls.join_all().await {
        let answer = answer.unwrap();
        match answer.status {
            200 => served += 1,
            _ => {
                // On a busy machine, some wait out their deadline before they start.
                let (_, code, executed) = answer.problem();
                assert!(
                    ["overloaded", "deadline_exceeded"].contains(&code),
                    "{answer:?}"
                );
                assert_eq!(executed, "no");
                refused += 1;
            }
        }
    }
    eprintln!("{served} served, {refused} refused");
    assert!(served > 10, "{served} served, {refused} refused");
    assert_serves_again(&instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_lengths_that_are_only_promised_keep_nobody_out() {
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let mut promised = Vec::new();
    for _ in 0..100 {
        promised.push(send(&instance, &head("content-length: 1040000")).await);
    }
    let text = "x".repeat(200 << 10);
    let echoed = instance.call("iad", "Test.echo", json!([text])).await;
    assert_eq!(echoed.result(), &text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_are_ready_at_once_stay_within_the_budget() {
    // In one piece of what the instance reads at once.
    const LINES: usize = 80;
    let directory = TempDir::new().unwrap();
    let instance = start(&directory).await;
    let cases = [
        (
            "large",
            "",
            "\"result\":\"x",
            "{\"kind\":\"ResultDropped\",",
        ),
        (
            "fail_large",
            "x",
            "\"data\":\"x",
            "{\"kind\":\"ErrorDropped\",",
        ),
    ];
    for (function, text, whole, dropped) in cases {
        let line = |id| {
            let call = json!({
                "id": id, "region": "iad", "module": "Test", "function": function, "args": [text, MIB],
            });
            format!("{call}\n")
        };
        let lines: String = (0..LINES).map(line).collect();
        let request = reqwest::Client::new()
            .post(format!("http://{}/internal/exec", instance.address))
            .header("content-type", "application/x-ndjson")
            .body(lines);
        let answers = request.send().await.unwrap().text().await.unwrap();
        let whole = answers.matches(whole).count();
        let dropped = answers.matches(dropped).count();
        assert_eq!(whole + dropped, LINES);
        assert!(
            (10..=56).contains(&whole),
            "{whole} of 1 MiB of {function} in a budget of {MAX_MEMORY}"
        );
        assert_serves_again(&instance).await;
    }
}

/// Each result waits until the store has it, and until then is there as a result, as text and in a command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_on_their_way_to_the_store_of_keys_and_from_it_are_counted() {
    const CALLS: usize = 400;
    const SIZE: usize = 900_000;
    let (redis, directory) = (Redis::start().await, TempDir::new().unwrap());
    let instance = start_with(&directory, &[("RPC_KEY_STORE", redis.url())]).await;
    let call = json!({
        "module": "Test", "function": "large", "args": ["", SIZE], "timeout_ms": 60_000,
    })
    .to_string();
    let keyed = |key: String| {
        let request = instance
            .request("/rpc/iad", &call)
            .header("idempotency-key", key);
        crate::support::process::answer(request)
    };
    let is_up = async || keyed("first".to_owned()).await.unwrap().status;
    eventually("the store", is_up, |status| *status == 200).await;
    let mut calls: JoinSet<_> = (0..CALLS)
        // One half runs, the other asks for what came of the first.
        .map(|number| {
            keyed(if number % 2 == 0 {
                number.to_string()
            } else {
                "first".to_owned()
            })
        })
        .collect();
    let mut whole = 0;
    while let Some(answer) = calls.join_next().await {
        let answer = answer.unwrap().unwrap();
        match answer.status {
            200 => whole += 1,
            424 => assert_eq!(answer.body["error"]["kind"], "ResultDropped"),
            // The store may take longer for so many than a command may.
            _ => assert_eq!(&answer.body["code"], "overloaded"),
        }
    }
    assert!(whole >= 20, "{whole} of {CALLS}");
    assert_serves_again(&instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_peers_send_are_counted_while_they_are_read() {
    const CALLS: usize = 16;
    const SIZE: usize = 7 * MIB;
    const BUDGET: usize = 16 * MIB;
    let mut cluster = Cluster::builder()
        .region("syd", 1)
        .functions()
        .proxied()
        .start()
        .await;
    cluster.add_with("iad", "RPC_MAX_MEMORY", "16MiB").await;
    let iad = cluster.instance("iad-1");
    let call = json!({
        "module": "Test", "function": "large", "args": ["large", SIZE], "timeout_ms": 60_000,
    });
    let one = async || {
        let answer = iad.post("/rpc/syd", &call.to_string()).await;
        assert_eq!(answer.result().as_str().unwrap().len(), SIZE);
    };
    // From then on, each travels on a connection of its own.
    one().await;
    let before = iad.peak_memory();
    let slow = Fault::Delay(Duration::from_millis(2));
    cluster.proxy("syd-1").set(slow, Scope::Lines).await;
    let (mut whole, mut dropped) = (0, 0);
    // On a busy machine they may come one after the other, and then there is room for each.
    for _ in 0..5 {
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let request = iad.request("/rpc/syd", &call.to_string());
            calls.spawn(crate::support::process::answer(request));
        }
        for answer in calls.join_all().await {
            let answer = answer.unwrap();
            if answer.status == 200 {
                assert_eq!(answer.result().as_str().unwrap().len(), SIZE);
                whole += 1;
                continue;
            }
            // On a busy machine, a connection may come too late, and the peer is taken to be down then.
            let late = [
                (502, "peer_unreachable", "no"),
                (503, "region_unavailable", "no"),
            ];
            if late.contains(&answer.problem()) {
                continue;
            }
            assert_eq!(answer.problem(), (424, "function_failed", "yes"));
            assert_eq!(answer.body["meta"]["consistency"], "large");
            assert_eq!(answer.body["error"]["kind"], "ResultDropped");
            dropped += 1;
        }
        if dropped > 0 {
            break;
        }
    }
    let grown = iad.peak_memory() - before;
    eprintln!("{whole} whole, {dropped} dropped, {grown} KiB more at most");
    // What came is copied as the buffer grows, which doubles it, and once more as the result: 30 to 70 MiB were seen, and 200
    // without the count.
    assert!(grown < 6 * (BUDGET >> 10) as u64, "{grown} KiB");
    assert!(dropped > 0, "{whole} whole");
    cluster.proxy("syd-1").heal().await;
    one().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_budget_loses_no_small_answer_of_a_peer() {
    let mut cluster = Cluster::builder()
        .region("syd", 1)
        .functions()
        .start()
        .await;
    cluster.add_with("iad", "RPC_MAX_MEMORY", "4MiB").await;
    let iad = cluster.instance("iad-1");
    let names = ["a", "b", "c"];
    let mut waiting = JoinSet::new();
    for name in names {
        let request = iad.request("/rpc/syd", &blocking(name, &json!({})).to_string());
        waiting.spawn(crate::support::process::answer(request));
        cluster.until_started(name).await;
    }
    let _unread = until_over(iad, (4 * MIB) / 8 * 7).await;
    for name in names {
        cluster.release(name);
    }
    for answer in waiting.join_all().await {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // It is full still.
    let refused = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
}

/// An answer that nobody takes, with the largest result that has room in `room` bytes: with its other members it is more.
async fn until_over(instance: &Process, room: usize) -> TcpStream {
    for size in (0..room).rev().step_by(50) {
        let call = format!(r#"{{"module":"Test","function":"large","args":["x",{size}]}}"#);
        let length = head(&format!("content-length: {}", call.len()));
        let socket = TcpSocket::new_v4().unwrap();
        // So that the kernel takes little of it.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(instance.address).await.unwrap();
        let call = [length, call.into_bytes()].concat();
        stream.write_all(&call).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        if start == *b"HTTP/1.1 200" {
            return stream;
        }
    }
    panic!("no result has room");
}
