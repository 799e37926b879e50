//! Decides where a call runs: here, or on an instance of its region. At most one hop, so there are no loops. In which
//! region of a list is decided in `regions.rs`, and whether another attempt follows a failed one in `attempts.rs`.

mod attempts;
mod candidates;
mod fan_out;
mod nearest;
mod regions;

use std::{borrow::Cow, pin::pin, sync::Arc, time::Duration};

use futures_util::future;
use tokio::{sync::Semaphore, time::Instant};
use tower::retry::budget::Budget;
use tracing::Instrument;

use self::{
    attempts::{Attempts, Budgets, MAX_ATTEMPTS, Retry},
    candidates::{Candidate, Candidates, Here},
    regions::next_choice,
};
pub(crate) use self::{
    fan_out::FanOut,
    regions::{Choice, Needs, Standing},
};
use crate::{
    call::Call,
    cluster::{CallSignal, Cluster, Condition, Peer, RegionPeers},
    deadline::Deadline,
    declaration::{Declaration, Policy},
    feed::FailedAttempt,
    lifecycle::{InFlight, Lifecycle},
    link::Link,
    local::LocalInstance,
    metrics::Metrics,
    name::{FunctionName, RequestId},
    problem::{Code, Executed, Problem},
    protocol::Exec,
    region::{Region, Targets},
    registry::Executor,
    reply::{Meta, Outcome, Report},
};

/// Where calls come in and answers go out, and what that takes. Each HTTP handler is given it.
#[derive(Clone, Debug)]
pub(crate) struct Dispatcher {
    pub(crate) local: Arc<LocalInstance>,
    /// The lifecycle of the listener that took the call.
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// The lifecycle of the other listeners. The app's own listener has one of its own, because it stays open until the app
    /// has ended.
    pub(crate) other_lifecycle: Arc<Lifecycle>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) link: Arc<Link>,
    /// For attempts after the first.
    pub(crate) budgets: Arc<Budgets>,
    /// A permit for each call for which nobody waits.
    pub(crate) in_background: Arc<Semaphore>,
}

impl Dispatcher {
    /// The calls that were accepted and are not answered yet, run here or forwarded, by whichever listener they came.
    pub(crate) fn in_flight(&self) -> usize {
        self.lifecycle.in_flight() + self.other_lifecycle.in_flight()
    }

    /// Runs `call` where `targets` say, and reports how it ended. Its request arrived at `arrived`, and may be `admitted`
    /// already.
    pub(crate) async fn dispatch(
        &self,
        targets: &Targets,
        call: &Call,
        request_id: RequestId,
        arrived: Instant,
        admitted: Option<InFlight>,
    ) -> Report {
        let deadline = Deadline::since(arrived, call.timeout);
        let keys_are_shared = self.executor.keys.are_shared();
        let mut attempts = Attempts::new(request_id, deadline, call, keys_are_shared, admitted);
        let (region, result) = match targets.only(&self.local.identity.primary) {
            Some(region) => {
                let ran = self.run_in(region, call, &mut attempts).await;
                (Some(region.clone()), ran)
            }
            None => self.run_in_one_of(targets, call, &mut attempts).await,
        };
        attempts.into_report(region, None, result, arrived.elapsed())
    }

    /// Runs `call` where `targets` say, although no caller waits for it. `ended` is given the report, or `None` if this
    /// instance stopped first: the call may have run.
    ///
    /// # Errors
    /// The report of a call that was refused at once, and did not run: it is not admitted, and `ended` is not called.
    pub(crate) async fn dispatch_in_background(
        &self,
        targets: &Targets,
        call: &Arc<Call>,
        request_id: RequestId,
        arrived: Instant,
        ended: impl FnOnce(Option<Report>) + Send + 'static,
    ) -> Result<(), Report> {
        let refused = |problem: Problem| {
            let region = targets.first(&self.local.identity.primary).cloned();
            let meta = Meta::untried(region, arrived.elapsed(), request_id.clone());
            Report::new(Err(problem), meta)
        };
        let in_flight = self.lifecycle.admit().map_err(refused)?;
        let permit = Arc::clone(&self.in_background).try_acquire_owned().map_err(|_| {
            let most = self.local.limits.max_in_flight;
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
                let stop = self.local.stop.clone();
                self.local.tasks.spawn(async move {
                    let report = tokio::select! {
                        biased;
                        () = stop.cancelled() => None,
                        report = run => Some(report),
                    };
                    ended(report);
                    drop((in_flight, permit));
                });
            }
        }
        Ok(())
    }

