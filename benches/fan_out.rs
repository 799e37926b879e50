//! What a fan-out to 100 instances takes, against one call, and what an empty region at the head of a list adds to a call:
//! embedded instances in this process, called in-process. In one run, interleaved, the median of many.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

use std::time::Duration;

use fly_rpc::{CallOptions, Config, DnsName, Instance, Registry, Rpc};
use tokio::{task::JoinSet, time::Instant};

const INSTANCES: usize = 100;
const ROUNDS: usize = 200;

#[tokio::main]
async fn main() {
    let mut starts = JoinSet::new();
    for _ in 0..INSTANCES {
        starts.spawn(start("syd", Vec::new()));
    }
    let peers = starts.join_all().await;
    let mut names: Vec<_> = peers
        .iter()
        .map(|peer| DnsName::Address(peer.address()))
        .collect();
    // A region that was there, and is empty now.
    let gone = start("fra", Vec::new()).await;
    names.push(DnsName::Address(gone.address()));
    let here = start("iad", names).await;
    let rpc = here.rpc();
    while fan_out(&rpc).await != INSTANCES
        || rpc
            .call::<String>("fra", "Fly.RPC", "my_region", ())
            .await
            .is_err()
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gone.shutdown().await;

    let (mut one, mut all, mut slowest) = (Vec::new(), Vec::new(), Vec::new());
    let (mut plain, mut unknown, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(timed(call(&rpc, "syd")).await);
        let asked = Instant::now();
        assert_eq!(fan_out(&rpc).await, INSTANCES);
        all.push(asked.elapsed());
        slowest.push(timed(one_by_one(&rpc)).await);
        plain.push(timed(call(&rpc, "syd")).await);
        unknown.push(timed(call(&rpc, "mars,syd")).await);
        empty.push(timed(call(&rpc, "fra,syd")).await);
    }
    println!(
        "one call                              {:>10.3} ms",
        median(&mut one)
    );
    println!(
        "each, {INSTANCES} instances, to the last result  {:>10.3} ms",
        median(&mut all)
    );
    println!(
        "{INSTANCES} calls at once by the program          {:>10.3} ms",
        median(&mut slowest)
    );
    println!(
        "syd                                   {:>10.3} ms",
        median(&mut plain)
    );
    println!(
        "mars,syd: never seen                  {:>10.3} ms",
        median(&mut unknown)
    );
    println!(
        "fra,syd: nobody left                  {:>10.3} ms",
        median(&mut empty)
    );
}

async fn start(region: &str, names: Vec<DnsName>) -> Instance {
    let mut config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    config.identity.region = region.parse().unwrap();
    config.discovery.names = names;
    config.drain.delay = Duration::ZERO;
    Instance::start(config, Registry::builtin()).await.unwrap()
}

/// How many of syd answered.
async fn fan_out(rpc: &Rpc) -> usize {
    let answers = rpc
        .each::<String>("syd", "String", "upcase", ("fly",))
        .await;
    let answers = answers.unwrap().into_iter();
    answers.filter(|answer| answer.result.is_ok()).count()
}

/// As many calls at once, each for any instance.
async fn one_by_one(rpc: &Rpc) {
    let mut calls = JoinSet::new();
    for _ in 0..INSTANCES {
        let rpc = rpc.clone();
        calls.spawn(async move { call(&rpc, "syd").await });
    }
    calls.join_all().await;
}

async fn call(rpc: &Rpc, region: &str) {
    let options = CallOptions::default();
    let called = rpc.call_with::<String>(options, region, "String", "upcase", ("fly",));
    assert_eq!(called.await.unwrap(), "FLY");
}

async fn timed(what: impl Future<Output = ()>) -> Duration {
    let started = Instant::now();
    what.await;
    started.elapsed()
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
