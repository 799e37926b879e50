//! The arguments of a call, kept as they came: counted, never rebuilt.

use memchr::memchr_iter;
use serde::{
    Deserializer as _, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

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
        let no_form = |error| {
            let detail = format!("the arguments have no JSON form: {error}");
            Problem::new(Code::InvalidRequest, detail)
        };
        let raw = to_raw_value(values).map_err(no_form)?;
        match raw.get().as_bytes().first() {
            Some(b'[') => Self::from_array(raw),
            _ if raw.get() == "null" => Ok(Self::default()),
            _ => Self::from_array(to_raw_value(&[raw]).map_err(no_form)?),
        }
    }

    pub(super) fn from_raw(raw: &RawValue) -> Result<Self, Problem> {
        Self::from_array(raw.to_owned())
    }

    fn from_array(array: Box<RawValue>) -> Result<Self, Problem> {
        let text = array.get();
        // So few commas, inside strings and arrays too, cannot part more items; then the text is not read once more.
        let is_short =
            text.starts_with('[') && memchr_iter(b',', text.as_bytes()).count() < MAX_ARGS;
        let count = || serde_json::Deserializer::from_str(text).deserialize_seq(Counter);
        if is_short || matches!(count(), Ok(count) if count <= MAX_ARGS) {
            return Ok(Self(array));
        }
        Err(wrong(
            "args",
            &format!("an array of at most {MAX_ARGS} items"),
        ))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let counted = serde_json::Deserializer::from_str(self.0.get()).deserialize_seq(Counter);
        counted.unwrap_or_else(|error| unreachable!("args were counted before: {error}"))
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