    /// Counts a call that ended with `report`, and sends its event. A call that failed may name a region that its client
    /// invented; that does not become a label.
    pub(crate) fn ended(&self, name: &FunctionName, report: &Report) {
        let Report { result, meta } = report;
        let problem = result.as_ref().err();
        let is_known = |region: &&Region| {
            problem.is_none()
                || **region == self.local.identity.region
                || self.cluster.region(region).is_ok()
        };
        let known = meta.region.as_ref().filter(is_known);
        let elapsed = Duration::from_secs_f64(meta.elapsed_ms / 1e3);
        let Metrics { calls, feed, .. } = &*self.local.metrics;
        calls.ended(known, problem, meta.attempts, elapsed);
        if meta.replayed {
            calls.replayed.inc();
        }
        feed.call_ended(name, meta, known, problem);
    }

    /// Runs a call in the first region of a list that takes it. Returns the region in which it ran, or was tried last, and
    /// the outcome.
    async fn run_in_one_of(
        &self,
        targets: &Targets,
        call: &Call,
        attempts: &mut Attempts,
    ) -> (Option<Region>, Outcome) {
        if let Err(draining) = attempts.admit(&self.lifecycle) {
            let first = targets.first(&self.local.identity.primary);
            let recalled = match first {
                Some(region) => self.recall(region, call, attempts, draining).await,
                None => Err(draining),
            };
            return (first.cloned(), recalled);
        }
        let is_strict = attempts.stays;
        if is_strict && targets.has_any() {
            let detail = "a call with an idempotency key needs regions by name, idempotent: true, or an RPC_KEY_STORE: \"any\" \
                          may mean another region when the call is repeated";
            return (None, Err(Problem::new(Code::InvalidRequest, detail)));
        }
        let (mut tried, mut region, mut answered) = (Vec::new(), None, None);
        loop {
            let choices = self.choices_to_try(targets, call, attempts.deadline).await;
            let own = &self.local.identity.region;
            let next = next_choice(&choices, &tried, attempts.remaining(), own, is_strict);
            let Some((choice, kept)) = next else {
                break;
            };
            tried.push(choice.region.clone());
            attempts.kept_for_others = kept;
            let attempts_before = attempts.count;
            let result = self.run_in(&choice.region, call, attempts).await;
            let was_made = attempts.count > attempts_before;
            if region.is_none() || was_made {
                region = Some(choice.region.clone());
            }
            let problem = match result {
                Ok(result) => {
                    let (calls, item) = (&self.local.metrics.calls, choice.item);
                    calls.chosen(Some(item), region.as_ref());
                    if call.after.is_some()
                        && item > 0
                        && let Some(region) = &region
                    {
                        calls.passed_on(region);
                    }
                    return (region, Ok(result));
                }
                Err(problem) => problem,
            };
            let goes_on = attempts.goes_on(&problem, call);
            answered = is_answer(&problem).then_some(choice.item);
            attempts.note_region(&choice.region, problem, was_made);
            if !goes_on {
                break;
            }
        }
        let (problem, of) = attempts.take_problem().unwrap_or_else(|| {
            let detail = format!(
                "no region that the client may call has an instance with {}",
                call.name
            );
            (Problem::new(Code::FunctionUnknown, detail), None)
        });
        let region = of.or(region);
        let of_answer = region.as_ref().filter(|_| answered.is_some());
        self.local.metrics.calls.chosen(answered, of_answer);
        (region, Err(problem))
    }

