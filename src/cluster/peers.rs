//! The peers of a region: how each introduced itself, what this instance measures of it, and the choice among them. Calls,
//! links and probes write what they measure at any time, and never wait for each other.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::RngExt;
use scopeguard::ScopeGuard;
use tokio::time::Instant;

use crate::{
    app::AppHealth,
    deadline::whole_ms,
    declaration::Declaration,
    name::{BootId, FunctionName, InstanceId},
    protocol::{Catalogue, CatalogueHash, PeerState},
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
    /// The hash of its functions, as it says.
    pub listed: CatalogueHash,
    /// Its functions; `None` as long as they were not read.
    pub catalogue: Option<Arc<Catalogue>>,
    /// The state of the app beside it, as old as its functions; `None` without one.
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
            listed: CatalogueHash::default(),
            catalogue: None,
            app_state: None,
            stats: Arc::default(),
        }
    }

    /// Whether it listed the function.
    pub(crate) fn says_it_has(&self, name: &FunctionName) -> bool {
        self.catalogue.is_some() && self.may_have(name)
    }

    /// Whether the app beside it does not offer its functions now; the instance still knows their names.
    pub(crate) fn app_is_out(&self) -> bool {
        self.app_state.is_some_and(|state| state != AppHealth::Up)
    }

    /// Whether it did not have the function since it started: there is no app whose list may change, or one that has given
    /// none yet.
    pub(crate) fn never_had(&self, name: &FunctionName) -> bool {
        matches!(self.app_state, None | Some(AppHealth::Starting)) && !self.may_have(name)
    }

    /// Whether it may have the function; a peer whose catalogue is not known may have any.
    pub(crate) fn may_have(&self, name: &FunctionName) -> bool {
        let catalogue = self.catalogue.as_ref();
        catalogue.is_none_or(|catalogue| catalogue.has(name))
    }

    /// Whether it may have the function, or its app, which is out, may.
    pub(crate) fn may_know(&self, name: &FunctionName) -> bool {
        self.may_have(name) || self.app_is_out()
    }

    fn fits(&self, name: &FunctionName, tried: &[SocketAddr]) -> bool {
        self.may_have(name) && !tried.contains(&self.address)
    }

    fn has_room(&self, name: &FunctionName, tried: &[SocketAddr]) -> bool {
        self.fits(name, tried) && !self.stats.is_resting(name)
    }
}

#[derive(Debug, Default)]
pub(crate) struct RegionPeers {
    pub ready: Vec<Arc<Peer>>,
    /// Those that are suspect or draining, and what is known of them: used only when no ready one is left.
    pub others: Vec<(Arc<Peer>, Condition)>,
    /// The ids that two processes use at once, which their runs show: a call for such an id could reach either.
    pub duplicates: BTreeSet<InstanceId>,
    pub last_seen: Option<Instant>,
}

/// The distance of a region is that of the nearest of so many of its peers: they are all in one place.
const NEAREST_OF: usize = 8;

/// The condition of a peer, from which follows what a call may expect of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Condition {
    Ready,
    Draining,
    /// It does not answer, and why is not known yet: an attempt, or the next probe, will show.
    Doubtful,
    /// Connections are refused there, or it is no peer any more: nothing runs.
    Gone,
    /// It accepts connections and does not answer, or cannot be reached: something may run there.
    Hanging,
}

impl Condition {
    /// The state that people and other parts of the instance see.
    pub(crate) fn state(self) -> PeerState {
        match self {
            Self::Ready => PeerState::Ready,
            Self::Draining => PeerState::Draining,
            Self::Doubtful | Self::Gone | Self::Hanging => PeerState::Suspect,
        }
    }
}

impl RegionPeers {
    pub(crate) fn count(&self) -> usize {
        self.ready.len() + self.others.len()
    }

    /// The peer with this id; `None` also when two processes use it.
    pub(crate) fn find(&self, instance: &InstanceId) -> Option<&Arc<Peer>> {
        let mut identified = self.identified();
        let (peer, _) = identified.find(|(peer, _)| peer.instance == *instance)?;
        Some(peer)
    }

