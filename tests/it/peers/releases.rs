//! Instances of other releases: what a newer one says beyond what this one knows, and what an older one leaves out.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::support::{
    asking::{block, failure},
    cluster::{Cluster, ready_instances},
    patience::{eventually, in_time},
    process::answer,
};

const UPGRADED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: fly-rpc-lines\r\n\r\n";

/// An instance of another release, in syd: introduces itself as `introduction`, and answers each call as `reply` says.
async fn other_release(address: SocketAddr, introduction: Value, reply: fn(id: u64) -> Vec<Value>) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection, introduction.to_string(), reply));
        }
    });
}

async fn serve(connection: TcpStream, introduction: String, reply: fn(u64) -> Vec<Value>) {
    let mut connection = BufReader::new(connection);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if connection.read_line(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    if request.starts_with("GET /internal/region") {
        let length = introduction.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        connection
            .write_all((head + &introduction).as_bytes())
            .await
            .unwrap();
        return;
    }
    if !request.starts_with("POST /internal/exec") {
        let none = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        connection.write_all(none.as_bytes()).await.unwrap();
        return;
    }
    connection.write_all(UPGRADED.as_bytes()).await.unwrap();
    let mut line = String::new();
    while connection.read_line(&mut line).await.unwrap_or(0) > 0 {
        let call: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let Some(id) = call["id"].as_u64() else {
            continue;
        };
        let lines: String = reply(id).iter().map(|line| format!("{line}\n")).collect();
        connection.write_all(lines.as_bytes()).await.unwrap();
    }
}

fn introduction() -> Value {
    json!({
        "region": "syd", "instance": "syd-1", "app": null, "release": null, "primary": "iad", "state": "ready",
        "protocol": 1, "catalogue": "0123456789abcdef",
    })
}

/// `iad-1`, and at another address what is in syd.
async fn cluster_with(introduction: Value, reply: fn(u64) -> Vec<Value>) -> Cluster {
    cluster_with_all(&[introduction], reply).await
}

/// The same with several in syd, which reply alike.
async fn cluster_with_all(introductions: &[Value], reply: fn(u64) -> Vec<Value>) -> Cluster {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let mut addresses = cluster.addresses();
    let mut all = vec!["iad-1"];
    for introduction in introductions {
        let address = cluster.free_address();
        other_release(address, introduction.clone(), reply).await;
        addresses.push(address.ip());
        all.push(introduction["instance"].as_str().unwrap());
    }
    cluster
        .dns
        .set_addresses(crate::support::cluster::NAME, addresses);
    cluster.until_ready("iad-1", &all).await;
    cluster
}

#[tokio::test]
async fn a_newer_peer_may_say_more_than_is_known_here() {
    let mut newer = introduction();
    newer["boot"] = json!("0123456789abcdef0123456789abcdef");
    newer["weather"] = json!({"sky": "blue"});
    let cluster = cluster_with(newer, |id| {
        vec![
            json!({}),
            json!({"weather": "fine"}),
            json!({"state": "resting"}),
            json!({"id": id, "problem": {
                "type": "/docs/problems#quota_spent", "title": "Quota is spent", "status": 429, "detail": "come back",
                "code": "quota_spent", "executed": "no", "error": null, "colour": "red",
                "meta": {"region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": 1.0, "request_id": "r"},
            }}),
        ]
    });
    let cluster = cluster.await;
    let iad = cluster.instance("iad-1");
    let refused = iad.call("syd", "String.upcase", json!(["fly"])).await;
    assert_eq!(refused.problem(), (429, "quota_spent", "no"));
    assert_eq!(refused.body["title"], "Quota is spent");
    assert_eq!(refused.body["detail"], "come back");
    let still = ready_instances(iad).await;
    assert!(
        still.contains("syd-1"),
        "a line that is not known here made it draining"
    );
}

#[tokio::test]
async fn an_older_peer_may_leave_out_what_is_new() {
    let cluster = cluster_with(introduction(), |id| {
        vec![json!({"id": id, "result": "FLY"})]
    });
    let cluster = cluster.await;
    let iad = cluster.instance("iad-1");
    let upper = iad.call("syd", "String.upcase", json!(["fly"])).await;
    assert_eq!(upper.result(), "FLY");
}

#[tokio::test]
async fn callers_of_other_releases_are_served() {
    let cluster = Cluster::builder().region("iad", 1).start().await;
    let iad = cluster.instance("iad-1");
    let mut connection = TcpStream::connect(iad.address).await.unwrap();
    // A newer one says more, in lines and in members; an older one says nothing of its clock.
    let lines = [
        json!({"weather": "fine"}),
        json!({"id": 1, "region": "iad", "module": "String", "function": "upcase", "args": ["a"], "mood": "good"}),
        json!({"ping": 1}),
    ];
    let lines = lines.map(|line| format!("{line}\n")).concat();
    let head = format!(
        "POST /internal/exec HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: fly-rpc-lines\r\n\r\n",
        iad.address
    );
    connection
        .write_all((head + &lines).as_bytes())
        .await
        .unwrap();
    let mut heard = Vec::new();
    let wanted = b"{\"pong\":1}\n{\"id\":1,\"result\":\"A\"}\n";
    in_time("both answers", async {
        while !heard.ends_with(wanted) {
            connection.read_buf(&mut heard).await.unwrap();
        }
    })
    .await;
    // The form of HTTP for one call, with a member that is not known here.
    let one = json!({"region": "iad", "module": "String", "function": "upcase", "args": ["a"], "mood": "good"});
    let one = answer(iad.request("/internal/exec", &one.to_string()))
        .await
        .unwrap();
    assert_eq!(one.result(), "A");
}

#[tokio::test]
async fn a_call_that_is_too_large_for_a_peer_is_refused_and_harms_no_other() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .start()
        .await;
    cluster.add_with("syd", "RPC_MAX_BODY", "8KiB").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let iad = cluster.instance("iad-1");
    let held = block(iad, "syd", "held", &json!({}));
    cluster.until_started("held").await;
    // On the connection that the others share, and on one of its own.
    for size in [20 << 10, 900 << 10] {
        let large = iad.call("syd", "Test.echo", json!(["x".repeat(size)]));
        let small = async || iad.call("syd", "Test.echo", json!(["small"])).await;
        let (refused, before, after) = tokio::join!(large, small(), small());
        assert_eq!(failure(&refused), ("body_too_large", "no", 1));
        assert_eq!(refused.status, 413);
        let detail = "instance syd-1 takes a body of at most 8192 bytes (RPC_MAX_BODY)";
        assert_eq!(refused.detail(), detail);
        for answer in [before, after, small().await] {
            assert_eq!(answer.result(), "small");
        }
    }
    cluster.release("held");
    assert_eq!(held.await.unwrap().result(), "released");
    assert!(!iad.log().contains("connection lost"));
}

