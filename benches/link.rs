//! One hop between two instances, called in-process: calls that wait together travel together, against one reqwest
//! request for each call to the same server. Both write the arguments as JSON and read the result from it. Beside them the
//! floor: lines of the same size that travel together as those of calls do, to a thread that sends back what it reads. In one
//! run, interleaved, the median of five; all share this machine.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

mod support;

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use fly_rpc::{Config, DnsName, Registry, Rpc};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, oneshot},
    task,
    time::Instant,
};

use self::support::{Instance, client, median};

/// As the program has it, for both ways.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLERS: [usize; 5] = [1, 16, 64, 256, 1024];
const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];
const SIZE_CALLERS: usize = 16;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() {
    let peer = Instance::start("syd", &["--max-body=4MiB"]);
    peer.until_ready().await;
    let mut config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    config.identity.region = "iad".parse().unwrap();
    config.discovery.names = vec![DnsName::Address(peer.address)];
    let here = fly_rpc::Instance::start(config, Registry::builtin())
        .await
        .unwrap();
    let link = Way::Link(here.rpc());
    while link.call("fly").await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let requests = Way::Requests(client(), peer.address);
    let ways = [link, requests, Way::Floor(Lines::start().await)];

    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>7} {:>7}   p50/p99 ms of each",
        "callers", "link", "requests", "floor", "link", "floor"
    );
    for callers in CALLERS {
        compare(&format!("{callers:>8}"), &ways, callers, "fly").await;
    }
    println!("{SIZE_CALLERS} callers, by size of the argument and of the result");
    for size in SIZES {
        let label = format!("{size:>7}B");
        compare(&label, &ways, SIZE_CALLERS, &"x".repeat(size)).await;
    }
    here.shutdown().await;
}

/// Prints calls/s by each way, what the link and the floor do over requests, and how long calls took.
async fn compare(label: &str, ways: &[Way; 3], callers: usize, text: &str) {
    let (mut rates, mut latencies) = ([(); 3].map(|()| Vec::new()), [(); 3].map(|()| Vec::new()));
    for _ in 0..ROUNDS {
        for ((way, rates), latencies) in ways.iter().zip(&mut rates).zip(&mut latencies) {
            rates.push(way.round(callers, text, latencies).await);
        }
    }
    let [link, requests, floor] = rates.map(median);
    println!(
        "{label} {link:>10.0}/s {requests:>10.0}/s {floor:>10.0}/s {:>6.2}x {:>6.2}x   {}",
        link / requests,
        floor / requests,
        latencies.map(percentiles).join("  ")
    );
}

fn percentiles(mut latencies: Vec<f64>) -> String {
    latencies.sort_by(f64::total_cmp);
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    format!("{:.3}/{:.3}", at(50), at(99))
}

/// A way to call `String.upcase` in `syd`.
#[derive(Clone)]
enum Way {
    Link(Rpc),
    Requests(Client, SocketAddr),
    Floor(Arc<Lines>),
}

impl Way {
    /// Calls per second by `callers` at once; adds the milliseconds that each took.
    async fn round(&self, callers: usize, text: &str, latencies: &mut Vec<f64>) -> f64 {
        let started = Instant::now();
        let tasks = (0..callers).map(|_| {
            let (way, text) = (self.clone(), text.to_owned());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while started.elapsed() < ROUND {
                    let began = Instant::now();
                    way.call(&text).await.unwrap();
                    latencies.push(began.elapsed().as_secs_f64() * 1e3);
                }
                latencies
            })
        });
        let mut calls = 0;
        for task in tasks.collect::<Vec<_>>() {
            let answered = task.await.unwrap();
            calls += answered.len();
            latencies.extend(answered);
        }
        calls as f64 / started.elapsed().as_secs_f64()
    }

    async fn call(&self, text: &str) -> Result<String, String> {
        match self {
            Self::Link(rpc) => rpc
                .call("syd", "String", "upcase", (text,))
                .await
                .map_err(|error| error.to_string()),
            Self::Requests(client, address) => {
                let body = Body {
                    region: "syd",
                    module: "String",
                    function: "upcase",
                    args: [text],
                };
                let request = client
                    .post(format!("http://{address}/internal/exec"))
                    .header("content-type", "application/json")
                    .body(serde_json::to_vec(&body).unwrap());
                let response = request.send().await.map_err(|error| error.to_string())?;
                assert_eq!(response.status(), 200);
                let answer = response.bytes().await.map_err(|error| error.to_string())?;
                let reply: Reply = serde_json::from_slice(&answer).unwrap();
                Ok(reply.result)
            }
            Self::Floor(lines) => Ok(lines.send(text).await.unwrap()),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    region: &'a str,
    module: &'a str,
    function: &'a str,
    args: [&'a str; 1],
}

#[derive(Deserialize)]
struct Reply {
    result: String,
}

/// What a line between instances has besides its argument, about as long.
const FRAME: &str = "{\"id\":123456,\"timeout_ms\":5000,\"at_us\":123456789,\"region\":\"syd\",\"module\":\"String\",\"function\":\"upcase\"}";

/// Lines that travel together and come back in their order: no JSON is read, no deadline and no caller is looked at.
struct Lines {
    queue: Mutex<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    unwritten: Vec<u8>,
    waiting: VecDeque<oneshot::Sender<String>>,
}

impl Lines {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || send_back(&listener));
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (answers, socket) = stream.into_split();
        let lines = Arc::new(Self {
            queue: Mutex::default(),
            more: Notify::new(),
        });
        tokio::spawn(Arc::clone(&lines).write(socket));
        tokio::spawn(Arc::clone(&lines).read(answers));
        lines
    }

    /// What comes back of `text`.
    fn send(&self, text: &str) -> oneshot::Receiver<String> {
        let (answer, wait) = oneshot::channel();
        let mut queue = self.queue.lock().unwrap();
        queue.unwritten.extend_from_slice(FRAME.as_bytes());
        queue.unwritten.extend_from_slice(text.as_bytes());
        queue.unwritten.push(b'\n');
        queue.waiting.push_back(answer);
        drop(queue);
        self.more.notify_one();
        wait
    }

    async fn write(self: Arc<Self>, mut socket: OwnedWriteHalf) {
        loop {
            self.more.notified().await;
            task::yield_now().await;
            let lines = std::mem::take(&mut self.queue.lock().unwrap().unwritten);
            socket.write_all(&lines).await.unwrap();
        }
    }

    async fn read(self: Arc<Self>, answers: OwnedReadHalf) {
        let mut lines = BufReader::with_capacity(64 << 10, answers).lines();
        while let Some(mut line) = lines.next_line().await.unwrap() {
            let text = line.split_off(FRAME.len());
            let caller = self.queue.lock().unwrap().waiting.pop_front();
            caller.unwrap().send(text).unwrap();
        }
    }
}

fn send_back(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return,
            size => stream.write_all(&buffer[..size]).unwrap(),
        }
    }
}
