//! What holds of the rules of discovery whatever happens, in any order: tried with random sequences of events.

use proptest::{collection::vec, prelude::*};

use super::*;

const PORTS: std::ops::Range<u16> = 1..6;
const INTERVAL: Duration = Duration::from_secs(5);

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

fn dns(ports: BTreeSet<u16>, complete: bool) -> Event {
    Event::Resolved {
        addresses: ports.into_iter().map(address).collect(),
        complete,
    }
}

fn seen(port: u16, instance: u8, region: u8, draining: bool) -> Event {
    let answer = ProbeAnswer {
        peer: peer(port, instance, region),
        draining,
        rtt: Duration::ZERO,
    };
    Event::Probed(address(port), Ok(answer))
}

fn called() -> impl Strategy<Value = Event> {
    let signal = prop_oneof![
        Just(CallSignal::Answered),
        Just(CallSignal::Draining),
        Just(CallSignal::Unreachable),
        Just(CallSignal::WrongInstance),
        Just(CallSignal::Unanswered),
        Just(CallSignal::Outdated),
    ];
    (PORTS, signal).prop_map(|(port, signal)| Event::Called(address(port), signal))
}

fn event() -> impl Strategy<Value = Event> {
    let failed = |failure: fn(String) -> ProbeFailure| {
        PORTS.prop_map(move |port| Event::Probed(address(port), Err(failure(String::new()))))
    };
    let ports = proptest::collection::btree_set(PORTS, 0..5);
    prop_oneof![
        (ports, any::<bool>()).prop_map(|(ports, complete)| dns(ports, complete)),
        (PORTS, 0..6_u8, 0..2_u8, any::<bool>())
            .prop_map(|(port, number, region, draining)| seen(port, number, region, draining)),
        failed(ProbeFailure::Refused),
        failed(ProbeFailure::NoAnswer),
        failed(ProbeFailure::NotAPeer),
        called(),
    ]
}

/// The address that an event is about; `None` for an answer of DNS, which is about all.
fn subject(event: &Event) -> Option<SocketAddr> {
    match event {
        Event::Resolved { .. } => None,
        Event::Probed(address, _) | Event::Called(address, _) => Some(*address),
    }
}

fn table_after(story: &[Event], now: Instant) -> Table {
    let mut table = Table::new(instance(0), "0".repeat(32).parse().unwrap());
    for event in story {
        table.apply(event.clone(), now);
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
    fn a_peer_that_answers_its_probes_is_never_removed(story in vec(event(), 0..40), tail in vec(event(), 0..40)) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        table.apply(dns([1].into(), true), now);
        table.apply(seen(1, 1, 0, false), now);
        let is_probe = |event: &Event| matches!(event, Event::Probed(probed, _) if *probed == address(1));
        for event in tail.iter().filter(|event| !is_probe(event)) {
            table.apply(event.clone(), now);
            prop_assert!(table.is_peer(address(1)), "gone after {event:?}");
        }
    }

    #[test]
    fn neither_dns_nor_a_call_removes_a_peer(story in vec(event(), 0..40), last in event()) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        let before = addresses_of_peers(&table);
        if !matches!(last, Event::Probed(..)) {
            table.apply(last, now);
            prop_assert_eq!(addresses_of_peers(&table), before);
        }
    }

    #[test]
    fn no_signal_of_a_call_removes_a_peer_from_a_region(story in vec(event(), 0..40), signals in vec(called(), 0..20)) {
        let now = Instant::now();
        let mut table = table_after(&story, now);
        let counts = |table: &Table| [0, 1].map(|number| table.region(&region(number)).count());
        let before = counts(&table);
        for signal in signals {
            table.apply(signal, now);
        }
        prop_assert_eq!(counts(&table), before);
    }

    #[test]
    fn events_of_two_addresses_may_come_in_either_order(story in vec(event(), 0..40), one in event(), other in event()) {
        let are_unrelated = matches!((subject(&one), subject(&other)), (Some(a), Some(b)) if a != b);
        if are_unrelated {
            let now = Instant::now();
            let both = |first: &Event, second: &Event| {
                let mut table = table_after(&story, now);
                table.apply(first.clone(), now);
                table.apply(second.clone(), now);
                format!("{table:?}")
            };
            prop_assert_eq!(both(&one, &other), both(&other, &one));
        }
    }

    #[test]
    fn a_region_has_each_instance_once_and_never_this_one(story in vec(event(), 0..60)) {
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
    fn the_changes_add_up_to_the_peers(story in vec(event(), 0..60)) {
        let now = Instant::now();
        let mut table = Table::new(instance(0), "0".repeat(32).parse().unwrap());
        let mut reported = BTreeMap::new();
        for event in story {
            for change in table.apply(event, now).changes {
                reported.insert(change.peer.address, change.state);
            }
        }
        let known: BTreeMap<_, _> = table.peers().map(|known| (known.peer.address, Some(known.state()))).collect();
        reported.retain(|_, state| state.is_some());
        prop_assert_eq!(reported, known);
    }

    #[test]
    fn every_pause_is_an_interval_or_between_a_second_and_a_minute(story in vec(event(), 0..60)) {
        let table = table_after(&story, Instant::now());
        for address in table.entries.keys() {
            let pause = table.pause(*address, INTERVAL);
            let longest = Duration::from_secs(60);
            prop_assert!(pause.is_some_and(|pause| pause >= Duration::from_secs(1) && pause <= longest));
        }
    }
}
