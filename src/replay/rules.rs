//! What becomes of one request under [`ReplayToPrimary`], and the answers that the layer gives itself.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, SET_COOKIE, UPGRADE},
    request::Parts,
    response,
};
use http_body::{Body, SizeHint};
use serde::Serialize;
use tower::Service;

use super::{
    MAX_REQUEST, Machines, REPLAY, ReplayToPrimary,
    body::{Discarded, FORWARDED, Unanswered, discard, forward},
    header, request_size, state, was_replayed,
};
use crate::{json, name::ConsistencyToken};

/// The `state` of a replay of what turned out to write.
const CAPTURED: &str = "captured";

/// What the head of a request decides.
#[derive(Debug)]
enum Step {
    /// The application answers it.
    Run,
    /// The application answers it, and the client gets a cookie.
    RunWrite,
    /// The application answers it, unless it turns out to write: then this is the answer.
    RunRead(Response<Bytes>),
    /// Fly Proxy is asked to replay it with this `state`, once its body turns out to be whole and small enough.
    Replay(&'static str),
    /// It is sent to the primary region over the private network.
    Forward(Arc<str>),
    /// None of these, for a reason that its head shows.
    Refuse(Response<Bytes>),
}

/// The answer to `request`, of the application `inner` or of `layer` itself.
pub(super) async fn answer<S, B, R>(
    mut inner: S,
    layer: Arc<ReplayToPrimary>,
    request: Request<B>,
) -> Result<Response<R>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
    R: From<Bytes>,
{
    let (head, body) = request.into_parts();
    let step = layer.step(&head, &body.size_hint(), now()).await;
    let own = match step {
        Step::Run => return inner.call(Request::from_parts(head, body)).await,
        Step::RunWrite => {
            let mut response = inner.call(Request::from_parts(head, body)).await?;
            if let Some(cookie) = layer.cookie(response.headers(), now()) {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            return Ok(response);
        }
        Step::RunRead(otherwise) => {
            let response = inner.call(Request::from_parts(head, body)).await?;
            let (head, body) = response.into_parts();
            if !layer.is_captured(&head) {
                return Ok(Response::from_parts(head, body));
            }
            otherwise
        }
        Step::Replay(state) => {
            let head_size = request_size(&head.uri, &head.headers, 0);
            match discard(body, layer.patience).await {
                Discarded::Whole(size) if head_size + size <= MAX_REQUEST => layer.replay(state),
                Discarded::Whole(_) | Discarded::TooLarge => layer.too_large(),
                Discarded::Cut => layer.cut_short(),
            }
        }
        Step::Forward(to) => {
            let answered = forward(&to, layer.timeout, head, body, layer.patience).await;
            match answered {
                Some(answered) => answered.unwrap_or_else(|why| layer.failed(why)),
                None => layer.unreached(),
            }
        }
        Step::Refuse(refusal) => {
            discard(body, layer.patience).await;
            refusal
        }
    };
    Ok(own.map(R::from))
}

impl ReplayToPrimary {
    /// What becomes of the request with this head, and a body of this size, at `now`, in seconds since 1970.
    async fn step(&self, head: &Parts, body: &SizeHint, now: f64) -> Step {
        let writes = (self.writes)(head);
        if self.region == self.primary {
            // What was captured in another region is a read that writes.
            return match writes || state(&head.headers) == Some(CAPTURED) {
                true => Step::RunWrite,
                false => Step::Run,
            };
        }
        // The cookies of a write are not asked: it goes to the primary region whatever they say.
        if !writes && !self.reads_in_primary(head, now).await {
            return self.read(head, body);
        }
        match self.refusal(head, body) {
            None if writes => match self.forwards_to.as_ref().filter(|_| !fits(head, body)) {
                Some(to) => Step::Forward(Arc::clone(to)),
                None => Step::Replay("write"),
            },
            None => Step::Replay("threshold"),
            Some(refusal) if writes => Step::Refuse(refusal),
            // A read loses less by an old answer than by none.
            Some(_) => self.read(head, body),
        }
    }

    /// A read that is answered here, as far as its head shows.
    fn read(&self, head: &Parts, body: &SizeHint) -> Step {
        match &self.captures {
            Some(_) => {
                let refusal = self.refusal(head, body);
                Step::RunRead(refusal.unwrap_or_else(|| self.replay(CAPTURED)))
            }
            None => Step::Run,
        }
    }

    /// Whether a client wrote so recently that it reads in the primary region. A connection that is upgraded stays here: it
    /// outlives every cookie.
    async fn reads_in_primary(&self, head: &Parts, now: f64) -> bool {
        if head.headers.contains_key(UPGRADE) {
            return false;
        }
        let wrote = self.cookie_times.read(&head.headers, now);
        match (wrote.token, &self.caught_up) {
            _ if wrote.untokened => true,
            (Some(token), Some(caught_up)) => !caught_up(token).await,
            (token, _) => token.is_some(),
        }
    }

    fn is_captured(&self, head: &response::Parts) -> bool {
        let captures = self.captures.as_ref();
        captures.is_some_and(|captures| captures(head))
    }

    /// The cookie of a client whose request, answered by `headers`, wrote at `now`.
    fn cookie(&self, headers: &HeaderMap, now: f64) -> Option<HeaderValue> {
        let token = headers
            .get(ConsistencyToken::HEADER)
            .and_then(|token| token.to_str().ok()?.parse().ok());
        let token = token.filter(|_| self.caught_up.is_some());
        self.cookie_times.cookie(token.as_ref(), now)
    }

    /// Why a request cannot go to the primary region, if so.
    fn refusal(&self, head: &Parts, body: &SizeHint) -> Option<Response<Bytes>> {
        if was_replayed(&head.headers) || head.headers.contains_key(FORWARDED) {
            return Some(self.unreached());
        }
        let is_too_large = size(head, body.lower()) > MAX_REQUEST;
        (is_too_large && self.forwards_to.is_none()).then(|| self.too_large())
    }

    fn unreached(&self) -> Response<Bytes> {
        let primary = &self.primary;
        let detail = format!(
            "this writes in region \"{primary}\", which was not reached; nothing was written"
        );
        let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, &detail);
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(1));
        response
    }

