//! What must hold of the answers of a DNS server that sends anything, for fuzzing and for unit tests.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use hickory_resolver::proto::op::Message;
use tokio::time::Instant;

use super::{
    dns,
    snapshot::Peer,
    table::{Event, MAX_WITHOUT_PEER, ProbeAnswer, Table},
};
use crate::name::BootId;

const PORT: u16 = 8080;

/// An answer of DNS to a table with one peer: the peer stays, every other usable address is probed once, and no other is.
pub(crate) fn dns_answer(bytes: &[u8]) {
    let Ok(message) = Message::from_vec(bytes) else {
        return;
    };
    let mut addresses: BTreeSet<SocketAddr> = dns::addresses(&message, PORT)
        .chain(dns::services(&message).0)
        .collect();
    addresses.retain(dns::is_usable);
    let peer = SocketAddr::from(([127, 0, 0, 1], PORT));
    let now = Instant::now();
    let mut table = table_with(peer, now);
    let mut probed = |complete| {
        let addresses = addresses.clone();
        let resolved = Event::Resolved {
            addresses,
            complete,
        };
        let probed = table.apply(resolved, now).probe;
        assert!(table.is_peer(peer));
        probed
    };
    let new = addresses.iter().copied().filter(|it| *it != peer);
    let new: Vec<_> = new.take(MAX_WITHOUT_PEER).collect();
    assert_eq!(probed(false), new);
    let missing = (!addresses.contains(&peer)).then_some(peer);
    assert_eq!(probed(true), Vec::from_iter(missing));
    for address in new {
        let ip = address.ip();
        assert!(ip == ip.to_canonical() && !ip.is_unspecified() && !ip.is_multicast());
        assert!(address.port() != 0 && !table.is_peer(address));
    }
}

fn table_with(address: SocketAddr, now: Instant) -> Table {
    let (Ok(me), Ok(instance), Ok(region)) = ("me".parse(), "peer".parse(), "syd".parse()) else {
        unreachable!("these names are valid");
    };
    let mut table = Table::new(me, BootId::random());
    let resolved = Event::Resolved {
        addresses: [address].into(),
        complete: true,
    };
    let answer = ProbeAnswer {
        peer: Peer {
            address,
            region,
            instance,
            load: std::sync::Arc::default(),
            distance: std::sync::Arc::default(),
            release: None,
            boot: None,
            catalogue: None,
            app_state: None,
        },
        draining: false,
        rtt: Duration::ZERO,
    };
    table.apply(resolved, now);
    table.apply(Event::Probed(address, Ok(answer)), now);
    table
}
