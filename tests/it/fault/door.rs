//! Who stands at an address: a listener, nobody, or a listener that answers no further caller.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Who stands at the proxy's address.
pub(super) enum Door {
    Open(TcpListener),
    Closed,
    /// A listener whose queue is full: the kernel leaves further callers without an answer.
    Full {
        _listener: TcpListener,
        _filler: TcpStream,
    },
}

impl Door {
    pub(super) fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Open(listen(address, 1024)?))
    }

    pub(super) async fn full(address: SocketAddr) -> io::Result<Self> {
        let listener = listen(address, 0)?;
        let filler = TcpStream::connect(address).await?;
        Ok(Self::Full {
            _listener: listener,
            _filler: filler,
        })
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Open(listener) => listener.local_addr().ok(),
            Self::Closed | Self::Full { .. } => None,
        }
    }

    pub(super) async fn accept(&self) -> TcpStream {
        match self {
            Self::Open(listener) => listener.accept().await.unwrap().0,
            Self::Closed | Self::Full { .. } => std::future::pending().await,
        }
    }
}

fn listen(address: SocketAddr, queue: u32) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(queue)
}
