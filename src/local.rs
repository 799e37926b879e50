//! What every part of one running instance is given: who it is, what bounds it, what it counts, and where it ends.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Access,
    call::Timeouts,
    config::{Identity, Limits},
    memory::Budget,
    metrics::Metrics,
    name::BootId,
};

/// The instance that this is, as against its peers.
#[derive(Debug)]
pub(crate) struct LocalInstance {
    pub(crate) identity: Identity,
    /// Its run, which ends with the process.
    pub(crate) boot: BootId,
    pub(crate) access: Access,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: Limits,
    pub(crate) memory: Arc<Budget>,
    pub(crate) metrics: Arc<Metrics>,
    /// What runs in the background, until `stop`.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}
