//! What this instance measures of a peer: the calls that it has under way there itself, whether the peer refused one for
//! being full, and how far away it is. Calls, links and probes write here at any time; none of them waits for another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// What part of the known round trip a new measurement replaces: an eighth, as TCP does (RFC 6298, section 2.3).
const PART: u64 = 8;

/// What this instance measures of a peer.
#[derive(Debug)]
pub(crate) struct PeerStats {
    under_way: AtomicUsize,
    since: Instant,
    /// Until when the peer gets no calls, in milliseconds after `since`; 0 for a peer that never refused one.
    rests_until: AtomicU64,
    /// The smoothed round trip in nanoseconds; 0 before the first measurement.
    round_trip: AtomicU64,
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<PeerStats>);

impl PeerStats {
    /// Counts a call as under way until the result is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Sends the peer no calls for `time`, if others can take them.
    pub(crate) fn rest(&self, time: Duration) {
        let until = (self.since.elapsed() + time).as_millis();
        let until = u64::try_from(until).unwrap_or(u64::MAX);
        self.rests_until.store(until, Ordering::Relaxed);
    }

    /// Whether the peer gets no calls now.
    pub(super) fn is_resting(&self) -> bool {
        let until = self.rests_until.load(Ordering::Relaxed);
        // Most peers never refuse a call: for them, do not read the clock.
        until > 0 && self.since.elapsed() < Duration::from_millis(until)
    }

    /// Takes a measured round trip of a few bytes and their answer, on whatever connection they travel.
    pub(crate) fn note_round_trip(&self, measured: Duration) {
        let measured = u64::try_from(measured.as_nanos())
            .unwrap_or(u64::MAX)
            .max(1);
        let now = match self.round_trip.load(Ordering::Relaxed) {
            0 => measured,
            known => known - known / PART + measured / PART,
        };
        // Of two measurements at once, one may be lost: there will be others.
        self.round_trip.store(now.max(1), Ordering::Relaxed);
    }

    /// The round trip to the peer; `None` before the first measurement.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match self.round_trip.load(Ordering::Relaxed) {
            0 => None,
            known => Some(Duration::from_nanos(known)),
        }
    }
}

impl Default for PeerStats {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            since: Instant::now(),
            rests_until: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_follows_what_is_measured_and_no_single_measurement() {
        let stats = PeerStats::default();
        assert_eq!(stats.round_trip(), None);
        stats.note_round_trip(Duration::from_millis(80));
        assert_eq!(stats.round_trip(), Some(Duration::from_millis(80)));
        stats.note_round_trip(Duration::from_millis(800));
        assert_eq!(stats.round_trip(), Some(Duration::from_millis(170)));
        for _ in 0..64 {
            stats.note_round_trip(Duration::from_millis(80));
        }
        assert!(stats.round_trip().unwrap() < Duration::from_millis(81));
    }
}
