//! Many slow connections: they do not disturb good calls, end within their timeouts, and leave nothing behind.

use std::{fs, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{self, Instant},
};

use crate::support::{
    open_files::{open_files, raise_open_files},
    patience::{eventually, in_time},
    process::{Environment, Process},
    raw,
};

const SLOW: usize = 2000;
/// How long a head or a body may take, and what a busy machine may add.
const TIMEOUT: Duration = Duration::from_secs(10);
const NOISE: Duration = Duration::from_secs(20);
/// The most memory that one slow connection may cost, in KiB.
const MEMORY_EACH: u64 = 64;
const HEAD: &[u8] = b"POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n";

#[derive(Clone, Copy)]
enum Manner {
    DripsHead,
    DripsBody,
    Silent,
}

async fn start() -> Process {
    Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_LOG", "warn".to_owned()),
    ]))
    .await
}

/// Opens one more connection, and waits now and then until all are accepted: the kernel drops those that nobody accepts
/// in time, and a silent client never learns of it.
async fn connect(instance: &Process, number: usize, files: usize) -> TcpStream {
    let stream = TcpStream::connect(instance.address).await.unwrap();
    if number % 100 == 99 {
        let open = async || open_files(instance);
        eventually("accepted connections", open, |open| {
            *open + 10 > files + number
        })
        .await;
    }
    stream
}

