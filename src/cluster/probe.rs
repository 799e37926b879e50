//! Asks an address who it is, and its functions when their hash is new. Owns what an instance says of itself.
//! Where the cluster has a secret, only who proves to know it is a peer; the secret itself is never sent.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use moka::sync::Cache;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time;

use super::{
    event::{Sighting, Unseen},
    peers::Peer,
};
use crate::{
    client,
    protocol::{
        Challenge, FUNCTIONS, INTRODUCTION, Introduction, NONCE, PROOF, PROTOCOL, Readiness, Who,
    },
    registry::{Catalogue, CatalogueHash},
    token::{Proof, Token},
};

/// How long an address has to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer to `/internal/region`.
const MAX_INTRODUCTION: usize = 64 << 10;
/// The largest catalogue.
const MAX_CATALOGUE: usize = 8 << 20;

/// How many catalogues are kept: one for each release that runs at the same time, and some to spare.
const CATALOGUES: u64 = 64;

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
                let asked = self.catalogue(address, &introduction);
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
            load: Arc::default(),
        };
        Ok(Sighting {
            peer,
            draining: state == Readiness::Draining,
            rtt,
        })
    }

    async fn introduction(&self, address: SocketAddr) -> Result<Introduction, Unseen> {
        let (response, proof) = self.ask(address, INTRODUCTION).await?;
        let introduction: Introduction = read(response, MAX_INTRODUCTION).await?;
        if !proof.is_of(&introduction) {
            return Err(Unseen::Stranger(
                "it did not prove that it knows RPC_TOKEN and answers at this very address"
                    .to_owned(),
            ));
        }
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

    /// The catalogue of `address`; `None` when it cannot be had now, or is not of who introduced itself: the next probe
    /// asks again. It is kept by the hash of what was received: a claim changes nothing for others.
    async fn catalogue(
        &self,
        address: SocketAddr,
        introduction: &Introduction,
    ) -> Option<Arc<Catalogue>> {
        let (response, proof) = self.ask(address, FUNCTIONS).await.ok()?;
        if !proof.is_of(introduction) {
            return None;
        }
        let catalogue: Catalogue = read(response, MAX_CATALOGUE).await.ok()?;
        let catalogue = Arc::new(catalogue);
        if *catalogue.hash() == introduction.catalogue {
            let hash = catalogue.hash().clone();
            self.catalogues.insert(hash, Arc::clone(&catalogue));
        }
        Some(catalogue)
    }

    /// The answer for `path` at `address`, and what it proves.
    async fn ask(
        &self,
        address: SocketAddr,
        path: &'static str,
    ) -> Result<(Response, Proven<'_>), Unseen> {
        let mut request = self.client.get(format!("http://{address}{path}"));
        let challenge = self
            .token
            .as_ref()
            .map(|token| (Challenge::new(address), token));
        if let Some((challenge, token)) = &challenge {
            request = request
                .header(NONCE, challenge.nonce())
                .header(PROOF, challenge.ask(token, path).to_string());
        }
        let response = send(request).await?;
        let proof = response.headers().get(PROOF);
        let proof = proof.and_then(|proof| proof.to_str().ok()?.parse().ok());
        Ok((
            response,
            Proven {
                path,
                challenge,
                proof,
            },
        ))
    }
}

/// What an answer came with, and what it was asked with where the cluster has a secret.
struct Proven<'a> {
    path: &'static str,
    challenge: Option<(Challenge, &'a Token)>,
    proof: Option<Proof>,
}

impl Proven<'_> {
    /// Whether the answer is of who introduced itself, and it knows the cluster's secret if there is one.
    fn is_of(&self, introduction: &Introduction) -> bool {
        let who = Who {
            instance: &introduction.instance,
            region: &introduction.region,
            boot: introduction.boot.as_ref(),
        };
        let Some((challenge, token)) = &self.challenge else {
            return true;
        };
        let proof = self.proof.as_ref();
        proof.is_some_and(|proof| challenge.is_answered(token, self.path, who, proof))
    }
}

async fn send(request: RequestBuilder) -> Result<Response, Unseen> {
    let response = request.send().await.map_err(|error| {
        let is_silent = error.is_connect() || error.is_timeout() || was_cut(&error);
        let error = error.without_url();
        let reason = client::chain(&error);
        match is_silent {
            true if is_refused(&error) => Unseen::Refused(reason),
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

/// Whether nobody listens there.
fn is_refused(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>()
            && cause.kind() == io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        source = cause.source();
    }
    false
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
