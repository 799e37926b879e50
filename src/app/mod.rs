//! The app beside this instance, in any language, and the channel to it: its functions as it lists them, and calls of them
//! over plain HTTP. Knows nothing of the registry; which of the two has a function is decided by the executor.

mod answer;
mod channel;
mod list;

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa::ToSchema;

pub(crate) use self::list::Listing;
#[cfg(feature = "cli")]
pub(crate) use self::list::check;
use self::{
    channel::{Broken, Channel},
    list::{Asked, NoList, Watch},
};
use crate::{
    call::Call,
    config::{AppConfig, AppUrl},
    deadline::Deadline,
    declaration::Declaration,
    gate::{Gate, Gates},
    memory::Budget,
    name::{ConsistencyToken, FunctionName, InstanceId, RequestId},
    problem::{Code, Problem},
    reply::{Outcome, Returned},
    trace::{self, TRACEPARENT},
};

/// How many calls may wait for the list to be asked again.
const ASKS: usize = 1024;

/// The state of an app.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AppHealth {
    /// It has not given its list yet.
    Starting,
    /// It gave its list, and its functions are offered.
    Up,
    /// It does not answer.
    Down,
    /// It serves its list without checking `RPC_APP_TOKEN`: its functions are not offered.
    Open,
}

#[derive(Clone, Debug)]
pub(crate) struct AppStatus {
    pub(crate) health: AppHealth,
    /// Why it is not up.
    pub(crate) reason: Option<String>,
    /// Its functions, as last listed.
    pub(crate) listing: Arc<Listing>,
}

/// The outcome of a call in the app, and how long the app says that it waited for the call's consistency token.
type Answered = (Outcome, Option<Duration>);

/// A call that goes to the app when it is polled.
pub(crate) type InApp = BoxFuture<'static, Answered>;

#[derive(Debug)]
pub(crate) struct App {
    /// Beside which it runs.
    instance: InstanceId,
    channel: Channel,
    max_result: usize,
    gate: Arc<Gate>,
    status: watch::Sender<AppStatus>,
    /// Calls that wait until the list was asked for again.
    asks: mpsc::Sender<oneshot::Sender<Asked>>,
    /// Whether a warning about invalid consistency tokens was logged.
    warned: AtomicBool,
}

impl App {
    /// The app beside `instance` that `config` describes, whose list is asked for in `tasks` until `stop`; returns at once.
    pub(crate) fn start(
        instance: InstanceId,
        config: &AppConfig,
        max_result: usize,
        memory: Arc<Budget>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let (asks, asked) = mpsc::channel(ASKS);
        let app = Arc::new(Self {
            instance,
            channel: Channel::new(&config.url, config.token.clone(), memory),
            max_result,
            gate: Arc::new(Gate::new(config.concurrency)),
            status: watch::Sender::new(AppStatus {
                health: AppHealth::Starting,
                reason: None,
                listing: Arc::default(),
            }),
            asks,
            warned: AtomicBool::new(false),
        });
        let watch = Watch {
            app: Arc::clone(&app),
            allow_anonymous: config.allow_anonymous,
            asked,
            body: None,
            failures: 0,
            gone_since: None,
        };
        tasks.spawn(watch.run(stop));
        app
    }

    pub(crate) fn url(&self) -> &AppUrl {
        &self.channel.url
    }

    pub(crate) fn status(&self) -> AppStatus {
        self.status.borrow().clone()
    }

    /// Tells of the app's status: now, and each time that it changes.
    pub(crate) fn changes(&self) -> watch::Receiver<AppStatus> {
        let mut changes = self.status.subscribe();
        changes.mark_changed();
        changes
    }

    /// The functions that can be called now; none unless the app is up.
    pub(crate) fn offered(&self) -> Option<Arc<Listing>> {
        let status = self.status.borrow();
        (status.health == AppHealth::Up).then(|| Arc::clone(&status.listing))
    }

    /// A future that runs `call` under the id `request_id` until `deadline`, and the gates to pass first: the function's own
    /// before the app's, so that calls that wait for one function do not fill the app's.
    ///
    /// # Errors
    /// [`Code::FunctionUnknown`], [`Code::FunctionUnavailable`] or [`Code::InvalidArguments`].
    pub(crate) fn prepare(
        self: &Arc<Self>,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
    ) -> Result<(InApp, Gates), Problem> {
        let name = &call.name;
        let status = self.status.borrow();
        let Some(declared) = status.offered(name) else {
            return Err(status.missing(name, &self.instance));
        };
        let args = call
            .args
            .in_order(declared.params.as_deref())
            .map_err(|misfit| Problem::new(Code::InvalidArguments, format!("{name}: {misfit}")))?;
        let own = declared.concurrency.and(status.listing.gates.get(name));
        let own = own.map(Arc::clone);
        let prepared = AppCall {
            app: Arc::clone(self),
            name: name.clone(),
            path: format!("{}/{}", self.channel.url.base, name.path()),
            body: Bytes::from(format!("{{\"args\":{}}}", args.raw())),
            headers: headers(call, request_id),
            deadline,
            was_sent: AtomicBool::new(false),
        };
        Ok((prepared.run().boxed(), [own, Some(Arc::clone(&self.gate))]))
    }

    /// Asks for the list again.
    async fn ask_again(&self) -> Asked {
        let (done, wait) = oneshot::channel();
        // When too many calls wait, the sender is dropped here, which ends the wait below.
        let _ = self.asks.try_send(done);
        wait.await
            .unwrap_or_else(|_| Err(NoList::Unusable("too many calls wait for it".to_owned())))
    }