/// Resident memory in KiB.
fn memory(instance: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", instance.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Behaves in its manner until the instance closes the connection; returns how long that took.
async fn be_slow(mut stream: TcpStream, manner: Manner) -> Duration {
    let opened = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        match manner {
            Manner::Silent => {}
            Manner::DripsHead => writer.write_all(HEAD).await.unwrap(),
            Manner::DripsBody => {
                writer.write_all(&[HEAD, b"\r\n{"].concat()).await.unwrap();
            }
        }
        let mut beat = time::interval(Duration::from_secs(1));
        loop {
            beat.tick().await;
            let drop = match manner {
                Manner::Silent => continue,
                Manner::DripsHead => b"x",
                Manner::DripsBody => b" ",
            };
            if writer.write_all(drop).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        _ = reader.read_to_end(&mut answer) => {}
        () = drip => {}
    }
    opened.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_disturb_nobody_and_leave_nothing_behind() {
    let count = SLOW.min(raise_open_files().saturating_sub(500));
    let instance = start().await;
    assert_eq!(
        instance
            .call("iad", "String.upcase", json!(["fly"]))
            .await
            .result(),
        "FLY"
    );
    let (files, memory_before) = (open_files(&instance), memory(&instance));
    let mut slow = JoinSet::new();
    for number in 0..count {
        let manner = [Manner::DripsHead, Manner::DripsBody, Manner::Silent][number % 3];
        slow.spawn(be_slow(connect(&instance, number, files).await, manner));
    }
    let (mut calls, mut failures, mut longest, mut most_files) = (0, 0, Duration::ZERO, 0);
    let mut beat = time::interval(Duration::from_millis(5));
    let started = Instant::now();
    while !slow.is_empty() {
        beat.tick().await;
        assert!(
            started.elapsed() < TIMEOUT + NOISE,
            "{} connections are still open",
            slow.len()
        );
        let answer = instance.call("iad", "String.upcase", json!(["fly"])).await;
        calls += 1;
        failures += usize::from(answer.status != 200);
        if calls % 100 == 1 {
            most_files = most_files.max(open_files(&instance));
        }
        while let Some(ended) = slow.try_join_next() {
            longest = longest.max(ended.unwrap());
        }
    }
    assert!(
        most_files > files + count * 9 / 10,
        "{most_files} files open at most"
    );
    assert!(
        calls > 20 && failures * 1000 <= calls,
        "{failures} of {calls} calls failed"
    );
    let open = async || open_files(&instance);
    eventually("the files of before", open, |open| *open <= files + 1).await;
    // What the allocator keeps for the next connections is bounded, and not given back.
    let kept = memory(&instance).saturating_sub(memory_before);
    eprintln!(
        "{count} slow, {calls} good calls, {failures} failed; last end after {longest:?}; {kept} KiB kept"
    );
    assert!(
        kept < MEMORY_EACH * u64::try_from(count).unwrap(),
        "{kept} KiB"
    );
}

#[tokio::test]
async fn a_client_that_takes_no_answer_is_let_go() {
    let instance = start().await;
    let files = open_files(&instance);
    let mut stream = TcpStream::connect(instance.address).await.unwrap();
    // Answers pile up on both sides until neither takes more: the instance then waits for room that never comes.
    let requests = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1000);
    while let Ok(sent) = time::timeout(Duration::from_secs(1), stream.write(&requests)).await {
        sent.unwrap();
    }
    let open = async || open_files(&instance);
    eventually("the end of the connection", open, |open| *open <= files).await;
}

/// A reader that takes something all the time is served to the end, however long the socket is full.
#[tokio::test]
async fn a_slow_and_steady_reader_gets_the_whole_answer() {
    const STEADY: Duration = Duration::from_secs(13);
    let directory = TempDir::new().unwrap();
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_MAX_BODY", "8MiB".to_owned()),
    ]);
    let instance = Process::start_with_functions(&environment, directory.path()).await;
    let text = "x".repeat((8 << 20) - 1000);
    let body = format!(r#"{{"module":"Test","function":"echo","args":["{text}"]}}"#);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(instance.address).await.unwrap();
    let head = format!(
        "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let (mut taken, mut piece) = (0, vec![0; 5000]);
    let (started, mut beat) = (Instant::now(), time::interval(Duration::from_millis(50)));
    while started.elapsed() < STEADY {
        beat.tick().await;
        taken += stream.read(&mut piece).await.unwrap();
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(
        taken + rest.len() > text.len(),
        "{taken} and {}",
        rest.len()
    );
}

/// The time that a head has begins anew with each answer: a connection in use is kept, and then let go.
#[tokio::test]
async fn a_kept_connection_has_the_time_of_a_head_after_each_answer() {
    const REQUESTS: u32 = 6;
    let instance = start().await;
    let files = open_files(&instance);
    let mut stream = TcpStream::connect(instance.address).await.unwrap();
    let mut beat = time::interval(TIMEOUT / 4);
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut asked = Instant::now();
    for number in 0..REQUESTS {
        beat.tick().await;
        asked = Instant::now();
        stream.write_all(request).await.unwrap();
        let answer = raw::next(&mut stream).await;
        assert_eq!(answer.status, 200, "request {number}");
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    let idle = asked.elapsed();
    assert!(idle > TIMEOUT - Duration::from_secs(1), "{idle:?}");
    let open = async || open_files(&instance);
    eventually("the end of the connection", open, |open| *open <= files).await;
}

/// The time that a head has passes while an answer is taken; it begins anew behind it all the same.
#[tokio::test]
async fn a_connection_is_let_go_also_behind_an_answer_that_was_taken_slowly() {
    const SLOWLY: Duration = Duration::from_secs(13);
    let instance = start().await;
    let files = open_files(&instance);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut stream = socket.connect(instance.address).await.unwrap();
    let requests = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(40);
    stream.write_all(&requests).await.unwrap();
    let (mut piece, mut beat) = (vec![0; 5000], time::interval(Duration::from_millis(100)));
    let started = Instant::now();
    while started.elapsed() < SLOWLY {
        beat.tick().await;
        assert_ne!(stream.read(&mut piece).await.unwrap(), 0);
    }
    let read = async { while stream.read(&mut piece).await.unwrap() > 0 {} };
    in_time("the end of the connection", read).await;
    let open = async || open_files(&instance);
    eventually("its file", open, |open| *open <= files).await;
}
