//! What came of many calls: counts, rates, percentiles, and whether the log of runs says the same.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::Outcome;

/// What came of every call, in the order of the answers.
#[derive(Clone, Debug)]
pub(crate) struct Report(pub Vec<Outcome>);

impl Report {
    /// The calls that `fit`.
    pub(crate) fn only(&self, fit: impl Fn(&Outcome) -> bool) -> Self {
        Self(
            self.0
                .iter()
                .filter(|outcome| fit(outcome))
                .cloned()
                .collect(),
        )
    }

    /// The calls without a result.
    pub(crate) fn failures(&self) -> Self {
        self.only(|outcome| !outcome.is_ok())
    }

    /// How many calls there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The part of the calls that has no result, 0 to 1.
    pub(crate) fn failure_rate(&self) -> f64 {
        ratio(self.failures().count(), self.count())
    }

    /// Attempts of all calls.
    pub(crate) fn attempts(&self) -> usize {
        let attempts: u64 = self.0.iter().map(|outcome| outcome.attempts).sum();
        usize::try_from(attempts).unwrap()
    }

    /// Attempts for each call.
    pub(crate) fn attempts_per_call(&self) -> f64 {
        ratio(self.attempts(), self.count())
    }

    /// What `measure` gives for all but the largest (1 - `part`) of the calls; zero without calls.
    pub(crate) fn percentile(&self, part: f64, measure: impl Fn(&Outcome) -> Duration) -> Duration {
        let mut times: Vec<_> = self.0.iter().map(measure).collect();
        times.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among few"
        )]
        let rank = (times.len() as f64 * part).ceil() as usize;
        let place = rank.clamp(1, times.len().max(1)) - 1;
        times.get(place).copied().unwrap_or_default()
    }

    /// How late answers came after their deadlines beyond how late the calls were sent, at most: for 99 % of the calls
    /// and for all.
    pub(crate) fn lateness(&self) -> [Duration; 2] {
        [0.99, 1.0].map(|part| {
            let lag = self.percentile(part, |call| call.lag);
            self.percentile(part, |call| call.lateness)
                .saturating_sub(lag)
        })
    }

    /// How often `runs` has an id of these calls more than once.
    pub(crate) fn double_runs(&self, runs: &BTreeMap<String, u32>) -> usize {
        let ran_twice = |outcome: &&Outcome| runs.get(&outcome.id).is_some_and(|runs| *runs > 1);
        self.0.iter().filter(ran_twice).count()
    }

    /// The calls whose answer the log of runs contradicts: `yes` and it did not run, or `no` and it did.
    pub(crate) fn lies(&self, runs: &BTreeMap<String, u32>) -> Self {
        self.only(|outcome| match outcome.executed.as_str() {
            "yes" => !runs.contains_key(&outcome.id),
            "no" => runs.contains_key(&outcome.id),
            _ => false,
        })
    }
}

/// How many calls ended how, and how fast: one line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
        for Outcome { code, executed, .. } in &self.0 {
            *kinds.entry(format!("{code}/{executed}")).or_default() += 1;
        }
        let [half, most, all] =
            [0.5, 0.99, 1.0].map(|part| self.percentile(part, |outcome| outcome.latency));
        write!(
            f,
            "{} calls {kinds:?}, {:.3} attempts a call, latency p50 {half:.1?} p99 {most:.1?} max {all:.1?}, sent late by \
             at most {:.1?}",
            self.count(),
            self.attempts_per_call(),
            self.percentile(1.0, |call| call.lag)
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of counts")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}
