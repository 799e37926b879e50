//! The cluster as this instance knows it: which peers there are, where, and in which state.
//!
//! `dns.rs` finds addresses and `probe.rs` asks what is there; `poller.rs` runs both and passes the results, with what
//! calls report, to the rules in `table.rs`. The outcome is here, in a snapshot that only the poller writes: calls read a
//! region's peers in one cache read, and choose one of `peers.rs`; people ask for an overview of every address. Nothing
//! expires by time: a cache that did would leave calls without peers while DNS is down.

mod dns;
mod peers;
mod poller;
mod probe;
mod table;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use self::{
    dns::Dns,
    poller::{Message, Poller},
    probe::Prober,
};
#[cfg(any(test, fuzzing))]
pub(crate) use self::{
    dns::{addresses, is_usable, services},
    table::{MAX_WITHOUT_PEER, ProbeAnswer, TableEvent},
};
pub(crate) use self::{
    peers::{Condition, Peer, RegionPeers},
    table::{CallSignal, KnownAddress, KnownPeer, Table},
};
use crate::{
    config::DiscoveryConfig,
    local::LocalInstance,
    name::{InstanceId, debug_as_text},
    problem::{Code, Problem},
    protocol::{Catalogue, CatalogueHash, PeerState},
    region::Region,
    registry::Executor,
};

/// After how long an instance is ready although DNS has not answered.
const READY_WITHOUT_DNS: Duration = Duration::from_secs(15);

