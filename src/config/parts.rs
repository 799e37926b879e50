//! What a configuration is made of.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use super::{AppUrl, KeyStoreUrl};
use crate::{
    access::Access,
    call::Timeouts,
    name::{InstanceId, InvalidName},
    region::Region,
    token::Token,
};

/// Who this instance is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its region.
    pub region: Region,
    /// The primary region.
    pub primary: Region,
    /// Its id, unique in the cluster.
    pub instance: InstanceId,
    /// Its application; peers of another application are not peers.
    pub app: Option<String>,
    /// Its release, shown to people.
    pub release: Option<String>,
}

/// What a process on Fly knows of its Machine: <https://fly.io/docs/machines/runtime-environment/>.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// Its address in the private network, which peers reach.
    pub private_ip: Option<IpAddr>,
    /// Whether it was started for a release command only: it has no address in DNS, and joins no cluster.
    pub runs_release_command: bool,
}

impl Machine {
    /// The address at which peers reach what listens at `address`, which may stand for all addresses of the Machine.
    pub(crate) fn reached_at(self, address: SocketAddr) -> SocketAddr {
        match self.private_ip {
            Some(ip) if address.ip().is_unspecified() => SocketAddr::new(ip, address.port()),
            _ => address,
        }
    }
}

/// One entry of what discovery resolves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DnsName {
    /// A host whose A and AAAA records are peers, at this port or else the peer port.
    Host(String, Option<u16>),
    /// A service (its name starts with `_`) whose SRV records are peers and carry the port.
    Service(String),
    /// A peer's address, not resolved.
    Address(SocketAddr),
}

/// How a call that a client asks of one region gets to another.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Route {
    /// Over a link: the instance asked forwards it.
    #[default]
    Proxy,
    /// By an answer with `fly-replay`, on which Fly Proxy sends the request once more to the other region.
    Replay,
    /// As `Replay` where the request came through Fly Proxy, else as `Proxy`.
    Auto,
}

impl FromStr for Route {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text {
            "proxy" => Ok(Self::Proxy),
            "replay" => Ok(Self::Replay),
            "auto" => Ok(Self::Auto),
            _ => Err(InvalidName::new("a route", "proxy, replay or auto")),
        }
    }
}

/// How peers are found.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// What is resolved; empty for a cluster of one.
    pub names: Vec<DnsName>,
    /// The DNS server to ask; the system's when `None`.
    pub server: Option<SocketAddr>,
    /// The port of peers found by A and AAAA; the port that serves `/internal/*` when `None`.
    pub peer_port: Option<u16>,
    /// The time between two rounds, ± 20 %; 50 ms or more.
    pub poll_interval: Duration,
}

/// The app beside an instance.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// Where it serves its functions.
    pub url: AppUrl,
    /// The token in every request to it; only an app at a unix socket needs none.
    pub token: Option<Token>,
    /// Calls in it at once, 1 or more; as many again wait.
    pub concurrency: usize,
    /// How long a child process may take to stop.
    pub stop_timeout: Duration,
    /// Whether its functions are offered although it gives its list without the token.
    pub allow_anonymous: bool,
}

/// What one instance takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// The largest result of a function, in bytes.
    pub max_result: usize,
    /// Calls that may run here at once; more are refused.
    pub max_in_flight: usize,
    /// The bytes of heads, bodies and answers that may wait here; from the memory that the process may use when `None`.
    pub max_memory: Option<usize>,
}

/// How an instance stops.
#[derive(Clone, Copy, Debug)]
pub struct DrainConfig {
    /// How long it still takes calls after its peers know that it stops.
    pub delay: Duration,
    /// How long calls in flight may finish after that.
    pub timeout: Duration,
}

/// All settings of an instance; the default is a cluster of one on `127.0.0.1:8080`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this instance is.
    pub identity: Identity,
    /// The Machine it runs on.
    pub machine: Machine,
    /// `host:port` to serve on; port 0 takes a free one.
    pub listen: String,
    /// `host:port` for what instances ask of each other; shares `listen` when `None`.
    pub internal_listen: Option<String>,
    /// `host:port` for scrapers, which send no token: metrics and health only; no such listener when `None`.
    pub metrics_listen: Option<String>,
    /// Who may ask it what.
    pub access: Access,
    /// How peers are found.
    pub discovery: DiscoveryConfig,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// The longest wait for a connection to a peer.
    pub connect_timeout: Duration,
    /// How calls for other regions get there, unless a request says otherwise.
    pub route: Route,
    /// The app beside it, whose functions it offers.
    pub app: Option<AppConfig>,
    /// Where all instances remember idempotency keys; each by itself when `None`.
    pub key_store: Option<KeyStoreUrl>,
    /// What this instance takes on.
    pub limits: Limits,
    /// How it stops.
    pub drain: DrainConfig,
    /// The `tracing` filter of `fly-rpc serve`; a program that embeds the crate sets up its own logs.
    pub log: String,
    /// Prefixes of the variables that Kubernetes sets for a Service, such as `RPC_PUBLIC` for `rpc-public`: they are no
    /// settings, which is logged at start.
    pub service_links: Vec<String>,
}

impl Config {
    /// Whether `/internal/*` is among the routes of the public listener. A release command serves none: it is no peer.
    pub(crate) fn serves_internal_publicly(&self) -> bool {
        self.internal_listen.is_none() && !self.machine.runs_release_command
    }
}
