//! What an app's answer to a call means: a result, the function's own error, or a problem, and whether the function ran.
//! The only place that decides it.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::channel::{Answer, Unread};
use crate::{
    json,
    name::{ConsistencyToken, FunctionName},
    problem::{Code, FunctionError, Problem},
    reply::{Outcome, Returned},
};

/// A header by which an app says that it did not run the function.
const EXECUTED: &str = "rpc-executed";
/// A header by which an app says of its data what a later call may name.
const CONSISTENCY: &str = "rpc-consistency";
/// A header by which an app says how many milliseconds it waited for that.
const WAITED: &str = "rpc-waited-ms";
/// The content type of the answers that are understood.
const JSON: &str = "application/json";

/// What an answer means.
pub(super) enum Meaning {
    /// This.
    Outcome(Outcome),
    /// The function is not there, if the list says so too; else this.
    Missing(Problem),
}

/// What `answer` to a call of `name` means, whose result may have `limit` bytes.
pub(super) fn meaning(name: &FunctionName, answer: &Answer, limit: usize) -> Meaning {
    let status = answer.status;
    if says_not_executed(&answer.headers) && status.as_u16() >= 400 {
        return Meaning::Outcome(Err(refused(name, answer)));
    }
    match status.as_u16() {
        200..300 => Meaning::Outcome(result(name, answer, limit)),
        401 | 403 | 404 | 405 => Meaning::Missing(failed(answer, limit)),
        400..500 => Meaning::Outcome(Err(failed(answer, limit))),
        500.. => Meaning::Outcome(Err(error(name, answer, limit))),
        _ => Meaning::Outcome(Err(lost(format!("the app answered {status} to {name}")))),
    }
}

/// What the app says of its data.
///
/// # Errors
/// The header is given twice, or is no token; an answer is worth more than that.
pub(super) fn consistency(headers: &HeaderMap) -> Result<Option<ConsistencyToken>, ()> {
    let mut given = headers.get_all(CONSISTENCY).iter();
    let token = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(token), None) => token.to_str().ok().and_then(|token| token.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    token.map(Some).ok_or(())
}

/// How long the app says that it waited until its data had seen what the call names.
pub(super) fn waited(headers: &HeaderMap) -> Option<Duration> {
    let milliseconds = headers.get(WAITED)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(milliseconds))
}

fn says_not_executed(headers: &HeaderMap) -> bool {
    let value = headers.get(EXECUTED);
    value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no"))
}

