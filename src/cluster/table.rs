//! The rules of discovery: how an event changes the table of addresses. Pure: no clock, no network, no randomness, so
//! that each rule is tested by itself. Nothing here expires by time alone. `docs/src/design.md` has the rules ("Discovery").
//!
//! A peer is removed only if DNS dropped it and it fails a probe, or if something else answers at its address: neither a
//! DNS failure nor a peer that hangs for a while empties a region. What calls report makes a peer suspect, ready or
//! draining, and never removes it: one call sees one connection, which may fail for reasons of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::peers::{Condition, Peer, RegionPeers};
use crate::{
    name::{BootId, InstanceId},
    protocol::{Catalogue, CatalogueHash, PeerState},
    region::Region,
};

/// The pause before a suspect peer is probed again, at first and at most; it doubles with each probe that fails.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the outcome of a probe counts as current: neither a call nor the peer itself has another one begin meanwhile.
const CURRENT: Duration = Duration::from_millis(250);
/// For how many poll intervals answered calls may replace probes. Only a probe finds out about a new catalogue.
const MAX_REPLACED: u32 = 12;

const CHANGED: &str = "its functions, its app or its release changed";

/// How many addresses without a peer are kept and probed: more than the 10,000 peers that are to be found in one round,
/// of which none is known before it. Of an answer with more new addresses, the highest are left out until there is room:
/// an address that is kept stays as long as DNS lists it.
pub(crate) const MAX_WITHOUT_PEER: usize = 16_384;

#[derive(Clone, Debug)]
pub(crate) enum TableEvent {
    Resolved {
        addresses: BTreeSet<SocketAddr>,
        /// Whether the answer is complete; if not, its addresses are added, and none counts as dropped.
        complete: bool,
    },
    Probed(SocketAddr, Result<ProbeAnswer, ProbeFailure>),
    /// The functions of a peer were read, because it had listed those of the hash `wanted`.
    Read {
        wanted: CatalogueHash,
        peer: Peer,
    },
    Called(SocketAddr, CallSignal),
}

#[derive(Clone, Debug)]
pub(crate) struct ProbeAnswer {
    pub peer: Peer,
    pub draining: bool,
    /// The round trip of the question and its answer, on an established connection.
    pub rtt: Duration,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) enum ProbeFailure {
    /// The connection was refused: nothing runs there.
    Refused(String),
    /// No answer, none in time, or a status of a server that cannot answer now.
    NoAnswer(String),
    /// An answer of something that is not an instance of this cluster.
    NotAPeer(String),
    /// An answer of another process that bears this instance's id.
    #[error(
        "another process says that it is this instance, {id}: give each an id of its own (FLY_MACHINE_ID)"
    )]
    Namesake { id: InstanceId, region: Region },
}

impl ProbeFailure {
    /// Whether something answered that is not a peer, such as an instance with another token, or with this instance's id.
    pub(super) fn is_of_stranger(&self) -> bool {
        matches!(self, Self::NotAPeer(_) | Self::Namesake { .. })
    }
}

/// What a call found out about a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CallSignal {
    Answered,
    Draining,
    Unreachable,
    /// The peer's address refuses connections.
    Refused,
    /// Another instance than the expected one answered.
    WrongInstance,
    /// What a probe has to settle: an answer that is not complete, a refused upgrade, another process than the call named, a
    /// function that is missing. It changes no state by itself.
    Questionable,
    /// The peer says that its functions changed: a reason for a probe that begins after it said so.
    Changed,
}

/// A change of what calls read of a peer, or a peer that is new or gone.
#[derive(Debug)]
pub(crate) struct TableChange {
    pub peer: Arc<Peer>,
    /// Its new state; `None` when it is no longer a peer.
    pub state: Option<PeerState>,
    pub reason: String,
    /// Whether it is to be logged and published as an event; another cause of the same state is not.
    pub is_news: bool,
}

impl TableChange {
    fn new(peer: &Arc<Peer>, state: Option<PeerState>, reason: &str) -> Self {
        Self {
            peer: Arc::clone(peer),
            state,
            reason: reason.to_owned(),
            is_news: true,
        }
    }
}