/// The answer of a peer to the call `id`, a problem.
fn problem(id: u64, code: &str, status: u16, executed: &str) -> Value {
    json!({"id": id, "problem": {
        "type": "x", "title": "x", "status": status, "detail": "too late", "code": code, "executed": executed, "error": null,
        "meta": {"region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": 1.0, "request_id": "r"},
    }})
}

/// That of one that finds the call `id` too late.
fn too_late(id: u64, executed: &str) -> Value {
    problem(id, "deadline_exceeded", 504, executed)
}

/// A peer that finds every call too late but the first on each connection, as after one of the two machines stood still.
#[tokio::test]
async fn a_call_that_a_peer_finds_too_late_by_its_clock_alone_goes_on_a_new_connection() {
    let cluster = cluster_with(introduction(), |id| {
        vec![match id {
            0 => json!({"id": id, "result": "in time"}),
            _ => too_late(id, "no"),
        }]
    });
    let cluster = cluster.await;
    let iad = cluster.instance("iad-1");
    for size in [1, 100 << 10] {
        for _ in 0..3 {
            let text = json!(["x".repeat(size)]);
            let answer = iad.call("syd", "String.upcase", text).await;
            assert_eq!(answer.result(), "in time");
        }
    }
}

/// Where it began a call and ended it too early, that one is not sent again, and those after it have their time.
#[tokio::test]
async fn after_a_call_that_a_peer_ends_too_early_by_its_clock_the_next_ones_have_a_new_connection()
{
    let cluster = cluster_with(introduction(), |id| {
        vec![match id {
            0 => json!({"id": id, "result": "in time"}),
            _ => too_late(id, "maybe"),
        }]
    });
    let cluster = cluster.await;
    let iad = cluster.instance("iad-1");
    for size in [1, 100 << 10] {
        let text = json!(["x".repeat(size)]);
        for _ in 0..2 {
            let answer = iad.call("syd", "String.upcase", text.clone()).await;
            assert_eq!(answer.result(), "in time");
            let answer = iad.call("syd", "String.upcase", text.clone()).await;
            assert_eq!(answer.problem(), (504, "deadline_exceeded", "maybe"));
        }
    }
}

