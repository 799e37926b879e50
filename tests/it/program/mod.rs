//! The program and the crate: command line, settings, `dev`, embedding, stopping, what operators see.

mod command_line;
mod configuration;
mod crate_api;
mod dev;
mod embedded;
mod https;
mod logs;
mod metrics;
mod stopping;
#[cfg(feature = "otlp")]
mod traces;
