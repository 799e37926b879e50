//! What holds of the rules of discovery whatever happens, in any order: tried with random stories of events.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::cluster::peers::Peer;

const PORTS: std::ops::Range<u16> = 1..6;
const INTERVAL: Duration = Duration::from_secs(5);

/// An event in short, from which the same event can be made again.
#[derive(Clone, Debug)]
enum Told {
    Dns(BTreeSet<u16>, bool),
    Seen(u16, u8, u8, bool),
    Silent(u16),
    Stranger(u16),
    Met(u16, Encounter),
}

impl Told {
    fn event(&self) -> Event {
        match self {
            Self::Dns(ports, complete) => Event::Resolved(Resolved {
                addresses: ports.iter().copied().map(address).collect(),
                complete: *complete,
            }),
            Self::Seen(port, instance, region, draining) => {
                let sighting = Sighting {
                    peer: peer(*port, *instance, *region),
                    draining: *draining,
                    rtt: Duration::ZERO,
                };
                Event::Probed(address(*port), Ok(sighting))
            }
            Self::Silent(port) => Event::Probed(address(*port), Err(Unseen::Silent(String::new()))),
            Self::Stranger(port) => {
                Event::Probed(address(*port), Err(Unseen::Stranger(String::new())))
            }
            Self::Met(port, encounter) => Event::Met(address(*port), *encounter),
        }
    }

    /// The one port that it is about; `None` for an answer of DNS, which is about all.
    fn port(&self) -> Option<u16> {
        match self {
            Self::Dns(..) => None,
            Self::Seen(port, ..)
            | Self::Silent(port)
            | Self::Stranger(port)
            | Self::Met(port, _) => Some(*port),
        }
    }
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn region(number: u8) -> Region {
    format!("r{number}").parse().unwrap()
}

/// Instance 0 is the table's own.
fn instance(number: u8) -> InstanceId {
    format!("i{number}").parse().unwrap()
}

fn peer(port: u16, number: u8, region_number: u8) -> Peer {
    Peer {
        address: address(port),
        region: region(region_number),
        instance: instance(number),
        load: std::sync::Arc::default(),
        release: None,
        boot: None,
        catalogue: None,
    }
}

fn told() -> impl Strategy<Value = Told> {
    let encounter = prop_oneof![
        Just(Encounter::Answered),
        Just(Encounter::Draining),
        Just(Encounter::Unreachable),
        Just(Encounter::Elsewhere),
        Just(Encounter::Unanswered),
    ];
    prop_oneof![
        (proptest::collection::btree_set(PORTS, 0..5), any::<bool>())
            .prop_map(|(ports, complete)| Told::Dns(ports, complete)),
        (PORTS, 0..6_u8, 0..2_u8, any::<bool>()).prop_map(|(port, instance, region, draining)| {
            Told::Seen(port, instance, region, draining)
        }),
        PORTS.prop_map(Told::Silent),
        PORTS.prop_map(Told::Stranger),
        (PORTS, encounter).prop_map(|(port, encounter)| Told::Met(port, encounter)),
    ]
}

fn table_after(story: &[Told], now: Instant) -> Table {
    let mut table = Table::new(instance(0), "0".repeat(32).parse().unwrap());
    for told in story {
        table.apply(told.event(), now);
    }
    table
}

fn addresses_of_peers(table: &Table) -> BTreeSet<SocketAddr> {
    table.peers().map(|state| state.peer.address).collect()
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_peer_that_answers_its_probes_is_never_removed(story in vec(told(), 0..40), tail in vec(told(), 0..40)) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        table.apply(Told::Dns([1].into(), true).event(), now);
        table.apply(Told::Seen(1, 1, 0, false).event(), now);
        let fails = |told: &Told| matches!(told, Told::Silent(1) | Told::Stranger(1) | Told::Seen(1, ..));
        for told in tail.iter().filter(|told| !fails(told)) {
            table.apply(told.event(), now);
            prop_assert!(table.is_peer(address(1)), "gone after {told:?}");
        }
    }

    #[test]
    fn neither_dns_nor_a_call_removes_a_peer(story in vec(told(), 0..40), last in told()) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        let before = addresses_of_peers(&table);
        if matches!(last, Told::Dns(..) | Told::Met(..)) {
            table.apply(last.event(), now);
            prop_assert_eq!(addresses_of_peers(&table), before);
        }
    }

    #[test]
    fn no_verdict_of_a_call_takes_a_regions_last_peer(story in vec(told(), 0..40), verdicts in vec(told(), 0..20)) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        let counts = |table: &Table| [0, 1].map(|number| table.region(&region(number)).count());
        let before = counts(&table);
        for verdict in verdicts.iter().filter(|told| matches!(told, Told::Met(..))) {
            table.apply(verdict.event(), now);
        }
        prop_assert_eq!(counts(&table), before);
    }

    #[test]
    fn what_is_about_two_addresses_may_come_in_either_order(
        story in vec(told(), 0..40), one in told(), other in told(),
    ) {
        let are_unrelated = matches!((one.port(), other.port()), (Some(a), Some(b)) if a != b);
        if are_unrelated {
            let now = Instant::now();
            let both = |first: &Told, second: &Told| {
                let mut table = table_after(&story, now);
                table.apply(first.event(), now);
                table.apply(second.event(), now);
                format!("{table:?}")
            };
            prop_assert_eq!(both(&one, &other), both(&other, &one));
        }
    }

    #[test]
    fn a_region_has_each_instance_once_and_never_this_one(story in vec(told(), 0..60)) {
        let table = table_after(&story, Instant::now());
        for number in [0, 1] {
            let found = table.region(&region(number));
            let peers: Vec<_> = found.ready.iter().chain(&found.others).collect();
            let instances: BTreeSet<_> = peers.iter().map(|peer| &peer.instance).collect();
            prop_assert_eq!(instances.len(), peers.len());
            prop_assert!(!instances.contains(&instance(0)));
            prop_assert!(peers.iter().all(|peer| peer.region == region(number)));
        }
    }

    #[test]
    fn the_changes_tell_who_is_a_peer(story in vec(told(), 0..60)) {
        let now = Instant::now();
        let mut table = Table::new(instance(0), "0".repeat(32).parse().unwrap());
        let mut told_of = BTreeMap::new();
        for told in &story {
            for change in table.apply(told.event(), now).changes {
                told_of.insert(change.peer.address, change.health);
            }
        }
        let known: BTreeMap<_, _> = table.peers().map(|state| (state.peer.address, Some(state.health))).collect();
        told_of.retain(|_, health| health.is_some());
        prop_assert_eq!(told_of, known);
    }

    #[test]
    fn every_pause_is_an_interval_or_between_a_second_and_a_minute(story in vec(told(), 0..60)) {
        let table = table_after(&story, Instant::now());
        for address in table.entries.keys() {
            let pause = table.pause(*address, INTERVAL);
            let longest = Duration::from_secs(60);
            prop_assert!(pause.is_some_and(|pause| pause >= Duration::from_secs(1) && pause <= longest));
        }
    }
}
