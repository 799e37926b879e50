//! The background poller: rounds of DNS and probes, and what calls meet meanwhile, all through the table's rules.
//! The only writer of the peer table. It starts with the process and never holds up start, shutdown or a call.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rand::RngExt;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinError,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    agenda::Class,
    event::{Encounter, Event},
    overview::{Overview, Progress},
    peers::Publisher,
    probe::Prober,
    resolve::{Answer, Dns},
    state::{Change, Effects, Health},
    table::{MAX_WITHOUT_PEER, NAMESAKES, Table},
    work::{Done, Probe, Round, Work},
};
use crate::metrics::DiscoveryMetrics;

/// What discovery is told or asked by the rest of the instance.
#[derive(Debug)]
pub(super) enum Message {
    /// A call met a peer.
    Met(SocketAddr, Encounter),
    /// Calls wait for the peer at an address, which is silent: how is it?
    Ask(SocketAddr, oneshot::Sender<Health>),
    /// Somebody wants to see the cluster.
    Overview(oneshot::Sender<Overview>),
}

/// The poller and its state.
pub(super) struct Discovery {
    pub(super) dns: Arc<Dns>,
    pub(super) prober: Arc<Prober>,
    pub(super) poll_interval: Duration,
    pub(super) table: Table,
    pub(super) published: Publisher,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) metrics: Arc<DiscoveryMetrics>,
    pub(super) work: Work,
}