/// What follows from an event.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// What calls are to read, and what of it is to be logged.
    pub changes: Vec<TableChange>,
    pub probe: Vec<SocketAddr>,
    /// The addresses without a peer that were removed.
    pub removed: Vec<SocketAddr>,
    /// How many addresses of a DNS answer there is no room for.
    pub left_out: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct KnownPeer {
    pub peer: Arc<Peer>,
    condition: Condition,
    pub last_seen: Instant,
    /// When it last answered a probe.
    probed: Instant,
    failed_probes: u32,
    /// As it introduced itself last, if its functions are to be read.
    unread: Option<Arc<Peer>>,
}

impl KnownPeer {
    pub(crate) fn state(&self) -> PeerState {
        self.condition.state()
    }
}

/// How far what the peer said of its functions was followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Functions {
    /// They are those that the peer listed when a probe last asked.
    Known,
    /// A probe began after they changed, and they are not read yet, or could not be.
    Reading,
    /// They changed since the last probe began.
    Changed,
}

/// An address that discovery knows.
#[derive(Clone, Debug)]
pub(crate) struct KnownAddress {
    pub address: SocketAddr,
    /// Whether it is in the last complete DNS answer, or in a later incomplete one.
    pub listed: bool,
    /// When its last probe ended.
    pub last_probe: Option<Instant>,
    /// Why that found no peer; `None` when it found one.
    pub probe_error: Option<ProbeFailure>,
    pub peer: Option<KnownPeer>,
    functions: Functions,
    /// Whether this instance itself answers there.
    is_own: bool,
}

