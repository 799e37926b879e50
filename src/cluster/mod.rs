//! The cluster as this instance knows it: who its peers are, where, and in which state.
//! Calls read it and tell it whom they met; discovery alone writes it.

mod agenda;
mod discovery;
mod entry;
mod event;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(feature = "internals")]
pub(crate) mod internals;
mod load;
mod overview;
mod peers;
mod probe;
mod records;
mod resolve;
mod state;
mod table;
mod work;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    discovery::{Discovery, Message},
    peers::PeerTable,
    probe::Prober,
    resolve::Dns,
    table::Table,
    work::Work,
};
pub(crate) use self::{
    event::Encounter,
    overview::{Overview, Progress, Seen},
    peers::{Condition, Peer, RegionPeers},
    state::{Health, PeerState},
};
use crate::{
    config::{DiscoveryConfig, Identity},
    metrics::DiscoveryMetrics,
    name::BootId,
    problem::{Code, Problem},
    region::Region,
    token::Token,
};

/// How many encounters may wait for discovery; when it is behind, further ones are dropped, for they are hints.
const INBOX: usize = 1024;

/// How long after its start an instance waits at most for an answer of DNS before it says that it is ready.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Why discovery cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The system's resolver configuration cannot be read.
    #[error("the system's DNS configuration cannot be used; set RPC_DNS_SERVER: {0}")]
    Resolver(#[from] hickory_resolver::net::NetError),
    /// The HTTP client cannot be built.
    #[error("the HTTP client for probes cannot be built: {0}")]
    Client(#[from] reqwest::Error),
}

/// The cluster as this instance knows it.
#[derive(Debug)]
pub(crate) struct Cluster {
    started: Instant,
    source: Option<String>,
    table: PeerTable,
    progress: watch::Receiver<Progress>,
    discovery: mpsc::Sender<Message>,
}

impl Cluster {
    /// Starts discovery of `config`'s names in the background, in `tasks` until `stop`; returns at once. Peers are who
    /// knows `token`.
    ///
    /// # Errors
    /// See [`DiscoveryError`].
    pub(crate) fn start(
        config: &DiscoveryConfig,
        (identity, boot): (&Identity, &BootId),
        own_port: u16,
        token: Option<&Token>,
        metrics: Arc<DiscoveryMetrics>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, DiscoveryError> {
        let table = PeerTable::new();
        let (sender, inbox) = mpsc::channel(INBOX);
        if config.names.is_empty() {
            let alone = Progress {
                answered: true,
                whole: true,
                ..Progress::default()
            };
            return Ok(Self {
                started: Instant::now(),
                source: None,
                table,
                progress: watch::channel(alone).1,
                discovery: sender,
            });
        }
        let (progress, watched) = watch::channel(Progress::default());
        let discovery = Discovery {
            dns: Arc::new(Dns::new(config, config.peer_port.unwrap_or(own_port))?),
            prober: Arc::new(Prober::new(identity.app.clone(), token.cloned())?),
            poll_interval: config.poll_interval,
            table: Table::new(identity.instance.clone(), boot.clone()),
            published: table.publisher(),
            progress,
            inbox,
            metrics,
            work: Work::new(),
        };
        tasks.spawn(discovery.run(stop));
        let source = config
            .names
            .iter()
            .map(resolve::label)
            .collect::<Vec<_>>()
            .join(",");
        Ok(Self {
            started: Instant::now(),
            source: Some(source),
            table,
            progress: watched,
            discovery: sender,
        })
    }

    /// The peers of `region`: one cache read.
    ///
    /// # Errors
    /// [`Code::RegionUnknown`] when no instance was seen in it, or [`Code::DiscoveryPending`] when one may be there
    /// because DNS has given no whole answer so far.
    pub(crate) fn region(&self, region: &Region) -> Result<Arc<RegionPeers>, Problem> {
        self.table
            .region(region)
            .ok_or_else(|| self.unknown(region))
    }

    fn unknown(&self, region: &Region) -> Problem {
        let progress = self.progress.borrow();
        if progress.whole {
            return Problem::new(
                Code::RegionUnknown,
                format!("no instance was ever seen in region \"{region}\""),
            );
        }
        let why = match &progress.error {
            Some(error) => format!("DNS has given no whole answer yet: {error}"),
            None => "the first discovery round has not finished yet".to_owned(),
        };
        Problem::new(
            Code::DiscoveryPending,
            format!("region \"{region}\": {why}"),
        )
    }

    /// The regions in which a peer was ever seen, sorted.
    pub(crate) fn regions(&self) -> Vec<Region> {
        self.table.regions()
    }

    /// Whether the first round is over, or there is nothing to discover.
    pub(crate) fn was_tried(&self) -> bool {
        self.source.is_none() || self.progress.borrow().rounds > 0
    }

    /// Waits until the first round is over, found or not.
    pub(crate) async fn tried(&self) {
        let mut progress = self.progress.clone();
        let is_over = |progress: &Progress| self.source.is_none() || progress.rounds > 0;
        // Discovery that was stopped before ends no round any more.
        let _ = progress.wait_for(is_over).await;
    }

    /// Whether calls for other regions can be expected to find them: DNS has answered for every name, be it that there
    /// are no records, and the round is over. After [`LONGEST_WAIT`] that no longer counts: without DNS, the functions
    /// of this instance are better than none.
    pub(crate) fn is_ready(&self) -> bool {
        let has_waited = || self.was_tried() && self.started.elapsed() >= LONGEST_WAIT;
        self.source.is_none() || self.progress.borrow().answered || has_waited()
    }

    /// What discovery resolves, as configured; `None` for a cluster of one.
    pub(crate) fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Tells how a call met the peer at `address`. Never waits.
    pub(crate) fn met(&self, address: SocketAddr, encounter: Encounter) {
        // A full inbox drops the hint: the next call, or the next probe, brings another.
        let _ = self.discovery.try_send(Message::Met(address, encounter));
    }

    /// Probes the peer at `address` at once, on a new connection, and says how it is afterwards: for calls that wait there
    /// while nothing is heard. Takes up to a second, longer when dozens of peers hang. All who ask meanwhile get the same
    /// verdict, and a probe that ended less than a quarter of a second ago stands for a new one. Nobody of ours is suspect.
    pub(crate) async fn ask(&self, address: SocketAddr) -> Health {
        let (waiter, verdict) = oneshot::channel();
        if self
            .discovery
            .try_send(Message::Ask(address, waiter))
            .is_err()
        {
            return self.known(address);
        }
        match verdict.await {
            Ok(health) => health,
            Err(_) => self.known(address),
        }
    }

    /// How the peer at `address` was last seen.
    fn known(&self, address: SocketAddr) -> Health {
        match self.table.is_ready(address) {
            true => Health::Ready,
            false => Health::Suspect,
        }
    }

    /// Every peer, and how discovery fares.
    pub(crate) async fn overview(&self) -> Overview {
        let (answer, overview) = oneshot::channel();
        let asked = self.discovery.send(Message::Overview(answer)).await;
        let alone = || Overview {
            seen: Vec::new(),
            progress: self.progress.borrow().clone(),
        };
        match asked {
            Ok(()) => overview.await.unwrap_or_else(|_| alone()),
            Err(_) => alone(),
        }
    }
}
