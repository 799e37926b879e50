//! The attempts of one call: whether another may follow, and what they come to. Owns the one function that decides it, and the
//! budgets that it asks: without a limit, three attempts for each call would triple the load on a region when it has the
//! least room for it.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use foldhash::HashMap;
use rand::RngExt;
use tokio::time;
use tower::retry::budget::{Budget, TpsBudget};

use crate::{
    call::Call,
    cluster::{Condition, RegionPeers},
    deadline::Deadline,
    lifecycle::{InFlight, Lifecycle},
    name::{InstanceId, RequestId},
    problem::{Code, Executed, Problem, counted},
    region::Region,
    reply::{Meta, Outcome, Report},
};

/// How many attempts one call may have, besides those that are skipped.
pub(super) const MAX_ATTEMPTS: u32 = 3;
/// How many attempts of one call may be skipped.
const MAX_SKIPPED: u32 = 8;
/// The shortest and the longest pause before the same instance is tried again, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 10..100;
/// How long a call counts in the budget of its region.
const WINDOW: Duration = Duration::from_secs(10);
/// Further attempts that a budget always allows, for each second.
const ALWAYS: u32 = 3;
/// Further attempts that it allows for each call.
const SHARE: f32 = 0.2;

/// The attempts of one call so far, under one request id and within one deadline.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) request_id: RequestId,
    /// When all of them must have ended.
    pub(super) deadline: Deadline,
    /// Whether the call has a key, and every instance knows which calls the others ran under it.
    is_known_to_all: bool,
    /// Whether the call must not run on an instance while another one may remember its key.
    pub(super) stays: bool,
    /// The call in flight, once it was admitted.
    pub(super) in_flight: Option<InFlight>,
    pub(super) count: u32,
    /// How many of them count for nothing.
    skipped: u32,
    last: Option<InstanceId>,
    /// How many of the remaining attempts are kept for other regions.
    pub(super) kept_for_others: u32,
    /// Whether an instance that may remember the call's key does not answer, so that no other may run it.
    pub(super) is_held: bool,
    /// The problem of the first attempt that may have run, or of the one that did.
    ran: Option<Problem>,
    /// Of the problems in this region without a run, the one that says most.
    refused: Option<Problem>,
    /// Of the earlier regions, in which the call did not run, the one whose problem says most.
    refused_before: Option<RefusedRegion>,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Retry {
    /// Nothing: the answer stands.
    No,
    /// An attempt on the next candidate.
    Next,
    /// An attempt on the same instance, which remembers whether it ran the call.
    Same,
}

impl Attempts {
    /// No attempts of `call` yet; `in_flight` if it was admitted before. `keys_are_shared` if every instance knows what the
    /// others remember.
    pub(super) fn new(
        request_id: RequestId,
        deadline: Deadline,
        call: &Call,
        keys_are_shared: bool,
        in_flight: Option<InFlight>,
    ) -> Self {
        let has_key = call.key.is_some();
        Self {
            request_id,
            deadline,
            is_known_to_all: has_key && keys_are_shared,
            stays: has_key && !keys_are_shared && !call.idempotent,
            in_flight,
            count: 0,
            skipped: 0,
            last: None,
            kept_for_others: 0,
            is_held: false,
            ran: None,
            refused: None,
            refused_before: None,
        }
    }

    /// Counts the call in flight until they are over: a drain that begins meanwhile refuses none of them.
    pub(super) fn admit(&mut self, lifecycle: &Lifecycle) -> Result<(), Problem> {
        if self.in_flight.is_none() {
            self.in_flight = Some(lifecycle.admit()?);
        }
        Ok(())
    }

    /// Makes the report. It names the instance that was tried last; if none was, `asked`, the instance that the call named.
    pub(super) fn into_report(
        self,
        region: Option<Region>,
        asked: Option<InstanceId>,
        result: Outcome,
        elapsed: Duration,
    ) -> Report {
        let meta = Meta {
            instance: self.last.or(asked),
            attempts: self.count,
            ..Meta::untried(region, elapsed, self.request_id)
        };
        Report::new(result, meta)
    }

    pub(super) fn begin(&mut self, instance: &InstanceId) {
        self.count += 1;
        self.last = Some(instance.clone());
    }

    /// Notes that the last attempt ended with `problem`.
    pub(super) fn note(&mut self, problem: Problem) {
        match problem.executed {
            Executed::Yes => self.ran = Some(problem),
            Executed::Maybe => {
                self.ran.get_or_insert(problem);
            }
            Executed::No => self.refused = Some(more_telling(self.refused.take(), problem)),
        }
    }

