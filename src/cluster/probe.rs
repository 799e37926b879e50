//! Asks an address who it is, and its functions when their hash is new. Owns what an instance says of itself.
//! Where the cluster has a secret, only who proves to know it is a peer, and nobody else is ever sent it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use moka::sync::Cache;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time;

use super::{
    event::{Sighting, Unseen},
    peers::Peer,
};
use crate::{
    challenge::{Challenge, NONCE, PROOF, Who},
    client,
    name::{BootId, InstanceId},
    region::Region,
    registry::{Catalogue, CatalogueHash},
    token::{Proof, Token},
};

/// The version of what instances say to each other.
pub(crate) const PROTOCOL: u32 = 1;

/// Where an instance says who it is.
const REGION: &str = "/internal/region";

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
    /// Which run of it; `None` when it does not say.
    pub boot: Option<BootId>,
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
    token: Option<Token>,
    catalogues: Cache<CatalogueHash, Arc<Catalogue>>,
}

impl Prober {
    /// A prober for the instances of `app` that know `token`.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub(super) fn new(app: Option<String>, token: Option<Token>) -> Result<Self, reqwest::Error> {
        // A fresh connection for each probe finds out whether new calls could connect.
        let client = client::builder(PROBE_TIMEOUT)
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self {
            client,
            app,
            token,
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
            boot,
            release,
            state,
            ..
        } = introduction;
        let peer = Peer {
            address,
            region,
            instance,
            release,
            boot,
            catalogue,
        };
        Ok(Sighting {
            peer,
            draining: state == Willingness::Draining,
            rtt,
        })
    }

    async fn introduction(&self, address: SocketAddr) -> Result<Introduction, Unseen> {
        let introduction = match &self.token {
            Some(token) => self.proven_introduction(address, token).await?,
            None => read(send(self.request(address, REGION)).await?, MAX_INTRODUCTION).await?,
        };
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

    /// The introduction of an instance that proves to know `token`.
    async fn proven_introduction(
        &self,
        address: SocketAddr,
        token: &Token,
    ) -> Result<Introduction, Unseen> {
        let challenge = Challenge::fresh(address);
        let request = self
            .request(address, REGION)
            .header(NONCE, challenge.nonce())
            .header(PROOF, challenge.ask(token).to_string());
        let response = send(request).await?;
        let proof = response.headers().get(PROOF);
        let proof: Option<Proof> = proof.and_then(|proof| proof.to_str().ok()?.parse().ok());
        let introduction: Introduction = read(response, MAX_INTRODUCTION).await?;
        let who = Who {
            instance: &introduction.instance,
            region: &introduction.region,
            boot: introduction.boot.as_ref(),
        };
        if proof.is_some_and(|proof| challenge.is_answered(token, who, &proof)) {
            return Ok(introduction);
        }
        Err(Unseen::Stranger(
            "it did not prove that it knows RPC_TOKEN and answers at this very address".to_owned(),
        ))
    }

    /// The catalogue of `address`; `None` when it cannot be had now: the next probe asks again.
    async fn catalogue(&self, address: SocketAddr, hash: &CatalogueHash) -> Option<Arc<Catalogue>> {
        let request = self
            .request(address, "/internal/functions")
            .headers(client::authorization(self.token.as_ref()));
        let catalogue: Catalogue = read(send(request).await.ok()?, MAX_CATALOGUE).await.ok()?;
        let catalogue = Arc::new(catalogue);
        self.catalogues.insert(hash.clone(), Arc::clone(&catalogue));
        Some(catalogue)
    }

    fn request(&self, address: SocketAddr, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{address}{path}"))
    }
}

async fn send(request: RequestBuilder) -> Result<Response, Unseen> {
    let response = request.send().await.map_err(|error| {
        let is_silent = error.is_connect() || error.is_timeout() || was_cut(&error);
        let reason = client::chain(&error.without_url());
        match is_silent {
            true => Unseen::Silent(reason),
            false => Unseen::Stranger(format!("it does not speak HTTP: {reason}")),
        }
    })?;
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::UNAUTHORIZED => Err(Unseen::Stranger(
            "it wants another RPC_TOKEN; every instance needs the same".to_owned(),
        )),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(Unseen::Silent(format!("it answered with {status}")))
        }
        status => Err(Unseen::Stranger(format!("it answered with {status}"))),
    }
}

async fn read<T: DeserializeOwned>(response: Response, limit: usize) -> Result<T, Unseen> {
    let body = client::body(response, limit)
        .await
        .map_err(|error| Unseen::Silent(error.to_string()))?;
    serde_json::from_slice(&body).map_err(|_| Unseen::Stranger("its answer is not ours".to_owned()))
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
