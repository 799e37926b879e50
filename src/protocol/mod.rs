//! What instances say to each other: paths, headers, lines and proofs. Both ends use it: `link` and `cluster` ask,
//! `http` answers. Owns the form of each message and sends none; here are the names, how an instance
//! introduces itself, and the states it may be in.

mod catalogue;
mod challenge;
mod clock;
mod exec;
pub(crate) mod lines;

use std::fmt;

use http::HeaderName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) use self::{
    catalogue::{Catalogue, CatalogueDocument, CatalogueHash},
    challenge::{Challenge, Statement},
    clock::Clock,
    exec::Exec,
};
use crate::{
    app::AppHealth,
    json,
    name::{BootId, InstanceId},
    region::Region,
};

/// The version of what instances say to each other, part of an [`Introduction`].
pub(crate) const PROTOCOL: u32 = 1;

/// The path at which an instance introduces itself.
pub(crate) const INTRODUCTION: &str = "/internal/region";
/// The path at which an instance lists its functions.
pub(crate) const FUNCTIONS: &str = "/internal/functions";
/// The path that takes calls, and that is upgraded to [`LINES`].
pub(crate) const EXEC: &str = "/internal/exec";
/// The paths that an instance may ask for with a proof instead of the token.
pub(crate) const PROVABLE: [&str; 2] = [INTRODUCTION, FUNCTIONS];

/// The protocol that a request for [`EXEC`] is upgraded to: lines of JSON in both directions.
pub(crate) const LINES: &str = "fly-rpc-lines";

pub(crate) const NONCE: &str = "rpc-nonce";
pub(crate) const PROOF: &str = "rpc-proof";
/// The header of an upgrade that carries the time on the connection's clock, in microseconds.
pub(crate) const CLOCK: &str = "rpc-clock-us";
/// The header of a call that was already forwarded, so that it is not forwarded again.
pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("rpc-forwarded");
/// The header of an answer that carries the state of the instance.
pub(crate) const STATE: &str = "rpc-state";
/// The value of [`STATE`] on a draining instance.
pub(crate) const DRAINING: &str = "draining";

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
    pub(crate) const ALL: [Self; 3] = [Self::Ready, Self::Suspect, Self::Draining];
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The word in JSON.
        self.serialize(f)
    }
}

/// What an instance says about itself. Unknown members are ignored, so that a later release may add some.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Introduction {
    pub region: Region,
    pub instance: InstanceId,
    /// Its run; `None` when it does not say.
    pub boot: Option<BootId>,
    pub app: Option<String>,
    pub release: Option<String>,
    /// The primary region in its configuration.
    pub primary: Region,
    /// By its own account: ready or draining.
    pub state: PeerState,
    /// Its version of [`PROTOCOL`].
    pub protocol: u32,
    pub catalogue: CatalogueHash,
    /// The state of the app beside it; `None` without one, and for a state that this release does not know.
    #[serde(
        default,
        deserialize_with = "json::if_valid",
        skip_serializing_if = "Option::is_none"
    )]
    pub app_state: Option<AppHealth>,
}