impl Discovery {
    /// Polls until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let now = Instant::now();
            let wake = self.work.wake(now);
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(self.work.next_round), if self.work.round != Round::Resolving => {
                    self.open_round();
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => self.ask(),
                Some(done) = self.work.tasks.join_next() => {
                    self.done(done);
                    while let Some(done) = self.work.tasks.try_join_next() {
                        self.done(done);
                    }
                }
                Some(message) = self.inbox.recv() => {
                    self.hear(message);
                    for _ in 0..self.inbox.len() {
                        self.inbox.try_recv().into_iter().for_each(|message| self.hear(message));
                    }
                }
            }
            self.publish();
            self.close_round();
        }
    }

    fn open_round(&mut self) {
        if self.work.round == Round::Meeting {
            self.finish_round();
        }
        self.work.next_round = Instant::now() + jittered(self.poll_interval);
        self.work.round = Round::Resolving;
        let dns = Arc::clone(&self.dns);
        self.work
            .tasks
            .spawn(async move { Done::Resolved(dns.resolve().await) });
    }

    /// A round is over when all that DNS brought has been asked once, or when the next one begins.
    fn close_round(&mut self) {
        if self.work.round == Round::Meeting && !self.work.still_meets() {
            self.finish_round();
        }
    }

    fn finish_round(&mut self) {
        self.work.round = Round::Over;
        let (answered, whole) = (self.work.answered, self.work.whole);
        self.progress.send_modify(|progress| {
            progress.rounds += 1;
            progress.answered |= answered;
            progress.whole |= whole;
        });
    }

    /// Asks as many addresses as may be asked now.
    fn ask(&mut self) {
        let now = Instant::now();
        for class in Class::ALL {
            while self.work.has_room(class) {
                let Some((address, is_met)) = self.work.agenda.next(class, now) else {
                    break;
                };
                self.work.probes.insert(address, Probe { class, is_met });
                let prober = Arc::clone(&self.prober);
                self.work
                    .tasks
                    .spawn(async move { Done::Probed(address, prober.probe(address).await) });
            }
        }
    }

    fn done(&mut self, done: Result<Done, JoinError>) {
        match done {
            Err(error) => {
                tracing::error!(%error, "a discovery task failed; the next round asks again");
            }
            Ok(Done::Resolved(answer)) => self.resolved(answer),
            Ok(Done::Probed(address, outcome)) => {
                self.work.probes.remove(&address);
                let outcome = outcome.and_then(|sighting| self.table.recognise(sighting));
                let sighting = outcome.as_ref().ok();
                self.metrics.probed(sighting.map(|sighting| sighting.rtt));
                let reason = outcome.as_ref().err().map(ToString::to_string);
                self.apply(Event::Probed(address, outcome));
                self.mention(address, reason);
                self.plan(address);
                self.answer(address);
            }
        }
    }

    /// Says how the peer at `address` is to those who wait for it.
    fn answer(&mut self, address: SocketAddr) {
        let waiters = self.work.waiters(address);
        if waiters.is_empty() {
            return;
        }
        // Who is told that a peer is suspect chooses another at once.
        self.publish();
        let health = self.table.health(address).unwrap_or(Health::Suspect);
        for waiter in waiters {
            // A call that was answered meanwhile needs no verdict.
            let _ = waiter.send(health);
        }
    }

    fn resolved(&mut self, answer: Answer) {
        self.work.round = Round::Meeting;
        let Answer {
            resolved,
            error,
            is_answered,
        } = answer;
        let was = self.progress.borrow().error.clone();
        match &error {
            Some(error) if was.as_ref() != Some(error) => {
                tracing::warn!(%error, "DNS gave no whole answer; known peers keep serving");
            }
            None if was.is_some() => tracing::info!("DNS answers again"),
            _ => {}
        }
        let Effects { left_out, .. } = self.apply(Event::Resolved(resolved));
        if left_out > 0 && self.work.left_out == 0 {
            tracing::warn!("{}", room_for_all_but(left_out));
        }
        self.work.left_out = left_out;
        self.work.answered |= is_answered;
        self.work.whole |= error.is_none() && left_out == 0;
        self.progress.send_modify(|progress| {
            if error.is_none() {
                progress.last_success = Some(Instant::now());
            }
            progress.error = error;
        });
    }

    /// An address that is no peer is worth a line, but not in every round.
    fn mention(&self, address: SocketAddr, reason: Option<String>) {
        let Some(reason) = reason else { return };
        let mentioned = &self.work.mentioned;
        if self.table.is_peer(address) || mentioned.contains_key(&address) {
            return;
        }
        mentioned.insert(address, ());
        tracing::warn!(%address, %reason, "not a peer; it is asked again in later rounds");
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Met(address, encounter) => {
                let effects = self.apply(Event::Met(address, encounter));
                if !effects.changes.is_empty() {
                    self.plan(address);
                }
                self.vouch(address, encounter);
            }
            Message::Ask(address, waiter) => self.wait(address, waiter),
            Message::Overview(asker) => {
                // Who reads of a peer may call it next.
                self.publish();
                let seen = self.table.seen().collect();
                let mut progress = self.progress.borrow().clone();
                let left_out = self.work.left_out;
                progress.warnings = self.table.namesakes();
                progress
                    .warnings
                    .extend((left_out > 0).then(|| room_for_all_but(left_out)));
                // An asker that went away needs no answer.
                let _ = asker.send(Overview { seen, progress });
            }
        }
    }

    /// Probes the peer at `address` for `waiter`, unless that was done a moment ago.
    fn wait(&mut self, address: SocketAddr, waiter: oneshot::Sender<Health>) {
        let known = self.table.health(address);
        let is_news = known.is_some() && !self.table.was_just_asked(address, Instant::now());
        let waiter = match is_news {
            true => self.work.wait(address, waiter).err(),
            false => Some(waiter),
        };
        if let Some(waiter) = waiter {
            // As in `answer`.
            let _ = waiter.send(known.unwrap_or(Health::Suspect));
        }
    }

    /// Decides when `address` is asked again.
    fn plan(&mut self, address: SocketAddr) {
        if self.work.probes.contains_key(&address) {
            return;
        }
        let class = self.class(address);
        match self.table.pause(address, self.poll_interval) {
            Some(pause) => {
                let date = Instant::now() + jittered(pause);
                self.work.agenda.set(address, class, date);
            }
            None => self.work.agenda.forget(address),
        }
    }

    fn class(&self, address: SocketAddr) -> Class {
        match self.table.is_peer(address) {
            true => Class::Peer,
            false => Class::Other,
        }
    }

    /// A call that was answered spares a probe.
    fn vouch(&mut self, address: SocketAddr, encounter: Encounter) {
        if encounter != Encounter::Answered {
            return;
        }
        let now = Instant::now();
        if let Some(date) = self.table.vouched_until(address, self.poll_interval, now) {
            self.work.agenda.put_off(address, date);
        }
    }

    /// Shows calls what changed. All that came meanwhile is shown at once: in a region of thousands, a copy for each peer
    /// that joins would take the time of their square.
    fn publish(&mut self) {
        for region in std::mem::take(&mut self.work.changed) {
            for instance in self.published.publish(&region, self.table.region(&region)) {
                tracing::warn!(%instance, %region, "{NAMESAKES}");
            }
        }
    }

    /// Applies the rules.
    fn apply(&mut self, event: Event) -> Effects {
        let effects = self.table.apply(event, Instant::now());
        let changes = &effects.changes;
        let regions = changes.iter().map(|change| change.peer.region.clone());
        self.work.changed.extend(regions);
        changes.iter().for_each(log);
        for address in &effects.gone {
            self.work.agenda.forget(*address);
        }
        for address in effects.ask.iter().copied() {
            if !self.work.probes.contains_key(&address) {
                let class = self.class(address);
                self.work.agenda.at_once(address, class);
            }
        }
        effects
    }
}

fn room_for_all_but(left_out: usize) -> String {
    format!(
        "{left_out} addresses of the DNS answer are left out: at most {MAX_WITHOUT_PEER} addresses at which no peer is \
         are asked; peers keep serving"
    )
}

fn log(change: &Change) {
    let Change {
        peer,
        health,
        reason,
    } = change;
    let state = health.map_or_else(|| "gone".to_owned(), |health| health.to_string());
    let (instance, region, address) = (&peer.instance, &peer.region, &peer.address);
    tracing::info!(%instance, %region, %address, %state, %reason, "peer changed");
}

/// `interval` ± 20 %, so that instances which start together do not stay in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.8..1.2))
}
