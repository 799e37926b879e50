//! Calls as their callers see them: what came of each, how long it took, how often it was tried again; and requests that
//! were refused before they were calls.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{
    labels::{Texts, Words, outcome, target},
    registered,
    timed::Timed,
};
use crate::{
    problem::{Code, Problem},
    region::Region,
};

/// Who calls without a token, where none is asked for.
const ANONYMOUS: &str = "anonymous";

/// Calls that this instance took from clients, and from its own program.
#[derive(Debug)]
pub(crate) struct CallMetrics {
    calls: Timed<Option<Region>, Texts<1>>,
    failovers: Family<Texts<1>, Counter>,
    choices: Family<(Words<1>, Texts<1>), Counter>,
    clients: Family<(Texts<1>, Words<2>), Counter>,
    refused: Family<Words<1>, Counter>,
    abandoned: Counter,
    passed_on: Family<Texts<1>, Counter>,
    fan_outs: Counter,
}

impl CallMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
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
        Self {
            calls,
            failovers,
            choices,
            clients,
            refused,
            abandoned,
            passed_on,
            fan_outs,
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

    /// Counts a call of the client `name`, which is empty where no token is asked for.
    pub(crate) fn of_client(&self, name: &str, problem: Option<&Problem>) {
        let client = if name.is_empty() { ANONYMOUS } else { name };
        let labels = ([("client", client.to_owned())], outcome(problem));
        self.clients.get_or_create(&labels).inc();
    }

    /// Counts a call whose client went away.
    pub(crate) fn abandoned(&self) {
        self.abandoned.inc();
    }

    /// Counts a fan-out.
    pub(crate) fn fan_out(&self) {
        self.fan_outs.inc();
    }

    /// Counts a request that was refused before it was a call.
    pub(crate) fn refused(&self, code: Code) {
        self.refused.get_or_create(&[("code", code.as_str())]).inc();
    }
}
