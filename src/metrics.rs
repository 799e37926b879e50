//! What one instance counts and measures, for `GET /metrics`. Nothing is global, so that two instances in one process
//! count apart. Every label is one of a bounded set; what is not known here is `other`. A call's region is `target_region`,
//! not `region`: Fly's scraper overwrites a label of that name with the region of the instance that it asks
//! (<https://fly.io/docs/monitoring/metrics/>).
//!
//! What ends and takes time is counted by how it ended, its time in a histogram; the handles for what goes well are kept, so
//! that it costs one look into a map.

use std::{
    borrow::Borrow,
    collections::HashSet,
    fmt,
    hash::Hash,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use foldhash::HashMap;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry, Unit},
};

use crate::{
    config::Identity,
    feed::Feed,
    name::{BootId, FunctionName},
    problem::{Code, Executed, Problem},
    region::Region,
};

/// What the name of every metric starts with.
pub(crate) const PREFIX: &str = "fly_rpc";

/// Who calls without a token, where none is asked for.
const ANONYMOUS: &str = "anonymous";
/// What stands for everything that is not known here.
const OTHER: &str = "other";
/// The most functions with a label of their own: those of an app come and go, and a label stays.
const MAX_FUNCTIONS: usize = 2000;

/// The bounds of the number of calls that leave together.
const BATCHES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Labels by name, whose values are a few words.
type Words<const N: usize> = [(&'static str, &'static str); N];
/// Labels by name.
pub(crate) type Texts<const N: usize> = [(&'static str, String); N];

#[derive(Debug)]
pub(crate) struct Metrics {
    /// Calls, as their callers see them.
    pub(crate) calls: CallMetrics,
    pub(crate) functions: FunctionMetrics,
    pub(crate) peers: PeerMetrics,
    /// What happens, for `GET /events`.
    pub(crate) feed: Feed,
    registry: Registry,
}

impl Metrics {
    /// The metrics of the run `boot` of the instance `identity`, which has `functions`.
    pub(crate) fn new(
        identity: &Identity,
        boot: &BootId,
        functions: impl Iterator<Item = FunctionName>,
    ) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        // A gauge, because the text format that is older than OpenMetrics has no type `info`.
        let help = "What runs here, and in which region";
        let build: Family<Texts<3>, Gauge> = registered(&mut registry, "build_info", help);
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("release", identity.release.clone().unwrap_or_default()),
            ("local_region", identity.region.to_string()),
        ];
        build.get_or_create(&labels).set(1);
        Self {
            calls: CallMetrics::register(&mut registry),
            functions: FunctionMetrics::register(&mut registry, functions),
            peers: PeerMetrics::register(&mut registry),
            feed: Feed::new(boot),
            registry,
        }
    }

    /// Everything, with the `readings` of now, as text that reads the same in the format of OpenMetrics and in the one before
    /// it.
    ///
    /// # Errors
    /// A metric cannot be written, which is a bug of ours.
    pub(crate) fn text(&self, readings: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, readings)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A metric that starts at nothing, once it is in `registry`.
pub(crate) fn registered<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn registered_times(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let times = seconds();
    registry.register_with_unit(name, help, Unit::Seconds, times.clone());
    times
}

/// Calls that this instance took from clients, and from its own program.
#[derive(Debug)]
pub(crate) struct CallMetrics {
    calls: Timed<Option<Region>>,
    failovers: Family<Texts<1>, Counter>,
    choices: Family<(Words<1>, Texts<1>), Counter>,
    clients: Family<(Texts<1>, Words<2>), Counter>,
    /// The counters of what went well, by client.
    served: Kept<String, Counter>,
    refused: Family<Words<1>, Counter>,
    /// Those whose client went away before there was an answer.
    pub(crate) abandoned: Counter,
    passed_on: Family<Texts<1>, Counter>,
    pub(crate) fan_outs: Counter,
    /// Those that got the outcome of an earlier call with the same idempotency key.
    pub(crate) replayed: Counter,
    /// Calls that Fly Proxy was asked to replay.
    pub(crate) replays_asked: Counter,
}

impl CallMetrics {
    fn register(registry: &mut Registry) -> Self {
        let counted =
            "Calls that this instance took, by the region they are for and what came of them";
        let timed = "Time from a call's arrival here to its answer";
        let calls = Timed::register(registry, ("calls", counted), ("call_duration", timed));
        let help = "Attempts after the first one of a call";
        let failovers = registered(registry, "failovers", help);
        let help = "Calls for a list of regions or any, by the item of the list that answered and its region";
        let choices = registered(registry, "choices", help);
        let help = "Calls by HTTP, by the client that made them and what came of them";
        let clients = registered(registry, "client_calls", help);
        let help = "Requests that were answered with a problem before they were calls";
        let refused = registered(registry, "refused_requests", help);
        let help = "Calls by HTTP whose client went away before there was an answer";
        let abandoned = registered(registry, "abandoned_calls", help);
        let help = "Calls with a consistency token that a later region of their list answered, by that region";
        let passed_on = registered(registry, "token_passed_on", help);
        let help = "Fan-outs by HTTP; each of their calls is counted as one by its region";
        let fan_outs = registered(registry, "fan_outs", help);
        let help = "Calls that got the outcome of an earlier call with the same idempotency key";
        let replayed = registered(registry, "replayed", help);
        let help = "Calls by HTTP that Fly Proxy was asked to replay in their region";
        let replays_asked = registered(registry, "replays_asked", help);
        Self {
            calls,
            failovers,
            choices,
            clients,
            served: Kept::default(),
            refused,
            abandoned,
            passed_on,
            fan_outs,
            replayed,
            replays_asked,
        }
    }

    /// Counts a call for `region`, which is `None` where no instance was ever seen in it.
    pub(crate) fn ended(
        &self,
        region: Option<&Region>,
        problem: Option<&Problem>,
        attempts: u32,
        elapsed: Duration,
    ) {
        let label = || target(region);
        self.calls.ended(&region.cloned(), label, problem, elapsed);
        if attempts > 1 {
            let failovers = self.failovers.get_or_create(&label());
            failovers.inc_by(u64::from(attempts - 1));
        }
    }

    /// Counts a call for a list of regions, or any, that `item` of the list, from 0, answered from `region`, or none.
    pub(crate) fn chosen(&self, item: Option<usize>, region: Option<&Region>) {
        let item = item.map_or("none", |item| ["1", "2", "3"][item.min(2)]);
        let labels = ([("item", item)], target(region));
        self.choices.get_or_create(&labels).inc();
    }

    /// Counts a call with a consistency token that `region` answered, because one before it in the list did not.
    pub(crate) fn passed_on(&self, region: &Region) {
        self.passed_on.get_or_create(&target(Some(region))).inc();
    }

    /// Counts a call of the client `name`; `None` where no token is asked for.
    pub(crate) fn of_client(&self, name: Option<&str>, problem: Option<&Problem>) {
        let client = name.unwrap_or(ANONYMOUS);
        if problem.is_none() && self.served.find(client, |served| _ = served.inc()) {
            return;
        }
        let labels = ([("client", client.to_owned())], outcome(problem));
        let counter = self.clients.get_or_create_owned(&labels);
        counter.inc();
        if problem.is_none() {
            self.served.keep(client.to_owned(), counter);
        }
    }

    /// Counts a request that was refused before it was a call.
    pub(crate) fn refused(&self, code: Code) {
        self.refused.get_or_create(&[("code", code.as_str())]).inc();
    }
}

/// Calls from all callers that ran here, or were to run here.
#[derive(Debug)]
pub(crate) struct FunctionMetrics {
    executions: Timed<FunctionName>,
    known: RwLock<HashSet<FunctionName>>,
    with_token: Family<Words<2>, Counter>,
    token_wait: Histogram,
}

impl FunctionMetrics {
    fn register(registry: &mut Registry, known: impl Iterator<Item = FunctionName>) -> Self {
        let counted = "Calls that were to run here, by function and what came of them";
        let timed = "Time from a function's start to its end";
        let (counted, timed) = (("executions", counted), ("function_duration", timed));
        let executions = Timed::register(registry, counted, timed);
        let help = "Calls with a consistency token that ran here, or were to, by what came of them";
        let with_token = registered(registry, "token_executions", help);
        let help = "Time that functions waited until their data had seen the token, as they say";
        let token_wait = registered_times(registry, "token_wait", help);
        Self {
            executions,
            known: RwLock::new(known.collect()),
            with_token,
            token_wait,
        }
    }

    /// Counts calls of `name` under its own label from here on, while there is room.
    pub(crate) fn know(&self, name: &FunctionName) {
        let is_known =
            |known: &HashSet<FunctionName>| known.contains(name) || known.len() >= MAX_FUNCTIONS;
        // Nearly always it is known, and reading holds up no other call.
        if !is_known(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.insert(name.clone());
        }
    }

    /// Counts a call whose function started.
    pub(crate) fn ended(&self, name: &FunctionName, problem: Option<&Problem>, elapsed: Duration) {
        let label = || self.label(name);
        self.executions.ended(name, label, problem, elapsed);
    }

    /// Counts a call whose function did not start.
    pub(crate) fn refused(&self, name: &FunctionName, problem: &Problem) {
        self.executions.refused(self.label(name), problem);
    }

    /// Counts a call with a consistency token, for which the function `waited`, where it says so.
    pub(crate) fn with_token(&self, problem: Option<&Problem>, waited: Option<Duration>) {
        self.with_token.get_or_create(&outcome(problem)).inc();
        if let Some(waited) = waited {
            self.token_wait.observe(waited.as_secs_f64());
        }
    }

    fn label(&self, name: &FunctionName) -> Texts<1> {
        let functions = self.known.read().unwrap_or_else(PoisonError::into_inner);
        [("function", known(functions.get(name)))]
    }
}

/// Probes of peers, attempts at them, and how many calls leave for one together.
#[derive(Debug)]
pub(crate) struct PeerMetrics {
    attempts: Timed<Region>,
    batches: Histogram,
    probes: Family<Words<1>, Counter>,
    probe_durations: Histogram,
}

impl PeerMetrics {
    fn register(registry: &mut Registry) -> Self {
        let counted = "Attempts at peers, by the region they were made in and what came of them";
        let timed = "Time from an attempt's start to the peer's answer, or to its failure";
        let attempts = Timed::register(registry, ("attempts", counted), ("hop_duration", timed));
        let batches = Histogram::new(BATCHES);
        let help = "Calls that left together for the same peer";
        registry.register("batch_calls", help, batches.clone());
        let help = "Questions to addresses who answers there, by how they ended";
        let probes = registered(registry, "probes", help);
        let help = "Time that peers took to answer a probe";
        let probe_durations = registered_times(registry, "probe_duration", help);
        Self {
            attempts,
            batches,
            probes,
            probe_durations,
        }
    }

    /// Counts an attempt at a peer in `region`.
    pub(crate) fn tried(&self, region: &Region, problem: Option<&Problem>, elapsed: Duration) {
        let label = || target(Some(region));
        self.attempts.ended(region, label, problem, elapsed);
    }

    /// Counts `calls` that left together, if there were any.
    pub(crate) fn left_together(&self, calls: u32) {
        if calls > 0 {
            self.batches.observe(f64::from(calls));
        }
    }

    /// Counts a probe that a peer answered after `rtt`, or no peer.
    pub(crate) fn probed(&self, rtt: Option<Duration>) {
        if let Some(rtt) = rtt {
            self.probe_durations.observe(rtt.as_secs_f64());
        }
        let outcome = if rtt.is_some() { "answered" } else { "failed" };
        self.probes.get_or_create(&[("outcome", outcome)]).inc();
    }
}

/// The labels of an outcome: `ok`, or the code of `problem`; and whether the function ran.
fn outcome(problem: Option<&Problem>) -> Words<2> {
    let ok = ("ok", Executed::Yes);
    let (code, executed) = problem.map_or(ok, |problem| (problem.code.as_str(), problem.executed));
    [("code", code), ("executed", executed.as_str())]
}

/// The region that a call is for; `None` where no instance was ever seen in it.
fn target(region: Option<&Region>) -> Texts<1> {
    [("target_region", known(region))]
}

fn known(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| OTHER.to_owned(), ToString::to_string)
}

