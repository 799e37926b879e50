//! The log: it never stops or slows the service, whatever becomes of its reader.

use std::{
    fs::File,
    io::{BufRead, BufReader, PipeWriter, Write},
    net::Ipv4Addr,
    process::{ExitStatus, Stdio},
    thread,
};

use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket, unix::pipe},
    process::Command,
    task,
};

use crate::support::{
    asking::two_regions,
    cluster::Cluster,
    network::Network,
    patience::{eventually, in_time},
    process::{Environment, Process, answer},
};

/// An instance whose log goes to `stderr`.
async fn logs_to(stderr: PipeWriter) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command.arg("serve");
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    Process::spawn_with_stderr(command, &environment, Stdio::from(stderr)).await
}

/// Serves two calls and stops, with its log going to `stderr`.
async fn serves_with(stderr: PipeWriter) -> ExitStatus {
    let mut local = logs_to(stderr).await;
    for word in ["one", "two"] {
        let call = local.call("local", "String.upcase", json!([word]));
        let answer = in_time("a call", call).await;
        assert_eq!(answer.result(), &word.to_uppercase());
    }
    local.terminate();
    local.ended().await
}

#[tokio::test]
async fn a_closed_log_harms_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(serves_with(writer).await.code(), Some(0));
}

#[tokio::test]
async fn a_full_disk_keeps_no_instance_from_its_start() {
    let address = Network::free().next_address();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command
        .args([
            "serve",
            "--listen",
            &address.to_string(),
            "--drain-delay",
            "0s",
        ])
        .env_clear()
        .stdout(full())
        .stderr(full())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let listens = async || TcpStream::connect(address).await.is_ok();
    eventually("a listener", listens, |listens| *listens).await;
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let ended = in_time("the end", child.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // Fills the pipe and waits in it until the reader is gone.
    let filled = std::thread::spawn(move || while filler.write_all(&[b'\n'; 4096]).is_ok() {});
    assert_eq!(serves_with(writer).await.code(), Some(0));
    drop(reader);
    filled.join().unwrap();
}

#[tokio::test]
async fn lines_of_another_process_on_the_same_pipe_stand_between_ours() {
    const CALLS: usize = 500;
    const OTHER: &str = "another process";
    let (reader, writer) = std::io::pipe().unwrap();
    let mut other = writer.try_clone().unwrap();
    let line = format!("{OTHER}\n");
    let wrote = thread::spawn(move || while other.write_all(line.as_bytes()).is_ok() {});
    let read = task::spawn_blocking(move || {
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        for _ in 0..CALLS {
            let is_call = |line: &String| line != OTHER && json_of(line)["message"] == "call";
            lines.find(is_call).unwrap();
        }
    });
    let local = logs_to(writer).await;
    let calls = (0..CALLS).map(|_| local.call("local", "String.upcase", json!(["fly"])));
    for answer in in_time("the calls", join_all(calls)).await {
        assert_eq!(answer.result(), "FLY");
    }
    in_time("their lines", read).await.unwrap();
    wrote.join().unwrap();
}

fn json_of(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The lines with `message` that `instance` writes about the request `id`, once there is one.
async fn lines(instance: &Process, message: &str, id: &str) -> Vec<Value> {
    let is_about_it = |line: &Value| line["request_id"] == id || line["span"]["request_id"] == id;
    lines_where(instance, message, is_about_it).await
}

#[tokio::test]
async fn one_request_id_is_in_the_logs_of_both_instances_and_of_the_function() {
    let cluster = two_regions().functions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let call = r#"{"module":"Test","function":"log","args":["from the function"]}"#;
    let request = iad
        .request("/rpc/syd", call)
        .header("x-request-id", "the-one");
    assert_eq!(answer(request).await.unwrap().result(), "from the function");
    let edge = lines(iad, "call", "the-one").await;
    let seen = |line: &Value| (line["function"].clone(), line["instance"].clone());
    assert_eq!(
        edge.iter().map(seen).collect::<Vec<_>>(),
        [(json!("Test.log"), json!("syd-1"))]
    );
    let exec = lines(syd, "exec", "the-one").await;
    assert_eq!((exec.len(), &exec[0]["function"]), (1, &json!("Test.log")));
    assert_eq!(lines(syd, "from the function", "the-one").await.len(), 1);
}

#[tokio::test]
async fn a_line_of_a_library_says_of_which() {
    let dns = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DNS_NAME", "fly.test".to_owned()),
        ("RPC_DNS_SERVER", dns.local_addr().unwrap().to_string()),
    ]);
    // Answers each question under another id.
    task::spawn(async move {
        let mut message = [0; 512];
        while let Ok((length, asker)) = dns.recv_from(&mut message).await {
            message[0] ^= 1;
            message[2] |= 0x80;
            let _ = dns.send_to(&message[..length], asker).await;
        }
    });
    let instance = Process::start(&environment).await;
    let its = lines_where(&instance, "ignoring response with wrong message id", |_| {
        true
    })
    .await;
    assert_eq!(its[0]["target"], "hickory_net::udp::udp_client_stream");
    // One that writes through `log`, which knows the file as it was on the machine that built it.
    let nobody = Network::free().next_address();
    let local = Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DNS_NAME", nobody.to_string()),
        ("RPC_LOG", "info,reqwest=debug".to_owned()),
    ]))
    .await;
    let message = format!("starting new connection 'Some(\"{}\")'", nobody.ip());
    let mut its = lines_where(&local, &message, |_| true).await.remove(0);
    assert!(its.as_object_mut().unwrap().remove("timestamp").is_some());
    let expected = json!({"level": "DEBUG", "target": "reqwest::connect", "message": message});
    assert_eq!(its, expected);
    let message = "DNS gave no whole answer; known peers keep serving";
    let ours = lines_where(&instance, message, |_| true).await;
    assert_eq!(ours[0].get("target"), None);
}

