//! What a benchmark measures of this layer: finding a region's peers and choosing one of them.

use std::{net::SocketAddr, sync::Arc};

use super::snapshot::{Peer, RegionPeers, Snapshot};
use crate::{name::FunctionName, region::Region};

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
            Some(Arc::new(Peer {
                address: SocketAddr::from(([127, 0, 0, 1], port)),
                region: region.clone(),
                instance: format!("syd-{port}").parse().ok()?,
                load: std::sync::Arc::default(),
                distance: std::sync::Arc::default(),
                release: None,
                boot: None,
                catalogue: None,
                app_state: None,
            }))
        };
        let snapshot = Snapshot::new();
        let peers = RegionPeers {
            ready: (0..count).map(peer).collect::<Option<_>>()?,
            ..RegionPeers::default()
        };
        snapshot.publisher().publish(&region, peers);
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
