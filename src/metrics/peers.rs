//! Peers: probes of them, attempts at them, and how many calls leave for one together.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::{
    labels::{Target, Words},
    registered,
    timed::{Seconds, Timed},
};
use crate::{problem::Problem, region::Region};

/// The bounds of the number of calls that leave together.
const BATCHES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Probes of peers and attempts at them.
#[derive(Debug)]
pub(crate) struct PeerMetrics {
    attempts: Timed<Target>,
    batches: Histogram,
    probes: Family<Words<1>, Counter>,
    probe_durations: Histogram,
}

impl PeerMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counted = "Attempts at peers, by the region they were made in and what came of them";
        let timed = "Time from an attempt's start to the peer's answer, or to its failure";
        let attempts = Timed::register(registry, ("attempts", counted), ("hop_duration", timed));
        let batches = Histogram::new(BATCHES);
        let help = "Calls that left together for the same peer";
        registry.register("batch_calls", help, batches.clone());
        let help = "Questions to addresses who answers there, by how they ended";
        let probes = registered(registry, "probes", help);
        let probe_durations = Seconds.new_metric();
        let help = "Time that peers took to answer a probe";
        let durations = probe_durations.clone();
        registry.register_with_unit("probe_duration", help, Unit::Seconds, durations);
        Self {
            attempts,
            batches,
            probes,
            probe_durations,
        }
    }

    /// Counts an attempt at a peer in `region`.
    pub(crate) fn tried(&self, region: &Region, problem: Option<&Problem>, elapsed: Duration) {
        let target = Target::new(Some(region));
        self.attempts.ended(&target, problem, elapsed);
    }

    /// Counts `calls` that left together.
    pub(crate) fn left_together(&self, calls: u32) {
        self.batches.observe(f64::from(calls));
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
