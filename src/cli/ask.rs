//! What the commands that call an instance share: where it is, and a request to it that fails in words.

use std::time::Duration;

use clap::Args;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::{
    Failure,
    advice::{self, Asked},
    print, say,
};
use crate::{
    client::{self, BodyError},
    config,
    problem::Code,
    reply::ProblemDocument,
    telemetry::{printable, printable_json},
};

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
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
    body: Vec<u8>,
    /// What it was asked with, for the advice.
    pub(super) asked: Asked,
}

impl Endpoint {
    /// What the instance answers within `timeout` to the request that `build` makes of a client and the URL of `path`.
    pub(super) async fn ask(
        &self,
        path: &str,
        timeout: Duration,
        build: impl FnOnce(&reqwest::Client, String) -> RequestBuilder,
    ) -> Result<Answer, Failure> {
        let base = self.base()?;
        let token = config::client_token().map_err(|error| Failure::Usage(error.to_string()))?;
        let failed = |error: reqwest::Error| unanswered(&base, error, timeout);
        let client = client::builder(CONNECT)
            .default_headers(client::authorization(token.as_ref()))
            .timeout(timeout)
            .build()
            .map_err(failed)?;
        let response = build(&client, format!("{base}{path}"))
            .send()
            .await
            .map_err(failed)?;
        let status = response.status();
        let body = client::body(response, MAX_ANSWER).await;
        Ok(Answer {
            status,
            body: body.map_err(|error| match error {
                BodyError::Cut(error) => failed(error),
                BodyError::TooLong(_) => Failure::Failed(error.to_string()),
            })?,
            asked: Asked {
                with_token: token.is_some(),
                ..Asked::default()
            },
        })
    }

    /// What the instance answers to `GET path`.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(path, TELLING, |client, url| client.get(url)).await
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
            "http" if url.query().is_none() && url.fragment().is_none() => {
                Ok(url.as_str().trim_end_matches('/').to_owned())
            }
            "http" => Err(wrong("has more than a host, a port and a path")),
            "https" => Err(wrong("needs TLS, which this program does not speak")),
            _ => Err(wrong("is no http URL")),
        }
    }
}

/// Why there is no answer: nothing can have happened without a connection, and nobody knows after it.
fn unanswered(base: &str, error: reqwest::Error, timeout: Duration) -> Failure {
    let error = error.without_url();
    let cause = client::chain(&error);
    Failure::Failed(if error.is_connect() {
        format!(
            "cannot reach {base}: {cause}; is an instance running there? see --url and FLY_RPC_URL"
        )
    } else if error.is_timeout() {
        format!("no answer from {base} within {timeout:?}; what was asked may have been done")
    } else {
        format!("no answer from {base}: {cause}; what was asked may have been done")
    })
}

impl Answer {
    /// Prints the answer as it came; a problem is a failure all the same.
    pub(super) fn print_json(&self) -> Result<(), Failure> {
        print(&printable_json(&String::from_utf8_lossy(&self.body)))?;
        if self.status == StatusCode::OK {
            Ok(())
        } else {
            Err(Failure::Told)
        }
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
