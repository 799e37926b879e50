//! Opens a connection to a peer: TCP, then the HTTP/1.1 upgrade in which both ends prove that they know the cluster's
//! secret, on this very connection. The secret itself is never sent, and no call is before the peer has proved who it is.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Request, Response, StatusCode,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{self, Instant},
};

use crate::{
    cluster::{Cluster, Peer},
    local::LocalInstance,
    problem::{Executed, with_causes},
    protocol::{CLOCK, Challenge, EXEC, FORWARDED, LINES, NONCE, PROOF, Statement, lines},
    reply::ProblemDocument,
    token::Proof,
};

/// How long the peer may take to answer the upgrade once the connection stands.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// The largest problem document that answers the upgrade, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// To whom a connection is opened, how, and what it is served with.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) peer: Peer,
    pub(super) local: Arc<LocalInstance>,
    /// How long a connection may take to stand.
    pub(super) connect_timeout: Duration,
    pub(super) cluster: Arc<Cluster>,
}

#[derive(Debug)]
pub(super) struct Opened {
    pub(super) read: OwnedReadHalf,
    pub(super) write: OwnedWriteHalf,
    /// What the peer sent right behind its answer.
    pub(super) already: Bytes,
    /// The line that goes before every call; empty without a secret.
    pub(super) first: Vec<u8>,
    /// How long the peer took to answer the upgrade.
    pub(super) round_trip: Duration,
}

/// Why there is no connection; nothing of a call was sent.
#[derive(Debug)]
pub(super) enum Unopened {
    /// No connection, or no answer of ours, in time.
    NoConnection(String),
    /// Who answers did not prove to be the peer.
    WrongInstance,
    /// The peer refused the upgrade.
    Refused(Box<ProblemDocument>),
}

/// Opens a connection whose clock started at `started`.
pub(super) async fn open(opening: &Opening, started: Instant) -> Result<Opened, Unopened> {
    let address = opening.peer.address;
    let opened = match time::timeout(opening.connect_timeout, TcpStream::connect(address)).await {
        Ok(Ok(socket)) => {
            let upgraded = time::timeout(HANDSHAKE, upgraded(opening, socket, started)).await;
            let late = || Unopened::NoConnection("no answer to the upgrade in time".to_owned());
            upgraded.unwrap_or_else(|_| Err(late()))
        }
        Ok(Err(error)) => Err(Unopened::NoConnection(error.to_string())),
        Err(_) => Err(Unopened::NoConnection("no connection in time".to_owned())),
    };
    match &opened {
        Ok(_) => {}
        Err(Unopened::NoConnection(cause)) => {
            tracing::warn!(%address, %cause, "no connection");
        }
        Err(Unopened::WrongInstance) => {
            let expected = &opening.peer.instance;
            tracing::warn!(%address, %expected, "who answers there did not prove to be the instance expected");
        }
        Err(Unopened::Refused(document)) => {
            let (code, detail) = (&document.problem.code, &document.problem.detail);
            tracing::warn!(%address, %code, detail, "a peer refuses calls");
        }
    }
    opened
}

async fn upgraded(
    opening: &Opening,
    socket: TcpStream,
    started: Instant,
) -> Result<Opened, Unopened> {
    // Small lines must not wait for the acknowledgement of earlier ones.
    let _ = socket.set_nodelay(true);
    let asked = Instant::now();
    let challenge = Challenge::new(opening.peer.address);
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| failed(&error))?;
    let request = request(opening, &challenge, started);
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let first = confirmation(opening, &challenge, response.headers())?;
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|error| failed(&error))?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>();
        let parts = parts
            .map_err(|_| Unopened::NoConnection("the connection changed its type".to_owned()))?;
        let (read, write) = parts.io.into_inner().into_split();
        Ok(Opened {
            read,
            write,
            already: parts.read_buf,
            first,
            round_trip: asked.elapsed(),
        })
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        exchanged = &mut exchange => exchanged,
        // When the connection has ended, what it was for has come or failed.
        _ = connection.with_upgrades() => exchange.await,
    }
}

fn request(opening: &Opening, challenge: &Challenge, started: Instant) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(EXEC);
    let mut set = |name: HeaderName, value: String| {
        // Addresses, numbers and hexadecimal digits are header values.
        if let Ok(value) = value.parse() {
            request.headers_mut().insert(name, value);
        }
    };
    set(HOST, opening.peer.address.to_string());
    set(CONNECTION, "upgrade".to_owned());
    set(UPGRADE, LINES.to_owned());
    set(FORWARDED, "1".to_owned());
    if let Some(token) = opening.local.access.cluster.first() {
        set(HeaderName::from_static(NONCE), challenge.nonce.clone());
        let proof = challenge.prove(token, Statement::Opens).to_string();
        set(HeaderName::from_static(PROOF), proof);
    }
    let clock_us = started.elapsed().as_micros().to_string();
    set(HeaderName::from_static(CLOCK), clock_us);
    request
}

/// The line that proves to the peer who asks, once the peer has proved who it is.
fn confirmation(
    opening: &Opening,
    challenge: &Challenge,
    headers: &HeaderMap,
) -> Result<Vec<u8>, Unopened> {
    let Some(token) = opening.local.access.cluster.first() else {
        return Ok(Vec::new());
    };
    let text = |name| headers.get(name)?.to_str().ok();
    let proof: Option<Proof> = text(PROOF).and_then(|proof| proof.parse().ok());
    let (Some(nonce), Some(proof)) = (text(NONCE), proof) else {
        return Err(Unopened::WrongInstance);
    };
    let Peer {
        instance, region, ..
    } = &opening.peer;
    let accepts = Statement::Accepts {
        nonce,
        instance,
        region,
    };
    if !challenge.is_proven(token, accepts, &proof) {
        return Err(Unopened::WrongInstance);
    }
    let confirms = Statement::Confirms { nonce };
    Ok(lines::proof_line(&challenge.prove(token, confirms)))
}

/// What an answer says that is no upgrade.
async fn refusal(response: Response<Incoming>) -> Unopened {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL)
        .collect()
        .await;
    let document: Option<Box<ProblemDocument>> = body
        .ok()
        .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
    // Who refuses has proved nothing, and no call was sent.
    match document.filter(|it| it.problem.executed == Executed::No) {
        Some(document) => Unopened::Refused(document),
        None => Unopened::NoConnection(format!(
            "it answered the upgrade with status {status} and a body that is not ours"
        )),
    }
}

fn failed(error: &hyper::Error) -> Unopened {
    Unopened::NoConnection(with_causes(error))
}
