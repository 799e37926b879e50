//! What an app's answer to a call means: a result, the function's own error, or a problem, and whether the function ran.
//! The only place that decides it.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::channel::{AppAnswer, Unread};
use crate::{
    config::settings::digits,
    json,
    name::{ConsistencyToken, FunctionName},
    problem::{Code, FunctionError, Problem},
    reply::{Outcome, Returned},
};

/// A header by which an app says that it did not run the function.
const EXECUTED: &str = "rpc-executed";
/// A header by which an app says how many milliseconds it waited for that.
const WAITED: &str = "rpc-waited-ms";
const JSON: &str = "application/json";

/// What `answer` to a call of `name` means, whose result may have `limit` bytes.
pub(super) fn outcome(name: &FunctionName, answer: &AppAnswer, limit: usize) -> Outcome {
    let status = answer.status;
    match status.as_u16() {
        // A result says that the function ran, whatever a header says.
        200..300 => result(name, answer, limit),
        400.. if says_not_executed(&answer.headers) => Err(refused(name, answer)),
        400..500 => Err(failed(answer, limit)),
        500.. => Err(error(name, answer, limit)),
        _ => Err(lost(format!("the app answered {status} to {name}"))),
    }
}

/// Whether an app that does not have this path, or does not accept the token, would give the same answer. The app's list
/// then shows whether the answer is the function's own.
pub(super) fn may_be_missing(answer: &AppAnswer) -> bool {
    let status = answer.status.as_u16();
    matches!(status, 401 | 403 | 404 | 405) && !says_not_executed(&answer.headers)
}

/// The consistency token of the answer.
///
/// # Errors
/// The header is given twice, or is not a token. The answer itself is still good.
pub(super) fn consistency(headers: &HeaderMap) -> Result<Option<ConsistencyToken>, ()> {
    let mut given = headers.get_all(ConsistencyToken::HEADER).iter();
    let token = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(token), None) => token.to_str().ok().and_then(|token| token.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    token.map(Some).ok_or(())
}

/// How long the app says that it waited until its data had seen what the call names.
pub(super) fn waited(headers: &HeaderMap) -> Option<Duration> {
    let milliseconds = headers.get(WAITED)?.to_str().ok()?;
    digits(milliseconds).map(Duration::from_millis)
}

fn says_not_executed(headers: &HeaderMap) -> bool {
    let value = headers.get(EXECUTED);
    value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no"))
}

/// The app says that it did not run the function.
fn refused(name: &FunctionName, answer: &AppAnswer) -> Problem {
    let code = match answer.status.as_u16() {
        404 => Code::FunctionUnknown,
        400 | 422 => Code::InvalidArguments,
        _ => Code::Overloaded,
    };
    let said = document(answer).and_then(|error| error.text());
    let detail = match said {
        Some(said) => format!("{name}: {said}"),
        None => format!("the app refused {name} with {}", answer.status),
    };
    Problem::new(code, detail)
}

fn result(name: &FunctionName, answer: &AppAnswer, limit: usize) -> Outcome {
    if answer.body.as_ref().is_ok_and(Vec::is_empty) {
        return Ok(Returned::fresh(RawValue::NULL.to_owned()));
    }
    let status = answer.status;
    if !is_json(&answer.headers) {
        let content_type = content_type(&answer.headers);
        let detail =
            format!("the app answered {status} to {name} with {content_type}, not with {JSON}");
        return Err(lost(detail));
    }
    let body = match &answer.body {
        Ok(body) => body,
        Err(unread) => return Err(dropped("Result", *unread, limit)),
    };
    let json = json::value(body);
    json.map(Returned::fresh)
        .map_err(|problem| lost(format!("the app's answer to {name}: {}", problem.detail)))
}

/// A 5xx.
fn error(name: &FunctionName, answer: &AppAnswer, limit: usize) -> Problem {
    let status = answer.status;
    // A body that was not read is what it is declared to be.
    let is_unread_json = answer.body.is_err() && is_json(&answer.headers);
    if is_unread_json || document(answer).is_some() {
        return failed(answer, limit);
    }
    match status {
        StatusCode::INTERNAL_SERVER_ERROR => {
            let detail = format!("{name} ended with {status}; the app's log has the cause");
            Problem::new(Code::FunctionPanicked, detail)
        }
        _ => lost(format!("the app answered {status} to {name}")),
    }
}

/// The function ran and returned an error: what the body says of it, if that is JSON.
fn failed(answer: &AppAnswer, limit: usize) -> Problem {
    if let Err(unread) = answer.body {
        return dropped("Error", unread, limit);
    }
    let (status, document) = (answer.status, document(answer).unwrap_or_default());
    let message = document.text();
    let message = message.unwrap_or_else(|| format!("the app answered {status}"));
    let kind = document.kind;
    let kind = kind.unwrap_or_else(|| format!("http_{}", status.as_u16()));
    let mut error = FunctionError::new(kind, message);
    error.data = document.data;
    Problem::function_failed(error)
}

/// The function ran, and what it returned was not read.
fn dropped(what: &str, unread: Unread, limit: usize) -> Problem {
    let name = what.to_lowercase();
    let (kind, message) = match unread {
        Unread::TooLong => (
            format!("{what}TooLarge"),
            format!("the {name} has more than the {limit} bytes of RPC_MAX_RESULT"),
        ),
        Unread::NoRoom => (
            format!("{what}Dropped"),
            format!("the {name} found no room in RPC_MAX_MEMORY"),
        ),
    };
    Problem::function_failed(FunctionError::new(kind, message))
}

pub(super) fn lost(detail: String) -> Problem {
    Problem::new(Code::FunctionLost, detail)
}

/// What the body of an error says, as far as it is understood.
#[derive(Default, Deserialize)]
struct AppError {
    #[serde(default, deserialize_with = "json::if_valid")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "json::if_valid")]
    message: Option<String>,
    #[serde(default, deserialize_with = "json::if_valid")]
    detail: Option<String>,
    data: Option<Box<RawValue>>,
}

impl AppError {
    fn text(&self) -> Option<String> {
        self.message.clone().or_else(|| self.detail.clone())
    }
}

/// The JSON body of an error; `None` if the body is not JSON. A document with neither a text nor data is itself the data.
fn document(answer: &AppAnswer) -> Option<AppError> {
    let body = answer.body.as_deref().ok();
    let whole = json::value(body.filter(|_| is_json(&answer.headers))?).ok()?;
    let mut document: AppError = serde_json::from_str(whole.get()).unwrap_or_default();
    if document.text().is_none() && document.data.is_none() {
        document.data = Some(whole);
    }
    Some(document)
}

/// Whether the body is declared to be JSON: `application/json`, or a type that ends in `+json`.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let declared = content_type(headers);
    let essence = declared.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(JSON) || essence.to_ascii_lowercase().ends_with("+json")
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or("no content-type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;

    /// What else an answer means is in `tests/it/app/answers.rs`: there, a list that is asked has the function.
    #[test]
    fn only_what_an_app_without_the_function_answers_asks_for_its_list() {
        let asks = |status: u16, executed: &'static str| {
            let headers = [(EXECUTED.parse().unwrap(), executed.parse().unwrap())];
            may_be_missing(&AppAnswer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: headers.into_iter().collect(),
                body: Ok(Vec::new()),
                _memory: Budget::new(0).take(0),
            })
        };
        for status in [401, 403, 404, 405] {
            assert!(asks(status, "yes") && !asks(status, "No"), "{status}");
        }
        for status in [400, 409, 422, 500, 501, 503] {
            assert!(!asks(status, "yes"), "{status}");
        }
    }
}
