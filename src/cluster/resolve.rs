//! Asks DNS for the addresses of peers: A and AAAA, or SRV which also carries the port.
//! Owns bounds and meanings of an answer; what becomes of it is the table's affair. Never asked while a call waits.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, future, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::Name},
};
use rand::seq::SliceRandom;
use tokio::time::{self, Instant};

use super::{
    event::Resolved,
    records::{self, Services},
};
use crate::config::{DiscoveryConfig, DnsName};

/// How long one query may take; hickory's own defaults wait 15 s for a silent server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long all queries of a round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(3);
/// How long before its end a round stops waiting for targets of SRV records.
const MARGIN: Duration = Duration::from_millis(50);
/// How many targets of SRV records are asked for at once, where the answer did not bring their addresses along.
const CONCURRENT_TARGETS: usize = 32;

/// The resolver of one instance.
#[derive(Debug)]
pub(super) struct Dns {
    resolver: TokioResolver,
    names: Vec<(DnsName, Families)>,
    peer_port: u16,
}

/// The kinds of addresses for which a name's servers ever gave an answer, be it that there are none. A server may know
/// one kind only, as that of Fly's private network does: then a failure for the other kind is no news.
#[derive(Debug, Default)]
struct Families {
    a: AtomicBool,
    aaaa: AtomicBool,
}

/// What a round of queries found, and what went wrong meanwhile.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) resolved: Resolved,
    /// Why the answer is not whole; `None` when it is.
    pub(super) error: Option<String>,
    /// Whether every name was answered, be it that there are no records.
    pub(super) is_answered: bool,
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
            names: config
                .names
                .iter()
                .map(|name| (name.clone(), Families::default()))
                .collect(),
            peer_port,
        })
    }

    /// Asks for every name. What was found counts also when something else failed; an answer without any address is an
    /// error, so that discovery keeps what it has.
    pub(super) async fn resolve(&self) -> Answer {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        let names = self.names.iter();
        let names = names.map(|(name, families)| self.resolve_in_time(name, families, deadline));
        let Found {
            addresses,
            error,
            has_failed,
        } = future::join_all(names).await.into_iter().collect();
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
            is_answered: !has_failed,
        }
    }

    async fn resolve_in_time(
        &self,
        name: &DnsName,
        families: &Families,
        deadline: Instant,
    ) -> Found {
        let found = self.resolve_name(name, families, deadline);
        let found = time::timeout_at(deadline, found).await;
        let mut found = found.unwrap_or_else(|_| Found::failed(&NetError::Timeout));
        found.error = found.error.map(|error| format!("{}: {error}", label(name)));
        found
    }

    async fn resolve_name(&self, name: &DnsName, families: &Families, deadline: Instant) -> Found {
        match name {
            DnsName::Address(address) => Found::from(vec![*address]),
            DnsName::Host(host, port) => {
                let port = port.unwrap_or(self.peer_port);
                if let Ok(ip) = host.parse() {
                    return Found::from(vec![SocketAddr::new(ip, port)]);
                }
                match Name::from_utf8(host) {
                    Ok(host) => self.resolve_host(host, port, families).await,
                    Err(error) => Found::failed(&error.into()),
                }
            }
            DnsName::Service(service) => self.resolve_service(service, families, deadline).await,
        }
    }

    /// The A and AAAA records of `host`. That it has none of one kind is an answer, that it has none at all an error; a
    /// kind that fails counts only if it was ever answered, or if the other kind fails too.
    async fn resolve_host(&self, host: Name, port: u16, families: &Families) -> Found {
        let (a, aaaa) = future::join(
            self.resolver.ipv4_lookup(host.clone()),
            self.resolver.ipv6_lookup(host),
        )
        .await;
        let is_answered = [&a, &aaaa].map(|lookup| match lookup {
            Ok(_) => true,
            Err(error) => is_an_answer(error),
        });
        let is_missed = families.note(is_answered);
        match (a, aaaa) {
            (Err(a), Err(aaaa)) if is_an_answer(&a) => Found::failed(&aaaa),
            (Err(a), Err(_)) => Found::failed(&a),
            (a, aaaa) => [a, aaaa]
                .into_iter()
                .zip(is_missed)
                .map(|(lookup, is_missed)| match lookup {
                    Ok(lookup) => Found::from(records::addresses(lookup.message(), port)),
                    Err(error) if is_missed => Found::failed(&error),
                    Err(_) => Found::default(),
                })
                .collect(),
        }
    }

    /// The SRV records of `service`, and the addresses of their targets as far as they are known by `deadline`. The
    /// targets are asked for in another order each time, so that no number of silent ones hides the others for good.
    async fn resolve_service(
        &self,
        service: &str,
        families: &Families,
        deadline: Instant,
    ) -> Found {
        let lookup = match self.resolver.srv_lookup(service).await {
            Ok(lookup) => lookup,
            Err(error) => return Found::failed(&error),
        };
        let Services { known, missing } = records::services(lookup.message());
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.shuffle(&mut rand::rng());
        let mut left = missing.len();
        let mut answers = vec![Found::from(known)];
        let queries = stream::iter(missing)
            .map(|(target, port)| self.resolve_host(target, port, families))
            .buffer_unordered(CONCURRENT_TARGETS);
        let mut queries = std::pin::pin!(queries);
        // A little earlier than the round ends, which would drop what was found.
        let deadline = deadline - MARGIN;
        while let Ok(Some(found)) = time::timeout_at(deadline, queries.next()).await {
            answers.push(found);
            left -= 1;
        }
        if left > 0 {
            answers.push(Found {
                addresses: Vec::new(),
                error: Some(format!(
                    "{left} targets of its SRV records were not resolved in time"
                )),
                has_failed: true,
            });
        }
        answers.into_iter().collect()
    }
}

impl Families {
    /// Notes which of A and AAAA are answered now; which of them fail although they were answered before.
    fn note(&self, is_answered: [bool; 2]) -> [bool; 2] {
        let note = |family: &AtomicBool, is_answered: bool| match is_answered {
            true => {
                family.store(true, Ordering::Relaxed);
                false
            }
            false => family.load(Ordering::Relaxed),
        };
        let [a, aaaa] = is_answered;
        [note(&self.a, a), note(&self.aaaa, aaaa)]
    }
}

/// What some queries found, and the first thing that went wrong.
#[derive(Debug, Default)]
struct Found {
    addresses: Vec<SocketAddr>,
    error: Option<String>,
    /// Whether a query had no answer, which that there are no records is.
    has_failed: bool,
}

impl Found {
    fn failed(error: &NetError) -> Self {
        Self {
            addresses: Vec::new(),
            error: Some(reason(error)),
            has_failed: !is_an_answer(error),
        }
    }
}

impl From<Vec<SocketAddr>> for Found {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            ..Self::default()
        }
    }
}

impl FromIterator<Self> for Found {
    fn from_iter<I: IntoIterator<Item = Self>>(answers: I) -> Self {
        let mut all = Self::default();
        for answer in answers {
            all.addresses.extend(answer.addresses);
            all.error = all.error.or(answer.error);
            all.has_failed |= answer.has_failed;
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