    /// The regions that `targets` stand for. Which regions `any` may mean is known once the first round is over.
    async fn choices_to_try(
        &self,
        targets: &Targets,
        call: &Call,
        deadline: Deadline,
    ) -> Vec<Choice> {
        let choices = self.choices(targets, Needs::of(call));
        let is_served = |choice: &Choice| choice.standing == Standing::Serving;
        if !targets.has_any() || choices.iter().any(is_served) || self.cluster.is_first_round_over()
        {
            return choices;
        }
        // At the deadline, what is known by then has to do.
        let _ = deadline.bound(self.cluster.first_round()).await;
        self.choices(targets, Needs::of(call))
    }

    /// The region of the first attempt of `call`, as far as it is known now.
    pub(crate) fn first_region(&self, targets: &Targets, call: &Call) -> Option<Region> {
        if let Some(region) = targets.only(&self.local.identity.primary) {
            return Some(region.clone());
        }
        let choices = self.choices(targets, Needs::of(call));
        self.first_of(&choices)
    }

    /// The region of the first attempt of a call without a key, among `choices`.
    pub(crate) fn first_of(&self, choices: &[Choice]) -> Option<Region> {
        let own = &self.local.identity.region;
        let (first, _) = next_choice(choices, &[], MAX_ATTEMPTS, own, false)?;
        Some(first.region.clone())
    }

    /// Runs a call in `region`: here if it may, else on an instance there.
    async fn run_in(&self, region: &Region, call: &Call, attempts: &mut Attempts) -> Outcome {
        if self.runs_here(region, call) {
            self.run_here(region, call, attempts).await
        } else {
            self.forward(region, call, attempts).await
        }
    }

    /// Runs a call for this region here, or on a sibling if this instance lacks the function, is full, or refuses new calls
    /// while it stops: its own app, which stops later, may still call others.
    async fn run_here(&self, region: &Region, call: &Call, attempts: &mut Attempts) -> Outcome {
        // The last attempt is made where the function is.
        let is_elsewhere =
            attempts.remaining_here() == 1 && !self.executor.catalogue().has(&call.name);
        if is_elsewhere && self.siblings_for(call).is_some() {
            return self.forward(region, call, attempts).await;
        }
        match self.attempt_here(call, attempts).await {
            Err(problem) if self.asks_a_sibling(&problem, region, call, attempts) => {
                attempts.note(problem);
                self.forward(region, call, attempts).await
            }
            ran => ran,
        }
    }

    /// Whether an attempt on a sibling follows one here that ended with `problem`.
    fn asks_a_sibling(
        &self,
        problem: &Problem,
        region: &Region,
        call: &Call,
        attempts: &mut Attempts,
    ) -> bool {
        let Some(siblings) = self.siblings_for(call) else {
            return false;
        };
        // The sibling is asked instead of this instance, and not in addition to it: like a first attempt, that takes
        // nothing from a budget.
        if lacks_function(problem) || problem.code == Code::Draining {
            return attempts.remaining_here() > 0;
        }
        let is_room = siblings.has_room(&call.name, &[]);
        let budget = self.budgets.of(region);
        attempts.decide(problem, call, Condition::Ready, is_room, &budget) == Retry::Next
    }

    /// The other instances of the own region, where `call` may run on one of them.
    fn siblings_for(&self, call: &Call) -> Option<Arc<RegionPeers>> {
        if call.instance.is_some() {
            return None;
        }
        let siblings = self.cluster.region(&self.local.identity.region).ok()?;
        siblings.may_know(&call.name).then_some(siblings)
    }

    /// Applies the policy of its function to `call`, before it is dispatched: that in the first region of `targets` which
    /// has the function.
    pub(crate) fn put_under_policy(&self, targets: &Targets, call: &mut Call) {
        if !call.said.is_whole()
            && let Some((policy, _)) = self.policy(targets, &call.name)
        {
            call.put_under(policy, self.local.timeouts.max);
        }
    }

