//! One hop between two instances, called in-process: calls that wait together travel together, against one reqwest
//! request for each call to the same server. Both write the arguments as JSON and read the result from it. In one run,
//! interleaved, the median of five; both share this machine.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use fly_rpc::{Config, DnsName, Registry, Rpc};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

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

    println!(
        "{:>8} {:>12} {:>12} {:>7}   {:>22} {:>22}",
        "callers", "link", "requests", "ratio", "link p50/p99 ms", "requests p50/p99 ms"
    );
    for callers in CALLERS {
        compare(&format!("{callers:>8}"), &link, &requests, callers, "fly").await;
    }
    println!("{SIZE_CALLERS} callers, by size of the argument and of the result");
    for size in SIZES {
        let label = format!("{size:>7}B");
        compare(&label, &link, &requests, SIZE_CALLERS, &"x".repeat(size)).await;
    }
    here.shutdown().await;
}

async fn compare(label: &str, link: &Way, requests: &Way, callers: usize, text: &str) {
    let (mut by_link, mut by_requests) = (Vec::new(), Vec::new());
    let (mut link_latency, mut requests_latency) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_link.push(link.round(callers, text, &mut link_latency).await);
        by_requests.push(requests.round(callers, text, &mut requests_latency).await);
    }
    let (by_link, by_requests) = (median(by_link), median(by_requests));
    println!(
        "{label} {by_link:>10.0}/s {by_requests:>10.0}/s {:>6.2}x   {:>22} {:>22}",
        by_link / by_requests,
        percentiles(&mut link_latency),
        percentiles(&mut requests_latency)
    );
}

fn percentiles(latencies: &mut [f64]) -> String {
    latencies.sort_by(f64::total_cmp);
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    format!("{:.3}/{:.3}", at(50), at(99))
}

/// A way to call `String.upcase` in `syd`.
#[derive(Clone)]
enum Way {
    Link(Rpc),
    Requests(Client, SocketAddr),
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
