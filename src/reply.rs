//! What comes back from a call: a result or a problem, as documents, with the same account of where it ran.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    name::{ConsistencyToken, InstanceId, RequestId},
    problem::{Code, Executed, FunctionError, LaterCode, Problem},
    region::Region,
};

/// The longest title that is taken over from a peer, in bytes.
const MAX_TITLE: usize = 256;

/// Where a call ran, or was tried, and what it took.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Meta {
    /// The region asked for, `primary` resolved; of a list, the one in which it ran or was tried last. Null when the request
    /// named none.
    #[schema(value_type = Option<String>, required, example = "syd")]
    pub region: Option<Region>,
    /// The instance that ran the call or was tried last; null when none was.
    #[schema(value_type = Option<String>, required, example = "148e21dad76789")]
    pub instance: Option<InstanceId>,
    /// How many instances were tried, a local run included.
    #[schema(example = 1)]
    pub attempts: u32,
    /// Milliseconds from the request's arrival to this answer, to the microsecond.
    #[schema(example = 83.2)]
    pub elapsed_ms: f64,
    /// True on the outcome of an earlier call with the same idempotency key, as the header `idempotency-replayed` is; else
    /// left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false, example = true)]
    pub replayed: bool,
    /// What the function said of its data, as the header `rpc-consistency` does: a later call that sends it as `rpc-after`
    /// reads nothing older. Left out where it said nothing.
    #[serde(
        default,
        deserialize_with = "if_valid",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = String, required = false, example = "0/3000148")]
    pub consistency: Option<ConsistencyToken>,
    /// The request's id, in the header `x-request-id` and in the logs of every instance it met.
    #[schema(value_type = String, example = "01J9ZK3V6T8Q4W2XB5N7RCM1DE")]
    pub request_id: RequestId,
}

impl Meta {
    /// The account of a request that was answered before any instance was tried.
    pub(crate) fn untried(
        region: Option<Region>,
        elapsed: Duration,
        request_id: RequestId,
    ) -> Self {
        Self {
            region,
            instance: None,
            attempts: 0,
            elapsed_ms: milliseconds(elapsed),
            replayed: false,
            consistency: None,
            request_id,
        }
    }
}

/// A token, or `None` for one that is invalid in this release: the outcome of a call is not lost for its token.
fn if_valid<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ConsistencyToken>, D::Error> {
    let token = Option::<Cow<'_, str>>::deserialize(from)?;
    Ok(token.and_then(|token| token.parse().ok()))
}

/// What came of a call.
pub(crate) type Outcome = Result<Returned, Problem>;

/// What a function returned.
#[derive(Clone, Debug)]
pub(crate) struct Returned {
    /// The result.
    pub json: Box<RawValue>,
    /// Whether it is that of an earlier call with the same idempotency key.
    pub replayed: bool,
    /// What the function said of its data.
    pub consistency: Option<ConsistencyToken>,
}

impl Returned {
    /// The result of a function that ran now.
    pub(crate) fn fresh(json: Box<RawValue>) -> Self {
        Self {
            json,
            replayed: false,
            consistency: None,
        }
    }

    /// Whether `outcome` is that of an earlier call.
    pub(crate) fn is_replayed(outcome: &Outcome) -> bool {
        match outcome {
            Ok(returned) => returned.replayed,
            Err(problem) => problem.replayed,
        }
    }

    /// The same as the outcome of an earlier call.
    pub(crate) fn replayed(mut outcome: Outcome) -> Outcome {
        match &mut outcome {
            Ok(returned) => returned.replayed = true,
            Err(problem) => problem.replayed = true,
        }
        outcome
    }

    /// What the function that ran said of its data.
    pub(crate) fn consistency(outcome: &Outcome) -> Option<&ConsistencyToken> {
        match outcome {
            Ok(returned) => returned.consistency.as_ref(),
            Err(problem) => problem.consistency.as_ref(),
        }
    }

    /// The same with what the function said of its data, where it ran.
    pub(crate) fn with_consistency(
        mut outcome: Outcome,
        said: Option<ConsistencyToken>,
    ) -> Outcome {
        match &mut outcome {
            Ok(returned) => returned.consistency = said,
            Err(problem) if problem.executed == Executed::Yes => problem.consistency = said,
            Err(_) => {}
        }
        outcome
    }
}

