//! The instances on which one call may run, in the order in which they are tried.

use std::{cmp::Reverse, net::SocketAddr, sync::Arc};

use sha2::{Digest, Sha256};

use super::attempts::Attempts;
use crate::{
    call::Call,
    cluster::{Condition, Peer, RegionPeers},
    name::{BootId, IdempotencyKey, InstanceId},
    problem::{Code, Problem},
};

#[derive(Clone, Debug)]
pub(super) enum Candidate {
    Here,
    There(Arc<Peer>),
}

impl Candidate {
    /// The process there, if it named itself; this process needs no name.
    pub(super) fn boot(&self) -> Option<BootId> {
        match self {
            Self::Here => None,
            Self::There(peer) => peer.boot.clone(),
        }
    }

    /// What the `peers` of the region know of the instance.
    pub(super) fn condition(&self, peers: &RegionPeers) -> Condition {
        match self {
            Self::Here => Condition::Ready,
            Self::There(peer) => peers.condition(peer),
        }
    }
}

/// This instance, as one of the region's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    pub(super) instance: &'a InstanceId,
    /// Whether it did not have the function since it started.
    pub(super) never_had: bool,
}

#[derive(Debug)]
pub(super) enum Candidates {
    /// Any peer of the region that was not tried: of two at random, the less busy one.
    Any { tried: Vec<SocketAddr> },
    /// The first of these, and the next only if the first did not run the call: the one instance that was asked for, or all
    /// in the order in which the call's key ranks them.
    Ranked(std::vec::IntoIter<(Candidate, Condition)>),
}

impl Candidates {
    /// The candidates for `call`: `peers`, and this instance if it is in the region. `key_picks` says whether the call's key
    /// ranks them.
    ///
    /// # Errors
    /// [`Code::InstanceUnknown`] when the call asks for an instance that is not in the region.
    pub(super) fn new(
        peers: &RegionPeers,
        here: Option<Here<'_>>,
        call: &Call,
        key_picks: bool,
    ) -> Result<Self, Problem> {
        if let Some(instance) = &call.instance {
            let found = peers.find(instance).cloned().map(Candidate::There);
            let detail = || match peers.duplicates.contains(instance) {
                true => format!(
                    "two processes of this region say that they are instance \"{instance}\"; give each an id of its own \
                     (FLY_MACHINE_ID)"
                ),
                false => format!("instance \"{instance}\" is not in this region"),
            };
            let candidate = found.ok_or_else(|| Problem::new(Code::InstanceUnknown, detail()))?;
            // It is tried whatever its condition.
            return Ok(Self::Ranked(
                vec![(candidate, Condition::Ready)].into_iter(),
            ));
        }
        Ok(match &call.key {
            Some(key) if key_picks => Self::Ranked(ranked(peers, here, key, call).into_iter()),
            Some(_) | None => Self::Any { tried: Vec::new() },
        })
    }

    /// The next candidate for `call`, with the `peers` that are in the region now; none is returned twice.
    ///
    /// # Errors
    /// [`Code::PeerUnreachable`] when it is an instance that may remember the call's key and does not answer: no other is tried.
    pub(super) fn next(
        &mut self,
        peers: &RegionPeers,
        call: &Call,
        attempts: &mut Attempts,
    ) -> Result<Option<Candidate>, Problem> {
        match self {
            Self::Ranked(candidates) => match candidates.next() {
                Some((Candidate::There(peer), Condition::Hanging)) if !call.idempotent => {
                    attempts.is_held = true;
                    Err(hangs(&peer.instance))
                }
                next => Ok(next.map(|(candidate, _)| candidate)),
            },
            Self::Any { tried } => {
                let Some(peer) = peers.choose(&call.name, tried) else {
                    return Ok(None);
                };
                tried.push(peer.address);
                Ok(Some(Candidate::There(Arc::clone(peer))))
            }
        }
    }

    /// Whether an attempt that ended with `problem` counts for nothing: the instance drains, or lacks the function, and does not
    /// know the call's key, which picked it.
    pub(super) fn is_skipped(
        &self,
        problem: &Problem,
        call: &Call,
        here: Option<Here<'_>>,
    ) -> bool {
        let Self::Ranked(candidates) = self else {
            return false;
        };
        let may_know = |(candidate, _): &(Candidate, _)| match candidate {
            Candidate::Here => here.is_some_and(|here| !here.never_had),
            Candidate::There(peer) => peer.may_know(&call.name),
        };
        let mut left = candidates.as_slice().iter();
        match problem.code {
            Code::Draining => left.len() > 0,
            // Else a function that nobody has would be asked for everywhere.
            Code::FunctionUnknown => left.any(may_know),
            _ => false,
        }
    }

    /// Whether the next one for `call` is ready and did not say that it is full.
    pub(super) fn has_room(&self, peers: &RegionPeers, call: &Call) -> bool {
        match self {
            Self::Ranked(candidates) => {
                matches!(candidates.as_slice().first(), Some((_, Condition::Ready)))
            }
            Self::Any { tried } => peers.has_room(&call.name, tried),
        }
    }
}

/// The instance that may have run the call does not answer, and no other knows whether it did.
fn hangs(instance: &InstanceId) -> Problem {
    let detail = format!(
        "instance {instance}, which remembers this idempotency key, does not answer; with idempotent: true the call runs on \
         another"
    );
    Problem::new(Code::PeerUnreachable, detail)
}

