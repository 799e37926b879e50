//! Asks DNS for the addresses of peers: A and AAAA records, or SRV records, which carry the port too. Owns the bounds of
//! a query and what an answer means; the table decides what follows from it. No call waits for DNS.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, future, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, RData, rdata::SRV},
    },
};
use rand::seq::SliceRandom;
use tokio::time::{self, Instant};

use super::table::MAX_WITHOUT_PEER;
use crate::config::{DiscoveryConfig, DnsName};

/// How long one query may take; hickory's own defaults wait 15 s for a silent server.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long all queries of a round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(3);
/// How long before the end of a round it stops waiting for the targets of SRV records.
const MARGIN: Duration = Duration::from_millis(50);
/// How many targets of SRV records are resolved at once, where the answer did not include their addresses.
const CONCURRENT_TARGETS: usize = 32;
/// How many addresses the SRV records of a name may lead to: more than the table has room for. Where each of a thousand
/// records names another port of one target with a thousand addresses, an answer of 40 KB stands for a million.
const MAX_ADDRESSES: usize = 2 * MAX_WITHOUT_PEER;

#[derive(Debug)]
pub(super) struct Dns {
    resolver: TokioResolver,
    names: Vec<(DnsName, Families)>,
    peer_port: u16,
}

/// What DNS answered for one query, one name or all names.
#[derive(Debug, Default)]
pub(super) struct DnsAnswer {
    /// The addresses that were found, also when something else failed.
    pub(super) addresses: BTreeSet<SocketAddr>,
    /// The first thing that went wrong; `None` when the answer is complete.
    pub(super) error: Option<String>,
    /// Whether a query got no answer. That a name has no records is an answer.
    pub(super) is_unanswered: bool,
}

impl Dns {
    /// A resolver of the names in `config`; peers whose port DNS does not give are at `peer_port`.
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
        // Answers above 512 bytes still come by UDP (RFC 6891), instead of once more by TCP.
        options.edns0 = true;
        // Where a server is configured, nothing else answers.
        if config.server.is_some() {
            options.use_hosts_file = ResolveHosts::Never;
        }
        let names = config.names.iter();
        Ok(Self {
            resolver: builder.build()?,
            names: names
                .map(|name| (name.clone(), Families::default()))
                .collect(),
            peer_port,
        })
    }

    /// Resolves every name. An answer without a usable address is an error, so that discovery keeps the peers it has.
    pub(super) async fn resolve(&self) -> DnsAnswer {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        let names = self.names.iter().map(|(name, families)| async move {
            let asked = self.resolve_name(name, families, deadline);
            let asked = time::timeout_at(deadline, asked).await;
            let mut answer = asked.unwrap_or_else(|_| DnsAnswer::failed(&NetError::Timeout));
            let error = answer.error;
            answer.error = error.map(|error| format!("{}: {error}", label(name)));
            answer
        });
        let mut answer: DnsAnswer = future::join_all(names).await.into_iter().collect();
        answer.addresses.retain(is_usable);
        if answer.addresses.is_empty() && answer.error.is_none() {
            answer.error = Some("the answer has no usable address".to_owned());
        }
        answer
    }

    async fn resolve_name(
        &self,
        name: &DnsName,
        families: &Families,
        deadline: Instant,
    ) -> DnsAnswer {
        match name {
            DnsName::Address(address) => DnsAnswer::found([*address]),
            DnsName::Host(host, port) => {
                let port = port.unwrap_or(self.peer_port);
                if let Ok(ip) = host.parse() {
                    return DnsAnswer::found([SocketAddr::new(ip, port)]);
                }
                match Name::from_utf8(host) {
                    Ok(host) => self.resolve_host(host, port, families).await,
                    Err(error) => DnsAnswer::failed(&error.into()),
                }
            }
            DnsName::Service(service) => self.resolve_service(service, families, deadline).await,
        }
    }

    /// The A and AAAA records of `host`. A host with records of one family alone is complete, one without any is an
    /// error. A family that fails is an error if it was answered before, or if the other one fails too.
    async fn resolve_host(&self, host: Name, port: u16, families: &Families) -> DnsAnswer {
        let (a, aaaa) = future::join(
            self.resolver.ipv4_lookup(host.clone()),
            self.resolver.ipv6_lookup(host),
        )
        .await;
        let is_missed = families.note([&a, &aaaa].map(|lookup| lookup.as_ref().err()));
        match (a, aaaa) {
            // Where one answer is that there are no records, the failure of the other is what people need to know.
            (Err(a), Err(aaaa)) if is_an_answer(&a) => DnsAnswer::failed(&aaaa),
            (Err(a), Err(_)) => DnsAnswer::failed(&a),
            (a, aaaa) => [a, aaaa]
                .into_iter()
                .zip(is_missed)
                .map(|(lookup, is_missed)| match lookup {
                    Ok(lookup) => DnsAnswer::found(addresses(lookup.message(), port)),
                    Err(error) if is_missed => DnsAnswer::failed(&error),
                    Err(_) => DnsAnswer::default(),
                })
                .collect(),
        }
    }

    /// The SRV records of `service`, and the addresses of their targets as far as they are known by `deadline`.
    async fn resolve_service(
        &self,
        service: &str,
        families: &Families,
        deadline: Instant,
    ) -> DnsAnswer {
        let lookup = match self.resolver.srv_lookup(service).await {
            Ok(lookup) => lookup,
            Err(error) => return DnsAnswer::failed(&error),
        };
        let (known, targets) = services(lookup.message());
        // In another order each round, so that silent targets, however many, do not hide the same others for good.
        let mut targets: Vec<_> = targets.into_iter().collect();
        targets.shuffle(&mut rand::rng());
        let mut left = targets.len();
        let mut found = DnsAnswer::found(known);
        let queries = stream::iter(targets)
            .map(|(target, port)| self.resolve_host(target, port, families))
            .buffer_unordered(CONCURRENT_TARGETS);
        let mut queries = std::pin::pin!(queries);
        // A little before the round ends, which would drop what was found.
        let deadline = deadline - MARGIN;
        while found.addresses.len() <= MAX_ADDRESSES
            && let Ok(Some(answer)) = time::timeout_at(deadline, queries.next()).await
        {
            found.add(answer);
            left -= 1;
        }
        if found.addresses.len() > MAX_ADDRESSES {
            let error = format!("its SRV records lead to more than {MAX_ADDRESSES} addresses");
            found.error = Some(error);
        } else if left > 0 {
            let error = format!("{left} targets of its SRV records were not resolved in time");
            found.add(DnsAnswer {
                error: Some(error),
                is_unanswered: true,
                ..DnsAnswer::default()
            });
        }
        found
    }
}

