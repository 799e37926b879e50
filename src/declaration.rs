//! What a function declares of itself besides its name: the policy of its calls, its parameters and what it is for. The
//! same in an app's list, in a Rust registration and between instances.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::deadline::whole_ms;

/// What a function declares; every part is optional.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Declaration {
    /// The timeout of a call that names none, in milliseconds; 1 to 86,400,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 86_400_000, example = 2000)]
    pub(crate) timeout_ms: Option<u64>,
    /// Whether a call that does not say so may run twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = true)]
    pub(crate) idempotent: Option<bool>,
    /// How many calls run on one instance at once; as many again wait for their turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 1_000_000, example = 8)]
    pub(crate) concurrency: Option<usize>,
    /// One sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "Creates a note")]
    pub(crate) doc: Option<String>,
    /// Its parameters, in order; a call has exactly as many arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) params: Option<Vec<Param>>,
    /// A JSON Schema of its result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Value)]
    pub(crate) result: Option<Value>,
}

/// What is said of a call, by itself or by its function.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policy {
    pub timeout: Option<Duration>,
    /// Whether it may run twice.
    pub idempotent: Option<bool>,
}

impl Policy {
    /// Whether nothing is left unsaid.
    pub(crate) fn is_whole(&self) -> bool {
        self.timeout.is_some() && self.idempotent.is_some()
    }
}

/// One parameter of a function.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Param {
    /// Its name.
    #[schema(example = "title")]
    pub(crate) name: String,
    /// A JSON Schema of its values; absent for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Value, example = json!({"type": "string"}))]
    pub(crate) schema: Option<Value>,
}

/// The longest timeout that may be named at all, in milliseconds: a day.
pub(crate) const MAX_TIMEOUT_MS: u64 = 24 * 60 * 60 * 1000;
const MAX_CONCURRENCY: usize = 1_000_000;
pub(crate) const MAX_PARAMS: usize = 256;
/// The longest name of a parameter, in bytes.
const MAX_PARAM_NAME: usize = 128;

impl Declaration {
    pub(crate) const MEMBERS: [&str; 6] = [
        "timeout_ms",
        "idempotent",
        "concurrency",
        "doc",
        "params",
        "result",
    ];

    /// One that says nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The timeout of a call that names none: 1 ms to a day, in whole milliseconds. No call gets more than the
    /// `RPC_MAX_TIMEOUT` of the instance that it reaches.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = Some(whole_ms(timeout));
        self
    }

    /// Whether a call that does not say so may run twice.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = Some(idempotent);
        self
    }

    /// How many calls run on one instance at once, 1 to 1,000,000; as many again wait for their turn, and more are refused.
    #[must_use]
    pub fn concurrency(mut self, calls: usize) -> Self {
        self.concurrency = Some(calls);
        self
    }

    /// What it does, in one sentence for people.
    #[must_use]
    pub fn doc(mut self, doc: impl Into<String>) -> Self {
        self.doc = Some(doc.into());
        self
    }

    /// Its parameters, in order: the name of each, and a JSON Schema of its values. A call has exactly as many arguments,
    /// in an array or in an object by these names. At most 256, each name of 1 to 128 bytes and given once.
    #[must_use]
    pub fn params<N: Into<String>>(mut self, params: impl IntoIterator<Item = (N, Value)>) -> Self {
        let param = |(name, schema): (N, Value)| Param {
            name: name.into(),
            schema: Some(schema),
        };
        self.params = Some(params.into_iter().map(param).collect());
        self
    }

    /// A JSON Schema of its result.
    #[must_use]
    pub fn result(mut self, schema: Value) -> Self {
        self.result = Some(schema);
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What holds for a call that does not say it itself.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            timeout: self.timeout_ms.map(Duration::from_millis),
            idempotent: self.idempotent,
        }
    }

    /// Checks what its types do not.
    ///
    /// # Errors
    /// A timeout or a concurrency out of range, too many parameters, or one whose name is invalid or given twice, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let timeout_fits = |ms: u64| (1..=MAX_TIMEOUT_MS).contains(&ms);
        if !self.timeout_ms.is_none_or(timeout_fits) {
            return Err(format!(
                "timeout_ms must be an integer from 1 to {MAX_TIMEOUT_MS}"
            ));
        }
        let concurrency_fits = |count: usize| (1..=MAX_CONCURRENCY).contains(&count);
        if !self.concurrency.is_none_or(concurrency_fits) {
            return Err(format!(
                "concurrency must be an integer from 1 to {MAX_CONCURRENCY}"
            ));
        }
        check_params(self.params.as_deref().unwrap_or_default())
    }
}

fn check_params(params: &[Param]) -> Result<(), String> {
    if params.len() > MAX_PARAMS {
        return Err(format!("params must be at most {MAX_PARAMS}"));
    }
    let mut names = BTreeSet::new();
    for Param { name, .. } in params {
        if !(1..=MAX_PARAM_NAME).contains(&name.len()) {
            return Err(format!(
                "a parameter's name must have 1 to {MAX_PARAM_NAME} bytes"
            ));
        }
        if !names.insert(name) {
            return Err(format!("the parameter {name:?} is declared twice"));
        }
    }
    Ok(())
}
