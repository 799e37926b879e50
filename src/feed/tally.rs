//! Counts of calls by region while there are listeners, how long they took in the last minute, and which of them are shown.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    problem::{Code, Executed, Problem},
    region::Region,
};

/// How many calls that went well are shown in a second, and how many failures.
const SHOWN: u32 = 20;
/// The most regions that are counted by themselves; more are counted as one.
const MAX_REGIONS: usize = 256;
/// The parts of the minute for which times are kept, and how long each is, in seconds.
const PARTS: usize = 7;
const PART: u64 = 10;
/// Times are counted in buckets, four to a doubling: 9 % to either side of the middle of one.
const BUCKETS: usize = 88;
const PER_DOUBLING: f64 = 4.0;
/// The lower end of the first bucket, in milliseconds; the last ends at 210 s.
const LEAST_MS: f64 = 0.05;

/// Calls by region, and which calls are shown: the first of each second.
#[derive(Debug, Default)]
pub(super) struct Tally {
    regions: BTreeMap<Option<Region>, RegionTally>,
    second: u64,
    /// Of this second, the calls that went well, and the failures.
    in_second: [u32; 2],
}

#[derive(Debug, Default)]
struct RegionTally {
    calls: u64,
    failures: Vec<FailureCount>,
    parts: [Option<Part>; PARTS],
}

/// The times of one part of a minute.
#[derive(Debug)]
struct Part {
    number: u64,
    buckets: [u32; BUCKETS],
}

/// Calls for one region.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct RegionCounts {
    /// The region; null for all in which no instance was ever seen.
    #[schema(value_type = Option<String>, required, example = "syd")]
    pub region: Option<Region>,
    /// Calls since the event before.
    #[schema(example = 12)]
    pub calls: u64,
    /// Those of them that failed.
    pub failures: Vec<FailureCount>,
    /// The median of the time that calls of the last minute took, in milliseconds; null when there were none.
    #[schema(required, example = 81.4)]
    pub p50_ms: Option<f64>,
    /// The time that 99 of 100 of them did not exceed.
    #[schema(required, example = 140.2)]
    pub p99_ms: Option<f64>,
}

/// Calls that failed in the same way.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub(crate) struct FailureCount {
    /// The problem's code.
    #[schema(value_type = String, example = "peer_lost")]
    pub code: Code,
    /// Whether the function ran.
    pub executed: Executed,
    /// How many.
    #[schema(example = 1)]
    pub calls: u64,
}

impl Tally {
    /// Counts a call for `region`, which is `None` where no instance was ever seen in it, that took `elapsed_ms` and ended
    /// `now`, so long after the start.
    pub(super) fn count(
        &mut self,
        region: Option<&Region>,
        problem: Option<&Problem>,
        elapsed_ms: f64,
        now: Duration,
    ) {
        let region = region.cloned();
        let is_full = self.regions.len() >= MAX_REGIONS && !self.regions.contains_key(&region);
        let region = region.filter(|_| !is_full);
        let counts = self.regions.entry(region).or_default();
        counts.calls += 1;
        if let Some(problem) = problem {
            counts.failed(problem.code, problem.executed);
        }
        counts.took(elapsed_ms, now);
    }

    /// Whether one more call, or failure, is shown in this `second`.
    pub(super) fn shows_another(&mut self, second: u64, is_failure: bool) -> bool {
        if self.second != second {
            (self.second, self.in_second) = (second, [0; 2]);
        }
        let count = &mut self.in_second[usize::from(is_failure)];
        *count += 1;
        *count <= SHOWN
    }

    /// What was counted until `now`.
    pub(super) fn totals(&self, now: Duration) -> Vec<RegionCounts> {
        let regions = self.regions.iter().map(|(region, counts)| {
            let times = counts.last_minute(now);
            RegionCounts {
                region: region.clone(),
                calls: counts.calls,
                failures: counts.failures.clone(),
                p50_ms: quantile(&times, 0.5),
                p99_ms: quantile(&times, 0.99),
            }
        });
        regions.collect()
    }
}

impl RegionTally {
    fn failed(&mut self, code: Code, executed: Executed) {
        let mut known = self.failures.iter_mut();
        match known.find(|known| (known.code, known.executed) == (code, executed)) {
            Some(known) => known.calls += 1,
            None => self.failures.push(FailureCount {
                code,
                executed,
                calls: 1,
            }),
        }
    }

    fn took(&mut self, elapsed_ms: f64, now: Duration) {
        let number = now.as_secs() / PART;
        let place = usize::try_from(number).unwrap_or_default() % PARTS;
        // Six whole parts and the one that is filled now: the one before them is overwritten.
        let slot = &mut self.parts[place];
        if slot.as_ref().is_some_and(|part| part.number != number) {
            *slot = None;
        }
        let part = slot.get_or_insert(Part {
            number,
            buckets: [0; BUCKETS],
        });
        part.buckets[bucket(elapsed_ms)] += 1;
    }