/// `span` in milliseconds, to the microsecond.
pub(crate) fn milliseconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

/// The answer to a call that has a result.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Reply {
    /// What the function returned, any JSON value.
    #[schema(value_type = Value, example = "FLY")]
    pub result: Box<RawValue>,
    /// Where it ran and what it took.
    pub meta: Meta,
}

/// The answer to a request that has no result: a problem document (RFC 9457).
///
/// It is read as a document of any release: see [`Received`].
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(try_from = "Received")]
#[schema(
    as = Problem,
    description = "The answer to a request that has no result: a problem document (RFC 9457)."
)]
pub(crate) struct ProblemDocument {
    /// Where the instance explains the code: `/docs/problems#` and the code.
    #[serde(rename = "type")]
    #[schema(example = "/docs/problems#region_unavailable")]
    pub type_uri: String,
    /// One phrase for people, the same for every problem of this code.
    #[schema(value_type = String, example = "Region has no reachable instance")]
    pub title: Cow<'static, str>,
    /// The HTTP status.
    #[schema(example = 503)]
    pub status: u16,
    /// One sentence about this problem, at most 256 bytes.
    #[schema(example = "region \"syd\": 2 known instances, none reachable; last seen 12 s ago")]
    pub detail: String,
    /// What went wrong, as a word for programs. An open set: a later release may send a word that is not listed here;
    /// take it by its status and `executed`.
    #[serde(rename = "code")]
    #[schema(value_type = String, example = "region_unavailable")]
    pub word: Cow<'static, str>,
    /// Whether the function ran.
    pub executed: Executed,
    /// Where it was tried and what it took.
    pub meta: Meta,
    /// The function's own error, with `function_failed` only.
    #[schema(value_type = FunctionError, required)]
    pub error: Option<FunctionError>,
    /// What this release takes the word for.
    #[serde(skip)]
    pub code: Code,
}

impl ProblemDocument {
    /// The document of `problem`.
    pub(crate) fn new(problem: Problem, meta: Meta) -> Self {
        let Problem {
            code,
            later,
            executed,
            detail,
            error,
            replayed,
            consistency,
        } = problem;
        let (word, status, title) = match later {
            Some(later) => (later.word.into(), later.status, later.title.into()),
            None => (code.as_str().into(), code.status(), code.title().into()),
        };
        let meta = Meta {
            replayed,
            consistency,
            ..meta
        };
        Self {
            type_uri: format!("/docs/problems#{word}"),
            title,
            status,
            detail,
            word,
            executed,
            meta,
            error: error.map(|error| *error),
            code,
        }
    }

    /// Whether its code is one that this release does not know.
    pub(crate) fn is_of_later_release(&self) -> bool {
        self.word != self.code.as_str()
    }

    /// The problem in this document.
    pub(crate) fn into_problem(self) -> Problem {
        let (is_later, error) = (self.is_of_later_release(), self.error.map(Box::new));
        let problem = if is_later {
            let later = LaterCode {
                word: self.word.into_owned(),
                status: self.status,
                title: self.title.into_owned(),
            };
            Problem::of_later(later, self.executed, self.detail)
        } else {
            Problem::new(self.code, self.detail).executed(self.executed)
        };
        Problem {
            error,
            replayed: self.meta.replayed,
            consistency: self.meta.consistency,
            ..problem
        }
    }
}

/// A problem document as it comes in. A code that is not known keeps its word, title and status; a code that is known
/// has those of the table, and makes the document invalid where the table does not allow its `executed`.
#[derive(Deserialize)]
struct Received {
    title: String,
    status: u16,
    detail: String,
    code: String,
    executed: Executed,
    meta: Meta,
    error: Option<FunctionError>,
}

/// Why a document is not a valid problem.
#[derive(Debug, thiserror::Error)]
enum NoProblem {
    #[error("code {0} does not go with executed {1}")]
    Contradiction(Code, Executed),
    #[error("a code is 1 to 64 characters of [a-z0-9_]")]
    Code,
    #[error("status {0} is none of an error")]
    Status(u16),
}

