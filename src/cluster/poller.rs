//! The poller: the background task that asks DNS, probes addresses, reads the functions of peers, and passes what comes of
//! that and what calls report to the rules in `table.rs`. It alone writes the table and the snapshot, and it decides when
//! each address is probed. It starts with the process and delays neither the start, nor the stop, nor a call.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use moka::{policy::EvictionPolicy, sync::Cache};
use rand::RngExt;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Overview, Progress, Snapshot,
    dns::{Dns, DnsAnswer},
    peers::Peer,
    probe::Prober,
    table::{
        CallSignal, Effects, KnownAddress, MAX_WITHOUT_PEER, ProbeAnswer, ProbeFailure, Table,
        TableChange, TableEvent,
    },
};
use crate::{feed::PeerChange, metrics::Metrics, protocol::PeerState, region::Region};

/// How many messages may wait for the poller. When it is behind, further ones are dropped: they are hints.
const INBOX: usize = 1024;
/// How many calls may wait for the outcome of one probe; further ones get the last known state at once.
const MAX_WAITERS: usize = 16;
/// How many peers are asked for their functions at once.
const MAX_READINGS: usize = 16;
/// How long an address without a peer, or a peer whose functions cannot be read, is not logged again.
const LOG_PAUSE: Duration = Duration::from_secs(600);
/// How many addresses are not logged again at once: more than there are without a peer.
const MAX_LOGGED: u64 = 32_768;
/// The pause after a panic of the poller, so that one at each event does not fill the log.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// A message to the poller from the rest of the instance.
#[derive(Debug)]
pub(super) enum Message {
    Called(SocketAddr, CallSignal),
    /// Calls wait for the peer at this address, which does not answer: probe it and answer with its state.
    Probe(SocketAddr, oneshot::Sender<PeerState>),
    /// Answer with every address.
    Overview(oneshot::Sender<Arc<Overview>>),
}

type Probed = (SocketAddr, Result<ProbeAnswer, ProbeFailure>);
/// A peer whose functions were to be read, and the same with them.
type Described = (Arc<Peer>, Result<Peer, ProbeFailure>);

/// How far the current round is: one pass in which DNS is asked and the addresses that it added are probed once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Round {
    Over,
    Resolving,
    /// With what [`Progress`] says of the answer once the round is over.
    Probing {
        answered: bool,
        complete: bool,
    },
}

pub(super) struct Poller {
    dns: Arc<Dns>,
    prober: Arc<Prober>,
    poll_interval: Duration,
    table: Table,
    snapshot: Snapshot,
    /// The regions without peers, the one that has been empty for longest first.
    empty: VecDeque<Region>,
    progress: watch::Sender<Progress>,
    inbox: mpsc::Receiver<Message>,
    metrics: Arc<Metrics>,
    schedule: ProbeSchedule,
    queries: JoinSet<DnsAnswer>,
    probes: JoinSet<Probed>,
    /// Where peers are whose functions are to be read next, in the order of the probes that found out.
    unread: VecDeque<SocketAddr>,
    /// Those, and where peers are whose functions are being read.
    wanted: HashSet<SocketAddr>,
    readings: JoinSet<Described>,
    /// The calls that wait for the next outcome of a probe, by its address.
    waiters: HashMap<SocketAddr, Vec<oneshot::Sender<PeerState>>>,
    /// Those who ask for every address.
    askers: Vec<oneshot::Sender<Arc<Overview>>>,
    /// The regions that changed since they were last published.
    changed: BTreeSet<Region>,
    round: Round,
    next_round: Instant,
    /// How many addresses of the last DNS answer there was no room for.
    left_out: usize,
    /// What was logged a short while ago.
    logged: Cache<SocketAddr, ()>,
}

