//! What is not counted as it happens, but read at each scrape.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{PREFIX, labels::Texts, registered};

/// The state of an instance at a scrape.
#[derive(Debug)]
pub(crate) struct Readings<'a> {
    /// Calls that were accepted and are not answered yet.
    pub in_flight: usize,
    /// Functions that run here.
    pub running: usize,
    /// How many may.
    pub running_limit: usize,
    /// Calls that wait to leave for a peer.
    pub queued: usize,
    /// Whether it is stopping.
    pub is_draining: bool,
    /// Whether the store of idempotency keys answers; `None` without one.
    pub key_store_is_up: Option<bool>,
    /// Rounds of discovery that were finished.
    pub rounds: u64,
    /// The time since DNS last gave a whole answer; `None` when it never did.
    pub last_success: Option<Duration>,
    /// Whether the last queries failed.
    pub is_stale: bool,
    /// The number of peers by region and state, zeros included.
    pub peers: BTreeMap<(&'a str, &'static str), u32>,
}

impl Readings<'_> {
    /// These numbers alone. They are not kept from one scrape to the next, so a region that is no longer known leaves no
    /// label behind.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        let mut show = |name, help, value: usize| {
            let gauge: Gauge = registered(&mut registry, name, help);
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let help = "Calls that were accepted and are not answered yet, run here or forwarded";
        show("in_flight", help, self.in_flight);
        show("running", "Functions that run here now", self.running);
        let help = "How many functions may run here at once";
        show("running_limit", help, self.running_limit);
        show("queued", "Calls that wait to leave for a peer", self.queued);
        let help = "1 once the instance is stopping";
        show("draining", help, self.is_draining.into());
        if let Some(is_up) = self.key_store_is_up {
            let help = "1 while the store of idempotency keys answers";
            show("key_store_up", help, is_up.into());
        }
        let help = "1 when the last DNS queries failed, so that the peers are those found before";
        show("discovery_stale", help, self.is_stale.into());
        let help = "Rounds of discovery that were finished";
        let rounds: Counter = registered(&mut registry, "discovery_rounds", help);
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
        let help = "Peers by region and state";
        let peers: Family<Texts<2>, Gauge> = registered(&mut registry, "peers", help);
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
