//! The cluster as the rest of the instance reads it: calls read a region's peers in one cache read, people ask for an
//! overview of every address. Only the poller writes it. Nothing expires by time: a cache that did would leave calls
//! without peers while DNS is down.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use moka::sync::Cache;
use tokio::time::Instant;

use super::{
    peers::RegionPeers,
    table::{KnownAddress, KnownPeer},
};
use crate::{name::InstanceId, region::Region};

/// How many regions without peers stay known, so that a call for one of them gets another problem than a call for a region
/// that never existed. Of more, the one that has been empty for longest is forgotten. Regions with peers have no bound.
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
/// A call reads a region two or three times. Of a read of the cache, 100 to 200 ns, most goes into the log by which moka
/// decides what to evict, which all threads write; nothing is evicted here. What a thread has read before takes 5 ns.
#[derive(Default)]
struct Read {
    /// Whose changes these are: those of the snapshot that was read last.
    changes: Arc<AtomicU64>,
    as_of: u64,
    regions: BTreeMap<Region, Arc<RegionPeers>>,
}

thread_local! {
    static READ: RefCell<Read> = RefCell::default();
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
        // Before the peers: what is published in between is read anew by the next call.
        let as_of = self.changes.load(Ordering::Acquire);
        READ.with_borrow_mut(|read| {
            // A program may have several instances, so several snapshots, whose numbers of changes may be equal.
            if read.as_of != as_of || !Arc::ptr_eq(&read.changes, &self.changes) {
                *read = Read {
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
    pub(super) fn regions(&self) -> Vec<Region> {
        let known = self.regions.iter();
        let mut regions: Vec<_> = known.map(|(region, _)| Region::clone(&region)).collect();
        regions.sort();
        regions
    }

    /// A warning for each id that two processes use.
    pub(super) fn duplicates(&self) -> Vec<String> {
        let regions = self.regions().into_iter();
        let warnings = regions.flat_map(|region| {
            let peers = self.region(&region).unwrap_or_default();
            let of = |id: &InstanceId| format!("instance {id} in region {region}: {DUPLICATE_ID}");
            Vec::from_iter(peers.duplicates.iter().map(of))
        });
        warnings.take(MAX_DUPLICATES).collect()
    }

    /// Whether a ready peer is at `address`. Scans every region.
    pub(super) fn is_ready(&self, address: SocketAddr) -> bool {
        let is_there = |peers: &RegionPeers| peers.ready.iter().any(|peer| peer.address == address);
        self.regions.iter().any(|(_, peers)| is_there(&peers))
    }

    /// The writer of this snapshot. There must be one only.
    pub(crate) fn publisher(&self) -> Publisher {
        Publisher {
            snapshot: self.clone(),
            empty: VecDeque::new(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Publisher {
    pub(super) snapshot: Snapshot,
    /// The regions without peers, the one that has been empty for longest first.
    empty: VecDeque<Region>,
}

impl Publisher {
    /// Replaces the peers of `region`, and logs the ids that two processes use since then.
    pub(crate) fn publish(&mut self, region: &Region, peers: RegionPeers) {
        let before = self.snapshot.region(region).unwrap_or_default();
        for instance in peers.duplicates.difference(&before.duplicates) {
            tracing::warn!(%instance, %region, "{DUPLICATE_ID}");
        }
        self.empty.retain(|other| other != region);
        if peers.count() == 0 {
            self.empty.push_back(region.clone());
        }
        let regions = &self.snapshot.regions;
        regions.insert(region.clone(), Arc::new(peers));
        if self.empty.len() > MAX_EMPTY_REGIONS
            && let Some(oldest) = self.empty.pop_front()
        {
            regions.invalidate(&oldest);
        }
        // After the peers: who reads the new number reads them too.
        self.snapshot.changes.fetch_add(1, Ordering::Release);
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
    use super::{super::peers::Peer, *};

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
        let mut publisher = snapshot.publisher();
        let region = |number: usize| format!("r{number}").parse::<Region>().unwrap();
        publisher.publish(&region(0), region_of(1));
        for number in 1..=MAX_EMPTY_REGIONS + 2 {
            publisher.publish(&region(number), RegionPeers::default());
        }
        let known = [0, 1, 2, 3, MAX_EMPTY_REGIONS + 2];
        let known = known.map(|number| snapshot.region(&region(number)).is_some());
        assert_eq!(known, [true, false, false, true, true]);
        assert_eq!(snapshot.regions().len(), MAX_EMPTY_REGIONS + 1);
    }

    #[test]
    fn a_thread_reads_what_was_published_last_and_by_whom_it_asks() {
        let [one, other] = [Snapshot::new(), Snapshot::new()];
        let mut publisher = one.publisher();
        let region: Region = "syd".parse().unwrap();
        let count = |snapshot: &Snapshot| Some(snapshot.region(&region)?.count());
        let mut publish = |count| publisher.publish(&region, region_of(count));
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
