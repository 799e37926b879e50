//! Latency between the regions of a cluster on one machine: a proxy in front of an instance, on which every byte takes as long
//! as it would travel, by the distance of the regions' cities, or the same time everywhere.

use std::{io, net::SocketAddr, str::FromStr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::region::Region;

/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// How many pieces may be on their way in one direction of a connection, and how large each is.
const PIECES: usize = 256;
const PIECE: usize = 16 << 10;

/// A proxy from one region to an instance in another, with all of its connections; it is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    target: SocketAddr,
    delay: Duration,
    /// `None` while it is closed and refuses connections.
    relay: Option<AbortOnDropHandle<()>>,
}

impl Proxy {
    /// A proxy at a free port, behind which `target` is `delay` away.
    pub(super) async fn open(target: SocketAddr, delay: Duration) -> io::Result<Self> {
        let mut proxy = Self {
            address: SocketAddr::new(target.ip(), 0),
            target,
            delay,
            relay: None,
        };
        proxy.reopen().await?;
        Ok(proxy)
    }

    pub(super) fn close(&mut self) {
        self.relay = None;
    }

    /// Opens it at its former address.
    pub(super) async fn reopen(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        let relay = relay_all(listener, self.target, self.delay);
        self.relay = Some(AbortOnDropHandle::new(tokio::spawn(relay)));
        Ok(())
    }
}

async fn relay_all(listener: TcpListener, target: SocketAddr, delay: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((near, _)) => {
                    connections.spawn(relay(near, target, delay));
                }
                // Such as too many open files, which other connections have to give back.
                Err(_) => sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Relays until both sides have ended, or one is broken.
async fn relay(near: TcpStream, target: SocketAddr, delay: Duration) -> io::Result<()> {
    let accepted = Instant::now();
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // The handshake would have taken a round trip first.
    let there = carry(near_in, far_out, accepted + 2 * delay, delay);
    let back = carry(far_in, near_out, accepted, delay);
    tokio::try_join!(there, back)?;
    Ok(())
}

/// Carries bytes `from` one side `to` the other, where each arrives `delay` after it was sent; nothing is sent before
/// `start`.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    start: Instant,
    delay: Duration,
) -> io::Result<()> {
    // Many pieces travel at once, as in a cable. If each waited for the one before to arrive, latency would limit bandwidth.
    let (sender, mut travelling) = mpsc::channel(PIECES);
    let send = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            let arrival = Instant::now().max(start) + delay;
            if sender
                .send((arrival, buffer.split().freeze()))
                .await
                .is_err()
            {
                return Ok(());
            }
        }
    };
    let receive = async {
        while let Some((arrival, piece)) = travelling.recv().await {
            sleep_until(arrival).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(send, receive)?;
    Ok(())
}

/// Light in fibre: two thirds of its speed in a vacuum.
const KM_PER_MS: f64 = 200.0;
/// How much longer than the great circle cables and routes are.
const DETOUR: f64 = 1.4;
/// Above this, probes would never be answered in time: they cross it four times, and have a second.
const LONGEST: Duration = Duration::from_millis(200);
const EARTH_RADIUS_KM: f64 = 6371.0;

/// The page's map, which has a line for each of Fly's regions: `  ams: ["Amsterdam", 52.4, 4.9],`.
const PLACES: &str = include_str!("../../http/ui/places.js");

/// How long packets take between regions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Latency {
    /// By the distance of the cities.
    Realistic,
    /// The same between any two, one way.
    Fixed(Duration),
}

impl Latency {
    /// How long a packet takes from `from` to `to`; an error where one of them is not on the map.
    pub(super) fn between(self, from: &Region, to: &Region) -> Result<Duration, String> {
        match self {
            Self::Fixed(delay) => Ok(delay),
            Self::Realistic => {
                let milliseconds = kilometres(city(from)?, city(to)?) * DETOUR / KM_PER_MS;
                Ok(Duration::from_secs_f64(milliseconds / 1e3))
            }
        }
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "realistic" {
            return Ok(Self::Realistic);
        }
        match humantime::parse_duration(text) {
            Ok(delay) if delay <= LONGEST => Ok(Self::Fixed(delay)),
            Ok(_) => Err(format!("must be {LONGEST:?} or less")),
            Err(_) => Err("must be `realistic`, or a duration such as 50ms".to_owned()),
        }
    }
}

/// Each region of the map with its city's latitude and longitude in degrees.
fn cities() -> impl Iterator<Item = (&'static str, f64, f64)> {
    PLACES.lines().filter_map(|line| {
        let (name, city) = line.trim().strip_suffix("],")?.split_once(": [")?;
        let mut numbers = city.rsplitn(3, ", ").map(str::parse);
        let (longitude, latitude) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some((name, latitude, longitude))
    })
}

/// Latitude and longitude in radians.
fn city(region: &Region) -> Result<(f64, f64), String> {
    let found = cities().find(|(name, ..)| *name == region.as_str());
    let place =
        |(_, latitude, longitude): (_, f64, f64)| (latitude.to_radians(), longitude.to_radians());
    found.map(place).ok_or_else(|| {
        let known: Vec<_> = cities().map(|(name, ..)| name).collect();
        format!(
            "nobody knows where {region} is; known are {}",
            known.join(", ")
        )
    })
}

/// The haversine formula.
fn kilometres(from: (f64, f64), to: (f64, f64)) -> f64 {
    let half = |a: f64, b: f64| ((a - b) / 2.0).sin().powi(2);
    let chord = half(from.0, to.0) + from.0.cos() * to.0.cos() * half(from.1, to.1);
    2.0 * EARTH_RADIUS_KM * chord.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_those_of_the_map() {
        let there_and_back = |from: &str, to: &str| {
            let delay = Latency::Realistic.between(&from.parse().unwrap(), &to.parse().unwrap());
            delay.map(|delay| (2 * delay).as_millis())
        };
        assert_eq!(there_and_back("iad", "syd"), Ok(219));
        assert_eq!(there_and_back("syd", "iad"), Ok(219));
        assert_eq!(there_and_back("iad", "fra"), Ok(91));
        assert_eq!(there_and_back("lhr", "lhr"), Ok(0));
        assert_eq!(cities().count(), 35);
        let unknown = there_and_back("iad", "mars").unwrap_err();
        assert!(
            unknown.starts_with("nobody knows where mars is; known are ams, arn,"),
            "{unknown}"
        );
    }
}
