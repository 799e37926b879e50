//! What the commands that call an instance share: where it is, and a request to it that fails in words.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use reqwest::Url;
use serde::de::DeserializeOwned;

use super::{
    Failure,
    advice::{self, Asked},
    exchange::{Unanswered, exchange},
    print, say,
};
use crate::{
    client, config,
    http::Accepted,
    problem::Code,
    reply::ProblemDocument,
    telemetry::{printable, printable_json},
    token::Token,
};

/// How long an answer that only tells may take.
const TELLING: Duration = Duration::from_secs(10);

/// Which instance to ask.
#[derive(Args)]
pub(super) struct Endpoint {
    /// The instance to ask [variable: `FLY_RPC_URL`] [default: `http://127.0.0.1:8080`]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Which instance to ask, and how to show what it says.
#[derive(Args)]
pub(super) struct AskArgs {
    #[command(flatten)]
    pub(super) endpoint: Endpoint,
    /// Print the answer as it came, as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What an instance answered.
pub(super) struct Answer {
    status: StatusCode,
    body: Bytes,
    /// What it was asked with, for the advice.
    pub(super) asked: Asked,
}

impl Endpoint {
    /// What the instance answers within `timeout` to `request`, whose URI is a path.
    pub(super) async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let base = self.base()?;
        let token = config::client_token().map_err(|error| Failure::Usage(error.to_string()))?;
        let uri = format!("{base}{}", request.uri());
        *request.uri_mut() = uri
            .parse()
            .map_err(|error| Failure::Usage(format!("{uri:?} is no URL to ask: {error}")))?;
        request.headers_mut().extend(authorization(token.as_ref()));
        let (status, body) = exchange(request, timeout)
            .await
            .map_err(|error| Failure::Failed(unanswered(&base, error)))?;
        Ok(Answer {
            status,
            body,
            asked: Asked {
                with_token: token.is_some(),
                ..Asked::default()
            },
        })
    }

    /// What the instance answers to `GET path`.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        let request = Request::get(path).body(Full::default());
        self.ask(request?, TELLING).await
    }

    /// The URL that paths are appended to.
    fn base(&self) -> Result<String, Failure> {
        let (setting, text) = match &self.url {
            Some(url) => ("--url", url.clone()),
            None => ("FLY_RPC_URL", config::default_url()),
        };
        let wrong = |what| {
            let hint = "write for example http://127.0.0.1:8080";
            Failure::Usage(format!("{setting}: {text:?} {what}; {hint}"))
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

/// The headers of a request that bears `token`, marked so that no log shows it; none without one.
fn authorization(token: Option<&Token>) -> HeaderMap {
    let bearing = |token: &Token| {
        // The alphabet of tokens is one of header values.
        let mut value = HeaderValue::try_from(token.bearer()).ok()?;
        value.set_sensitive(true);
        Some((AUTHORIZATION, value))
    };
    token.and_then(bearing).into_iter().collect()
}

/// Why there is no answer: nothing can have happened without a connection, and nobody knows after it.
fn unanswered(base: &str, error: Unanswered) -> String {
    let may_have_run = "what was asked may have been done";
    match error {
        Unanswered::NoConnection(error) => format!(
            "cannot reach {base}: {}; is an instance running there? see --url and FLY_RPC_URL",
            client::chain(&*error)
        ),
        #[cfg(feature = "https")]
        Unanswered::NoTls(error) => format!("cannot reach {base}: {}", client::chain(&error)),
        Unanswered::TooLate(timeout) => {
            format!("no answer from {base} within {timeout:?}; {may_have_run}")
        }
        Unanswered::Cut(error) => {
            let cause = client::chain(&*error);
            format!("no answer from {base}: {cause}; {may_have_run}")
        }
        Unanswered::TooLong(limit) => {
            format!("the answer from {base} is longer than {limit} bytes; {may_have_run}")
        }
    }
}

impl Answer {
    /// Prints the answer as it came; a problem is a failure all the same.
    pub(super) fn print_json(&self) -> Result<(), Failure> {
        print(&printable_json(&String::from_utf8_lossy(&self.body)))?;
        if self.status.is_success() {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }

    /// The document of a call that was admitted and goes on; `None` for another answer.
    pub(super) fn accepted(&self) -> Option<Accepted> {
        let is_accepted = self.status == StatusCode::ACCEPTED;
        is_accepted.then(|| self.found()).flatten()
    }

    /// What went wrong, as far as the answer says so.
    pub(super) fn code(&self) -> Option<Code> {
        let problem: ProblemDocument = self.found()?;
        Some(problem.code)
    }

    /// The document in the answer; `None` where that is another.
    pub(super) fn found<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The document in the answer; a problem is told in words.
    pub(super) fn document<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let unexpected = || {
            Failure::Failed(format!(
                "the answer is not one of fly-rpc: status {}",
                self.status
            ))
        };
        if self.status == StatusCode::OK {
            return serde_json::from_slice(&self.body).map_err(|_| unexpected());
        }
        let problem: ProblemDocument =
            serde_json::from_slice(&self.body).map_err(|_| unexpected())?;
        tell(&problem, &self.asked);
        Err(Failure::Told)
    }
}

fn tell(problem: &ProblemDocument, asked: &Asked) {
    say(&format!(
        "fly-rpc: {}: {}",
        problem.code,
        printable(&problem.detail)
    ));
    if let Some(error) = &problem.error {
        let (kind, message) = (printable(&error.kind), printable(&error.message));
        say(&format!("  error: {kind}: {message}"));
        if let Some(data) = &error.data {
            say(&format!("  data: {}", printable(data.get())));
        }
    }
    say(&format!(
        "  executed: {} · request {}",
        problem.executed, problem.meta.request_id
    ));
    say(&format!(
        "  next: {}",
        advice::next(problem.code, problem.executed, asked)
    ));
}