    fn last_minute(&self, now: Duration) -> [u32; BUCKETS] {
        let last = now.as_secs() / PART;
        let recent = |part: &&Part| last - part.number.min(last) < PARTS as u64;
        let mut sums = [0; BUCKETS];
        for part in self.parts.iter().flatten().filter(recent) {
            for (sum, count) in sums.iter_mut().zip(part.buckets) {
                *sum += count;
            }
        }
        sums
    }
}

impl RegionCounts {
    /// What was counted since `before`, with the times as they are.
    pub(crate) fn since(&self, before: &[Self]) -> Self {
        let mut before = before.iter();
        let Some(before) = before.find(|before| before.region == self.region) else {
            return self.clone();
        };
        let failure = |now: &FailureCount| {
            let is_same = |it: &&FailureCount| (it.code, it.executed) == (now.code, now.executed);
            let before = before.failures.iter().find(is_same);
            let calls = now.calls - before.map_or(0, |before| before.calls);
            (calls > 0).then(|| FailureCount {
                calls,
                ..now.clone()
            })
        };
        Self {
            calls: self.calls - before.calls,
            failures: self.failures.iter().filter_map(failure).collect(),
            ..self.clone()
        }
    }
}

fn bucket(elapsed_ms: f64) -> usize {
    let place = (elapsed_ms.max(LEAST_MS) / LEAST_MS).log2() * PER_DOUBLING;
    let last = BUCKETS - 1;
    // A search, because a float does not turn into an index without a cast that may lose.
    (0..last)
        .find(|index| place < *index as f64 + 1.0)
        .unwrap_or(last)
}

/// The middle of the bucket in which the time lies that `part` of all do not exceed.
fn quantile(buckets: &[u32; BUCKETS], part: f64) -> Option<f64> {
    let count: u32 = buckets.iter().sum();
    if count == 0 {
        return None;
    }
    let rank = (f64::from(count) * part).max(1.0);
    let mut seen = 0;
    let found = buckets.iter().position(|bucket| {
        seen += bucket;
        f64::from(seen) >= rank
    })?;
    let middle = LEAST_MS * ((found as f64 + 0.5) / PER_DOUBLING).exp2();
    Some((middle * 1e3).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_those_of_the_last_minute() {
        let mut tally = Tally::default();
        let syd: Region = "syd".parse().unwrap();
        for number in 1..=100_u32 {
            tally.count(Some(&syd), None, f64::from(number), at(number.into()));
        }
        let times = |now| {
            let totals = tally.totals(at(now));
            let counts = &totals[0];
            (counts.calls, counts.p50_ms, counts.p99_ms)
        };
        // Those of 40 s to 100 s, to within a bucket.
        let (calls, p50, p99) = times(100);
        assert_eq!(calls, 100);
        assert!((p50.unwrap() - 70.0).abs() < 7.0, "{p50:?}");
        assert!((p99.unwrap() - 99.0).abs() < 10.0, "{p99:?}");
        assert_eq!(times(180), (100, None, None));
    }

    #[test]
    fn every_time_has_a_bucket() {
        for (elapsed, middle) in [(0.0, 0.0545), (0.05, 0.0545), (1.0, 1.037), (1e9, 192.0e3)] {
            let mut buckets = [0; BUCKETS];
            buckets[bucket(elapsed)] += 1;
            let found = quantile(&buckets, 0.5).unwrap();
            assert!((found / middle - 1.0).abs() < 0.1, "{elapsed}: {found}");
        }
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let mut tally = Tally::default();
        let lost = Problem::new(Code::PeerLost, "gone");
        tally.count(None, Some(&lost), 1.0, at(1));
        let before = tally.totals(at(1));
        tally.count(None, Some(&lost), 1.0, at(2));
        tally.count(None, None, 1.0, at(2));
        let now = tally.totals(at(2));
        let since = now[0].since(&before);
        let failure = FailureCount {
            code: Code::PeerLost,
            executed: Executed::Maybe,
            calls: 1,
        };
        assert_eq!((since.calls, since.failures), (2, vec![failure]));
        let nothing = now[0].since(&now);
        assert_eq!((nothing.calls, nothing.failures.len()), (0, 0));
    }

    #[test]
    fn failures_are_shown_besides_the_others() {
        let mut tally = Tally::default();
        let mut shown = |second, is_failure| {
            let calls = (0..100).filter(|_| tally.shows_another(second, is_failure));
            calls.count()
        };
        assert_eq!(shown(1, false), 20);
        assert_eq!(shown(1, true), 20);
        assert_eq!(shown(2, false), 20);
    }
}
