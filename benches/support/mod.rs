//! What the benchmarks share: instances as real processes, and medians.
#![allow(dead_code, reason = "not every benchmark uses all of it")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::Client;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_fly-rpc");

pub(crate) struct Instance {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Instance {
    pub(crate) fn start(region: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command
            .args([
                "serve",
                "--listen=127.0.0.1:0",
                "--log=warn",
                "--region",
                region,
            ])
            .args(flags);
        let mut child = command.env_clear().stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .strip_prefix("listening on http://")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        Self {
            address: address.parse().unwrap(),
            child,
        }
    }

    pub(crate) async fn until_ready(&self) {
        let client = client();
        let url = format!("http://{}/readyz", self.address);
        while client.get(&url).send().await.unwrap().status() != 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(crate) fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
