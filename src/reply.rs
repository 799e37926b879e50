//! What comes back from a call: a result or a problem, as documents, with the same account of where it ran.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    json,
    memory::{Budget, NoRoom, Reserved, Share},
    name::{ConsistencyToken, InstanceId, RequestId},
    problem::{Code, Executed, FunctionError, LaterCode, Problem},
    region::Region,
};

/// Why what a function returned is dropped: for want of memory.
pub(crate) const NO_ROOM: (&str, &str) = ("Dropped", "found no room in RPC_MAX_MEMORY");
/// Because the instance that ran the function allows longer ones than the one that asked it.
pub(crate) const TOO_LONG: (&str, &str) = ("TooLarge", "is longer than RPC_MAX_RESULT allows");
/// The size of results and errors that are not counted in the memory budget, in bytes: where it is full, small calls are
/// still answered.
const UNCOUNTED: usize = 1 << 10;
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
    // This and the next are in `Returned` and `Problem` too, which exist before there is a `Meta`.
    /// True on the outcome of an earlier call with the same idempotency key, as the header `idempotency-replayed` is; else
    /// left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false, example = true)]
    pub replayed: bool,
    /// What the function said of its data, as the header `rpc-consistency` does: a later call that sends it as `rpc-after`
    /// reads nothing older. Left out where it said nothing.
    #[serde(
        default,
        deserialize_with = "json::if_valid",
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

/// The outcome of a call: what its function returned, or a problem.
pub(crate) type Outcome = Result<Returned, Problem>;

/// What a function returned; as JSON, what a store of idempotency keys has of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Returned {
    #[serde(rename = "result")]
    pub json: Box<RawValue>,
    /// Whether it is that of an earlier call with the same idempotency key.
    #[serde(skip)]
    pub replayed: bool,
    /// What the function said of its data.
    pub consistency: Option<ConsistencyToken>,
    /// What it takes of the memory budget, unless it is small.
    #[serde(skip)]
    pub reserved: Option<Arc<Reserved>>,
}

/// The outcome of a call, and the account of where it ran.
#[derive(Debug)]
pub(crate) struct Report {
    pub result: Outcome,
    pub meta: Meta,
}

impl Report {
    /// The report of `result`, and of `meta` with what `result` says of itself.
    pub(crate) fn new(result: Outcome, meta: Meta) -> Self {
        let (replayed, consistency) = match &result {
            Ok(returned) => (returned.replayed, returned.consistency.clone()),
            Err(problem) => (problem.replayed, problem.consistency.clone()),
        };
        let meta = Meta {
            replayed,
            consistency,
            ..meta
        };
        Self { result, meta }
    }
}

impl Returned {
    /// The result of a function that ran now.
    pub(crate) fn fresh(json: Box<RawValue>) -> Self {
        Self {
            json,
            replayed: false,
            consistency: None,
            reserved: None,
        }
    }

    /// Counts the result or the error in `outcome` in `memory` from now on, until it is dropped.
    pub(crate) fn count(outcome: &mut Outcome, memory: &Arc<Budget>) -> Result<(), NoRoom> {
        let size = Self::size(outcome);
        if size > UNCOUNTED {
            let reserved = memory.reserve(size, Share::Results)?;
            Self::hold(outcome, Some(Arc::new(reserved)));
        }
        Ok(())
    }

    /// `outcome`, counted in `memory`. Without room, a problem takes its place: the function ran, and what it returned is
    /// lost.
    pub(crate) fn counted(mut outcome: Outcome, memory: &Arc<Budget>) -> Outcome {
        match Self::count(&mut outcome, memory) {
            Ok(()) => outcome,
            Err(NoRoom) => Err(Self::dropped(outcome, NO_ROOM)),
        }
    }

    /// What the result or the error in `outcome` takes of the memory budget.
    pub(crate) fn reserved(outcome: &Outcome) -> Option<&Arc<Reserved>> {
        match outcome {
            Ok(returned) => returned.reserved.as_ref(),
            Err(problem) => problem.error.as_ref()?.reserved.as_ref(),
        }
    }

    /// Has the result or the error in `outcome` hold `reserved`, in place of what it held of the memory budget.
    pub(crate) fn hold(outcome: &mut Outcome, reserved: Option<Arc<Reserved>>) {
        match outcome {
            Ok(returned) => returned.reserved = reserved,
            Err(problem) => {
                if let Some(error) = &mut problem.error {
                    error.reserved = reserved;
                }
            }
        }
    }

    /// The problem that replaces a result or an error that is not passed on, with an error that says `why`.
    pub(crate) fn dropped(outcome: Outcome, (kind, why): (&str, &str)) -> Problem {
        let (what, name, replayed, consistency) = match outcome {
            Ok(it) => ("Result", "result", it.replayed, it.consistency),
            Err(problem) => ("Error", "error", problem.replayed, problem.consistency),
        };
        let error = FunctionError::new(format!("{what}{kind}"), format!("the {name} {why}"));
        Problem {
            replayed,
            consistency,
            ..Problem::function_failed(error)
        }
    }

