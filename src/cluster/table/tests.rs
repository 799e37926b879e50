//! The rules of discovery, each as a sequence of events; and what holds of them whatever happens, in any order, tried with
//! random sequences.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::app::AppHealth;

/// A table, the events that happen to it, and what calls for `syd` read of it.
struct Story(Table);

impl Story {
    fn new() -> Self {
        Self(Table::new("me".parse().unwrap(), boot(0)))
    }

    fn apply(mut self, event: TableEvent) -> Self {
        self.0.apply(event, Instant::now());
        self
    }

    /// The ports that are to be probed at once because of `event`.
    fn probes(&mut self, event: TableEvent) -> Vec<u16> {
        let probe = self.0.apply(event, Instant::now()).probe;
        probe.iter().map(SocketAddr::port).collect()
    }

    /// Seconds until the peer at `port` is probed again, where others are probed every 5.
    fn pause(&self, port: u16) -> Option<u64> {
        let pause = self.0.pause(address(port), Duration::from_secs(5));
        pause.map(|pause| pause.as_secs())
    }

    fn dns(self, ports: &[u16]) -> Self {
        self.apply(resolved(ports, true))
    }

    /// `instance` answers a probe, ready and in `syd`.
    fn seen(self, port: u16, instance: &str) -> Self {
        self.answered(port, answer(port, instance))
    }

    /// As `seen`, by the run `number` of the instance.
    fn seen_run(self, port: u16, instance: &str, number: u8) -> Self {
        let mut answer = answer(port, instance);
        answer.peer.boot = Some(boot(number));
        self.answered(port, answer)
    }

    fn answered(self, port: u16, answer: ProbeAnswer) -> Self {
        self.apply(TableEvent::Probed(address(port), Ok(answer)))
    }

    fn no_answer(self, port: u16) -> Self {
        let failure = ProbeFailure::NoAnswer("connection refused".into());
        self.apply(TableEvent::Probed(address(port), Err(failure)))
    }

    fn not_a_peer(self, port: u16) -> Self {
        let failure = ProbeFailure::NotAPeer("404".into());
        self.apply(TableEvent::Probed(address(port), Err(failure)))
    }

    fn called(self, port: u16, signal: CallSignal) -> Self {
        self.apply(TableEvent::Called(address(port), signal))
    }

    fn region(&self) -> RegionPeers {
        self.0.region(&"syd".parse().unwrap())
    }
}