impl Poller {
    /// A poller that begins its first round at once; where to send it messages, and where to read its progress.
    pub(super) fn new(
        dns: Dns,
        prober: Prober,
        table: Table,
        snapshot: Snapshot,
        poll_interval: Duration,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::Sender<Message>, watch::Receiver<Progress>) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let (progress, watched) = watch::channel(Progress::default());
        let now = Instant::now();
        let logged = Cache::builder()
            .time_to_live(LOG_PAUSE)
            .max_capacity(MAX_LOGGED)
            // By default, a full cache takes in no new address.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let poller = Self {
            dns: Arc::new(dns),
            prober: Arc::new(prober),
            poll_interval,
            table,
            snapshot,
            empty: VecDeque::new(),
            progress,
            inbox,
            metrics,
            schedule: ProbeSchedule::new(now),
            queries: JoinSet::new(),
            probes: JoinSet::new(),
            unread: VecDeque::new(),
            wanted: HashSet::new(),
            readings: JoinSet::new(),
            waiters: HashMap::new(),
            askers: Vec::new(),
            changed: BTreeSet::new(),
            round: Round::Over,
            next_round: now,
            left_out: 0,
            logged,
        };
        (poller, sender, watched)
    }

    /// Polls until `stop`. A panic in here is a bug, after which it goes on with the peers that it knows: without a poller,
    /// the instance would be ready and never find another one.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while AssertUnwindSafe(self.poll(&stop))
            .catch_unwind()
            .await
            .is_err()
        {
            tracing::error!("discovery panicked, and goes on with the peers that it knows");
            self.begin_again();
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(AFTER_PANIC) => {}
            }
        }
    }

    /// Has every address probed and every region published: what was begun may not have been ended.
    fn begin_again(&mut self) {
        let now = Instant::now();
        self.round = Round::Over;
        self.next_round = now + self.poll_interval;
        self.schedule = ProbeSchedule::new(now);
        self.unread.clear();
        self.wanted.clear();
        self.waiters.clear();
        self.askers.clear();
        for address in self.table.all_addresses() {
            self.schedule.add_now(address, self.class(address));
        }
        let peers = self.table.peers().map(|known| known.peer.region.clone());
        self.changed.extend(peers);
        self.changed.extend(self.snapshot.regions());
    }

    async fn poll(&mut self, stop: &CancellationToken) {
        let mut messages = Vec::new();
        loop {
            let now = Instant::now();
            let wake = self.schedule.wake(now);
            // No arm waits: what takes time runs in the tasks of the three sets. An empty set has nothing to join, which
            // disables its arm.
            tokio::select! {
                () = stop.cancelled() => return,
                // A server that takes longer than a round is not asked again before it has answered.
                () = sleep_until(self.next_round), if self.round != Round::Resolving => self.start_round(),
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => self.start_probes(),
                Some(answer) = self.queries.join_next() => self.resolved(answer),
                Some(Ok(probed)) = self.probes.join_next() => {
                    // All probes that have ended are taken, so that the regions are published once.
                    self.probed(probed);
                    while let Some(Ok(probed)) = self.probes.try_join_next() {
                        self.probed(probed);
                    }
                }
                Some(Ok(read)) = self.readings.join_next() => self.read(read),
                // All messages that wait are taken, so that the regions are published once, and one copy of the table is
                // for all who ask.
                1.. = self.inbox.recv_many(&mut messages, INBOX) => {
                    messages.drain(..).for_each(|message| self.handle(message));
                    self.answer_askers();
                }
            }
            self.start_readings();
            self.publish();
            // After the regions are published: what waits for the first round reads them next.
            if !self.schedule.has_new() {
                self.end_round();
            }
        }
    }

    fn start_round(&mut self) {
        // A round whose new addresses are not all probed by now ends too, but is not complete.
        self.end_round();
        self.round = Round::Resolving;
        self.next_round = Instant::now() + jittered(self.poll_interval);
        let dns = Arc::clone(&self.dns);
        self.queries.spawn(async move { dns.resolve().await });
    }

    /// Ends the round, if new addresses were being probed. As long as any is to be probed at once, it may be a new one, with a
    /// peer that is not known yet.
    fn end_round(&mut self) {
        let Round::Probing { answered, complete } = self.round else {
            return;
        };
        let complete = complete && !self.schedule.has_new();
        self.round = Round::Over;
        let strangers = self.table.strangers();
        self.progress.send_modify(|progress| {
            progress.strangers = strangers;
            progress.rounds += 1;
            progress.answered |= answered;
            progress.complete |= complete;
        });
    }

    fn resolved(&mut self, answer: Result<DnsAnswer, JoinError>) {
        let DnsAnswer {
            addresses,
            error,
            is_unanswered,
        } = answer.unwrap_or_else(|error| {
            tracing::error!(%error, "the DNS query failed; the next round asks again");
            DnsAnswer {
                error: Some("the query failed".to_owned()),
                is_unanswered: true,
                ..DnsAnswer::default()
            }
        });
        self.log_dns(error.as_deref());
        let Effects { left_out, .. } = self.apply(TableEvent::Resolved {
            addresses,
            complete: error.is_none(),
        });
        if left_out > 0 && self.left_out == 0 {
            tracing::warn!("{}", left_out_warning(left_out));
        }
        self.left_out = left_out;
        self.round = Round::Probing {
            answered: !is_unanswered,
            complete: error.is_none() && left_out == 0,
        };
        self.progress.send_modify(|progress| {
            if error.is_none() {
                progress.last_success = Some(Instant::now());
            }
            progress.error = error;
        });
    }

    /// Logs `error` unless the last round had the same one.
    fn log_dns(&self, error: Option<&str>) {
        let progress = self.progress.borrow();
        match (error, progress.error.as_deref()) {
            (Some(error), last) if last != Some(error) => {
                tracing::warn!(%error, "DNS gave no whole answer; known peers keep serving");
            }
            (None, Some(_)) => tracing::info!("DNS answers again"),
            _ => {}
        }
    }

    fn start_probes(&mut self) {
        let now = Instant::now();
        while let Some(address) = self.schedule.start_next(now) {
            self.table.probe_begins(address);
            let prober = Arc::clone(&self.prober);
            self.probes
                .spawn(async move { (address, outcome(prober.probe(address)).await) });
        }
    }

    fn probed(&mut self, (address, outcome): Probed) {
        self.schedule.finish(address);
        // Before the table sees it: a stranger that bears this instance's id must not count as this instance.
        let outcome = outcome.and_then(|answer| self.table.check_id(answer));
        self.metrics
            .peers
            .probed(outcome.as_ref().ok().map(|answer| answer.rtt));
        let failure = outcome.as_ref().err().cloned();
        self.apply(TableEvent::Probed(address, outcome));
        match failure {
            Some(failure) => self.log_failure(address, &failure),
            None => self.want_functions(address),
        }
        // After the event, which counts the failures by which the pause grows.
        self.schedule_next(address);
        self.answer_waiters(address);
    }

    /// Logs why no peer is at `address`, once in a while.
    fn log_failure(&self, address: SocketAddr, reason: &ProbeFailure) {
        if self.table.is_peer(address) || self.logged.contains_key(&address) {
            return;
        }
        self.logged.insert(address, ());
        tracing::warn!(%address, %reason, "not a peer; it is asked again in later rounds");
    }

    /// Has the functions of the peer at `address` read, if they are to be.
    fn want_functions(&mut self, address: SocketAddr) {
        if self.table.unread(address).is_some() && self.wanted.insert(address) {
            self.unread.push_back(address);
        }
    }

    /// Apart from the probes, so that a list that takes long makes no peer suspect, and delays none.
    fn start_readings(&mut self) {
        while self.readings.len() < MAX_READINGS
            && let Some(address) = self.unread.pop_front()
        {
            let Some(peer) = self.table.unread(address).map(Arc::clone) else {
                self.wanted.remove(&address);
                continue;
            };
            // Another peer may have listed the same meanwhile: instances of one release do.
            if let Some(catalogue) = self.prober.known(&peer.listed) {
                let catalogue = Some(catalogue);
                let read = Peer {
                    catalogue,
                    ..Peer::clone(&peer)
                };
                self.read((peer, Ok(read)));
                continue;
            }
            let prober = Arc::clone(&self.prober);
            self.readings.spawn(async move {
                let read = outcome(prober.read(&peer)).await;
                (peer, read)
            });
        }
    }

    fn read(&mut self, (peer, read): Described) {
        let (address, wanted) = (peer.address, peer.listed.clone());
        self.wanted.remove(&address);
        let is_another = |now: &Arc<Peer>| now.boot != peer.boot;
        match read {
            Ok(peer) => {
                self.apply(TableEvent::Read { wanted, peer });
                // They may have changed again.
                self.want_functions(address);
            }
            // It was of a process that has ended since.
            Err(_) if self.table.unread(address).is_some_and(is_another) => {
                self.want_functions(address);
            }
            Err(_) if self.logged.contains_key(&address) => {}
            Err(reason) => {
                self.logged.insert(address, ());
                let (instance, region) = (&peer.instance, &peer.region);
                tracing::warn!(%instance, %region, %address, %reason, "its functions cannot be read; each probe tries again");
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Called(address, signal) => self.called(address, signal),
            Message::Probe(address, waiter) => self.probe_for(address, waiter),
            Message::Overview(asker) => self.askers.push(asker),
        }
    }

    /// Answers those who asked for every address.
    fn answer_askers(&mut self) {
        if self.askers.is_empty() {
            return;
        }
        // The asker may call a peer that it reads of next.
        self.publish();
        let overview = Arc::new(self.overview());
        for asker in self.askers.drain(..) {
            // The asker may have gone.
            let _ = asker.send(Arc::clone(&overview));
        }
    }

    fn called(&mut self, address: SocketAddr, signal: CallSignal) {
        let effects = self.apply(TableEvent::Called(address, signal));
        if !effects.changes.is_empty() || signal == CallSignal::Changed {
            self.schedule_next(address);
        }
        // An answer to a call says more than one to a probe, so that a busy cluster probes little.
        if signal == CallSignal::Answered
            && let Some(date) =
                self.table
                    .replaced_until(address, self.poll_interval, Instant::now())
        {
            self.schedule.postpone(address, date);
        }
    }

    /// Probes the peer at `address` for `waiter`, or answers at once: when no peer is there, when a probe of it has just
    /// ended, or when many wait already.
    fn probe_for(&mut self, address: SocketAddr, waiter: oneshot::Sender<PeerState>) {
        let waiters = self.waiters.get(&address).map_or(0, Vec::len);
        match self.table.state(address) {
            // A peer that hangs may have thousands of calls: they share one probe, and no list of them grows.
            Some(_) if waiters < MAX_WAITERS && !self.table.is_current(address, Instant::now()) => {
                self.waiters.entry(address).or_default().push(waiter);
                self.schedule.add_now(address, Class::Awaited);
            }
            state => {
                // The call reads next what is known of the peer.
                self.publish();
                // It may have been answered meanwhile.
                let _ = waiter.send(state.unwrap_or(PeerState::Suspect));
            }
        }
    }

    /// Sends the state of the peer at `address` to the calls that wait for it.
    fn answer_waiters(&mut self, address: SocketAddr) {
        let Some(waiters) = self.waiters.remove(&address) else {
            return;
        };
        // A call that learns that a peer is suspect chooses another one at once.
        self.publish();
        let state = self.table.state(address).unwrap_or(PeerState::Suspect);
        for waiter in waiters {
            // The call may have been answered meanwhile.
            let _ = waiter.send(state);
        }
    }

    fn overview(&self) -> Overview {
        let mut warnings = self.snapshot.duplicates();
        warnings.extend((self.left_out > 0).then(|| left_out_warning(self.left_out)));
        let addresses = Vec::from_iter(self.table.addresses());
        warnings.extend(stranger_warning(&addresses));
        Overview {
            addresses,
            progress: self.progress.borrow().clone(),
            warnings,
        }
    }

    /// Applies the rules to `event`, logs what is new and schedules the probes that follow from it.
    fn apply(&mut self, event: TableEvent) -> Effects {
        let namesakes = self.table.namesakes().clone();
        let effects = self.table.apply(event, Instant::now());
        if namesakes != *self.table.namesakes() {
            let regions = namesakes.values().chain(self.table.namesakes().values());
            self.changed.extend(regions.cloned());
        }
        for change in &effects.changes {
            if change.is_news {
                self.report(change);
            }
            self.changed.insert(change.peer.region.clone());
        }
        for address in &effects.removed {
            self.schedule.remove(*address);
        }
        for address in &effects.probe {
            self.schedule.add_now(*address, self.class(*address));
        }
        effects
    }

    /// Logs `change` and sends it to the listeners of events.
    fn report(&self, change: &TableChange) {
        let TableChange {
            peer,
            state,
            reason,
            ..
        } = change;
        let word = state.map_or_else(|| "gone".to_owned(), |state| state.to_string());
        let (instance, region, address) = (&peer.instance, &peer.region, peer.address);
        tracing::info!(%instance, %region, %address, state = %word, %reason, "peer changed");
        self.metrics.feed.peer_changed(&PeerChange {
            region,
            instance,
            address,
            state: *state,
            reason,
        });
    }

    /// Schedules the next probe of `address` by the state of what is there.
    fn schedule_next(&mut self, address: SocketAddr) {
        match self.table.pause(address, self.poll_interval) {
            Some(pause) => {
                let date = Instant::now() + jittered(pause);
                self.schedule.add(address, self.class(address), date);
            }
            None => self.schedule.remove(address),
        }
    }

    fn class(&self, address: SocketAddr) -> Class {
        match self.table.is_peer(address) {
            true => Class::Peer,
            false => Class::Other,
        }
    }

    /// Publishes the regions that changed. Once for all changes that came together: in a region of thousands of peers, a
    /// copy of it for each peer that joins would take time that grows with the square of their number.
    fn publish(&mut self) {
        for region in std::mem::take(&mut self.changed) {
            let peers = self.table.region(&region);
            self.snapshot.publish(&region, peers, &mut self.empty);
        }
    }
}

