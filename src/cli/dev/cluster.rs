//! The cluster that `dev` runs: its shape as it is typed, and its instances. Each is a child process, whose log is passed on;
//! with latency, the other regions reach it through a proxy each (`latency.rs`).

use std::{
    ffi::OsString,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    process::Stdio,
    str::FromStr,
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use futures_util::future;
use nix::sys::signal::{self, Signal};
use rand::RngExt;
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{self, ChildStdin, Command},
    sync::mpsc,
    time,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::USAGE,
    dns::DevDns,
    latency::{Latency, Proxy},
};
use crate::{
    cli::{Failure, run::pid_of},
    config::{SETTINGS, Setting, settings::*},
    region::Region,
    telemetry::printable,
};

const MAX_INSTANCES: usize = 64;

/// The longest line that is passed on whole, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// How long an instance may take to stop, and then to end its app at once, before it is killed.
const STOP: Duration = Duration::from_secs(10);
const HURRY: Duration = Duration::from_secs(2);

/// The ports of apps: below those that the kernels of Linux and macOS give to connections and to listeners at port 0.
const APP_PORTS: Range<u16> = 10_000..32_768;

/// How many of them are tried.
const PORT_TRIES: usize = 100;

/// The settings in our own environment that hold for every instance: how long it waits, and what it holds. The others say
/// who and where one instance is, and whom it serves, which the cluster decides.
const PASSED_ON: [Setting; 12] = [
    RPC_DEFAULT_TIMEOUT,
    RPC_MAX_TIMEOUT,
    RPC_CONNECT_TIMEOUT,
    RPC_ROUTE,
    RPC_APP_CONCURRENCY,
    RPC_APP_STOP_TIMEOUT,
    RPC_KEY_STORE,
    RPC_MAX_BODY,
    RPC_MAX_RESULT,
    RPC_MAX_IN_FLIGHT,
    RPC_MAX_MEMORY,
    RPC_DRAIN_TIMEOUT,
];

/// The colours of the names in the log, one for each region.
const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Blue,
    AnsiColor::BrightRed,
];

/// Regions in the order given, each with its number of instances.
#[derive(Clone, Debug)]
pub(super) struct Shape(Vec<(Region, usize)>);

impl Shape {
    pub(super) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.0.iter().map(|(region, _)| region)
    }

    pub(super) fn instances(&self) -> impl Iterator<Item = (&Region, String)> {
        self.0.iter().flat_map(|(region, count)| {
            (1..=*count).map(move |number| (region, format!("{region}-{number}")))
        })
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shape: Vec<(Region, usize)> = Vec::new();
        for part in text.split(',') {
            let (region, count) = part.split_once(':').unwrap_or((part, "1"));
            let region: Region = region
                .parse()
                .map_err(|invalid| format!("{region:?}: {invalid}"))?;
            let count = digits(count).filter(|count| (1..=MAX_INSTANCES).contains(count));
            let count = count.ok_or_else(|| {
                format!("{part:?} needs a count from 1 to {MAX_INSTANCES}, as in syd:2")
            })?;
            if shape.iter().any(|(known, _)| *known == region) {
                return Err(format!(
                    "{region} is given twice; write {region}:2 for two instances"
                ));
            }
            shape.push((region, count));
        }
        match shape.iter().map(|(_, count)| count).sum::<usize>() {
            1..=MAX_INSTANCES => Ok(Self(shape)),
            count => Err(format!("{count} instances are more than {MAX_INSTANCES}")),
        }
    }
}

/// A running cluster; it is gone when this is dropped.
pub(super) struct DevCluster {
    pub(super) dns: DevDns,
    pub(super) children: Vec<Child>,
    pub(super) regions: Vec<Region>,
    /// How long packets take between two regions; no time when `None`.
    pub(super) latency: Option<Latency>,
}

impl DevCluster {
    /// Starts the instance of `plan`, and announces it in every region.
    pub(super) async fn add(&mut self, plan: Plan) -> Result<(), Failure> {
        let (region, name, listen) = (plan.region.clone(), plan.name.clone(), plan.listen);
        let mut proxies = Vec::new();
        // Announced before it starts where its port is known, so that its first question already has an answer.
        if listen.port() != 0 {
            proxies = self.announce(&region, &name, listen).await?;
        }
        let mut child = Child::start(plan).await?;
        if listen.port() == 0 {
            proxies = self.announce(&region, &name, child.plan.listen).await?;
        }
        child.proxies = proxies;
        self.children.push(child);
        Ok(())
    }

    pub(super) async fn stop(&mut self) {
        future::join_all(self.children.iter_mut().map(Child::stop)).await;
    }

    /// Closes the proxies of the instance `name`, which has ended. Returns whether any instance is left.
    pub(super) fn ended(&mut self, name: &str) -> bool {
        if let Ok(child) = self.child(name) {
            child.has_ended = true;
            child.proxies.iter_mut().for_each(Proxy::close);
        }
        self.children.iter().any(|child| !child.has_ended)
    }