impl TryFrom<Received> for ProblemDocument {
    type Error = NoProblem;

    fn try_from(received: Received) -> Result<Self, NoProblem> {
        let executed = received.executed;
        let problem = match Code::from_word(&received.code) {
            Some(code) if !code.executed().contains(&executed) => {
                return Err(NoProblem::Contradiction(code, executed));
            }
            Some(code) => Problem::new(code, received.detail).executed(executed),
            None => {
                let later = later(received.code, received.status, received.title)?;
                Problem::of_later(later, executed, received.detail)
            }
        };
        let problem = Problem {
            error: received.error.map(Box::new),
            replayed: received.meta.replayed,
            consistency: received.meta.consistency.clone(),
            ..problem
        };
        Ok(Self::new(problem, received.meta))
    }
}

fn later(word: String, status: u16, mut title: String) -> Result<LaterCode, NoProblem> {
    let is_in_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !(1..=64).contains(&word.len()) || !word.bytes().all(is_in_word) {
        return Err(NoProblem::Code);
    }
    if !(400..600).contains(&status) {
        return Err(NoProblem::Status(status));
    }
    title.truncate(title.floor_char_boundary(MAX_TITLE));
    Ok(LaterCode {
        word,
        status,
        title,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::to_vec;

    fn read(code: &str, status: u16, executed: &str) -> Result<ProblemDocument, serde_json::Error> {
        let meta = json!({"region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": 0.4, "request_id": "r"});
        serde_json::from_value(json!({
            "type": "anything", "title": "From a later release", "status": status, "detail": "later",
            "code": code, "executed": executed, "meta": meta, "error": null, "more": [],
        }))
    }

    #[test]
    fn what_we_write_reads_as_what_it_was() {
        let meta = Meta::untried(None, Duration::ZERO, RequestId::fresh());
        for code in Code::ALL {
            for executed in code.executed() {
                let problem = Problem::new(*code, "said").executed(*executed);
                let text = to_vec(&ProblemDocument::new(problem, meta.clone()));
                let read: ProblemDocument = serde_json::from_slice(&text).unwrap();
                assert!(!read.is_of_later_release());
                let read = read.into_problem();
                assert_eq!((read.code, read.executed), (*code, *executed));
            }
        }
    }

    #[test]
    fn a_code_of_a_later_release_is_passed_on_as_it_came() {
        let cases = [
            (409, Executed::No, Code::InvalidArguments),
            (503, Executed::No, Code::Overloaded),
            (502, Executed::Maybe, Code::PeerLost),
            (410, Executed::Yes, Code::FunctionFailed),
        ];
        for (status, executed, taken_for) in cases {
            let document = read("outcome_gone", status, executed.as_str()).unwrap();
            assert!(document.is_of_later_release());
            let problem = document.clone().into_problem();
            assert_eq!((problem.code, problem.executed), (taken_for, executed));
            let again = ProblemDocument::new(problem, document.meta.clone());
            assert_eq!(
                serde_json::to_value(&again).unwrap(),
                json!({
                    "type": "/docs/problems#outcome_gone", "title": "From a later release", "status": status,
                    "detail": "later", "code": "outcome_gone", "executed": executed, "meta": document.meta,
                    "error": null,
                })
            );
        }
    }

    #[test]
    fn a_document_that_contradicts_the_table_is_none_of_ours() {
        let reason = |document: Result<ProblemDocument, serde_json::Error>| {
            document.unwrap_err().to_string()
        };
        assert_eq!(
            reason(read("function_failed", 424, "no")),
            "code function_failed does not go with executed no"
        );
        assert_eq!(
            reason(read("draining", 503, "yes")),
            "code draining does not go with executed yes"
        );
        assert_eq!(
            reason(read("later", 200, "no")),
            "status 200 is none of an error"
        );
        for word in ["", "Later", "later\n", &"l".repeat(65)] {
            assert_eq!(
                reason(read(word, 503, "no")),
                "a code is 1 to 64 characters of [a-z0-9_]"
            );
        }
        assert!(reason(read("later", 503, "perhaps")).contains("unknown variant `perhaps`"));
    }
}