impl KnownAddress {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            listed: true,
            last_probe: None,
            probe_error: None,
            peer: None,
            functions: Functions::Known,
            is_own: false,
        }
    }

    /// A peer answered a probe here.
    fn answered(&mut self, answer: ProbeAnswer, now: Instant) -> Vec<TableChange> {
        let ProbeAnswer {
            mut peer,
            draining,
            rtt,
        } = answer;
        let condition = match draining {
            true => Condition::Draining,
            false => Condition::Ready,
        };
        let mut changes = Vec::new();
        // Under another id or in another region it is another peer: nothing that is known of the old one holds for it.
        let old = self.peer.take().filter(|old| {
            let is_other = (&old.peer.instance, &old.peer.region) != (&peer.instance, &peer.region);
            let gone = || TableChange::new(&old.peer, None, "another instance answers there");
            changes.extend(is_other.then(gone));
            !is_other
        });
        let unread = unread(old.as_ref().map(|old| &*old.peer), &mut peer);
        if self.functions != Functions::Changed {
            self.functions = match unread {
                None => Functions::Known,
                Some(_) => Functions::Reading,
            };
        }
        let (peer, reason) = match old {
            None => (Arc::new(peer), Some("it answered the probe")),
            Some(KnownPeer {
                peer: old,
                condition: before,
                ..
            }) => {
                let is_same = is_same(&old, &peer);
                let reason = if before != condition {
                    Some("it answered the probe")
                } else if old.boot != peer.boot {
                    Some("it was started again")
                } else {
                    (!is_same).then_some(CHANGED)
                };
                // A restart changes neither the distance nor the calls that are still under way there.
                peer.stats = Arc::clone(&old.stats);
                // Where nothing changed that calls read, the region is not published anew.
                (if is_same { old } else { Arc::new(peer) }, reason)
            }
        };
        let state = Some(condition.state());
        changes.extend(reason.map(|reason| TableChange::new(&peer, state, reason)));
        peer.stats.note_round_trip(rtt);
        self.peer = Some(KnownPeer {
            peer,
            condition,
            last_seen: now,
            probed: now,
            failed_probes: 0,
            unread,
        });
        changes
    }

    /// The functions of `peer` were read, because it had listed those of the hash `wanted`.
    fn read(&mut self, wanted: &CatalogueHash, mut peer: Peer) -> Vec<TableChange> {
        let Some(known) = &mut self.peer else {
            return Vec::new();
        };
        let old = &known.peer;
        let is_same_process =
            (&old.instance, &old.region, &old.boot) == (&peer.instance, &peer.region, &peer.boot);
        // A later probe may have found that it lists those that are known.
        let Some(unread) = known.unread.as_ref().filter(|_| is_same_process) else {
            return Vec::new();
        };
        // It may also have found that they changed again.
        if unread.listed == *wanted || unread.listed == peer.listed {
            known.unread = None;
            if self.functions == Functions::Reading {
                self.functions = Functions::Known;
            }
        }
        let reason = match old.catalogue {
            None => "its functions were read",
            Some(_) => CHANGED,
        };
        peer.stats = Arc::clone(&old.stats);
        known.peer = Arc::new(peer);
        let state = Some(known.state());
        vec![TableChange::new(&known.peer, state, reason)]
    }

    /// A probe found no peer here. One that DNS dropped is removed, whatever it was.
    fn failed(&mut self, failure: ProbeFailure) -> Vec<TableChange> {
        if let Some(known) = &mut self.peer {
            known.failed_probes += 1;
        }
        match failure {
            ProbeFailure::Refused(reason) if self.listed => self.set(Condition::Gone, &reason),
            ProbeFailure::NoAnswer(reason) if self.listed => self.set(Condition::Hanging, &reason),
            // Either nobody lists it any more, or something else answers here: only these remove a peer.
            failure => {
                self.is_own = false;
                self.remove_peer(&failure.to_string())
            }
        }
    }

    /// Notes what is known now of the peer here, if there is one. A known cause of its silence is not replaced by an
    /// unknown one.
    fn set(&mut self, condition: Condition, reason: &str) -> Vec<TableChange> {
        let Some(known) = &mut self.peer else {
            return Vec::new();
        };
        let is_explained = condition == Condition::Doubtful && known.state() == PeerState::Suspect;
        if is_explained || known.condition == condition {
            return Vec::new();
        }
        let is_news = known.state() != condition.state();
        known.condition = condition;
        let state = Some(condition.state());
        vec![TableChange {
            is_news,
            ..TableChange::new(&known.peer, state, reason)
        }]
    }

    fn remove_peer(&mut self, reason: &str) -> Vec<TableChange> {
        let known = self.peer.take();
        let change = known.map(|known| TableChange::new(&known.peer, None, reason));
        change.into_iter().collect()
    }
}

/// Every address that discovery knows, and what is there.
#[derive(Debug)]
pub(crate) struct Table {
    own_id: InstanceId,
    own_boot: BootId,
    entries: BTreeMap<SocketAddr, KnownAddress>,
    /// Where another process bears this instance's id, and in which region.
    namesakes: BTreeMap<SocketAddr, Region>,
}

impl Table {
    /// The empty table of the instance `own_id` in its run `own_boot`.
    pub(crate) fn new(own_id: InstanceId, own_boot: BootId) -> Self {
        Self {
            own_id,
            own_boot,
            entries: BTreeMap::new(),
            namesakes: BTreeMap::new(),
        }
    }

    /// Where another process bears this instance's id, and in which region.
    pub(super) fn namesakes(&self) -> &BTreeMap<SocketAddr, Region> {
        &self.namesakes
    }

    pub(crate) fn apply(&mut self, event: TableEvent, now: Instant) -> Effects {
        let changes = match event {
            TableEvent::Resolved {
                addresses,
                complete,
            } => return self.resolved(&addresses, complete),
            TableEvent::Probed(address, outcome) => self.probed(address, outcome, now),
            TableEvent::Read { wanted, peer } => {
                let entry = self.entries.get_mut(&peer.address);
                entry.map_or_else(Vec::new, |entry| entry.read(&wanted, peer))
            }
            TableEvent::Called(address, signal) => return self.called(address, signal, now),
        };
        Effects {
            changes,
            ..Effects::default()
        }
    }

