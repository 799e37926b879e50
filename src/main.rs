//! The `fly-rpc` program: parse the command line, run the command, exit with its code.

use std::process::ExitCode;

/// A fifth less processor time for each call than with glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fly_rpc::cli::main()
}
