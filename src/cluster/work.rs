//! What discovery has under way, and what comes next: probes and queries as tasks, the addresses to ask by time, and how
//! far the round is. What to make of it is discovery's affair.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use moka::sync::Cache;
use tokio::{task::JoinSet, time::Instant};

use super::{
    agenda::Agenda,
    event::{Sighting, Unseen},
    resolve::Answer,
};
use crate::region::Region;

/// How long an address that is no peer is not mentioned again in the log.
const STRANGER_SILENCE: Duration = Duration::from_secs(600);

/// What is under way, and what comes next.
pub(super) struct Work {
    pub(super) tasks: JoinSet<Done>,
    pub(super) agenda: Agenda,
    /// The addresses that are being asked, and whether the round waits for them.
    pub(super) asked: HashMap<SocketAddr, bool>,
    /// The regions that changed since calls were last shown them.
    pub(super) changed: BTreeSet<Region>,
    pub(super) round: Round,
    pub(super) next_round: Instant,
    /// Whether DNS ever gave an address.
    pub(super) found: bool,
    /// Addresses that are no peers, mentioned in the log a short while ago.
    pub(super) mentioned: Cache<SocketAddr, ()>,
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
            asked: HashMap::new(),
            changed: BTreeSet::new(),
            round: Round::Over,
            next_round: now,
            found: false,
            mentioned: Cache::builder()
                .time_to_live(STRANGER_SILENCE)
                .max_capacity(10_000)
                .build(),
        }
    }

    /// Whether an address of the round was not asked yet, or has not answered.
    pub(super) fn still_meets(&self) -> bool {
        self.agenda.has_urgent() || self.asked.values().any(|is_awaited| *is_awaited)
    }
}

/// Something that was under way and is done.
pub(super) enum Done {
    /// DNS was asked.
    Resolved(Answer),
    /// An address was asked who it is.
    Probed(SocketAddr, Result<Sighting, Unseen>),
}