/// The app says that it did not run the function.
fn refused(name: &FunctionName, answer: &Answer) -> Problem {
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

fn result(name: &FunctionName, answer: &Answer, limit: usize) -> Outcome {
    let body = match &answer.body {
        Ok(body) => body,
        Err(unread) => return Err(dropped("Result", *unread, limit)),
    };
    if body.is_empty() {
        return Ok(Returned::fresh(RawValue::NULL.to_owned()));
    }
    let status = answer.status;
    if !is_json(&answer.headers) {
        let content_type = content_type(&answer.headers);
        let detail =
            format!("the app answered {status} to {name} with {content_type}, not with {JSON}");
        return Err(lost(detail));
    }
    let json = json::value(body);
    json.map(Returned::fresh)
        .map_err(|wrong| lost(format!("the app's answer to {name}: {wrong}")))
}

/// A 5xx.
fn error(name: &FunctionName, answer: &Answer, limit: usize) -> Problem {
    let status = answer.status;
    if answer.body.is_err() || document(answer).is_some() {
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
fn failed(answer: &Answer, limit: usize) -> Problem {
    if let Err(unread) = answer.body {
        return dropped("Error", unread, limit);
    }
    let document = document(answer).unwrap_or_default();
    let kind = document.kind.clone();
    let kind = kind.unwrap_or_else(|| format!("http_{}", answer.status.as_u16()));
    let said = document.text();
    let message = said.unwrap_or_else(|| format!("the app answered {}", answer.status));
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
#[derive(Default)]
struct Document {
    kind: Option<String>,
    message: Option<String>,
    detail: Option<String>,
    data: Option<Box<RawValue>>,
}

impl Document {
    fn text(&self) -> Option<String> {
        self.message.clone().or_else(|| self.detail.clone())
    }
}

/// The JSON of an error; `None` where there is none. Without a text of its own, the whole of it is the data.
fn document(answer: &Answer) -> Option<Document> {
    #[derive(Deserialize)]
    struct Members {
        kind: Option<Box<RawValue>>,
        message: Option<Box<RawValue>>,
        detail: Option<Box<RawValue>>,
        data: Option<Box<RawValue>>,
    }
    let body = answer
        .body
        .as_deref()
        .ok()
        .filter(|_| is_json(&answer.headers))?;
    let whole = json::value(body).ok()?;
    let text = |raw: Option<Box<RawValue>>| serde_json::from_str::<String>(raw?.get()).ok();
    let document = match serde_json::from_str::<Members>(whole.get()) {
        Ok(members) => Document {
            kind: text(members.kind),
            message: text(members.message),
            detail: text(members.detail),
            data: members.data,
        },
        Err(_) => Document::default(),
    };
    let is_told = document.text().is_some() || document.data.is_some();
    Some(Document {
        data: if is_told { document.data } else { Some(whole) },
        ..document
    })
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

    /// Status, a header, the body; what it means, and whether the list is asked.
    type Case<'a> = (
        u16,
        (&'static str, &'static str),
        Option<&'a str>,
        String,
        bool,
    );

    fn told(
        status: u16,
        header: (&'static str, &'static str),
        body: Option<&str>,
    ) -> (String, bool) {
        let name = FunctionName {
            module: "M".parse().unwrap(),
            function: "f".parse().unwrap(),
        };
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: [(header.0.parse().unwrap(), header.1.parse().unwrap())]
                .into_iter()
                .collect(),
            body: body
                .map(|body| body.as_bytes().to_vec())
                .ok_or(Unread::TooLong),
            _memory: None,
        };
        let said = |outcome: Outcome| match outcome {
            Ok(returned) => returned.json.get().to_owned(),
            Err(Problem {
                code,
                executed,
                error: None,
                ..
            }) => format!("{code} {executed}"),
            Err(Problem {
                code,
                executed,
                error: Some(error),
                ..
            }) => {
                format!(
                    "{code} {executed} {}",
                    serde_json::to_string(&error).unwrap()
                )
            }
        };
        match meaning(&name, &answer, 100) {
            Meaning::Outcome(outcome) => (said(outcome), false),
            Meaning::Missing(problem) => (said(Err(problem)), true),
        }
    }

    #[test]
    fn each_answer_means_what_the_table_says() {
        let json = ("content-type", "application/json; charset=utf-8");
        let problem_json = ("content-type", "application/problem+json");
        let html = ("content-type", "text/html");
        let plain = ("content-type", "text/plain");
        let no = ("rpc-executed", "No");
        let deep = "[".repeat(65) + &"]".repeat(65);
        let failed = |kind: &str, message: &str, data: &str| {
            format!(
                r#"function_failed yes {{"kind":"{kind}","message":"{message}","data":{data}}}"#
            )
        };
        let lost = || "function_lost maybe".to_owned();
        let cases: Vec<Case<'_>> = vec![
            (
                200,
                json,
                Some("{\"a\": 1.10}"),
                "{\"a\": 1.10}".into(),
                false,
            ),
            (201, problem_json, Some("[]"), "[]".into(), false),
            (204, html, Some(""), "null".into(), false),
            (200, html, Some(""), "null".into(), false),
            (200, json, Some("{"), lost(), false),
            (200, json, Some(&deep), lost(), false),
            (200, html, Some("<h1>"), lost(), false),
            (200, plain, Some("3"), lost(), false),
            (
                200,
                json,
                None,
                failed(
                    "ResultTooLarge",
                    "the result has more than the 100 bytes of RPC_MAX_RESULT",
                    "null",
                ),
                false,
            ),
            (404, no, Some(""), "function_unknown no".into(), false),
            (400, no, Some(""), "invalid_arguments no".into(), false),
            (422, no, Some(""), "invalid_arguments no".into(), false),
            (503, no, Some(""), "overloaded no".into(), false),
            (409, no, Some(""), "overloaded no".into(), false),
            (200, no, Some(""), "null".into(), false),
            (
                404,
                json,
                Some(r#"{"detail":"Not Found"}"#),
                failed("http_404", "Not Found", "null"),
                true,
            ),
            (
                401,
                html,
                Some("<h1>"),
                failed("http_401", "the app answered 401 Unauthorized", "null"),
                true,
            ),
            (
                403,
                html,
                None,
                failed(
                    "ErrorTooLarge",
                    "the error has more than the 100 bytes of RPC_MAX_RESULT",
                    "null",
                ),
                true,
            ),
            (
                405,
                html,
                Some(""),
                failed(
                    "http_405",
                    "the app answered 405 Method Not Allowed",
                    "null",
                ),
                true,
            ),
            (
                409,
                json,
                Some(r#"{"kind":"Taken","message":"gone","data":[1]}"#),
                failed("Taken", "gone", "[1]"),
                false,
            ),
            (
                409,
                html,
                Some("<h1>secret"),
                failed("http_409", "the app answered 409 Conflict", "null"),
                false,
            ),
            (
                422,
                json,
                Some(r#"{"detail":[{"loc":1}]}"#),
                failed(
                    "http_422",
                    "the app answered 422 Unprocessable Entity",
                    r#"{"detail":[{"loc":1}]}"#,
                ),
                false,
            ),
            (
                400,
                json,
                Some("\"no\""),
                failed("http_400", "the app answered 400 Bad Request", "\"no\""),
                false,
            ),
            (
                500,
                json,
                Some(r#"{"kind":"RuntimeError","message":"boom"}"#),
                failed("RuntimeError", "boom", "null"),
                false,
            ),
            (
                503,
                json,
                Some("{}"),
                failed("http_503", "the app answered 503 Service Unavailable", "{}"),
                false,
            ),
            (
                500,
                html,
                Some("<h1>"),
                "function_panicked yes".into(),
                false,
            ),
            (500, json, Some("{"), "function_panicked yes".into(), false),
            (501, html, Some(""), lost(), false),
            (502, html, Some("<h1>"), lost(), false),
            (504, plain, Some(""), lost(), false),
            (101, html, Some(""), lost(), false),
            (302, html, Some(""), lost(), false),
            (304, json, Some("1"), lost(), false),
        ];
        for (status, header, body, expected, is_missing) in cases {
            assert_eq!(
                told(status, header, body),
                (expected, is_missing),
                "{status} {header:?} {body:?}"
            );
        }
    }
}
