//! The cluster as people are shown it: every address that discovery knows, who answers there, and how discovery fares.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::state::PeerState;

/// How discovery fares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Rounds that were finished.
    pub rounds: u64,
    /// Whether a round was finished after DNS answered for every name, be it that there are no records.
    pub answered: bool,
    /// Whether a round was finished after a whole answer of DNS, so that a region in which nobody was seen is none.
    pub whole: bool,
    /// When DNS last gave a whole answer.
    pub last_success: Option<Instant>,
    /// What went wrong with the last queries; `None` when nothing did.
    pub error: Option<String>,
    /// What else people should know: addresses that are left out, instances that are two.
    pub warnings: Vec<String>,
}

/// The last time that an address was asked who it is.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// When its answer, or its silence, was known.
    pub at: Instant,
    /// Why it is not seen as a peer; `None` when it is.
    pub error: Option<String>,
}

/// An address that discovery knows.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The address.
    pub address: SocketAddr,
    /// Whether it is in the last whole DNS answer.
    pub listed: bool,
    /// When it was last asked; `None` before the first time.
    pub asked: Option<Asked>,
    /// The peer there, if there is one.
    pub peer: Option<PeerState>,
}

/// Every address but this instance's own, and how discovery fares.
#[derive(Clone, Debug)]
pub(crate) struct Overview {
    /// Every address.
    pub seen: Vec<Seen>,
    /// How discovery fares.
    pub progress: Progress,
}

impl Overview {
    /// Every peer.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerState> {
        self.seen.iter().filter_map(|seen| seen.peer.as_ref())
    }
}
