//! The attempts of one call: whether another may follow, and what they come to. Owns the one function that decides it.

use std::time::Duration;

use rand::RngExt;
use tokio::time;
use tower::retry::budget::Budget;

use crate::{
    call::Call,
    cluster::{Condition, RegionPeers},
    deadline::Deadline,
    name::InstanceId,
    problem::{Code, Executed, Problem},
    region::Region,
};

/// How many attempts one call may have.
const MAX_ATTEMPTS: u32 = 3;
/// The shortest and the longest pause before the same instance is tried again, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 10..100;

/// The attempts of one call so far.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    count: u32,
    last: Option<InstanceId>,
    /// The first one that may have run, or the one that did.
    ran: Option<Problem>,
    /// Of those that did not run, the one that says most.
    refused: Option<Problem>,
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

/// What is known besides how an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// What is known of the instance that was tried, now.
    pub(super) condition: Condition,
    /// Whether a candidate is left that is ready and did not say that it is full.
    pub(super) is_room: bool,
    pub(super) deadline: Deadline,
}

impl Attempts {
    /// Counts an attempt on `instance`.
    pub(super) fn begin(&mut self, instance: &InstanceId) {
        self.count += 1;
        self.last = Some(instance.clone());
    }

    /// How many there were.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The instance that was tried last.
    pub(super) fn last_instance(&self) -> Option<&InstanceId> {
        self.last.as_ref()
    }

    /// Notes that the last attempt ended with `problem`.
    pub(super) fn note(&mut self, problem: Problem) {
        match problem.executed {
            Executed::Yes => self.ran = Some(problem),
            Executed::Maybe => {
                self.ran.get_or_insert(problem);
            }
            Executed::No => {
                let weight_now = weight(problem.code);
                let is_telling =
                    |was: &Problem| weight_now.is_none() || weight_now >= weight(was.code);
                if self.refused.as_ref().is_none_or(is_telling) {
                    self.refused = Some(problem);
                }
            }
        }
    }

    /// Whether another attempt of `call` follows one that ended with `problem`: the only place that decides it.
    ///
    /// A call with a key stays with the instance that remembers it, unless it is idempotent as well.
    pub(super) fn decide(
        &self,
        problem: &Problem,
        call: &Call,
        situation: Situation,
        budget: &impl Budget,
    ) -> Retry {
        let stays = call.key.is_some() && !call.idempotent;
        let may_have_run = self.ran.is_some() || problem.executed == Executed::Maybe;
        let (retry, is_spent) = match problem.executed {
            Executed::Yes => return Retry::No,
            // Another process than the one that may have run it, or one that does not answer.
            _ if stays
                && may_have_run
                && (problem.code == Code::WrongRegion
                    || situation.condition == Condition::Hanging) =>
            {
                return Retry::No;
            }
            _ if stays && may_have_run => (Retry::Same, true),
            Executed::Maybe if call.idempotent => {
                (Retry::Next, situation.condition == Condition::Ready)
            }
            Executed::Maybe => return Retry::No,
            Executed::No if stays && problem.code == Code::Overloaded => return Retry::No,
            Executed::No if weight(problem.code).is_some() => (Retry::Next, false),
            Executed::No => return Retry::No,
        };
        if self.count == MAX_ATTEMPTS || situation.deadline.has_passed() {
            return Retry::No;
        }
        // The budget keeps a region that is ill from being asked more than it can bear. Where only the instance that was
        // tried is out, which every later call knows, the others can bear it.
        let is_free = !is_spent && situation.is_room;
        match is_free || budget.withdraw() {
            true => retry,
            false => Retry::No,
        }
    }

    /// All attempts as one problem, which is no surer that nothing ran than every attempt was.
    pub(super) fn to_problem(&self, region: &Region, peers: &RegionPeers) -> Problem {
        let Some(problem) = self.ran.clone().or_else(|| self.refused.clone()) else {
            let detail = format!("region \"{region}\": no instance is left");
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

/// How much a refusal says about the region when attempts ended in different ones; `None` for what any instance would
/// refuse, so that no other is asked.
fn weight(code: Code) -> Option<u8> {
    match code {
        Code::Overloaded | Code::Draining => Some(3),
        Code::PeerUnreachable => Some(2),
        Code::WrongRegion | Code::FunctionUnavailable => Some(1),
        Code::FunctionUnknown => Some(0),
        _ => None,
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Lets the same instance recover, by a random time so that its callers do not come back all at once.
pub(super) async fn pause(deadline: Deadline) {
    let pause = Duration::from_millis(rand::rng().random_range(PAUSE_MS));
    time::sleep(pause.min(deadline.remaining())).await;
}
