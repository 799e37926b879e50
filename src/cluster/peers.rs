//! The peer table as calls read it: the peers of a region as one shared slice, behind one cache read.
//! Only discovery writes it. Nothing expires by time: a cache that did would empty the routing while DNS is down.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use moka::sync::Cache;
use rand::RngExt;
use tokio::time::Instant;

use crate::{
    name::{BootId, FunctionName, InstanceId},
    region::Region,
    registry::Catalogue,
};

/// Another instance, as calls need to know it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it answers.
    pub address: SocketAddr,
    /// The region it said it is in.
    pub region: Region,
    /// The id it said it has.
    pub instance: InstanceId,
    /// Its release, shown to people.
    pub release: Option<String>,
    /// Which run of it said so; `None` when it names none.
    pub boot: Option<BootId>,
    /// The functions it said it has; `None` when it could not be asked.
    pub catalogue: Option<Arc<Catalogue>>,
}

impl Peer {
    /// Whether it may have the function; a peer whose catalogue is not known may have any.
    pub(crate) fn may_have(&self, name: &FunctionName) -> bool {
        self.catalogue
            .as_ref()
            .is_none_or(|catalogue| catalogue.has(name))
    }
}

/// The peers of one region.
#[derive(Debug, Default)]
pub(crate) struct RegionPeers {
    /// Those that may take calls.
    pub ready: Vec<Arc<Peer>>,
    /// Those that are suspect or draining: used only when no ready one is left.
    pub others: Vec<Arc<Peer>>,
    /// The instances of which there are two, told apart by their boots: which of them a call means is not known.
    pub contested: BTreeSet<InstanceId>,
    /// When one of them was last seen.
    pub last_seen: Option<Instant>,
}

impl RegionPeers {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.ready.len() + self.others.len()
    }

    /// The peer with this id; `None` also when there are two.
    pub(crate) fn find(&self, instance: &InstanceId) -> Option<&Arc<Peer>> {
        self.identified().find(|peer| peer.instance == *instance)
    }

    /// The peers whose id is theirs alone.
    pub(crate) fn identified(&self) -> impl Iterator<Item = &Arc<Peer>> {
        let all = self.ready.iter().chain(&self.others);
        all.filter(|peer| !self.contested.contains(&peer.instance))
    }

    /// A peer that was not tried yet, uniformly at random: among the ready ones that may have the function, else among
    /// the others that may have it. When none has it, any may say so, once.
    pub(crate) fn choose(&self, name: &FunctionName, tried: &[SocketAddr]) -> Option<&Arc<Peer>> {
        let fits = |peer: &Peer| peer.may_have(name) && !tried.contains(&peer.address);
        let anyone = |_: &Peer| tried.is_empty();
        pick(&self.ready, fits)
            .or_else(|| pick(&self.others, fits))
            .or_else(|| pick(&self.ready, anyone))
            .or_else(|| pick(&self.others, anyone))
    }
}

/// One of `peers` that `fits`, uniformly at random. The first draw mostly fits, and then nothing is scanned.
fn pick(peers: &[Arc<Peer>], fits: impl Fn(&Peer) -> bool) -> Option<&Arc<Peer>> {
    let mut rng = rand::rng();
    let first = peers.get(rng.random_range(0..peers.len().max(1)))?;
    if fits(first) {
        return Some(first);
    }
    let fitting: Vec<_> = peers.iter().filter(|peer| fits(peer)).collect();
    fitting
        .get(rng.random_range(0..fitting.len().max(1)))
        .copied()
}

/// How many regions stay known although no peer is in them any more; the one that has been empty for longest is forgotten
/// first. Those with peers are as many as there are.
const MAX_EMPTY_REGIONS: usize = 256;

/// The peers of every region in which an instance was ever seen, within the bound of [`MAX_EMPTY_REGIONS`].
#[derive(Clone, Debug)]
pub(super) struct PeerTable(Cache<Region, Arc<RegionPeers>>);

impl PeerTable {
    /// A table without regions.
    pub(super) fn new() -> Self {
        Self(Cache::builder().build())
    }

    /// The peers of `region`; `None` when no instance was ever seen in it.
    pub(super) fn region(&self, region: &Region) -> Option<Arc<RegionPeers>> {
        self.0.get(region)
    }

    /// The regions in which an instance was ever seen, sorted.
    pub(super) fn regions(&self) -> Vec<Region> {
        let mut regions: Vec<Region> = self
            .0
            .iter()
            .map(|(region, _)| region.as_ref().clone())
            .collect();
        regions.sort();
        regions
    }

