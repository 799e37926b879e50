//! The cluster as the rest of the instance reads it: calls read a region's peers in one cache read, people ask for an
//! overview of every address. Only the poller writes it. Nothing expires by time: a cache that did would leave calls
//! without peers while DNS is down.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;
use rand::RngExt;
use tokio::time::Instant;

use super::stats::PeerStats;
use crate::{
    app::AppHealth,
    declaration::Declaration,
    name::{BootId, FunctionName, InstanceId},
    protocol::{Catalogue, PeerState},
    region::Region,
};

/// Another instance, as it introduced itself.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub address: SocketAddr,
    pub region: Region,
    pub instance: InstanceId,
    pub release: Option<String>,
    /// Its run; `None` when it does not say.
    pub boot: Option<BootId>,
    /// Its functions; `None` when it did not list them.
    pub catalogue: Option<Arc<Catalogue>>,
    /// How the app beside it is; `None` without one.
    pub app_state: Option<AppHealth>,
    /// What this instance measures of it.
    pub stats: Arc<PeerStats>,
}

impl Peer {
    /// A peer of which nothing else is known.
    pub(crate) fn new(address: SocketAddr, region: Region, instance: InstanceId) -> Self {
        Self {
            address,
            region,
            instance,
            release: None,
            boot: None,
            catalogue: None,
            app_state: None,
            stats: Arc::default(),
        }
    }

    /// Whether it said that it has the function.
    pub(crate) fn says_it_has(&self, name: &FunctionName) -> bool {
        self.catalogue.is_some() && self.may_have(name)
    }

    /// Whether the app beside it does not offer its functions now, which their instance knows all the same.
    pub(crate) fn app_is_out(&self) -> bool {
        self.app_state.is_some_and(|state| state != AppHealth::Up)
    }

    /// Whether it may have the function; a peer whose catalogue is not known may have any.
    pub(crate) fn may_have(&self, name: &FunctionName) -> bool {
        let catalogue = self.catalogue.as_ref();
        catalogue.is_none_or(|catalogue| catalogue.has(name))
    }
}

#[derive(Debug, Default)]
pub(crate) struct RegionPeers {
    pub ready: Vec<Arc<Peer>>,
    /// Those that are suspect or draining: used only when no ready one is left.
    pub others: Vec<Arc<Peer>>,
    /// The ids that two processes use at once, which their runs show: a call for such an id could reach either.
    pub duplicates: BTreeSet<InstanceId>,
    /// The addresses of those that are not ready, and what is known of them.
    pub conditions: Vec<(SocketAddr, Condition)>,
    pub last_seen: Option<Instant>,
}

/// How many peers are asked how far away their region is: they stand in one place.
const NEAREST_OF: usize = 8;

/// What is known of a peer, so what a call may expect of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Condition {
    /// It takes calls.
    Ready,
    /// It is stopping.
    Draining,
    /// It does not answer, and why is not known yet: an attempt, or the next probe, will show.
    Doubtful,
    /// Connections are refused there: nothing runs.
    Refusing,
    /// It accepts connections and does not answer, or cannot be reached: something may run there.
    Hanging,
}

impl Condition {
    /// The state that people and other parts of the instance see.
    pub(crate) fn state(self) -> PeerState {
        match self {
            Self::Ready => PeerState::Ready,
            Self::Draining => PeerState::Draining,
            Self::Doubtful | Self::Refusing | Self::Hanging => PeerState::Suspect,
        }
    }
}

impl RegionPeers {
    pub(crate) fn count(&self) -> usize {
        self.ready.len() + self.others.len()
    }

    /// The peer with this id; `None` also when two processes use it.
    pub(crate) fn find(&self, instance: &InstanceId) -> Option<&Arc<Peer>> {
        self.identified().find(|peer| peer.instance == *instance)
    }

