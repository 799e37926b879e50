//! Decides where a call runs: here, or on an instance of its region. At most one hop, so there are no loops. Whether
//! another attempt follows a failed one is decided in `attempts.rs`.

mod attempts;
mod budget;
mod candidates;

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::time::Instant;

use self::{
    attempts::{Attempts, Retry, Situation},
    budget::Budgets,
    candidates::{Candidates, Place},
};
use crate::{
    call::{Call, Unsaid},
    cluster::{CallSignal, Cluster, Condition, RegionPeers},
    config::Identity,
    deadline::Deadline,
    lifecycle::Lifecycle,
    link::Link,
    metrics::{CallMetrics, HopMetrics, Metrics},
    name::{BootId, FunctionName, InstanceId, RequestId},
    problem::{Code, Executed, Problem},
    protocol::Exec,
    region::{Region, Target},
    registry::Executor,
    reply::{Meta, Returned, milliseconds},
};

/// Where calls come in and answers go out.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    identity: Identity,
    max_timeout: Duration,
    boot: BootId,
    lifecycle: Arc<Lifecycle>,
    executor: Arc<Executor>,
    cluster: Arc<Cluster>,
    link: Link,
    budgets: Budgets,
    calls: Arc<CallMetrics>,
    hops: Arc<HopMetrics>,
}

/// What came of a call, and what it took.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The function's result, or why there is none.
    pub(crate) result: Result<Returned, Problem>,
    /// Where it ran, or was tried.
    pub(crate) meta: Meta,
}

