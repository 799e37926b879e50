//! When each address is asked next, in three classes with an order of their own, so that none can starve another:
//! peers for which calls wait, other peers, and addresses at which no peer is. Within the last two, new ones go first
//! and the others when they are due, no faster than a bound, so that asking ten thousand peers costs little more than
//! asking a thousand. Owns times only, not who answers where.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

/// The shortest time between two questions to addresses of a class that were asked before: 80 a second, so that they
/// take less than a twentieth of a core, by `benches/scale.rs`.
const STRIDE: Duration = Duration::from_micros(12_500);
/// How far questions that are late may catch up at once.
const SLACK: Duration = Duration::from_millis(100);

/// Why an address is asked. Each class has its share of the probes that are under way at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Class {
    /// A peer is there, and calls wait to know how it is.
    Awaited,
    /// A peer is there.
    Peer,
    /// No peer was found there so far.
    Other,
}

impl Class {
    /// Every one, the most urgent first.
    pub(super) const ALL: [Self; 3] = [Self::Awaited, Self::Peer, Self::Other];
}

/// The place of an address in its class.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Turn {
    /// Before all that are only due, in the order in which they came.
    AtOnce(u64),
    /// Not before this time.
    Due(Instant),
}

/// The addresses of one class, by their turn.
#[derive(Debug)]
struct Lane {
    turns: BTreeSet<(Turn, SocketAddr)>,
    not_before: Instant,
}

impl Lane {
    fn new(now: Instant) -> Self {
        Self {
            turns: BTreeSet::new(),
            not_before: now,
        }
    }

    /// When its first address may be asked; `None` while there is none.
    fn wake(&self, now: Instant) -> Option<Instant> {
        Some(match self.turns.first()?.0 {
            Turn::AtOnce(_) => now,
            Turn::Due(date) => self.not_before.max(date),
        })
    }
}

/// The addresses to ask, by class and time.
#[derive(Debug)]
pub(super) struct Agenda {
    lanes: [Lane; 3],
    places: HashMap<SocketAddr, (Class, Turn)>,
    arrivals: u64,
}

