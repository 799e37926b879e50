//! The `fly-rpc` program: parse the command line, run the command, exit with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    fly_rpc::cli::main()
}
