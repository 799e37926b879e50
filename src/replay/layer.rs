//! A tower layer for any HTTP application that writes in one region of Fly and reads in all: what writes is replayed in
//! the primary region, whichever region the request reached first.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, RETRY_AFTER, SET_COOKIE},
    request::Parts,
};
use http_body::Body;
use serde::Serialize;
use tower::{Layer, Service};

use super::{
    MAX_REQUEST, Machines, REPLAY, Replay,
    body::{Discarded, discard},
    is_fly_region, request_size, was_replayed,
};
use crate::{
    config::{ConfigError, Identity, settings::PRIMARY_REGION},
    json,
    region::Region,
};

/// The cookie of a client that wrote: until when, in seconds since 1970, it reads in the primary region.
const THRESHOLD: &str = "fly-replay-threshold";
/// How long Fly Proxy tries to reach the primary region.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Replays requests that write in the primary region, by the answer `fly-replay` to Fly Proxy; for axum and every other
/// service of tower.
///
/// A request that writes runs in the primary region or not at all: the application is not asked elsewhere. Every method
/// but GET, HEAD, OPTIONS and TRACE writes, unless [`ReplayToPrimary::writes`] says otherwise. After a write, a cookie
/// sends the same client's reads to the primary region too, for 5 s or what [`ReplayToPrimary::window`] says, so that
/// it reads what it wrote.
///
/// | request outside the primary region | answer |
/// |---|---|
/// | reads | the application's |
/// | writes | 409 with `fly-replay`, on which Fly Proxy sends it to the primary region |
/// | writes, above 1 MB, which Fly Proxy does not replay | 413; its client sends it with `fly-prefer-region` |
/// | writes, and was replayed already or says so | 503 with `retry-after`: the primary region was not reached |
///
/// The last row ends every loop. Reads after a write are answered here in the last two cases.
///
/// The body of a request that is answered so is read first and thrown away, up to 10 MB and for up to 60 s (10 s without
/// a byte): else a proxy in between may see a reset connection in place of the answer. One that does not arrive whole is
/// answered with 400.
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
#[derive(Clone, Debug)]
pub struct ReplayToPrimary {
    rules: Rules,
}

/// Whether the request of a head writes.
type Writes = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

#[derive(Clone)]
struct Rules {
    region: Region,
    primary: Region,
    window: Duration,
    writes: Writes,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("region", &self.region)
            .field("primary", &self.primary)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl ReplayToPrimary {
    /// The layer of an application in the region of `identity`, with its primary region.
    ///
    /// # Errors
    /// The primary region is another, and no region that Fly can have: on Fly, `PRIMARY_REGION` is not set, because
    /// fly.toml names no `primary_region`. No write could be replayed there.
    pub fn new(identity: &Identity) -> Result<Self, ConfigError> {
        let Identity {
            region, primary, ..
        } = identity;
        if region != primary && !is_fly_region(primary) {
            let detail = format!(
                "\"{primary}\" is no region of Fly, and what writes in region \"{region}\" is to be replayed there; set \
                 primary_region in fly.toml"
            );
            return Err(PRIMARY_REGION.error(detail));
        }
        let rules = Rules {
            region: region.clone(),
            primary: primary.clone(),
            window: Duration::from_secs(5),
            writes: Arc::new(|head| !head.method.is_safe()),
        };
        Ok(Self { rules })
    }

    /// The same with another time for which a client that wrote reads in the primary region; zero for none. Whole seconds,
    /// rounded up: longer than changes take to reach the other regions.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.rules.window = window;
        self
    }

    /// The same with another rule of what writes.
    #[must_use]
    pub fn writes(mut self, writes: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.rules.writes = Arc::new(writes);
        self
    }
}

impl<S> Layer<S> for ReplayToPrimary {
    type Service = ReplayToPrimaryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ReplayToPrimaryService {
            inner,
            rules: self.rules.clone(),
        }
    }
}

/// An application under [`ReplayToPrimary`].
#[derive(Clone, Debug)]
pub struct ReplayToPrimaryService<S> {
    inner: S,
    rules: Rules,
}