/// Of two peers, the one that may have run the call lacks the function from then on.
#[tokio::test]
async fn a_keyed_call_that_may_have_run_has_three_attempts_also_where_it_is_refused_as_unknown() {
    let peers = ["syd-1", "syd-2"].map(|instance| {
        let mut introduction = introduction();
        introduction["instance"] = json!(instance);
        introduction
    });
    let cluster = cluster_with_all(&peers, |id| {
        vec![match id {
            0 => problem(id, "overloaded", 503, "maybe"),
            _ => problem(id, "function_unknown", 404, "no"),
        }]
    });
    let cluster = cluster.await;
    let iad = cluster.instance("iad-1");
    let call = json!({"module": "String", "function": "upcase", "args": ["a"]});
    let request = iad.request("/rpc/syd", &call.to_string());
    let lost = answer(request.header("idempotency-key", "key"))
        .await
        .unwrap();
    assert_eq!(failure(&lost), ("overloaded", "maybe", 3));
}

/// One that finds every call too late answers all the same.
#[tokio::test]
async fn a_call_that_a_peer_finds_too_late_on_every_connection_ends_with_its_answer() {
    let cluster = cluster_with(introduction(), |id| vec![too_late(id, "no")]).await;
    let iad = cluster.instance("iad-1");
    for size in [1, 100 << 10] {
        let text = json!(["x".repeat(size)]);
        let answer = iad.call("syd", "String.upcase", text).await;
        assert_eq!(answer.problem(), (504, "deadline_exceeded", "no"));
        assert_eq!(answer.detail(), "too late");
    }
}

#[tokio::test]
async fn a_peer_that_changes_without_end_is_not_probed_without_end() {
    let cluster = cluster_with(introduction(), |id| {
        let mut lines = vec![json!({"changed": 1}); 20];
        lines.push(json!({"id": id, "result": "FLY"}));
        lines
    });
    let cluster = cluster.await;
    let iad = cluster.instance("iad-1");
    let answered = async || iad.metric("fly_rpc_probe_duration_seconds_count").await;
    let (started, before) = (Instant::now(), answered().await.unwrap());
    for _ in 0..1_000 {
        let upper = iad.call("syd", "String.upcase", json!(["fly"])).await;
        assert_eq!(upper.result(), "FLY");
    }
    let probes = answered().await.unwrap() - before;
    // Two addresses, every 80 ms at most, and the one of them four times a second besides.
    let most = 3.0 + started.elapsed().as_secs_f64() * (2.0 / 0.08 + 4.0);
    assert!(probes as f64 <= most, "{probes} probes, {most} at most");
}

/// A program at a peer's address that switches to a protocol of its own was sent no call.
#[tokio::test]
async fn an_upgrade_to_another_protocol_is_no_connection() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let address = cluster.free_address();
    let listener = TcpListener::bind(address).await.unwrap();
    let said = introduction().to_string();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let said = said.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let count = connection.read(&mut request).await.unwrap_or(0);
                let answer = match request[..count].starts_with(b"POST /internal/exec") {
                    true => UPGRADED.replace("fly-rpc-lines", "websocket"),
                    false => format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{said}",
                        said.len()
                    ),
                };
                let _ = connection.write_all(answer.as_bytes()).await;
                // What is sent behind it has no answer.
                while connection.read(&mut request).await.unwrap_or(0) > 0 {}
            });
        }
    });
    let mut addresses = cluster.addresses();
    addresses.push(address.ip());
    cluster
        .dns
        .set_addresses(crate::support::cluster::NAME, addresses);
    let iad = cluster.instance("iad-1");
    let seen = async || ready_instances(iad).await;
    eventually("both", seen, |seen| seen.contains("syd-1")).await;
    let call =
        json!({"module": "String", "function": "upcase", "args": ["fly"], "timeout_ms": 5_000});
    let answer = iad.rpc("syd", &call).await;
    assert_eq!(answer.problem(), (502, "peer_unreachable", "no"));
}