    /// Probes the addresses that are new, and those that DNS dropped: the probe decides whether they stay.
    fn resolved(&mut self, addresses: &BTreeSet<SocketAddr>, complete: bool) -> Effects {
        let mut effects = Effects::default();
        if complete {
            for (address, entry) in &mut self.entries {
                if entry.listed && !addresses.contains(address) {
                    entry.listed = false;
                    effects.probe.push(*address);
                }
            }
        }
        // A peer that DNS dropped stays until its probe has failed.
        self.retain(&mut effects, |entry| entry.listed || entry.peer.is_some());
        let is_new = |address: &&SocketAddr| !self.entries.contains_key(*address);
        let mut new: Vec<_> = addresses.iter().filter(is_new).copied().collect();
        if self.room() < new.len() {
            // If the answer is incomplete, its addresses take the room of those of earlier answers.
            self.retain(&mut effects, |entry| {
                entry.peer.is_some() || addresses.contains(&entry.address)
            });
        }
        let room = self.room();
        // The lowest addresses get the room, the same ones in each round, so that each stays until a probe has shown what
        // it is.
        effects.left_out = new.len().saturating_sub(room);
        new.truncate(room);
        effects.probe.extend(&new);
        // All at once: one by one in their order, they would leave each node of the map half empty, 1.4 MiB of 10,000.
        let entries = new.into_iter().map(|it| (it, KnownAddress::new(it)));
        self.entries.append(&mut entries.collect());
        for address in addresses {
            if let Some(entry) = self.entries.get_mut(address) {
                entry.listed = true;
            }
        }
        // An address without a peer was removed above.
        effects
            .probe
            .retain(|address| self.entries.contains_key(address));
        effects
    }

    /// How many more addresses without a peer may be kept.
    fn room(&self) -> usize {
        let is_without_peer = |entry: &&KnownAddress| entry.peer.is_none() && !entry.is_own;
        let count = self.entries.values().filter(is_without_peer).count();
        MAX_WITHOUT_PEER.saturating_sub(count)
    }

    /// Removes the entries that `keep` does not keep.
    fn retain(&mut self, effects: &mut Effects, keep: impl Fn(&KnownAddress) -> bool) {
        self.entries.retain(|address, entry| {
            let stays = keep(entry);
            if !stays {
                self.namesakes.remove(address);
                effects.removed.push(*address);
            }
            stays
        });
    }

    /// Refuses the answer of another process that uses this instance's id.
    pub(super) fn check_id(&self, answer: ProbeAnswer) -> Result<ProbeAnswer, ProbeFailure> {
        let Peer { instance, boot, .. } = &answer.peer;
        let is_other_run = boot.as_ref().is_some_and(|boot| *boot != self.own_boot);
        if *instance == self.own_id && is_other_run {
            return Err(ProbeFailure::Namesake {
                id: self.own_id.clone(),
                region: answer.peer.region,
            });
        }
        Ok(answer)
    }

    fn probed(
        &mut self,
        address: SocketAddr,
        outcome: Result<ProbeAnswer, ProbeFailure>,
        now: Instant,
    ) -> Vec<TableChange> {
        let Some(entry) = self.entries.get_mut(&address) else {
            return Vec::new();
        };
        entry.last_probe = Some(now);
        entry.probe_error = outcome.as_ref().err().cloned();
        match &outcome {
            Err(ProbeFailure::Namesake { region, .. }) => {
                self.namesakes.insert(address, region.clone())
            }
            _ => self.namesakes.remove(&address),
        };
        match outcome {
            Ok(answer) => {
                entry.is_own = answer.peer.instance == self.own_id;
                if entry.is_own {
                    return entry.remove_peer("this instance itself answers there");
                }
                entry.answered(answer, now)
            }
            Err(failure) => {
                let changes = entry.failed(failure);
                if !entry.listed {
                    self.entries.remove(&address);
                    self.namesakes.remove(&address);
                }
                changes
            }
        }
    }

