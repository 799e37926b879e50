//! What tests are built from: clusters of real processes, DNS, a proxy that breaks connections, loads, patience.

pub(crate) mod asking;
pub(crate) mod bad_request;
pub(crate) mod cluster;
#[cfg(feature = "otlp")]
pub(crate) mod collector;
pub(crate) mod command;
pub(crate) mod dns;
pub(crate) mod fault;
pub(crate) mod fly_proxy;
pub(crate) mod functions;
pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod open_files;
pub(crate) mod patience;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod stranger;
