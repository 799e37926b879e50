//! What `benches/micro.rs` measures of the inner layers: the lines between instances, and the choice of a peer. A module of
//! the crate, compiled for that benchmark alone.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    call::{Call, Timeouts},
    cluster::{Peer, RegionPeers, Snapshot},
    name::FunctionName,
    protocol::{
        Exec,
        lines::{self, Frame},
    },
    region::Region,
};

const TIMEOUTS: Timeouts = Timeouts {
    default: Duration::from_secs(5),
    max: Duration::from_secs(60),
};

/// A call of `String.upcase`.
#[derive(Debug)]
pub struct OneCall(Call);

impl OneCall {
    /// The call with this text, which needs no escapes.
    pub fn new(text: &str) -> Option<Self> {
        let body = format!(r#"{{"module":"String","function":"upcase","args":["{text}"]}}"#);
        Call::from_json(body.as_bytes(), TIMEOUTS).ok().map(Self)
    }

    /// Its line.
    pub fn written(&self) -> Option<Vec<u8>> {
        let (region, id) = ("syd".parse().ok()?, "request".parse().ok()?);
        let line = Exec::line(&region, &self.0, &id);
        let mut written = Vec::new();
        lines::begin_call(&mut written, 7, 5000, 7, &line);
        written.extend_from_slice(line.args());
        written.extend_from_slice(lines::END_OF_CALL);
        Some(written)
    }
}

/// Reads the line of an answer; whether it is one.
pub fn read_answer(line: &[u8]) -> bool {
    matches!(lines::read_answer(line), Frame::Answer(..))
}

/// Reads the line of a call, as the instance that runs it does; whether it is valid.
pub fn read_call(line: &[u8]) -> bool {
    Exec::from_line(line, TIMEOUTS).1.is_ok()
}

/// A region with peers.
#[derive(Debug)]
pub struct Peers {
    snapshot: Snapshot,
    region: Region,
    function: FunctionName,
}

impl Peers {
    /// A region with `count` ready peers; `None` for an invalid name.
    pub fn new(count: u16) -> Option<Self> {
        let region: Region = "syd".parse().ok()?;
        let peer = |port: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let instance = format!("syd-{port}").parse().ok()?;
            Some(Arc::new(Peer::new(address, region.clone(), instance)))
        };
        let peers = RegionPeers {
            ready: (0..count).map(peer).collect::<Option<_>>()?,
            ..RegionPeers::default()
        };
        let snapshot = Snapshot::new();
        snapshot.publish(&region, peers, &mut VecDeque::new());
        Some(Self {
            snapshot,
            region,
            function: FunctionName {
                module: "String".parse().ok()?,
                function: "upcase".parse().ok()?,
            },
        })
    }

    /// The port of a peer, chosen as a call does.
    pub fn choose(&self) -> Option<u16> {
        let peers = self.snapshot.region(&self.region)?;
        let peer = peers.choose(&self.function, &[])?;
        Some(peer.address.port())
    }
}
