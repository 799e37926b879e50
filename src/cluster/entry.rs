//! One address that discovery knows and who answers there: the smallest steps of the table's rules.

use super::{
    overview::Asked,
    peers::Peer,
    state::{Change, Health, PeerState, Silence},
};

/// Who answers at an address.
#[derive(Debug)]
pub(super) enum Occupant {
    /// Not asked yet, or no answer so far.
    Unknown,
    /// Not an instance of this cluster.
    Stranger,
    /// This instance.
    Myself,
    /// A peer.
    Peer(PeerState),
}

/// An address that discovery knows.
#[derive(Debug)]
pub(super) struct Entry {
    /// Whether it is in the last good DNS answer.
    pub(super) listed: bool,
    /// Who answers there.
    pub(super) occupant: Occupant,
    /// When it was last asked.
    pub(super) asked: Option<Asked>,
}

impl Entry {
    /// An address that DNS brought and that was not asked yet.
    pub(super) fn new() -> Self {
        Self {
            listed: true,
            occupant: Occupant::Unknown,
            asked: None,
        }
    }

    /// Makes the peer there suspect; an explanation stands until there is another.
    pub(super) fn suspect(&mut self, reason: &str, silence: Silence) -> Vec<Change> {
        match &mut self.occupant {
            Occupant::Peer(state)
                if state.health != Health::Suspect
                    || (silence != Silence::Unexplained && state.silence != silence) =>
            {
                state.health = Health::Suspect;
                state.silence = silence;
                vec![Change::new(&state.peer, Some(Health::Suspect), reason)]
            }
            Occupant::Unknown | Occupant::Stranger | Occupant::Myself | Occupant::Peer(_) => {
                Vec::new()
            }
        }
    }

    /// Puts somebody who is no peer in the entry's place.
    pub(super) fn replace(&mut self, occupant: Occupant, reason: &str) -> Vec<Change> {
        match std::mem::replace(&mut self.occupant, occupant) {
            Occupant::Peer(state) => vec![Change::new(&state.peer, None, reason)],
            Occupant::Unknown | Occupant::Stranger | Occupant::Myself => Vec::new(),
        }
    }
}

/// Whether nothing about a peer changed that calls need to know.
pub(super) fn is_same(old: &Peer, new: &Peer) -> bool {
    let hash = |peer: &Peer| {
        peer.catalogue
            .as_ref()
            .map(|catalogue| catalogue.hash().clone())
    };
    old.instance == new.instance
        && old.boot == new.boot
        && old.region == new.region
        && old.release == new.release
        && (new.catalogue.is_none() || hash(old) == hash(new))
}
