//! A real Redis, of the Debian package `redis-server`, at an address that no other test uses.

use std::{net::SocketAddr, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};

use super::{fault::FaultProxy, network::Network, patience::eventually, process::until_still};

/// A running Redis that keeps nothing on disk; killed when it is dropped.
pub(crate) struct Redis {
    address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Redis {
    /// One that answers.
    pub(crate) async fn start() -> Self {
        let (address, folder) = (Network::free().next_address(), TempDir::new().unwrap());
        let child = spawn(address, &folder);
        let redis = Self {
            address,
            child,
            folder,
        };
        redis.until_it_answers().await;
        redis
    }

    /// The setting that names it.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// A proxy in front of it.
    pub(crate) async fn proxy(&self) -> FaultProxy {
        FaultProxy::start(Network::free().next_address(), self.address).await
    }

    /// Ends it, and with it all that it knew.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again, empty.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.address, &self.folder);
        self.until_it_answers().await;
    }

    /// What it answers to a command, in the words of its protocol.
    pub(crate) async fn ask(&self, command: &str) -> String {
        let mut asked = TcpStream::connect(self.address).await.unwrap();
        let questions = format!("{command}\r\nQUIT\r\n");
        asked.write_all(questions.as_bytes()).await.unwrap();
        let mut answer = String::new();
        asked.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// How often it was sent the command `name`, in lowercase letters.
    pub(crate) async fn commands(&self, name: &str) -> u64 {
        let stats = self.ask("INFO commandstats").await;
        let line = format!("cmdstat_{name}:calls=");
        let mut counts = stats.lines().filter_map(|it| it.strip_prefix(&line));
        let count = counts.next().and_then(|count| count.split(',').next());
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// How many scripts it ran that change what it has of a key.
    pub(crate) async fn changes(&self) -> usize {
        let log = self.ask("SLOWLOG GET -1").await;
        // A command, the script, how many names follow, and the first of these: each after a line with its length.
        let lines: Vec<_> = log.lines().collect();
        let changes = lines
            .windows(7)
            .filter(|it| it[0] == "EVAL" && it[6].contains(":key:"));
        changes.count()
    }

    /// Stops it, and waits until it stands still.
    pub(crate) async fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        until_still(self.child.id().unwrap()).await;
    }

    /// It keeps its sockets and answers nothing, or goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn until_it_answers(&self) {
        let connect = async || TcpStream::connect(self.address).await.is_ok();
        eventually("Redis", connect, |is_there| *is_there).await;
    }
}

fn spawn(address: SocketAddr, folder: &TempDir) -> Child {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new("redis-server");
    command.args(["--bind", &ip, "--port", &port, "--save", ""]);
    // Its slow log has every command.
    command.args(["--slowlog-log-slower-than", "0"]);
    command.args(["--slowlog-max-len", "10000", "--dir"]);
    command
        .arg(folder.path())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command.spawn().unwrap()
}
