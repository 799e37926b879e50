//! What one instance counts and measures, for `GET /metrics`. Nothing is global, so that two instances in one process
//! count apart. Every label is one of a bounded set; what is not known here is `other`.

mod calls;
mod discovery;
mod functions;
mod hops;
mod labels;
mod scrape;
mod timed;

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use self::labels::Build;
pub(crate) use self::{
    calls::CallMetrics,
    discovery::{Discovered, DiscoveryMetrics},
    functions::FunctionMetrics,
    hops::HopMetrics,
};
use crate::{
    config::Identity,
    feed::Feed,
    name::{BootId, FunctionName},
};

/// Everything that one instance counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Calls, as their callers see them.
    pub(crate) calls: Arc<CallMetrics>,
    /// Attempts at peers.
    pub(crate) hops: Arc<HopMetrics>,
    /// Functions that run here.
    pub(crate) functions: Arc<FunctionMetrics>,
    /// How discovery fares.
    pub(crate) discovery: Arc<DiscoveryMetrics>,
    /// What happens, for who listens.
    pub(crate) feed: Arc<Feed>,
    registry: Registry,
}

impl Metrics {
    /// The metrics of the run `boot` of the instance `identity`, which has `functions`.
    pub(crate) fn new(
        identity: &Identity,
        boot: &BootId,
        functions: impl Iterator<Item = FunctionName>,
    ) -> Self {
        let mut registry = Registry::with_prefix("fly_rpc");
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build::of(identity)).set(1);
        // A gauge, because the text format that is older than OpenMetrics has no type `info`.
        registry.register("build_info", "What runs here, and in which region", build);
        Self {
            calls: Arc::new(CallMetrics::register(&mut registry)),
            hops: Arc::new(HopMetrics::register(&mut registry)),
            functions: Arc::new(FunctionMetrics::register(&mut registry, functions)),
            discovery: Arc::new(DiscoveryMetrics::register(&mut registry)),
            feed: Arc::new(Feed::new(boot)),
            registry,
        }
    }

    /// Adds a gauge whose value is read when somebody asks.
    pub(crate) fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> usize + Send + Sync + 'static,
    ) {
        let gauge = scrape::ReadGauge::new(name, help, read);
        self.registry.register_collector(Box::new(gauge));
    }

    /// Everything, as text that reads the same in the format of OpenMetrics and in the one before it.
    ///
    /// # Errors
    /// A metric cannot be written, which is a bug of ours.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