/// Why discovery cannot start.
#[derive(thiserror::Error)]
pub enum DiscoveryError {
    /// The system's resolver configuration cannot be read.
    #[error("the system's DNS configuration cannot be used; set RPC_DNS_SERVER: {0}")]
    Resolver(#[from] hickory_resolver::net::NetError),
    /// The HTTP client cannot be built.
    #[error("the HTTP client for probes cannot be built: {0}")]
    Client(#[from] reqwest::Error),
}

debug_as_text!(DiscoveryError);

#[derive(Debug)]
pub(crate) struct Cluster {
    started: Instant,
    /// What discovery resolves, as configured; `None` for a cluster of one.
    pub(crate) source: Option<String>,
    snapshot: Snapshot,
    progress: watch::Receiver<Progress>,
    poller: mpsc::Sender<Message>,
}

impl Cluster {
    /// Starts discovery of the names in `config` in the background, for the instance of `executor`, and returns at once. Peers
    /// are found at `own_port` where `config` names none.
    pub(crate) fn start(
        local: &LocalInstance,
        executor: Arc<Executor>,
        config: &DiscoveryConfig,
        own_port: u16,
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
        let (identity, token) = (&local.identity, local.access.cluster.first());
        let (poller, sender, progress) = Poller::new(
            Dns::new(config, config.peer_port.unwrap_or(own_port))?,
            Prober::new(identity.app.clone(), token.cloned(), executor)?,
            Table::new(identity.instance.clone(), local.boot.clone()),
            snapshot.clone(),
            config.poll_interval,
            Arc::clone(&local.metrics),
        );
        local.tasks.spawn(poller.run(local.stop.clone()));
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
            let strangers = match progress.strangers {
                0 => String::new(),
                1 => "; 1 address is not a peer, and GET /regions says why".to_owned(),
                count => format!("; {count} addresses are not peers, and GET /regions says why"),
            };
            return Problem::new(
                Code::RegionUnknown,
                format!("no instance was ever seen in region \"{region}\"{strangers}"),
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

    /// Reports what a call found out about the peer at `address`. Never waits.
    pub(crate) fn report(&self, address: SocketAddr, signal: CallSignal) {
        // When the poller is behind, the signal is dropped: the next call, or the next probe, brings another.
        let _ = self.poller.try_send(Message::Called(address, signal));
    }

    /// Probes the peer at `address` at once, on a new connection, and returns its state afterwards: for calls that wait
    /// there in vain or could not connect. Takes up to a second, longer when dozens of peers hang. All calls that ask meanwhile
    /// share one probe, and one that ended less than a quarter of a second ago counts too, unless a call failed to connect
    /// since. An address without a peer is suspect.
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
    pub(crate) async fn overview(&self) -> Arc<Overview> {
        let (asker, overview) = oneshot::channel();
        // In a cluster of one nothing receives the message.
        let _ = self.poller.send(Message::Overview(asker)).await;
        let alone = || Overview {
            addresses: Vec::new(),
            progress: self.progress(),
            warnings: Vec::new(),
        };
        overview.await.unwrap_or_else(|_| alone().into())
    }
}

/// How many regions without peers stay known, so that a call for one of them gets another problem than a call for a region
/// that never existed. Beyond that, the region that has been empty for longest is forgotten. Regions with peers are not
/// bounded.
const MAX_EMPTY_REGIONS: usize = 256;

/// The problem of two processes that use one id, and its consequence.
const DUPLICATE_ID: &str = "two processes say that they are this instance: neither gets calls with a key, or that \
     name the instance, until each has an id of its own (FLY_MACHINE_ID)";
/// How many duplicate ids are reported one by one.
const MAX_DUPLICATES: usize = 16;

/// The peers of every region in which an instance was ever seen, up to [`MAX_EMPTY_REGIONS`].
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    regions: Cache<Region, Arc<RegionPeers>>,
    /// How often a region was replaced.
    changes: Arc<AtomicU64>,
}

/// What one thread has read of a snapshot since its last change.
///
/// A call reads a region two or three times. A read of the cache takes 100 to 200 ns. Most of that goes into a log that all
/// threads write, from which moka decides what to evict, although nothing is evicted here. A region that the thread has
/// read before takes 5 ns.
#[derive(Default)]
struct LastRead {
    /// The counter of the snapshot that was read last.
    changes: Arc<AtomicU64>,
    as_of: u64,
    regions: BTreeMap<Region, Arc<RegionPeers>>,
}

thread_local! {
    static READ: RefCell<LastRead> = RefCell::default();
}

impl Snapshot {
    pub(crate) fn new() -> Self {
        Self {
            regions: Cache::builder().build(),
            changes: Arc::default(),
        }
    }

    /// The peers of `region`; `None` when no instance was ever seen in it.
    pub(crate) fn region(&self, region: &Region) -> Option<Arc<RegionPeers>> {
        // Read before the peers: if they change in between, the next call reads them again.
        let as_of = self.changes.load(Ordering::Acquire);
        READ.with_borrow_mut(|read| {
            // A program may have several instances, so several snapshots, whose numbers of changes may be equal.
            if read.as_of != as_of || !Arc::ptr_eq(&read.changes, &self.changes) {
                *read = LastRead {
                    changes: Arc::clone(&self.changes),
                    as_of,
                    regions: BTreeMap::new(),
                };
            }
            if let Some(peers) = read.regions.get(region) {
                return Some(Arc::clone(peers));
            }
            let peers = self.regions.get(region)?;
            read.regions.insert(region.clone(), Arc::clone(&peers));
            Some(peers)
        })
    }

    /// The regions in which an instance was ever seen, sorted.
    fn regions(&self) -> Vec<Region> {
        let known = self.regions.iter();
        let mut regions: Vec<_> = known.map(|(region, _)| Region::clone(&region)).collect();
        regions.sort();
        regions
    }

    /// A warning for each id that two processes use.
    fn duplicates(&self) -> Vec<String> {
        let regions = self.regions().into_iter();
        let warnings = regions.flat_map(|region| {
            let peers = self.region(&region).unwrap_or_default();
            let of = |id: &InstanceId| format!("instance {id} in region {region}: {DUPLICATE_ID}");
            Vec::from_iter(peers.duplicates.iter().map(of))
        });
        warnings.take(MAX_DUPLICATES).collect()
    }

    /// Whether a ready peer is at `address`. Scans every region.
    fn is_ready(&self, address: SocketAddr) -> bool {
        let is_there = |peers: &RegionPeers| peers.ready.iter().any(|peer| peer.address == address);
        self.regions.iter().any(|(_, peers)| is_there(&peers))
    }

    /// Replaces the peers of `region`, and logs the ids that two processes use since then. There must be one writer only, who
    /// keeps the regions without peers in `empty`, the one that has been empty for longest first.
    pub(crate) fn publish(
        &self,
        region: &Region,
        peers: RegionPeers,
        empty: &mut VecDeque<Region>,
    ) {
        let before = self.region(region).unwrap_or_default();
        for instance in peers.duplicates.difference(&before.duplicates) {
            tracing::warn!(%instance, %region, "{DUPLICATE_ID}");
        }
        empty.retain(|other| other != region);
        if peers.count() == 0 {
            empty.push_back(region.clone());
        }
        self.regions.insert(region.clone(), Arc::new(peers));
        if empty.len() > MAX_EMPTY_REGIONS
            && let Some(oldest) = empty.pop_front()
        {
            self.regions.invalidate(&oldest);
        }
        // After the peers: whoever reads the new number reads the new peers too.
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// What discovery has achieved and what hinders it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub rounds: u64,
    /// Whether a round is over in which DNS answered for every name, even if only that there are no records.
    pub answered: bool,
    /// Whether a round is over in which DNS answered completely and every new address was probed, so that a region without an
    /// instance does not exist.
    pub complete: bool,
    /// At how many addresses something answered in the last round that is not of this cluster, such as an instance with
    /// another token.
    pub strangers: usize,
    pub last_success: Option<Instant>,
    /// What went wrong with the last queries; `None` when nothing did.
    pub error: Option<String>,
}

/// Every address but this instance's own, and the progress of discovery.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    pub addresses: Vec<KnownAddress>,
    pub progress: Progress,
    /// What else people should know: addresses that are left out, ids that two processes use.
    pub warnings: Vec<String>,
}

impl Overview {
    pub(crate) fn peers(&self) -> impl Iterator<Item = &KnownPeer> {
        let addresses = self.addresses.iter();
        addresses.filter_map(|known| known.peer.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A region with so many ready peers.
    fn region_of(count: u16) -> RegionPeers {
        let peer = |port: u16| {
            let address = ([127, 0, 0, 1], port).into();
            let instance = format!("i{port}").parse().unwrap();
            Arc::new(Peer::new(address, "syd".parse().unwrap(), instance))
        };
        RegionPeers {
            ready: (0..count).map(peer).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn empty_regions_are_forgotten_beyond_a_bound_and_the_oldest_first() {
        let snapshot = Snapshot::new();
        let mut empty = VecDeque::new();
        let region = |number: usize| format!("r{number}").parse::<Region>().unwrap();
        snapshot.publish(&region(0), region_of(1), &mut empty);
        for number in 1..=MAX_EMPTY_REGIONS + 2 {
            snapshot.publish(&region(number), RegionPeers::default(), &mut empty);
        }
        let known = [0, 1, 2, 3, MAX_EMPTY_REGIONS + 2];
        let known = known.map(|number| snapshot.region(&region(number)).is_some());
        assert_eq!(known, [true, false, false, true, true]);
        assert_eq!(snapshot.regions().len(), MAX_EMPTY_REGIONS + 1);
    }

    #[test]
    fn a_thread_reads_what_was_published_last_and_by_whom_it_asks() {
        let [one, other] = [Snapshot::new(), Snapshot::new()];
        let region: Region = "syd".parse().unwrap();
        let count = |snapshot: &Snapshot| Some(snapshot.region(&region)?.count());
        let publish = |count| one.publish(&region, region_of(count), &mut VecDeque::new());
        assert_eq!((count(&one), count(&other)), (None, None));
        publish(1);
        assert_eq!((count(&one), count(&other)), (Some(1), None));
        std::thread::scope(|scope| {
            scope.spawn(|| publish(2));
        });
        assert_eq!([count(&one), count(&one)], [Some(2), Some(2)]);
        assert_eq!(count(&other), None);
    }
}
