//! Decides where a call runs: here, or on an instance of its region, and whether another attempt may follow a failed
//! one. One predicate decides that: did it run? At most one hop, so there are no loops.

use std::{net::SocketAddr, sync::Arc};

use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::{
    call::{Call, Exec},
    cluster::{Cluster, Peer, RegionPeers},
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

/// How many instances one call may be tried on.
const MAX_ATTEMPTS: usize = 3;

/// Where calls come in and answers go out.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    identity: Identity,
    lifecycle: Arc<Lifecycle>,
    executor: Arc<Executor>,
    cluster: Arc<Cluster>,
    link: Link,
}

/// What came of a call, and what it took.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The function's result, or why there is none.
    pub result: Result<Box<RawValue>, Problem>,
    /// Where it ran, or was tried.
    pub meta: Meta,
}

/// The attempts of one call so far.
#[derive(Default)]
struct Attempts {
    tried: Vec<SocketAddr>,
    last: Option<InstanceId>,
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
        let deadline = Deadline::after(call.timeout);
        let mut attempts = Attempts::default();
        let result = if self.is_here(region, call) {
            attempts.last = Some(self.identity.instance.clone());
            self.executor.run(call, deadline).await
        } else {
            self.forward(region, call, deadline, &request_id, &mut attempts)
                .await
        };
        let tried = if self.is_here(region, call) {
            1
        } else {
            attempts.tried.len()
        };
        let meta = Meta {
            region: Some(region.clone()),
            instance: attempts.last,
            attempts: u32::try_from(tried).unwrap_or(u32::MAX),
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
        let deadline = Deadline::after(exec.call.timeout);
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

    fn is_here(&self, region: &Region, call: &Call) -> bool {
        *region == self.identity.region
            && call
                .instance
                .as_ref()
                .is_none_or(|asked| *asked == self.identity.instance)
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
        let candidates = Candidates::new(&peers, call)?;
        let mut last = None;
        while let Some(peer) = candidates.next(call, &attempts.tried) {
            attempts.tried.push(peer.address);
            attempts.last = Some(peer.instance.clone());
            let problem = match self.link.exec(peer, call, deadline, request_id).await {
                Ok(result) => return Ok(result),
                Err(problem) => problem,
            };
            let exhausted = attempts.tried.len() == MAX_ATTEMPTS || deadline.has_passed();
            if exhausted || !may_try_again(&problem, call) {
                return Err(summed_up(problem, region, &peers, attempts.tried.len()));
            }
            last = Some(problem);
        }
        match last {
            Some(problem) => Err(summed_up(problem, region, &peers, attempts.tried.len())),
            None => Err(Problem::new(
                Code::RegionUnavailable,
                format!("region \"{region}\": no instance is left"),
            )),
        }
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

/// Whether another instance may be tried after `problem`: the only place that decides it.
fn may_try_again(problem: &Problem, call: &Call) -> bool {
    match problem.executed {
        Executed::No => matches!(
            problem.code,
            Code::PeerUnreachable
                | Code::Draining
                | Code::Overloaded
                | Code::WrongRegion
                | Code::FunctionUnknown
        ),
        Executed::Maybe => call.idempotent,
        Executed::Yes => false,
    }
}

/// Where one call may run.
enum Candidates<'a> {
    /// On the instance that the caller asked for.
    Pinned(&'a Arc<Peer>),
    /// On any of the region.
    Any(&'a RegionPeers),
}

impl<'a> Candidates<'a> {
    fn new(peers: &'a RegionPeers, call: &Call) -> Result<Self, Problem> {
        let Some(instance) = &call.instance else {
            return Ok(Self::Any(peers));
        };
        let detail = || format!("instance \"{instance}\" is not in this region");
        peers
            .find(instance)
            .map(Self::Pinned)
            .ok_or_else(|| Problem::new(Code::InstanceUnknown, detail()))
    }

    fn next(&self, call: &Call, tried: &[SocketAddr]) -> Option<&'a Arc<Peer>> {
        match self {
            Self::Pinned(peer) => tried.is_empty().then_some(*peer),
            Self::Any(peers) => peers.choose(&call.name, tried),
        }
    }
}

/// The last attempt's problem as the answer to the call.
fn summed_up(problem: Problem, region: &Region, peers: &RegionPeers, attempts: usize) -> Problem {
    let was_known_to_be_down = peers.ready.is_empty();
    match problem.code {
        Code::PeerUnreachable if was_known_to_be_down => {
            let seen = peers
                .last_seen
                .map_or(0, |instant| instant.elapsed().as_secs());
            let known = peers.count();
            let detail = format!(
                "region \"{region}\": {known} known instances, none reachable; last seen {seen} s ago"
            );
            Problem::new(Code::RegionUnavailable, detail)
        }
        Code::PeerUnreachable => {
            let detail = format!(
                "region \"{region}\": {attempts} attempts, none could connect; {}",
                problem.detail
            );
            Problem::new(Code::PeerUnreachable, detail)
        }
        Code::WrongRegion => {
            let detail =
                format!("region \"{region}\": the instance that was there is not there any more");
            Problem::new(Code::RegionUnavailable, detail)
        }
        _ => problem,
    }
}
