//! An app in Python beside an instance: a real process that does on the wire what a test asks of it.

mod answers;
mod consistency;
mod life;
mod lock;
mod regions;
mod run;

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpSocket,
    process::{Child, Command},
};

use crate::support::{
    patience::{eventually, in_time},
    process::{Answer, Environment, Process},
};

pub(crate) const TOKEN: &str = "a-token-of-the-app-that-no-one-else-knows";

/// A running app, killed when it is dropped.
pub(crate) struct App {
    child: Child,
    /// Keeps others from its port, also between its end and its next start: the app may listen there too, as this does not.
    _held: Option<TcpSocket>,
    /// The port or the socket that it listens at.
    pub(crate) place: String,
    pub(crate) folder: TempDir,
}

impl App {
    /// At a port.
    pub(crate) async fn start() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        held.set_reuseaddr(true).unwrap();
        held.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = held.local_addr().unwrap().port().to_string();
        let app = Self::start_at(tempfile::tempdir().unwrap(), &port).await;
        Self {
            _held: Some(held),
            ..app
        }
    }

    pub(crate) async fn start_at(folder: TempDir, place: &str) -> Self {
        Self {
            child: spawn(folder.path(), place).await,
            _held: None,
            place: place.to_owned(),
            folder,
        }
    }

    /// Starts it again, at the same place.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.folder.path(), &self.place).await;
    }

    /// Ends it with SIGKILL, and waits until it has.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// The settings of an instance beside it.
    pub(crate) fn environment(&self) -> Environment {
        let url = match self.place.parse::<u16>() {
            Ok(port) => format!("http://127.0.0.1:{port}/rpc"),
            Err(_) => format!("unix:{}:/rpc", self.place),
        };
        Environment::from([
            ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
            ("FLY_REGION", "iad".to_owned()),
            ("FLY_MACHINE_ID", "iad-1".to_owned()),
            ("RPC_APP_URL", url),
            ("RPC_APP_TOKEN", TOKEN.to_owned()),
            ("RPC_DRAIN_DELAY", "0s".to_owned()),
        ])
    }

    /// An instance beside it, with `more` settings, that offers its functions.
    pub(crate) async fn instance(&self, more: &[(&'static str, &str)]) -> Process {
        let mut environment = self.environment();
        environment.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let instance = Process::start(&environment).await;
        until_state(&instance, "up").await;
        instance
    }

    /// What it offers from now on.
    pub(crate) fn offer(&self, list: &Value) {
        let (path, new) = (
            self.folder.path().join("list.json"),
            self.folder.path().join("new"),
        );
        fs::write(&new, list.to_string()).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(crate) fn set(&self, name: &str) {
        fs::write(self.folder.path().join(name), "").unwrap();
    }

    pub(crate) fn unset(&self, name: &str) {
        fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    /// How often each call ran.
    pub(crate) fn runs(&self) -> BTreeMap<String, u32> {
        let mut runs = BTreeMap::new();
        for id in self.lines("runs") {
            *runs.entry(id).or_default() += 1;
        }
        runs
    }

    pub(crate) fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until the call `id` runs.
    pub(crate) async fn until_runs(&self, id: &str) {
        eventually(id, async || self.runs(), |runs| runs.contains_key(id)).await;
    }
}

async fn spawn(folder: &Path, place: &str) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app/app.py");
    let mut command = Command::new("python3");
    command
        .arg(script)
        .arg(folder)
        .arg(place)
        .env("RPC_APP_TOKEN", TOKEN);
    command.stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = in_time("the app's start", lines.next_line()).await;
    assert_eq!(line.unwrap().as_deref(), Some(place));
    child
}

/// Waits until the app beside `instance` is in `state`.
pub(crate) async fn until_state(instance: &Process, state: &str) {
    let look = async || instance.get("/functions").await.body["app"]["state"].clone();
    eventually("the app's state", look, |now| now == state).await;
}

/// The answer to a call of the app's function, as code, executed and what else is in it.
pub(crate) async fn outcome(instance: &Process, function: &str, args: Value) -> (String, String) {
    let answer = call(instance, function, args, 5_000).await;
    parts(&answer)
}

pub(crate) async fn call(
    instance: &Process,
    function: &str,
    args: Value,
    timeout_ms: u64,
) -> Answer {
    let (module, function) = function.rsplit_once('.').unwrap();
    let call =
        json!({"module": module, "function": function, "args": args, "timeout_ms": timeout_ms});
    instance.rpc("iad", &call).await
}

pub(crate) fn parts(answer: &Answer) -> (String, String) {
    if answer.status == 200 {
        return ("ok".to_owned(), answer.body["result"].to_string());
    }
    let (status, code, executed) = answer.problem();
    assert_eq!(status, status_of(code), "{answer:?}");
    (code.to_owned(), executed.to_owned())
}

/// The status of each problem that a call of a function may come to in the tests that read it by `parts`.
fn status_of(code: &str) -> u16 {
    match code {
        "invalid_request" => 400,
        "forbidden" => 403,
        "function_unknown" => 404,
        "invalid_arguments" => 422,
        "function_failed" => 424,
        "function_panicked" => 500,
        "function_lost" => 502,
        "overloaded" | "function_unavailable" => 503,
        "deadline_exceeded" => 504,
        other => panic!("{other} has no status here"),
    }
}
