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

mod support;

mod app;
mod calls;
mod documents;
mod fly;
mod http;
mod layering;
mod peers;
mod program;
