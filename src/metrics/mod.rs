//! What one instance counts and measures, for `GET /metrics`. Nothing is global, so that two instances in one process
//! count apart. Every label is one of a bounded set; what is not known here is `other`.

mod calls;
mod discovery;
mod functions;
mod hops;
mod labels;
mod timed;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeMetric,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Metric, Registry},
};

use self::labels::Texts;
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

/// What the name of every metric starts with.
const PREFIX: &str = "fly_rpc";

/// Everything that one instance counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Calls, as their callers see them.
    pub(crate) calls: Arc<CallMetrics>,
    /// Attempts at peers.
    pub(crate) hops: Arc<HopMetrics>,
    /// Functions that run here.
    pub(crate) functions: Arc<FunctionMetrics>,
    /// Probes.
    pub(crate) discovery: Arc<DiscoveryMetrics>,
    /// What happens, for `GET /events`.
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
        let gauge = ReadGauge { name, help, read };
        self.registry.register_collector(Box::new(gauge));
    }

    /// Everything, with `discovery` as it stands now, as text that reads the same in the format of OpenMetrics and in the
    /// one before it.
    ///
    /// # Errors
    /// A metric cannot be written, which is a bug of ours.
    pub(crate) fn text(&self, discovery: &Discovered<'_>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &discovery.registry())?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A metric that starts at nothing, once it is in `registry`.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// A gauge of a value that is kept in another place already.
struct ReadGauge<F> {
    name: &'static str,
    help: &'static str,
    read: F,
}

impl<F: Fn() -> usize + Send + Sync + 'static> Collector for ReadGauge<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new((self.read)());
        gauge.encode(encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?)
    }
}

impl<F> fmt::Debug for ReadGauge<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