    /// Whether `problem` replaces what a function returned, for want of memory.
    pub(crate) fn found_no_room(problem: &Problem) -> bool {
        let kind = problem.error.as_ref().map_or("", |error| &error.kind);
        matches!(kind.strip_suffix(NO_ROOM.0), Some("Result" | "Error"))
    }

    /// The size in bytes of the function's result or error in `outcome`.
    pub(crate) fn size(outcome: &Outcome) -> usize {
        match outcome {
            Ok(returned) => returned.json.get().len(),
            // Of a function that ran: one that did not, or may not have, has no error to drop.
            Err(problem) if problem.executed == Executed::Yes => {
                problem.error.as_ref().map_or(0, |error| {
                    let data = error.data.as_ref().map_or(0, |data| data.get().len());
                    error.kind.len() + error.message.len() + data
                })
            }
            Err(_) => 0,
        }
    }

    /// `outcome`, marked as that of an earlier call.
    pub(crate) fn replayed(mut outcome: Outcome) -> Outcome {
        match &mut outcome {
            Ok(returned) => returned.replayed = true,
            Err(problem) => problem.replayed = true,
        }
        outcome
    }

    /// `outcome` with what the function `said` of its data, where it ran.
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

/// A problem, and the account of where it was tried. It is written as [`ProblemMembers`], and read as those of any release:
/// a code that is not known keeps its word, title and status; one that is known has those of the table, and makes the
/// document invalid where the table does not allow its `executed`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "ProblemMembers<'static>")]
pub(crate) struct ProblemDocument {
    pub problem: Problem,
    pub meta: Meta,
}

/// The answer to a request that has no result: a problem document (RFC 9457).
#[derive(Deserialize, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemMembers<'a> {
    /// Where the instance explains the code: `/docs/problems#` and the code.
    #[serde(rename = "type", default)]
    #[schema(required, example = "/docs/problems#region_unavailable")]
    type_uri: String,
    /// One phrase for people, the same for every problem of this code.
    #[schema(value_type = String, example = "Region has no reachable instance")]
    title: Cow<'a, str>,
    /// The HTTP status.
    #[schema(example = 503)]
    status: u16,
    /// One sentence about this problem, at most 256 bytes.
    #[schema(value_type = String, example = "region \"syd\": 2 known instances, none reachable; last seen 12 s ago")]
    detail: Cow<'a, str>,
    /// What went wrong, as a word for programs. An open set: a later release may send a word that is not listed here;
    /// take it by its status and `executed`.
    #[schema(value_type = String, example = "region_unavailable")]
    code: Cow<'a, str>,
    /// Whether the function ran.
    executed: Executed,
    /// Where it was tried and what it took.
    #[schema(value_type = Meta)]
    meta: Cow<'a, Meta>,
    /// The function's own error, with `function_failed` only.
    #[schema(value_type = FunctionError, required)]
    error: Option<Cow<'a, FunctionError>>,
}

impl ProblemDocument {
    pub(crate) fn new(problem: Problem, meta: Meta) -> Self {
        let meta = Meta {
            replayed: problem.replayed,
            consistency: problem.consistency.clone(),
            ..meta
        };
        Self { problem, meta }
    }
}

impl Serialize for ProblemDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let problem = &self.problem;
        let members = ProblemMembers {
            type_uri: format!("/docs/problems#{}", problem.word()),
            title: problem.title().into(),
            status: problem.status(),
            detail: Cow::Borrowed(&problem.detail),
            code: problem.word().into(),
            executed: problem.executed,
            meta: Cow::Borrowed(&self.meta),
            error: problem.error.as_deref().map(Cow::Borrowed),
        };
        members.serialize(serializer)
    }
}

impl TryFrom<ProblemMembers<'_>> for ProblemDocument {
    /// Why it is not a valid problem.
    type Error = String;

    fn try_from(members: ProblemMembers<'_>) -> Result<Self, String> {
        let (status, executed) = (members.status, members.executed);
        let (code, later) = match Code::from_word(&members.code) {
            Some(code) if !code.executed().contains(&executed) => {
                return Err(format!("code {code} does not go with executed {executed}"));
            }
            Some(code) => (code, None),
            None => {
                let (word, title) = (members.code.into_owned(), members.title.into_owned());
                let later = Box::new(later(word, status, title)?);
                (Code::nearest(status, executed), Some(later))
            }
        };
        let meta = members.meta.into_owned();
        let problem = Problem {
            later,
            executed,
            error: members.error.map(|error| Box::new(error.into_owned())),
            replayed: meta.replayed,
            consistency: meta.consistency.clone(),
            ..Problem::new(code, members.detail)
        };
        Ok(Self { problem, meta })
    }
}

fn later(word: String, status: u16, mut title: String) -> Result<LaterCode, String> {
    let is_in_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !(1..=64).contains(&word.len()) || !word.bytes().all(is_in_word) {
        return Err("a code is 1 to 64 characters of [a-z0-9_]".to_owned());
    }
    if !(400..600).contains(&status) {
        return Err(format!("status {status} is not that of an error"));
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
                let read = read.problem;
                assert!(read.later.is_none());
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
            let problem = document.problem;
            assert!(problem.later.is_some());
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
    fn a_document_that_contradicts_the_table_is_invalid() {
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
            "status 200 is not that of an error"
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
