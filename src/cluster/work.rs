//! What discovery has under way, and what comes next: probes and queries as tasks, the addresses to ask by time, and how
//! far the round is. What to make of it is discovery's affair.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use moka::sync::Cache;
use tokio::{sync::oneshot, task::JoinSet, time::Instant};

use super::{
    agenda::{Agenda, Class},
    event::{Sighting, Unseen},
    resolve::Answer,
    state::Health,
};
use crate::region::Region;

/// How long an address that is no peer is not mentioned again in the log.
const STRANGER_SILENCE: Duration = Duration::from_secs(600);

/// How many probes are under way at once.
const PROBES: usize = 32;
/// How many of these one class may have, so that the rest is left to the other whatever hangs.
const PROBES_OF_A_CLASS: usize = 24;
/// How many probes for which calls wait are under way at once, besides the others.
const AWAITED_PROBES: usize = 64;
/// How many may wait for the outcome of one probe; further ones are told what is known already.
const WAITERS: usize = 16;

/// What is under way, and what comes next.
pub(super) struct Work {
    pub(super) tasks: JoinSet<Done>,
    pub(super) agenda: Agenda,
    /// The addresses that are being asked.
    pub(super) probes: HashMap<SocketAddr, Probe>,
    /// Who waits to know how the peer at an address is, after the next probe of it.
    waiters: HashMap<SocketAddr, Vec<oneshot::Sender<Health>>>,
    /// The regions that changed since calls were last shown them.
    pub(super) changed: BTreeSet<Region>,
    pub(super) round: Round,
    pub(super) next_round: Instant,
    /// Whether DNS ever answered for every name, and whether an answer was ever whole.
    pub(super) answered: bool,
    pub(super) whole: bool,
    /// How many addresses of the last answer there was no room for.
    pub(super) left_out: usize,
    /// Addresses that are no peers, mentioned in the log a short while ago.
    pub(super) mentioned: Cache<SocketAddr, ()>,
}

/// A probe that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// Why the address is asked.
    pub(super) class: Class,
    /// Whether the round waits for it.
    pub(super) is_met: bool,
}

/// How far the round is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Round {
    /// It is over.
    Over,
    /// DNS is being asked.
    Resolving,
    /// New addresses are being asked who they are.
    Meeting,
}

impl Work {
    /// Nothing under way, and a round to begin at once.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            tasks: JoinSet::new(),
            agenda: Agenda::new(now),
            probes: HashMap::new(),
            waiters: HashMap::new(),
            changed: BTreeSet::new(),
            round: Round::Over,
            next_round: now,
            answered: false,
            whole: false,
            left_out: 0,
            mentioned: Cache::builder()
                .time_to_live(STRANGER_SILENCE)
                .max_capacity(10_000)
                .build(),
        }
    }

    /// Whether one more probe of `class` may be under way.
    pub(super) fn has_room(&self, class: Class) -> bool {
        let of = |class| {
            self.probes
                .values()
                .filter(|probe| probe.class == class)
                .count()
        };
        match class {
            Class::Awaited => of(class) < AWAITED_PROBES,
            Class::Peer | Class::Other => {
                of(class) < PROBES_OF_A_CLASS && of(Class::Peer) + of(Class::Other) < PROBES
            }
        }
    }

    /// When there is an address to ask and room to ask it, if nothing changes.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let classes = Class::ALL.into_iter().filter(|class| self.has_room(*class));
        classes
            .filter_map(|class| self.agenda.wake(class, now))
            .min()
    }

    /// Lets `waiter` wait for the next outcome of a probe of `address`, a peer; gives it back when too many do.
    pub(super) fn wait(
        &mut self,
        address: SocketAddr,
        waiter: oneshot::Sender<Health>,
    ) -> Result<(), oneshot::Sender<Health>> {
        let waiters = self.waiters.entry(address).or_default();
        if waiters.len() >= WAITERS {
            return Err(waiter);
        }
        waiters.push(waiter);
        if !self.probes.contains_key(&address) {
            self.agenda.at_once(address, Class::Awaited);
        }
        Ok(())
    }

    /// Who waited for the outcome of a probe of `address`.
    pub(super) fn waiters(&mut self, address: SocketAddr) -> Vec<oneshot::Sender<Health>> {
        self.waiters.remove(&address).unwrap_or_default()
    }

    /// Whether an address of the round was not asked yet, or has not answered.
    pub(super) fn still_meets(&self) -> bool {
        self.agenda.has_urgent() || self.probes.values().any(|probe| probe.is_met)
    }
}

/// Something that was under way and is done.
pub(super) enum Done {
    /// DNS was asked.
    Resolved(Answer),
    /// An address was asked who it is.
    Probed(SocketAddr, Result<Sighting, Unseen>),
}