    fn called(&mut self, address: SocketAddr, signal: CallSignal, now: Instant) -> Effects {
        let mut effects = Effects::default();
        // Where a probe has just ended, a thousand calls that fail in the same way ask for no further one.
        let is_current = self.is_current(address, now);
        let Some(entry) = self.entries.get_mut(&address) else {
            return effects;
        };
        let Some(known) = &mut entry.peer else {
            return effects;
        };
        // Only these come from the peer itself.
        if let CallSignal::Answered | CallSignal::Draining | CallSignal::Changed = signal {
            known.last_seen = now;
            known.failed_probes = 0;
        }
        let is_suspect = known.state() == PeerState::Suspect;
        effects.changes = match signal {
            CallSignal::Answered if is_suspect => entry.set(Condition::Ready, "it answered a call"),
            CallSignal::Draining => entry.set(Condition::Draining, "it said so on its connection"),
            CallSignal::Unreachable => entry.set(Condition::Doubtful, "a call could not connect"),
            CallSignal::Refused => entry.set(Condition::Gone, "a call was refused a connection"),
            CallSignal::WrongInstance => {
                entry.set(Condition::Doubtful, "another instance answered a call")
            }
            CallSignal::Changed => {
                entry.functions = Functions::Changed;
                Vec::new()
            }
            // A draining peer that answers a call is still draining.
            CallSignal::Answered | CallSignal::Questionable => Vec::new(),
        };
        let needs_probe = match signal {
            CallSignal::WrongInstance | CallSignal::Unreachable | CallSignal::Refused => {
                !effects.changes.is_empty()
            }
            CallSignal::Questionable | CallSignal::Changed => !is_current,
            CallSignal::Answered | CallSignal::Draining => false,
        };
        effects.probe.extend(needs_probe.then_some(address));
        effects
    }

    /// The pause before `address` is probed again, where others are probed every `interval`; `None` for an address that
    /// is not in the table.
    pub(super) fn pause(&self, address: SocketAddr, interval: Duration) -> Option<Duration> {
        let entry = self.entries.get(&address)?;
        Some(match &entry.peer {
            Some(_) if entry.functions == Functions::Changed => CURRENT,
            Some(known) if known.state() == PeerState::Suspect => backoff(known.failed_probes),
            _ => interval,
        })
    }

    /// The peer at `address` as it introduced itself last, if its functions are to be read.
    pub(super) fn unread(&self, address: SocketAddr) -> Option<&Arc<Peer>> {
        self.known(address)?.unread.as_ref()
    }

    /// A probe of `address` begins, which finds out about all that changed until now.
    pub(super) fn probe_begins(&mut self, address: SocketAddr) {
        if let Some(entry) = self.entries.get_mut(&address)
            && entry.functions == Functions::Changed
        {
            entry.functions = Functions::Reading;
        }
    }

    /// Until when an answered call replaces probes of `address`, where others are probed every `interval`.
    pub(super) fn replaced_until(
        &self,
        address: SocketAddr,
        interval: Duration,
        now: Instant,
    ) -> Option<Instant> {
        let entry = self.entries.get(&address)?;
        let known = entry.peer.as_ref()?;
        let is_wanted = entry.functions != Functions::Known || known.state() == PeerState::Suspect;
        (!is_wanted).then(|| (now + interval).min(known.probed + interval * MAX_REPLACED))
    }

    /// The state of the peer at `address`; `None` when none is there.
    pub(super) fn state(&self, address: SocketAddr) -> Option<PeerState> {
        self.known(address).map(KnownPeer::state)
    }

    fn known(&self, address: SocketAddr) -> Option<&KnownPeer> {
        self.entries.get(&address)?.peer.as_ref()
    }

    pub(crate) fn is_peer(&self, address: SocketAddr) -> bool {
        self.known(address).is_some()
    }

    /// Whether the last probe of `address` ended less than a quarter of a second before `now`, and no call has found since that
    /// the peer does not answer.
    pub(super) fn is_current(&self, address: SocketAddr, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&address) else {
            return false;
        };
        let is_doubtful = |known: &KnownPeer| known.condition == Condition::Doubtful;
        !entry.peer.as_ref().is_some_and(is_doubtful)
            && entry
                .last_probe
                .is_some_and(|probed| now.saturating_duration_since(probed) < CURRENT)
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &KnownPeer> {
        let peers = self.entries.values().map(|entry| entry.peer.as_ref());
        peers.flatten()
    }

