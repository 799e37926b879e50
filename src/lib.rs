//! Run a named function in a chosen region: Elixir's `Fly.RPC` as an HTTP/JSON service and a Rust crate.
//!
//! Each instance of an application registers functions and serves `POST /rpc/{region}`; any instance, or any HTTP client,
//! asks for `module.function(args)` in a region or in the primary one, and the call runs on one instance there, within a
//! deadline. Every problem says whether the function ran.
//!
//! ```no_run
//! use fly_rpc::{Config, Instance, Registry};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let registry = Registry::builtin()
//!         .function("Math", "add", |(a, b): (i64, i64)| async move { Ok(a + b) });
//!     let instance = Instance::start(Config::from_env()?, registry).await?;
//!     let sum: i64 = instance.rpc().call("primary", "Math", "add", (1, 2)).await?;
//!     assert_eq!(sum, 3);
//!     instance.run_until_signal().await?;
//!     Ok(())
//! }
//! ```
//!
//! | to | see |
//! |---|---|
//! | register functions | [`Registry`] |
//! | say what a caller reads of an error | [`FunctionError`] |
//! | serve, drain and stop | [`Instance`] |
//! | serve within a program that has an axum server | [`Embedded`] |
//! | call another region, and learn whether it ran | [`Rpc`], [`CallOptions`], [`CallError`] |
//! | read what was written before | [`CallContext`], [`ConsistencyToken`], [`Answer`] |
//! | read settings from the environment, or make them | [`Config`], [`SETTINGS`] |
//! | send writes to the primary region of any tower service | [`ReplayToPrimary`] |
//!
//! Features, all on by default: `cli` builds the program `fly-rpc`, `dev` its command for a cluster on one machine, `https`
//! TLS for the commands that ask an instance, `otlp` the export of traces, `redis` the client of a store for idempotency
//! keys. A program that embeds the crate needs none of them.

mod access;
mod app;
mod call;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod client;
mod cluster;
mod config;
mod deadline;
mod declaration;
mod dispatch;
/// The Rust in the documents, compiled as that of this crate is.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/src/crate.md")]
    mod the_crate {}
}
mod feed;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[path = "../fuzz/checks.rs"]
pub mod fuzzing;
mod gate;
mod http;
mod instance;
#[cfg(feature = "internals")]
#[doc(hidden)]
#[path = "../benches/support/internals.rs"]
pub mod internals;
mod json;
mod lifecycle;
mod link;
mod local;
mod memory;
mod metrics;
mod name;
mod problem;
mod protocol;
mod region;
mod registry;
mod replay;
mod reply;
mod rpc;
mod server;
#[cfg(feature = "cli")]
mod telemetry;
mod token;
mod trace;

pub use self::{
    access::{Access, Client, ClientName, FunctionPattern},
    call::{Per, Timeouts},
    cluster::DiscoveryError,
    config::{
        AppAddress, AppConfig, AppUrl, Config, ConfigError, DiscoveryConfig, DnsName, DrainConfig,
        Identity, KeyStoreUrl, Limits, Machine, Route, SETTINGS, Setting,
    },
    declaration::{Declaration, Param},
    http::{Reached, openapi_json},
    instance::{Embedded, Instance, StartError},
    name::{ConsistencyToken, IdempotencyKey, InstanceId, InvalidName},
    problem::{Code, Executed, FunctionError},
    region::Region,
    registry::{CallContext, Registry, RegistryError},
    replay::{ReplayToPrimary, ReplayToPrimaryService},
    rpc::{Answer, CallError, CallOptions, EachAnswer, Rpc},
    server::Drained,
    token::Token,
    trace::continue_traces,
};