impl<S, B, R> Service<Request<B>> for ReplayToPrimaryService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: From<Bytes> + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        match self.rules.step(&head, now()) {
            Step::Run => Box::pin(self.inner.call(Request::from_parts(head, body))),
            Step::RunWrite(cookie) => {
                let answered = self.inner.call(Request::from_parts(head, body));
                Box::pin(async move {
                    let mut response = answered.await?;
                    response.headers_mut().append(SET_COOKIE, cookie);
                    Ok(response)
                })
            }
            Step::Replay(state) => {
                let rules = self.rules.clone();
                let head_size = request_size(&head.uri, &head.headers, 0);
                Box::pin(async move {
                    let answer = match discard(body).await {
                        Discarded::Whole(size) if head_size + size <= MAX_REQUEST => {
                            rules.replay(state)
                        }
                        Discarded::Whole(_) | Discarded::TooLarge => rules.too_large(),
                        Discarded::Cut => rules.cut_short(),
                    };
                    Ok(answer.map(R::from))
                })
            }
            Step::Refuse(answer) => Box::pin(async move {
                discard(body).await;
                Ok(answer.map(R::from))
            }),
        }
    }
}

/// What becomes of one request.
#[derive(Debug)]
enum Step {
    /// The application answers it.
    Run,
    /// The application answers it, and the client gets a cookie.
    RunWrite(HeaderValue),
    /// Fly Proxy is asked to replay it with this `state`, once its body turns out to be whole and small enough.
    Replay(&'static str),
    /// Neither, for a reason that its head shows.
    Refuse(Response<Bytes>),
}

impl Rules {
    fn step(&self, head: &Parts, now: f64) -> Step {
        let writes = (self.writes)(head);
        if self.region == self.primary {
            return match self.cookie(now) {
                Some(cookie) if writes => Step::RunWrite(cookie),
                _ => Step::Run,
            };
        }
        if !writes && !reads_in_primary(&head.headers, now) {
            return Step::Run;
        }
        match self.refusal(head) {
            None => Step::Replay(if writes { "write" } else { "threshold" }),
            Some(refusal) if writes => Step::Refuse(refusal),
            Some(_) => Step::Run,
        }
    }

    /// Why a request cannot be replayed, if so.
    fn refusal(&self, head: &Parts) -> Option<Response<Bytes>> {
        let primary = &self.primary;
        if was_replayed(&head.headers) {
            let detail = format!(
                "this writes in region \"{primary}\", which was not reached; nothing was written"
            );
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, &detail);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(1));
            return Some(response);
        }
        if request_size(&head.uri, &head.headers, length(&head.headers)) > MAX_REQUEST {
            return Some(self.too_large());
        }
        None
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
        let detail = format!(
            "this writes in region \"{}\", and its body did not arrive whole within 60 s; nothing was written",
            self.primary
        );
        refuse(StatusCode::BAD_REQUEST, &detail)
    }

    fn replay(&self, state: &str) -> Response<Bytes> {
        let asks = Replay {
            machines: Machines::Of(&self.primary, None),
            timeout: TIMEOUT,
            state,
        };
        let detail = format!(
            "Fly Proxy is to replay this request in region \"{}\"",
            self.primary
        );
        let mut response = refuse(StatusCode::CONFLICT, &detail);
        response.headers_mut().insert(REPLAY, asks.header());
        response
    }

    /// The cookie of a client that writes now.
    fn cookie(&self, now: f64) -> Option<HeaderValue> {
        let seconds = self.window.as_secs_f64().ceil();
        let cookie = format!(
            "{THRESHOLD}={:.3}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax",
            now + seconds
        );
        HeaderValue::try_from(cookie).ok().filter(|_| seconds > 0.0)
    }
}

/// Whether a client wrote so recently that it reads in the primary region.
fn reads_in_primary(headers: &HeaderMap, now: f64) -> bool {
    let cookies = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut cookies = cookies.flat_map(|cookies| cookies.split(';'));
    cookies.any(|cookie| {
        let threshold = cookie
            .trim()
            .strip_prefix(THRESHOLD)
            .and_then(|rest| rest.strip_prefix('='));
        threshold.is_some_and(|threshold| {
            threshold
                .parse::<f64>()
                .is_ok_and(|threshold| threshold > now)
        })
    })
}

/// The bytes of a body, as far as the head tells.
fn length(headers: &HeaderMap) -> usize {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    length.map_or(0, |length| length.parse().unwrap_or(usize::MAX / 2))
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// A problem document (RFC 9457).
fn refuse(status: StatusCode, detail: &str) -> Response<Bytes> {
    #[derive(Serialize)]
    struct Document<'a> {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'a str,
    }
    let document = Document {
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
