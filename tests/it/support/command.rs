//! Runs a command of the program to its end, with nothing on its stdin.

use std::{
    ffi::OsStr,
    process::{Output, Stdio},
};

use tokio::process::Command;

/// Its exit code, stdout and stderr.
pub(crate) async fn run_with(
    arguments: &[&str],
    variables: &[(&str, impl AsRef<OsStr>)],
) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// The same without variables.
pub(crate) async fn run(arguments: &[&str]) -> (i32, String, String) {
    run_with(arguments, &[] as &[(&str, &str)]).await
}
