//! The cluster as people are shown it: every peer, and how discovery fares.

use tokio::time::Instant;

use super::state::PeerState;

/// How discovery fares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Rounds that were finished.
    pub rounds: u64,
    /// Whether a round was finished after DNS gave an address.
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
