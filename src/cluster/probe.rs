//! Probes an address: what runs there. Reads the functions of a peer apart from that, when their hash is new. Where the
//! cluster has a token, only an instance that proves that it knows it is a peer; the token itself is never sent.

use std::{
    cell::Cell,
    error::Error,
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

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
    problem::{cut, with_causes},
    protocol::{
        Catalogue, CatalogueDocument, CatalogueHash, Challenge, FUNCTIONS, INTRODUCTION,
        Introduction, NONCE, PROOF, PROTOCOL, PeerState, Statement,
    },
    registry::Executor,
    token::{Proof, Token},
};

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How much later than that a process that runs notices it, at most.
const NOTICED_AFTER: Duration = Duration::from_millis(250);
/// How long the functions of a peer may take: a list of a megabyte comes from the other side of the world in three.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer to `/internal/region`.
const MAX_INTRODUCTION: usize = 64 << 10;
const MAX_CATALOGUE: usize = 8 << 20;

/// How many catalogues are found by their hash. Instances of one release share one, so more than a few are rare.
const CATALOGUES: u64 = 64;

/// Probes addresses for the instances of one application.
#[derive(Debug)]
pub(super) struct Prober {
    client: Client,
    app: Option<String>,
    token: Option<Token>,
    /// Its functions need not be read from a peer that has the same.
    executor: Arc<Executor>,
    /// Those that were read, while a peer has them: an app may list other functions at each probe.
    catalogues: Cache<CatalogueHash, Weak<Catalogue>>,
}

impl Prober {
    /// A prober for the instances of `app` that know `token`, on the instance of `executor`.
    pub(super) fn new(
        app: Option<String>,
        token: Option<Token>,
        executor: Arc<Executor>,
    ) -> Result<Self, reqwest::Error> {
        // A new connection for each probe shows whether a call that needs one could connect.
        let client = client::builder(PROBE_TIMEOUT)
            .pool_max_idle_per_host(0)
            .connector_layer(MapFutureLayer::new(noted))
            .build()?;
        Ok(Self {
            client,
            app,
            token,
            executor,
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
        let asked = timed(started, self.introduction(address));
        let answered = time::timeout_at(started + PROBE_TIMEOUT, asked).await;
        let no_answer = |_| ProbeFailure::NoAnswer("no answer to the probe within 1 s".to_owned());
        let (introduction, rtt) = answered.map_err(no_answer)?;
        let (peer, state) = introduction?;
        Ok(ProbeAnswer {
            peer,
            draining: state == PeerState::Draining,
            rtt,
        })
    }

    /// The functions of this hash, if this instance has the same, or a peer of which they were read.
    pub(super) fn known(&self, hash: &CatalogueHash) -> Option<Arc<Catalogue>> {
        let own = self.executor.catalogue();
        match own.hash() == hash {
            true => Some(own),
            false => self.catalogues.get(hash)?.upgrade(),
        }
    }

    /// The peer `wanted` with the functions that it has now, within five seconds: apart from the probe, because a long
    /// list takes longer on a long way than a peer may be silent.
    pub(super) async fn read(&self, wanted: &Peer) -> Result<Peer, ProbeFailure> {
        let too_late = |_| {
            let why = format!("they did not come within {READ_TIMEOUT:?}");
            Err(ProbeFailure::NoAnswer(why))
        };
        let read = time::timeout(READ_TIMEOUT, self.described(wanted)).await;
        read.unwrap_or_else(too_late)
    }

    /// Where the functions changed after `wanted` introduced itself, as they do when an app ends, it introduces itself
    /// once more: the state of the app must be as new as its functions. Otherwise calls for functions of an app that seems
    /// to be up would end with `function_unknown`.
    async fn described(&self, wanted: &Peer) -> Result<Peer, ProbeFailure> {
        let (said, catalogue) = self.catalogue(wanted).await?;
        // A later release may declare what is not known here, of which the hash that is made here has nothing.
        let has_it = |peer: &Peer| peer.listed == said || peer.listed == *catalogue.hash();
        let peer = match has_it(wanted) {
            true => wanted.clone(),
            false => self.introduction(wanted.address).await?.0,
        };
        if !has_it(&peer) {
            let why = "what it listed is not what it says it has".to_owned();
            return Err(ProbeFailure::NotAPeer(why));
        }
        Ok(Peer {
            catalogue: Some(catalogue),
            ..peer
        })
    }

    /// The peer at `address` as it introduces itself, with its functions if they are known.
    async fn introduction(&self, address: SocketAddr) -> Result<(Peer, PeerState), ProbeFailure> {
        // Without a token, a stranger says what it likes: little of it is kept and logged.
        let not_a_peer = |why: String| Err(ProbeFailure::NotAPeer(cut(why)));
        let (response, is_proven_by) = self.get(address, INTRODUCTION).await?;
        let introduction: Introduction = read(response, MAX_INTRODUCTION).await?;
        let peer = Peer {
            release: introduction.release.map(cut),
            boot: introduction.boot,
            catalogue: self.known(&introduction.catalogue),
            listed: introduction.catalogue,
            app_state: introduction.app_state,
            ..Peer::new(address, introduction.region, introduction.instance)
        };
        // Checked first: nothing else that a stranger says is believed, or shown to people.
        if !is_proven_by(&peer) {
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
        Ok((peer, introduction.state))
    }

    /// The functions of `peer`, and the hash under which it lists them. They are kept under the hash of what was received: so
    /// no instance can change what is kept for another.
    async fn catalogue(
        &self,
        peer: &Peer,
    ) -> Result<(CatalogueHash, Arc<Catalogue>), ProbeFailure> {
        let (response, is_proven_by) = self.get(peer.address, FUNCTIONS).await?;
        if !is_proven_by(peer) {
            let why = "another instance answers there".to_owned();
            return Err(ProbeFailure::NotAPeer(why));
        }
        let mut document: CatalogueDocument = read(response, MAX_CATALOGUE).await?;
        let said = std::mem::take(&mut document.catalogue);
        let catalogue = Arc::new(Catalogue::from(document));
        let hash = catalogue.hash().clone();
        self.catalogues.insert(hash, Arc::downgrade(&catalogue));
        Ok((said, catalogue))
    }

    /// The answer for `path` at `address`, and whether its proof is that of a peer; any will do where the cluster has no
    /// token.
    async fn get(
        &self,
        address: SocketAddr,
        path: &'static str,
    ) -> Result<(Response, impl Fn(&Peer) -> bool), ProbeFailure> {
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
        let is_proven_by = move |peer: &Peer| {
            let Some((challenge, token)) = &challenge else {
                return true;
            };
            let answers = Statement::Answers {
                path,
                instance: &peer.instance,
                region: &peer.region,
                boot: peer.boot.as_ref(),
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
    let again = request.try_clone();
    let mut sent = request.send().await;
    // A process that ends resets its connections: only a new one shows whether anything listens there now.
    if let (Err(error), Some(again)) = (&sent, again)
        && was_cut(error)
    {
        sent = again.send().await;
    }
    let response = sent.map_err(|error| {
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
    let is_reset = |cause: &io::Error| cause.kind() == io::ErrorKind::ConnectionReset;
    http_error.is_some_and(|error| !error.is_parse())
        || causes(error).any(|cause| cause.downcast_ref().is_some_and(is_reset))
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| {
        (*cause).source()
    })
}
