//! What an instance costs and how many calls it answers: figures for people, nothing is asserted.
//!
//! One hop: the client calls `syd`, and the function runs there. Two hops: the client calls `iad`, which forwards to
//! `syd`. Both in one run, interleaved, the median of five; client and instances share this machine.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

mod support;

use std::{fs, time::Duration};

use tokio::time::Instant;

use self::support::{BINARY, Instance, client, median};

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
