//! Calls for whose end no caller waits: once admitted, they are in flight like any other, run to their end within their
//! deadline, and are logged when they have ended or were cut off.

use std::sync::Arc;

use futures_util::future;
use tokio::time::Instant;
use tracing::Instrument;

use super::{Dispatcher, Report};
use crate::{
    call::Call,
    name::RequestId,
    problem::{Code, Executed, Problem},
    region::Targets,
    reply::Meta,
};

impl Dispatcher {
    /// Runs `call` where `targets` say without a caller who waits for it. `ended` is given what came of it, or `None` where
    /// this instance stopped before: it may have run.
    ///
    /// # Errors
    /// What came of a call that was refused at once, and did not run: it is not admitted, and `ended` is not called.
    pub(crate) async fn dispatch_in_background(
        &self,
        targets: &Targets,
        call: &Arc<Call>,
        request_id: RequestId,
        arrived: Instant,
        ended: impl FnOnce(Option<Report>) + Send + 'static,
    ) -> Result<(), Report> {
        let refused = |problem: Problem| {
            let region = targets.first(&self.identity.primary).cloned();
            let meta = Meta::untried(region, arrived.elapsed(), request_id.clone());
            Report::new(Err(problem), meta)
        };
        let in_flight = self.lifecycle.admit().map_err(refused)?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let most = self.max_in_flight;
            let detail = format!(
                "{most} calls run here for which nobody waits, as many as RPC_MAX_IN_FLIGHT allows"
            );
            refused(Problem::new(Code::Overloaded, detail))
        })?;
        let (dispatcher, admitted) = (self.clone(), Some(Arc::clone(&in_flight)));
        let (targets, call) = (targets.clone(), Arc::clone(call));
        let run = async move {
            dispatcher
                .dispatch(&targets, &call, request_id, arrived, admitted)
                .await
        };
        let mut run = Box::pin(run.in_current_span());
        match future::poll_immediate(&mut run).await {
            Some(report) if is_refusal(&report) => return Err(report),
            Some(report) => ended(Some(report)),
            None => {
                let stop = self.stop.clone();
                self.tasks.spawn(async move {
                    let report = tokio::select! {
                        biased;
                        () = stop.cancelled() => None,
                        report = run => Some(report),
                    };
                    ended(report);
                    drop((in_flight, place));
                });
            }
        }
        Ok(())
    }
}

fn is_refusal(report: &Report) -> bool {
    let problem = report.result.as_ref().err();
    problem.is_some_and(|problem| problem.executed == Executed::No)
}
