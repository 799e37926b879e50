//! Attempts at peers, and how the calls that wait for the same peer travel.

use std::time::Duration;

use prometheus_client::{metrics::histogram::Histogram, registry::Registry};

use super::{labels::Target, timed::Timed};
use crate::{problem::Problem, region::Region};

/// The bounds of the number of calls that leave together.
const BATCHES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Attempts that this instance made at peers.
#[derive(Debug)]
pub(crate) struct HopMetrics {
    attempts: Timed<Target>,
    batches: Histogram,
}

impl HopMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let counted = "Attempts at peers, by the region they were made in and what came of them";
        let timed = "Time from an attempt's start to the peer's answer, or to its failure";
        let attempts = Timed::register(registry, ("attempts", counted), ("hop_duration", timed));
        let batches = Histogram::new(BATCHES);
        let help = "Calls that left together for the same peer";
        registry.register("batch_calls", help, batches.clone());
        Self { attempts, batches }
    }

    /// Counts an attempt at a peer in `region`.
    pub(crate) fn ended(&self, region: &Region, problem: Option<&Problem>, elapsed: Duration) {
        let target = Target::new(Some(region));
        self.attempts.ended(&target, problem, elapsed);
    }

    /// Counts `calls` that left together.
    pub(crate) fn left_together(&self, calls: u32) {
        self.batches.observe(f64::from(calls));
    }
}