    /// Has the list asked for soon, because the app does not seem to be there; does not wait for it.
    fn doubt(&self) {
        let (nobody, _) = oneshot::channel();
        let _ = self.asks.try_send(nobody);
    }
}

impl fmt::Display for AppHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The word in JSON.
        self.serialize(f)
    }
}

impl AppStatus {
    /// What the function `name` declares, if it can be called now.
    fn offered(&self, name: &FunctionName) -> Option<&Declaration> {
        let listed = self.listing.functions.get(name);
        listed.filter(|_| self.health == AppHealth::Up)
    }

    /// Why the function `name` cannot be called on `instance`.
    pub(crate) fn missing(&self, name: &FunctionName, instance: &InstanceId) -> Problem {
        let is_known = self.listing.functions.contains_key(name);
        let why = match self.health {
            AppHealth::Starting => "the app has not listed its functions yet",
            AppHealth::Down if is_known => "the app does not answer",
            AppHealth::Open if is_known => "the app serves its list without checking RPC_APP_TOKEN",
            AppHealth::Up | AppHealth::Down | AppHealth::Open => {
                return Problem::no_function(name, instance);
            }
        };
        Problem::new(Code::FunctionUnavailable, format!("{name}: {why}"))
    }
}

/// A call, ready to go to the app.
struct AppCall {
    app: Arc<App>,
    name: FunctionName,
    path: String,
    body: Bytes,
    headers: HeaderMap,
    deadline: Deadline,
    /// Whether part of the request may have left.
    was_sent: AtomicBool,
}

impl AppCall {
    async fn run(self) -> Answered {
        // Dropped at the deadline, which closes the connection: most servers then cancel the request.
        let answered = self.deadline.bound(pin!(self.answer())).await;
        answered.unwrap_or_else(|| {
            let late = match self.was_sent.load(Ordering::Relaxed) {
                true => Problem::still_running(&self.name),
                false => Problem::not_started(&self.name),
            };
            (Err(late), None)
        })
    }

    async fn answer(&self) -> Answered {
        let limit = self.app.max_result;
        let channel = &self.app.channel;
        let exchanged = channel.exchange(limit, &self.was_sent, || self.request());
        let answer = match exchanged.await {
            Ok(answer) => answer,
            Err(broken) => {
                self.app.doubt();
                let code = match broken {
                    Broken::Lost(_) => Code::FunctionLost,
                    Broken::Unreachable(_) => Code::FunctionUnavailable,
                };
                let problem = Problem::new(code, format!("{}: {broken}", self.name));
                return (Err(problem), None);
            }
        };
        let outcome = match answer::outcome(&self.name, &answer, limit) {
            Err(otherwise) if answer::may_be_missing(&answer) => Err(self.missing(otherwise).await),
            outcome => outcome,
        };
        let said = self.consistency(&answer.headers);
        let waited = answer::waited(&answer.headers);
        (Returned::with_consistency(outcome, said), waited)
    }

    /// What the app says of its data; an invalid token is left out, and warned about once.
    fn consistency(&self, headers: &HeaderMap) -> Option<ConsistencyToken> {
        answer::consistency(headers).unwrap_or_else(|()| {
            if !self.app.warned.swap(true, Ordering::Relaxed) {
                let (function, rule) = (&self.name, ConsistencyToken::RULE);
                tracing::warn!(
                    %function,
                    "the app's header rpc-consistency is ignored: it must be given once, and be {rule}"
                );
            }
            None
        })
    }

    /// The app answered as one that does not have the function, or does not let this instance in: its list shows whether
    /// that was the function itself, whose answer is `otherwise`.
    async fn missing(&self, otherwise: Problem) -> Problem {
        // A 404 comes from the function, or from an app without it: whether the function ran depends on which. That very list
        // says it: the app may be down, or not be offered any more, by the time that this is read.
        match self.app.ask_again().await {
            Ok(listing) if listing.functions.contains_key(&self.name) => otherwise,
            Ok(_) => Problem::no_function(&self.name, &self.app.instance),
            Err(NoList::Refused(_)) => {
                let detail = format!("{}: the app refuses the call and its list", self.name);
                Problem::new(Code::FunctionUnavailable, detail)
            }
            Err(NoList::Unreachable(_) | NoList::Unusable(_)) => {
                let detail = format!("{}: the app refused, and then gave no list", self.name);
                answer::lost(detail)
            }
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        if let Some(token) = &self.app.channel.token {
            headers.insert(header::AUTHORIZATION, token.bearer());
        }
        // The deadline may pass at this very moment; the call then ends anyway.
        let left = self.deadline.remaining_ms(Instant::now()).unwrap_or(1);
        headers.insert("rpc-timeout-ms", HeaderValue::from(left));
        request
    }
}

/// The headers of a call that stay the same however often it is sent.
fn headers(call: &Call, request_id: &RequestId) -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    let trace = trace::current().or(call.trace);
    let words = [
        ("x-request-id", Some(request_id.to_string())),
        (
            "idempotency-key",
            call.key.as_ref().map(ToString::to_string),
        ),
        ("rpc-after", call.after.as_ref().map(ToString::to_string)),
        (TRACEPARENT, trace.map(|trace| trace.to_string())),
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in words {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::CONTENT_TYPE, json.clone());
    headers.insert(header::ACCEPT, json);
    headers
}
