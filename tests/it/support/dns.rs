//! A real DNS server whose answers the test writes, and changes while it runs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_server::{
    Server,
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Header, HeaderCounts, Metadata, ResponseCode},
        rr::{Name, RData, Record, RecordType, rdata},
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::net::{TcpListener, UdpSocket};

/// How the server behaves, besides the records it has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Mood {
    /// It answers with what it has.
    #[default]
    Well,
    /// It answers every question with this code and no records.
    Code(ResponseCode),
    /// It never answers.
    Silent,
    /// Each answer holds so many of the records, the next ones each time.
    Rotating(usize),
    /// Over UDP it answers that the answer is too long for UDP.
    OnlyTcp,
}

/// The records of one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    addresses: Vec<IpAddr>,
    services: Vec<(String, u16)>,
}

/// Targets without an instance that are added to a service, others in each answer.
#[derive(Clone, Copy, Debug)]
struct Crowd {
    count: u32,
    port: u16,
    last: u32,
}

#[derive(Debug, Default)]
struct Zone {
    mood: Mood,
    mood_of_a: Option<Mood>,
    silent: Vec<String>,
    crowd: Option<Crowd>,
    flood: u16,
    ttl: u32,
    names: BTreeMap<String, Records>,
}

/// A running DNS server on 127.0.0.1; it stops when it is dropped.
pub(crate) struct DnsServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    queries: Arc<AtomicUsize>,
    _server: Server<Handler>,
}

impl DnsServer {
    /// Starts without records, on a free port.
    pub(crate) async fn start() -> Self {
        loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                return Self::serve(udp, tcp);
            }
        }
    }

    /// Starts without records at `address`.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let udp = UdpSocket::bind(address).await.unwrap();
        Self::serve(udp, TcpListener::bind(address).await.unwrap())
    }

    fn serve(udp: UdpSocket, tcp: TcpListener) -> Self {
        let address = udp.local_addr().unwrap();
        let (zone, queries) = (Arc::<Mutex<Zone>>::default(), Arc::<AtomicUsize>::default());
        let handler = Handler {
            zone: Arc::clone(&zone),
            queries: Arc::clone(&queries),
        };
        let mut server = Server::new(handler);
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 32);
        Self {
            address,
            zone,
            queries,
            _server: server,
        }
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many questions it was asked.
    pub(crate) fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    /// Sets the A and AAAA records of `name`.
    pub(crate) fn set_addresses(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.records(name, |records| {
            records.addresses = addresses.into_iter().collect()
        });
    }

    /// Sets the SRV records of `name`: targets and ports.
    pub(crate) fn set_services(
        &self,
        name: &str,
        services: impl IntoIterator<Item = (String, u16)>,
    ) {
        self.records(name, |records| {
            records.services = services.into_iter().collect()
        });
    }

    /// Sets how it behaves from now on.
    pub(crate) fn set_mood(&self, mood: Mood) {
        self.zone.lock().unwrap().mood = mood;
    }

    /// Sets how it behaves from now on when it is asked for A records.
    pub(crate) fn set_mood_of_a(&self, mood: Mood) {
        self.zone.lock().unwrap().mood_of_a = Some(mood);
    }

    /// Never answers a question for any of `names` from now on.
    pub(crate) fn silence(&self, names: impl IntoIterator<Item = String>) {
        let names = names.into_iter().map(|name| format!("{name}."));
        self.zone.lock().unwrap().silent.extend(names);
    }

    /// Adds `count` SRV records to every answer that has some, each time to other addresses of 127.128.0.0/9, at `port`;
    /// the addresses are sent along.
    pub(crate) fn set_crowd(&self, count: u32, port: u16) {
        let last = 0;
        self.zone.lock().unwrap().crowd = Some(Crowd { count, port, last });
    }

    /// Adds to every answer with SRV records `count` of them for one target, each with another port, and as many addresses
    /// of the target: they stand for its square of addresses.
    pub(crate) fn set_flood(&self, count: u16) {
        self.zone.lock().unwrap().flood = count;
    }

    /// Sets the TTL of every record, in seconds.
    pub(crate) fn set_ttl(&self, ttl: u32) {
        self.zone.lock().unwrap().ttl = ttl;
    }

    fn records(&self, name: &str, change: impl FnOnce(&mut Records)) {
        let mut zone = self.zone.lock().unwrap();
        change(zone.names.entry(format!("{name}.")).or_default());
    }
}

struct Handler {
    zone: Arc<Mutex<Zone>>,
    queries: Arc<AtomicUsize>,
}

