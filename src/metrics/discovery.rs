//! Discovery: probes as they end, and the rest as it stands when somebody asks.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::{
    PREFIX,
    labels::{Texts, Words},
    registered,
    timed::Seconds,
};

/// The state of discovery when somebody asks.
#[derive(Debug)]
pub(crate) struct Discovered<'a> {
    /// Rounds that were finished.
    pub rounds: u64,
    /// The time since DNS last gave a whole answer; `None` when it never did.
    pub last_success: Option<Duration>,
    /// Whether the last queries failed.
    pub is_stale: bool,
    /// The number of peers by region and state, zeros included.
    pub peers: BTreeMap<(&'a str, &'static str), u32>,
}

impl Discovered<'_> {
    /// These numbers alone. They are not kept from one scrape to the next, so a region that is no longer known leaves no
    /// label behind.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        let rounds: Counter = registered(
            &mut registry,
            "discovery_rounds",
            "Rounds of discovery that were finished",
        );
        rounds.inc_by(self.rounds);
        let last_success = self.last_success.and_then(|age| {
            let date = SystemTime::now().checked_sub(age)?;
            date.duration_since(UNIX_EPOCH).ok()
        });
        let timestamp = Gauge::<f64, AtomicU64>::default();
        timestamp.set(last_success.unwrap_or_default().as_secs_f64());
        let help = "When DNS last gave a whole answer, in seconds since 1970; 0 when it never did";
        let name = "discovery_last_success_timestamp";
        registry.register_with_unit(name, help, Unit::Seconds, timestamp);
        let help = "1 when the last DNS queries failed, so that the peers are those found before";
        let is_stale: Gauge = registered(&mut registry, "discovery_stale", help);
        is_stale.set(self.is_stale.into());
        let peers: Family<Texts<2>, Gauge> =
            registered(&mut registry, "peers", "Peers by region and state");
        for ((region, state), count) in &self.peers {
            let labels = [
                ("peer_region", (*region).into()),
                ("state", (*state).into()),
            ];
            peers.get_or_create(&labels).set((*count).into());
        }
        registry
    }
}

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
