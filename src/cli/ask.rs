//! What the commands that call an instance share: its address, one request to it on a connection of its own, and how a
//! failure is reported, with what to do about it. No proxy and no redirect: either would hand the user's token to another host.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{
    HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::{AUTHORIZATION, HOST},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use reqwest::Url;
use serde::de::DeserializeOwned;
use tokio::time;
#[cfg(feature = "https")]
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

#[cfg(feature = "https")]
use super::tls;
use super::{Failure, USAGE, print, say};
use crate::{
    config::{self, settings::shown},
    http::documents::Accepted,
    problem::{Code, Executed, Problem, with_causes},
    reply::ProblemDocument,
    telemetry::{printable, printable_json},
};

/// How long the answer to a `GET` may take.
const READING: Duration = Duration::from_secs(10);
/// How long a connection may take, and TLS on it.
const CONNECT: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The id of the request, where it has one: the log of the instance has what became of it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Ends the account of a repeat, for which nothing ran this time.
pub(super) const EARLIER: &str = " · outcome of an earlier call";

/// Which instance to ask, and how to show what it says.
#[derive(Args)]
pub(super) struct AskArgs {
    /// The instance to ask [variable: `FLY_RPC_URL`] [default: `http://127.0.0.1:8080`]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Print the answer as it came, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) struct HttpAnswer {
    base: String,
    status: StatusCode,
    body: Bytes,
    with_token: bool,
    /// What to do next about a call that may have run.
    pub(super) after_maybe: &'static str,
}

impl AskArgs {
    /// What the instance answers within `timeout` to `request`, whose URI is a path.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<HttpAnswer, Failure> {
        let base = self.base()?;
        let token = config::token("FLY_RPC_TOKEN")?;
        let uri = format!("{base}{}", request.uri());
        let no_url = |error| Failure::Usage(format!("{uri:?} is no URL to ask: {error}"));
        let uri: Uri = uri.parse().map_err(no_url)?;
        // As a server itself is asked: the target is the path, and `Host` has the rest (RFC 9112, section 3.2.1).
        let host = uri.authority().map_or("", |host| host.as_str());
        let host = HeaderValue::try_from(host).map_err(http::Error::from)?;
        request.headers_mut().insert(HOST, host);
        *request.uri_mut() = uri
            .path_and_query()
            .cloned()
            .map(Uri::from)
            .unwrap_or_default();
        if let Some(token) = &token {
            request.headers_mut().insert(AUTHORIZATION, token.bearer());
        }
        let (status, body) = exchange(&base, uri, request, timeout).await?;
        Ok(HttpAnswer {
            base,
            status,
            body,
            with_token: token.is_some(),
            after_maybe: "it may have run: call again only if it may run twice, then with --idempotent",
        })
    }

    pub(super) async fn get(&self, path: &str) -> Result<HttpAnswer, Failure> {
        let request = Request::get(path).body(Full::default());
        self.send(request?, READING).await
    }

    /// The URL that paths are appended to.
    fn base(&self) -> Result<String, Failure> {
        let (setting, text) = match &self.url {
            Some(url) => ("--url", url.clone()),
            None => ("FLY_RPC_URL", config::default_url()),
        };
        let wrong = |what| {
            let hint = "write for example http://127.0.0.1:8080";
            Failure::Usage(format!("{setting}: {} {what}; {hint}", shown(&text)))
        };
        let url = Url::parse(&text).map_err(|_| wrong("is no URL"))?;
        match url.scheme() {
            "https" if !cfg!(feature = "https") => {
                Err(wrong("needs TLS, which this program was built without"))
            }
            "http" | "https" if is_base(&url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
            "http" | "https" => Err(wrong("has more than a host, a port and a path")),
            _ => Err(wrong("is no http or https URL")),
        }
    }
}

/// Whether a path can be appended to `url`, and nothing in it would be left out.
fn is_base(url: &Url) -> bool {
    let is_anonymous = url.username().is_empty() && url.password().is_none();
    is_anonymous && url.query().is_none() && url.fragment().is_none()
}

