//! What the records of a DNS answer say: addresses, and services with their ports. Pure; asking is `resolve.rs`'s affair.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use hickory_resolver::proto::{
    op::Message,
    rr::{Name, RData, rdata::SRV},
};

/// What the SRV records of an answer say.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// The addresses that the server sent along.
    pub(super) known: Vec<SocketAddr>,
    /// The targets without an address, and their ports.
    pub(super) missing: BTreeSet<(Name, u16)>,
}

/// The A and AAAA records of `answer`, each with `port`.
pub(super) fn addresses(answer: &Message, port: u16) -> Vec<SocketAddr> {
    let ips = answer
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr());
    ips.map(|ip| SocketAddr::new(ip.to_canonical(), port))
        .collect()
}

/// The SRV records of `answer`, with the addresses of their targets where the server sent those along (RFC 2782,
/// additional data).
pub(super) fn services(answer: &Message) -> Services {
    let mut ips_of: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
    for record in &answer.additionals {
        if let Some(ip) = record.data.ip_addr() {
            ips_of
                .entry(&record.name)
                .or_default()
                .push(ip.to_canonical());
        }
    }
    let mut services = Services::default();
    for record in &answer.answers {
        let RData::SRV(SRV { target, port, .. }) = &record.data else {
            continue;
        };
        match ips_of.get(target) {
            Some(ips) => services
                .known
                .extend(ips.iter().map(|ip| SocketAddr::new(*ip, *port))),
            None => {
                services.missing.insert((target.clone(), *port));
            }
        }
    }
    services
}

/// Whether an instance can be at `address`.
pub(super) fn can_be_a_peer(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}
