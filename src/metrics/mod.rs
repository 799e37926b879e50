//! What one instance counts and measures, for `GET /metrics`. Nothing is global, so that two instances in one process
//! count apart. Every label is one of a bounded set; what is not known here is `other`.

mod calls;
mod functions;
mod labels;
mod peers;
mod timed;

use std::fmt;

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{family::Family, gauge::Gauge},
    registry::{Metric, Registry},
};

pub(crate) use self::labels::Texts;
use self::{calls::CallMetrics, functions::FunctionMetrics, peers::PeerMetrics};
use crate::{
    config::Identity,
    feed::Feed,
    name::{BootId, FunctionName},
};

/// What the name of every metric starts with.
pub(crate) const PREFIX: &str = "fly_rpc";

/// Everything that one instance counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Calls, as their callers see them.
    pub(crate) calls: CallMetrics,
    /// Functions that run here.
    pub(crate) functions: FunctionMetrics,
    pub(crate) peers: PeerMetrics,
    /// What happens, for `GET /events`.
    pub(crate) feed: Feed,
    registry: Registry,
}

impl Metrics {
    /// The metrics of the run `boot` of the instance `identity`, which has `functions`.
    pub(crate) fn new(
        identity: &Identity,
        boot: &BootId,
        functions: impl Iterator<Item = FunctionName>,
    ) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        // A gauge, because the text format that is older than OpenMetrics has no type `info`.
        let help = "What runs here, and in which region";
        let build: Family<Texts<3>, Gauge> = registered(&mut registry, "build_info", help);
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("release", identity.release.clone().unwrap_or_default()),
            ("local_region", identity.region.to_string()),
        ];
        build.get_or_create(&labels).set(1);
        Self {
            calls: CallMetrics::register(&mut registry),
            functions: FunctionMetrics::register(&mut registry, functions),
            peers: PeerMetrics::register(&mut registry),
            feed: Feed::new(boot),
            registry,
        }
    }

    /// Everything, with the `readings` of now, as text that reads the same in the format of OpenMetrics and in the one before
    /// it.
    ///
    /// # Errors
    /// A metric cannot be written, which is a bug of ours.
    pub(crate) fn text(&self, readings: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, readings)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A metric that starts at nothing, once it is in `registry`.
pub(crate) fn registered<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
