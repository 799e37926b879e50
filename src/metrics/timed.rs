//! What ends and takes time: counted by how it ended, its time in a histogram. The handles for what goes well are kept, so
//! that it costs one look into a map.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::labels::{Words, outcome};
use crate::problem::Problem;

/// The bounds of every histogram of times, in seconds: from a call within one machine to the longest timeout that is
/// allowed by default.
const SECONDS: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    15.0, 60.0,
];

/// Makes histograms of times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// What ended and how long it took, by the label `K`.
#[derive(Debug)]
pub(super) struct Timed<K> {
    outcomes: Family<(K, Words<2>), Counter>,
    durations: Family<K, Histogram, Seconds>,
    kept: RwLock<HashMap<K, Handles>>,
}

#[derive(Debug)]
struct Handles {
    ok: Counter,
    duration: Histogram,
}

impl<K: EncodeLabelSet + Clone + Eq + Hash + Send + Sync + std::fmt::Debug + 'static> Timed<K> {
    /// Registers the counter of outcomes and the histogram, each by its name and help.
    pub(super) fn register(
        registry: &mut Registry,
        (counter, counted): (&str, &str),
        (histogram, timed): (&str, &str),
    ) -> Self {
        let outcomes = Family::default();
        registry.register(counter, counted, outcomes.clone());
        let durations = Family::new_with_constructor(Seconds);
        registry.register_with_unit(histogram, timed, Unit::Seconds, durations.clone());
        Self {
            outcomes,
            durations,
            kept: RwLock::default(),
        }
    }

    /// Counts one that ended with `problem`, or well, after `elapsed`.
    pub(super) fn ended(&self, by: &K, problem: Option<&Problem>, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        match problem {
            None => self.went_well(by, seconds),
            Some(problem) => {
                self.refused(by, problem);
                self.durations.get_or_create(by).observe(seconds);
            }
        }
    }

    /// Counts one that took no time worth measuring.
    pub(super) fn refused(&self, by: &K, problem: &Problem) {
        let labels = (by.clone(), outcome(Some(problem)));
        self.outcomes.get_or_create(&labels).inc();
    }

    fn went_well(&self, by: &K, seconds: f64) {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(handles) = kept.get(by) {
            return handles.count(seconds);
        }
        drop(kept);
        let ok = (by.clone(), outcome(None));
        let handles = Handles {
            ok: self.outcomes.get_or_create_owned(&ok),
            duration: self.durations.get_or_create_owned(by),
        };
        handles.count(seconds);
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        kept.insert(by.clone(), handles);
    }
}

impl Handles {
    fn count(&self, seconds: f64) {
        self.ok.inc();
        self.duration.observe(seconds);
    }
}
