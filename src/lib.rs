//! Run a named function in a chosen region.

mod call;
mod client;
mod cluster;
mod config;
mod deadline;
mod dispatch;
mod http;
mod instance;
mod json;
mod lifecycle;
mod link;
mod name;
mod problem;
mod region;
mod registry;
mod reply;
mod server;
mod signal;
mod telemetry;
