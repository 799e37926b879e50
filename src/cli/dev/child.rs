//! One instance of the cluster as a child process: started with its settings, its log passed on, stopped with us.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use futures_util::future;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{self, ChildStdin, Command},
    sync::mpsc,
    time,
};

use super::log::Line;
use crate::{cli::Failure, config::SETTINGS, region::Region};

/// How long an instance may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(10);

/// A running instance; it is killed when this is dropped.
pub(super) struct Child {
    region: Region,
    name: String,
    address: SocketAddr,
    process: process::Child,
    // Apart from the process, because waiting for a process closes the stdin that it holds.
    stdin: Option<ChildStdin>,
}

impl Child {
    /// Starts the instance `name` with `settings` and waits until it listens; its log goes to `lines`.
    pub(super) async fn spawn(
        region: &Region,
        name: &str,
        settings: &[(&str, String)],
        lines: mpsc::Sender<Line>,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--until-stdin-closes");
        command.args(
            settings
                .iter()
                .map(|(flag, value)| format!("--{flag}={value}")),
        );
        for setting in SETTINGS {
            command.env_remove(setting.variable);
        }
        // A process group of its own: Ctrl-C reaches us alone, and we stop the instances in order.
        command.process_group(0).kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn()?;
        if let Some(stderr) = process.stderr.take() {
            tokio::spawn(pass_on(stderr, region.clone(), name.to_owned(), lines));
        }
        let stdin = process.stdin.take();
        let address = match process.stdout.take() {
            Some(stdout) => listening_address(stdout).await,
            None => None,
        };
        let failed = || {
            Failure::Failed(format!(
                "instance {name} did not start; its own message is above"
            ))
        };
        Ok(Self {
            region: region.clone(),
            name: name.to_owned(),
            address: address.ok_or_else(failed)?,
            process,
            stdin,
        })
    }

    /// Its region.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn stop(&mut self) {
        // An instance started with --until-stdin-closes drains when its stdin is closed.
        drop(self.stdin.take());
        if time::timeout(STOP, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }
}

/// Stops every instance.
pub(super) async fn stop_all(children: &mut [Child]) {
    future::join_all(children.iter_mut().map(Child::stop)).await;
}

/// Waits until every instance has ended by itself, and says so of each.
pub(super) async fn until_all_ended(children: &mut [Child]) {
    let ends = children.iter_mut().map(|child| async move {
        if let Ok(status) = child.process.wait().await {
            crate::cli::say(&format!(
                "{} has ended: {status}; it is not restarted",
                child.name
            ));
        }
    });
    future::join_all(ends).await;
}

/// The address in the line by which an instance says that it listens; `None` when it ended without one.
async fn listening_address(stdout: impl AsyncRead + Unpin) -> Option<SocketAddr> {
    let line = BufReader::new(stdout).lines().next_line().await.ok()??;
    line.strip_prefix("listening on http://")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

async fn pass_on(
    stderr: impl AsyncRead + Unpin,
    region: Region,
    name: String,
    lines: mpsc::Sender<Line>,
) {
    let mut log = BufReader::new(stderr).lines();
    while let Ok(Some(text)) = log.next_line().await {
        let line = Line {
            region: region.clone(),
            instance: name.clone(),
            text,
        };
        if lines.send(line).await.is_err() {
            return;
        }
    }
}
