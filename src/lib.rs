//! Run a named function in a chosen region: Elixir's `Fly.RPC` as an HTTP/JSON service and a Rust crate.
//!
//! # The life of a call
//! `http` reads `POST /rpc/{region}` into a `call`; `dispatch` runs it here, in `registry`, or chooses a peer from
//! `cluster` and sends it over a `link`, together with the calls that wait for the same peer, to the peer's
//! `/internal/exec`, where `registry` runs it within its `deadline`. What comes back is a result or a `problem`, told as
//! a `reply`. Every problem says whether the function ran.
//!
//! # Layers
//! A file uses only what stands before it: name, region, token, access, challenge, deadline, json, problem → trace → call,
//! reply, config, replay, lifecycle, client → metrics → registry → cluster → link → dispatch → http → server → rpc →
//! instance → cli.
//!
//! # Invariants
//! 1. The layers above, `axum` only in `http/` and `server.rs`, `reqwest` only in `client.rs`, `link/`, the prober and
//!    `cli/`, the environment only in `config.rs`.
//! 2. Only discovery writes the peer table; calls read it and tell it whom they met.
//! 3. One table maps codes to statuses; one function decides whether another attempt may follow.
//! 4. At most one hop: `/internal/exec` runs a call here or not at all.
//! 5. No lock across an await, no unbounded channel, no `unwrap` outside tests, no `unsafe`.
//!
//! ```no_run
//! use fly_rpc::{Config, Instance, Registry};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::builtin()
//!     .function("Math", "add", |(a, b): (i64, i64)| async move { Ok(a + b) });
//! let instance = Instance::start(Config::from_env()?, registry).await?;
//! let sum: i64 = instance.rpc().call("syd", "Math", "add", (1, 2)).await?;
//! assert_eq!(sum, 3);
//! instance.run_until_signal().await?;
//! # Ok(())
//! # }
//! ```

mod access;
mod call;
mod challenge;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod client;
mod cluster;
mod config;
mod deadline;
mod dispatch;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod instance;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod json;
mod lifecycle;
mod link;
mod metrics;
mod name;
mod problem;
mod region;
mod registry;
mod replay;
mod reply;
mod rpc;
mod server;
mod signal;
#[cfg(feature = "cli")]
mod telemetry;
mod token;
mod trace;

pub use self::{
    access::{Access, Client, ClientName, FunctionPattern},
    call::Timeouts,
    cluster::DiscoveryError,
    config::{
        Config, ConfigError, DiscoveryConfig, DnsName, DrainConfig, Identity, Limits, Machine,
        Route, SETTINGS, Setting,
    },
    http::{Reached, openapi_json},
    instance::{Embedded, Instance, StartError},
    name::{IdempotencyKey, InstanceId, InvalidName},
    problem::{Code, Executed, FunctionError},
    region::Region,
    registry::{Registry, RegistryError},
    replay::{ReplayToPrimary, ReplayToPrimaryService},
    rpc::{CallError, CallOptions, Rpc},
    server::Drained,
    token::Token,
    trace::continue_traces,
};
