//! What the table says of peers: their health, and what an event changed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::peers::Peer;

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

impl Health {
    /// Every one.
    pub(crate) const ALL: [Self; 3] = [Self::Ready, Self::Suspect, Self::Draining];

    /// The word on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
        }
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
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

impl Change {
    /// The change of `peer` to `health`.
    pub(super) fn new(peer: &Arc<Peer>, health: Option<Health>, reason: &str) -> Self {
        Self {
            peer: Arc::clone(peer),
            health,
            reason: reason.to_owned(),
        }
    }
}

/// Why a peer does not answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Silence {
    /// Not known: a call could not connect, and no probe has tried since.
    Unexplained,
    /// Connections are refused: nothing runs there.
    Refusing,
    /// It connects and does not answer, or does not even connect: something may run there.
    Hanging,
}

/// What an event came to.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// For the log, and for whoever routes.
    pub changes: Vec<Change>,
    /// Addresses to ask who they are, at once.
    pub ask: Vec<SocketAddr>,
    /// Addresses that are no longer known, and at which no peer was.
    pub gone: Vec<SocketAddr>,
    /// How many addresses of an answer of DNS there is no room for.
    pub left_out: usize,
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
    /// When a probe last found it.
    pub(super) probed: Instant,
    /// Probes without an answer, in a row.
    pub(super) unseen: u32,
    /// Why a suspect is one, as far as that is known.
    pub(super) silence: Silence,
}