impl Handler {
    /// The SRV records of a crowd, and the addresses of its targets.
    fn crowd(&self, name: &Name, kind: RecordType) -> (Vec<Record>, Vec<Record>) {
        let mut zone = self.zone.lock().unwrap();
        let Some(crowd) = zone.crowd.as_mut().filter(|_| kind == RecordType::SRV) else {
            return Default::default();
        };
        let first = crowd.last;
        crowd.last += crowd.count;
        let members = (first..crowd.last).map(|number| {
            let [_, second, third, fourth] = number.to_be_bytes();
            let target = Name::from_ascii(format!("c{number}.test.")).unwrap();
            let service = RData::SRV(rdata::SRV::new(0, 0, crowd.port, target.clone()));
            let ip = Ipv4Addr::new(127, 128 | second, third, fourth);
            (
                Record::from_rdata(name.clone(), 0, service),
                Record::from_rdata(target, 0, RData::A(rdata::A(ip))),
            )
        });
        members.unzip()
    }

    /// The SRV records of a flood, and the addresses of its target.
    fn flood(&self, name: &Name, kind: RecordType) -> (Vec<Record>, Vec<Record>) {
        let count = match kind {
            RecordType::SRV => self.zone.lock().unwrap().flood,
            _ => 0,
        };
        let target = Name::from_ascii("flood.test.").unwrap();
        let members = (1..=count).map(|number| {
            let service = RData::SRV(rdata::SRV::new(0, 0, number, target.clone()));
            let [third, fourth] = number.to_be_bytes();
            let ip = rdata::A(Ipv4Addr::new(127, 128, third, fourth));
            (
                Record::from_rdata(name.clone(), 0, service),
                Record::from_rdata(target.clone(), 0, RData::A(ip)),
            )
        });
        members.unzip()
    }

    /// The mood, and the records that answer the question; `None` when there is no such name.
    fn look_up(&self, name: &Name, kind: RecordType) -> (Mood, Option<Vec<Record>>) {
        let zone = self.zone.lock().unwrap();
        let text = name.to_lowercase().to_string();
        let mood = match zone.mood_of_a {
            _ if zone.silent.contains(&text) => Mood::Silent,
            Some(mood) if kind == RecordType::A => mood,
            _ => zone.mood,
        };
        let Some(found) = zone.names.get(&text) else {
            return (mood, None);
        };
        let addresses = found.addresses.iter().map(|ip| match ip {
            IpAddr::V4(ip) => RData::A(rdata::A(*ip)),
            IpAddr::V6(ip) => RData::AAAA(rdata::AAAA(*ip)),
        });
        let services = found.services.iter().map(|(target, port)| {
            RData::SRV(rdata::SRV::new(
                0,
                0,
                *port,
                Name::from_ascii(format!("{target}.")).unwrap(),
            ))
        });
        let data = addresses
            .chain(services)
            .filter(|data| data.record_type() == kind);
        let records = data
            .map(|data| Record::from_rdata(name.clone(), zone.ttl, data))
            .collect();
        (mood, Some(records))
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut responder: R,
    ) -> ResponseInfo {
        self.queries.fetch_add(1, Ordering::SeqCst);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let query = request.request_info().unwrap().query;
        let (mood, found) = self.look_up(query.name(), query.query_type());
        let mut answers = found.clone().unwrap_or_default();
        let (crowd, mut additional) = self.crowd(query.name(), query.query_type());
        let (flood, of_flood) = self.flood(query.name(), query.query_type());
        answers.extend(crowd.into_iter().chain(flood));
        additional.extend(of_flood);
        if request.protocol() == Protocol::Udp && answers.len() > 50 {
            metadata.truncation = true;
            answers.clear();
        }
        metadata.response_code = if found.is_some() {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        };
        match mood {
            Mood::Well => {}
            Mood::Silent => {
                return Header {
                    metadata,
                    counts: HeaderCounts::default(),
                }
                .into();
            }
            Mood::Code(code) => {
                metadata.response_code = code;
                answers.clear();
            }
            Mood::OnlyTcp if request.protocol() == Protocol::Udp => {
                metadata.truncation = true;
                answers.clear();
            }
            Mood::OnlyTcp => {}
            Mood::Rotating(count) => {
                let rounds = self.queries.load(Ordering::SeqCst) / 2;
                let start = (rounds * count) % answers.len().max(1);
                answers.rotate_left(start);
                answers.truncate(count);
            }
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let response = builder.build(metadata, answers.iter(), [], [], additional.iter());
        let sent = responder.send_response(response).await;
        // Whoever asked may be gone, and so may the socket at the end of the test.
        sent.unwrap_or_else(|_| {
            let counts = HeaderCounts::default();
            Header { metadata, counts }.into()
        })
    }
}
