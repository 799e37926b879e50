//! In which state an instance is, as discovery sees it. How it comes into that state is in `cluster`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the table knows of a peer's health.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PeerState {
    /// It answers and takes calls.
    Ready,
    /// It does not answer: used only if the region has no ready instance.
    Suspect,
    /// It is stopping.
    Draining,
}

impl PeerState {
    /// Every one.
    pub(crate) const ALL: [Self; 3] = [Self::Ready, Self::Suspect, Self::Draining];

    /// The word in JSON, in metrics and in logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