    /// All of them, the ready ones first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.with_conditions().map(|(peer, _)| peer)
    }

    /// All of them and what is known of each, the ready ones first.
    pub(crate) fn with_conditions(&self) -> impl Iterator<Item = (&Arc<Peer>, Condition)> {
        let ready = self.ready.iter().map(|peer| (peer, Condition::Ready));
        let others = self.others.iter();
        ready.chain(others.map(|(peer, condition)| (peer, *condition)))
    }

    /// The state of each, the ready ones first.
    pub(crate) fn states(&self) -> impl Iterator<Item = PeerState> {
        self.with_conditions()
            .map(|(_, condition)| condition.state())
    }

    /// The peers whose id no other process uses, and what is known of each.
    pub(crate) fn identified(&self) -> impl Iterator<Item = (&Arc<Peer>, Condition)> {
        self.with_conditions()
            .filter(|(peer, _)| !self.duplicates.contains(&peer.instance))
    }

    /// What is known of `peer` now. One that has left, or whose address another instance has, is gone.
    pub(crate) fn condition(&self, peer: &Peer) -> Condition {
        let mut all = self.with_conditions();
        let found =
            all.find(|(known, _)| known.address == peer.address && known.instance == peer.instance);
        found.map_or(Condition::Gone, |(_, condition)| condition)
    }

    /// A peer that was not tried yet and may have the function, in this order: ready with room, ready and full, suspect or
    /// draining. If none may have it, one peer is tried nevertheless: a ready one whose app is out, which can say whether the
    /// function is that app's; any ready one, because its catalogue may be out of date; any other.
    pub(crate) fn choose(&self, name: &FunctionName, tried: &[SocketAddr]) -> Option<&Arc<Peer>> {
        let fits = |peer: &Peer| peer.fits(name, tried);
        let has_room = |peer: &Peer| peer.has_room(name, tried);
        let anyone = |_: &Peer| tried.is_empty();
        let knows_more = |peer: &Peer| tried.is_empty() && peer.app_is_out();
        let others = || self.others.iter().map(|(peer, _)| peer);
        pick(&self.ready, has_room)
            .or_else(|| pick(&self.ready, fits))
            .or_else(|| pick_of(others(), fits))
            .or_else(|| pick(&self.ready, knows_more))
            .or_else(|| pick(&self.ready, anyone))
            .or_else(|| pick_of(others(), anyone))
    }

    /// The distance of the region: the shortest round trip to a few of its ready peers.
    pub(crate) fn distance(&self) -> Option<Duration> {
        let some = self.ready.iter().take(NEAREST_OF);
        some.filter_map(|peer| peer.stats.round_trip()).min()
    }

    /// What the function declares, by the first peer that has it.
    pub(crate) fn declared(&self, name: &FunctionName) -> Option<&Declaration> {
        self.all()
            .find_map(|peer| peer.catalogue.as_ref()?.get(name))
    }

    /// Whether some peer may have the function, or its app, which is out, may have it.
    pub(crate) fn may_know(&self, name: &FunctionName) -> bool {
        self.all().any(|peer| peer.may_know(name))
    }

    /// Whether [`RegionPeers::choose`] would return a ready peer that has room.
    pub(crate) fn has_room(&self, name: &FunctionName, tried: &[SocketAddr]) -> bool {
        self.ready.iter().any(|peer| peer.has_room(name, tried))
    }
}

/// One of `peers` that `fits`: of two at random the one with fewer calls under way, so that a busy peer gets fewer, and
/// where all are equally busy the choice is uniform. Usually the first two fit, and then nothing is scanned or allocated.
fn pick(peers: &[Arc<Peer>], fits: impl Fn(&Peer) -> bool) -> Option<&Arc<Peer>> {
    let [first, second] = two(peers)?;
    if fits(first) && (Arc::ptr_eq(first, second) || fits(second)) {
        return Some(less_busy([first, second]));
    }
    pick_of(peers.iter(), fits)
}

/// The same, of those among `peers` that fit.
fn pick_of<'a>(
    peers: impl Iterator<Item = &'a Arc<Peer>>,
    fits: impl Fn(&Peer) -> bool,
) -> Option<&'a Arc<Peer>> {
    let fitting: Vec<_> = peers.filter(|peer| fits(peer)).collect();
    Some(less_busy(two(&fitting)?.map(|peer| *peer)))
}