/// The address families of which the servers of a name ever gave records, or said that the name has none.
///
/// A server may know one family only: that of Fly's private network answers AAAA and fails for A. Were each failure an
/// error, no answer of such a server would be complete, and no peer that left DNS would ever be removed. So a family
/// counts from its first answer on: before that, its failures say nothing; after that, they mean that DNS is failing.
/// That there is no such name, as before the first instance, is an answer about the name and not about a family.
#[derive(Debug, Default)]
struct Families([AtomicBool; 2]);

impl Families {
    /// Notes how A and AAAA failed now; returns which of them are not answered although they were before.
    fn note(&self, failures: [Option<&NetError>; 2]) -> [bool; 2] {
        std::array::from_fn(|family| {
            let failure = failures[family];
            let is_known =
                failure.is_none_or(|error| no_records(error) == Some(ResponseCode::NoError));
            let was_known = self.0[family].fetch_or(is_known, Ordering::Relaxed);
            was_known && !failure.is_none_or(is_an_answer)
        })
    }
}

impl DnsAnswer {
    fn found(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self {
            addresses: addresses.into_iter().collect(),
            ..Self::default()
        }
    }

    fn failed(error: &NetError) -> Self {
        Self {
            error: Some(reason(error)),
            is_unanswered: !is_an_answer(error),
            ..Self::default()
        }
    }

    fn add(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.error = self.error.take().or(other.error);
        self.is_unanswered |= other.is_unanswered;
    }
}

impl FromIterator<Self> for DnsAnswer {
    fn from_iter<I: IntoIterator<Item = Self>>(answers: I) -> Self {
        let mut all = Self::default();
        answers.into_iter().for_each(|answer| all.add(answer));
        all
    }
}

/// The A and AAAA records of `answer`, each with `port`.
pub(crate) fn addresses(answer: &Message, port: u16) -> impl Iterator<Item = SocketAddr> {
    let records = answer.answers.iter();
    let ips = records.filter_map(|record| record.data.ip_addr());
    ips.map(move |ip| SocketAddr::new(ip.to_canonical(), port))
}

/// The SRV records of `answer`: the addresses of their targets as far as the server sent those along (RFC 2782,
/// additional data), and the other targets with their ports. At most one address more than
/// [`MAX_ADDRESSES`], which shows that there were more.
pub(crate) fn services(answer: &Message) -> (BTreeSet<SocketAddr>, BTreeSet<(Name, u16)>) {
    let mut ips_of: BTreeMap<&Name, BTreeSet<IpAddr>> = BTreeMap::new();
    for record in &answer.additionals {
        if let Some(ip) = record.data.ip_addr() {
            let ips = ips_of.entry(&record.name).or_default();
            ips.insert(ip.to_canonical());
        }
    }
    // Each once: a record that repeats would have all addresses of its target added again.
    let services: BTreeSet<_> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(SRV { target, port, .. }) => Some((target, *port)),
            _ => None,
        })
        .collect();
    let (mut known, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for (target, port) in services {
        match ips_of.get(target) {
            Some(ips) => {
                let room = (MAX_ADDRESSES + 1).saturating_sub(known.len());
                let addresses = ips.iter().map(|ip| SocketAddr::new(*ip, port));
                known.extend(addresses.take(room));
            }
            None => {
                targets.insert((target.clone(), port));
            }
        }
    }
    (known, targets)
}

/// Whether an instance can be at `address`.
pub(crate) fn is_usable(address: &SocketAddr) -> bool {
    !address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0
}

/// Whether the server answered, and the answer is that there are no such records.
fn is_an_answer(error: &NetError) -> bool {
    let code = no_records(error);
    code.is_some_and(|code| matches!(code, ResponseCode::NoError | ResponseCode::NXDomain))
}

/// The code of an answer without records.
fn no_records(error: &NetError) -> Option<ResponseCode> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => Some(none.response_code),
        _ => None,
    }
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = server.port();
    }
    NameServerConfig::new(server.ip(), true, connections)
}

/// `name` as it is written in the configuration.
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
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the DNS server answered {code}"),
        error => match no_records(error) {
            Some(ResponseCode::NoError) => "the answer has no records".to_owned(),
            Some(code) => format!("the DNS server answered {code}"),
            None => error.to_string(),
        },
    }
}
