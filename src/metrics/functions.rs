//! Functions that run on this instance, whoever called them.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use prometheus_client::registry::Registry;

use super::{labels::Function, timed::Timed};
use crate::{name::FunctionName, problem::Problem};

/// Calls that ran here, or were to run here.
#[derive(Debug)]
pub(crate) struct FunctionMetrics {
    executions: Timed<Function>,
    known: RwLock<HashSet<FunctionName>>,
}

/// The most functions that are told apart: those of an app come and go, and a label stays.
const MAX_FUNCTIONS: usize = 2000;

impl FunctionMetrics {
    pub(super) fn register(
        registry: &mut Registry,
        known: impl Iterator<Item = FunctionName>,
    ) -> Self {
        let executions = Timed::register(
            registry,
            (
                "executions",
                "Calls that were to run here, by function and what came of them",
            ),
            (
                "function_duration",
                "Time from a function's start to its end",
            ),
        );
        Self {
            executions,
            known: RwLock::new(known.collect()),
        }
    }

    /// Tells calls of `name` apart from others from here on, while there is room.
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

    fn label(&self, name: &FunctionName) -> Function {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Function::new(known.get(name))
    }
}
