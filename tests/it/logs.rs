//! The log: it never stops or slows the service, whatever becomes of its reader.

use std::{
    io::{PipeWriter, Write},
    process::{ExitStatus, Stdio},
};

use serde_json::json;
use tokio::process::Command;

use crate::{
    patience::in_time,
    process::{Environment, Process},
};

/// Serves two calls and stops, with its log going to `stderr`.
async fn serves_with(stderr: PipeWriter) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command.arg("serve");
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    let mut local = Process::spawn_with_stderr(command, &environment, Stdio::from(stderr)).await;
    for word in ["one", "two"] {
        let call = local.call("local", "String.upcase", json!([word]));
        let answer = in_time("a call", call).await;
        assert_eq!(answer.result(), &word.to_uppercase());
    }
    local.terminate();
    local.ended().await
}

#[tokio::test]
async fn a_closed_log_harms_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(serves_with(writer).await.code(), Some(0));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // Fills the pipe and waits in it until the reader is gone.
    let filled = std::thread::spawn(move || while filler.write_all(&[b'\n'; 4096]).is_ok() {});
    assert_eq!(serves_with(writer).await.code(), Some(0));
    drop(reader);
    filled.join().unwrap();
}
