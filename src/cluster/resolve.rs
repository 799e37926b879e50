//! Asks DNS for the addresses of peers: A and AAAA, or SRV which also carries the port.
//! Owns bounds and meanings of an answer; what becomes of it is the table's affair. Never asked while a call waits.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, future, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::Name},
};
use tokio::time;

use super::{
    event::Resolved,
    records::{self, Services},
};
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
        if config.server.is_some() {
            options.use_hosts_file = ResolveHosts::Never;
        }
        Ok(Self {
            resolver: builder.build()?,
            names: config.names.clone(),
            peer_port,
        })
    }

    /// Asks for every name. What was found counts also when something else failed; an answer without any address is an
    /// error, so that discovery keeps what it has.
    pub(super) async fn resolve(&self) -> Answer {
        let names = self.names.iter().map(|name| self.resolve_in_time(name));
        let Found { addresses, error } = future::join_all(names).await.into_iter().collect();
        let addresses: BTreeSet<_> = addresses
            .into_iter()
            .filter(records::can_be_a_peer)
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

    async fn resolve_in_time(&self, name: &DnsName) -> Found {
        let found = time::timeout(ROUND_TIMEOUT, self.resolve_name(name)).await;
        let mut found = found.unwrap_or_else(|_| Found::failed(&NetError::Timeout));
        found.error = found.error.map(|error| format!("{}: {error}", label(name)));
        found
    }

    async fn resolve_name(&self, name: &DnsName) -> Found {
        match name {
            DnsName::Address(address) => Found::from(vec![*address]),
            DnsName::Host(host, port) => {
                let port = port.unwrap_or(self.peer_port);
                if let Ok(ip) = host.parse() {
                    return Found::from(vec![SocketAddr::new(ip, port)]);
                }
                match Name::from_utf8(host) {
                    Ok(host) => self.resolve_host(host, port).await,
                    Err(error) => Found::failed(&error.into()),
                }
            }
            DnsName::Service(service) => self.resolve_service(service).await,
        }
    }

    /// The A and AAAA records of `host`. That it has none of one kind is an answer, that it has none at all an error.
    async fn resolve_host(&self, host: Name, port: u16) -> Found {
        let (a, aaaa) = future::join(
            self.resolver.ipv4_lookup(host.clone()),
            self.resolver.ipv6_lookup(host),
        )
        .await;
        match (a, aaaa) {
            (Err(a), Err(aaaa)) if is_an_answer(&a) && is_an_answer(&aaaa) => Found::failed(&a),
            (a, aaaa) => [a, aaaa]
                .into_iter()
                .map(|lookup| match lookup {
                    Ok(lookup) => Found::from(records::addresses(lookup.message(), port)),
                    Err(none) if is_an_answer(&none) => Found::default(),
                    Err(error) => Found::failed(&error),
                })
                .collect(),
        }
    }

    async fn resolve_service(&self, service: &str) -> Found {
        let lookup = match self.resolver.srv_lookup(service).await {
            Ok(lookup) => lookup,
            Err(error) => return Found::failed(&error),
        };
        let Services { known, missing } = records::services(lookup.message());
        let queries = stream::iter(missing).map(|(target, port)| self.resolve_host(target, port));
        let answers: Vec<Found> = queries
            .buffer_unordered(CONCURRENT_TARGETS)
            .chain(stream::iter([Found::from(known)]))
            .collect()
            .await;
        answers.into_iter().collect()
    }
}

/// What some queries found, and the first thing that went wrong.
#[derive(Debug, Default)]
struct Found {
    addresses: Vec<SocketAddr>,
    error: Option<String>,
}

impl Found {
    fn failed(error: &NetError) -> Self {
        Self {
            addresses: Vec::new(),
            error: Some(reason(error)),
        }
    }
}

impl From<Vec<SocketAddr>> for Found {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            error: None,
        }
    }
}

impl FromIterator<Self> for Found {
    fn from_iter<I: IntoIterator<Item = Self>>(answers: I) -> Self {
        let mut all = Self::default();
        for answer in answers {
            all.addresses.extend(answer.addresses);
            all.error = all.error.or(answer.error);
        }
        all
    }
}

/// Whether the server answered, and the answer is that there are no such records.
fn is_an_answer(error: &NetError) -> bool {
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(none))
        if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain))
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = server.port();
    }
    NameServerConfig::new(server.ip(), true, connections)
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