    pub(super) fn all_addresses(&self) -> Vec<SocketAddr> {
        self.entries.keys().copied().collect()
    }

    /// Every address but this instance's own.
    pub(super) fn addresses(&self) -> impl Iterator<Item = KnownAddress> {
        let others = self.entries.values().filter(|entry| !entry.is_own);
        others.cloned()
    }

    /// At how many addresses something answers that is not of this cluster.
    pub(super) fn strangers(&self) -> usize {
        let failures = self
            .entries
            .values()
            .map(|entry| entry.probe_error.as_ref());
        failures.flatten().filter(|it| it.is_of_stranger()).count()
    }

    /// The peers of `region` as calls read them: each process once, although it may have two addresses.
    ///
    /// Processes differ by instance id and run. Two addresses with the same id and the same run, or with a run
    /// that one of them does not name, are one process. Two runs under one id are either a restart, in which case the
    /// old one no longer answers, or two processes that were given the same id: if both are ready, both are used, and
    /// the id is marked as a duplicate. Ready peers come first, so that of two addresses the better one is taken. Another
    /// process with this instance's own id is no peer, and marks the id.
    pub(super) fn region(&self, region: &Region) -> RegionPeers {
        let mut found = RegionPeers::default();
        let mut runs_of: BTreeMap<&InstanceId, Vec<Option<&BootId>>> = BTreeMap::new();
        let (ready, others): (Vec<_>, Vec<_>) = self
            .peers()
            .filter(|known| known.peer.region == *region)
            .partition(|known| known.condition == Condition::Ready);
        for known in ready.into_iter().chain(others) {
            found.last_seen = found.last_seen.max(Some(known.last_seen));
            let peer = &known.peer;
            let is_ready = known.condition == Condition::Ready;
            let run = peer.boot.as_ref();
            let runs = runs_of.entry(&peer.instance).or_default();
            if !runs.is_empty() {
                let is_other_run = run.is_some() && !runs.contains(&run) && !runs.contains(&None);
                if !is_other_run || !is_ready {
                    continue;
                }
                found.duplicates.insert(peer.instance.clone());
            }
            runs.push(run);
            if is_ready {
                found.ready.push(Arc::clone(peer));
            } else {
                found.others.push((Arc::clone(peer), known.condition));
            }
        }
        if self.namesakes.values().any(|other| other == region) {
            found.duplicates.insert(self.own_id.clone());
        }
        found
    }
}

/// `peer` as it introduced itself, if its functions are to be read. Until they are, those that the same process listed
/// before, as `old`, hold, and with them what it said of its app: an app that is up goes with functions that are there.
fn unread(old: Option<&Peer>, peer: &mut Peer) -> Option<Arc<Peer>> {
    if peer.catalogue.is_some() {
        return None;
    }
    let unread = Arc::new(peer.clone());
    let Some(old) = old.filter(|old| old.boot == peer.boot && old.catalogue.is_some()) else {
        return Some(unread);
    };
    peer.catalogue = old.catalogue.clone();
    if old.listed == peer.listed {
        return None;
    }
    peer.listed = old.listed.clone();
    peer.app_state = old.app_state;
    Some(unread)
}

/// Whether `new` differs from `old`, the same instance, in nothing that calls read.
fn is_same(old: &Peer, new: &Peer) -> bool {
    old.boot == new.boot
        && old.listed == new.listed
        && old.release == new.release
        && old.app_state == new.app_state
        && old.catalogue.as_deref().map(Catalogue::hash)
            == new.catalogue.as_deref().map(Catalogue::hash)
}

/// 1 s after the first failure, twice as long after each further one, at most 60 s.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let doublings = failures.saturating_sub(1).min(16);
    longest.min(first * (1 << doublings))
}

#[cfg(test)]
mod tests;
