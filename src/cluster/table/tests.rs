//! The rules of discovery, each as a sequence of events.

use super::*;

/// A table, the events that happen to it, and what calls for `syd` read of it.
struct Story(Table);

impl Story {
    fn new() -> Self {
        Self(Table::new("me".parse().unwrap(), boot(0)))
    }

    fn apply(mut self, event: Event) -> Self {
        self.0.apply(event, Instant::now());
        self
    }

    /// The ports that are to be probed at once because of `event`.
    fn probes(&mut self, event: Event) -> Vec<u16> {
        let probe = self.0.apply(event, Instant::now()).probe;
        probe.iter().map(SocketAddr::port).collect()
    }

    /// Seconds until the peer at `port` is probed again, where others are probed every 5.
    fn pause(&self, port: u16) -> Option<u64> {
        let pause = self.0.pause(address(port), Duration::from_secs(5));
        pause.map(|pause| pause.as_secs())
    }

    fn dns(self, ports: &[u16]) -> Self {
        self.answer(ports, true)
    }

    fn answer(self, ports: &[u16], complete: bool) -> Self {
        self.apply(resolved(ports, complete))
    }

    fn seen(self, port: u16, instance: &str) -> Self {
        self.introduced(port, instance, "syd", false)
    }

    fn introduced(self, port: u16, instance: &str, region: &str, draining: bool) -> Self {
        self.answered(port, instance, region, draining, None)
    }

    /// As `seen`, by the run `number` of the instance.
    fn seen_run(self, port: u16, instance: &str, number: u8) -> Self {
        self.answered(port, instance, "syd", false, Some(boot(number)))
    }

    fn answered(
        self,
        port: u16,
        instance: &str,
        region: &str,
        draining: bool,
        boot: Option<BootId>,
    ) -> Self {
        let (region, instance) = (region.parse().unwrap(), instance.parse().unwrap());
        let peer = Peer {
            boot,
            ..Peer::new(address(port), region, instance)
        };
        self.apply(Event::Probed(
            address(port),
            Ok(ProbeAnswer {
                peer,
                draining,
                rtt: Duration::ZERO,
            }),
        ))
    }

    fn no_answer(self, port: u16) -> Self {
        self.apply(Event::Probed(
            address(port),
            Err(ProbeFailure::NoAnswer("connection refused".into())),
        ))
    }

    fn not_a_peer(self, port: u16) -> Self {
        self.apply(Event::Probed(
            address(port),
            Err(ProbeFailure::NotAPeer("404".into())),
        ))
    }

    fn called(self, port: u16, signal: CallSignal) -> Self {
        self.apply(Event::Called(address(port), signal))
    }

    /// The instances of `syd`: those that are ready, and the others.
    fn syd(&self) -> (Vec<String>, Vec<String>) {
        let peers = self.0.region(&"syd".parse().unwrap());
        let names =
            |peers: &[Arc<Peer>]| peers.iter().map(|peer| peer.instance.to_string()).collect();
        (names(&peers.ready), names(&peers.others))
    }
}

