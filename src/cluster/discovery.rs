//! The background poller: rounds of DNS and probes, and what calls meet meanwhile, all through the table's rules.
//! The only writer of the peer table. It starts with the process and never holds up start, shutdown or a call.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use moka::sync::Cache;
use rand::RngExt;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    peers::PeerTable,
    probe::Prober,
    resolve::{Answer, Dns},
    table::{Change, Encounter, Event, PeerState, Sighting, Table, Unseen},
};

/// How many probes are under way at once.
const CONCURRENT_PROBES: usize = 32;
/// How long an address that is no peer is not mentioned again in the log.
const STRANGER_SILENCE: Duration = Duration::from_secs(600);

/// What discovery is told or asked by the rest of the instance.
#[derive(Debug)]
pub(super) enum Message {
    /// A call met a peer.
    Met(SocketAddr, Encounter),
    /// Somebody wants to see the cluster.
    Overview(oneshot::Sender<Overview>),
}

/// How discovery fares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Rounds that were finished.
    pub rounds: u64,
    /// Whether a round with an answer from DNS was finished.
    pub found: bool,
    /// When DNS last gave a whole answer.
    pub last_success: Option<Instant>,
    /// What went wrong with the last queries; `None` when nothing did.
    pub error: Option<String>,
}

/// Every peer, and how discovery fares.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    /// Every peer.
    pub peers: Vec<PeerState>,
    /// How discovery fares.
    pub progress: Progress,
}

/// Something that was under way and is done.
enum Done {
    Resolved(Answer),
    Probed(SocketAddr, Result<Sighting, Unseen>),
}

/// The poller and its state.
pub(super) struct Discovery {
    pub(super) dns: Arc<Dns>,
    pub(super) prober: Arc<Prober>,
    pub(super) poll_interval: Duration,
    pub(super) table: Table,
    pub(super) published: PeerTable,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) work: Work,
}

/// What a round still has to do.
#[derive(Default)]
pub(super) struct Work {
    tasks: JoinSet<Done>,
    round_is_open: bool,
    asked: BTreeSet<SocketAddr>,
    queue: VecDeque<SocketAddr>,
}

impl Discovery {
    /// Polls until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let strangers = Cache::builder()
            .time_to_live(STRANGER_SILENCE)
            .max_capacity(10_000)
            .build();
        let mut next_round = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next_round), if !self.work.round_is_open => {
                    next_round = Instant::now() + jittered(self.poll_interval);
                    self.open_round();
                }
                Some(done) = self.work.tasks.join_next() => match done {
                    Ok(done) => self.done(done, &strangers),
                    Err(error) => tracing::error!(%error, "a discovery task failed; the next round asks again"),
                },
                Some(message) = self.inbox.recv() => self.hear(message),
            }
            self.probe_next();
            self.close_round();
        }
    }

    fn open_round(&mut self) {
        self.work.round_is_open = true;
        self.work.asked.clear();
        self.enqueue();
        let dns = Arc::clone(&self.dns);
        self.work
            .tasks
            .spawn(async move { Done::Resolved(dns.resolve().await) });
    }

    fn done(&mut self, done: Done, strangers: &Cache<SocketAddr, ()>) {
        match done {
            Done::Resolved(answer) => self.resolved(answer),
            Done::Probed(address, outcome) => {
                if let Err(Unseen::Stranger(reason)) = &outcome
                    && !strangers.contains_key(&address)
                {
                    strangers.insert(address, ());
                    tracing::warn!(%address, %reason, "not a peer; it is asked again in later rounds");
                }
                self.apply(Event::Probed(address, outcome));
            }
        }
    }

    fn resolved(&mut self, answer: Answer) {
        let Answer { resolved, error } = answer;
        let was = self.progress.borrow().error.clone();
        match &error {
            Some(error) if was.as_ref() != Some(error) => {
                tracing::warn!(%error, "DNS gave no whole answer; known peers keep serving");
            }
            None if was.is_some() => tracing::info!("DNS answers again"),
            _ => {}
        }
        self.progress.send_modify(|progress| {
            progress.last_success = if error.is_none() {
                Some(Instant::now())
            } else {
                progress.last_success
            };
            progress.error = error;
        });
        self.apply(Event::Resolved(resolved));
        self.enqueue();
    }

    /// Queues every address that this round has not asked yet: known ones do not wait for DNS.
    fn enqueue(&mut self) {
        let Work { asked, queue, .. } = &mut self.work;
        queue.extend(
            self.table
                .addresses()
                .into_iter()
                .filter(|address| asked.insert(*address)),
        );
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Met(address, encounter) => self.apply(Event::Met(address, encounter)),
            Message::Overview(asker) => {
                let peers = self.table.peers().cloned().collect();
                // An asker that went away needs no answer.
                let _ = asker.send(Overview {
                    peers,
                    progress: self.progress.borrow().clone(),
                });
            }
        }
    }

    fn probe_next(&mut self) {
        while self.work.tasks.len() < CONCURRENT_PROBES {
            let Some(address) = self.work.queue.pop_front() else {
                return;
            };
            let prober = Arc::clone(&self.prober);
            self.work
                .tasks
                .spawn(async move { Done::Probed(address, prober.probe(address).await) });
        }
    }

    fn close_round(&mut self) {
        if !self.work.round_is_open || !self.work.tasks.is_empty() {
            return;
        }
        self.work.round_is_open = false;
        self.progress.send_modify(|progress| {
            progress.rounds += 1;
            progress.found |= progress.last_success.is_some();
        });
    }

    fn apply(&mut self, event: Event) {
        let changes = self.table.apply(event, Instant::now());
        let regions: BTreeSet<_> = changes.iter().map(|change| &change.peer.region).collect();
        for region in regions {
            self.published.publish(region, self.table.region(region));
        }
        changes.iter().for_each(log);
    }
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
