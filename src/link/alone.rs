//! One request for one call: for calls that are too large to travel with others, whose bytes would hold those up.

use reqwest::{Client, Response, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FORWARDED, frames, pending::Answer, sent, stream::Ending};
use crate::{client, cluster::Peer, deadline::Deadline, name::RequestId};

/// Runs the call that `tail` describes on `peer`, and waits for its end.
pub(super) async fn call(
    client: &Client,
    peer: &Peer,
    tail: &[u8],
    deadline: Deadline,
    request_id: &RequestId,
    max_answer: usize,
) -> Ending {
    let Some(timeout_ms) = deadline.remaining_ms() else {
        return Ending::LateHere;
    };
    let (body, sent) = sent::watched(frames::lone_call(timeout_ms, tail));
    let request = client
        .post(format!("http://{}/internal/exec", peer.address))
        .header(CONTENT_TYPE, "application/json")
        .header("x-request-id", request_id.as_str())
        .header(FORWARDED, "1")
        .body(body);
    let exchange = async {
        let response = request.send().await?;
        Ok::<_, reqwest::Error>(answer(response, max_answer).await)
    };
    match deadline.bound(exchange).await {
        Some(Ok(answer)) => Ending::Answer(answer),
        Some(Err(error)) => {
            let cause = client::chain(&error);
            tracing::warn!(instance = %peer.instance, address = %peer.address, %cause, "request failed");
            if sent.nothing() {
                Ending::NoConnection
            } else {
                Ending::Answer(Answer::Lost)
            }
        }
        None if sent.nothing() => Ending::LateHere,
        None => Ending::Late {
            peer_is_silent: true,
        },
    }
}

async fn answer(response: Response, max_answer: usize) -> Answer {
    let status = response.status();
    let media_type = client::media_type(&response).to_owned();
    let body = match client::body(response, max_answer).await {
        Ok(body) => body,
        Err(client::BodyError::Cut(_)) => return Answer::Lost,
        Err(client::BodyError::TooLong(_)) => return Answer::Garbled,
    };
    let told = match (status, media_type.as_str()) {
        (StatusCode::OK, "application/json") => result(&body).map(Ok),
        (_, "application/problem+json") => serde_json::from_slice(&body).ok().map(Err),
        _ => None,
    };
    told.map_or(Answer::Garbled, Answer::Told)
}

/// The result in the body of a `200`.
fn result(body: &[u8]) -> Option<Box<RawValue>> {
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow)]
        result: &'a RawValue,
    }
    let reply: Reply<'_> = serde_json::from_slice(body).ok()?;
    Some(reply.result.to_owned())
}
