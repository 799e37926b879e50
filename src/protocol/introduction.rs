//! How an instance introduces itself to one that probes it: the object that `GET /internal/region` answers with.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::CatalogueHash;
use crate::{
    app::AppHealth,
    name::{BootId, InstanceId},
    region::Region,
};

/// Whether an instance takes calls, by its own account.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// It takes calls.
    Ready,
    /// It is stopping.
    Draining,
}

/// What an instance says about itself. Unknown members are ignored, so that a later release may add some.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Introduction {
    /// Its region.
    pub region: Region,
    /// Its id.
    pub instance: InstanceId,
    /// Its run; `None` when it does not say.
    pub boot: Option<BootId>,
    /// Its application.
    pub app: Option<String>,
    /// Its release.
    pub release: Option<String>,
    /// The primary region in its configuration.
    pub primary: Region,
    /// Whether it takes calls.
    pub state: Readiness,
    /// Its version of [`PROTOCOL`](super::PROTOCOL).
    pub protocol: u32,
    /// The hash of its catalogue.
    pub catalogue: CatalogueHash,
    /// How the app beside it is; `None` without one, and where it says what this release does not know.
    #[serde(
        default,
        deserialize_with = "if_known",
        skip_serializing_if = "Option::is_none"
    )]
    pub app_state: Option<AppHealth>,
}

fn if_known<'de, D: Deserializer<'de>>(from: D) -> Result<Option<AppHealth>, D::Error> {
    let said = Value::deserialize(from)?;
    Ok(AppHealth::deserialize(said).ok())
}