#[tokio::test]
async fn a_failed_attempt_is_logged_under_the_request_id_and_its_cause_beside_it() {
    let mut cluster = Cluster::builder().region("syd", 1).start().await;
    let all = ["iad-1", "syd-1"];
    cluster.add_with_one_round("iad", &all).await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    let iad = cluster.instance("iad-1");
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    let request = iad
        .request("/rpc/syd", call)
        .header("x-request-id", "the-one");
    let refused = answer(request).await.unwrap();
    assert_eq!(refused.problem(), (502, "peer_unreachable", "no"));
    let attempt = lines(iad, "attempt failed", "the-one").await;
    let seen = ["level", "instance", "code", "executed", "detail"].map(|name| &attempt[0][name]);
    let detail = "no connection to instance syd-1";
    assert_eq!(seen, ["WARN", "syd-1", "peer_unreachable", "no", detail]);
    let log = iad.log();
    assert!(
        log.contains("\"message\":\"no connection\"") && log.contains("Connection refused"),
        "{log}"
    );
    assert_eq!(lines(iad, "call failed", "the-one").await.len(), 1);
}

/// The lines with `message` that `instance` wrote, once there is one.
async fn seen(instance: &Process, message: &str) -> Vec<Value> {
    lines_where(instance, message, |_| true).await
}

async fn lines_where(
    instance: &Process,
    message: &str,
    is_meant: impl Fn(&Value) -> bool,
) -> Vec<Value> {
    let found = async || {
        let log = instance.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["message"] == message && is_meant(line))
            .collect::<Vec<_>>()
    };
    eventually(message, found, |found| !found.is_empty()).await
}

/// The members of `line` that do not differ from one run to the next.
fn timeless(mut line: Value) -> Value {
    let members = line.as_object_mut().unwrap();
    for member in ["timestamp", "elapsed_ms", "request_id"] {
        members.remove(member).unwrap();
    }
    line
}

#[tokio::test]
async fn a_call_and_a_refusal_are_a_line_each() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    iad.call("syd", "String.upcase", json!(["fly"])).await;
    iad.call("syd", "Kernel.raise", json!(["boom"])).await;
    iad.post("/rpc/syd?key=value", "{").await;
    iad.get("/nowhere").await;
    let call = seen(iad, "call").await.into_iter().map(timeless);
    let expected = json!({
        "level": "INFO", "message": "call", "function": "String.upcase", "region": "syd",
        "instance": "syd-1", "executed": "yes", "attempts": 1,
    });
    assert_eq!(call.collect::<Vec<_>>(), [expected]);
    let failed = seen(iad, "call failed").await.into_iter().map(timeless);
    let expected = json!({
        "level": "WARN", "message": "call failed", "function": "Kernel.raise", "region": "syd",
        "instance": "syd-1", "code": "function_failed", "executed": "yes", "attempts": 1,
        "detail": "the function returned an error of kind \"RuntimeError\"",
    });
    assert_eq!(failed.collect::<Vec<_>>(), [expected]);
    iad.call("mars", "String.upcase", json!(["fly"])).await;
    let untried = lines_where(iad, "call failed", |line| line["region"] == "mars").await;
    let expected = json!({
        "level": "WARN", "message": "call failed", "function": "String.upcase", "region": "mars",
        "code": "region_unknown", "executed": "no", "attempts": 0,
        "detail": "no instance was ever seen in region \"mars\"; known regions: iad, syd",
    });
    assert_eq!(timeless(untried[0].clone()), expected);
    let paths = async || {
        let mut refused = seen(iad, "refused").await;
        // What the start of the cluster asked for.
        refused.retain(|line| line["path"] != "/regions/none");
        let seen = |line: &Value| {
            assert_eq!(line.get("client"), None);
            let [path, code, status] = ["path", "code", "status"].map(|name| line[name].clone());
            (path, code, status)
        };
        refused.iter().map(seen).collect::<Vec<_>>()
    };
    let expected = [
        (json!("/rpc/syd"), json!("invalid_json"), json!(400)),
        (json!("/nowhere"), json!("not_found"), json!(404)),
    ];
    eventually("both refusals", paths, |refused| *refused == expected).await;
}