/// How `asking` a peer ends, also when it panics: it is asked again, and the calls that wait for it go on.
async fn outcome<T>(
    asking: impl Future<Output = Result<T, ProbeFailure>>,
) -> Result<T, ProbeFailure> {
    let panicked = |_| Err(ProbeFailure::NoAnswer("the probe panicked".to_owned()));
    let ended = AssertUnwindSafe(asking).catch_unwind().await;
    ended.unwrap_or_else(panicked)
}

fn left_out_warning(left_out: usize) -> String {
    format!(
        "{left_out} addresses of the DNS answer are left out: at most {MAX_WITHOUT_PEER} addresses at which no peer is \
         are asked; peers keep serving"
    )
}

/// A warning where something answers at `addresses` that is not of this cluster, such as an instance with another token.
fn stranger_warning(addresses: &[KnownAddress]) -> Option<String> {
    let mut strangers = addresses.iter().filter_map(|known| {
        let failure = known.probe_error.as_ref()?;
        failure.is_of_stranger().then_some((known.address, failure))
    });
    let (address, failure) = strangers.next()?;
    Some(match strangers.count() {
        0 => format!("{address} is not a peer: {failure}"),
        others => format!("{address} and {others} other addresses are not peers: {failure}"),
    })
}

/// `interval` ± 20 %, so that instances that start together do not probe in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// The shortest time between two probes of a class to addresses that were probed before: 80 a second, which take less
/// than a twentieth of a core, by `benches/scale.rs`.
const STRIDE: Duration = Duration::from_micros(12_500);
/// How far probes that are late may catch up at once.
const SLACK: Duration = Duration::from_millis(100);
const MAX_PROBES: usize = 32;
/// How many of these one class may have, so that some are left to the other one even if every probe hangs.
const MAX_PROBES_OF_A_CLASS: usize = 24;
/// How many probes for which calls wait are under way at once, besides the others.
const MAX_AWAITED_PROBES: usize = 64;