    /// All of them, the ready ones first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.ready.iter().chain(&self.others)
    }

    /// The peers whose id no other process uses.
    pub(crate) fn identified(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.all()
            .filter(|peer| !self.duplicates.contains(&peer.instance))
    }

    /// What is known of the peer at `address`; one that has left is doubtful.
    pub(crate) fn condition(&self, address: SocketAddr) -> Condition {
        let mut conditions = self.conditions.iter();
        match conditions.find(|(other, _)| *other == address) {
            Some((_, condition)) => *condition,
            None if self.ready.iter().any(|peer| peer.address == address) => Condition::Ready,
            None => Condition::Doubtful,
        }
    }

    /// A peer that was not tried yet and may have the function: one of the ready ones that have room, else one of the
    /// ready ones that are full, else one of the others. If none has the function, one peer is tried all the same: one whose
    /// app is out, which can say whether the function is that app's, else any, since its catalogue may be out of date.
    pub(crate) fn choose(&self, name: &FunctionName, tried: &[SocketAddr]) -> Option<&Arc<Peer>> {
        let fits = |peer: &Peer| peer.may_have(name) && !tried.contains(&peer.address);
        let has_room = |peer: &Peer| fits(peer) && !peer.stats.is_resting();
        let anyone = |_: &Peer| tried.is_empty();
        let knows_more = |peer: &Peer| tried.is_empty() && peer.app_is_out();
        pick(&self.ready, has_room)
            .or_else(|| pick(&self.ready, fits))
            .or_else(|| pick(&self.others, fits))
            .or_else(|| pick(&self.ready, knows_more))
            .or_else(|| pick(&self.ready, anyone))
            .or_else(|| pick(&self.others, anyone))
    }

    /// How far away the region is: the nearest of a few ready peers.
    pub(crate) fn distance(&self) -> Option<Duration> {
        let some = self.ready.iter().take(NEAREST_OF);
        some.filter_map(|peer| peer.stats.round_trip()).min()
    }

    /// What a peer that has the function says that it declares.
    pub(crate) fn declared(&self, name: &FunctionName) -> Option<&Declaration> {
        self.all()
            .find_map(|peer| peer.catalogue.as_ref()?.get(name))
    }

    /// Whether some peer may have the function, or may know it as one of its app, which is out.
    pub(crate) fn may_know(&self, name: &FunctionName) -> bool {
        self.all()
            .any(|peer| peer.may_have(name) || peer.app_is_out())
    }

    /// Whether [`RegionPeers::choose`] would return a ready peer that has room.
    pub(crate) fn has_room(&self, name: &FunctionName, tried: &[SocketAddr]) -> bool {
        self.ready.iter().any(|peer| {
            peer.may_have(name) && !tried.contains(&peer.address) && !peer.stats.is_resting()
        })
    }
}

/// One of `peers` that `fits`: of two at random the one with fewer calls under way, so that a busy peer gets fewer, and
/// where all are equally busy the choice is uniform. Usually the first two fit, and then nothing is scanned or allocated.
fn pick(peers: &[Arc<Peer>], fits: impl Fn(&Peer) -> bool) -> Option<&Arc<Peer>> {
    let [first, second] = two(peers)?;
    if fits(first) && (Arc::ptr_eq(first, second) || fits(second)) {
        return Some(less_busy(first, second));
    }
    let fitting: Vec<_> = peers.iter().filter(|peer| fits(peer)).collect();
    let [first, second] = two(&fitting)?;
    Some(less_busy(first, second))
}

/// Two of `items` at random; the same one twice if there is only one.
fn two<T>(items: &[T]) -> Option<[&T; 2]> {
    let count = items.len();
    if count < 2 {
        return items.first().map(|only| [only, only]);
    }
    // One draw for both: each number stands for a first one and for a step around the circle to any other.
    let drawn = rand::rng().random_range(0..count * (count - 1));
    let (first, step) = (drawn / (count - 1), drawn % (count - 1) + 1);
    Some([&items[first], &items[(first + step) % count]])
}

fn less_busy<'a>(first: &'a Arc<Peer>, second: &'a Arc<Peer>) -> &'a Arc<Peer> {
    match second.stats.under_way() < first.stats.under_way() {
        true => second,
        false => first,
    }
}