    /// Notes that the attempts in `region`, if one `was_made`, ended with `problem`: the next region follows, or none.
    pub(super) fn note_region(&mut self, region: &Region, problem: Problem, was_made: bool) {
        self.refused = None;
        if problem.executed != Executed::No {
            return self.note(problem);
        }
        if self
            .refused_before
            .as_ref()
            .is_some_and(|was| says_more(&was.problem, &problem))
        {
            return;
        }
        self.refused_before = Some(RefusedRegion {
            problem,
            region: region.clone(),
            instance: self.last.clone().filter(|_| was_made),
        });
    }

    /// Gives the same instance time to recover; a random time, so that its callers do not come back all at once.
    pub(super) async fn pause(&self) {
        let pause = Duration::from_millis(rand::rng().random_range(PAUSE_MS));
        time::sleep(pause.min(self.deadline.remaining())).await;
    }

    /// Whether an attempt that was made may have run the call.
    pub(super) fn may_have_run(&self) -> bool {
        self.ran.is_some()
    }

    /// Has the last attempt count for nothing, unless the call may have run, so that the same instance is asked again, or as
    /// many did already; returns whether it does.
    pub(super) fn skip(&mut self) -> bool {
        let skips = !self.may_have_run() && self.skipped < MAX_SKIPPED;
        self.skipped += u32::from(skips);
        skips
    }

    /// How many attempts may still be made.
    pub(super) fn remaining(&self) -> u32 {
        (MAX_ATTEMPTS + self.skipped).saturating_sub(self.count)
    }

    /// How many attempts may still be made in this region.
    pub(super) fn remaining_here(&self) -> u32 {
        self.remaining().saturating_sub(self.kept_for_others)
    }

    /// Which attempt of `call` the contract allows after one that ended with `problem`, on an instance in `condition`. No
    /// other place decides it.
    ///
    /// A call with a key stays with the instance that remembers it, unless it is idempotent as well. Where all instances
    /// share what they remember, it may go anywhere, because none runs it twice. An outcome that is remembered
    /// is not asked for again.
    fn allowed(&self, problem: &Problem, call: &Call, condition: Condition) -> Retry {
        let (is_known_to_all, stays) = (self.is_known_to_all, self.stays);
        let may_have_run = self.may_have_run() || problem.executed == Executed::Maybe;
        match problem.executed {
            Executed::Yes => Retry::No,
            _ if self.is_held => Retry::No,
            Executed::Maybe if (stays || is_known_to_all) && is_remembered(problem) => Retry::No,
            // A process other than the one that may have run the call.
            _ if stays && may_have_run && problem.code == Code::WrongRegion => Retry::No,
            _ if stays && may_have_run => Retry::Same,
            Executed::Maybe if call.idempotent || is_known_to_all => Retry::Next,
            Executed::Maybe => Retry::No,
            // The instance that may have run the call is full or not known yet, or its app is out.
            Executed::No
                if stays
                    && matches!(
                        problem.code,
                        Code::Overloaded | Code::DiscoveryPending | Code::FunctionUnavailable
                    ) =>
            {
                Retry::No
            }
            // The probe found it ready, so only that connection failed.
            Executed::No
                if stays
                    && problem.code == Code::PeerUnreachable
                    && condition == Condition::Ready =>
            {
                Retry::Same
            }
            Executed::No if weight(problem.code).is_some() => Retry::Next,
            Executed::No => Retry::No,
        }
    }

    /// Whether `call` goes on to the next region of its list after the attempts in one ended with `problem`. No budget is
    /// asked: a region gets no more first attempts than there are calls.
    pub(super) fn goes_on(&self, problem: &Problem, call: &Call) -> bool {
        self.allowed(problem, call, Condition::Doubtful) == Retry::Next
            && self.remaining() > 0
            && !self.deadline.has_passed()
    }

