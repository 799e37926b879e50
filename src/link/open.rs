//! Opens a connection to a peer: TCP, then the HTTP/1.1 upgrade in which both ends prove that they know the cluster's
//! secret, on this very connection. The secret itself is never sent, and no call is before the peer has proved who it is.

use std::{fmt::Display, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
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

use super::{connection::Connection, outbox::Ending};
use crate::{
    local::LocalInstance,
    problem::{Executed, with_causes},
    protocol::{
        CLOCK, Challenge, EXEC, FORWARDED, LINES, NONCE, PROOF, Statement,
        lines::{self, Lines},
    },
    reply::ProblemDocument,
    token::Proof,
};

/// How long the peer may take to answer the upgrade once the connection stands.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// Room for what an answer holds besides the result, in bytes.
const AROUND_RESULT: usize = 64 << 10;
/// The largest problem document that answers the upgrade, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// Opens `connection`, within `timeout` for TCP and a second for the upgrade: from then on its callers send their calls. Returns
/// both halves of its socket, the lines that came already, and how long the peer took to answer.
///
/// # Errors
/// How the calls end that wait for it; nothing of them was sent.
pub(super) async fn open(
    connection: &Connection,
    timeout: Duration,
) -> Result<(OwnedReadHalf, &OwnedWriteHalf, Lines, Duration), Ending> {
    let connecting = TcpStream::connect(connection.peer.address);
    match time::timeout(timeout, connecting).await {
        Ok(Ok(socket)) => time::timeout(HANDSHAKE, upgraded(connection, socket))
            .await
            .unwrap_or_else(|_| Err(none(connection, "no answer to the upgrade in time"))),
        Ok(Err(error)) => Err(none(connection, error)),
        Err(_) => Err(none(connection, "no connection in time")),
    }
}

/// Logs why there is no connection, and returns how the calls that wait for it end.
fn none(connection: &Connection, cause: impl Display) -> Ending {
    tracing::warn!(address = %connection.peer.address, %cause, "no connection");
    Ending::NoConnection
}

async fn upgraded(
    connection: &Connection,
    socket: TcpStream,
) -> Result<(OwnedReadHalf, &OwnedWriteHalf, Lines, Duration), Ending> {
    // Small lines must not wait for the acknowledgement of earlier ones.
    let _ = socket.set_nodelay(true);
    let asked = Instant::now();
    let challenge = Challenge::new(connection.peer.address);
    let failed = |error: hyper::Error| none(connection, with_causes(&error));
    let handshake = http1::handshake(TokioIo::new(socket)).await;
    let (mut sender, driver) = handshake.map_err(failed)?;
    let request = request(connection, &challenge);
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(connection, response).await);
        }
        let protocol = response.headers().get(UPGRADE);
        if protocol.map(HeaderValue::as_bytes) != Some(LINES.as_bytes()) {
            return Err(none(connection, "it switches to another protocol"));
        }
        let first = confirmation(connection, &challenge, response.headers());
        let first = first.ok_or_else(|| {
            let (address, expected) = (connection.peer.address, &connection.peer.instance);
            tracing::warn!(%address, %expected, "who answers there did not prove to be the instance expected");
            Ending::WrongInstance
        })?;
        let upgraded = hyper::upgrade::on(response).await.map_err(failed)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>();
        let parts = parts.map_err(|_| none(connection, "the connection changed its type"))?;
        let (read, write) = parts.io.into_inner().into_split();
        // Nothing is awaited from here on: given up then, calls that left would end as not sent.
        let round_trip = asked.elapsed();
        connection.peer.stats.note_round_trip(round_trip);
        let LocalInstance { limits, memory, .. } = &*connection.local;
        let mut lines = Lines::new(limits.max_result.saturating_add(AROUND_RESULT), memory);
        lines.push(&parts.read_buf);
        // The line of proof goes before every call, and so into the queue before callers find the socket.
        connection.outbox.open(&first);
        let socket = connection.socket.get_or_init(|| write);
        Ok((read, socket, lines, round_trip))
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        exchanged = &mut exchange => exchanged,
        // When the connection has ended, what it was for has come or failed.
        _ = driver.with_upgrades() => exchange.await,
    }
}

fn request(connection: &Connection, challenge: &Challenge) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(EXEC);
    let mut set = |name: HeaderName, value: String| {
        // Addresses, numbers and hexadecimal digits are header values.
        if let Ok(value) = value.parse() {
            request.headers_mut().insert(name, value);
        }
    };
    set(HOST, connection.peer.address.to_string());
    set(CONNECTION, "upgrade".to_owned());
    set(UPGRADE, LINES.to_owned());
    set(FORWARDED, "1".to_owned());
    if let Some(token) = connection.local.access.cluster.first() {
        set(HeaderName::from_static(NONCE), challenge.nonce.clone());
        let proof = challenge.prove(token, Statement::Opens).to_string();
        set(HeaderName::from_static(PROOF), proof);
    }
    let clock_us = connection.started.elapsed().as_micros().to_string();
    set(HeaderName::from_static(CLOCK), clock_us);
    request
}

/// The line that proves to the peer who asks; `None` where the peer did not prove who it is.
fn confirmation(
    connection: &Connection,
    challenge: &Challenge,
    headers: &HeaderMap,
) -> Option<Vec<u8>> {
    let Some(token) = connection.local.access.cluster.first() else {
        return Some(Vec::new());
    };
    let text = |name| headers.get(name)?.to_str().ok();
    let (nonce, proof): (_, Proof) = (text(NONCE)?, text(PROOF)?.parse().ok()?);
    let accepts = Statement::Accepts {
        nonce,
        instance: &connection.peer.instance,
        region: &connection.peer.region,
    };
    let confirms = Statement::Confirms { nonce };
    let is_proven = challenge.is_proven(token, accepts, &proof);
    is_proven.then(|| lines::proof_line(&challenge.prove(token, confirms)))
}

/// How calls end if the answer is not an upgrade.
async fn refusal(connection: &Connection, response: Response<Incoming>) -> Ending {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_REFUSAL)
        .collect()
        .await;
    let document: Option<ProblemDocument> = body
        .ok()
        .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
    let problem = document.map(|document| document.problem);
    // Who refuses has proved nothing, and no call was sent.
    let Some(problem) = problem.filter(|problem| problem.executed == Executed::No) else {
        let cause =
            format!("it answered the upgrade with status {status} and a body that is not ours");
        return none(connection, cause);
    };
    let (address, code, detail) = (connection.peer.address, problem.code, &problem.detail);
    tracing::warn!(%address, %code, detail, "a peer refuses calls");
    Ending::Answered(Err(Box::new(problem)))
}