    fn too_large(&self) -> Response<Bytes> {
        let primary = &self.primary;
        let detail = format!(
            "this writes in region \"{primary}\", and is too large to be replayed there; send it with the header \
             fly-prefer-region: {primary}"
        );
        refuse(StatusCode::PAYLOAD_TOO_LARGE, &detail)
    }

    fn cut_short(&self) -> Response<Bytes> {
        let (primary, seconds) = (&self.primary, self.patience.arrival.as_secs_f64());
        let detail = format!(
            "this writes in region \"{primary}\", and its body did not arrive whole within {seconds} s; nothing was written"
        );
        refuse(StatusCode::BAD_REQUEST, &detail)
    }

    fn failed(&self, why: Unanswered) -> Response<Bytes> {
        let primary = &self.primary;
        let detail =
            format!("this was sent to region \"{primary}\", {why}; it may have been written");
        let status = match why {
            Unanswered::Stalled(_) => StatusCode::BAD_REQUEST,
            Unanswered::NoAnswer | Unanswered::Late | Unanswered::TooLarge => {
                StatusCode::BAD_GATEWAY
            }
        };
        refuse(status, &detail)
    }

    fn replay(&self, state: &str) -> Response<Bytes> {
        let primary = &self.primary;
        let machines = Machines::In {
            regions: &[primary],
            or_any: false,
            preferred: None,
        };
        let detail = format!("Fly Proxy is to replay this request in region \"{primary}\"");
        let mut response = refuse(StatusCode::CONFLICT, &detail);
        let asks = header(machines, self.timeout, state);
        response.headers_mut().insert(REPLAY, asks);
        response
    }
}

/// Whether a request is known to be small enough to be replayed. HTTP/2 has no header that says of a body that its size is not
/// known, so the body is asked.
fn fits(head: &Parts, body: &SizeHint) -> bool {
    let most = body.upper();
    most.is_some_and(|most| size(head, most) <= MAX_REQUEST)
}

fn size(head: &Parts, body: u64) -> usize {
    let body = usize::try_from(body).unwrap_or(usize::MAX);
    request_size(&head.uri, &head.headers, body)
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// A problem document (RFC 9457).
fn refuse(status: StatusCode, detail: &str) -> Response<Bytes> {
    #[derive(Serialize)]
    struct Instruction<'a> {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'a str,
    }
    let document = Instruction {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail,
    };
    let mut response = Response::new(Bytes::from(json::to_vec(&document)));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
