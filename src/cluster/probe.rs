//! Probes an address: what runs there, and which functions it has when their hash is new. Where the cluster has a token,
//! only an instance that proves that it knows it is a peer; the token itself is never sent.

use std::{cell::Cell, error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use moka::sync::Cache;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::{self, Instant};
use tower::util::MapFutureLayer;

use super::{
    peers::Peer,
    table::{ProbeAnswer, ProbeFailure},
};
use crate::{
    client,
    problem::with_causes,
    protocol::{
        Catalogue, CatalogueHash, Challenge, FUNCTIONS, INTRODUCTION, Introduction, NONCE, PROOF,
        PROTOCOL, Readiness, Statement,
    },
    token::{Proof, Token},
};

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How much later than that a process that runs notices it, at most.
const NOTICED_AFTER: Duration = Duration::from_millis(250);
/// The largest answer to `/internal/region`.
const MAX_INTRODUCTION: usize = 64 << 10;
const MAX_CATALOGUE: usize = 8 << 20;

/// How many catalogues are kept. Instances of one release share one, so more than a few are rare.
const CATALOGUES: u64 = 64;

/// Probes addresses for the instances of one application.
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
        // A new connection for each probe shows whether a call that needs one could connect.
        let client = client::builder(PROBE_TIMEOUT)
            .pool_max_idle_per_host(0)
            .connector_layer(MapFutureLayer::new(noted))
            .build()?;
        Ok(Self {
            client,
            app,
            token,
            catalogues: Cache::new(CATALOGUES),
        })
    }

    /// The peer at `address`, within a second. If this process itself stood still meanwhile, as on a machine that was
    /// paused, the peer may have answered in time: it is asked once more.
    pub(super) async fn probe(&self, address: SocketAddr) -> Result<ProbeAnswer, ProbeFailure> {
        let started = Instant::now();
        let outcome = self.ask(address).await;
        let stood_still = started.elapsed() > PROBE_TIMEOUT + NOTICED_AFTER;
        match outcome {
            Err(ProbeFailure::NoAnswer(_)) if stood_still => self.ask(address).await,
            outcome => outcome,
        }
    }

    async fn ask(&self, address: SocketAddr) -> Result<ProbeAnswer, ProbeFailure> {
        let started = Instant::now();
        let deadline = started + PROBE_TIMEOUT;
        let no_answer = |_| ProbeFailure::NoAnswer("no answer to the probe within 1 s".to_owned());
        let asked = timed(started, self.introduction(address));
        let (introduction, rtt) = time::timeout_at(deadline, asked).await.map_err(no_answer)?;
        let mut introduction = introduction?;
        let described = self.described(address, &mut introduction);
        // Without its list it is a peer all the same, which may have any function.
        let catalogue = time::timeout_at(deadline, described).await.ok().flatten();
        let peer = Peer {
            release: introduction.release,
            boot: introduction.boot,
            catalogue,
            app_state: introduction.app_state,
            ..Peer::new(address, introduction.region, introduction.instance)
        };
        Ok(ProbeAnswer {
            peer,
            draining: introduction.state == Readiness::Draining,
            rtt,
        })
    }

    /// The catalogue that goes with `introduction`, if it can be read now. Where it changed between the two answers, as it does
    /// when an app ends, the introduction is asked for again: the state of the app must be as new as its functions. Otherwise
    /// calls for functions of an app that seems to be up would end with `function_unknown`.
    async fn described(
        &self,
        address: SocketAddr,
        introduction: &mut Introduction,
    ) -> Option<Arc<Catalogue>> {
        let catalogue = self.catalogue(address, introduction).await?;
        if *catalogue.hash() == introduction.catalogue {
            return Some(catalogue);
        }
        let Ok(again) = self.introduction(address).await else {
            return Some(catalogue);
        };
        *introduction = again;
        self.catalogue(address, introduction).await
    }

    async fn introduction(&self, address: SocketAddr) -> Result<Introduction, ProbeFailure> {
        let not_a_peer = |why: String| Err(ProbeFailure::NotAPeer(why));
        let (response, is_proven_by) = self.get(address, INTRODUCTION).await?;
        let introduction: Introduction = read(response, MAX_INTRODUCTION).await?;
        // Checked first: nothing else that a stranger says is believed, or shown to people.
        if !is_proven_by(&introduction) {
            let why = "it did not prove that it knows RPC_TOKEN and answers at this very address";
            return not_a_peer(why.to_owned());
        }
        if introduction.app != self.app {
            let app = |app: &Option<String>| app.clone().unwrap_or_else(|| "none".to_owned());
            let (its, own) = (app(&introduction.app), app(&self.app));
            return not_a_peer(format!("it belongs to another app: {its}, not {own}"));
        }
        if introduction.protocol != PROTOCOL {
            let its = introduction.protocol;
            return not_a_peer(format!("it speaks protocol {its}, not {PROTOCOL}"));
        }
        Ok(introduction)
    }

    /// The catalogue of the instance that introduced itself at `address`; `None` when it cannot be read now, or comes from
    /// another instance: the next probe asks again. It is kept under the hash of what was received, not under the hash in
    /// the introduction: so no instance can change what is kept for another.
    async fn catalogue(
        &self,
        address: SocketAddr,
        introduction: &Introduction,
    ) -> Option<Arc<Catalogue>> {
        if let Some(catalogue) = self.catalogues.get(&introduction.catalogue) {
            return Some(catalogue);
        }
        let (response, is_proven_by) = self.get(address, FUNCTIONS).await.ok()?;
        if !is_proven_by(introduction) {
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

    /// The answer for `path` at `address`, and whether its proof is that of the instance in an introduction; any will do
    /// where the cluster has no token.
    async fn get(
        &self,
        address: SocketAddr,
        path: &'static str,
    ) -> Result<(Response, impl Fn(&Introduction) -> bool), ProbeFailure> {
        let mut request = self.client.get(format!("http://{address}{path}"));
        let token = self.token.as_ref();
        let challenge = token.map(|token| (Challenge::new(address), token));
        if let Some((challenge, token)) = &challenge {
            let asks = Statement::Asks { path };
            request = request
                .header(NONCE, &challenge.nonce)
                .header(PROOF, challenge.prove(token, asks).to_string());
        }
        let response = send(request).await?;
        let proof = response.headers().get(PROOF);
        let proof: Option<Proof> = proof.and_then(|proof| proof.to_str().ok()?.parse().ok());
        // Checked later, because the proof covers who answers, which only the body says.
        let is_proven_by = move |introduction: &Introduction| {
            let Some((challenge, token)) = &challenge else {
                return true;
            };
            let answers = Statement::Answers {
                path,
                instance: &introduction.instance,
                region: &introduction.region,
                boot: introduction.boot.as_ref(),
            };
            let proof = proof.as_ref();
            proof.is_some_and(|proof| challenge.is_proven(token, answers, proof))
        };
        Ok((response, is_proven_by))
    }
}

tokio::task_local! {
    /// When the connection of the probe under way was established.
    static CONNECTED: Cell<Instant>;
}

/// The output of `asking`, and how long it took since its connection was established, or since `started` if there was none.
async fn timed<T>(started: Instant, asking: impl Future<Output = T>) -> (T, Duration) {
    let timed = async {
        let answer = asking.await;
        (answer, CONNECTED.with(Cell::get).elapsed())
    };
    CONNECTED.scope(Cell::new(started), timed).await
}

/// Notes in [`CONNECTED`] when a connection is established: the client makes each in the task that asks for it.
async fn noted<C: Future>(connecting: C) -> C::Output {
    let connection = connecting.await;
    // Outside of a probe there is nothing to note it in.
    let _ = CONNECTED.try_with(|connected| connected.set(Instant::now()));
    connection
}

async fn send(request: RequestBuilder) -> Result<Response, ProbeFailure> {
    let response = request.send().await.map_err(|error| {
        let is_unanswered = error.is_connect() || error.is_timeout() || was_cut(&error);
        let error = error.without_url();
        let reason = with_causes(&error);
        match is_unanswered {
            true if is_refused(&error) => ProbeFailure::Refused(reason),
            true => ProbeFailure::NoAnswer(reason),
            false => ProbeFailure::NotAPeer(format!("it does not speak HTTP: {reason}")),
        }
    })?;
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::UNAUTHORIZED => Err(ProbeFailure::NotAPeer(
            "it requires another RPC_TOKEN; every instance needs the same".to_owned(),
        )),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(ProbeFailure::NoAnswer(format!("it answered with {status}")))
        }
        status => Err(ProbeFailure::NotAPeer(format!("it answered with {status}"))),
    }
}

async fn read<T: DeserializeOwned>(response: Response, limit: usize) -> Result<T, ProbeFailure> {
    let body = client::body(response, limit)
        .await
        .map_err(ProbeFailure::NoAnswer)?;
    serde_json::from_slice(&body)
        .map_err(|_| ProbeFailure::NotAPeer("its answer is not ours".to_owned()))
}

/// Whether nothing listens there.
fn is_refused(error: &reqwest::Error) -> bool {
    let is_refusal = |cause: &io::Error| cause.kind() == io::ErrorKind::ConnectionRefused;
    causes(error).any(|cause| cause.downcast_ref().is_some_and(is_refusal))
}

/// Whether the connection ended before an answer, as that of a process that stops may.
fn was_cut(error: &reqwest::Error) -> bool {
    let http_error = causes(error).find_map(|cause| cause.downcast_ref::<hyper::Error>());
    http_error.is_some_and(|error| !error.is_parse())
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| {
        (*cause).source()
    })
}
