//! Asks DNS for the addresses of peers: A and AAAA, or SRV which also carries the port.
//! Owns bounds and meanings of an answer; what becomes of it is the table's affair. Never asked while a call waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, future, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, rdata::SRV},
    },
};
use tokio::time;

use super::table::Resolved;
use crate::config::{DiscoveryConfig, DnsName};

/// How long one query may take; hickory's own defaults wait 15 s for a silent server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long all queries of a round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(3);
/// How many targets of SRV records are asked for at once, where the answer did not bring their addresses along.
const CONCURRENT_TARGETS: usize = 16;

/// The resolver of one instance.
#[derive(Debug)]
pub(super) struct Dns {
    resolver: TokioResolver,
    names: Vec<DnsName>,
    peer_port: u16,
}

/// What a round of queries found, and what went wrong meanwhile.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) resolved: Resolved,
    pub(super) error: Option<String>,
}

impl Dns {
    /// A resolver of what `config` names, where peers without a port of their own are at `peer_port`.
    ///
    /// # Errors
    /// The system's resolver configuration cannot be read.
    pub(super) fn new(config: &DiscoveryConfig, peer_port: u16) -> Result<Self, NetError> {
        let mut builder = match config.server {
            Some(server) => {
                let config = ResolverConfig::from_name_servers(vec![name_server(server)]);
                Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
            None => Resolver::builder_tokio()?,
        };
        let options = builder.options_mut();
        options.timeout = QUERY_TIMEOUT;
        options.attempts = 1;
        options.cache_size = 0;
        options.edns0 = true;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        if config.server.is_some() {
            options.use_hosts_file = ResolveHosts::Never;
        }
        Ok(Self {
            resolver: builder.build()?,
            names: config.names.clone(),
            peer_port,
        })
    }

    /// Asks for every name. An answer without any address is an error: discovery keeps what it has.
    pub(super) async fn resolve(&self) -> Answer {
        let answers =
            future::join_all(self.names.iter().map(|name| self.resolve_in_time(name))).await;
        let error = answers
            .iter()
            .find_map(|answer| answer.as_ref().err().cloned());
        let addresses: BTreeSet<SocketAddr> = answers
            .into_iter()
            .flatten()
            .flatten()
            .filter(can_be_a_peer)
            .collect();
        let error = error.or_else(|| {
            addresses
                .is_empty()
                .then(|| "the answer has no usable address".to_owned())
        });
        Answer {
            resolved: Resolved {
                addresses,
                complete: error.is_none(),
            },
            error,
        }
    }

    async fn resolve_in_time(&self, name: &DnsName) -> Result<Vec<SocketAddr>, String> {
        let found = time::timeout(ROUND_TIMEOUT, self.resolve_name(name)).await;
        found
            .unwrap_or(Err(NetError::Timeout))
            .map_err(|error| format!("{}: {}", label(name), reason(&error)))
    }

    async fn resolve_name(&self, name: &DnsName) -> Result<Vec<SocketAddr>, NetError> {
        match name {
            DnsName::Address(address) => Ok(vec![*address]),
            DnsName::Host(host, port) => {
                self.resolve_host(host.as_str(), port.unwrap_or(self.peer_port))
                    .await
            }
            DnsName::Service(service) => self.resolve_service(service).await,
        }
    }

    async fn resolve_host(
        &self,
        host: impl hickory_resolver::proto::rr::IntoName,
        port: u16,
    ) -> Result<Vec<SocketAddr>, NetError> {
        let found = self.resolver.lookup_ip(host).await?;
        Ok(found
            .iter()
            .map(|ip| SocketAddr::new(ip.to_canonical(), port))
            .collect())
    }

    async fn resolve_service(&self, service: &str) -> Result<Vec<SocketAddr>, NetError> {
        let lookup = self.resolver.srv_lookup(service).await?;
        let brought_along = addresses_in(&lookup);
        let (mut found, mut missing) = (Vec::new(), BTreeSet::new());
        for SRV { target, port, .. } in services_in(&lookup) {
            match brought_along.get(target) {
                Some(ips) => found.extend(ips.iter().map(|ip| SocketAddr::new(*ip, *port))),
                None => {
                    missing.insert((target.clone(), *port));
                }
            }
        }
        let queries = stream::iter(missing).map(|(target, port)| self.resolve_host(target, port));
        let mut queries = queries.buffer_unordered(CONCURRENT_TARGETS);
        while let Some(addresses) = queries.next().await {
            found.extend(addresses?);
        }
        Ok(found)
    }
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = server.port();
    }
    NameServerConfig::new(server.ip(), true, connections)
}

fn services_in(lookup: &Lookup) -> impl Iterator<Item = &SRV> {
    lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service),
            _ => None,
        })
}

/// The addresses of targets that the server sent along with the SRV records (RFC 2782, additional data).
fn addresses_in(lookup: &Lookup) -> BTreeMap<&Name, Vec<IpAddr>> {
    let mut addresses: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
    for record in lookup.additionals() {
        if let Some(ip) = record.data.ip_addr() {
            addresses
                .entry(&record.name)
                .or_default()
                .push(ip.to_canonical());
        }
    }
    addresses
}

fn can_be_a_peer(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}

/// How people wrote `name` in the configuration.
pub(super) fn label(name: &DnsName) -> String {
    match name {
        DnsName::Service(name) | DnsName::Host(name, None) => name.clone(),
        DnsName::Host(name, Some(port)) => format!("{name}:{port}"),
        DnsName::Address(address) => address.to_string(),
    }
}

fn reason(error: &NetError) -> String {
    match error {
        NetError::Timeout => "the DNS server did not answer in time".to_owned(),
        NetError::Dns(DnsError::NoRecordsFound(none))
            if none.response_code == ResponseCode::NoError =>
        {
            "the answer has no records".to_owned()
        }
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            format!("the DNS server answered {}", none.response_code)
        }
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the DNS server answered {code}"),
        error => error.to_string(),
    }
}
