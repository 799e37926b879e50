//! The regions in which one call may run, in the order in which they are tried: as its targets name them, those that have
//! a ready instance with the function before those that have none.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use super::Dispatcher;
use crate::{
    call::Call,
    cluster::{Peer, RegionPeers},
    name::{FunctionName, InstanceId},
    region::{Region, Target, Targets},
};

#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// The index of the target that stands for it.
    pub item: usize,
    pub is_any: bool,
    pub region: Region,
    pub standing: Standing,
    /// The round trip to the nearest ready instance; `None` for the own region, and where there is none.
    pub distance: Option<Duration>,
}

/// How well a region can run a function.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Standing {
    /// No instance is known that has it.
    Without,
    /// Those that may have it are suspect or draining.
    Doubtful,
    /// A ready instance may have it.
    Serving,
}

/// What a call needs of a region: the function, or any where none is named, and the instance that it asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs<'a> {
    pub(crate) function: Option<&'a FunctionName>,
    pub(crate) instance: Option<&'a InstanceId>,
}

impl<'a> Needs<'a> {
    pub(crate) fn of(call: &'a Call) -> Self {
        Self {
            function: Some(&call.name),
            instance: call.instance.as_ref(),
        }
    }
}

impl Dispatcher {
    /// The regions that `targets` stand for, as they are named; those of `any` by their distance, the own one first.
    pub(crate) fn choices(&self, targets: &Targets, needs: Needs<'_>) -> Vec<Choice> {
        let mut choices: Vec<Choice> = Vec::new();
        for (item, target) in targets.items.iter().enumerate() {
            let regions = match target.region(&self.local.identity.primary) {
                Some(region) => vec![self.choice(item, target, region.clone(), needs)],
                None => self.nearest(item, targets, needs),
            };
            choices.extend(regions);
        }
        choices
    }

    /// Every region that `any` may stand for.
    fn nearest(&self, item: usize, targets: &Targets, needs: Needs<'_>) -> Vec<Choice> {
        let own = &self.local.identity.region;
        let others = self.cluster.regions().into_iter();
        let regions = others.filter(|region| region != own).chain([own.clone()]);
        let allowed = regions.filter(|region| targets.any_may_be(region));
        let choice = |region| self.choice(item, &Target::Any, region, needs);
        let mut choices: Vec<_> = allowed.map(choice).collect();
        choices.sort_by_key(|choice| {
            (
                choice.region != *own,
                choice.distance.unwrap_or(Duration::MAX),
            )
        });
        choices
    }

    fn choice(&self, item: usize, target: &Target, region: Region, needs: Needs<'_>) -> Choice {
        let peers = self.cluster.region(&region).unwrap_or_default();
        let is_own = region == self.local.identity.region;
        let is_here = is_own && self.is_here(needs);
        Choice {
            item,
            is_any: *target == Target::Any,
            standing: match is_here {
                true => Standing::Serving,
                false => standing(&peers, needs),
            },
            distance: peers.distance().filter(|_| !is_own),
            region,
        }
    }

    fn is_here(&self, needs: Needs<'_>) -> bool {
        match needs.instance {
            Some(instance) => *instance == self.local.identity.instance,
            None => needs
                .function
                .is_none_or(|name| self.executor.catalogue().has(name)),
        }
    }
}

fn standing(peers: &RegionPeers, needs: Needs<'_>) -> Standing {
    let fits = |peer: &Arc<Peer>| match needs.instance {
        Some(instance) => peer.instance == *instance,
        None => needs.function.is_none_or(|name| peer.may_have(name)),
    };
    if peers.ready.iter().any(fits) {
        Standing::Serving
    } else if peers.others.iter().any(|(peer, _)| fits(peer)) {
        Standing::Doubtful
    } else {
        Standing::Without
    }
}

/// Chooses the next region of a call that was `tried` in some, and how many of the `left` attempts to keep for later targets,
/// one each.
///
/// Takes the first region that serves the function, else the first. With `is_strict`, always takes the first: an instance
/// there that is silent may have run the call. Skips a region that only `any` stands for if nobody there has the function.
/// The own region is the exception, if no other was tried: its refusal says so.
pub(super) fn next_choice<'a>(
    choices: &'a [Choice],
    tried: &[Region],
    left: u32,
    own: &Region,
    is_strict: bool,
) -> Option<(&'a Choice, u32)> {
    let is_last_resort = |choice: &Choice| tried.is_empty() && choice.region == *own;
    let is_open = |choice: &&Choice| {
        !tried.contains(&choice.region)
            && kept(choices, tried, choice) < left
            && (!choice.is_any || choice.standing > Standing::Without || is_last_resort(choice))
    };
    let open: Vec<_> = choices.iter().filter(is_open).collect();
    // Of equal ones, the first is taken.
    let rank = |choice: &&&Choice| {
        Reverse(match (is_strict, choice.standing) {
            (true, _) => 0,
            (false, Standing::Serving) => 2,
            (false, Standing::Doubtful) if choice.is_any => 1,
            (false, _) if choice.is_any => 0,
            (false, _) => 1,
        })
    };
    let choice = open.iter().min_by_key(rank).copied()?;
    let others = open.iter().any(|other| other.region != choice.region);
    let kept = match kept(choices, tried, choice) {
        // The last attempt leaves a region in which all are out.
        0 => u32::from(choice.is_any && others),
        kept => kept,
    };
    Some((choice, kept))
}

/// How many targets after that of `choice` still have a region of their own to be tried.
fn kept(choices: &[Choice], tried: &[Region], choice: &Choice) -> u32 {
    let is_later = |other: &&Choice| {
        other.item > choice.item && other.region != choice.region && !tried.contains(&other.region)
    };
    let mut items: Vec<_> = choices.iter().filter(is_later).map(|it| it.item).collect();
    items.dedup();
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
