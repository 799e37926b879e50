//! Asks an address who it is, and its functions when their hash is new. Owns what an instance says of itself.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use moka::sync::Cache;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time;

use super::{
    event::{Sighting, Unseen},
    peers::Peer,
};
use crate::{
    client,
    name::InstanceId,
    region::Region,
    registry::{Catalogue, CatalogueHash},
};

/// The version of what instances say to each other.
pub(crate) const PROTOCOL: u32 = 1;

/// How long an address has to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer to `/internal/region`.
const MAX_INTRODUCTION: usize = 64 << 10;
/// The largest catalogue.
const MAX_CATALOGUE: usize = 8 << 20;

/// How many catalogues are kept: one for each release that runs at the same time, and some to spare.
const CATALOGUES: u64 = 64;

/// Whether an instance takes calls, as it says itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Willingness {
    /// It takes calls.
    Ready,
    /// It is stopping.
    Draining,
}

/// What an instance says of itself at `GET /internal/region`; members that are not known here are ignored.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Introduction {
    /// Its region.
    pub region: Region,
    /// Its id.
    pub instance: InstanceId,
    /// Its application.
    pub app: Option<String>,
    /// Its release.
    pub release: Option<String>,
    /// The primary region, as it was told.
    pub primary: Region,
    /// Whether it takes calls.
    pub state: Willingness,
    /// The version of what it says to peers.
    pub protocol: u32,
    /// The hash of its catalogue.
    pub catalogue: CatalogueHash,
}

/// Asks addresses who they are, for the instances of one application.
#[derive(Debug)]
pub(super) struct Prober {
    client: Client,
    app: Option<String>,
    catalogues: Cache<CatalogueHash, Arc<Catalogue>>,
}

impl Prober {
    /// A prober for the instances of `app`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub(super) fn new(app: Option<String>) -> Result<Self, reqwest::Error> {
        // A fresh connection for each probe finds out whether new calls could connect.
        let client = client::builder(PROBE_TIMEOUT)
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self {
            client,
            app,
            catalogues: Cache::new(CATALOGUES),
        })
    }

    /// Who answers at `address`, within a second.
    pub(super) async fn probe(&self, address: SocketAddr) -> Result<Sighting, Unseen> {
        let started = time::Instant::now();
        let deadline = started + PROBE_TIMEOUT;
        let silent = |_| Unseen::Silent("no answer to the probe within 1 s".to_owned());
        let introduction = time::timeout_at(deadline, self.introduction(address))
            .await
            .map_err(silent)??;
        let rtt = started.elapsed();
        let catalogue = match self.catalogues.get(&introduction.catalogue) {
            Some(catalogue) => Some(catalogue),
            None => {
                let asked = self.catalogue(address, &introduction.catalogue);
                time::timeout_at(deadline, asked).await.ok().flatten()
            }
        };
        let Introduction {
            region,
            instance,
            release,
            state,
            ..
        } = introduction;
        let peer = Peer {
            address,
            region,
            instance,
            release,
            catalogue,
        };
        Ok(Sighting {
            peer,
            draining: state == Willingness::Draining,
            rtt,
        })
    }

    async fn introduction(&self, address: SocketAddr) -> Result<Introduction, Unseen> {
        let introduction: Introduction = self
            .get(address, "/internal/region", MAX_INTRODUCTION)
            .await?;
        let app = |app: &Option<String>| app.clone().unwrap_or_else(|| "none".to_owned());
        if introduction.app != self.app {
            return Err(Unseen::Stranger(format!(
                "it belongs to another app: {}, not {}",
                app(&introduction.app),
                app(&self.app)
            )));
        }
        if introduction.protocol != PROTOCOL {
            return Err(Unseen::Stranger(format!(
                "it speaks protocol {}, not {PROTOCOL}",
                introduction.protocol
            )));
        }
        Ok(introduction)
    }

    /// The catalogue of `address`; `None` when it cannot be had now: the next probe asks again.
    async fn catalogue(&self, address: SocketAddr, hash: &CatalogueHash) -> Option<Arc<Catalogue>> {
        let catalogue: Catalogue = self
            .get(address, "/internal/functions", MAX_CATALOGUE)
            .await
            .ok()?;
        let catalogue = Arc::new(catalogue);
        self.catalogues.insert(hash.clone(), Arc::clone(&catalogue));
        Some(catalogue)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        address: SocketAddr,
        path: &str,
        limit: usize,
    ) -> Result<T, Unseen> {
        let request = self.client.get(format!("http://{address}{path}"));
        let response = request.send().await.map_err(|error| {
            let is_silent = error.is_connect() || error.is_timeout() || was_cut(&error);
            let reason = client::chain(&error.without_url());
            match is_silent {
                true => Unseen::Silent(reason),
                false => Unseen::Stranger(format!("it does not speak HTTP: {reason}")),
            }
        })?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Unseen::Silent(format!("it answered {path} with {status}")));
        }
        if status != StatusCode::OK {
            return Err(Unseen::Stranger(format!(
                "it answered {path} with {status}"
            )));
        }
        let body = client::body(response, limit)
            .await
            .map_err(|error| Unseen::Silent(error.to_string()))?;
        serde_json::from_slice(&body)
            .map_err(|_| Unseen::Stranger(format!("its answer to {path} is not ours")))
    }
}

/// Whether the connection ended before an answer, which a process that stops may do.
fn was_cut(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<hyper::Error>() {
            return !cause.is_parse();
        }
        source = cause.source();
    }
    false
}
