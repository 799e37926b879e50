//! The parts of a call, each by itself: the lines between instances, the choice of a peer, and a call that stays here.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fly_rpc::{
    Config, Instance, Registry,
    internals::{OneCall, Peers, read_answer, read_call},
};
use tokio::runtime::Runtime;

const SIZES: [usize; 3] = [3, 4 << 10, 64 << 10];
const PEERS: [u16; 4] = [10, 100, 1_000, 10_000];

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    for size in SIZES {
        let text = "x".repeat(size);
        let written = OneCall::new(&text).unwrap();
        let call = written.written().unwrap();
        let answer = format!("{{\"id\":7,\"result\":\"{text}\"}}");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("write a call", size), |bencher| {
            bencher.iter(|| black_box(&written).written());
        });
        group.bench_function(BenchmarkId::new("read a call", size), |bencher| {
            bencher.iter(|| assert!(read_call(black_box(&call))));
        });
        group.bench_function(BenchmarkId::new("read an answer", size), |bencher| {
            bencher.iter(|| assert!(read_answer(black_box(answer.as_bytes()))));
        });
    }
}

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    for count in PEERS {
        let peers = Peers::new(count).unwrap();
        group.bench_function(BenchmarkId::new("choose a peer", count), |bencher| {
            bencher.iter(|| peers.choose().unwrap());
        });
    }
}

fn dispatch(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    let instance = runtime
        .block_on(Instance::start(config, Registry::builtin()))
        .unwrap();
    let rpc = instance.rpc();
    criterion.bench_function("dispatch/a call that stays here", |bencher| {
        bencher.iter(|| {
            let call = rpc.call::<String>("local", "String", "upcase", ("fly",));
            runtime.block_on(call).unwrap()
        });
    });
    runtime.block_on(instance.shutdown());
}

criterion_group!(benches, frames, table, dispatch);
criterion_main!(benches);
