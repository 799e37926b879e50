//! Gauges whose value stands somewhere else already, and is read when somebody asks.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

/// A gauge that is read when somebody asks.
pub(super) struct ReadGauge<F> {
    name: &'static str,
    help: &'static str,
    read: F,
}

impl<F> ReadGauge<F> {
    pub(super) fn new(name: &'static str, help: &'static str, read: F) -> Self {
        Self { name, help, read }
    }
}

impl<F: Fn() -> usize + Send + Sync + 'static> Collector for ReadGauge<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new((self.read)());
        gauge.encode(encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?)
    }
}

impl<F> fmt::Debug for ReadGauge<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadGauge")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