    /// The policy of the function `name`, and how many calls of it run on one instance at once, in the first region of
    /// `targets` that has the function.
    pub(crate) fn policy(
        &self,
        targets: &Targets,
        name: &FunctionName,
    ) -> Option<(Policy, Option<usize>)> {
        let in_region = |region: &Region| self.policy_in(region, name);
        let has_any = targets.has_any();
        let own = has_any.then_some(&self.local.identity.region);
        let mut near = targets.named(&self.local.identity.primary).chain(own);
        near.find_map(in_region).or_else(|| match has_any {
            true => self.cluster.regions().iter().find_map(in_region),
            false => None,
        })
    }

    /// The same in `region`, if an instance there has the function.
    fn policy_in(&self, region: &Region, name: &FunctionName) -> Option<(Policy, Option<usize>)> {
        let read = |declared: &Declaration| (declared.policy(), declared.concurrency);
        if *region == self.local.identity.region
            && let Some(declared) = self.executor.catalogue().get(name)
        {
            return Some(read(declared));
        }
        let peers = self.cluster.region(region).ok()?;
        peers.declared(name).map(read)
    }

    /// Runs a call that a peer forwarded: here, or not at all.
    pub(crate) async fn exec(
        &self,
        exec: &Exec,
        request_id: RequestId,
        arrived: Instant,
    ) -> Report {
        let deadline = Deadline::since(arrived, exec.call.timeout);
        let mut counted = None;
        let (attempts, result) = match self.wrong_place(exec) {
            Some(problem) => (0, Err(problem)),
            None => {
                let (executor, call) = (&self.executor, &exec.call);
                let run = executor.run(call, &request_id, deadline, &mut counted);
                (1, run.await)
            }
        };
        let region = Some(self.local.identity.region.clone());
        let meta = Meta {
            instance: Some(self.local.identity.instance.clone()),
            attempts,
            ..Meta::untried(region, arrived.elapsed(), request_id)
        };
        Report::new(result, meta)
    }

    /// Whether the call runs here without a choice.
    fn runs_here(&self, region: &Region, call: &Call) -> bool {
        *region == self.local.identity.region
            && match &call.instance {
                Some(asked) => *asked == self.local.identity.instance,
                None => !self.key_picks(call),
            }
    }

    /// Whether the key of the call chooses the instance, as it does unless all of them share what they remember.
    fn key_picks(&self, call: &Call) -> bool {
        call.key.is_some() && !self.executor.keys.are_shared()
    }

    /// Why a call that a peer forwarded is not for this process.
    fn wrong_place(&self, exec: &Exec) -> Option<Problem> {
        let identity = &self.local.identity;
        let (region, instance) = (&identity.region, &identity.instance);
        let asked = exec.call.instance.as_ref();
        if exec.region != *region || asked.is_some_and(|asked| asked != instance) {
            let detail = format!("this is instance {instance} of region \"{region}\"");
            return Some(Problem::new(Code::WrongRegion, detail));
        }
        let boot = exec.call.boot.as_ref();
        if boot.is_some_and(|boot| *boot != self.local.boot) {
            let detail = format!("another process of instance {instance} may have run this call");
            return Some(Problem::new(Code::WrongRegion, detail));
        }
        None
    }

