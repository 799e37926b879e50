//! How discovery fares: probes as they end, and the rest as it stands when somebody asks.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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
    labels::{Peers, Probe},
    timed::Seconds,
};

/// How discovery fares, as told when somebody asks.
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

/// What is counted and shown of discovery.
#[derive(Debug)]
pub(crate) struct DiscoveryMetrics {
    probes: Family<Probe, Counter>,
    probe_durations: Histogram,
    rounds: Counter,
    last_success: Gauge<f64, AtomicU64>,
    is_stale: Gauge,
    peers: Family<Peers, Gauge>,
    /// The labels of `peers`: those of a region that is no longer known go.
    shown: Mutex<HashSet<Peers>>,
}

impl DiscoveryMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            probes: Family::default(),
            probe_durations: Seconds.new_metric(),
            rounds: Counter::default(),
            last_success: Gauge::default(),
            is_stale: Gauge::default(),
            peers: Family::default(),
            shown: Mutex::default(),
        };
        registry.register(
            "probes",
            "Questions to addresses who answers there, by how they ended",
            metrics.probes.clone(),
        );
        registry.register_with_unit(
            "probe_duration",
            "Time that peers took to answer a probe",
            Unit::Seconds,
            metrics.probe_durations.clone(),
        );
        registry.register(
            "discovery_rounds",
            "Rounds of discovery that were finished",
            metrics.rounds.clone(),
        );
        registry.register_with_unit(
            "discovery_last_success_timestamp",
            "When DNS last gave a whole answer, in seconds since 1970; 0 when it never did",
            Unit::Seconds,
            metrics.last_success.clone(),
        );
        registry.register(
            "discovery_stale",
            "1 when the last DNS queries failed, so that the peers are those found before",
            metrics.is_stale.clone(),
        );
        registry.register("peers", "Peers by region and state", metrics.peers.clone());
        metrics
    }

    /// Counts a probe that a peer answered after `rtt`, or nobody of ours.
    pub(crate) fn probed(&self, rtt: Option<Duration>) {
        let outcome = match rtt {
            Some(rtt) => {
                self.probe_durations.observe(rtt.as_secs_f64());
                "answered"
            }
            None => "failed",
        };
        self.probes.get_or_create(&Probe { outcome }).inc();
    }

    /// Shows `now` to whoever asks next.
    pub(crate) fn show(&self, now: &Discovered<'_>) {
        self.rounds.inner().store(now.rounds, Ordering::Relaxed);
        let last_success = now.last_success.and_then(|age| {
            let date = SystemTime::now().checked_sub(age)?;
            date.duration_since(UNIX_EPOCH).ok()
        });
        let last_success = last_success.unwrap_or_default();
        self.last_success.set(last_success.as_secs_f64());
        self.is_stale.set(i64::from(now.is_stale));
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |labels: &Peers| {
            !now.peers
                .contains_key(&(labels.peer_region.as_str(), labels.state))
        };
        for labels in shown.extract_if(|labels| is_gone(labels)) {
            self.peers.remove(&labels);
        }
        for ((region, state), count) in &now.peers {
            let labels = Peers {
                peer_region: (*region).to_owned(),
                state,
            };
            self.peers.get_or_create(&labels).set(i64::from(*count));
            shown.insert(labels);
        }
    }
}
