//! Who stands at an address: a listener, nobody, or a listener that answers no further caller.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream as Socket},
    os::fd::OwnedFd,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::Fault;

/// Who stands at the proxy's address.
pub(super) enum Door {
    Open(TcpListener),
    Closed,
    /// A listener whose queue is full: the kernel leaves further callers without an answer.
    Full {
        listener: TcpListener,
        _filler: TcpStream,
    },
}

impl Door {
    pub(super) fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Open(listen(address, 1024)?))
    }

    async fn full(address: SocketAddr) -> io::Result<Self> {
        let listener = listen(address, 0)?;
        let filler = TcpStream::connect(address).await?;
        Ok(Self::Full {
            listener,
            _filler: filler,
        })
    }

    /// The door at `address` as `fault` has it.
    pub(super) async fn turned(self, address: SocketAddr, fault: Fault) -> io::Result<Self> {
        let is_right = match fault {
            Fault::Refuse => matches!(self, Self::Closed),
            Fault::BlackHole => matches!(self, Self::Full { .. }),
            _ => matches!(self, Self::Open(_)),
        };
        if is_right {
            return Ok(self);
        }
        self.close()?;
        match fault {
            Fault::Refuse => Ok(Self::Closed),
            Fault::BlackHole => Self::full(address).await,
            _ => Self::open(address),
        }
    }

    /// Ends the listener. To drop it is not enough: a process that is just being started has a copy of it for a moment.
    fn close(self) -> io::Result<()> {
        match self {
            Self::Open(listener) | Self::Full { listener, .. } => {
                Socket::from(OwnedFd::from(listener.into_std()?)).shutdown(Shutdown::Both)
            }
            Self::Closed => Ok(()),
        }
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