#[tokio::test]
async fn a_peer_that_changes_its_state_is_a_line_with_the_reason() {
    let mut cluster = two_regions().start().await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    let iad = cluster.instance("iad-1");
    let changes = async || {
        let changed = seen(iad, "peer changed").await;
        let seen = |line: &Value| {
            let text = |member: &str| line[member].as_str().unwrap().to_owned();
            (text("instance"), text("state"), text("reason"))
        };
        changed.iter().map(seen).collect::<Vec<_>>()
    };
    let is_suspect =
        |changes: &Vec<(String, String, String)>| changes.last().unwrap().1 == "suspect";
    let seen = eventually("the last change", &changes, is_suspect).await;
    let found = ["syd-1", "ready", "it answered the probe"].map(str::to_owned);
    assert_eq!(seen[0], found.into());
    let (instance, _, reason) = seen.last().unwrap();
    assert!(instance == "syd-1" && !reason.is_empty(), "{seen:?}");
    // What is found out later is shown, and is no change.
    let why = async || {
        let explained = iad.get("/regions/syd/explain").await.body;
        explained["candidates"][0]["last_probe_error"].to_string()
    };
    eventually("the cause", why, |why| why.contains("Connection refused")).await;
    assert_eq!(changes().await, seen);
}

#[tokio::test]
async fn arguments_results_and_tokens_are_in_no_line() {
    const SECRET: &str = "5ecre7-0123456789abcdef0123456789abcdef";
    let mut cluster = Cluster::builder()
        .region("iad", 0)
        .set("RPC_TOKEN", SECRET)
        .set("RPC_CLIENT_TOKENS", &format!("shop:{SECRET}-shop"))
        .set("RPC_LOG", "trace")
        .start()
        .await;
    cluster.add("iad").await;
    cluster.add("syd").await;
    cluster.announce_all();
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let ask = async |region: &str, body: Value| {
        let request = iad
            .request(&format!("/rpc/{region}"), &body.to_string())
            .bearer_auth(format!("{SECRET}-shop"))
            .header("idempotency-key", format!("{SECRET}-key"));
        answer(request).await.unwrap()
    };
    let call = |function: &str, args: Value| json!({"module": "String", "function": function, "args": args});
    let found = async || ask("syd", call("upcase", json!([SECRET]))).await;
    let upcased = eventually("syd", found, |answer| answer.status == 200).await;
    assert_eq!(upcased.result(), &SECRET.to_uppercase());
    ask("syd", call("upcase", json!([SECRET, SECRET]))).await;
    ask("iad", call("upcase", json!({ SECRET: 1 }))).await;
    let raised = json!({"module": "Kernel", "function": "raise", "args": [SECRET]});
    ask("iad", raised).await;
    let refused = iad.request("/rpc/syd", SECRET).bearer_auth(SECRET);
    assert_eq!(
        answer(refused).await.unwrap().problem().1,
        "unauthenticated"
    );
    seen(iad, "refused").await;
    for instance in [iad, syd] {
        let log = instance.log().to_lowercase();
        let line = log.lines().find(|line| line.contains(SECRET));
        assert_eq!(line, None);
        assert!(log.contains(r#""level":"trace""#), "trace lines are there");
    }
}

#[tokio::test]
async fn a_signal_lets_more_lines_through_and_the_next_one_no_more_than_before() {
    let local = Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_LOG", "warn".to_owned()),
    ]))
    .await;
    let call = async |id: &str| {
        let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
        let request = local.request("/rpc/local", call).header("x-request-id", id);
        answer(request).await.unwrap().result().clone()
    };
    let changes = async || {
        let log = local.log();
        log.lines()
            .filter(|line| line.contains("log filter changed"))
            .count()
    };
    call("before").await;
    local.toggle_log();
    eventually("the filter's change", &changes, |count| *count == 1).await;
    call("between").await;
    local.toggle_log();
    eventually("the filter's change back", &changes, |count| *count == 2).await;
    call("after").await;
    local.terminate();
    let mut local = local;
    local.ended().await;
    let log = local.log();
    let is_there = ["before", "between", "after"].map(|id| log.contains(id));
    assert_eq!(is_there, [false, true, false], "{log}");
}

#[tokio::test]
async fn a_pipe_that_does_not_block_loses_no_line() {
    const CALLS: usize = 500;
    let (writer, mut reader) = pipe::pipe().unwrap();
    let writer = writer.into_nonblocking_fd().unwrap();
    let local = logs_to(PipeWriter::from(writer)).await;
    // More than the pipe takes; nobody reads it meanwhile.
    for _ in 0..CALLS {
        let answer = local.call("local", "String.upcase", json!(["fly"]));
        assert_eq!(in_time("a call", answer).await.result(), "FLY");
    }
    let (mut read, mut calls) = (Vec::new(), 0);
    while calls < CALLS {
        let more = reader.read_buf(&mut read);
        assert!(in_time("the log", more).await.unwrap() > 0);
        calls = read
            .windows(16)
            .filter(|at| at == br#""message":"call""#)
            .count();
    }
    assert!(!String::from_utf8_lossy(&read).contains("log lines were lost"));
}