/// Sends `request` over a connection to `uri`, and waits at most `timeout` for the answer. Without a connection nothing was
/// done; once the request was sent, it may have been.
async fn exchange(
    base: &str,
    uri: Uri,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), Failure> {
    let unreachable = |why| Failure::Failed(format!("cannot reach {base}: {why}"));
    // By default it refuses https URLs; TLS is added to its socket below.
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    let socket = match time::timeout(CONNECT, connector.oneshot(uri.clone())).await {
        Ok(connected) => connected.map_err(|error| with_causes(&error)),
        Err(_) => Err(format!("no connection within {CONNECT:?}")),
    };
    let hint = "is an instance running there? see --url and FLY_RPC_URL";
    let socket = socket.map_err(|why| unreachable(format!("{why}; {hint}")))?;
    let socket = socket.into_inner();
    #[cfg(feature = "https")]
    let socket = match uri.scheme_str() {
        Some("https") => {
            let host = uri.host().unwrap_or_default();
            let secured = time::timeout(CONNECT, tls::secure(socket, host)).await;
            let secured = secured.unwrap_or_else(|_| Err(format!("no TLS within {CONNECT:?}")));
            Either::Right(secured.map_err(unreachable)?)
        }
        _ => Either::Left(socket),
    };
    let id = request.headers().get(REQUEST_ID);
    let id = id.and_then(|id| id.to_str().ok());
    let id = id.map_or(String::new(), |id| format!(" (request {id})"));
    let may_have_run = format!("what was asked may have been done{id}");
    let sent = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        Ok::<_, Box<dyn Error + Send + Sync>>((status, body.collect().await?.to_bytes()))
    };
    Err(Failure::Failed(match time::timeout(timeout, sent).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            format!("the answer from {base} is longer than {MAX_ANSWER} bytes; {may_have_run}")
        }
        Ok(Err(error)) => {
            let is_no_http =
                |error: &hyper::Error| error.is_parse() || error.is_incomplete_message();
            let hint = match error.downcast_ref().is_some_and(is_no_http) {
                true => try_https(base),
                false => String::new(),
            };
            let why = with_causes(&*error);
            format!("no answer from {base}: {why}; {may_have_run}{hint}")
        }
        Err(_) => format!("no answer from {base} within {timeout:?}; {may_have_run}"),
    }))
}

/// The hint where no HTTP came back: a server that speaks TLS answers a plain request with an alert, nothing, or 400.
fn try_https(base: &str) -> String {
    let rest = base.strip_prefix("http://");
    rest.map_or(String::new(), |rest| {
        format!("; if this port speaks TLS, try https://{rest}")
    })
}

impl HttpAnswer {
    /// Prints the answer as it came; a problem is a failure all the same.
    pub(super) fn print_json(&self) -> Result<(), Failure> {
        print(&printable_json(&String::from_utf8_lossy(&self.body)))?;
        match self.status.is_success() {
            true => Ok(()),
            false => Err(self.failure()),
        }
    }

    /// The document of a call that was admitted and goes on; `None` for another answer.
    pub(super) fn accepted(&self) -> Option<Accepted> {
        let is_accepted = self.status == StatusCode::ACCEPTED;
        is_accepted.then(|| self.found()).flatten()
    }

    /// The code of the problem, where the answer is one.
    pub(super) fn code(&self) -> Option<Code> {
        self.found().map(|it: ProblemDocument| it.problem.code)
    }

