//! Probes of addresses, as they end.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::{labels::Words, registered, timed::Seconds};

/// What is counted of discovery as it happens.
#[derive(Debug)]
pub(crate) struct DiscoveryMetrics {
    probes: Family<Words<1>, Counter>,
    probe_durations: Histogram,
}

impl DiscoveryMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let help = "Questions to addresses who answers there, by how they ended";
        let probes = registered(registry, "probes", help);
        let probe_durations = Seconds.new_metric();
        let help = "Time that peers took to answer a probe";
        let durations = probe_durations.clone();
        registry.register_with_unit("probe_duration", help, Unit::Seconds, durations);
        Self {
            probes,
            probe_durations,
        }
    }

    /// Counts a probe that a peer answered after `rtt`, or no peer.
    pub(crate) fn probed(&self, rtt: Option<Duration>) {
        if let Some(rtt) = rtt {
            self.probe_durations.observe(rtt.as_secs_f64());
        }
        let outcome = if rtt.is_some() { "answered" } else { "failed" };
        self.probes.get_or_create(&[("outcome", outcome)]).inc();
    }
}