fn boot(number: u8) -> BootId {
    format!("{number:032x}").parse().unwrap()
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn resolved(ports: &[u16], complete: bool) -> Event {
    let addresses = ports.iter().map(|port| address(*port)).collect();
    Event::Resolved {
        addresses,
        complete,
    }
}

fn is(story: &Story, ready: &[&str], others: &[&str]) {
    let owned = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(story.syd(), (owned(ready), owned(others)));
}

#[test]
fn an_address_becomes_a_peer_when_it_answers() {
    let mut story = Story::new();
    let dns = resolved(&[1, 2], true);
    assert_eq!(story.probes(dns), [1, 2]);
    assert_eq!((story.pause(1), story.pause(3)), (Some(5), None));
    is(&story, &[], &[]);
    is(&story.seen(1, "a").no_answer(2), &["a"], &[]);
}

#[test]
fn a_listed_peer_that_stops_answering_is_suspect_until_it_answers() {
    let story = Story::new()
        .dns(&[1])
        .seen(1, "a")
        .no_answer(1)
        .no_answer(1);
    is(&story, &[], &["a"]);
    is(&story.seen(1, "a"), &["a"], &[]);
}

#[test]
fn a_suspect_peer_is_probed_less_and_less_often_and_never_forgotten() {
    let mut story = Story::new().dns(&[1]).seen(1, "a");
    assert_eq!(story.pause(1), Some(5));
    let mut pauses = Vec::new();
    for _ in 0..9 {
        story = story.no_answer(1);
        pauses.extend(story.pause(1));
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    let story = story.seen(1, "a").called(1, CallSignal::Unreachable);
    assert_eq!(story.pause(1), Some(1));
}

#[test]
fn answered_calls_replace_probes_for_a_while() {
    let story = Story::new().dns(&[1]).seen(1, "a");
    let (interval, now) = (Duration::from_secs(5), Instant::now());
    let replaced = |story: &Story, later: u64| {
        let now = now + Duration::from_secs(later);
        let date = story.0.replaced_until(address(1), interval, now);
        date.map(|date| date.saturating_duration_since(now).as_secs_f64().round())
    };
    assert_eq!(
        (replaced(&story, 1), replaced(&story, 58)),
        (Some(5.0), Some(2.0))
    );
    assert_eq!(replaced(&story.no_answer(1), 1), None);
}

#[test]
fn an_address_where_another_instance_answers_is_probed_at_once() {
    let mut story = Story::new().dns(&[1]).seen(1, "a");
    let wrong_instance = || Event::Called(address(1), CallSignal::WrongInstance);
    assert_eq!(story.probes(wrong_instance()), [1]);
    is(&story, &[], &["a"]);
    assert_eq!(story.probes(wrong_instance()), [0; 0]);
}

#[test]
fn an_unlisted_peer_stays_while_it_answers_and_goes_when_it_does_not() {
    let story = Story::new().dns(&[1, 2]).seen(1, "a").seen(2, "b");
    let mut story = story;
    assert_eq!(story.probes(resolved(&[2], true)), [1]);
    assert_eq!(story.probes(resolved(&[2], true)), [0; 0]);
    let story = story.seen(1, "a");
    is(&story, &["a", "b"], &[]);
    let story = story.no_answer(1);
    is(&story, &["b"], &[]);
    assert_eq!(story.pause(1), None);
}

#[test]
fn an_incomplete_answer_drops_no_address() {
    let story = Story::new()
        .dns(&[1, 2])
        .seen(1, "a")
        .seen(2, "b")
        .answer(&[3], false)
        .no_answer(1);
    is(&story, &["b"], &["a"]);
    assert_eq!(story.pause(1), Some(1));
}

#[test]
fn this_instance_is_not_a_peer() {
    let story = Story::new().dns(&[1, 2]).seen(1, "me").seen(2, "a");
    is(&story, &["a"], &[]);
    is(&story.seen(2, "me"), &[], &[]);
}

#[test]
fn what_is_not_a_peer_is_probed_again() {
    let story = Story::new().dns(&[1]).not_a_peer(1);
    is(&story, &[], &[]);
    assert_eq!(story.pause(1), Some(5));
    let story = story.seen(1, "a");
    is(&story, &["a"], &[]);
    is(&story.not_a_peer(1), &[], &[]);
}

#[test]
fn an_address_can_change_hands_and_regions() {
    let story = Story::new().dns(&[1]).seen(1, "a").seen(1, "b");
    is(&story, &["b"], &[]);
    let mut story = story.introduced(1, "b", "fra", false);
    is(&story, &[], &[]);
    let peer = Peer {
        region: "syd".parse().unwrap(),
        ..story.0.peers().next().unwrap().peer.as_ref().clone()
    };
    let answer = ProbeAnswer {
        peer,
        draining: false,
        rtt: Duration::ZERO,
    };
    let changes = story
        .0
        .apply(Event::Probed(address(1), Ok(answer)), Instant::now())
        .changes;
    let changes: Vec<_> = changes
        .iter()
        .map(|change| (change.peer.region.to_string(), change.state))
        .collect();
    assert_eq!(
        changes,
        [
            ("fra".to_owned(), None),
            ("syd".to_owned(), Some(PeerState::Ready))
        ]
    );
}

#[test]
fn an_instance_with_two_addresses_counts_once_and_by_its_better_one() {
    let story = Story::new()
        .dns(&[1, 2, 3])
        .seen(1, "a")
        .seen(2, "a")
        .seen(3, "b")
        .no_answer(1);
    is(&story, &["a", "b"], &[]);
}

#[test]
fn two_processes_under_one_id_are_both_used_and_neither_is_found_by_it() {
    let story = Story::new().dns(&[1, 2, 3, 4]).seen(4, "b");
    let story = story.seen_run(1, "a", 1).seen_run(2, "a", 1);
    is(&story, &["a", "b"], &[]);
    let syd = |story: &Story| story.0.region(&"syd".parse().unwrap());
    let a = "a".parse().unwrap();
    assert_eq!(syd(&story).find(&a).unwrap().address, address(1));
    assert!(story.0.duplicates().is_empty());
    let story = story.seen_run(3, "a", 2);
    is(&story, &["a", "a", "b"], &[]);
    assert!(syd(&story).find(&a).is_none());
    assert_eq!(syd(&story).identified().count(), 1);
    assert_eq!(
        story.0.duplicates(),
        [format!("instance a in region syd: {DUPLICATE_ID}")]
    );
    // A suspect one is not used beside a ready one.
    let story = story.no_answer(1).no_answer(2);
    assert_eq!(syd(&story).find(&a).unwrap().address, address(3));
}

#[test]
fn another_process_with_the_id_of_this_instance_is_not_a_peer() {
    let Story(table) = Story::new().dns(&[1]).seen(1, "a");
    let a = table.peers().next().unwrap().peer.as_ref();
    let answer = |number| ProbeAnswer {
        peer: Peer {
            instance: "me".parse().unwrap(),
            boot: Some(boot(number)),
            ..a.clone()
        },
        draining: false,
        rtt: Duration::ZERO,
    };
    assert!(table.check_id(answer(0)).is_ok());
    let refusal = table.check_id(answer(1)).unwrap_err();
    assert!(matches!(refusal, ProbeFailure::NotAPeer(_)), "{refusal}");
}

#[test]
fn addresses_without_a_peer_are_bounded_and_those_that_stay_are_the_same() {
    let all: Vec<u16> = (1..=u16::try_from(MAX_WITHOUT_PEER).unwrap() + 3).collect();
    let last = *all.last().unwrap();
    let mut story = Story::new().dns(&[60_000]).seen(60_000, "a");
    let first = story.0.apply(resolved(&all, false), Instant::now());
    assert_eq!((first.probe.len(), first.left_out), (MAX_WITHOUT_PEER, 3));
    let again = story.0.apply(resolved(&all, false), Instant::now());
    assert_eq!((again.probe, again.left_out), (Vec::new(), 3));
    // A complete answer removes what it does not list, except peers, which take no room either.
    let fewer = story.0.apply(resolved(&[1, last], true), Instant::now());
    assert_eq!(
        (fewer.left_out, fewer.removed.len()),
        (0, MAX_WITHOUT_PEER - 1)
    );
    assert_eq!(fewer.probe, [address(60_000), address(last)]);
    // An incomplete answer takes the room of addresses that it does not list.
    let others: Vec<u16> = (30_000..30_000 + u16::try_from(MAX_WITHOUT_PEER).unwrap()).collect();
    let full = story.0.apply(resolved(&others, false), Instant::now());
    assert_eq!((full.left_out, full.probe.len()), (0, MAX_WITHOUT_PEER));
    is(&story, &["a"], &[]);
}

#[test]
fn draining_peers_wait_behind_ready_ones() {
    let story = Story::new()
        .dns(&[1, 2])
        .seen(1, "a")
        .introduced(2, "b", "syd", true);
    is(&story, &["a"], &["b"]);
    is(
        &story
            .called(2, CallSignal::Answered)
            .called(1, CallSignal::Draining),
        &[],
        &["a", "b"],
    );
}

#[test]
fn a_peer_to_which_a_call_cannot_connect_is_suspect_at_once() {
    let story = Story::new()
        .dns(&[1])
        .seen(1, "a")
        .called(1, CallSignal::Unreachable);
    is(&story, &[], &["a"]);
    is(&story.called(1, CallSignal::Answered), &["a"], &[]);
}

#[test]
fn calls_without_an_answer_are_a_reason_for_a_probe_and_no_verdict() {
    let mut story = Story::new().dns(&[1]).seen(1, "a");
    let later = Instant::now() + Duration::from_secs(1);
    for _ in 0..5 {
        let unanswered = Event::Called(address(1), CallSignal::Unanswered);
        assert_eq!(story.0.apply(unanswered, later).probe, [address(1)]);
    }
    is(&story, &["a"], &[]);
    assert_eq!(story.0.state(address(1)), Some(PeerState::Ready));
    let story = story.no_answer(1);
    is(&story, &[], &["a"]);
    assert!(story.0.is_current(address(1), Instant::now()));
    assert!(!story.0.is_current(address(1), later));
}

#[test]
fn events_of_addresses_that_are_gone_change_nothing() {
    let story = Story::new()
        .seen(1, "a")
        .no_answer(2)
        .not_a_peer(3)
        .called(4, CallSignal::Unreachable);
    is(&story, &[], &[]);
    assert!((1..=4).all(|port| story.pause(port).is_none()));
}
