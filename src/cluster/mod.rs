//! The cluster as this instance knows it: which peers there are, where, and in which state.
//!
//! `dns.rs` finds addresses and `probe.rs` asks what is there; `poller.rs` runs both and passes the results, with what
//! calls report, to the rules in `table.rs`; calls read the outcome from `snapshot.rs`, and choose one of `peers.rs`.

mod dns;
mod peers;
mod poller;
mod probe;
mod snapshot;
mod table;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    dns::Dns,
    poller::{Message, Poller},
    probe::Prober,
    snapshot::Progress,
};
#[cfg(any(test, fuzzing))]
pub(crate) use self::{
    dns::{addresses, is_usable, services},
    table::{Event, MAX_WITHOUT_PEER, ProbeAnswer},
};
pub(crate) use self::{
    peers::{Condition, Peer, RegionPeers},
    snapshot::{Overview, Snapshot},
    table::{CallSignal, KnownAddress, KnownPeer, Table},
};
use crate::{
    config::{DiscoveryConfig, Identity},
    metrics::Metrics,
    name::BootId,
    problem::{Code, Problem},
    protocol::{Catalogue, CatalogueHash, PeerState},
    region::Region,
    token::Token,
};

/// After how long an instance is ready although DNS has not answered.
const READY_WITHOUT_DNS: Duration = Duration::from_secs(15);

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

#[derive(Debug)]
pub(crate) struct Cluster {
    started: Instant,
    source: Option<String>,
    snapshot: Snapshot,
    progress: watch::Receiver<Progress>,
    poller: mpsc::Sender<Message>,
}

impl Cluster {
    /// Starts discovery of the names in `config` in the background, in `tasks` until `stop`, and returns at once. Peers are
    /// the instances that know `token`.
    pub(crate) fn start(
        config: &DiscoveryConfig,
        (identity, boot): (&Identity, &BootId),
        own_port: u16,
        token: Option<&Token>,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, DiscoveryError> {
        let snapshot = Snapshot::new();
        let started = Instant::now();
        if config.names.is_empty() {
            let alone = Progress {
                answered: true,
                complete: true,
                ..Progress::default()
            };
            return Ok(Self {
                started,
                source: None,
                snapshot,
                progress: watch::channel(alone).1,
                poller: mpsc::channel(1).0,
            });
        }
        let (poller, sender, progress) = Poller::new(
            Dns::new(config, config.peer_port.unwrap_or(own_port))?,
            Prober::new(identity.app.clone(), token.cloned())?,
            Table::new(identity.instance.clone(), boot.clone()),
            snapshot.publisher(),
            config.poll_interval,
            Arc::clone(metrics),
        );
        tasks.spawn(poller.run(stop));
        let names: Vec<_> = config.names.iter().map(dns::label).collect();
        Ok(Self {
            started,
            source: Some(names.join(",")),
            snapshot,
            progress,
            poller: sender,
        })
    }

    /// The peers of `region`: one cache read.
    ///
    /// # Errors
    /// [`Code::RegionUnknown`] when no instance was ever seen in it; [`Code::DiscoveryPending`] instead as long as DNS has
    /// not answered completely, or not every address was probed, because one may be there.
    pub(crate) fn region(&self, region: &Region) -> Result<Arc<RegionPeers>, Problem> {
        self.snapshot
            .region(region)
            .ok_or_else(|| self.unknown(region))
    }

    fn unknown(&self, region: &Region) -> Problem {
        let progress = self.progress.borrow();
        if progress.complete {
            return Problem::new(
                Code::RegionUnknown,
                format!("no instance was ever seen in region \"{region}\""),
            );
        }
        let why = match &progress.error {
            Some(error) => format!("DNS has given no whole answer yet: {error}"),
            None if progress.rounds > 0 => {
                "not every address that DNS gave has been probed yet".to_owned()
            }
            None => "the first discovery round has not finished yet".to_owned(),
        };
        Problem::new(
            Code::DiscoveryPending,
            format!("region \"{region}\": {why}"),
        )
    }

    /// The regions in which a peer was ever seen, sorted.
    pub(crate) fn regions(&self) -> Vec<Region> {
        self.snapshot.regions()
    }

    /// The catalogues of all peers, each once, in the order of their hashes, which is the same on every instance.
    pub(crate) fn catalogues(&self) -> BTreeMap<CatalogueHash, Arc<Catalogue>> {
        let mut found = BTreeMap::new();
        for region in self.snapshot.regions() {
            let peers = self.snapshot.region(&region).unwrap_or_default();
            let catalogues = peers.all().filter_map(|peer| peer.catalogue.clone());
            found.extend(catalogues.map(|catalogue| (catalogue.hash().clone(), catalogue)));
        }
        found
    }

    /// Whether the first round is over, or there is nothing to discover.
    pub(crate) fn is_first_round_over(&self) -> bool {
        self.source.is_none() || self.progress.borrow().rounds > 0
    }

    /// What discovery has achieved and what hinders it.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until the first round is over, whatever it found.
    pub(crate) async fn first_round(&self) {
        let mut progress = self.progress.clone();
        // An error means that no further round ends: discovery was stopped, or there is nothing to discover.
        let _ = progress.wait_for(|progress| progress.rounds > 0).await;
    }

    /// Whether a call for another region can be expected to find it: a round is over in which DNS answered for every name,
    /// even if only that there are no records. After [`READY_WITHOUT_DNS`] the answer is no longer needed: an instance that
    /// can run its own functions is better than none.
    pub(crate) fn is_ready(&self) -> bool {
        let has_waited =
            || self.is_first_round_over() && self.started.elapsed() >= READY_WITHOUT_DNS;
        self.progress.borrow().answered || has_waited()
    }

    /// What discovery resolves, as configured; `None` for a cluster of one.
    pub(crate) fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Reports what a call found out about the peer at `address`. Never waits.
    pub(crate) fn report(&self, address: SocketAddr, signal: CallSignal) {
        // When the poller is behind, the signal is dropped: the next call, or the next probe, brings another.
        let _ = self.poller.try_send(Message::Called(address, signal));
    }

    /// Probes the peer at `address` at once, on a new connection, and returns its state afterwards: for calls that wait
    /// there and receive nothing. Takes up to a second, longer when dozens of peers hang. All calls that ask meanwhile share
    /// one probe, and one that ended less than a quarter of a second ago counts too. An address without a peer is suspect.
    pub(crate) async fn probe(&self, address: SocketAddr) -> PeerState {
        let (waiter, state) = oneshot::channel();
        // Where the poller does not take the message, or has ended, the waiter is dropped.
        let _ = self.poller.try_send(Message::Probe(address, waiter));
        let last_state = || match self.snapshot.is_ready(address) {
            true => PeerState::Ready,
            false => PeerState::Suspect,
        };
        state.await.unwrap_or_else(|_| last_state())
    }

    /// Every address but this instance's own, and the progress of discovery.
    pub(crate) async fn overview(&self) -> Overview {
        let (asker, overview) = oneshot::channel();
        // In a cluster of one nothing receives the message.
        let _ = self.poller.send(Message::Overview(asker)).await;
        overview.await.unwrap_or_else(|_| Overview {
            addresses: Vec::new(),
            progress: self.progress(),
            warnings: Vec::new(),
        })
    }
}
