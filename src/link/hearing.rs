//! The answer to a stream's request: lines from the peer, given to those who wait for them, and what they, or their
//! end, say about the peer.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::time::{self, Instant};

use super::{
    frames::{self, Frame, Lines},
    pending::Answer,
    stream::{IDLE, Shared},
};
use crate::{
    client,
    cluster::{Cluster, Encounter},
    reply::ProblemDocument,
};

/// How often a peer that answers calls is mentioned to discovery.
const MENTION: Duration = Duration::from_secs(1);
/// The largest problem document that answers the request itself.
const MAX_REFUSAL: usize = 64 << 10;

/// The side of a stream that hears the peer.
pub(super) struct Hearing {
    shared: Arc<Shared>,
    address: SocketAddr,
    cluster: Arc<Cluster>,
    lines: Lines,
    mentioned: Option<Instant>,
}

impl Hearing {
    /// Hears the peer at `address` on behalf of `shared`; lines of at most `max_answer` bytes.
    pub(super) fn new(
        shared: Arc<Shared>,
        address: SocketAddr,
        cluster: Arc<Cluster>,
        max_answer: usize,
    ) -> Self {
        Self {
            shared,
            address,
            cluster,
            lines: Lines::new(max_answer),
            mentioned: None,
        }
    }

    /// Sends `request` and hears its answer to the end.
    pub(super) async fn run(mut self, request: RequestBuilder) {
        match request.send().await {
            Ok(response) if is_ours(&response) => self.hear(response).await,
            Ok(response) => self.refused(response).await,
            Err(error) => self.failed(&error),
        }
    }

    async fn hear(&mut self, mut response: Response) {
        loop {
            match time::timeout(IDLE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    if let Err(what) = self.heard(&chunk) {
                        return self.is_nonsense(what);
                    }
                }
                Ok(Ok(None)) => return,
                Ok(Err(error)) => return self.failed(&error),
                Err(_) if self.shared.is_done() => return,
                Err(_) => {}
            }
        }
    }

    /// Takes what came; an error when it is nothing of ours, and nothing behind it can be trusted.
    fn heard(&mut self, chunk: &[u8]) -> Result<(), &'static str> {
        self.lines.push(chunk);
        let mut answers = Vec::new();
        let mut is_draining = false;
        let outcome = loop {
            let line = match self.lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => break Ok(()),
                Err(frames::TooLong) => break Err("a line is longer than RPC_MAX_RESULT allows"),
            };
            match frames::read(&line) {
                Frame::Answer(id, result) => answers.push((id, Answer::Told(result))),
                Frame::Garbled(id) => answers.push((id, Answer::Garbled)),
                Frame::Draining => is_draining = true,
                Frame::Nonsense => break Err("a line is no answer"),
            }
        };
        self.shared.pending.arrive(answers.into_iter());
        self.mention(is_draining);
        outcome
    }

    fn mention(&mut self, is_draining: bool) {
        let had_doubts = self.shared.pending.hear();
        if is_draining {
            self.shared.retired.cancel();
            return self.cluster.met(self.address, Encounter::Draining);
        }
        let is_due = self.mentioned.is_none_or(|last| last.elapsed() >= MENTION);
        if (is_due || had_doubts) && !self.shared.retired.is_cancelled() {
            self.mentioned = Some(Instant::now());
            self.cluster.met(self.address, Encounter::Answered);
        }
    }

    /// The peer answered the request itself, and so none of its calls.
    async fn refused(&self, response: Response) {
        let status = response.status();
        let document = client::body(response, MAX_REFUSAL)
            .await
            .ok()
            .and_then(|body| serde_json::from_slice::<Box<ProblemDocument>>(&body).ok());
        match document {
            Some(document) => {
                tracing::warn!(address = %self.address, code = %document.code, detail = document.detail, "a peer refuses calls");
                self.shared
                    .pending
                    .end(|| Answer::Told(Err(document.clone())));
            }
            None => self.is_nonsense(&format!("status {status} and a body that is not ours")),
        }
    }

    fn is_nonsense(&self, what: &str) {
        tracing::warn!(address = %self.address, what, "a peer's answer breaks the contract");
        self.cluster.met(self.address, Encounter::Unanswered);
        self.shared.pending.end(|| Answer::Garbled);
    }

    fn failed(&self, error: &reqwest::Error) {
        let cause = client::chain(error);
        let is_connected = self.shared.is_connected.load(Ordering::Acquire);
        let what = match is_connected {
            true => "connection lost",
            false => "no connection",
        };
        tracing::warn!(address = %self.address, %cause, "{what}");
        if is_connected {
            self.cluster.met(self.address, Encounter::Unanswered);
        }
    }
}

fn is_ours(response: &Response) -> bool {
    response.status() == StatusCode::OK && client::media_type(response) == frames::NDJSON
}

impl Drop for Hearing {
    /// However it ended: what left and was not answered is lost, and nothing leaves any more.
    fn drop(&mut self) {
        self.shared.retired.cancel();
        self.shared.pending.end(|| Answer::Lost);
    }
}
