//! What the commands that call an instance share: where it is, and a request to it that fails in words.

use std::time::Duration;

use clap::Args;
use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;

use super::{Failure, print, say};
use crate::{client, config, reply::ProblemDocument};

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;

/// Which instance to ask.
#[derive(Args)]
pub(super) struct Endpoint {
    /// The instance to ask [variable: `FLY_RPC_URL`]
    #[arg(long, value_name = "URL", default_value_t = config::default_url())]
    url: String,
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
}

impl Endpoint {
    /// What the instance answers to the request that `build` makes of a client and the URL of `path`.
    pub(super) async fn ask(
        &self,
        path: &str,
        build: impl FnOnce(&reqwest::Client, String) -> RequestBuilder,
    ) -> Result<Answer, Failure> {
        let failed = |error: reqwest::Error| {
            let cause = client::chain(&error.without_url());
            let hint = "is an instance running there? see --url and FLY_RPC_URL";
            Failure::Failed(format!("cannot reach {}: {cause}; {hint}", self.url))
        };
        let client = client::builder(Duration::from_secs(5))
            .build()
            .map_err(failed)?;
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let response = build(&client, url).send().await.map_err(failed)?;
        let status = response.status();
        let body = client::body(response, MAX_ANSWER).await;
        Ok(Answer {
            status,
            body: body.map_err(|error| Failure::Failed(error.to_string()))?,
        })
    }

    /// What the instance answers to `GET path`.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(path, |client, url| client.get(url)).await
    }
}

impl Answer {
    /// Prints the answer as it came; a problem is a failure all the same.
    pub(super) fn print_json(&self) -> Result<(), Failure> {
        print(&String::from_utf8_lossy(&self.body))?;
        if self.status == StatusCode::OK {
            Ok(())
        } else {
            Err(Failure::Told)
        }
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
        tell(&problem);
        Err(Failure::Told)
    }
}

fn tell(problem: &ProblemDocument) {
    say(&format!("fly-rpc: {}: {}", problem.code, problem.detail));
    if let Some(error) = &problem.error {
        say(&format!("  error: {}: {}", error.kind, error.message));
        if let Some(data) = &error.data {
            say(&format!("  data: {data}"));
        }
    }
    say(&format!(
        "  executed: {} · request {}",
        problem.executed, problem.meta.request_id
    ));
}
