//! Decides where a call runs: here, or on an instance of its region, and whether another attempt may follow a failed
//! one. One predicate decides that: did it run? At most one hop, so there are no loops.

mod budget;
mod candidates;

use std::{sync::Arc, time::Duration};

use rand::RngExt;
use serde_json::value::RawValue;
use tokio::time::{self, Instant};
use tower::retry::budget::Budget;

use self::{
    budget::Budgets,
    candidates::{Candidates, Place},
};
use crate::{
    call::{Call, Exec},
    cluster::{Cluster, RegionPeers},
    config::Identity,
    deadline::Deadline,
    lifecycle::Lifecycle,
    link::Link,
    name::{InstanceId, RequestId},
    problem::{Code, Executed, Problem},
    region::{Region, Target},
    registry::Executor,
    reply::{Meta, milliseconds},
};

/// How many attempts one call may have.
const MAX_ATTEMPTS: u32 = 3;
/// The shortest and the longest pause before the same instance is tried again, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 10..100;

/// Where calls come in and answers go out.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    identity: Identity,
    lifecycle: Arc<Lifecycle>,
    executor: Arc<Executor>,
    cluster: Arc<Cluster>,
    link: Link,
    budgets: Budgets,
}

/// What came of a call, and what it took.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The function's result, or why there is none.
    pub(crate) result: Result<Box<RawValue>, Problem>,
    /// Where it ran, or was tried.
    pub(crate) meta: Meta,
}

/// The attempts of one call so far.
#[derive(Debug, Default)]
struct Attempts {
    count: u32,
    last: Option<InstanceId>,
    /// The first one that may have run.
    maybe: Option<Problem>,
}

/// What may follow a failed attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Another {
    /// Nothing: the answer stands.
    None,
    /// An attempt on another instance.
    Elsewhere,
    /// An attempt on the same instance, which remembers whether it ran the call.
    SameInstance,
}

impl Dispatcher {
    /// A dispatcher of the instance `identity`.
    pub(crate) fn new(
        identity: Identity,
        lifecycle: Arc<Lifecycle>,
        executor: Arc<Executor>,
        cluster: Arc<Cluster>,
        link: Link,
    ) -> Self {
        Self {
            identity,
            lifecycle,
            executor,
            cluster,
            link,
            budgets: Budgets::new(),
        }
    }

    /// Runs `call` in `target`: the answer to a request that arrived at `arrived`.
    pub(crate) async fn dispatch(
        &self,
        target: &Target,
        call: &Call,
        request_id: RequestId,
        arrived: Instant,
    ) -> Outcome {
        let region = target.region(&self.identity.primary);
        let deadline = Deadline::since(arrived, call.timeout);
        let mut attempts = Attempts::default();
        let result = if self.runs_here(region, call) {
            attempts.begin(&self.identity.instance);
            self.executor.run(call, deadline).await
        } else {
            self.forward(region, call, deadline, &request_id, &mut attempts)
                .await
        };
        let meta = Meta {
            region: Some(region.clone()),
            instance: attempts.last,
            attempts: attempts.count,
            elapsed_ms: milliseconds(arrived.elapsed()),
            request_id,
        };
        Outcome { result, meta }
    }

    /// Runs a call that a peer forwarded: here, or not at all.
    pub(crate) async fn exec(
        &self,
        exec: &Exec,
        request_id: RequestId,
        arrived: Instant,
    ) -> Outcome {
        let deadline = Deadline::since(arrived, exec.call.timeout);
        let (result, attempts) = match self.misplaced(exec) {
            Some(problem) => (Err(problem), 0),
            None => (self.executor.run(&exec.call, deadline).await, 1),
        };
        let Identity {
            region, instance, ..
        } = &self.identity;
        let meta = Meta {
            region: Some(region.clone()),
            instance: Some(instance.clone()),
            attempts,
            elapsed_ms: milliseconds(arrived.elapsed()),
            request_id,
        };
        Outcome { result, meta }
    }

    /// Whether the call runs here without a choice. A call with a key is the region's: its key chooses the instance.
    fn runs_here(&self, region: &Region, call: &Call) -> bool {
        *region == self.identity.region
            && match &call.instance {
                Some(asked) => *asked == self.identity.instance,
                None => call.key.is_none(),
            }
    }

    fn misplaced(&self, exec: &Exec) -> Option<Problem> {
        let Identity {
            region, instance, ..
        } = &self.identity;
        let is_mine = exec.region == *region
            && exec
                .call
                .instance
                .as_ref()
                .is_none_or(|asked| asked == instance);
        let detail = || format!("this is instance {instance} of region \"{region}\"");
        (!is_mine).then(|| Problem::new(Code::WrongRegion, detail()))
    }

