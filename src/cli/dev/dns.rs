//! The DNS server of a cluster on one machine: SRV records, so that every instance may be at 127.0.0.1.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_server::{
    Server,
    net::runtime::TokioRuntimeProvider,
    proto::rr::{
        LowerName, Name, RData, Record,
        rdata::{A, SRV},
    },
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use tokio::net::{TcpListener, UdpSocket};

/// The service whose SRV records are the instances.
pub(super) const SERVICE: &str = "_fly-rpc._tcp.dev.internal.";
const ZONE: &str = "dev.internal.";
/// Seconds that a record may be cached.
const TTL: u32 = 1;
/// How long a DNS client over TCP may be idle.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Room for answers that wait for a client over TCP.
const TCP_ANSWERS: usize = 32;
/// How often another port is tried when one is free for UDP but not for TCP.
const BIND_ATTEMPTS: usize = 16;

/// A running DNS server; it stops when it is dropped.
pub(super) struct Dns {
    address: SocketAddr,
    zone: Arc<InMemoryZoneHandler<TokioRuntimeProvider>>,
    _server: Server<Catalog>,
}

impl Dns {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port is free for both UDP and TCP.
    pub(super) async fn start() -> io::Result<Self> {
        let (udp, tcp) = bind().await?;
        let address = udp.local_addr()?;
        let origin = name(ZONE)?;
        let zone = Arc::new(InMemoryZoneHandler::empty(
            origin.clone(),
            ZoneType::Primary,
            AxfrPolicy::Deny,
        ));
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::new(&origin), vec![Arc::clone(&zone) as _]);
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
        Ok(Self {
            address,
            zone,
            _server: server,
        })
    }

    /// Where it answers.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds the instance `host` at `port` of 127.0.0.1; port 0 is none yet.
    pub(super) async fn announce(&self, host: &str, port: u16) {
        if port == 0 {
            return;
        }
        let (Ok(service), Ok(target)) = (name(SERVICE), name(&format!("{host}.{ZONE}"))) else {
            return;
        };
        let service = Record::from_rdata(
            service,
            TTL,
            RData::SRV(SRV::new(0, 0, port, target.clone())),
        );
        let address = Record::from_rdata(target, TTL, RData::A(A(Ipv4Addr::LOCALHOST)));
        self.zone.upsert(address, 0).await;
        self.zone.upsert(service, 0).await;
    }
}

/// A port that is free for UDP and for TCP.
async fn bind() -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = 0;
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if attempts == BIND_ATTEMPTS => return Err(error),
            Err(_) => attempts += 1,
        }
    }
}

fn name(text: &str) -> io::Result<Name> {
    Name::from_ascii(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
