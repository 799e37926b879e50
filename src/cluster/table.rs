//! The rules of discovery: what an event makes of the table of addresses. Pure: no clock, no network, no randomness,
//! so that each rule is tested by itself. Nothing here expires by time alone.
//!
//! | | in the last good DNS answer | not in it |
//! |---|---|---|
//! | answers the probe | peer, ready or draining | stays a peer |
//! | does not | stays, suspect | removed |

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::peers::{Peer, RegionPeers};
use crate::{name::InstanceId, region::Region};

/// Calls without an answer, in a row, that make a peer suspect.
const UNANSWERED: u32 = 3;

/// What the table knows of a peer's health.
#[derive(
    Clone, Copy, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[schema(as = PeerState)]
pub(crate) enum Health {
    /// It answers and takes calls.
    Ready,
    /// It does not answer: used only if the region has no ready instance.
    Suspect,
    /// It is stopping.
    Draining,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
        })
    }
}

/// Something that happened.
#[derive(Debug)]
pub(super) enum Event {
    /// DNS was asked.
    Resolved(Resolved),
    /// An address was asked who it is.
    Probed(SocketAddr, Result<Sighting, Unseen>),
    /// A call met a peer.
    Met(SocketAddr, Encounter),
}

/// What DNS answered.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The addresses in the answer.
    pub addresses: BTreeSet<SocketAddr>,
    /// Whether the answer is whole; else its addresses are added and none is missed.
    pub complete: bool,
}

/// An address answered as an instance of this cluster.
#[derive(Debug)]
pub(super) struct Sighting {
    /// Who answered.
    pub peer: Peer,
    /// Whether it is draining.
    pub draining: bool,
    /// How long the answer took.
    pub rtt: Duration,
}

/// An address did not answer as an instance of this cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Unseen {
    /// No answer, or none in time.
    Silent(String),
    /// An answer, of somebody else.
    Stranger(String),
}

/// How a call met a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Encounter {
    /// The peer answered.
    Answered,
    /// The peer answered that it is draining.
    Draining,
    /// No connection could be made.
    Unreachable,
    /// It connected, and no whole answer of ours came, or none in time.
    Unanswered,
}

/// A peer's way from one health to another, or into or out of the table.
#[derive(Debug)]
pub(super) struct Change {
    /// The peer.
    pub peer: Arc<Peer>,
    /// Its health from now on; `None` when it is no longer a peer.
    pub health: Option<Health>,
    /// Why.
    pub reason: String,
}

/// A peer and how it fares.
#[derive(Clone, Debug)]
pub(crate) struct PeerState {
    /// The peer.
    pub peer: Arc<Peer>,
    /// Its health.
    pub health: Health,
    /// When it last answered.
    pub last_seen: Instant,
    /// How long its last probe took.
    pub rtt: Duration,
    unanswered: u32,
}

#[derive(Debug)]
enum Occupant {
    /// Not asked yet, or no answer so far.
    Unknown,
    /// Not an instance of this cluster.
    Stranger,
    /// This instance.
    Myself,
    Peer(PeerState),
}

#[derive(Debug)]
struct Entry {
    /// Whether it is in the last good DNS answer.
    listed: bool,
    occupant: Occupant,
}

/// Every address that discovery knows, and who answers there.
#[derive(Debug)]
pub(super) struct Table {
    me: InstanceId,
    entries: BTreeMap<SocketAddr, Entry>,
}

impl Table {
    /// The empty table of the instance `me`.
    pub(super) fn new(me: InstanceId) -> Self {
        Self {
            me,
            entries: BTreeMap::new(),
        }
    }