    /// Runs a call on an instance of `region` that is chosen, and on the next as long as `attempts` allow it. This instance is
    /// among them where the region is its own: a call's key may pick it.
    async fn forward(&self, region: &Region, call: &Call, attempts: &mut Attempts) -> Outcome {
        if let Err(draining) = attempts.admit(&self.lifecycle) {
            return self.recall(region, call, attempts, draining).await;
        }
        let known = self.peers_to_ask(region, call, attempts.deadline).await?;
        let key_picks = self.key_picks(call);
        let here = (key_picks && *region == self.local.identity.region).then(|| Here {
            instance: &self.local.identity.instance,
            never_had: self.executor.never_had(&call.name),
        });
        let mut candidates = Candidates::new(&known, here, call, key_picks)?;
        let budget = self.budgets.of(region);
        budget.deposit();
        let mut next = candidates.next(&known, call, attempts)?;
        let mut call = Cow::Borrowed(call);
        while let Some(candidate) = next {
            let result = match &candidate {
                Candidate::Here => self.attempt_here(&call, attempts).await,
                Candidate::There(peer) => self.attempt_there(peer, &call, attempts).await,
            };
            let problem = match result {
                Ok(result) => return Ok(result),
                Err(problem) => problem,
            };
            self.probe_unreachable(&candidate, &problem, attempts).await;
            // The attempt may have taken so long that other peers are there now.
            let peers = self.cluster.region(region).unwrap_or_default();
            let condition = candidate.condition(&peers);
            let is_skipped = candidates.is_skipped(&problem, &call, here) && attempts.skip();
            let is_room = is_skipped || candidates.has_room(&peers, &call);
            let retry = attempts.decide(&problem, &call, condition, is_room, &budget);
            attempts.note(problem);
            next = match retry {
                Retry::No => None,
                Retry::Next => candidates.next(&peers, &call, attempts)?,
                Retry::Same => {
                    attempts.pause().await;
                    if attempts.may_have_run() {
                        call.to_mut().boot = candidate.boot();
                    }
                    Some(candidate)
                }
            };
        }
        Err(attempts.to_problem(region, &known))
    }

    /// Probes the instance that the call's key picked if no connection to it could be made: another may run the call only if it
    /// is gone, not if it hangs.
    async fn probe_unreachable(
        &self,
        candidate: &Candidate,
        problem: &Problem,
        attempts: &Attempts,
    ) {
        if let Candidate::There(peer) = candidate
            && attempts.stays
            && problem.code == Code::PeerUnreachable
        {
            let probe = pin!(self.cluster.probe(peer.address));
            attempts.deadline.bound(probe).await;
        }
    }

    /// How a call for `region` ends that came when this instance takes no new ones: like the one whose key it repeats, if
    /// that ran here, else as `draining`. Another instance, which its caller would ask next, may not know that it ran.
    async fn recall(
        &self,
        region: &Region,
        call: &Call,
        attempts: &mut Attempts,
        draining: Problem,
    ) -> Outcome {
        let may_have_run = *region == self.local.identity.region
            && call.instance.is_none()
            && self.key_picks(call);
        match may_have_run {
            // The executor looks for the key before it refuses the call.
            true => self.attempt_here(call, attempts).await,
            false => Err(draining),
        }
    }

    async fn attempt_here(&self, call: &Call, attempts: &mut Attempts) -> Outcome {
        attempts.begin(&self.local.identity.instance);
        let (request_id, deadline) = (&attempts.request_id, attempts.deadline);
        let counted = &mut attempts.in_flight;
        // On the heap: else it would be most of the size of each call's future, also where the call goes to another
        // instance.
        Box::pin(self.executor.run(call, request_id, deadline, counted)).await
    }

    async fn attempt_there(&self, peer: &Peer, call: &Call, attempts: &mut Attempts) -> Outcome {
        attempts.begin(&peer.instance);
        let (request_id, deadline) = (&attempts.request_id, attempts.deadline);
        let started = Instant::now();
        let under_way = peer.stats.begin();
        let result = self.link.exec(peer, call, deadline, request_id).await;
        drop(under_way);
        let problem = result.as_ref().err();
        self.local
            .metrics
            .peers
            .tried(&peer.region, problem, started.elapsed());
        if let Some(problem) = problem.filter(|problem| problem.executed != Executed::Yes) {
            self.failed(peer, call, request_id, problem);
        }
        result
    }

