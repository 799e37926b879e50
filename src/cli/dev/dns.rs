//! The DNS server of a cluster on one machine: SRV records, so that every instance may be at 127.0.0.1. Each region has
//! a service of its own, because each reaches an instance at another address, that of a proxy.

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

use crate::region::Region;

const ZONE: &str = "dev.internal.";
/// Seconds that a record may be cached.
const TTL: u32 = 1;
/// How long a DNS client over TCP may be idle.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// Room for answers that wait for a client over TCP.
const TCP_ANSWERS: usize = 32;
/// How often another port is tried when one is free for UDP but not for TCP.
const BIND_ATTEMPTS: usize = 16;

/// The name that instances in `region` resolve: its SRV records are the instances as they are reached from there.
pub(super) fn service(region: &Region) -> String {
    format!("_{region}._tcp.{ZONE}")
}

/// A DNS server, which may be down; it stops when it is dropped.
pub(super) struct DevDns {
    pub(super) address: SocketAddr,
    zone: Arc<InMemoryZoneHandler<TokioRuntimeProvider>>,
    server: Option<Server<Catalog>>,
}

impl DevDns {
    /// Starts on a free port of 127.0.0.1.
    pub(super) async fn start() -> io::Result<Self> {
        let sockets = bind_anywhere().await?;
        let address = sockets.0.local_addr()?;
        let origin = name(ZONE)?;
        let zone = InMemoryZoneHandler::empty(origin, ZoneType::Primary, AxfrPolicy::Deny);
        let mut dns = Self {
            address,
            zone: Arc::new(zone),
            server: None,
        };
        dns.serve(sockets)?;
        Ok(dns)
    }

    pub(super) fn take_down(&mut self) {
        self.server = None;
    }

    /// Answers again, at the same address.
    pub(super) async fn bring_up(&mut self) -> io::Result<()> {
        if self.server.is_none() {
            self.serve(bind(self.address).await?)?;
        }
        Ok(())
    }

    /// Announces to the instances in `viewer` that the instance `host` is at `port` of 127.0.0.1.
    pub(super) async fn announce(&self, viewer: &Region, host: &str, port: u16) -> io::Result<()> {
        let (service, target) = (name(&service(viewer))?, name(&format!("{host}.{ZONE}"))?);
        let location = SRV::new(0, 0, port, target.clone());
        let service = Record::from_rdata(service, TTL, RData::SRV(location));
        let address = Record::from_rdata(target, TTL, RData::A(A(Ipv4Addr::LOCALHOST)));
        self.zone.upsert(address, 0).await;
        self.zone.upsert(service, 0).await;
        Ok(())
    }

    fn serve(&mut self, (udp, tcp): (UdpSocket, TcpListener)) -> io::Result<()> {
        let mut catalog = Catalog::new();
        let origin = LowerName::new(&name(ZONE)?);
        catalog.upsert(origin, vec![Arc::clone(&self.zone) as _]);
        let mut server = Server::new(catalog);
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
        self.server = Some(server);
        Ok(())
    }
}

/// A port that is free for UDP and for TCP.
async fn bind_anywhere() -> io::Result<(UdpSocket, TcpListener)> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    for _ in 0..BIND_ATTEMPTS {
        if let Ok(bound) = bind(any).await {
            return Ok(bound);
        }
    }
    bind(any).await
}

async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind(address).await?;
    let tcp = TcpListener::bind(udp.local_addr()?).await?;
    Ok((udp, tcp))
}

fn name(text: &str) -> io::Result<Name> {
    Name::from_ascii(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