/// Why an address is probed; the most urgent first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    /// A peer is there, and calls wait for the outcome.
    Awaited,
    /// A peer is there.
    Peer,
    /// No peer is known to be there.
    Other,
}

impl Class {
    const ALL: [Self; 3] = [Self::Awaited, Self::Peer, Self::Other];
}

/// The place of an address in the queue of its class.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Due {
    /// At once, in the order of arrival.
    Now(u64),
    /// Not before this date.
    At(Instant),
}

/// When each address is probed next, and which ones are being probed.
///
/// There is a queue for each class, so that no class delays another: neither thousands of addresses at which nothing
/// answers the peers, nor thousands of peers the one for which calls wait. Each class has its own bound on probes under
/// way, so that one whose probes all hang does not stop the others. Within a queue, addresses to be probed now come
/// first, as fast as the bound allows: a cluster of thousands is found in one round. Those that are due follow, no faster
/// than one each [`STRIDE`], so that ten thousand peers cost little more than a thousand.
///
/// Why no `tokio_util::time::DelayQueue`: it would replace the ordered sets alone. The order of arrival, the place of
/// each address, the rate and the bounds would stay, and `now` could no longer be an argument, on which the tests rely.
#[derive(Debug)]
struct ProbeSchedule {
    /// The addresses of each class by their turn, in the order of [`Class::ALL`].
    queues: [BTreeSet<(Due, SocketAddr)>; 3],
    /// When the next address of each class that is due may be probed.
    not_before: [Instant; 3],
    places: HashMap<SocketAddr, (Class, Due)>,
    /// The probes under way, each with the place that its address had.
    under_way: HashMap<SocketAddr, (Class, Due)>,
    arrivals: u64,
}

