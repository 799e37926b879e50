//! One instance as a real process: started with an environment of its own, asked over HTTP, sent signals.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

use crate::support::{
    functions::DIRECTORY,
    patience::{PATIENCE, eventually, in_time},
};

/// An instance; killed when it is dropped, its log shown if the test failed.
pub(crate) struct Process {
    pub region: String,
    pub name: String,
    pub address: SocketAddr,
    pub environment: Environment,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    /// Ends with the log.
    collecting: Option<JoinHandle<()>>,
    client: Client,
}

/// What an instance answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub status: u16,
    pub content_type: String,
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

/// Settings of a process, by variable.
pub(crate) type Environment = BTreeMap<&'static str, String>;

impl Process {
    /// The program itself with `environment` and nothing else, once it listens.
    pub(crate) async fn start(environment: &Environment) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
        command.arg("serve");
        Self::spawn(command, environment).await
    }

    /// The same where the process may have at most so many files open.
    pub(crate) async fn start_with_open_files(environment: &Environment, files: usize) -> Self {
        let mut command = Command::new("/bin/sh");
        let script = format!("ulimit -n {files} && exec \"$0\" serve");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_fly-rpc")]);
        Self::spawn(command, environment).await
    }

    /// An instance that has the functions of [`crate::support::functions`] too, with latches and logs in `directory`.
    pub(crate) async fn start_with_functions(environment: &Environment, directory: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "support::functions::instance_process",
            "--exact",
            "--nocapture",
        ]);
        command.env(DIRECTORY, directory);
        Self::spawn(command, environment).await
    }

    pub(crate) async fn spawn(command: Command, environment: &Environment) -> Self {
        Self::spawn_with_stderr(command, environment, Stdio::piped()).await
    }

    /// `command` with `environment` and nothing else, once it listens; its log is kept if it comes through a pipe of
    /// ours.
    pub(crate) async fn spawn_with_stderr(
        mut command: Command,
        environment: &Environment,
        stderr: Stdio,
    ) -> Self {
        let kept = command
            .as_std()
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.unwrap().to_owned()));
        let kept: Vec<_> = kept.collect();
        command.env_clear().envs(kept).envs(environment);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        // It holds our copy of the stderr that it was given.
        drop(command);
        let log = Arc::<Mutex<Vec<String>>>::default();
        let stderr = child.stderr.take();
        let collecting = stderr.map(|stderr| tokio::spawn(collect(stderr, Arc::clone(&log))));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = in_time("listening", async {
            loop {
                let line = lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| {
                    panic!("ended before it listened: {:?}", log.lock().unwrap())
                });
                if let Some((_, address)) = line.split_once("listening on http://") {
                    return address.split(' ').next().unwrap().parse().unwrap();
                }
            }
        });
        let address = address.await;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let named = |name| environment.get(name).cloned().unwrap_or_default();
        // A connection for each request, so that no test meets one that is just being closed.
        let client = Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(PATIENCE)
            .build()
            .unwrap();
        Self {
            region: named("FLY_REGION"),
            name: named("FLY_MACHINE_ID"),
            address,
            environment: environment.clone(),
            child,
            log,
            collecting,
            client,
        }
    }

    /// The answer to `GET path`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(self.url(path))).await.unwrap()
    }

    /// The answer to the call of `function` (`Module.function`) with `args` in `region`.
    pub(crate) async fn call(&self, region: &str, function: &str, args: Value) -> Answer {
        let (module, function) = function.rsplit_once('.').unwrap();
        let body = serde_json::json!({"module": module, "function": function, "args": args});
        self.rpc(region, &body).await
    }

    /// The answer to `POST /rpc/{region}` with `body`.
    pub(crate) async fn rpc(&self, region: &str, body: &Value) -> Answer {
        self.post(&format!("/rpc/{region}"), &body.to_string())
            .await
    }

    /// The answer to `POST path` with a JSON text.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        answer(self.request(path, body)).await.unwrap()
    }

    /// `POST path` with a JSON text, to be completed and sent by the test.
    pub(crate) fn request(&self, path: &str, body: &str) -> RequestBuilder {
        self.client
            .post(self.url(path))
            .header("content-type", "application/json")
            .body(body.to_owned())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends SIGTERM: drain and stop.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::SIGINT);
    }

    /// Sends SIGHUP, as a terminal that is closed does.
    pub(crate) fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Sends SIGUSR1: its log lets everything through, or no more than usual again.
    pub(crate) fn toggle_log(&self) {
        self.signal(Signal::SIGUSR1);
    }

    /// Sends SIGKILL: gone at once.
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends SIGSTOP and waits until all of its threads stand still: it keeps its sockets and does nothing, until
    /// [`Process::resume`].
    pub(crate) async fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        until_still(self.pid()).await;
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// How many calls are in flight there.
    pub(crate) async fn in_flight(&self) -> u64 {
        self.metric("fly_rpc_in_flight").await.unwrap()
    }

    /// How many calls have a place there, those that wait for their turn included.
    pub(crate) async fn running(&self) -> u64 {
        self.metric("fly_rpc_running").await.unwrap()
    }

    /// The value of the metric `name`, with its labels if it has any; `None` where it is not shown.
    pub(crate) async fn metric(&self, name: &str) -> Option<u64> {
        let metrics = self.get("/metrics").await.body;
        let mut lines = metrics.as_str().unwrap().lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }

    /// The most memory that it had so far, in KiB (`VmHWM` of proc(5)).
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let words: Vec<_> = line.unwrap().split_whitespace().collect();
        words[1].parse().unwrap()
    }

    /// How it ended; its log is whole then.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = in_time("the end of the process", self.child.wait()).await;
        if let Some(collecting) = self.collecting.take() {
            in_time("the end of its log", collecting).await.unwrap();
        }
        ended.unwrap()
    }

    /// What it wrote to its log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {} in {}:\n{}", self.name, self.region, self.log());
        }
    }
}