    /// Whether a ready peer is at `address`; reads every region.
    pub(super) fn is_ready(&self, address: SocketAddr) -> bool {
        let is_there = |peers: &RegionPeers| peers.ready.iter().any(|peer| peer.address == address);
        self.0.iter().any(|(_, peers)| is_there(&peers))
    }

    /// The writer of this table: there is one.
    pub(super) fn publisher(&self) -> Publisher {
        Publisher {
            table: self.clone(),
            empty: VecDeque::new(),
        }
    }
}

/// The only writer of a [`PeerTable`].
#[derive(Debug)]
pub(super) struct Publisher {
    table: PeerTable,
    /// The regions without peers, the one that has been so for longest first.
    empty: VecDeque<Region>,
}

impl Publisher {
    /// Replaces the peers of `region`; the instances of which there are two since.
    pub(super) fn publish(&mut self, region: &Region, peers: RegionPeers) -> Vec<InstanceId> {
        let was = self.table.region(region);
        let is_known = |instance: &&InstanceId| {
            was.as_ref()
                .is_some_and(|was| was.contested.contains(*instance))
        };
        let contested = peers
            .contested
            .iter()
            .filter(|instance| !is_known(instance));
        let contested = contested.cloned().collect();
        self.empty.retain(|other| other != region);
        if peers.count() == 0 {
            self.empty.push_back(region.clone());
        }
        self.table.0.insert(region.clone(), Arc::new(peers));
        if self.empty.len() > MAX_EMPTY_REGIONS
            && let Some(oldest) = self.empty.pop_front()
        {
            self.table.0.invalidate(&oldest);
        }
        contested
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn name(function: &str) -> FunctionName {
        FunctionName {
            module: "M".parse().unwrap(),
            function: function.parse().unwrap(),
        }
    }

    fn peer(port: u16, functions: &[&str]) -> Arc<Peer> {
        Arc::new(Peer {
            address: ([127, 0, 0, 1], port).into(),
            region: "syd".parse().unwrap(),
            instance: format!("i{port}").parse().unwrap(),
            release: None,
            boot: None,
            catalogue: Some(Arc::new(Catalogue::new(
                functions.iter().map(|function| name(function)),
            ))),
        })
    }

    #[test]
    fn empty_regions_are_forgotten_beyond_a_bound_and_the_oldest_first() {
        let table = PeerTable::new();
        let mut publisher = table.publisher();
        let region = |number: usize| format!("r{number}").parse::<Region>().unwrap();
        let inhabited = RegionPeers {
            ready: vec![peer(1, &["f"])],
            ..Default::default()
        };
        publisher.publish(&region(0), inhabited);
        for number in 1..=MAX_EMPTY_REGIONS + 2 {
            publisher.publish(&region(number), RegionPeers::default());
        }
        let known = [0, 1, 2, 3, MAX_EMPTY_REGIONS + 2];
        let known = known.map(|number| table.region(&region(number)).is_some());
        assert_eq!(known, [true, false, false, true, true]);
        assert_eq!(table.regions().len(), MAX_EMPTY_REGIONS + 1);
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
        let peers = RegionPeers {
            ready: (1..=4).map(|port| peer(port, &["f"])).collect(),
            ..Default::default()
        };
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
    fn others_are_used_only_when_no_ready_one_is_left() {
        let peers = RegionPeers {
            ready: vec![peer(1, &["f"])],
            others: vec![peer(2, &["f"])],
            ..Default::default()
        };
        assert_eq!(ports(&peers, "f", &[]), [1]);
        assert_eq!(ports(&peers, "f", &[peers.ready[0].address]), [2]);
        assert!(
            ports(
                &peers,
                "f",
                &[peers.ready[0].address, peers.others[0].address]
            )
            .is_empty()
        );
        assert!(ports(&RegionPeers::default(), "f", &[]).is_empty());
    }

    #[test]
    fn peers_that_have_the_function_come_first() {
        let ready = vec![peer(1, &["f"]), peer(2, &["f", "g"]), peer(3, &["f"])];
        let peers = RegionPeers {
            ready,
            ..Default::default()
        };
        assert_eq!(ports(&peers, "g", &[]), [2]);
        assert_eq!(ports(&peers, "g", &[peers.ready[1].address]), [0; 0]);
        assert_eq!(ports(&peers, "h", &[]), [1, 2, 3]);
    }
}
