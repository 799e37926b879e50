//! When each address is asked next: new ones at once, the others when they are due, and those no faster than a bound,
//! so that asking ten thousand peers costs little more than asking a thousand. Owns times only, not who answers where.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

/// The shortest time between two questions to addresses that were asked before: 80 a second, so that they take less than
/// a twentieth of a core, by `benches/scale.rs`.
const STRIDE: Duration = Duration::from_micros(12_500);
/// How far questions that are late may catch up at once.
const SLACK: Duration = Duration::from_millis(100);

/// The addresses to ask, by time.
#[derive(Debug)]
pub(super) struct Agenda {
    at_once: VecDeque<SocketAddr>,
    due: BTreeSet<(Instant, SocketAddr)>,
    dates: HashMap<SocketAddr, Instant>,
    not_before: Instant,
}

impl Agenda {
    /// An empty agenda at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at_once: VecDeque::new(),
            due: BTreeSet::new(),
            dates: HashMap::new(),
            not_before: now,
        }
    }

    /// Asks `address` before all that are only due, after those that are asked at once already.
    pub(super) fn at_once(&mut self, address: SocketAddr) {
        self.forget(address);
        self.at_once.push_back(address);
    }

    /// Asks `address` at `date`, and not at the date it had.
    pub(super) fn set(&mut self, address: SocketAddr, date: Instant) {
        self.forget(address);
        self.dates.insert(address, date);
        self.due.insert((date, address));
    }

    /// Puts off `address` to `date` if it is due earlier.
    pub(super) fn put_off(&mut self, address: SocketAddr, date: Instant) {
        if self.dates.get(&address).is_some_and(|was| *was < date) {
            self.set(address, date);
        }
    }

    /// Drops the date of `address`.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        if let Some(date) = self.dates.remove(&address) {
            self.due.remove(&(date, address));
        }
    }

    /// Whether an address waits that is to be asked at once.
    pub(super) fn has_urgent(&self) -> bool {
        !self.at_once.is_empty()
    }

    /// The address to ask at `now`.
    pub(super) fn next(&mut self, now: Instant) -> Option<SocketAddr> {
        if let Some(address) = self.at_once.pop_front() {
            return Some(address);
        }
        let (date, address) = *self.due.first()?;
        if date > now || self.not_before > now {
            return None;
        }
        self.forget(address);
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        self.not_before = self.not_before.max(earliest) + STRIDE;
        Some(address)
    }

    /// When there is an address to ask, if nothing changes; `None` while there is none.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        if self.has_urgent() {
            return Some(now);
        }
        let (date, _) = self.due.first()?;
        Some(self.not_before.max(*date))
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
        agenda.set(address(1), start + 2 * second);
        agenda.set(address(2), start + second);
        agenda.at_once(address(3));
        assert_eq!(agenda.wake(start), Some(start));
        assert_eq!(agenda.next(start), Some(address(3)));
        assert_eq!(
            (agenda.next(start), agenda.wake(start)),
            (None, Some(start + second))
        );
        assert_eq!(agenda.next(start + second), Some(address(2)));
        agenda.put_off(address(1), start + 3 * second);
        agenda.put_off(address(1), start);
        agenda.put_off(address(9), start);
        assert_eq!(agenda.wake(start), Some(start + 3 * second));
        agenda.forget(address(1));
        assert_eq!(agenda.wake(start), None);
    }

    #[test]
    fn eighty_a_second_at_most() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        for port in 0..1000 {
            agenda.set(address(port), start);
        }
        let asked = (0..=1000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            agenda.next(now).is_some()
        });
        assert_eq!(asked.count(), 81);
        let late = start + Duration::from_secs(3);
        let at_once = std::iter::from_fn(|| agenda.next(late)).count();
        assert_eq!(at_once, 9);
    }
}
