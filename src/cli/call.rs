//! `fly-rpc call`: one call to a function in a region, its result on stdout.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{
    Failure,
    ask::{Answer, Endpoint},
    print,
};
use crate::{call::MAX_TIMEOUT, json, reply::Reply};

/// How long a call may take that names no timeout: the default of `RPC_MAX_TIMEOUT`.
const LONGEST: Duration = Duration::from_secs(60);
/// What an answer may take on its way, after the call's own timeout.
const GRACE: Duration = Duration::from_secs(5);

/// What to call, and where.
#[derive(Args)]
pub(super) struct CallArgs {
    /// A region such as `syd`, or `primary`
    region: String,
    /// The function, such as `String.upcase`
    #[arg(value_name = "MODULE.FUNCTION")]
    function: String,
    /// The arguments: JSON, or plain words, which are strings
    #[arg(allow_negative_numbers = true)]
    args: Vec<String>,
    /// How long to wait, such as 500ms or 5s, at most 24h
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Allow another attempt after one that may have run
    #[arg(long)]
    idempotent: bool,
    /// Only on this instance of the region
    #[arg(long)]
    instance: Option<String>,
    /// Print the whole answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// The body of `POST /rpc/{region}`.
#[derive(Serialize)]
struct Body<'a> {
    module: &'a str,
    function: &'a str,
    args: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    idempotent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
}

/// Calls, and prints the result.
pub(super) async fn run(args: CallArgs) -> Result<(), Failure> {
    let Some((module, function)) = args.function.rsplit_once('.') else {
        return Err(Failure::Usage(format!(
            "{:?} is not MODULE.FUNCTION, such as String.upcase",
            args.function
        )));
    };
    let body = json::to_vec(&Body {
        module,
        function,
        args: args.args.iter().map(|arg| argument(arg)).collect(),
        timeout_ms: args
            .timeout
            .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        idempotent: args.idempotent,
        instance: args.instance.as_deref(),
    });
    let patience = args.timeout.unwrap_or(LONGEST).saturating_add(GRACE);
    let answer: Answer = args
        .endpoint
        .ask(&format!("/rpc/{}", args.region), patience, |client, url| {
            client
                .post(url)
                .header("content-type", "application/json")
                .body(body)
        })
        .await?;
    if args.json {
        return answer.print_json();
    }
    let reply: Reply = answer.document()?;
    print(reply.result.get())
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MAX_TIMEOUT => Ok(duration),
        Ok(_) => Err("must be 24h or less".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// An argument as it was typed: JSON if it is JSON, else a string.
fn argument(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.trim().to_owned()).unwrap_or_else(|_| {
        let string = Value::String(text.to_owned()).to_string();
        RawValue::from_string(string)
            .unwrap_or_else(|error| unreachable!("a JSON string is JSON: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_json_or_plain_words() {
        let typed = ["\"fly\"", "fly", "1.10", "[1, 2]", "-3", "a \"b\"", "true"];
        let sent = [
            "\"fly\"",
            "\"fly\"",
            "1.10",
            "[1, 2]",
            "-3",
            "\"a \\\"b\\\"\"",
            "true",
        ];
        assert_eq!(typed.map(|arg| argument(arg).get().to_owned()), sent);
    }
}
