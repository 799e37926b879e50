//! What a fuzzer holds against this layer: the answers of a DNS server that says anything.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use hickory_resolver::proto::op::Message;
use tokio::time::Instant;

use super::{
    event::{Event, Resolved, Sighting},
    peers::Peer,
    records,
    table::{MAX_WITHOUT_PEER, Table},
};
use crate::name::BootId;

const PORT: u16 = 8080;

/// An answer of DNS, for a table with one peer: the peer stays, every other address is asked who it is, once, and none is
/// asked at which nobody can be.
pub(crate) fn dns_answer(bytes: &[u8]) {
    let Ok(message) = Message::from_vec(bytes) else {
        return;
    };
    let mut addresses: BTreeSet<SocketAddr> = records::addresses(&message, PORT)
        .into_iter()
        .chain(records::services(&message).known)
        .collect();
    addresses.retain(records::can_be_a_peer);
    let peer = SocketAddr::from(([127, 0, 0, 1], PORT));
    let now = Instant::now();
    let mut table = table_with(peer, now);
    let mut asked = |complete| {
        let addresses = addresses.clone();
        let resolved = Resolved {
            addresses,
            complete,
        };
        let asked = table.apply(Event::Resolved(resolved), now).ask;
        assert!(table.is_peer(peer));
        asked
    };
    let new = addresses.iter().copied().filter(|it| *it != peer);
    let new: Vec<_> = new.take(MAX_WITHOUT_PEER).collect();
    assert_eq!(asked(false), new);
    let missing = (!addresses.contains(&peer)).then_some(peer);
    assert_eq!(asked(true), Vec::from_iter(missing));
    for address in new {
        let ip = address.ip();
        assert!(ip == ip.to_canonical() && !ip.is_unspecified() && !ip.is_multicast());
        assert!(address.port() != 0 && !table.is_peer(address));
    }
}

fn table_with(address: SocketAddr, now: Instant) -> Table {
    let (Ok(me), Ok(instance), Ok(region)) = ("me".parse(), "peer".parse(), "syd".parse()) else {
        unreachable!("these are good names");
    };
    let mut table = Table::new(me, BootId::random());
    let resolved = Resolved {
        addresses: [address].into(),
        complete: true,
    };
    let sighting = Sighting {
        peer: Peer {
            address,
            region,
            instance,
            load: std::sync::Arc::default(),
            release: None,
            boot: None,
            catalogue: None,
        },
        draining: false,
        rtt: Duration::ZERO,
    };
    table.apply(Event::Resolved(resolved), now);
    table.apply(Event::Probed(address, Ok(sighting)), now);
    table
}
