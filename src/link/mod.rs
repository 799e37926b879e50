//! The path that calls take to a peer: one request to `/internal/exec`, and what its answer, or its failure, says about
//! whether the function ran. Knows one attempt; whether there is another is dispatch's decision.

mod sent;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{Client, Response, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::value::RawValue;

use self::sent::Sent;
use crate::{
    call::{Call, Exec},
    client,
    cluster::{Cluster, Encounter, Peer},
    deadline::Deadline,
    name::RequestId,
    problem::{Code, Executed, Problem},
    reply::ProblemDocument,
};

/// Tells a peer that the call was already forwarded, so that it is never forwarded again.
pub(crate) const FORWARDED: &str = "rpc-forwarded";
/// Tells, on an answer to a peer, that the instance is draining.
pub(crate) const STATE: &str = "rpc-state";
/// The value of [`STATE`] on a draining instance.
pub(crate) const DRAINING: &str = "draining";

/// Room for what an answer holds besides the result.
const ENVELOPE: usize = 64 << 10;
/// Idle connections kept to one peer.
const IDLE_CONNECTIONS: usize = 64;

/// The way to every peer.
#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    cluster: Arc<Cluster>,
    max_answer: usize,
}

impl Link {
    /// A link that waits `connect_timeout` for a connection and reads results of at most `max_result` bytes.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        connect_timeout: Duration,
        max_result: usize,
    ) -> Result<Self, reqwest::Error> {
        let client = client::builder(connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build()?;
        Ok(Self {
            client,
            cluster,
            max_answer: max_result.saturating_add(ENVELOPE),
        })
    }

    /// Runs `call` on `peer` within `deadline`.
    ///
    /// # Errors
    /// The problem that the peer told; [`Code::PeerUnreachable`] when nothing was sent; [`Code::PeerLost`] when
    /// something may have been and no answer of ours came; [`Code::DeadlineExceeded`].
    pub(crate) async fn exec(
        &self,
        peer: &Peer,
        call: &Call,
        deadline: Deadline,
        request_id: &RequestId,
    ) -> Result<Box<RawValue>, Problem> {
        let Some(timeout_ms) = deadline.remaining_ms() else {
            return Err(Problem::new(
                Code::DeadlineExceeded,
                "the deadline passed before the call was sent",
            ));
        };
        let (body, sent) = sent::watched(Exec::to_json(&peer.region, call, timeout_ms));
        let request = self
            .client
            .post(format!("http://{}/internal/exec", peer.address))
            .header(CONTENT_TYPE, "application/json")
            .header("x-request-id", request_id.as_str())
            .header(FORWARDED, "1")
            .body(body);
        match deadline
            .bound(async { self.answer(peer.address, request.send().await?).await })
            .await
        {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(self.failed(peer, &sent, &error)),
            None => Err(self.timed_out(peer, call, &sent)),
        }
    }

    /// What the peer answered; an error of reqwest when no whole answer came.
    async fn answer(
        &self,
        address: SocketAddr,
        response: Response,
    ) -> Result<Result<Box<RawValue>, Problem>, reqwest::Error> {
        let status = response.status();
        let is_draining = response
            .headers()
            .get(STATE)
            .is_some_and(|state| state == DRAINING);
        let is_problem = client::media_type(&response) == "application/problem+json";
        let body = match client::body(response, self.max_answer).await {
            Ok(body) => body,
            Err(client::BodyError::Cut(error)) => return Err(error),
            Err(error @ client::BodyError::TooLong(_)) => {
                return Ok(Err(self.not_ours(address, &error.to_string())));
            }
        };
        let outcome = match (status, is_problem) {
            (StatusCode::OK, false) => result(&body),
            (_, true) => serde_json::from_slice(&body)
                .ok()
                .map(|document| Err(heard(document))),
            (_, false) => None,
        };
        let Some(outcome) = outcome else {
            return Ok(Err(self.not_ours(
                address,
                &format!("status {status} and a body that is not ours"),
            )));
        };
        self.cluster.met(
            address,
            if is_draining {
                Encounter::Draining
            } else {
                Encounter::Answered
            },
        );
        Ok(outcome)
    }

    fn failed(&self, peer: &Peer, sent: &Sent, error: &reqwest::Error) -> Problem {
        let cause = client::chain(error);
        if sent.nothing() {
            self.cluster.met(peer.address, Encounter::Unreachable);
            tracing::debug!(instance = %peer.instance, address = %peer.address, %cause, "no connection");
            return Problem::new(
                Code::PeerUnreachable,
                format!("no connection to instance {}", peer.instance),
            );
        }
        self.cluster.met(peer.address, Encounter::Unanswered);
        tracing::debug!(instance = %peer.instance, address = %peer.address, %cause, "connection lost");
        Problem::new(
            Code::PeerLost,
            format!(
                "the connection to instance {} was lost after the call",
                peer.instance
            ),
        )
    }

    fn timed_out(&self, peer: &Peer, call: &Call, sent: &Sent) -> Problem {
        if sent.nothing() {
            self.cluster.met(peer.address, Encounter::Unreachable);
            let detail = format!(
                "no connection to instance {} before the deadline",
                peer.instance
            );
            return Problem::new(Code::DeadlineExceeded, detail);
        }
        self.cluster.met(peer.address, Encounter::Unanswered);
        let detail = format!(
            "instance {} did not answer {} before the deadline",
            peer.instance, call.name
        );
        Problem::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe)
    }

    fn not_ours(&self, address: SocketAddr, what: &str) -> Problem {
        self.cluster.met(address, Encounter::Unanswered);
        tracing::warn!(%address, %what, "a peer's answer breaks the contract");
        Problem::new(
            Code::PeerLost,
            "the instance answered with something else than our contract",
        )
    }
}

/// The result in the body of a `200`.
fn result(body: &[u8]) -> Option<Result<Box<RawValue>, Problem>> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        result: &'a RawValue,
    }
    serde_json::from_slice(body)
        .ok()
        .map(|answer: Answer<'_>| Ok(answer.result.to_owned()))
}

/// The problem that a peer told, as the caller may hear it: a refusal of our own request is no affair of the caller's.
fn heard(document: ProblemDocument) -> Problem {
    match document.code {
        Code::Draining
        | Code::Overloaded
        | Code::WrongRegion
        | Code::FunctionUnknown
        | Code::InvalidArguments
        | Code::FunctionFailed
        | Code::FunctionPanicked
        | Code::DeadlineExceeded
        | Code::Internal => document.into_problem(),
        code if document.executed == Executed::No => Problem::new(
            Code::PeerUnreachable,
            format!("the instance refused the request: {code}"),
        ),
        code => Problem::new(Code::PeerLost, format!("the instance answered {code}")),
    }
}