    async fn forward(
        &self,
        region: &Region,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
        attempts: &mut Attempts,
    ) -> Result<Box<RawValue>, Problem> {
        let _in_flight = self.lifecycle.admit()?;
        let peers = self.peers(region)?;
        let me = (*region == self.identity.region).then_some(&self.identity.instance);
        let mut candidates = Candidates::new(&peers, me, call)?;
        let budget = self.budgets.of_call(region);
        let mut next = candidates.next(call);
        let mut last = Problem::new(
            Code::RegionUnavailable,
            format!("region \"{region}\": no instance is left"),
        );
        while let Some(place) = next {
            last = match self
                .attempt(&place, call, deadline, request_id, attempts)
                .await
            {
                Ok(result) => return Ok(result),
                Err(problem) => problem,
            };
            let another = attempts.another(&last, call);
            let is_over = attempts.count == MAX_ATTEMPTS || deadline.has_passed();
            if another == Another::None || is_over || !budget.withdraw() {
                break;
            }
            next = match another {
                Another::SameInstance => {
                    pause(deadline).await;
                    Some(place)
                }
                Another::Elsewhere | Another::None => candidates.next(call),
            };
        }
        Err(attempts.summed_up(last, region, &peers))
    }

    async fn attempt(
        &self,
        place: &Place,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
        attempts: &mut Attempts,
    ) -> Result<Box<RawValue>, Problem> {
        let result = match place {
            Place::Here => {
                attempts.begin(&self.identity.instance);
                self.executor.run(call, deadline).await
            }
            Place::There(peer) => {
                attempts.begin(&peer.instance);
                self.link.exec(peer, call, deadline, request_id).await
            }
        };
        if let Err(problem) = &result
            && problem.executed == Executed::Maybe
        {
            attempts.maybe.get_or_insert_with(|| problem.clone());
        }
        result
    }

    fn peers(&self, region: &Region) -> Result<Arc<RegionPeers>, Problem> {
        let own = &self.identity.region;
        match self.cluster.region(region) {
            Err(_) if region == own => Ok(Arc::default()),
            Err(problem) if problem.code == Code::RegionUnknown => {
                let mut known = self.cluster.regions();
                known.push(own.clone());
                known.sort();
                known.dedup();
                let known = known
                    .iter()
                    .map(Region::as_str)
                    .collect::<Vec<_>>()
                    .join(", ");
                Err(Problem::new(
                    Code::RegionUnknown,
                    format!("{}; known regions: {known}", problem.detail),
                ))
            }
            found => found,
        }
    }
}

impl Attempts {
    fn begin(&mut self, instance: &InstanceId) {
        self.count += 1;
        self.last = Some(instance.clone());
    }

    /// Whether another attempt may follow one that ended with `problem`: the only place that decides it.
    fn another(&self, problem: &Problem, call: &Call) -> Another {
        if call.key.is_some() && self.maybe.is_some() {
            // Only that instance knows whether it ran the call, and it does not run it twice.
            return if problem.executed == Executed::Yes {
                Another::None
            } else {
                Another::SameInstance
            };
        }
        match problem.executed {
            Executed::No => match problem.code {
                Code::PeerUnreachable
                | Code::Draining
                | Code::Overloaded
                | Code::WrongRegion
                | Code::FunctionUnknown => Another::Elsewhere,
                _ => Another::None,
            },
            Executed::Maybe if call.idempotent => Another::Elsewhere,
            Executed::Maybe | Executed::Yes => Another::None,
        }
    }

    /// The last attempt's problem as the answer to the call, which is no surer that nothing ran than every attempt was.
    fn summed_up(&mut self, last: Problem, region: &Region, peers: &RegionPeers) -> Problem {
        if last.executed == Executed::No
            && let Some(maybe) = self.maybe.take()
        {
            return maybe;
        }
        let was_known_to_be_down = peers.ready.is_empty();
        match last.code {
            Code::PeerUnreachable if was_known_to_be_down => {
                let seen = peers
                    .last_seen
                    .map_or(0, |instant| instant.elapsed().as_secs());
                let known = counted(peers.count(), "known instance");
                let detail =
                    format!("region \"{region}\": {known}, none reachable; last seen {seen} s ago");
                Problem::new(Code::RegionUnavailable, detail)
            }
            Code::PeerUnreachable => {
                let attempts = counted(self.count as usize, "attempt");
                let detail = format!(
                    "region \"{region}\": {attempts}, none could connect; {}",
                    last.detail
                );
                Problem::new(Code::PeerUnreachable, detail)
            }
            Code::WrongRegion => {
                let detail = format!(
                    "region \"{region}\": the instance that was there is not there any more"
                );
                Problem::new(Code::RegionUnavailable, detail)
            }
            _ => last,
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Lets the same instance recover, by a random time so that its callers do not come back all at once.
async fn pause(deadline: Deadline) {
    let pause = Duration::from_millis(rand::rng().random_range(PAUSE_MS));
    time::sleep(pause.min(deadline.remaining())).await;
}
