//! The instances on which one call may run, in the order in which they are tried.

use std::{cmp::Reverse, net::SocketAddr, sync::Arc};

use sha2::{Digest, Sha256};

use crate::{
    call::Call,
    cluster::{Peer, RegionPeers},
    name::{IdempotencyKey, InstanceId},
    problem::{Code, Problem},
};

/// Where one attempt is made.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// On this instance.
    Here,
    /// On a peer.
    There(Arc<Peer>),
}

/// Where one call may run.
#[derive(Debug)]
pub(super) enum Candidates<'a> {
    /// On the only instance that was asked for.
    Pinned(Option<Place>),
    /// On any peer of the region, chosen at random.
    Any {
        peers: &'a RegionPeers,
        tried: Vec<SocketAddr>,
    },
    /// On the instance that the call's key picks, and on the next one only if that one did not run it.
    Ranked(std::vec::IntoIter<Place>),
}

impl<'a> Candidates<'a> {
    /// The candidates for `call` among `peers`, and this instance `me` when it is in the region.
    ///
    /// # Errors
    /// [`Code::InstanceUnknown`] when the call asks for an instance that is not in the region.
    pub(super) fn new(
        peers: &'a RegionPeers,
        me: Option<&InstanceId>,
        call: &Call,
    ) -> Result<Self, Problem> {
        if let Some(instance) = &call.instance {
            let found = peers.find(instance).cloned().map(Place::There);
            let detail = || format!("instance \"{instance}\" is not in this region");
            let place = found.ok_or_else(|| Problem::new(Code::InstanceUnknown, detail()))?;
            return Ok(Self::Pinned(Some(place)));
        }
        Ok(match &call.key {
            Some(key) => Self::Ranked(ranked(peers, me, key).into_iter()),
            None => Self::Any {
                peers,
                tried: Vec::new(),
            },
        })
    }

    /// The next one for `call`; none is given twice.
    pub(super) fn next(&mut self, call: &Call) -> Option<Place> {
        match self {
            Self::Pinned(place) => place.take(),
            Self::Ranked(places) => places.next(),
            Self::Any { peers, tried } => {
                let peer = peers.choose(&call.name, tried)?;
                tried.push(peer.address);
                Some(Place::There(Arc::clone(peer)))
            }
        }
    }
}

/// Rendezvous hashing (highest random weight): every instance ranks the same instances in the same order for a key, and
/// one that comes or goes moves only the keys that are its own. Their state does not count: a suspect instance may have
/// run the call before, and where it cannot be reached, it did not run this one and the next is asked.
fn ranked(peers: &RegionPeers, me: Option<&InstanceId>, key: &IdempotencyKey) -> Vec<Place> {
    let there = |peer: &Arc<Peer>| (weight(key, &peer.instance), Place::There(Arc::clone(peer)));
    let mut places: Vec<_> = peers.identified().map(there).collect();
    places.extend(me.map(|me| (weight(key, me), Place::Here)));
    places.sort_by_key(|(weight, _)| Reverse(*weight));
    places.into_iter().map(|(_, place)| place).collect()
}

/// The same number for the same key and instance in every release and on every machine.
fn weight(key: &IdempotencyKey, instance: &InstanceId) -> [u8; 8] {
    let hash = Sha256::digest(format!("{key}\0{instance}"));
    std::array::from_fn(|byte| hash[byte])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(names: &[&str]) -> RegionPeers {
        let peer = |name: &&str| {
            Arc::new(Peer {
                address: ([127, 0, 0, 1], 1).into(),
                region: "syd".parse().unwrap(),
                instance: name.parse().unwrap(),
                release: None,
                boot: None,
                catalogue: None,
            })
        };
        RegionPeers {
            ready: names.iter().map(peer).collect(),
            ..RegionPeers::default()
        }
    }

    /// The instance that the key picks among `names`, seen from `me`.
    fn picked(names: &[&str], me: Option<&str>, key: u32) -> String {
        let me = me.map(|me| me.parse().unwrap());
        match &ranked(
            &peers(names),
            me.as_ref(),
            &key.to_string().parse().unwrap(),
        )[0]
        {
            Place::Here => me.unwrap().to_string(),
            Place::There(peer) => peer.instance.to_string(),
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
