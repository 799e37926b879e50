//! `fly-rpc dev` as a newcomer runs it: the addresses it prints, the curl line it prints, and Ctrl-C.

use std::process::Stdio;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
};

use crate::patience::in_time;

#[tokio::test]
async fn dev_runs_a_cluster_until_ctrl_c() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command
        .args([
            "dev",
            "--regions",
            "syd:2,iad",
            "--port",
            "0",
            "--poll-interval",
            "100ms",
        ])
        .env_clear();
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut dev = command.spawn().unwrap();
    let mut stderr = dev.stderr.take().unwrap();
    let log = tokio::spawn(async move {
        let mut log = String::new();
        stderr.read_to_string(&mut log).await.map(|_| log)
    });
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
    let mut printed = Vec::new();
    in_time("the welcome", async {
        while let Some(line) = lines.next_line().await.unwrap() {
            printed.push(line);
            if printed
                .last()
                .is_some_and(|line| line.starts_with("Ctrl-C"))
            {
                break;
            }
        }
    })
    .await;

    let rows: Vec<Vec<&str>> = printed
        .iter()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let instances: Vec<&Vec<&str>> = rows
        .iter()
        .filter(|row| row.get(2).is_some_and(|url| url.starts_with("http")))
        .collect();
    let names: Vec<&str> = instances.iter().map(|row| row[1]).collect();
    assert_eq!(names, ["syd-1", "syd-2", "iad-1"], "{printed:#?}");
    let port = |url: &str| url.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    assert!(
        instances.iter().all(|row| port(row[2]) > 1024),
        "{instances:?}"
    );
    let curls: Vec<&String> = printed
        .iter()
        .filter(|line| line.trim_start().starts_with("curl "))
        .collect();
    assert_eq!(curls.len(), 3, "{printed:#?}");
    let sent = curls[0].trim_start();
    let answer = Command::new("sh")
        .args(["-c", sent])
        .output()
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(
        (&answer["result"], &answer["meta"]["region"]),
        (&json!("FLY"), &json!("iad"))
    );

    let pid = i32::try_from(dev.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let status = in_time("the end", dev.wait()).await.unwrap();
    let log = log.await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    for name in names {
        assert!(
            log.contains(&format!("{name} ")),
            "{name} has no line in {log}"
        );
    }
    for row in &instances {
        let address = row[2].trim_start_matches("http://localhost:");
        let port: u16 = address.parse().unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    }
}

#[tokio::test]
async fn a_cluster_that_cannot_be_is_wrong_usage() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    let output = command
        .args(["dev", "--regions", "iad:0"])
        .env_clear()
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("\"iad:0\" needs a count from 1 to 64, as in syd:2"),
        "{message}"
    );
}