impl Dispatcher {
    /// A dispatcher of the run `boot` of the instance `identity`.
    pub(crate) fn new(
        (identity, boot): (Identity, BootId),
        max_timeout: Duration,
        lifecycle: Arc<Lifecycle>,
        executor: Arc<Executor>,
        cluster: Arc<Cluster>,
        link: Link,
        metrics: &Metrics,
    ) -> Self {
        Self {
            identity,
            max_timeout,
            boot,
            lifecycle,
            executor,
            cluster,
            link,
            budgets: Budgets::default(),
            calls: Arc::clone(&metrics.calls),
            hops: Arc::clone(&metrics.hops),
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
        let call = &*self.under_policy(region, call);
        let deadline = Deadline::since(arrived, call.timeout);
        let mut attempts = Attempts::default();
        let result = if self.runs_here(region, call) {
            self.run_here(region, call, deadline, &request_id, &mut attempts)
                .await
        } else {
            self.forward(region, call, deadline, &request_id, &mut attempts)
                .await
        };
        let elapsed = arrived.elapsed();
        self.count(region, result.as_ref().err(), attempts.count(), elapsed);
        let meta = Meta {
            region: Some(region.clone()),
            instance: attempts.last_instance().cloned(),
            attempts: attempts.count(),
            elapsed_ms: milliseconds(elapsed),
            replayed: Returned::is_replayed(&result),
            consistency: Returned::consistency(&result).cloned(),
            request_id,
        };
        Outcome { result, meta }
    }

    /// Runs a call for the own region here, or on a sibling that has the function where this instance does not.
    async fn run_here(
        &self,
        region: &Region,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
        attempts: &mut Attempts,
    ) -> Result<Returned, Problem> {
        attempts.begin(&self.identity.instance);
        let ran = self.executor.run(call, request_id, deadline).await;
        match ran {
            Err(problem)
                if is_missing(&problem)
                    && call.instance.is_none()
                    && self.a_sibling_may_have(&call.name) =>
            {
                attempts.note(problem);
                self.forward(region, call, deadline, request_id, attempts)
                    .await
            }
            ran => ran,
        }
    }

    fn a_sibling_may_have(&self, name: &FunctionName) -> bool {
        let siblings = self.cluster.region(&self.identity.region);
        siblings.is_ok_and(|peers| peers.may_have(name))
    }

    /// The call under the policy of its function, as an instance of `region` declares it.
    fn under_policy<'a>(&self, region: &Region, call: &'a Call) -> Cow<'a, Call> {
        let Unsaid {
            timeout,
            idempotent,
        } = call.unsaid;
        if !timeout && !idempotent {
            return Cow::Borrowed(call);
        }
        let max = self.max_timeout;
        if *region == self.identity.region
            && let Some(declared) = self.executor.catalogue().get(&call.name)
        {
            return Call::under(call, declared, max);
        }
        let peers = self.cluster.region(region);
        match peers.as_ref().map(|peers| peers.declared(&call.name)) {
            Ok(Some(declared)) => Call::under(call, declared, max),
            Ok(None) | Err(_) => Cow::Borrowed(call),
        }
    }

    /// Counts a call; one that failed may have been for a region of the client's invention, which is no label.
    fn count(&self, region: &Region, problem: Option<&Problem>, attempts: u32, elapsed: Duration) {
        let is_known = || *region == self.identity.region || self.cluster.region(region).is_ok();
        let known = (problem.is_none() || is_known()).then_some(region);
        self.calls.ended(known, problem, attempts, elapsed);
    }

    /// How many calls wait to leave for peers.
    pub(crate) fn queued(&self) -> usize {
        self.link.queued()
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
            None => (
                self.executor.run(&exec.call, &request_id, deadline).await,
                1,
            ),
        };
        let Identity {
            region, instance, ..
        } = &self.identity;
        let meta = Meta {
            region: Some(region.clone()),
            instance: Some(instance.clone()),
            attempts,
            elapsed_ms: milliseconds(arrived.elapsed()),
            replayed: Returned::is_replayed(&result),
            consistency: Returned::consistency(&result).cloned(),
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
        let is_mine = |asked: &InstanceId| asked == instance;
        if exec.region != *region || !exec.call.instance.as_ref().is_none_or(is_mine) {
            let detail = format!("this is instance {instance} of region \"{region}\"");
            return Some(Problem::new(Code::WrongRegion, detail));
        }
        let is_this = |boot: &BootId| *boot == self.boot;
        if !exec.call.boot.as_ref().is_none_or(is_this) {
            let detail = format!("another process of instance {instance} may have run this call");
            return Some(Problem::new(Code::WrongRegion, detail));
        }
        None
    }

    async fn forward(
        &self,
        region: &Region,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
        attempts: &mut Attempts,
    ) -> Result<Returned, Problem> {
        let _in_flight = self.lifecycle.admit()?;
        let peers = self.found(region, call, deadline).await?;
        let me = (*region == self.identity.region).then_some(&self.identity.instance);
        let mut candidates = Candidates::new(&peers, me, call)?;
        let budget = self.budgets.of_call(region);
        let mut next = candidates.next(call)?;
        let mut call = Cow::Borrowed(call);
        while let Some(place) = next {
            let result = self
                .attempt(&place, &call, deadline, request_id, attempts)
                .await;
            let problem = match result {
                Ok(result) => return Ok(result),
                Err(problem) => problem,
            };
            let situation = Situation {
                condition: self.condition(region, &place),
                is_room: candidates.has_room(&call),
                deadline,
            };
            let retry = attempts.decide(&problem, &call, situation, &*budget);
            attempts.note(problem);
            next = match retry {
                Retry::No => None,
                Retry::Next => candidates.next(&call)?,
                Retry::Same => {
                    attempts::pause(deadline).await;
                    call.to_mut().boot = place.boot();
                    Some(place)
                }
            };
        }
        Err(attempts.to_problem(region, &peers))
    }

    /// What is known now of the instance at `place`.
    fn condition(&self, region: &Region, place: &Place) -> Condition {
        match (place, self.cluster.region(region)) {
            (Place::Here, _) => Condition::Ready,
            (Place::There(peer), Ok(peers)) => peers.condition(peer.address),
            (Place::There(_), Err(_)) => Condition::Doubtful,
        }
    }

    async fn attempt(
        &self,
        place: &Place,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
        attempts: &mut Attempts,
    ) -> Result<Returned, Problem> {
        match place {
            Place::Here => {
                attempts.begin(&self.identity.instance);
                self.executor.run(call, request_id, deadline).await
            }
            Place::There(peer) => {
                attempts.begin(&peer.instance);
                let started = Instant::now();
                let under_way = peer.load.begin();
                let result = self.link.exec(peer, call, deadline, request_id).await;
                drop(under_way);
                let problem = result.as_ref().err();
                self.hops.ended(&peer.region, problem, started.elapsed());
                if let Err(problem) = &result
                    && problem.executed != Executed::Yes
                {
                    let (code, executed, detail) =
                        (problem.code, problem.executed, &problem.detail);
                    tracing::warn!(instance = %peer.instance, %code, %executed, detail, "attempt failed");
                    if is_missing(problem) && peer.says_it_has(&call.name) {
                        self.cluster.report(peer.address, CallSignal::Outdated);
                    }
                    // A client's own share of keys, and a token that the peer's data has not seen, say nothing about how
                    // busy the peer is.
                    if let (Code::Overloaded, Some(pause), None, None) =
                        (code, code.retry_after(), &call.key, &call.after)
                    {
                        peer.load.rest(Duration::from_secs(pause.into()));
                    }
                }
                result
            }
        }
    }

    /// The peers in `region`, for `call`. What is not known yet may be known when the first round is over; which instance a
    /// key picks, only then.
    async fn found(
        &self,
        region: &Region,
        call: &Call,
        deadline: Deadline,
    ) -> Result<Arc<RegionPeers>, Problem> {
        let any_will_do = call.key.is_none() && call.instance.is_none();
        let found = self.peers(region);
        if (any_will_do && found.is_ok()) || self.cluster.is_first_round_over() {
            return found;
        }
        let tried = deadline.bound(self.cluster.first_round()).await;
        tried.ok_or_else(|| {
            let detail =
                format!("region \"{region}\": the first discovery round has not finished yet");
            Problem::new(Code::DiscoveryPending, detail)
        })?;
        self.peers(region)
    }

    /// The peers in `region`.
    ///
    /// # Errors
    /// [`Code::RegionUnknown`] with the known regions, or [`Code::DiscoveryPending`].
    pub(crate) fn peers(&self, region: &Region) -> Result<Arc<RegionPeers>, Problem> {
        let own = &self.identity.region;
        match self.cluster.region(region) {
            Err(problem) if problem.code != Code::RegionUnknown => Err(problem),
            Err(_) if region == own => Ok(Arc::default()),
            Err(problem) => {
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

/// Whether the instance does not have the function, or not now, and another may.
fn is_missing(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::FunctionUnknown | Code::FunctionUnavailable
    )
}