impl ProbeSchedule {
    fn new(now: Instant) -> Self {
        Self {
            queues: Default::default(),
            not_before: [now; 3],
            places: HashMap::new(),
            under_way: HashMap::new(),
            arrivals: 0,
        }
    }

    /// Has `address` probed now, after those of its class that are to be probed now already. One that is being probed,
    /// or for which calls wait already, stays as it is.
    fn add_now(&mut self, address: SocketAddr, class: Class) {
        // A further reason of the same class gives it no better place.
        let is_placed = match self.places.get(&address) {
            Some((Class::Awaited, _)) => true,
            Some((placed, Due::Now(_))) => *placed == class,
            _ => false,
        };
        if is_placed || self.under_way.contains_key(&address) {
            return;
        }
        self.arrivals += 1;
        self.place(address, class, Due::Now(self.arrivals));
    }

    /// Has `address` probed at `date` instead of its former date. One that is being probed, or is to be probed now, stays as
    /// it is.
    fn add(&mut self, address: SocketAddr, class: Class, date: Instant) {
        let is_now = matches!(self.places.get(&address), Some((_, Due::Now(_))));
        if !is_now && !self.under_way.contains_key(&address) {
            self.place(address, class, Due::At(date));
        }
    }

    /// Postpones the probe of `address` to `date` if it is due earlier.
    fn postpone(&mut self, address: SocketAddr, date: Instant) {
        if let Some((class, Due::At(due))) = self.places.get(&address).copied()
            && due < date
        {
            self.add(address, class, date);
        }
    }