fn boot(number: u8) -> BootId {
    format!("{number:032x}").parse().unwrap()
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// That `instance` answers a probe, ready and in `syd`, without a function.
fn answer(port: u16, instance: &str) -> ProbeAnswer {
    let (region, instance) = ("syd".parse().unwrap(), instance.parse().unwrap());
    let mut peer = Peer::new(address(port), region, instance);
    peer.catalogue = Some(Arc::new(Catalogue::new([])));
    ProbeAnswer {
        peer,
        draining: false,
        rtt: Duration::ZERO,
    }
}

fn resolved(ports: &[u16], complete: bool) -> TableEvent {
    TableEvent::Resolved {
        addresses: ports.iter().map(|port| address(*port)).collect(),
        complete,
    }
}

/// Asserts which instances of `syd` are ready, and which others there are.
fn is(story: &Story, ready: &str, others: &str) {
    let peers = story.region();
    let names = [true, false].map(|are_ready| {
        let all = peers.with_conditions();
        let found = all.filter(|(_, condition)| (*condition == Condition::Ready) == are_ready);
        let names: Vec<_> = found.map(|(peer, _)| peer.instance.as_str()).collect();
        names.join(" ")
    });
    assert_eq!(names, [ready, others]);
}

#[test]
fn an_address_becomes_a_peer_when_it_answers() {
    let mut story = Story::new();
    assert_eq!(story.probes(resolved(&[1, 2], true)), [1, 2]);
    assert_eq!((story.pause(1), story.pause(3)), (Some(5), None));
    is(&story, "", "");
    is(&story.seen(1, "a").no_answer(2), "a", "");
}

#[test]
fn a_listed_peer_that_stops_answering_is_suspect_until_it_answers() {
    let story = Story::new().dns(&[1]).seen(1, "a");
    let story = story.no_answer(1).no_answer(1);
    is(&story, "", "a");
    is(&story.seen(1, "a"), "a", "");
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
    let soon_and_late = (replaced(&story, 1), replaced(&story, 58));
    assert_eq!(soon_and_late, (Some(5.0), Some(2.0)));
    assert_eq!(replaced(&story.no_answer(1), 1), None);
}

#[test]
fn an_address_where_another_instance_answers_is_probed_at_once() {
    let mut story = Story::new().dns(&[1]).seen(1, "a");
    let wrong_instance = || TableEvent::Called(address(1), CallSignal::WrongInstance);
    assert_eq!(story.probes(wrong_instance()), [1]);
    is(&story, "", "a");
    assert_eq!(story.probes(wrong_instance()), [0; 0]);
}

#[test]
fn an_unlisted_peer_stays_while_it_answers_and_goes_when_it_does_not() {
    let mut story = Story::new().dns(&[1, 2]).seen(1, "a").seen(2, "b");
    assert_eq!(story.probes(resolved(&[2], true)), [1]);
    assert_eq!(story.probes(resolved(&[2], true)), [0; 0]);
    let story = story.seen(1, "a");
    is(&story, "a b", "");
    let story = story.no_answer(1);
    is(&story, "b", "");
    assert_eq!(story.pause(1), None);
}

#[test]
fn an_incomplete_answer_drops_no_address() {
    let story = Story::new().dns(&[1, 2]).seen(1, "a").seen(2, "b");
    let story = story.apply(resolved(&[3], false)).no_answer(1);
    is(&story, "b", "a");
    assert_eq!(story.pause(1), Some(1));
}

#[test]
fn this_instance_is_not_a_peer() {
    let story = Story::new().dns(&[1, 2]).seen(1, "me").seen(2, "a");
    is(&story, "a", "");
    is(&story.seen(2, "me"), "", "");
}

#[test]
fn what_is_not_a_peer_is_probed_again() {
    let story = Story::new().dns(&[1]).not_a_peer(1);
    is(&story, "", "");
    assert_eq!(story.pause(1), Some(5));
    let story = story.seen(1, "a");
    is(&story, "a", "");
    is(&story.not_a_peer(1), "", "");
}

#[test]
fn an_address_can_change_hands_and_regions() {
    let story = Story::new().dns(&[1]).seen(1, "a").seen(1, "b");
    is(&story, "b", "");
    let mut moved = answer(1, "b");
    moved.peer.region = "fra".parse().unwrap();
    let mut story = story.answered(1, moved);
    is(&story, "", "");
    let back = TableEvent::Probed(address(1), Ok(answer(1, "b")));
    let changes = story.0.apply(back, Instant::now()).changes;
    let changes = changes.iter();
    let changes: Vec<_> = changes
        .map(|it| (it.peer.region.as_str(), it.state))
        .collect();
    assert_eq!(changes, [("fra", None), ("syd", Some(PeerState::Ready))]);
}

/// That `instance` in its run 1 answers a probe, and lists the functions of `catalogue`, which are not known yet.
fn lists(port: u16, instance: &str, catalogue: &Catalogue) -> ProbeAnswer {
    let mut answer = answer(port, instance);
    answer.peer.boot = Some(boot(1));
    answer.peer.listed = catalogue.hash().clone();
    answer.peer.catalogue = None;
    answer
}

/// That the functions of that peer were read.
fn read(wanted: &Catalogue, answer: ProbeAnswer, catalogue: Catalogue) -> TableEvent {
    let mut peer = answer.peer;
    peer.listed = catalogue.hash().clone();
    peer.catalogue = Some(Arc::new(catalogue));
    TableEvent::Read {
        wanted: wanted.hash().clone(),
        peer,
    }
}

/// A catalogue with one function, `M.name`.
fn catalogue(name: &str) -> Catalogue {
    let name = crate::name::FunctionName::new("M", name).unwrap();
    Catalogue::new([(name, crate::declaration::Declaration::new())])
}

/// The one ready peer of `syd`.
fn only(story: &Story) -> Arc<Peer> {
    Arc::clone(&story.region().ready[0])
}

#[test]
fn a_process_has_the_functions_that_were_read_last() {
    let [a, b] = ["a", "b"].map(catalogue);
    let listed = lists(1, "a", &a);
    let mut released = listed.clone();
    released.peer.release = Some("2".to_owned());
    let mut restarted = lists(1, "a", &b);
    restarted.peer.boot = Some(boot(2));
    let story = Story::new().dns(&[1]).answered(1, listed.clone());
    assert!(only(&story).catalogue.is_none());
    let mut story = story.apply(read(&a, listed.clone(), a.clone()));
    // Listed again, they need not be read again.
    for (answer, knows) in [(listed, true), (released, true), (restarted, false)] {
        story = story.answered(1, answer.clone());
        assert_eq!(only(&story).release, answer.peer.release);
        assert_eq!(only(&story).catalogue.is_some(), knows, "{answer:?}");
        assert_eq!(story.0.unread(address(1)).is_none(), knows, "{answer:?}");
    }
}

#[test]
fn what_a_peer_says_of_its_app_holds_with_its_functions() {
    let [a, b, c] = ["a", "b", "c"].map(catalogue);
    let with_app = |catalogue: &Catalogue, state| {
        let mut answer = lists(1, "a", catalogue);
        answer.peer.app_state = Some(state);
        answer
    };
    let known = |story: &Story| {
        let peer = only(story);
        let hash = peer.catalogue.as_ref().map(|it| it.hash().clone());
        (hash.unwrap(), peer.app_state.unwrap())
    };
    let (up, down) = (AppHealth::Up, AppHealth::Down);
    let story = Story::new().dns(&[1]).answered(1, with_app(&a, up));
    let story = story.apply(read(&a, with_app(&a, up), a.clone()));
    let story = story.answered(1, with_app(&b, down));
    assert_eq!(known(&story), (a.hash().clone(), up));
    // Meanwhile a later probe found out more.
    let story = story.answered(1, with_app(&c, up));
    let story = story.apply(read(&b, with_app(&b, down), b.clone()));
    assert_eq!(known(&story), (b.hash().clone(), down));
    assert_eq!(story.0.unread(address(1)).unwrap().listed, *c.hash());
    let story = story.apply(read(&c, with_app(&c, up), c.clone()));
    assert_eq!(known(&story), (c.hash().clone(), up));
    assert!(story.0.unread(address(1)).is_none());
    // What was read before it listed the known ones again, or of another run, is out of date.
    let story = story
        .answered(1, with_app(&a, down))
        .answered(1, with_app(&c, up));
    let story = story.apply(read(&a, with_app(&a, down), a.clone()));
    let mut other = with_app(&a, down);
    other.peer.boot = Some(boot(2));
    let story = story
        .answered(1, with_app(&b, up))
        .apply(read(&b, other, b.clone()));
    assert_eq!(known(&story), (c.hash().clone(), up));
}

#[test]
fn a_change_has_its_reason() {
    let mut table = Story::new().dns(&[1]).0;
    let mut probed = answer(1, "a");
    let mut reasons = |change: fn(&mut ProbeAnswer)| {
        change(&mut probed);
        let event = TableEvent::Probed(address(1), Ok(probed.clone()));
        let changes = table.apply(event, Instant::now()).changes;
        Vec::from_iter(changes.into_iter().map(|change| change.reason))
    };
    let answered = ["it answered the probe"];
    assert_eq!(reasons(|_| {}), answered);
    assert_eq!(reasons(|_| {}), [""; 0]);
    assert_eq!(reasons(|it| it.draining = true), answered);
    assert_eq!(
        reasons(|it| it.peer.boot = Some(boot(1))),
        ["it was started again"]
    );
    assert_eq!(
        reasons(|it| it.peer.release = Some("2".to_owned())),
        ["its functions, its app or its release changed"]
    );
    assert_eq!(
        reasons(|it| it.peer.instance = "b".parse().unwrap()),
        ["another instance answers there", "it answered the probe"]
    );
}

#[test]
fn what_a_call_finds_out_after_a_probe_is_probed_again_and_a_refusal_is_known_at_once() {
    let mut table = Story::new().dns(&[1]).seen(1, "a").0;
    let call = |table: &mut Table, signal| {
        let event = TableEvent::Called(address(1), signal);
        table.apply(event, Instant::now());
        let peers = table.region(&"syd".parse().unwrap());
        let is_current = table.is_current(address(1), Instant::now());
        (peers.condition(&answer(1, "a").peer), is_current)
    };
    let answered = call(&mut table, CallSignal::Answered);
    assert_eq!(answered, (Condition::Ready, true));
    let unreachable = call(&mut table, CallSignal::Unreachable);
    assert_eq!(unreachable, (Condition::Doubtful, false));
    let hangs = ProbeFailure::NoAnswer("no answer".to_owned());
    table.apply(TableEvent::Probed(address(1), Err(hangs)), Instant::now());
    let unreachable = call(&mut table, CallSignal::Unreachable);
    assert_eq!(unreachable, (Condition::Hanging, true));
    let refused = call(&mut table, CallSignal::Refused);
    assert_eq!(refused, (Condition::Gone, true));
}

#[test]
fn another_cause_of_the_same_state_is_for_calls_and_no_news() {
    let mut table = Story::new().dns(&[1]).seen(1, "a").0;
    let mut changes = |event| {
        let changes = table.apply(event, Instant::now()).changes;
        let changes = changes
            .into_iter()
            .map(|change| (change.is_news, change.reason));
        (
            changes.collect::<Vec<_>>(),
            table
                .region(&"syd".parse().unwrap())
                .condition(&answer(1, "a").peer),
        )
    };
    let called = |signal| TableEvent::Called(address(1), signal);
    let refused = ProbeFailure::Refused("refused".to_owned());
    let refused = TableEvent::Probed(address(1), Err(refused));
    let doubtful = vec![(true, "a call could not connect".to_owned())];
    assert_eq!(
        changes(called(CallSignal::Unreachable)),
        (doubtful, Condition::Doubtful)
    );
    let refusing = vec![(false, "refused".to_owned())];
    assert_eq!(changes(refused.clone()), (refusing, Condition::Gone));
    assert_eq!(changes(refused), (Vec::new(), Condition::Gone));
    let ready = vec![(true, "it answered a call".to_owned())];
    assert_eq!(
        changes(called(CallSignal::Answered)),
        (ready, Condition::Ready)
    );
}

#[test]
fn an_instance_with_two_addresses_counts_once_and_by_its_better_one() {
    let story = Story::new().dns(&[1, 2, 3]).seen(1, "a").seen(2, "a");
    is(&story.seen(3, "b").no_answer(1), "a b", "");
}

#[test]
fn two_processes_under_one_id_are_both_used_and_neither_is_found_by_it() {
    let story = Story::new().dns(&[1, 2, 3, 4]).seen(4, "b");
    let story = story.seen_run(1, "a", 1).seen_run(2, "a", 1);
    is(&story, "a b", "");
    let a = "a".parse().unwrap();
    assert_eq!(story.region().find(&a).unwrap().address, address(1));
    assert!(story.region().duplicates.is_empty());
    let story = story.seen_run(3, "a", 2);
    is(&story, "a a b", "");
    assert!(story.region().find(&a).is_none());
    assert_eq!(story.region().identified().count(), 1);
    assert_eq!(story.region().duplicates, BTreeSet::from([a.clone()]));
    // A suspect one is not used beside a ready one.
    let story = story.no_answer(1).no_answer(2);
    assert_eq!(story.region().find(&a).unwrap().address, address(3));
}

#[test]
fn another_process_with_the_id_of_this_instance_is_not_a_peer() {
    let Story(table) = Story::new();
    let check = |run| {
        let mut answer = answer(1, "me");
        answer.peer.boot = Some(boot(run));
        table.check_id(answer)
    };
    assert!(check(0).is_ok());
    let refusal = check(1).unwrap_err();
    assert!(
        matches!(refusal, ProbeFailure::Namesake { .. }),
        "{refusal}"
    );
}

#[test]
fn addresses_without_a_peer_are_bounded_and_those_that_stay_are_the_same() {
    let most = u16::try_from(MAX_WITHOUT_PEER).unwrap();
    let (all, last) = (Vec::from_iter(1..=most + 3), most + 3);
    let mut story = Story::new().dns(&[60_000]).seen(60_000, "a");
    let mut resolve = |ports: &[u16], complete| {
        let event = resolved(ports, complete);
        let Effects {
            probe,
            removed,
            left_out,
            ..
        } = story.0.apply(event, Instant::now());
        (probe, removed.len(), left_out)
    };
    let (first, _, left_out) = resolve(&all, false);
    assert_eq!((first.len(), left_out), (MAX_WITHOUT_PEER, 3));
    assert_eq!(resolve(&all, false), (Vec::new(), 0, 3));
    // A complete answer removes what it does not list, except peers, which take no room either.
    let new = vec![address(60_000), address(last)];
    let fewer = resolve(&[1, last], true);
    assert_eq!(fewer, (new, MAX_WITHOUT_PEER - 1, 0));
    // An incomplete answer takes the room of addresses that it does not list.
    let others = Vec::from_iter(30_000..30_000 + most);
    let (full, _, left_out) = resolve(&others, false);
    assert_eq!((full.len(), left_out), (MAX_WITHOUT_PEER, 0));
    is(&story, "a", "");
}

#[test]
fn draining_peers_wait_behind_ready_ones() {
    let mut draining = answer(2, "b");
    draining.draining = true;
    let story = Story::new().dns(&[1, 2]).seen(1, "a").answered(2, draining);
    is(&story, "a", "b");
    let story = story.called(2, CallSignal::Answered);
    is(&story.called(1, CallSignal::Draining), "", "a b");
}

#[test]
fn a_peer_to_which_a_call_cannot_connect_is_suspect_at_once() {
    let story = Story::new().dns(&[1]).seen(1, "a");
    let story = story.called(1, CallSignal::Unreachable);
    is(&story, "", "a");
    is(&story.called(1, CallSignal::Answered), "a", "");
}

#[test]
fn calls_without_an_answer_are_a_reason_for_a_probe_and_no_verdict() {
    let mut story = Story::new().dns(&[1]).seen(1, "a");
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    for _ in 0..5 {
        let unanswered = TableEvent::Called(address(1), CallSignal::Questionable);
        assert_eq!(story.0.apply(unanswered, later).probe, [address(1)]);
    }
    is(&story, "a", "");
    assert_eq!(story.0.state(address(1)), Some(PeerState::Ready));
    let failure = ProbeFailure::NoAnswer("connection refused".into());
    story
        .0
        .apply(TableEvent::Probed(address(1), Err(failure)), now);
    is(&story, "", "a");
    assert!(story.0.is_current(address(1), now));
    assert!(!story.0.is_current(address(1), later));
}

#[test]
fn who_says_that_its_functions_changed_is_probed_after_that_but_not_without_end() {
    let mut story = Story::new().dns(&[1]).seen(1, "a");
    let interval = Duration::from_secs(5);
    let now = Instant::now() + Duration::from_secs(1);
    let changed = || TableEvent::Called(address(1), CallSignal::Changed);
    let known = || {
        let mut answer = lists(1, "a", &catalogue("a"));
        answer.peer.catalogue = Some(Arc::new(catalogue("a")));
        TableEvent::Probed(address(1), Ok(answer))
    };
    let pause_and_replaced = |story: &Story| {
        let replaced = story.0.replaced_until(address(1), interval, now);
        (
            story.0.pause(address(1), interval).unwrap(),
            replaced.is_some(),
        )
    };
    assert_eq!(story.0.apply(changed(), now).probe, [address(1)]);
    // No answer to a call takes the place of a probe that is wanted.
    assert_eq!(pause_and_replaced(&story), (CURRENT, false));
    // What it says during a probe outlasts the probe.
    story.0.probe_begins(address(1));
    story.0.apply(changed(), now);
    story.0.apply(known(), now);
    assert_eq!(story.0.apply(changed(), now).probe, []);
    assert_eq!(pause_and_replaced(&story), (CURRENT, false));
    // As long as what it lists was not read, no answer does either, and the next regular probe follows.
    story.0.probe_begins(address(1));
    let listed = lists(1, "a", &catalogue("b"));
    let probed = TableEvent::Probed(address(1), Ok(listed.clone()));
    story.0.apply(probed, now);
    assert_eq!(pause_and_replaced(&story), (interval, false));
    story
        .0
        .apply(read(&catalogue("b"), listed, catalogue("b")), now);
    assert_eq!(pause_and_replaced(&story), (interval, true));
    story.0.probe_begins(address(1));
    story.0.apply(known(), now);
    assert_eq!(pause_and_replaced(&story), (interval, true));
}

#[test]
fn events_of_addresses_that_are_gone_change_nothing() {
    let story = Story::new().seen(1, "a").no_answer(2).not_a_peer(3);
    let story = story.called(4, CallSignal::Unreachable);
    is(&story, "", "");
    assert!((1..=4).all(|port| story.pause(port).is_none()));
}

const PORTS: std::ops::Range<u16> = 1..6;

fn region(number: u8) -> Region {
    format!("r{number}").parse().unwrap()
}

/// That instance `number` answers a probe, in the region of that number.
fn seen(port: u16, number: u8, region_number: u8, draining: bool) -> TableEvent {
    let mut answer = answer(port, &format!("i{number}"));
    answer.peer.region = region(region_number);
    answer.draining = draining;
    TableEvent::Probed(address(port), Ok(answer))
}

/// That the functions of instance `number` were read, in the region of that number.
fn were_read(port: u16, number: u8, region_number: u8) -> TableEvent {
    let mut answer = answer(port, &format!("i{number}"));
    answer.peer.region = region(region_number);
    read(&Catalogue::new([]), answer, Catalogue::new([]))
}

fn called() -> impl Strategy<Value = TableEvent> {
    let signal = prop_oneof![
        Just(CallSignal::Answered),
        Just(CallSignal::Draining),
        Just(CallSignal::Unreachable),
        Just(CallSignal::Refused),
        Just(CallSignal::WrongInstance),
        Just(CallSignal::Questionable),
        Just(CallSignal::Changed),
    ];
    (PORTS, signal).prop_map(|(port, signal)| TableEvent::Called(address(port), signal))
}

fn event() -> impl Strategy<Value = TableEvent> {
    let failed = |failure: fn(String) -> ProbeFailure| {
        PORTS.prop_map(move |port| TableEvent::Probed(address(port), Err(failure(String::new()))))
    };
    prop_oneof![
        (vec(PORTS, 0..5), any::<bool>()).prop_map(|(ports, complete)| resolved(&ports, complete)),
        (PORTS, 0..6_u8, 0..2_u8, any::<bool>())
            .prop_map(|(port, number, region, draining)| seen(port, number, region, draining)),
        (PORTS, 0..6_u8, 0..2_u8)
            .prop_map(|(port, number, region)| were_read(port, number, region)),
        failed(ProbeFailure::Refused),
        failed(ProbeFailure::NoAnswer),
        failed(ProbeFailure::NotAPeer),
        called(),
    ]
}

/// The address that an event is about; `None` for an answer of DNS, which is about all.
fn subject(event: &TableEvent) -> Option<SocketAddr> {
    match event {
        TableEvent::Resolved { .. } => None,
        TableEvent::Probed(address, _) | TableEvent::Called(address, _) => Some(*address),
        TableEvent::Read { peer, .. } => Some(peer.address),
    }
}

/// Instance 0 is the table's own.
fn empty() -> Table {
    Table::new("i0".parse().unwrap(), boot(0))
}

fn table_after(story: &[TableEvent], now: Instant) -> Table {
    let mut table = empty();
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
        table.apply(resolved(&[1], true), now);
        table.apply(seen(1, 1, 0, false), now);
        let is_probe = |event: &TableEvent| matches!(event, TableEvent::Probed(probed, _) if *probed == address(1));
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
        if !matches!(last, TableEvent::Probed(..)) {
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
            let both = |first: &TableEvent, second: &TableEvent| {
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
            let instances: BTreeSet<_> = peers.iter().map(|peer| peer.instance.as_str()).collect();
            prop_assert_eq!(instances.len(), peers.len());
            prop_assert!(!instances.contains("i0"));
            prop_assert!(peers.iter().all(|peer| peer.region == region(number)));
        }
    }

    #[test]
    fn the_changes_add_up_to_the_peers(story in vec(event(), 0..60)) {
        let now = Instant::now();
        let mut table = empty();
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
    fn every_pause_is_that_of_a_change_or_between_a_second_and_a_minute(story in vec(event(), 0..60)) {
        let table = table_after(&story, Instant::now());
        for address in table.entries.keys() {
            let pause = table.pause(*address, Duration::from_secs(5));
            let regular = Duration::from_secs(1)..=Duration::from_secs(60);
            prop_assert!(pause.is_some_and(|pause| pause == CURRENT || regular.contains(&pause)));
        }
    }
}