/// The bounds of every histogram of times, in seconds: from a call within one machine to the longest timeout that is
/// allowed by default.
const SECONDS: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    15.0, 60.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// How many handles are kept; for more, the maps of the metrics are looked into each time.
const MAX_KEPT: usize = 4096;

/// What ended and how long it took, by a label that follows from a `By`.
#[derive(Debug)]
struct Timed<By> {
    outcomes: Family<(Texts<1>, Words<2>), Counter>,
    durations: Family<Texts<1>, Histogram, fn() -> Histogram>,
    /// Of what went well.
    kept: Kept<By, (Counter, Histogram)>,
}

impl<By: Clone + Eq + Hash> Timed<By> {
    /// Registers the counter of outcomes and the histogram, each by its name and help.
    fn register(
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
    fn ended(
        &self,
        by: &By,
        label: impl FnOnce() -> Texts<1>,
        problem: Option<&Problem>,
        elapsed: Duration,
    ) {
        let seconds = elapsed.as_secs_f64();
        let count = |(ok, duration): &(Counter, Histogram)| {
            ok.inc();
            duration.observe(seconds);
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
            self.kept.keep(by.clone(), (counter, duration));
        }
    }

    /// Counts one that took no time worth measuring.
    fn refused(&self, label: Texts<1>, problem: &Problem) {
        let labels = (label, outcome(Some(problem)));
        self.outcomes.get_or_create(&labels).inc();
    }
}

/// Handles to metrics by what their labels follow from: a look into the maps of the library hashes every word of the labels.
#[derive(Debug)]
struct Kept<By, Handle>(RwLock<HashMap<By, Handle>>);

impl<By: Eq + Hash, Handle> Kept<By, Handle> {
    /// Whether a handle is kept for `by`, which `count` has been given then.
    fn find<Q>(&self, by: &Q, count: impl FnOnce(&Handle)) -> bool
    where
        By: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(by).map(count).is_some()
    }

    fn keep(&self, by: By, handle: Handle) {
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