fn less_busy([one, other]: [&Arc<Peer>; 2]) -> &Arc<Peer> {
    if other.stats.under_way() < one.stats.under_way() {
        other
    } else {
        one
    }
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

/// What part of the known round trip a new measurement replaces: an eighth, as TCP does (RFC 6298, section 2.3).
const PART: u64 = 8;

/// A peer that refused calls of so many functions lately is full itself, and rests for all.
const FULL: usize = 8;

/// What this instance measures of a peer.
#[derive(Debug)]
pub(crate) struct PeerStats {
    under_way: AtomicUsize,
    since: Instant,
    /// The functions of which it refused calls last, the latest behind, at most [`FULL`]; and until when it gets no more of
    /// them, in milliseconds after `since`.
    resting: Mutex<Vec<(FunctionName, u64)>>,
    /// The last time in `resting`; 0 for a peer that never refused a call.
    rests_until: AtomicU64,
    /// The smoothed round trip in nanoseconds; 0 before the first measurement.
    round_trip: AtomicU64,
}

impl PeerStats {
    /// Counts a call as under way until the result is dropped.
    pub(crate) fn begin<'a>(&'a self) -> ScopeGuard<&'a Self, impl FnOnce(&'a Self)> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        scopeguard::guard(self, |stats| {
            stats.under_way.fetch_sub(1, Ordering::Relaxed);
        })
    }

    fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Sends the peer no calls of the function for `time`, if others can take them.
    pub(crate) fn rest(&self, name: &FunctionName, time: Duration) {
        let until = whole_ms(self.since.elapsed() + time);
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|(other, _)| other != name);
        if resting.len() == FULL {
            resting.remove(0);
        }
        resting.push((name.clone(), until));
        self.rests_until.store(until, Ordering::Relaxed);
    }

    fn is_resting(&self, name: &FunctionName) -> bool {
        let until = self.rests_until.load(Ordering::Relaxed);
        // Most peers never refuse a call: for them, do not read the clock.
        if until == 0 {
            return false;
        }
        let now = whole_ms(self.since.elapsed());
        if now >= until {
            return false;
        }
        let resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut still = resting.iter().filter(|(_, until)| *until > now);
        still.clone().count() == FULL || still.any(|(other, _)| other == name)
    }

    /// Takes a measured round trip of a few bytes and their answer, on whatever connection they travel.
    pub(crate) fn note_round_trip(&self, measured: Duration) {
        let measured = u64::try_from(measured.as_nanos())
            .unwrap_or(u64::MAX)
            .max(1);
        let now = match self.round_trip.load(Ordering::Relaxed) {
            0 => measured,
            known => known - known / PART + measured / PART,
        };
        // Of two measurements at once, one may be lost: there will be others.
        self.round_trip.store(now.max(1), Ordering::Relaxed);
    }

    /// The round trip to the peer; `None` before the first measurement.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match self.round_trip.load(Ordering::Relaxed) {
            0 => None,
            known => Some(Duration::from_nanos(known)),
        }
    }
}

impl Default for PeerStats {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            since: Instant::now(),
            resting: Mutex::default(),
            rests_until: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
    async fn one_that_is_full_for_a_function_gets_none_of_its_calls_unless_all_are() {
        let peers = RegionPeers {
            ready: (1..=2).map(|port| peer(port, &["f", "g"])).collect(),
            others: vec![(peer(3, &["f"]), Condition::Draining)],
            ..Default::default()
        };
        let second = Duration::from_secs(1);
        peers.ready[0].stats.rest(&name("f"), second);
        assert_eq!(ports(&peers, "g", &[]), [1, 2]);
        assert_eq!(ports(&peers, "f", &[]), [2]);
        assert!(peers.has_room(&name("f"), &[]));
        let tried = [peers.ready[1].address];
        assert!(!peers.has_room(&name("f"), &tried));
        assert_eq!(ports(&peers, "f", &tried), [1]);
        peers.ready[1].stats.rest(&name("f"), second);
        assert_eq!(ports(&peers, "f", &[]), [1, 2]);
        time::advance(second).await;
        assert!(peers.has_room(&name("f"), &tried));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_refuses_many_functions_is_full_for_all() {
        let peers = region_of((1..=2).map(|port| peer(port, &["f"])).collect());
        let stats = &peers.ready[0].stats;
        let (second, other) = (Duration::from_secs(1), |number| name(&format!("f{number}")));
        for number in 1..FULL {
            stats.rest(&other(number), second);
            stats.rest(&other(number), second);
        }
        assert_eq!(ports(&peers, "f", &[]), [1, 2]);
        time::advance(second / 2).await;
        (0..=FULL).for_each(|number| stats.rest(&other(number), second));
        assert_eq!(ports(&peers, "f", &[]), [2]);
        time::advance(second / 2).await;
        assert_eq!(ports(&peers, "f", &[]), [2]);
        time::advance(second / 2).await;
        assert_eq!(ports(&peers, "f", &[]), [1, 2]);
    }

    #[test]
    fn others_are_used_only_when_no_ready_one_is_left() {
        let peers = RegionPeers {
            ready: vec![peer(1, &["f"])],
            others: vec![(peer(2, &["f"]), Condition::Doubtful)],
            ..Default::default()
        };
        let tried = [peers.ready[0].address, peers.others[0].0.address];
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

    #[test]
    fn a_round_trip_follows_what_is_measured_and_no_single_measurement() {
        let stats = PeerStats::default();
        assert_eq!(stats.round_trip(), None);
        stats.note_round_trip(Duration::from_millis(80));
        assert_eq!(stats.round_trip(), Some(Duration::from_millis(80)));
        stats.note_round_trip(Duration::from_millis(800));
        assert_eq!(stats.round_trip(), Some(Duration::from_millis(170)));
        for _ in 0..64 {
            stats.note_round_trip(Duration::from_millis(80));
        }
        assert!(stats.round_trip().unwrap() < Duration::from_millis(81));
    }
}