    pub(super) fn child(&mut self, name: &str) -> Result<&mut Child, Failure> {
        let names: Vec<_> = self.children.iter().map(|it| &*it.plan.name).collect();
        let unknown = format!("no instance {name}; there are {}", names.join(", "));
        let found = self.children.iter_mut().find(|it| it.plan.name == name);
        found.ok_or(Failure::Failed(unknown))
    }

    /// Announces the instance `name` at `address` in every region, and opens its proxies.
    async fn announce(
        &self,
        region: &Region,
        name: &str,
        address: SocketAddr,
    ) -> Result<Vec<Proxy>, Failure> {
        let mut proxies = Vec::new();
        for viewer in &self.regions {
            let mut reached_at = address;
            if let Some(latency) = self.latency.filter(|_| viewer != region) {
                let delay = latency.between(viewer, region).map_err(Failure::Usage)?;
                let proxy = Proxy::open(address, delay).await?;
                reached_at = proxy.address;
                proxies.push(proxy);
            }
            self.dns.announce(viewer, name, reached_at.port()).await?;
        }
        Ok(proxies)
    }
}

/// What an instance is started with, and where its log and its end go.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) region: Region,
    pub(super) name: String,
    /// Where it listens; port 0 is any free one, until it has one.
    pub(super) listen: SocketAddr,
    /// The command of its app, if it has one.
    pub(super) app: Vec<OsString>,
    /// Flags of `serve`, and their values.
    pub(super) settings: Vec<(&'static str, String)>,
    /// The style of its name in the log.
    pub(super) style: Style,
    /// Gets the lines of its log.
    pub(super) log: mpsc::Sender<String>,
    /// Gets its name and how it ended.
    pub(super) ends: mpsc::Sender<(String, String)>,
}

/// An instance, which runs or has ended; its process is killed when this is dropped.
pub(super) struct Child {
    pub(super) plan: Plan,
    pub(super) has_ended: bool,
    /// Those through which the other regions reach it.
    pub(super) proxies: Vec<Proxy>,
    /// An instance started with `--until-stdin-closes` drains when its stdin is closed.
    stdin: Option<ChildStdin>,
    signals: mpsc::Sender<Signal>,
    kept: AbortOnDropHandle<()>,
}

impl Child {
    /// Starts the instance of `plan`, and waits until it listens.
    pub(super) async fn start(mut plan: Plan) -> Result<Self, Failure> {
        let mut process = command(&plan)?.spawn()?;
        if let Some(stderr) = process.stderr.take() {
            tokio::spawn(pass_on(stderr, plan.clone()));
        }
        // Apart from the process, because waiting for a process closes the stdin that it holds.
        let stdin = process.stdin.take();
        let address = match process.stdout.take() {
            Some(stdout) => listening_address(stdout).await,
            None => None,
        };
        let Some(address) = address else {
            return Err(not_started(&plan.name, &mut process).await);
        };
        plan.listen = address;
        let (signals, orders) = mpsc::channel(1);
        let kept = tokio::spawn(keep(process, orders, plan.name.clone(), plan.ends.clone()));
        Ok(Self {
            plan,
            has_ended: false,
            proxies: Vec::new(),
            stdin,
            signals,
            kept: AbortOnDropHandle::new(kept),
        })
    }

    /// Starts it again where it was, once it has ended.
    pub(super) async fn start_again(&mut self) -> Result<(), Failure> {
        if !self.has_ended {
            return Err(Failure::Failed(format!("{} has not ended", self.plan.name)));
        }
        let started = Self::start(self.plan.clone()).await?;
        // The same proxies, whose addresses DNS has.
        let proxies = std::mem::take(&mut self.proxies);
        *self = Self { proxies, ..started };
        for proxy in &mut self.proxies {
            proxy.reopen().await?;
        }
        Ok(())
    }

    /// Sends it a signal, if it runs.
    pub(super) async fn signal(&self, signal: Signal) {
        // The receiver is gone once the process is.
        let _ = self.signals.send(signal).await;
    }

    pub(super) fn drain(&mut self) {
        drop(self.stdin.take());
    }

    /// Lets it drain, and waits until it is gone.
    pub(super) async fn stop(&mut self) {
        // One that was stopped cannot drain.
        self.signal(Signal::SIGCONT).await;
        self.drain();
        // An instance that is killed leaves behind what its app started.
        for (patience, signal) in [(STOP, Signal::SIGTERM), (HURRY, Signal::SIGKILL)] {
            if time::timeout(patience, &mut self.kept).await.is_ok() {
                return;
            }
            self.signal(signal).await;
        }
    }
}

