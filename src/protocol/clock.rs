//! How long the lines of one connection were on their way, without comparing clocks.
//!
//! Each line has the time on its connection's clock, which the sender started. The difference between the reader's time
//! and that is the delay and an unknown constant; the smallest difference ever seen stands for a line that was not held
//! up, and what a line took beyond it was spent waiting: in the buffers of an instance that hung, or of a network that was
//! cut. Two clocks run apart slowly, so the smallest difference is allowed to grow a little with time.

use std::time::Duration;

use tokio::time::Instant;

/// By how much two clocks may run apart: 200 millionths, twice what ordinary quartz does.
const DRIFT: i128 = 5_000;

#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// The smallest difference between the reader's and the sender's time, in microseconds, and when it was seen.
    least: (i128, Instant),
}

impl Clock {
    /// The clock of a connection whose upgrade was asked for at `at_us` and arrived at `now`.
    pub(crate) fn new(at_us: u64, now: Instant) -> Self {
        Self {
            started: now,
            least: (-i128::from(at_us), now),
        }
    }

    /// How much longer than the fastest ones the line of `at_us`, read at `now`, was on its way.
    pub(crate) fn delay(&mut self, at_us: u64, now: Instant) -> Duration {
        let micros = |span: Duration| i128::try_from(span.as_micros()).unwrap_or(i128::MAX);
        let difference = micros(now - self.started) - i128::from(at_us);
        let (least, seen) = self.least;
        // Where the sender's clock is the slower one, the difference grows from line to line, and none was held up.
        let usual = least + micros(now - seen) / DRIFT;
        if difference <= usual {
            self.least = (difference, now);
            return Duration::ZERO;
        }
        Duration::from_micros(u64::try_from(difference - usual).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_held_up_is_late_by_what_it_waited() {
        let start = Instant::now();
        let mut clock = Clock::new(500_000, start);
        for (sent_ms, read_ms, late_ms) in [
            (510, 12, 2),
            (530, 28, 0),
            (540, 39, 1),
            (600, 10_098, 10_000),
        ] {
            let delay = clock.delay(sent_ms * 1000, start + Duration::from_millis(read_ms));
            let off = delay.abs_diff(Duration::from_millis(late_ms));
            assert!(off < Duration::from_millis(3), "{delay:?}");
        }
    }

    #[test]
    fn clocks_that_run_apart_make_no_line_late() {
        let start = Instant::now();
        let mut clock = Clock::new(0, start);
        for second in 1..10_000 {
            // The reader's clock is fast by a hundred millionths.
            let now = start + Duration::from_micros(second * 1_000_100);
            assert_eq!(clock.delay(second * 1_000_000, now), Duration::ZERO);
        }
    }
}
