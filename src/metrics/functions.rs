//! Functions that run on this instance, whoever called them.

use std::{collections::HashSet, time::Duration};

use prometheus_client::registry::Registry;

use super::{labels::Function, timed::Timed};
use crate::{name::FunctionName, problem::Problem};

/// Calls that ran here, or were to run here.
#[derive(Debug)]
pub(crate) struct FunctionMetrics {
    executions: Timed<Function>,
    known: HashSet<FunctionName>,
}

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
            known: known.collect(),
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
        Function::new(self.known.get(name))
    }
}
