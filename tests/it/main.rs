//! Everything through the front door: real processes on 127.0.0.x, a real DNS server, real signals and sockets.
#![expect(
    clippy::unwrap_used,
    reason = "a failed setup step should fail the test"
)]
#![expect(
    clippy::print_stderr,
    reason = "a failed test shows its instances' logs"
)]
#![expect(
    clippy::print_stdout,
    reason = "a test under load shows what it measured"
)]

mod app;
mod asking;
mod cluster;
#[cfg(feature = "otlp")]
mod collector;
mod dns;
mod fault;
mod fly_proxy;
mod functions;
mod load;
mod network;
mod patience;
mod process;
mod raw;
mod stranger;

mod bad_bodies;
mod bad_heads;
mod blocking;
mod calls;
mod chaos;
mod command_line;
mod configuration;
mod consistency;
mod crate_api;
mod dev;
mod discovery;
mod dns_answers;
mod documents;
mod embedded;
mod examples;
mod executed;
mod explain;
mod failover;
mod fly_proxy_rules;
mod fly_toml;
mod hanging;
mod hostile_discovery;
mod https;
mod idempotency;
mod keys;
mod layering;
mod logs;
mod memory_bound;
mod metrics;
mod openapi;
mod outages;
mod places;
mod proof;
mod proxies;
mod reading;
mod releases;
mod replay;
mod replay_to_primary;
mod results;
mod rotation;
mod security;
mod silence;
mod six_pn;
mod slow;
mod stopping;
#[cfg(feature = "otlp")]
mod traces;
