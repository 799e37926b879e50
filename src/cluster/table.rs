//! The rules of discovery: what an event makes of the table of addresses. Pure: no clock, no network, no randomness,
//! so that each rule is tested by itself. Nothing here expires by time alone.
//!
//! | | in the last good DNS answer | not in it |
//! |---|---|---|
//! | answers the probe | peer, ready or draining | stays a peer |
//! | does not | stays, suspect, and is asked less and less often | removed |

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    entry::{Entry, Occupant, is_same},
    event::{Encounter, Event, Resolved, Sighting, Unseen},
    overview::{Asked, Seen},
    peers::RegionPeers,
    state::{Change, Effects, Health, PeerState, Silence},
};
use crate::{
    name::{BootId, InstanceId},
    region::Region,
};

/// The pause before a suspect peer is asked again, at first and at most; it doubles with each probe that fails.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the outcome of a probe stands for a new one when calls ask for it.
const JUST: Duration = Duration::from_millis(250);
/// For how many poll intervals answered calls may stand for probes, which alone tell of a new catalogue.
const VOUCHED: u32 = 12;

/// What is wrong with two processes under one id, and what comes of it.
pub(super) const NAMESAKES: &str = "two processes say that they are this instance: neither gets calls with a key, or that \
     name the instance, until each has an id of its own (FLY_MACHINE_ID)";
/// How many instances of which there are two are told of one by one.
const MAX_NAMESAKES: usize = 16;

/// How many addresses without a peer are kept and asked: more than the 10,000 peers that are to be found in one round,
/// of which none is known before it. Further ones of an answer of DNS are left out, the highest first,
/// until there is room: an address that is kept stays as long as DNS lists it.
pub(super) const MAX_WITHOUT_PEER: usize = 16_384;

/// Every address that discovery knows, and who answers there.
#[derive(Debug)]
pub(super) struct Table {
    me: InstanceId,
    boot: BootId,
    entries: BTreeMap<SocketAddr, Entry>,
}

impl Table {
    /// The empty table of the instance `me` in its run `boot`.
    pub(super) fn new(me: InstanceId, boot: BootId) -> Self {
        Self {
            me,
            boot,
            entries: BTreeMap::new(),
        }
    }

    /// How long to wait before `address` is asked again, when others are asked every `interval`; `None` for an address
    /// that is not in the table.
    pub(super) fn pause(&self, address: SocketAddr, interval: Duration) -> Option<Duration> {
        let entry = self.entries.get(&address)?;
        Some(match &entry.occupant {
            Occupant::Peer(state) if state.health == Health::Suspect => backoff(state.unseen),
            _ => interval,
        })
    }

    /// Until when calls that `address` answers stand for probes, when others are asked every `interval`.
    pub(super) fn vouched_until(
        &self,
        address: SocketAddr,
        interval: Duration,
        now: Instant,
    ) -> Option<Instant> {
        match &self.entries.get(&address)?.occupant {
            Occupant::Peer(state) if state.health != Health::Suspect => {
                Some((now + interval).min(state.probed + interval * VOUCHED))
            }
            _ => None,
        }
    }

    /// How the peer at `address` is; `None` when none is there.
    pub(super) fn health(&self, address: SocketAddr) -> Option<Health> {
        match &self.entries.get(&address)?.occupant {
            Occupant::Peer(state) => Some(state.health),
            Occupant::Unknown | Occupant::Stranger | Occupant::Myself => None,
        }
    }

    /// Whether a probe of `address` ended less than a quarter of a second before `now`.
    pub(super) fn was_just_asked(&self, address: SocketAddr, now: Instant) -> bool {
        let asked = self
            .entries
            .get(&address)
            .and_then(|entry| entry.asked.as_ref());
        asked.is_some_and(|asked| now.saturating_duration_since(asked.at) < JUST)
    }

