//! The arguments of a call, kept as they came: counted, never rebuilt.

use serde::{
    Deserializer as _, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::wrong;
use crate::{
    json,
    problem::{Code, Problem},
};

/// The most items that `args` may have.
const MAX_ARGS: usize = 256;

/// The arguments of a call: a JSON array of at most 256 items, kept exactly as received.
#[derive(Clone, Debug)]
pub(crate) struct Args(Box<RawValue>);

impl Args {
    /// The arguments that `values` stand for: a tuple or list gives an argument for each item, `()` none, and
    /// anything else is the only argument.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when `values` has no JSON form or more than 256 items.
    pub(crate) fn from_values(values: &impl Serialize) -> Result<Self, Problem> {
        let text = serde_json::to_string(values).map_err(|error| {
            Problem::new(
                Code::InvalidRequest,
                format!("the arguments have no JSON form: {error}"),
            )
        })?;
        let array = match text.as_bytes().first() {
            Some(b'[') => text,
            _ if text == "null" => "[]".into(),
            _ => format!("[{text}]"),
        };
        let raw = RawValue::from_string(array).map_err(|error| {
            Problem::new(
                Code::InvalidRequest,
                format!("the arguments have no JSON form: {error}"),
            )
        })?;
        Self::from_raw(&raw)
    }

    pub(super) fn from_raw(raw: &RawValue) -> Result<Self, Problem> {
        let count = serde_json::Deserializer::from_str(raw.get()).deserialize_seq(Counter);
        match count {
            Ok(count) if count <= MAX_ARGS => Ok(Self(raw.to_owned())),
            _ => Err(wrong(
                "args",
                &format!("an array of at most {MAX_ARGS} items"),
            )),
        }
    }

    /// The array itself.
    pub(crate) fn raw(&self) -> &RawValue {
        &self.0
    }
}

impl Default for Args {
    /// No arguments: `[]`.
    fn default() -> Self {
        Self(json::empty_array())
    }
}

/// Counts the items of an array without keeping them.
struct Counter;

impl<'de> Visitor<'de> for Counter {
    type Value = usize;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}
