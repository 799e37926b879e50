//! What discovery hears: what DNS answered, who answered a probe, how a call met a peer. What becomes of it is the
//! table's affair.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::peers::Peer;

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
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unseen {
    /// The connection was refused: nothing runs there.
    #[error("{0}")]
    Refused(String),
    /// No answer, none in time, or one that says it cannot answer now.
    #[error("{0}")]
    Silent(String),
    /// An answer, of somebody else.
    #[error("{0}")]
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
    /// Another instance than the expected one answered.
    Elsewhere,
    /// It connected, and no whole answer of ours came, or none in time: a reason to ask, and no verdict.
    Unanswered,
}