/// How many regions without peers stay known, so that a call for one of them gets another problem than a call for a region
/// that never existed. Of more, the one that has been empty for longest is forgotten. Regions with peers have no bound.
const MAX_EMPTY_REGIONS: usize = 256;

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
    snapshot: Snapshot,
    /// The regions without peers, the one that has been empty for longest first.
    empty: VecDeque<Region>,
}

impl Publisher {
    /// Replaces the peers of `region`; returns the ids that two processes use since then.
    pub(crate) fn publish(&mut self, region: &Region, peers: RegionPeers) -> Vec<InstanceId> {
        let before = self.snapshot.region(region).unwrap_or_default();
        let duplicates = peers.duplicates.difference(&before.duplicates);
        let duplicates = duplicates.cloned().collect();
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
        self.snapshot.changes.fetch_add(1, Ordering::Release);
        duplicates
    }
}

#[derive(Clone, Debug)]
pub(crate) struct KnownPeer {
    pub peer: Arc<Peer>,
    pub(super) condition: Condition,
    pub last_seen: Instant,
    /// When it last answered a probe.
    pub(super) probed: Instant,
    pub(super) failed_probes: u32,
}

impl KnownPeer {
    pub(crate) fn state(&self) -> PeerState {
        self.condition.state()
    }
}

/// An address that discovery knows.
#[derive(Clone, Debug)]
pub(crate) struct KnownAddress {
    pub address: SocketAddr,
    /// Whether it is in the last complete DNS answer, or in a later incomplete one.
    pub listed: bool,
    /// When its last probe ended.
    pub last_probe: Option<Instant>,
    /// Why that found no peer; `None` when it found one.
    pub probe_error: Option<String>,
    pub peer: Option<KnownPeer>,
    /// Whether this instance itself answers there.
    pub(super) is_own: bool,
}

/// What discovery has achieved and what hinders it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub rounds: u64,
    /// Whether a round is over in which DNS answered for every name, be it that there are no records.
    pub answered: bool,
    /// Whether a round is over in which DNS answered completely, so that a region without an instance does not exist.
    pub complete: bool,
    pub last_success: Option<Instant>,
    /// What went wrong with the last queries; `None` when nothing did.
    pub error: Option<String>,
    /// What else people should know: addresses that are left out, ids that two processes use.
    pub warnings: Vec<String>,
}

/// Every address but this instance's own, and the progress of discovery.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    pub addresses: Vec<KnownAddress>,
    pub progress: Progress,
}

