//! How far away a peer is: the time that a few bytes to it and its answer take, whatever connection they travel on.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What part of the known distance a new measurement replaces: an eighth, as TCP does (RFC 6298, section 2.3).
const PART: u64 = 8;

/// How far away a peer is, smoothed over the round trips that probes and connections measured.
#[derive(Debug, Default)]
pub(crate) struct Distance {
    /// In nanoseconds; 0 before the first measurement.
    nanoseconds: AtomicU64,
}

impl Distance {
    /// Notes a round trip, which took as long as `measured` from the first byte to the last.
    pub(crate) fn note(&self, measured: Duration) {
        let measured = u64::try_from(measured.as_nanos())
            .unwrap_or(u64::MAX)
            .max(1);
        let known = self.nanoseconds.load(Ordering::Relaxed);
        let now = match known {
            0 => measured,
            known => known - known / PART + measured / PART,
        };
        // Of two measurements at once, one may be lost: there will be others.
        self.nanoseconds.store(now.max(1), Ordering::Relaxed);
    }

    /// The round trip to the peer; `None` before the first measurement.
    pub(crate) fn get(&self) -> Option<Duration> {
        match self.nanoseconds.load(Ordering::Relaxed) {
            0 => None,
            known => Some(Duration::from_nanos(known)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_follows_what_is_measured_and_no_single_measurement() {
        let distance = Distance::default();
        assert_eq!(distance.get(), None);
        distance.note(Duration::from_millis(80));
        assert_eq!(distance.get(), Some(Duration::from_millis(80)));
        distance.note(Duration::from_millis(800));
        assert_eq!(distance.get(), Some(Duration::from_millis(170)));
        for _ in 0..64 {
            distance.note(Duration::from_millis(80));
        }
        assert!(distance.get().unwrap() < Duration::from_millis(81));
    }
}