    /// The body as a document of this type; `None` where it is another.
    pub(super) fn found<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body of an answer with status 200 as a `T`. Of any other, the problem is printed.
    pub(super) fn document<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let status = self.status;
        let unexpected = || {
            let hint = match status {
                StatusCode::BAD_REQUEST => try_https(&self.base),
                _ => String::new(),
            };
            Failure::Failed(format!(
                "the answer is not one of fly-rpc: status {status}{hint}"
            ))
        };
        if status == StatusCode::OK {
            return self.found().ok_or_else(unexpected);
        }
        self.report(&self.found().ok_or_else(unexpected)?);
        Err(self.failure())
    }

    /// The failure that the answer is: of a call, or of who asked for one that no instance may take.
    fn failure(&self) -> Failure {
        Failure::Reported(match self.code() {
            Some(Code::InvalidRequest) => USAGE,
            _ => 1,
        })
    }

    fn report(&self, ProblemDocument { problem, meta }: &ProblemDocument) {
        let (code, executed) = (problem.word(), problem.executed);
        say(&format!("fly-rpc: {code}: {}", printable(&problem.detail)));
        if let Some(error) = &problem.error {
            let (kind, message) = (printable(&error.kind), printable(&error.message));
            say(&format!("  error: {kind}: {message}"));
            if let Some(data) = &error.data {
                say(&format!("  data: {}", printable(data.get())));
            }
        }
        let request = &meta.request_id;
        let replayed = if meta.replayed { EARLIER } else { "" };
        say(&format!(
            "  executed: {executed} · request {request}{replayed}"
        ));
        say(&format!("  next: {}", self.next(problem)));
    }

    fn next(&self, problem: &Problem) -> &'static str {
        let executed = problem.executed;
        match problem.code {
            Code::InvalidJson
            | Code::InvalidRequest
            | Code::BodyTooLarge
            | Code::TargetTooLong
            | Code::HeadersTooLarge => "correct the request; nothing ran",
            Code::InvalidRegion | Code::RegionUnknown => {
                "correct the region; `fly-rpc regions` lists those that are known"
            }
            Code::InstanceUnknown => "`fly-rpc regions` lists the instances of each region",
            Code::FunctionUnknown => {
                "`fly-rpc explain REGION FUNCTION` shows which instances have it; `fly-rpc functions` lists those of the instance asked"
            }
            Code::InvalidArguments => "correct the arguments; nothing ran",
            Code::Unauthenticated if self.with_token => {
                "the instance does not know the token in FLY_RPC_TOKEN; its RPC_CLIENT_TOKENS lists those that it knows"
            }
            Code::Unauthenticated => {
                "set FLY_RPC_TOKEN to a client's token, one of RPC_CLIENT_TOKENS of the instance"
            }
            Code::Forbidden => "ask whoever gave out the token to allow it",
            Code::NotFound
            | Code::MethodNotAllowed
            | Code::UnsupportedMediaType
            | Code::WrongRegion
            | Code::LoopDetected => "is the URL that of a fly-rpc instance of this release?",
            Code::Replay => {
                "nothing ran: the instance is not behind Fly Proxy; set its RPC_ROUTE to proxy or auto"
            }
            Code::IdempotencyMismatch => "use another key for another call",
            Code::FunctionFailed => "it ran: its own documentation says what to do about the error",
            Code::ResultNotKept => "it ran: its result is not kept for a repeat",
            Code::FunctionPanicked => "it ran: the log of the instance has the cause",
            Code::Internal => {
                "a bug of ours: report the request id, and what the log says about it"
            }
            Code::Overloaded if executed == Executed::Maybe => {
                "it may have run: send it again with the same key in a moment"
            }
            Code::PeerUnreachable
            | Code::RegionUnavailable
            | Code::FunctionUnavailable
            | Code::DiscoveryPending
            | Code::Draining
            | Code::Overloaded => "nothing ran: call again in a moment",
            Code::DeadlineExceeded if executed == Executed::No => {
                "nothing ran: call again, with a longer --timeout"
            }
            Code::PeerLost | Code::FunctionLost | Code::DeadlineExceeded if problem.replayed => {
                "it may have run, and that stays so under this key for ten minutes: read what it did"
            }
            Code::PeerLost | Code::FunctionLost | Code::DeadlineExceeded => self.after_maybe,
        }
    }
}
