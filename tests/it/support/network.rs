//! Loopback networks: a test has its own, so that instances share a port as they do on a private network.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU8, Ordering},
};

/// Addresses of 127.0.0.0/8 that no other test uses, with one port that is free on them.
pub(crate) struct Network {
    second: u8,
    third: u8,
    next: u8,
    port: u16,
}

static NETWORKS: AtomicU8 = AtomicU8::new(0);

impl Network {
    /// A network that is not used yet.
    pub(crate) fn free() -> Self {
        let second = u8::try_from(std::process::id() % 250).unwrap() + 1;
        let third = NETWORKS.fetch_add(1, Ordering::SeqCst);
        let probe = TcpListener::bind((Ipv4Addr::new(127, second, third, 1), 0)).unwrap();
        Self {
            second,
            third,
            next: 1,
            port: probe.local_addr().unwrap().port(),
        }
    }

    /// An address of it that was not given before.
    pub(crate) fn next_address(&mut self) -> SocketAddr {
        let ip = Ipv4Addr::new(127, self.second, self.third, self.next);
        self.next += 1;
        (ip, self.port).into()
    }
}