fn command(plan: &Plan) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    let has_app = !plan.app.is_empty();
    command.arg(if has_app { "run" } else { "serve" });
    command.arg("--until-stdin-closes");
    command.arg(format!("--region={}", plan.region));
    command.arg(format!("--instance={}", plan.name));
    command.arg(format!("--listen={}", plan.listen));
    let settings = plan.settings.iter();
    command.args(settings.map(|(flag, value)| format!("--{flag}={value}")));
    let is_passed_on = |name| PASSED_ON.iter().any(|setting| setting.variable == name);
    let variables = SETTINGS.iter().map(|setting| setting.variable);
    for name in variables.filter(|name| !is_passed_on(*name)) {
        command.env_remove(name);
    }
    if has_app {
        command.arg("--again").arg("--").args(&plan.app);
        command.env("PORT", free_port()?.to_string());
    }
    // A process group of its own: Ctrl-C reaches us alone, and we stop the instances in order.
    command.process_group(0).kill_on_drop(true);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// A port that is free, and stays so until the app listens there: the kernel gives none of these to whoever asks for any.
fn free_port() -> io::Result<u16> {
    let mut tries = (0..PORT_TRIES).map(|_| rand::rng().random_range(APP_PORTS));
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    tries
        .find(is_free)
        .ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

/// Why the instance `name`, whose stdout has ended, did not start: its settings are those of `dev`.
async fn not_started(name: &str, process: &mut process::Child) -> Failure {
    let why = format!("instance {name} did not start; its own message is above");
    match time::timeout(STOP, process.wait()).await {
        Ok(Ok(status)) if status.code() == Some(USAGE.into()) => Failure::Usage(why),
        _ => Failure::Failed(why),
    }
}

/// Waits for a process, and reports how it ended; until then passes signals on to it. Its id cannot be that of another
/// process before it has been waited for.
async fn keep(
    mut process: process::Child,
    mut orders: mpsc::Receiver<Signal>,
    name: String,
    ends: mpsc::Sender<(String, String)>,
) {
    loop {
        tokio::select! {
            Some(signal) = orders.recv() => {
                // A process that ends at this very moment needs no signal.
                let _ = pid_of(&process).map(|id| signal::kill(id, signal));
            }
            status = process.wait() => {
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                // Without a receiver, everything stops anyway.
                let _ = ends.send((name, how)).await;
                return;
            }
        }
    }
}

/// The address in the line by which an instance says that it listens; `None` when it ended without one.
async fn listening_address(stdout: impl AsyncRead + Unpin) -> Option<SocketAddr> {
    // The rest of its stdout, which is then closed, is of no use here.
    let line = BufReader::new(stdout).lines().next_line().await.ok()??;
    line.strip_prefix("listening on http://")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

/// Passes on what an instance, and an app beside it, print: bytes of any kind, in lines of at most [`MAX_LINE`]. It reads on as
/// long as there is a writer, whom a closed pipe would end.
async fn pass_on(stderr: impl AsyncRead + Unpin, plan: Plan) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(1..) = (&mut stderr)
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .await
    {
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        let (name, style, text) = (&plan.name, plan.style, readable(&text));
        let text = format!("{style}{name:>8}{style:#} {}", printable(&text));
        if plan.log.send(text).await.is_err() {
            return;
        }
        line.clear();
    }
}

/// The style of the names of the instances in a region, which has this number among the regions.
pub(super) fn style(region: usize) -> Style {
    COLOURS[region % COLOURS.len()].on_default()
}

/// A JSON line as time, level, message and `name=value` pairs; any other line as it is.
fn readable(text: &str) -> String {
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(text) else {
        return text.to_owned();
    };
    if let Some(Value::Object(mut span)) = fields.remove("span") {
        span.remove("name");
        fields.extend(span);
    }
    let mut take = |name: &str| {
        fields
            .remove(name)
            .map(|value| plain(&value))
            .unwrap_or_default()
    };
    let (timestamp, level, message) = (take("timestamp"), take("level"), take("message"));
    let time = timestamp.get(11..23).unwrap_or(&timestamp);
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!(" {name}={}", plain(value)))
        .collect();
    format!("{time} {level:<5} {message}{fields}")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_become_readable_and_others_stay() {
        let json = r#"{"timestamp":"2026-08-21T10:11:12.345678Z","level":"INFO","message":"call","attempts":1,"region":"syd"}"#;
        assert_eq!(
            readable(json),
            "10:11:12.345 INFO  call attempts=1 region=syd"
        );
        let spanned = r#"{"timestamp":"2026-08-21T10:11:12.345678Z","level":"WARN","message":"no connection","instance":"syd-1","span":{"request_id":"01M","name":"call"}}"#;
        assert_eq!(
            readable(spanned),
            "10:11:12.345 WARN  no connection instance=syd-1 request_id=01M"
        );
        assert_eq!(
            readable("fly-rpc: no such setting"),
            "fly-rpc: no such setting"
        );
    }
}