    /// Says that an attempt on `peer` failed, and learns from it.
    fn failed(&self, peer: &Peer, call: &Call, request_id: &RequestId, problem: &Problem) {
        let (code, executed, detail) = (problem.code, problem.executed, &problem.detail);
        tracing::warn!(instance = %peer.instance, %code, %executed, detail, %request_id, "attempt failed");
        let attempt = FailedAttempt {
            request_id,
            region: &peer.region,
            instance: &peer.instance,
            code: problem.word(),
            executed,
        };
        self.local.metrics.feed.attempt_failed(&call.name, &attempt);
        if lacks_function(problem) && peer.says_it_has(&call.name) {
            self.cluster.report(peer.address, CallSignal::Questionable);
        }
        // Another function need not be at its limit there. A peer that refuses because a client's share of keys is full, or
        // because its data has not seen a token, need not be busy.
        if let (Code::Overloaded, Some(pause), None, None) =
            (code, code.retry_after(), &call.key, &call.after)
        {
            let pause = Duration::from_secs(pause.into());
            peer.stats.rest(&call.name, pause);
        }
    }

    /// The peers in `region`, for `call`. What is not known yet may be known when the first round is over. Which instance a
    /// key picks is known only then.
    async fn peers_to_ask(
        &self,
        region: &Region,
        call: &Call,
        deadline: Deadline,
    ) -> Result<Arc<RegionPeers>, Problem> {
        let any_will_do = call.instance.is_none() && !self.key_picks(call);
        let found = self.peers(region);
        if (any_will_do && found.is_ok()) || self.cluster.is_first_round_over() {
            return found;
        }
        let of_region = format!("region \"{region}\": ");
        self.first_round(deadline, &of_region).await?;
        self.peers(region)
    }

    /// Waits for the first round of discovery, at most until `deadline`.
    ///
    /// # Errors
    /// [`Code::DiscoveryPending`], with a detail that begins with `about`.
    async fn first_round(&self, deadline: Deadline, about: &str) -> Result<(), Problem> {
        let over = deadline.bound(self.cluster.first_round()).await;
        over.ok_or_else(|| {
            let detail = format!("{about}the first discovery round has not finished yet");
            Problem::new(Code::DiscoveryPending, detail)
        })
    }

    /// The peers in `region`.
    ///
    /// # Errors
    /// [`Code::RegionUnknown`] with the known regions, or [`Code::DiscoveryPending`].
    pub(crate) fn peers(&self, region: &Region) -> Result<Arc<RegionPeers>, Problem> {
        let own = &self.local.identity.region;
        match self.cluster.region(region) {
            Err(problem) if problem.code != Code::RegionUnknown => Err(problem),
            Err(_) if region == own => Ok(Arc::default()),
            Err(problem) => {
                let known = self.regions();
                let known: Vec<_> = known.iter().map(Region::as_str).collect();
                let detail = format!("{}; known regions: {}", problem.detail, known.join(", "));
                Err(Problem::new(Code::RegionUnknown, detail))
            }
            found => found,
        }
    }

    /// Every region in which an instance was ever seen, the own one among them, sorted.
    fn regions(&self) -> Vec<Region> {
        let mut regions = self.cluster.regions();
        regions.push(self.local.identity.region.clone());
        regions.sort();
        regions.dedup();
        regions
    }
}

/// Whether the instance lacks the function, for now or for good, so that another may have it.
fn lacks_function(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::FunctionUnknown | Code::FunctionUnavailable
    )
}

/// Whether `problem` is the region's answer: the function ran there, or its arguments or the call's key do not fit.
fn is_answer(problem: &Problem) -> bool {
    problem.executed == Executed::Yes
        || matches!(
            problem.code,
            Code::InvalidArguments | Code::IdempotencyMismatch
        )
}

fn is_refusal(report: &Report) -> bool {
    let problem = report.result.as_ref().err();
    problem.is_some_and(|problem| problem.executed == Executed::No)
}
