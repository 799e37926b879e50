//! What comes back from a call: a result or a problem, as documents, with the same account of where it ran.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    name::{InstanceId, RequestId},
    problem::{Code, Executed, FunctionError, Problem},
    region::Region,
};

/// Where a call ran, or was tried, and what it took.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Meta {
    /// The region asked for, `primary` resolved; null when the request named none.
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
            request_id,
        }
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
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemDocument {
    /// `urn:fly-rpc:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:fly-rpc:problem:region_unavailable")]
    pub type_uri: String,
    /// One phrase for people, the same for every problem of this code.
    #[schema(example = "Region has no reachable instance")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 503)]
    pub status: u16,
    /// One sentence about this problem, at most 256 bytes.
    #[schema(example = "region \"syd\": 2 known instances, none reachable; last seen 12 s ago")]
    pub detail: String,
    /// What went wrong, as a word for programs.
    pub code: Code,
    /// Whether the function ran.
    pub executed: Executed,
    /// Where it was tried and what it took.
    pub meta: Meta,
    /// The function's own error, with `function_failed` only.
    #[schema(value_type = FunctionError, required)]
    pub error: Option<FunctionError>,
}

impl ProblemDocument {
    /// The document of `problem`.
    pub(crate) fn new(problem: Problem, meta: Meta) -> Self {
        let Problem {
            code,
            executed,
            detail,
            error,
        } = problem;
        Self {
            type_uri: format!("urn:fly-rpc:problem:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            detail,
            code,
            executed,
            meta,
            error: error.map(|error| *error),
        }
    }

    /// The problem that this document tells of.
    pub(crate) fn into_problem(self) -> Problem {
        Problem {
            executed: self.executed,
            error: self.error.map(Box::new),
            ..Problem::new(self.code, self.detail)
        }
    }
}
