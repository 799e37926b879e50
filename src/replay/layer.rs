//! A tower layer for any HTTP application that writes in one region of Fly and reads in all: what writes is replayed in
//! the primary region, whichever region the request reached first. What becomes of a request, and the answers that the layer
//! gives itself.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, SET_COOKIE, UPGRADE},
    request::Parts,
    response,
};
use http_body::{Body, SizeHint};
use serde::Serialize;
use tower::{Layer, Service};

use super::{
    MAX_REQUEST, Machines, REPLAY,
    body::{FORWARDED, Incomplete, Patience, Unanswered, discard, forward},
    cookie::CookieTimes,
    header, is_fly_region, request_size, state, was_replayed,
};
use crate::{
    config::{ConfigError, Identity, settings::PRIMARY_REGION},
    json,
    name::ConsistencyToken,
    region::Region,
};

/// The `state` of a replay of what turned out to write.
const CAPTURED: &str = "captured";

type Writes = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
type Captures = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;
/// Whether the data here has seen what a token says.
type CaughtUp = Arc<dyn Fn(ConsistencyToken) -> BoxFuture<'static, bool> + Send + Sync>;

/// Replays requests that write in the primary region, by the answer `fly-replay` to Fly Proxy; for axum and every other
/// service of tower.
///
/// A request that writes runs in the primary region or not at all: the application of another region is not asked. Every method
/// but GET, HEAD, OPTIONS and TRACE writes, unless [`ReplayToPrimary::writes`] says otherwise. After a write, a cookie
/// sends the same client's reads to the primary region too, for 5 s or what [`ReplayToPrimary::window`] says, so that
/// it reads what it wrote; with [`ReplayToPrimary::caught_up`], until the data here has seen the write.
///
/// | request outside the primary region | answer |
/// |---|---|
/// | reads | the application's |
/// | writes | 409 with `fly-replay`, on which Fly Proxy sends it to the primary region |
/// | writes, above 1 MB, which Fly Proxy does not replay | that of the primary region, with [`ReplayToPrimary::forwards_to`]; else 413, and its client sends it with `fly-prefer-region` |
/// | reads, and its answer says that it was to write ([`ReplayToPrimary::captures`]) | 409 with `fly-replay` |
/// | writes, and was replayed already or says so | 503 with `retry-after`: the primary region was not reached |
///
/// The row about replays ends every loop. Reads after a write are answered here in the last two cases.
///
/// The body of a request that is answered so is read first and thrown away, up to 10 MB and for up to 60 s (10 s without
/// a byte): else a proxy in between may see a reset connection in place of the answer. One that does not arrive whole is
/// answered with 400. So is one that is sent on to the primary region and stops coming for 10 s; it may take longer than 60 s
/// as long as bytes come.
///
/// ```
/// use axum::{Router, routing::get};
/// use fly_rpc::{Config, ReplayToPrimary};
///
/// # fn app() -> Result<Router, fly_rpc::ConfigError> {
/// let identity = Config::from_env()?.identity; // FLY_REGION and PRIMARY_REGION
/// let app = Router::new()
///     .route("/notes", get(|| async { "read here" }).post(|| async { "written in the primary region" }))
///     .layer(ReplayToPrimary::new(&identity)?);
/// # Ok(app)
/// # }
/// # app().unwrap();
/// ```
#[derive(Clone)]
pub struct ReplayToPrimary {
    region: Region,
    primary: Region,
    cookie_times: CookieTimes,
    writes: Writes,
    caught_up: Option<CaughtUp>,
    captures: Option<Captures>,
    /// Where the application of the primary region takes what is too large to be replayed.
    forwards_to: Option<Arc<str>>,
    /// How long Fly Proxy tries to reach the primary region, and how long a connection to it may take.
    timeout: Duration,
    patience: Patience,
}

impl ReplayToPrimary {
    /// The layer of an application in the region of `identity`, with its primary region.
    ///
    /// # Errors
    /// The primary region is another, and no region that Fly can have: on Fly, `PRIMARY_REGION` is not set, because
    /// fly.toml names no `primary_region`. No write could be replayed there.
    pub fn new(identity: &Identity) -> Result<Self, ConfigError> {
        let (region, primary) = (&identity.region, &identity.primary);
        if region != primary && !is_fly_region(primary) {
            let detail = format!(
                "\"{primary}\" is no region of Fly, and what writes in region \"{region}\" is to be replayed there; set \
                 primary_region in fly.toml"
            );
            return Err(PRIMARY_REGION.error(detail));
        }
        Ok(Self {
            region: region.clone(),
            primary: primary.clone(),
            cookie_times: CookieTimes {
                window: Duration::from_secs(5),
                longest: Duration::from_secs(60),
            },
            writes: Arc::new(|head| !head.method.is_safe()),
            caught_up: None,
            captures: None,
            forwards_to: None,
            timeout: Duration::from_secs(10),
            patience: Patience {
                stall: Duration::from_secs(10),
                arrival: Duration::from_secs(60),
            },
        })
    }

