//! What every part of one running instance is given: who it is, what bounds it, what it counts, and where it ends.

use std::{net::SocketAddr, sync::Arc};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Access,
    call::Timeouts,
    config::{Identity, Limits, Route},
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
    /// Where it answers its peers, as `/regions` shows it.
    pub(crate) address: SocketAddr,
    pub(crate) access: Access,
    /// How calls get to other regions, unless they say otherwise.
    pub(crate) route: Route,
    pub(crate) timeouts: Timeouts,
    pub(crate) limits: Limits,
    pub(crate) memory: Arc<Budget>,
    pub(crate) metrics: Arc<Metrics>,
    /// What runs in the background, until `stop`.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}