    /// Decides what follows an attempt of `call` that ended with `problem` in the same region, where `condition` is known of the
    /// instance that was tried, and `is_room` says whether a candidate is left that is ready and did not say that it is full.
    /// Notes as well that the call is held, where the instance that may know its key does not answer.
    pub(super) fn decide(
        &mut self,
        problem: &Problem,
        call: &Call,
        condition: Condition,
        is_room: bool,
        budget: &TpsBudget,
    ) -> Retry {
        self.is_held |= self.stays
            && match condition {
                Condition::Hanging => true,
                Condition::Doubtful => problem.code == Code::PeerUnreachable,
                Condition::Ready | Condition::Draining | Condition::Gone => false,
            };
        let retry = self.allowed(problem, call, condition);
        let (left, is_spent) = match retry {
            Retry::No => return Retry::No,
            Retry::Same => (self.remaining(), true),
            Retry::Next => {
                let may_have_run = problem.executed == Executed::Maybe;
                let is_spent = may_have_run && condition == Condition::Ready;
                (self.remaining_here(), is_spent)
            }
        };
        if left == 0 || self.deadline.has_passed() {
            return Retry::No;
        }
        // The budget bounds the extra load on a region that fails. An attempt takes nothing from it if later calls avoid the
        // instance that failed, and another one has room.
        let is_free = !is_spent && is_room;
        match is_free || budget.withdraw() {
            true => retry,
            false => Retry::No,
        }
    }

    /// The problem of the whole call, after its last region; and the region that it is about, where no attempt may have run.
    pub(super) fn take_problem(&mut self) -> Option<(Problem, Option<Region>)> {
        if let Some(ran) = self.ran.take() {
            return Some((ran, None));
        }
        let refused = self.refused_before.take()?;
        // So that the answer names one region and an instance of it.
        self.last = refused.instance;
        Some((refused.problem, Some(refused.region)))
    }

    /// One problem for all attempts in `region`; it says that nothing ran only if every attempt did.
    pub(super) fn to_problem(&self, region: &Region, peers: &RegionPeers) -> Problem {
        let Some(problem) = self.ran.clone().or_else(|| self.refused.clone()) else {
            let why = match peers.duplicates.is_empty() {
                true => "no instance is left",
                false => "each instance shares its id (FLY_MACHINE_ID) with another process",
            };
            let detail = format!("region \"{region}\": {why}");
            return Problem::new(Code::RegionUnavailable, detail);
        };
        let was_known_to_be_down = peers.ready.is_empty();
        match problem.code {
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
                    problem.detail
                );
                Problem::new(Code::PeerUnreachable, detail)
            }
            Code::WrongRegion => {
                let detail = format!(
                    "region \"{region}\": the instance that was there is not there any more"
                );
                Problem::new(Code::RegionUnavailable, detail)
            }
            _ => problem,
        }
    }
}

/// How the attempts in a region ended, none of which ran.
#[derive(Debug)]
struct RefusedRegion {
    problem: Problem,
    region: Region,
    /// Where the last one was made.
    instance: Option<InstanceId>,
}

/// A budget of further attempts for each region, so that a dead one does not use up what another needs. Only regions in which
/// an instance was seen have one.
#[derive(Debug, Default)]
pub(crate) struct Budgets(RwLock<HashMap<Region, Arc<TpsBudget>>>);

impl Budgets {
    /// The budget of `region`, to which each call is added when it is forwarded.
    pub(super) fn of(&self, region: &Region) -> Arc<TpsBudget> {
        let known = {
            let budgets = self.0.read().unwrap_or_else(PoisonError::into_inner);
            budgets.get(region).cloned()
        };
        known.unwrap_or_else(|| {
            let full = || Arc::new(TpsBudget::new(WINDOW, ALWAYS, SHARE));
            let mut budgets = self.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(budgets.entry(region.clone()).or_insert_with(full))
        })
    }
}

/// Whether `problem`, of a call with a key that may have run, is the outcome that is remembered for the key. A problem that
/// the link made is not, and neither is that of a repeat which could not wait for the outcome.
fn is_remembered(problem: &Problem) -> bool {
    problem.replayed || !matches!(problem.code, Code::PeerLost | Code::Overloaded)
}

/// How much a refusal says, when attempts ended with different ones. `None` for a refusal that every instance would give:
/// no other is asked.
fn weight(code: Code) -> Option<u8> {
    match code {
        Code::Overloaded | Code::Draining => Some(5),
        Code::PeerUnreachable | Code::RegionUnavailable => Some(4),
        Code::WrongRegion | Code::FunctionUnavailable => Some(3),
        Code::DiscoveryPending => Some(2),
        Code::FunctionUnknown => Some(1),
        Code::RegionUnknown | Code::InstanceUnknown => Some(0),
        _ => None,
    }
}

/// Of two refusals, the one that says more; the later one if they say as much.
fn more_telling(was: Option<Problem>, now: Problem) -> Problem {
    was.filter(|was| says_more(was, &now)).unwrap_or(now)
}

/// Whether the refusal `was` says more than the later one `now`.
fn says_more(was: &Problem, now: &Problem) -> bool {
    let weight_now = weight(now.code);
    weight_now.is_some() && weight_now < weight(was.code)
}
