//! How busy a peer is, as far as this instance knows: the calls that it has under way there itself, and whether the peer
//! refused one for being full.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How busy a peer is.
pub(crate) struct Load {
    under_way: AtomicUsize,
    since: Instant,
    /// Until when the peer gets no calls, in milliseconds after `since`; 0 for a peer that never refused one.
    rests_until: AtomicU64,
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Load>);

impl Load {
    /// Counts a call as under way until the result is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// How many calls are under way.
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
}

impl Default for Load {
    /// The load of a peer that is not known to be busy.
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            since: Instant::now(),
            rests_until: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load")
            .field("under_way", &self.under_way())
            .field("is_resting", &self.is_resting())
            .finish()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