    /// Whether a peer is at `address`.
    pub(super) fn is_peer(&self, address: SocketAddr) -> bool {
        self.health(address).is_some()
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

    /// Every address but this instance's own.
    pub(super) fn seen(&self) -> impl Iterator<Item = Seen> {
        self.entries.iter().filter_map(|(address, entry)| {
            let peer = match &entry.occupant {
                Occupant::Myself => return None,
                Occupant::Peer(state) => Some(state.clone()),
                Occupant::Unknown | Occupant::Stranger => None,
            };
            Some(Seen {
                address: *address,
                listed: entry.listed,
                asked: entry.asked.clone(),
                peer,
            })
        })
    }

    /// Who answered, unless it is another process that claims to be this instance: that one is no peer.
    pub(super) fn recognise(&self, sighting: Sighting) -> Result<Sighting, Unseen> {
        let peer = &sighting.peer;
        let is_namesake =
            peer.instance == self.me && peer.boot.as_ref().is_some_and(|boot| *boot != self.boot);
        if is_namesake {
            return Err(Unseen::Stranger(format!(
                "another process says that it is this instance, {}: give each an id of its own (FLY_MACHINE_ID)",
                self.me
            )));
        }
        Ok(sighting)
    }

    /// A line for each instance of which there are two.
    pub(super) fn namesakes(&self) -> Vec<String> {
        let regions: BTreeSet<_> = self.peers().map(|state| &state.peer.region).collect();
        let namesakes = regions.into_iter().flat_map(|region| {
            let contested = self.region(region).contested.into_iter();
            contested
                .map(move |instance| format!("instance {instance} in region {region}: {NAMESAKES}"))
        });
        namesakes.take(MAX_NAMESAKES).collect()
    }

    /// The peers of `region` as calls read them, each process once although it may have two addresses.
    pub(super) fn region(&self, region: &Region) -> RegionPeers {
        let mut found = RegionPeers::default();
        let mut seen: BTreeMap<&InstanceId, Vec<Option<&BootId>>> = BTreeMap::new();
        let (ready, others): (Vec<_>, Vec<_>) = self
            .peers()
            .filter(|state| state.peer.region == *region)
            .partition(|state| state.health == Health::Ready);
        for state in ready.into_iter().chain(others) {
            found.last_seen = found.last_seen.max(Some(state.last_seen));
            let boot = state.peer.boot.as_ref();
            let boots = seen.entry(&state.peer.instance).or_default();
            let is_another = !boots.contains(&boot) && !boots.contains(&None) && boot.is_some();
            match boots.is_empty() {
                true => {}
                // Of one that answers and one that does not, calls choose the former.
                false if is_another && state.health == Health::Ready => {
                    found.contested.insert(state.peer.instance.clone());
                }
                false => continue,
            }
            boots.push(boot);
            let group = if state.health == Health::Ready {
                &mut found.ready
            } else {
                &mut found.others
            };
            group.push(Arc::clone(&state.peer));
            match (state.health, state.silence) {
                (Health::Suspect, Silence::Refusing) => found.refusing.push(state.peer.address),
                (Health::Suspect, Silence::Hanging) => found.hanging.push(state.peer.address),
                _ => {}
            }
        }
        found
    }

    /// What `event`, seen at `now`, makes of the table.
    pub(super) fn apply(&mut self, event: Event, now: Instant) -> Effects {
        self.note(&event, now);
        let (changes, ask) = match event {
            Event::Resolved(resolved) => return self.resolved(&resolved),
            Event::Probed(address, Ok(sighting)) => {
                (self.sighted(address, sighting, now), Vec::new())
            }
            Event::Probed(address, Err(unseen)) => (self.unseen(address, unseen), Vec::new()),
            Event::Met(address, encounter) => {
                let changes = self.met(address, encounter, now);
                let is_news = match encounter {
                    Encounter::Elsewhere | Encounter::Unreachable => !changes.is_empty(),
                    Encounter::Unanswered => {
                        self.is_peer(address) && !self.was_just_asked(address, now)
                    }
                    Encounter::Answered | Encounter::Draining => false,
                };
                (changes, is_news.then_some(address).into_iter().collect())
            }
        };
        Effects {
            changes,
            ask,
            ..Effects::default()
        }
    }

    /// Notes what a probe found, for whoever wants to know why.
    fn note(&mut self, event: &Event, now: Instant) {
        let Event::Probed(address, outcome) = event else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(address) {
            let error = outcome.as_ref().err().map(ToString::to_string);
            entry.asked = Some(Asked { at: now, error });
        }
    }

    /// Asks the addresses that are new, and those that left the answer: whether they still answer decides if they stay.
    fn resolved(&mut self, resolved: &Resolved) -> Effects {
        let mut effects = Effects::default();
        if resolved.complete {
            for (address, entry) in &mut self.entries {
                if entry.listed && !resolved.addresses.contains(address) {
                    entry.listed = false;
                    effects.ask.push(*address);
                }
            }
        }
        let is_peer = |entry: &Entry| matches!(entry.occupant, Occupant::Peer(_));
        self.forget(&mut effects, |_, entry| entry.listed || is_peer(entry));
        let is_new = |address: &&SocketAddr| !self.entries.contains_key(*address);
        let new: Vec<_> = resolved.addresses.iter().filter(is_new).copied().collect();
        if self.room() < new.len() {
            // What this answer names goes before what an earlier one did, where answers are partial.
            self.forget(&mut effects, |address, entry| {
                is_peer(entry) || resolved.addresses.contains(address)
            });
        }
        let room = self.room();
        effects.left_out = new.len().saturating_sub(room);
        for address in new.into_iter().take(room) {
            self.entries.insert(address, Entry::new());
            effects.ask.push(address);
        }
        for address in &resolved.addresses {
            if let Some(entry) = self.entries.get_mut(address) {
                entry.listed = true;
            }
        }
        effects
            .ask
            .retain(|address| self.entries.contains_key(address));
        effects
    }

    /// How many more addresses without a peer may be kept.
    fn room(&self) -> usize {
        let is_other =
            |entry: &&Entry| matches!(entry.occupant, Occupant::Unknown | Occupant::Stranger);
        MAX_WITHOUT_PEER.saturating_sub(self.entries.values().filter(is_other).count())
    }

    /// Drops the addresses without a peer that are not to be kept.
    fn forget(&mut self, effects: &mut Effects, keep: impl Fn(&SocketAddr, &Entry) -> bool) {
        self.entries.retain(|address, entry| {
            let stays = keep(address, entry);
            if !stays {
                effects.gone.push(*address);
            }
            stays
        });
    }

    fn sighted(&mut self, address: SocketAddr, sighting: Sighting, now: Instant) -> Vec<Change> {
        let Some(entry) = self.entries.get_mut(&address) else {
            return Vec::new();
        };
        if sighting.peer.instance == self.me {
            return entry.replace(Occupant::Myself, "this instance itself answers there");
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
                let changed = (was != health)
                    .then(|| Change::new(&peer, Some(health), "it answered the probe"));
                (peer, changed.into_iter().collect())
            }
            was => {
                let mut peer = sighting.peer;
                if let Some((old, _)) = &was
                    && old.instance == peer.instance
                {
                    peer.load = Arc::clone(&old.load);
                }
                let peer = Arc::new(peer);
                let gone = was
                    .filter(|(old, _)| old.instance != peer.instance || old.region != peer.region);
                let mut changes: Vec<Change> = Vec::new();
                changes.extend(
                    gone.map(|(old, _)| Change::new(&old, None, "another instance answers there")),
                );
                changes.push(Change::new(&peer, Some(health), "it answered the probe"));
                (peer, changes)
            }
        };
        entry.occupant = Occupant::Peer(PeerState {
            peer,
            health,
            last_seen: now,
            rtt: sighting.rtt,
            probed: now,
            unseen: 0,
            silence: Silence::Unexplained,
        });
        changes
    }

