//! What an instance costs and how many calls it answers: figures for people, nothing is asserted.
//!
//! One hop: the client calls `syd`, and the function runs there. Two hops: the client calls `iad`, which forwards to
//! `syd`. Both in one run, interleaved, the median of five; client and instances share this machine.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::Client;
use tokio::time::Instant;

const BINARY: &str = env!("CARGO_BIN_EXE_fly-rpc");
const CALLERS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const BODY: &str = r#"{"module":"String","function":"upcase","args":["fly"]}"#;

#[tokio::main]
async fn main() {
    println!(
        "binary: {} KiB, stripped",
        fs::metadata(BINARY).unwrap().len() >> 10
    );
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let instance = Instance::start("syd", &[]);
        instance.until_ready().await;
        starts.push(started.elapsed().as_secs_f64() * 1e3);
    }
    println!("start to ready: {:.1} ms", median(starts));

    let syd = Instance::start("syd", &[]);
    let iad = Instance::start("iad", &["--dns-name", &syd.address.to_string()]);
    syd.until_ready().await;
    iad.until_ready().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("idle resident memory: {:.1} MiB", iad.resident_mib());

    println!("{:>8} {:>16} {:>16}", "callers", "one hop", "two hops");
    for callers in CALLERS {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            one.push(calls_per_second(&syd, callers).await);
            two.push(calls_per_second(&iad, callers).await);
        }
        println!(
            "{callers:>8} {:>9.0} calls/s {:>8.0} calls/s",
            median(one),
            median(two)
        );
    }
}

struct Instance {
    child: Child,
    address: SocketAddr,
}

impl Instance {
    fn start(region: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--log=warn",
                "--region",
                region,
            ])
            .args(flags);
        let mut child = command.env_clear().stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .strip_prefix("listening on http://")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        Self {
            address: address.parse().unwrap(),
            child,
        }
    }

    async fn until_ready(&self) {
        let client = client();
        let url = format!("http://{}/readyz", self.address);
        while client.get(&url).send().await.unwrap().status() != 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Calls per second to a function in `syd`, asked of `instance` by `callers` at once.
async fn calls_per_second(instance: &Instance, callers: usize) -> f64 {
    let client = client();
    let url = format!("http://{}/rpc/syd", instance.address);
    let started = Instant::now();
    let tasks = (0..callers).map(|_| {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move {
            let mut calls = 0_u32;
            while started.elapsed() < ROUND {
                let request = client
                    .post(&url)
                    .header("content-type", "application/json")
                    .body(BODY);
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), 200);
                response.bytes().await.unwrap();
                calls += 1;
            }
            calls
        })
    });
    let mut calls = 0;
    for task in tasks.collect::<Vec<_>>() {
        calls += task.await.unwrap();
    }
    f64::from(calls) / started.elapsed().as_secs_f64()
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