    /// Removes `address`; a probe of it that is under way goes on.
    fn remove(&mut self, address: SocketAddr) {
        if let Some((class, due)) = self.places.remove(&address) {
            self.queues[class as usize].remove(&(due, address));
        }
    }

    /// The address to probe at `now`, if there is one and there is room for its probe, which is under way until
    /// [`finish`](Self::finish).
    fn start_next(&mut self, now: Instant) -> Option<SocketAddr> {
        let mut classes = Class::ALL.into_iter();
        classes.find_map(|class| {
            if !self.has_room(class) {
                return None;
            }
            let (due, address) = self.pop(class, now)?;
            self.under_way.insert(address, (class, due));
            Some(address)
        })
    }

    fn finish(&mut self, address: SocketAddr) {
        self.under_way.remove(&address);
    }

    /// When [`start_next`](Self::start_next) finds an address, if nothing changes before.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let with_room = Class::ALL.into_iter().filter(|class| self.has_room(*class));
        let firsts = with_room.filter_map(|class| self.first(class, now));
        firsts.min()
    }

    /// When the first address of `class` may be probed; `None` where it has none.
    fn first(&self, class: Class, now: Instant) -> Option<Instant> {
        Some(match self.queues[class as usize].first()?.0 {
            Due::Now(_) => now,
            Due::At(date) => self.not_before[class as usize].max(date),
        })
    }

    /// Whether an address that is to be probed at once waits, or is being probed.
    fn has_new(&self) -> bool {
        let is_new = |due: &Due| matches!(due, Due::Now(_));
        let mut waiting = self.queues.iter().filter_map(BTreeSet::first);
        waiting.any(|(due, _)| is_new(due)) || self.under_way.values().any(|(_, due)| is_new(due))
    }

    fn has_room(&self, class: Class) -> bool {
        // Counted each time: at most 96 are under way, and a counter beside them could go wrong.
        let count = |class| {
            let probes = self.under_way.values();
            probes.filter(|(other, _)| *other == class).count()
        };
        match class {
            Class::Awaited => count(class) < MAX_AWAITED_PROBES,
            Class::Peer | Class::Other => {
                count(class) < MAX_PROBES_OF_A_CLASS
                    && count(Class::Peer) + count(Class::Other) < MAX_PROBES
            }
        }
    }

    /// Takes the first address of `class` that may be probed at `now`.
    fn pop(&mut self, class: Class, now: Instant) -> Option<(Due, SocketAddr)> {
        if self.first(class, now)? > now {
            return None;
        }
        let (due, address) = *self.queues[class as usize].first()?;
        if let Due::At(_) = due {
            let not_before = &mut self.not_before[class as usize];
            // A schedule that fell behind does not make up for all that it missed, or it would probe everything at once.
            let earliest = now.checked_sub(SLACK).unwrap_or(now);
            *not_before = earliest.max(*not_before) + STRIDE;
        }
        self.remove(address);
        Some((due, address))
    }

    fn place(&mut self, address: SocketAddr, class: Class, due: Due) {
        self.remove(address);
        self.places.insert(address, (class, due));
        self.queues[class as usize].insert((due, address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    /// The port of the next address of `class`, and whether it was to be probed at once.
    fn pop(schedule: &mut ProbeSchedule, class: Class, now: Instant) -> Option<(u16, bool)> {
        let (due, address) = schedule.pop(class, now)?;
        Some((address.port(), matches!(due, Due::Now(_))))
    }

    #[test]
    fn new_addresses_come_first_and_the_others_when_they_are_due() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut schedule = ProbeSchedule::new(start);
        schedule.add(address(1), Class::Peer, start + 2 * second);
        schedule.add(address(2), Class::Peer, start + second);
        schedule.add_now(address(3), Class::Peer);
        assert_eq!(schedule.wake(start), Some(start));
        assert_eq!(pop(&mut schedule, Class::Peer, start), Some((3, true)));
        assert_eq!(pop(&mut schedule, Class::Peer, start), None);
        let later = start + second;
        assert_eq!(schedule.wake(start), Some(later));
        assert_eq!(pop(&mut schedule, Class::Peer, later), Some((2, false)));
        schedule.postpone(address(1), start + 3 * second);
        schedule.postpone(address(1), start);
        schedule.postpone(address(9), start);
        assert_eq!(schedule.wake(start), Some(start + 3 * second));
        schedule.remove(address(1));
        assert_eq!(schedule.wake(start), None);
        // A date takes no turn away.
        schedule.add_now(address(4), Class::Peer);
        schedule.add(address(4), Class::Peer, later);
        assert_eq!(pop(&mut schedule, Class::Peer, start), Some((4, true)));
    }

    #[tokio::test]
    async fn a_probe_that_panics_has_failed() {
        let failure = outcome::<ProbeAnswer>(async { panic!("a bug") })
            .await
            .unwrap_err();
        let expected = ProbeFailure::NoAnswer("the probe panicked".to_owned());
        assert_eq!(failure, expected);
    }

    #[test]
    fn no_class_waits_for_another() {
        let start = Instant::now();
        let mut schedule = ProbeSchedule::new(start);
        for port in 10..1000 {
            schedule.add_now(address(port), Class::Other);
        }
        schedule.add(address(1), Class::Peer, start);
        schedule.add(address(2), Class::Peer, start);
        schedule.add_now(address(2), Class::Awaited);
        schedule.add(address(2), Class::Peer, start);
        assert_eq!(pop(&mut schedule, Class::Awaited, start), Some((2, true)));
        assert_eq!(pop(&mut schedule, Class::Peer, start), Some((1, false)));
        assert_eq!(pop(&mut schedule, Class::Peer, start), None);
        assert_eq!(pop(&mut schedule, Class::Other, start), Some((10, true)));
        schedule.add_now(address(12), Class::Other);
        schedule.remove(address(11));
        assert_eq!(pop(&mut schedule, Class::Other, start), Some((12, true)));
    }

    #[test]
    fn eighty_a_second_at_most() {
        let start = Instant::now();
        let mut schedule = ProbeSchedule::new(start);
        for port in 0..1000 {
            schedule.add(address(port), Class::Peer, start);
        }
        let probed = (0..=1000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            pop(&mut schedule, Class::Peer, now).is_some()
        });
        assert_eq!(probed.count(), 81);
        let late = start + Duration::from_secs(3);
        let at_once = std::iter::from_fn(|| pop(&mut schedule, Class::Peer, late)).count();
        assert_eq!(at_once, 9);
    }

    #[test]
    fn each_class_has_room_although_the_probes_of_the_others_hang() {
        let now = Instant::now();
        let mut schedule = ProbeSchedule::new(now);
        let mut start = |class: Class, first: u16| {
            (first..first + 100).for_each(|port| schedule.add_now(address(port), class));
            let started = std::iter::from_fn(|| schedule.start_next(now)).count();
            assert_eq!(schedule.wake(now), None);
            assert!(schedule.has_new());
            started
        };
        assert_eq!(start(Class::Other, 1000), MAX_PROBES_OF_A_CLASS);
        assert_eq!(start(Class::Peer, 2000), MAX_PROBES - MAX_PROBES_OF_A_CLASS);
        assert_eq!(start(Class::Awaited, 3000), MAX_AWAITED_PROBES);
        // What is being probed has no other turn until the probe has ended.
        schedule.add_now(address(1000), Class::Awaited);
        schedule.finish(address(3000));
        assert_eq!(schedule.start_next(now), Some(address(3064)));
        schedule.finish(address(1000));
        assert_eq!(schedule.start_next(now), Some(address(2008)));
    }
}
