//! A tower layer for any HTTP application that writes in one region of Fly and reads in all: what writes is replayed in
//! the primary region, whichever region the request reached first. What becomes of a request is in `rules.rs`.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, request::Parts, response};
use http_body::Body;
use tower::{Layer, Service};

use super::{body::Patience, cookie::CookieTimes, is_fly_region, rules::answer};
use crate::{
    config::{ConfigError, Identity, settings::PRIMARY_REGION},
    name::ConsistencyToken,
    region::Region,
};

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
    pub(super) region: Region,
    pub(super) primary: Region,
    pub(super) cookie_times: CookieTimes,
    pub(super) writes: Writes,
    pub(super) caught_up: Option<CaughtUp>,
    pub(super) captures: Option<Captures>,
    /// Where the application of the primary region takes what is too large to be replayed.
    pub(super) forwards_to: Option<Arc<str>>,
    /// How long Fly Proxy tries to reach the primary region, and how long a connection to it may take.
    pub(super) timeout: Duration,
    pub(super) patience: Patience,
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
    /// a copy that refuses writes.
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