    /// The addresses to probe, those that were never asked first.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let (unknown, known): (Vec<_>, Vec<_>) = self
            .entries
            .iter()
            .partition(|(_, entry)| matches!(entry.occupant, Occupant::Unknown));
        unknown
            .into_iter()
            .chain(known)
            .map(|(address, _)| *address)
            .collect()
    }

    /// Every peer.
    pub(super) fn peers(&self) -> impl Iterator<Item = &PeerState> {
        self.entries
            .values()
            .filter_map(|entry| match &entry.occupant {
                Occupant::Peer(state) => Some(state),
                Occupant::Unknown | Occupant::Stranger | Occupant::Myself => None,
            })
    }

    /// The peers of `region` as calls read them, each instance once although it may have two addresses.
    pub(super) fn region(&self, region: &Region) -> RegionPeers {
        let mut found = RegionPeers::default();
        let mut seen = BTreeSet::new();
        let (ready, others): (Vec<_>, Vec<_>) = self
            .peers()
            .filter(|state| state.peer.region == *region)
            .partition(|state| state.health == Health::Ready);
        for state in ready.into_iter().chain(others) {
            found.last_seen = found.last_seen.max(Some(state.last_seen));
            if !seen.insert(&state.peer.instance) {
                continue;
            }
            let group = if state.health == Health::Ready {
                &mut found.ready
            } else {
                &mut found.others
            };
            group.push(Arc::clone(&state.peer));
        }
        found
    }

    /// What `event`, seen at `now`, makes of the table; the changes are for the log and for whoever routes.
    pub(super) fn apply(&mut self, event: Event, now: Instant) -> Vec<Change> {
        match event {
            Event::Resolved(resolved) => self.resolved(resolved),
            Event::Probed(address, Ok(sighting)) => self.sighted(address, sighting, now),
            Event::Probed(address, Err(unseen)) => self.unseen(address, unseen),
            Event::Met(address, encounter) => self.met(address, encounter, now),
        }
    }

    fn resolved(&mut self, resolved: Resolved) -> Vec<Change> {
        if resolved.complete {
            for entry in self.entries.values_mut() {
                entry.listed = false;
            }
        }
        for address in resolved.addresses {
            let new = Entry {
                listed: true,
                occupant: Occupant::Unknown,
            };
            self.entries.entry(address).or_insert(new).listed = true;
        }
        self.entries
            .retain(|_, entry| entry.listed || matches!(entry.occupant, Occupant::Peer(_)));
        Vec::new()
    }

    fn sighted(&mut self, address: SocketAddr, sighting: Sighting, now: Instant) -> Vec<Change> {
        let Some(entry) = self.entries.get_mut(&address) else {
            return Vec::new();
        };
        if sighting.peer.instance == self.me {
            return replace(
                entry,
                Occupant::Myself,
                "this instance itself answers there",
            );
        }
        let health = if sighting.draining {
            Health::Draining
        } else {
            Health::Ready
        };
        let was = match &entry.occupant {
            Occupant::Peer(state) => Some((Arc::clone(&state.peer), state.health)),
            Occupant::Unknown | Occupant::Stranger | Occupant::Myself => None,
        };
        let (peer, changes) = match was {
            Some((peer, was)) if is_same(&peer, &sighting.peer) => {
                let changed =
                    (was != health).then(|| change(&peer, Some(health), "it answered the probe"));
                (peer, changed.into_iter().collect())
            }
            was => {
                let peer = Arc::new(sighting.peer);
                let gone = was
                    .filter(|(old, _)| old.instance != peer.instance || old.region != peer.region);
                let mut changes: Vec<Change> = Vec::new();
                changes.extend(
                    gone.map(|(old, _)| change(&old, None, "another instance answers there")),
                );
                changes.push(change(&peer, Some(health), "it answered the probe"));
                (peer, changes)
            }
        };
        entry.occupant = Occupant::Peer(PeerState {
            peer,
            health,
            last_seen: now,
            rtt: sighting.rtt,
            unanswered: 0,
        });
        changes
    }

    fn unseen(&mut self, address: SocketAddr, unseen: Unseen) -> Vec<Change> {
        let btree_map::Entry::Occupied(mut slot) = self.entries.entry(address) else {
            return Vec::new();
        };
        let entry = slot.get_mut();
        match unseen {
            Unseen::Silent(reason) if entry.listed => suspect(entry, &reason),
            Unseen::Silent(reason) => replace(&mut slot.remove(), Occupant::Unknown, &reason),
            Unseen::Stranger(reason) if entry.listed => replace(entry, Occupant::Stranger, &reason),
            Unseen::Stranger(reason) => replace(&mut slot.remove(), Occupant::Stranger, &reason),
        }
    }

    fn met(&mut self, address: SocketAddr, encounter: Encounter, now: Instant) -> Vec<Change> {
        let Some(entry) = self.entries.get_mut(&address) else {
            return Vec::new();
        };
        let Occupant::Peer(state) = &mut entry.occupant else {
            return Vec::new();
        };
        match encounter {
            Encounter::Answered | Encounter::Draining => {
                state.last_seen = now;
                state.unanswered = 0;
            }
            Encounter::Unanswered => state.unanswered += 1,
            Encounter::Unreachable => {}
        }
        match encounter {
            Encounter::Answered if state.health == Health::Suspect => {
                state.health = Health::Ready;
                vec![change(
                    &state.peer,
                    Some(Health::Ready),
                    "it answered a call",
                )]
            }
            Encounter::Draining if state.health != Health::Draining => {
                state.health = Health::Draining;
                vec![change(
                    &state.peer,
                    Some(Health::Draining),
                    "it said so when it answered a call",
                )]
            }
            Encounter::Unreachable => suspect(entry, "a call could not connect"),
            Encounter::Unanswered if state.unanswered >= UNANSWERED => {
                suspect(entry, "three calls in a row had no answer")
            }
            Encounter::Answered | Encounter::Draining | Encounter::Unanswered => Vec::new(),
        }
    }
}

/// Whether nothing about a peer changed that calls need to know.
fn is_same(old: &Peer, new: &Peer) -> bool {
    let hash = |peer: &Peer| {
        peer.catalogue
            .as_ref()
            .map(|catalogue| catalogue.hash().clone())
    };
    old.instance == new.instance
        && old.region == new.region
        && old.release == new.release
        && (new.catalogue.is_none() || hash(old) == hash(new))
}

fn suspect(entry: &mut Entry, reason: &str) -> Vec<Change> {
    match &mut entry.occupant {
        Occupant::Peer(state) if state.health != Health::Suspect => {
            state.health = Health::Suspect;
            vec![change(&state.peer, Some(Health::Suspect), reason)]
        }
        Occupant::Unknown | Occupant::Stranger | Occupant::Myself | Occupant::Peer(_) => Vec::new(),
    }
}

/// Puts somebody who is no peer in the entry's place.
fn replace(entry: &mut Entry, occupant: Occupant, reason: &str) -> Vec<Change> {
    match std::mem::replace(&mut entry.occupant, occupant) {
        Occupant::Peer(state) => vec![change(&state.peer, None, reason)],
        Occupant::Unknown | Occupant::Stranger | Occupant::Myself => Vec::new(),
    }
}

fn change(peer: &Arc<Peer>, health: Option<Health>, reason: &str) -> Change {
    Change {
        peer: Arc::clone(peer),
        health,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests;
