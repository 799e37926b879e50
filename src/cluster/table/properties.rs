//! What holds of the rules of discovery whatever happens, in any order: tried with random sequences of events.

use proptest::{collection::vec, prelude::*};

use super::*;

const PORTS: std::ops::Range<u16> = 1..6;
const INTERVAL: Duration = Duration::from_secs(5);

/// The parts of an event from which it can be made more than once.
#[derive(Clone, Debug)]
enum Happening {
    Dns(BTreeSet<u16>, bool),
    Seen(u16, u8, u8, bool),
    NoAnswer(u16),
    NotAPeer(u16),
    Called(u16, CallSignal),
}

impl Happening {
    fn event(&self) -> Event {
        match self {
            Self::Dns(ports, complete) => Event::Resolved {
                addresses: ports.iter().copied().map(address).collect(),
                complete: *complete,
            },
            Self::Seen(port, instance, region, draining) => {
                let answer = ProbeAnswer {
                    peer: peer(*port, *instance, *region),
                    draining: *draining,
                    rtt: Duration::ZERO,
                };
                Event::Probed(address(*port), Ok(answer))
            }
            Self::NoAnswer(port) => {
                Event::Probed(address(*port), Err(ProbeFailure::NoAnswer(String::new())))
            }
            Self::NotAPeer(port) => {
                Event::Probed(address(*port), Err(ProbeFailure::NotAPeer(String::new())))
            }
            Self::Called(port, signal) => Event::Called(address(*port), *signal),
        }
    }

    /// The port of its address; `None` for an answer of DNS, which is about all.
    fn port(&self) -> Option<u16> {
        match self {
            Self::Dns(..) => None,
            Self::Seen(port, ..)
            | Self::NoAnswer(port)
            | Self::NotAPeer(port)
            | Self::Called(port, _) => Some(*port),
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
    Peer::new(address(port), region(region_number), instance(number))
}

fn happening() -> impl Strategy<Value = Happening> {
    let signal = prop_oneof![
        Just(CallSignal::Answered),
        Just(CallSignal::Draining),
        Just(CallSignal::Unreachable),
        Just(CallSignal::WrongInstance),
        Just(CallSignal::Unanswered),
        Just(CallSignal::Outdated),
    ];
    prop_oneof![
        (proptest::collection::btree_set(PORTS, 0..5), any::<bool>())
            .prop_map(|(ports, complete)| Happening::Dns(ports, complete)),
        (PORTS, 0..6_u8, 0..2_u8, any::<bool>()).prop_map(|(port, instance, region, draining)| {
            Happening::Seen(port, instance, region, draining)
        }),
        PORTS.prop_map(Happening::NoAnswer),
        PORTS.prop_map(Happening::NotAPeer),
        (PORTS, signal).prop_map(|(port, signal)| Happening::Called(port, signal)),
    ]
}

fn table_after(story: &[Happening], now: Instant) -> Table {
    let mut table = Table::new(instance(0), "0".repeat(32).parse().unwrap());
    for happening in story {
        table.apply(happening.event(), now);
    }
    table
}

fn addresses_of_peers(table: &Table) -> BTreeSet<SocketAddr> {
    table.peers().map(|known| known.peer.address).collect()
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
    fn a_peer_that_answers_its_probes_is_never_removed(story in vec(happening(), 0..40), tail in vec(happening(), 0..40)) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        table.apply(Happening::Dns([1].into(), true).event(), now);
        table.apply(Happening::Seen(1, 1, 0, false).event(), now);
        let fails = |it: &Happening| matches!(it, Happening::NoAnswer(1) | Happening::NotAPeer(1) | Happening::Seen(1, ..));
        for happening in tail.iter().filter(|happening| !fails(happening)) {
            table.apply(happening.event(), now);
            prop_assert!(table.is_peer(address(1)), "gone after {happening:?}");
        }
    }

    #[test]
    fn neither_dns_nor_a_call_removes_a_peer(story in vec(happening(), 0..40), last in happening()) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        let before = addresses_of_peers(&table);
        if matches!(last, Happening::Dns(..) | Happening::Called(..)) {
            table.apply(last.event(), now);
            prop_assert_eq!(addresses_of_peers(&table), before);
        }
    }

    #[test]
    fn no_signal_of_a_call_removes_a_peer_from_a_region(story in vec(happening(), 0..40), signals in vec(happening(), 0..20)) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        let counts = |table: &Table| [0, 1].map(|number| table.region(&region(number)).count());
        let before = counts(&table);
        for signal in signals.iter().filter(|happening| matches!(happening, Happening::Called(..))) {
            table.apply(signal.event(), now);
        }
        prop_assert_eq!(counts(&table), before);
    }

    #[test]
    fn events_of_two_addresses_may_come_in_either_order(
        story in vec(happening(), 0..40), one in happening(), other in happening(),
    ) {
        let are_unrelated = matches!((one.port(), other.port()), (Some(a), Some(b)) if a != b);
        if are_unrelated {
            let now = Instant::now();
            let both = |first: &Happening, second: &Happening| {
                let mut table = table_after(&story, now);
                table.apply(first.event(), now);
                table.apply(second.event(), now);
                format!("{table:?}")
            };
            prop_assert_eq!(both(&one, &other), both(&other, &one));
        }
    }

    #[test]
    fn a_region_has_each_instance_once_and_never_this_one(story in vec(happening(), 0..60)) {
        let table = table_after(&story, Instant::now());
        for number in [0, 1] {
            let found = table.region(&region(number));
            let peers: Vec<_> = found.all().collect();
            let instances: BTreeSet<_> = peers.iter().map(|peer| &peer.instance).collect();
            prop_assert_eq!(instances.len(), peers.len());
            prop_assert!(!instances.contains(&instance(0)));
            prop_assert!(peers.iter().all(|peer| peer.region == region(number)));
        }
    }

    #[test]
    fn the_changes_add_up_to_the_peers(story in vec(happening(), 0..60)) {
        let now = Instant::now();
        let mut table = Table::new(instance(0), "0".repeat(32).parse().unwrap());
        let mut reported = BTreeMap::new();
        for happening in &story {
            for change in table.apply(happening.event(), now).changes {
                reported.insert(change.peer.address, change.state);
            }
        }
        let known: BTreeMap<_, _> = table.peers().map(|known| (known.peer.address, Some(known.state()))).collect();
        reported.retain(|_, state| state.is_some());
        prop_assert_eq!(reported, known);
    }

    #[test]
    fn every_pause_is_an_interval_or_between_a_second_and_a_minute(story in vec(happening(), 0..60)) {
        let table = table_after(&story, Instant::now());
        for address in table.entries.keys() {
            let pause = table.pause(*address, INTERVAL);
            let longest = Duration::from_secs(60);
            prop_assert!(pause.is_some_and(|pause| pause >= Duration::from_secs(1) && pause <= longest));
        }
    }
}