impl Agenda {
    /// An empty agenda at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            lanes: Class::ALL.map(|_| Lane::new(now)),
            places: HashMap::new(),
            arrivals: 0,
        }
    }

    /// Asks `address` before all of its class that are only due, after those that are asked at once already.
    pub(super) fn at_once(&mut self, address: SocketAddr, class: Class) {
        let place = self.places.get(&address);
        let is_there = |(at, turn): &(Class, Turn)| *at == class && matches!(turn, Turn::AtOnce(_));
        if self.is_awaited(address) || place.is_some_and(is_there) {
            return;
        }
        self.arrivals += 1;
        self.put(address, class, Turn::AtOnce(self.arrivals));
    }

    /// Asks `address` at `date`, and not at the date it had; an awaited one stays as it is.
    pub(super) fn set(&mut self, address: SocketAddr, class: Class, date: Instant) {
        if !self.is_awaited(address) {
            self.put(address, class, Turn::Due(date));
        }
    }

    /// Puts off `address` to `date` if it is due earlier.
    pub(super) fn put_off(&mut self, address: SocketAddr, date: Instant) {
        if let Some((class, Turn::Due(was))) = self.places.get(&address).copied()
            && was < date
        {
            self.set(address, class, date);
        }
    }

    /// Drops `address`.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        if let Some((class, turn)) = self.places.remove(&address) {
            self.lane(class).turns.remove(&(turn, address));
        }
    }

    /// Whether an address waits that is to be asked at once.
    pub(super) fn has_urgent(&self) -> bool {
        let is_urgent = |lane: &Lane| matches!(lane.turns.first(), Some((Turn::AtOnce(_), _)));
        self.lanes.iter().any(is_urgent)
    }

    /// The address of `class` to ask at `now`, and whether it was to be asked at once.
    pub(super) fn next(&mut self, class: Class, now: Instant) -> Option<(SocketAddr, bool)> {
        let lane = self.lane(class);
        let (turn, address) = *lane.turns.first()?;
        if lane.wake(now)? > now {
            return None;
        }
        if let Turn::Due(_) = turn {
            let earliest = now.checked_sub(SLACK).unwrap_or(now);
            lane.not_before = lane.not_before.max(earliest) + STRIDE;
        }
        self.forget(address);
        Some((address, matches!(turn, Turn::AtOnce(_))))
    }

    /// When there is an address of `class` to ask, if nothing changes; `None` while there is none.
    pub(super) fn wake(&self, class: Class, now: Instant) -> Option<Instant> {
        let [awaited, peers, others] = &self.lanes;
        match class {
            Class::Awaited => awaited.wake(now),
            Class::Peer => peers.wake(now),
            Class::Other => others.wake(now),
        }
    }

    fn is_awaited(&self, address: SocketAddr) -> bool {
        matches!(self.places.get(&address), Some((Class::Awaited, _)))
    }

    fn put(&mut self, address: SocketAddr, class: Class, turn: Turn) {
        self.forget(address);
        self.places.insert(address, (class, turn));
        self.lane(class).turns.insert((turn, address));
    }

    fn lane(&mut self, class: Class) -> &mut Lane {
        let [awaited, peers, others] = &mut self.lanes;
        match class {
            Class::Awaited => awaited,
            Class::Peer => peers,
            Class::Other => others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn new_addresses_come_first_and_the_others_when_they_are_due() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut agenda = Agenda::new(start);
        agenda.set(address(1), Class::Peer, start + 2 * second);
        agenda.set(address(2), Class::Peer, start + second);
        agenda.at_once(address(3), Class::Peer);
        assert_eq!(agenda.wake(Class::Peer, start), Some(start));
        assert_eq!(agenda.next(Class::Peer, start), Some((address(3), true)));
        assert_eq!(
            (
                agenda.next(Class::Peer, start),
                agenda.wake(Class::Peer, start)
            ),
            (None, Some(start + second))
        );
        let later = start + second;
        assert_eq!(agenda.next(Class::Peer, later), Some((address(2), false)));
        agenda.put_off(address(1), start + 3 * second);
        agenda.put_off(address(1), start);
        agenda.put_off(address(9), start);
        assert_eq!(agenda.wake(Class::Peer, start), Some(start + 3 * second));
        agenda.forget(address(1));
        assert_eq!(agenda.wake(Class::Peer, start), None);
    }

    #[test]
    fn no_class_waits_for_another() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        for port in 10..1000 {
            agenda.at_once(address(port), Class::Other);
        }
        agenda.set(address(1), Class::Peer, start);
        agenda.set(address(2), Class::Peer, start);
        agenda.at_once(address(2), Class::Awaited);
        agenda.set(address(2), Class::Peer, start);
        assert_eq!(agenda.next(Class::Awaited, start), Some((address(2), true)));
        assert_eq!(agenda.next(Class::Peer, start), Some((address(1), false)));
        assert_eq!(agenda.next(Class::Peer, start), None);
        assert_eq!(agenda.next(Class::Other, start), Some((address(10), true)));
        agenda.at_once(address(12), Class::Other);
        agenda.forget(address(11));
        assert_eq!(agenda.next(Class::Other, start), Some((address(12), true)));
    }

    #[test]
    fn eighty_a_second_at_most() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        for port in 0..1000 {
            agenda.set(address(port), Class::Peer, start);
        }
        let asked = (0..=1000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            agenda.next(Class::Peer, now).is_some()
        });
        assert_eq!(asked.count(), 81);
        let late = start + Duration::from_secs(3);
        let at_once = std::iter::from_fn(|| agenda.next(Class::Peer, late)).count();
        assert_eq!(at_once, 9);
    }
}