impl Overview {
    pub(crate) fn peers(&self) -> impl Iterator<Item = &KnownPeer> {
        let addresses = self.addresses.iter();
        addresses.filter_map(|known| known.peer.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    fn name(function: &str) -> FunctionName {
        FunctionName::new("M", function).unwrap()
    }

    fn peer(port: u16, functions: &[&str]) -> Arc<Peer> {
        let functions = functions.iter().map(|it| (name(it), Declaration::new()));
        let address = ([127, 0, 0, 1], port).into();
        let instance = format!("i{port}").parse().unwrap();
        Arc::new(Peer {
            catalogue: Some(Arc::new(Catalogue::new(functions))),
            ..Peer::new(address, "syd".parse().unwrap(), instance)
        })
    }

    fn region_of(ready: Vec<Arc<Peer>>) -> RegionPeers {
        RegionPeers {
            ready,
            ..Default::default()
        }
    }

    #[test]
    fn empty_regions_are_forgotten_beyond_a_bound_and_the_oldest_first() {
        let snapshot = Snapshot::new();
        let mut publisher = snapshot.publisher();
        let region = |number: usize| format!("r{number}").parse::<Region>().unwrap();
        publisher.publish(&region(0), region_of(vec![peer(1, &["f"])]));
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
        let mut publish = |ready| publisher.publish(&region, region_of(ready));
        assert_eq!((count(&one), count(&other)), (None, None));
        publish(vec![peer(1, &["f"])]);
        assert_eq!((count(&one), count(&other)), (Some(1), None));
        std::thread::scope(|scope| {
            scope.spawn(|| publish(vec![peer(1, &["f"]), peer(2, &["f"])]));
        });
        assert_eq!([count(&one), count(&one)], [Some(2), Some(2)]);
        assert_eq!(count(&other), None);
    }

    fn choices(peers: &RegionPeers, function: &str, tried: &[SocketAddr]) -> BTreeMap<u16, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..6000 {
            if let Some(peer) = peers.choose(&name(function), tried) {
                *counts.entry(peer.address.port()).or_default() += 1;
            }
        }
        counts
    }

    fn ports(peers: &RegionPeers, function: &str, tried: &[SocketAddr]) -> Vec<u16> {
        choices(peers, function, tried).into_keys().collect()
    }

    #[test]
    fn the_choice_is_uniform_also_when_some_were_tried() {
        let peers = region_of((1..=4).map(|port| peer(port, &["f"])).collect());
        let tried = [peers.ready[1].address];
        for (tried, expected) in [(&[][..], 1500), (&tried[..], 2000)] {
            for (port, count) in choices(&peers, "f", tried) {
                assert!(
                    count.abs_diff(expected) < 300,
                    "port {port} was chosen {count} times, not about {expected}"
                );
            }
        }
        assert_eq!(ports(&peers, "f", &tried), [1, 3, 4]);
    }

    #[test]
    fn of_two_the_less_busy_one_is_chosen() {
        let peers = region_of((1..=3).map(|port| peer(port, &["f"])).collect());
        let under_way: Vec<_> = (0..2).map(|_| peers.ready[0].stats.begin()).collect();
        let other = peers.ready[1].stats.begin();
        // The busiest one loses against both others, the idle one wins against both.
        let chosen = choices(&peers, "f", &[]);
        assert!(!chosen.contains_key(&1), "{chosen:?}");
        assert!(chosen[&3].abs_diff(4000) < 300, "{chosen:?}");
        drop((under_way, other));
        assert_eq!(ports(&peers, "f", &[]), [1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_one_is_left_alone_unless_all_are_full() {
        let peers = RegionPeers {
            ready: (1..=2).map(|port| peer(port, &["f"])).collect(),
            others: vec![peer(3, &["f"])],
            ..Default::default()
        };
        let second = Duration::from_secs(1);
        peers.ready[0].stats.rest(second);
        assert_eq!(ports(&peers, "f", &[]), [2]);
        assert!(peers.has_room(&name("f"), &[]));
        let tried = [peers.ready[1].address];
        assert!(!peers.has_room(&name("f"), &tried));
        assert_eq!(ports(&peers, "f", &tried), [1]);
        peers.ready[1].stats.rest(second);
        assert_eq!(ports(&peers, "f", &[]), [1, 2]);
        time::advance(second).await;
        assert!(peers.has_room(&name("f"), &tried));
    }

    #[test]
    fn others_are_used_only_when_no_ready_one_is_left() {
        let peers = RegionPeers {
            ready: vec![peer(1, &["f"])],
            others: vec![peer(2, &["f"])],
            ..Default::default()
        };
        let tried = [peers.ready[0].address, peers.others[0].address];
        for (tried, chosen) in [(&[][..], &[1][..]), (&tried[..1], &[2]), (&tried, &[])] {
            assert_eq!(ports(&peers, "f", tried), chosen);
        }
        assert!(ports(&RegionPeers::default(), "f", &[]).is_empty());
    }

    #[test]
    fn peers_that_have_the_function_come_first() {
        let ready = vec![peer(1, &["f"]), peer(2, &["f", "g"]), peer(3, &["f"])];
        let peers = region_of(ready);
        assert_eq!(ports(&peers, "g", &[]), [2]);
        assert_eq!(ports(&peers, "g", &[peers.ready[1].address]), [0; 0]);
        assert_eq!(ports(&peers, "h", &[]), [1, 2, 3]);
    }
}
