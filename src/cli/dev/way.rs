//! The way from one region to an instance in another: a proxy on which every byte takes as long as it would travel.

use std::{io, net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

/// How many pieces may be on their way in one direction of a connection, and how large each is.
const PIECES: usize = 256;
const PIECE: usize = 16 << 10;

/// A way, with all connections on it; both are cut when this is dropped.
#[derive(Debug)]
pub(super) struct Way {
    /// Where it begins.
    pub(super) start: SocketAddr,
    target: SocketAddr,
    delay: Duration,
    /// `None` while it is closed and refuses connections.
    relay: Option<AbortOnDropHandle<()>>,
}

impl Way {
    /// A way that begins at a free port and ends at `target`, `delay` further.
    pub(super) async fn open(target: SocketAddr, delay: Duration) -> io::Result<Self> {
        let mut way = Self {
            start: SocketAddr::new(target.ip(), 0),
            target,
            delay,
            relay: None,
        };
        way.reopen().await?;
        Ok(way)
    }

    pub(super) fn close(&mut self) {
        self.relay = None;
    }

    /// Opens it where it began before.
    pub(super) async fn reopen(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.start).await?;
        self.start = listener.local_addr()?;
        let relay = relay_all(listener, self.target, self.delay);
        self.relay = Some(AbortOnDropHandle::new(tokio::spawn(relay)));
        Ok(())
    }
}

async fn relay_all(listener: TcpListener, target: SocketAddr, delay: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((near, _)) = accepted {
                connections.spawn(relay(near, target, delay));
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
    // The handshake took its way there and back as well.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_takes_its_way_twice_the_handshake_too_and_a_closed_way_opens_again() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let echo = TcpListener::bind(any).await.unwrap();
        let target = echo.local_addr().unwrap();
        let delay = Duration::from_millis(20);
        let mut way = Way::open(target, delay).await.unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await
        });
        let mut asked = Instant::now();
        let mut client = TcpStream::connect(way.start).await.unwrap();
        for ways in [4, 2, 2] {
            client.write_all(b"?").await.unwrap();
            let mut answer = [0];
            client.read_exact(&mut answer).await.unwrap();
            let took = asked.elapsed();
            assert!(took >= ways * delay, "{took:?} for {ways} ways");
            asked = Instant::now();
        }
        way.close();
        // A reset or a plain end: the way is cut.
        let _ = client.read_to_end(&mut Vec::new()).await;
        TcpStream::connect(way.start).await.unwrap_err();
        way.reopen().await.unwrap();
        TcpStream::connect(way.start).await.unwrap();
    }
}