/// Rendezvous hashing (highest random weight): every instance ranks the same instances in the same order for a key, and
/// one that comes or goes moves only the keys that are its own. An instance that does not answer keeps its rank, because
/// it may have run the call before. Tried last: an instance that is gone, one that does not answer if the call may run twice,
/// and one that did not have the function since it started, so that no call of it ran there.
fn ranked(
    peers: &RegionPeers,
    here: Option<Here<'_>>,
    key: &IdempotencyKey,
    call: &Call,
) -> Vec<(Candidate, Condition)> {
    // Where another process has the same id, other instances would pick that one.
    let here = here.filter(|here| !peers.duplicates.contains(here.instance));
    let here = here.map(|here| {
        let rank = (here.never_had, Reverse(weight(key, here.instance)));
        (rank, Candidate::Here, Condition::Ready)
    });
    let there = peers.identified().map(|(peer, condition)| {
        let is_out = match condition {
            Condition::Gone => true,
            Condition::Hanging => call.idempotent,
            Condition::Ready | Condition::Draining | Condition::Doubtful => false,
        };
        let is_last = is_out || peer.never_had(&call.name);
        let rank = (is_last, Reverse(weight(key, &peer.instance)));
        (rank, Candidate::There(Arc::clone(peer)), condition)
    });
    let mut candidates: Vec<_> = there.chain(here).collect();
    candidates.sort_unstable_by_key(|(rank, ..)| *rank);
    let ranked = candidates.into_iter();
    ranked
        .map(|(_, candidate, condition)| (candidate, condition))
        .collect()
}

/// The same number for the same key and instance in every release and on every machine.
fn weight(key: &IdempotencyKey, instance: &InstanceId) -> [u8; 8] {
    let hash = Sha256::digest(format!("{key}\0{instance}"));
    std::array::from_fn(|byte| hash[byte])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::call::Timeouts;

    fn peers(names: &[&str]) -> RegionPeers {
        let peer = |name: &&str| {
            let address = ([127, 0, 0, 1], u16::from(name.as_bytes()[0])).into();
            let (region, instance) = ("syd".parse().unwrap(), name.parse().unwrap());
            Arc::new(Peer::new(address, region, instance))
        };
        RegionPeers {
            ready: names.iter().map(peer).collect(),
            ..RegionPeers::default()
        }
    }

    fn call(is_idempotent: bool) -> Call {
        let text = format!(
            r#"{{"module": "M", "function": "f", "args": [], "idempotent": {is_idempotent}}}"#
        );
        let second = Duration::from_secs(1);
        let timeouts = Timeouts {
            default: second,
            max: second,
        };
        Call::from_json(text.as_bytes(), timeouts).unwrap()
    }

    /// The instance that the key picks among `names`, seen from `me`.
    fn picked(names: &[&str], me: Option<&str>, key: u32) -> String {
        let me: Option<InstanceId> = me.map(|me| me.parse().unwrap());
        let here = me.as_ref().map(|instance| Here {
            instance,
            never_had: false,
        });
        let key = key.to_string().parse().unwrap();
        match &ranked(&peers(names), here, &key, &call(false))[0].0 {
            Candidate::Here => me.unwrap().to_string(),
            Candidate::There(peer) => peer.instance.to_string(),
        }
    }

    #[test]
    fn every_instance_picks_the_same_one() {
        for key in 0..100 {
            let from_outside = picked(&["a", "b", "c"], None, key);
            assert_eq!(from_outside, picked(&["c", "b", "a"], None, key));
            assert_eq!(from_outside, picked(&["b", "c"], Some("a"), key));
        }
    }

    #[test]
    fn who_refuses_is_passed_over_and_who_hangs_is_waited_for_unless_idempotent() {
        let key: IdempotencyKey = "7".parse().unwrap();
        let mut region = peers(&["a", "b", "c"]);
        let order = |region: &RegionPeers, is_idempotent| -> Vec<String> {
            let candidates = ranked(region, None, &key, &call(is_idempotent));
            let name = |(candidate, _): &(Candidate, Condition)| match candidate {
                Candidate::Here => unreachable!("no candidate is here"),
                Candidate::There(peer) => peer.instance.to_string(),
            };
            candidates.iter().map(name).collect()
        };
        let well = order(&region, false);
        let is_first = |peer: &mut Arc<Peer>| peer.instance.as_str() == well[0];
        let first = region.ready.extract_if(.., is_first).next().unwrap();
        region.others = vec![(Arc::clone(&first), Condition::Hanging)];
        assert_eq!(order(&region, false), well);
        let last = [well[1].clone(), well[2].clone(), well[0].clone()];
        assert_eq!(order(&region, true), last);
        region.others = vec![(first, Condition::Gone)];
        assert_eq!(order(&region, false), last);
    }

    #[test]
    fn keys_are_spread_and_move_only_when_their_own_instance_goes() {
        let mut counts = [0; 3];
        for key in 0..300 {
            let before = picked(&["a", "b", "c"], None, key);
            let after = picked(&["a", "b"], None, key);
            assert!(before == "c" || before == after);
            counts[usize::from(before.as_bytes()[0] - b'a')] += 1;
        }
        assert!(
            counts.iter().all(|count| (60..140).contains(count)),
            "{counts:?}"
        );
    }
}