    fn unseen(&mut self, address: SocketAddr, unseen: Unseen) -> Vec<Change> {
        let btree_map::Entry::Occupied(mut slot) = self.entries.entry(address) else {
            return Vec::new();
        };
        let entry = slot.get_mut();
        if let Occupant::Peer(state) = &mut entry.occupant {
            state.unseen += 1;
        }
        match unseen {
            Unseen::Refused(reason) if entry.listed => entry.suspect(&reason, Silence::Refusing),
            Unseen::Silent(reason) if entry.listed => entry.suspect(&reason, Silence::Hanging),
            Unseen::Refused(reason) | Unseen::Silent(reason) => {
                slot.remove().replace(Occupant::Unknown, &reason)
            }
            Unseen::Stranger(reason) if entry.listed => entry.replace(Occupant::Stranger, &reason),
            Unseen::Stranger(reason) => slot.remove().replace(Occupant::Stranger, &reason),
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
                state.unseen = 0;
            }
            Encounter::Unreachable | Encounter::Elsewhere | Encounter::Unanswered => {}
        }
        match encounter {
            Encounter::Answered if state.health == Health::Suspect => {
                state.health = Health::Ready;
                vec![Change::new(
                    &state.peer,
                    Some(Health::Ready),
                    "it answered a call",
                )]
            }
            Encounter::Draining if state.health != Health::Draining => {
                state.health = Health::Draining;
                vec![Change::new(
                    &state.peer,
                    Some(Health::Draining),
                    "it said so when it answered a call",
                )]
            }
            Encounter::Unreachable => {
                entry.suspect("a call could not connect", Silence::Unexplained)
            }
            Encounter::Elsewhere => {
                entry.suspect("another instance answered a call", Silence::Unexplained)
            }
            Encounter::Answered | Encounter::Draining | Encounter::Unanswered => Vec::new(),
        }
    }
}

/// 1 s after the first failure, twice as long after each further one, at most 60 s.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let doublings = failures.saturating_sub(1).min(16);
    longest.min(first * (1 << doublings))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