    /// Sets how long a client that wrote reads in the primary region, 5 s without this; zero for not at all. Whole seconds,
    /// rounded up: longer than changes take to reach the other regions.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.cookie_times.window = window;
        self
    }

    /// Replaces that time by a question: has the data here seen `token`, which the application gave as the header
    /// `rpc-consistency` with its answer to the write? It travels in a cookie of its own. The client reads in the primary
    /// region as long as the answer is no, and for `longest` at most, whatever cookie it sends.
    ///
    /// `caught_up` may wait a while for the data. For a write whose answer has no such header, the time decides.
    #[must_use]
    pub fn caught_up<F, Fut>(mut self, longest: Duration, caught_up: F) -> Self
    where
        F: Fn(ConsistencyToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.cookie_times.longest = longest;
        self.caught_up = Some(Arc::new(move |token| Box::pin(caught_up(token))));
        self
    }

    /// Sets which answers show that a read turned out to write, none without this: outside the primary region such an answer
    /// is thrown away, and the request replayed there. The application must have written nothing, as where its database is
    /// a copy that refuses writes, and have read the request's body, if it has one: this layer does not read it any more, and
    /// a proxy in between may see a reset connection in place of the answer.
    #[must_use]
    pub fn captures(
        mut self,
        captures: impl Fn(&response::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.captures = Some(Arc::new(captures));
        self
    }

    /// Sends writes that are too large to be replayed, or do not say how large they are, to the application of the primary
    /// region at `to`, such as `iad.my-app.internal:8080`, over the private network. The body is passed on as it comes; an
    /// answer may have 8 MiB.
    #[must_use]
    pub fn forwards_to(mut self, to: &str) -> Self {
        self.forwards_to = Some(to.into());
        self
    }

    /// Sets how long Fly Proxy tries to reach the primary region, and how long a connection there may take; 10 s without
    /// this.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long this waits for the body of a request that the application here does not get: until its next bytes, 10 s
    /// without this, and until its end, 60 s, where it is not sent on. The latter is also what the primary region may take to
    /// answer a request that is sent there, once it has its body, and before that to take the next bytes.
    #[must_use]
    pub fn body_timeouts(mut self, stall: Duration, arrival: Duration) -> Self {
        self.patience = Patience { stall, arrival };
        self
    }

    /// Sets which requests write; without this, all but those of a safe method, such as GET.
    #[must_use]
    pub fn writes(mut self, writes: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.writes = Arc::new(writes);
        self
    }
}

impl fmt::Debug for ReplayToPrimary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayToPrimary")
            .field("region", &self.region)
            .field("primary", &self.primary)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ReplayToPrimary {
    type Service = ReplayToPrimaryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ReplayToPrimaryService {
            inner,
            layer: Arc::new(self.clone()),
        }
    }
}

/// An application under [`ReplayToPrimary`].
#[derive(Clone, Debug)]
pub struct ReplayToPrimaryService<S> {
    inner: S,
    layer: Arc<ReplayToPrimary>,
}

impl<S, B, R> Service<Request<B>> for ReplayToPrimaryService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
    R: From<Bytes> + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The clone may not be ready; the one that is answers this request.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        Box::pin(answer(inner, Arc::clone(&self.layer), request))
    }
}

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
async fn answer<S, B, R>(
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
        Step::Replay(state) => match discard(body, layer.patience).await {
            Ok(size) if request_size(&head.uri, &head.headers, size) <= MAX_REQUEST => {
                layer.replay(state)
            }
            Ok(_) => layer.too_large(),
            Err(how) => layer.cut_short(how),
        },
        Step::Forward(to) => {
            let answered = forward(&to, layer.timeout, head, body, layer.patience).await;
            match answered {
                Some(answered) => answered.unwrap_or_else(|why| layer.failed(why)),
                None => layer.unreached(),
            }
        }
        Step::Refuse(refusal) => {
            let _ = discard(body, layer.patience).await;
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
        if writes
            && !was_passed_on(head)
            && !fits(head, body)
            && let Some(to) = &self.forwards_to
        {
            return Step::Forward(Arc::clone(to));
        }
        match self.refusal(head, body) {
            None if writes => Step::Replay("write"),
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
        let (wrote_untokened, token) = self.cookie_times.read(&head.headers, now);
        match (token, &self.caught_up) {
            _ if wrote_untokened => true,
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

    /// Why a request cannot be replayed in the primary region, as far as its head shows.
    fn refusal(&self, head: &Parts, body: &SizeHint) -> Option<Response<Bytes>> {
        if was_passed_on(head) {
            return Some(self.unreached());
        }
        let is_too_large = size(head, body.lower()) > MAX_REQUEST;
        is_too_large.then(|| self.too_large())
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

    fn cut_short(&self, how: Incomplete) -> Response<Bytes> {
        let primary = &self.primary;
        let detail = format!("this writes in region \"{primary}\", and {how}; nothing was written");
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

/// Whether a request came from another region already, or says so: it goes no further.
fn was_passed_on(head: &Parts) -> bool {
    was_replayed(&head.headers) || head.headers.contains_key(FORWARDED)
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
