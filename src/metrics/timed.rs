//! What ends and takes time: counted by how it ended, its time in a histogram. The handles for what goes well are kept, so
//! that it costs one look into a map.

use std::{
    borrow::Borrow,
    hash::Hash,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use foldhash::HashMap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{Words, outcome};
use crate::problem::Problem;

/// The bounds of every histogram of times, in seconds: from a call within one machine to the longest timeout that is
/// allowed by default.
const SECONDS: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    15.0, 60.0,
];

pub(super) fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// How many handles are kept; for more, the maps of the metrics are looked into each time.
const MAX_KEPT: usize = 4096;

/// What ended and how long it took, by a label that follows from a `By`.
#[derive(Debug)]
pub(super) struct Timed<By, Label> {
    outcomes: Family<(Label, Words<2>), Counter>,
    durations: Family<Label, Histogram, fn() -> Histogram>,
    kept: Kept<By, Handles>,
}

#[derive(Debug)]
struct Handles {
    ok: Counter,
    duration: Histogram,
}

impl<By, Label> Timed<By, Label>
where
    By: Clone + Eq + Hash,
    Label: EncodeLabelSet + Clone + Eq + Hash + Send + Sync + std::fmt::Debug + 'static,
{
    /// Registers the counter of outcomes and the histogram, each by its name and help.
    pub(super) fn register(
        registry: &mut Registry,
        (counter, counted): (&str, &str),
        (histogram, timed): (&str, &str),
    ) -> Self {
        let outcomes = Family::default();
        registry.register(counter, counted, outcomes.clone());
        let durations = Family::new_with_constructor(seconds as fn() -> Histogram);
        registry.register_with_unit(histogram, timed, Unit::Seconds, durations.clone());
        Self {
            outcomes,
            durations,
            kept: Kept::default(),
        }
    }

    /// Counts one that ended with `problem`, or well, after `elapsed`. Its `label` is made only where no handle is kept.
    pub(super) fn ended(
        &self,
        by: &By,
        label: impl FnOnce() -> Label,
        problem: Option<&Problem>,
        elapsed: Duration,
    ) {
        let seconds = elapsed.as_secs_f64();
        let count = |handles: &Handles| {
            handles.ok.inc();
            handles.duration.observe(seconds);
        };
        if problem.is_none() && self.kept.find(by, count) {
            return;
        }
        // Failures, and the first success: rare enough for labels to be made and both maps to be looked into.
        let label = label();
        let duration = self.durations.get_or_create_owned(&label);
        duration.observe(seconds);
        let labels = (label, outcome(problem));
        let counter = self.outcomes.get_or_create_owned(&labels);
        counter.inc();
        if problem.is_none() {
            let handles = Handles {
                ok: counter,
                duration,
            };
            self.kept.keep(by.clone(), handles);
        }
    }

    /// Counts one that took no time worth measuring.
    pub(super) fn refused(&self, label: Label, problem: &Problem) {
        let labels = (label, outcome(Some(problem)));
        self.outcomes.get_or_create(&labels).inc();
    }
}

/// Handles to metrics by what their labels follow from: a look into the maps of the library hashes every word of the labels.
#[derive(Debug)]
pub(super) struct Kept<By, Handle>(RwLock<HashMap<By, Handle>>);

impl<By: Eq + Hash, Handle> Kept<By, Handle> {
    /// Whether a handle is kept for `by`, which `count` has been given then.
    pub(super) fn find<Q>(&self, by: &Q, count: impl FnOnce(&Handle)) -> bool
    where
        By: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(by).map(count).is_some()
    }

    pub(super) fn keep(&self, by: By, handle: Handle) {
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.insert(by, handle);
        }
    }
}

impl<By, Handle> Default for Kept<By, Handle> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}
