//! Functions that run on this instance, from all callers.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::{
    labels::{Function, Words, outcome},
    registered,
    timed::{Seconds, Timed},
};
use crate::{name::FunctionName, problem::Problem};

/// Calls that ran here, or were to run here.
#[derive(Debug)]
pub(crate) struct FunctionMetrics {
    executions: Timed<Function>,
    known: RwLock<HashSet<FunctionName>>,
    with_token: Family<Words<2>, Counter>,
    token_wait: Histogram,
}

/// The most functions with a label of their own: those of an app come and go, and a label stays.
const MAX_FUNCTIONS: usize = 2000;

impl FunctionMetrics {
    pub(super) fn register(
        registry: &mut Registry,
        known: impl Iterator<Item = FunctionName>,
    ) -> Self {
        let counted = "Calls that were to run here, by function and what came of them";
        let timed = "Time from a function's start to its end";
        let (counted, timed) = (("executions", counted), ("function_duration", timed));
        let executions = Timed::register(registry, counted, timed);
        let help = "Calls with a consistency token that ran here, or were to, by what came of them";
        let with_token = registered(registry, "token_executions", help);
        let token_wait = Seconds.new_metric();
        let help = "Time that functions waited until their data had seen the token, as they say";
        registry.register_with_unit("token_wait", help, Unit::Seconds, token_wait.clone());
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
        if !is_known(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.insert(name.clone());
        }
    }

    /// Counts a call whose function started.
    pub(crate) fn ended(&self, name: &FunctionName, problem: Option<&Problem>, elapsed: Duration) {
        self.executions.ended(&self.label(name), problem, elapsed);
    }

    /// Counts a call whose function did not start.
    pub(crate) fn refused(&self, name: &FunctionName, problem: &Problem) {
        self.executions.refused(&self.label(name), problem);
    }

    /// Counts a call with a consistency token, for which the function `waited`, where it says so.
    pub(crate) fn with_token(&self, problem: Option<&Problem>, waited: Option<Duration>) {
        self.with_token.get_or_create(&outcome(problem)).inc();
        if let Some(waited) = waited {
            self.token_wait.observe(waited.as_secs_f64());
        }
    }

    fn label(&self, name: &FunctionName) -> Function {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Function::new(known.get(name))
    }
}