/// Waits until all threads of a process that was sent SIGSTOP stand still.
pub(crate) async fn until_still(pid: u32) {
    let tasks = format!("/proc/{pid}/task");
    let stands = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status"));
        // A thread may end meanwhile.
        status.is_ok_and(|status| status.contains("State:\tT"))
    };
    let all = async || fs::read_dir(&tasks).unwrap().all(stands);
    eventually("standing still", all, |all| *all).await;
}

/// The answer to `request`.
pub(crate) async fn answer(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    let headers: BTreeMap<String, String> = response.headers().iter().map(text).collect();
    let content_type = headers.get("content-type").cloned().unwrap_or_default();
    let body = response.bytes().await?;
    let body = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body).as_ref()));
    Ok(Answer {
        status,
        content_type,
        headers,
        body,
    })
}

impl Answer {
    /// The result, of an answer that has one.
    pub(crate) fn result(&self) -> &Value {
        assert_eq!(
            (self.status, self.content_type.as_str()),
            (200, "application/json"),
            "{self:?}"
        );
        &self.body["result"]
    }

    /// Status, code and executed, of an answer that is a whole problem document.
    pub(crate) fn problem(&self) -> (u16, &str, &str) {
        assert_eq!(self.content_type, "application/problem+json", "{self:?}");
        let text = |member: &str| {
            self.body[member]
                .as_str()
                .unwrap_or_else(|| panic!("{member} in {self:?}"))
        };
        assert_eq!(text("type"), format!("/docs/problems#{}", text("code")));
        assert_eq!(self.body["status"], self.status);
        assert_eq!(
            self.body["meta"]["request_id"],
            self.headers["x-request-id"].as_str()
        );
        assert!(
            !text("title").is_empty() && (1..=256).contains(&text("detail").len()),
            "{self:?}"
        );
        assert!(self.body.get("error").is_some(), "{self:?}");
        (self.status, text("code"), text("executed"))
    }

    /// The problem's detail.
    pub(crate) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap()
    }

    /// The instance in `meta`.
    pub(crate) fn instance(&self) -> &str {
        self.body["meta"]["instance"]
            .as_str()
            .unwrap_or_else(|| panic!("instance in {self:?}"))
    }
}

async fn collect(stream: impl AsyncRead + Unpin, log: Arc<Mutex<Vec<String>>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lock().unwrap().push(line);
    }
}
