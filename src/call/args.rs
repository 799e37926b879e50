//! The arguments of a call, kept as they came: counted, never rebuilt, but where the function that takes them puts those
//! given by name in order.

use std::{
    borrow::Cow,
    fmt::{self, Write},
    marker::PhantomData,
};

use memchr::memchr_iter;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    declaration::{MAX_PARAMS, Param},
    json,
    problem::{Code, Problem},
};

/// The most arguments that a call may have.
const MAX_ARGS: usize = MAX_PARAMS;

/// The arguments of a call, at most 256, exactly as received: a JSON array, or an object by the names of the function's
/// parameters.
#[derive(Clone, Debug)]
pub(crate) struct Args(Box<RawValue>);

impl Args {
    /// What arguments must be.
    pub(crate) const RULE: &str =
        "an array, or an object by the names of parameters, of at most 256 arguments";

    /// The arguments that `values` stand for: a tuple or list gives an argument for each item, `()` none, and
    /// anything else is the only argument.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when `values` has no JSON form or more than 256 items.
    pub(crate) fn from_values(values: &impl Serialize) -> Result<Self, Problem> {
        let raw = to_raw_value(values).map_err(|error| no_form(&error))?;
        match raw.get().as_bytes().first() {
            Some(b'[') => Self::checked(raw),
            _ if raw.get() == "null" => Ok(Self::default()),
            _ => Self::checked(to_raw_value(&[raw]).map_err(|error| no_form(&error))?),
        }
    }

    /// The arguments that the members of `values`, a struct or a map, are by their names.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when `values` has no JSON form, is no object, or has more than 256 members.
    pub(crate) fn from_members(values: &impl Serialize) -> Result<Self, Problem> {
        let raw = to_raw_value(values).map_err(|error| no_form(&error))?;
        match raw.get().starts_with('{') {
            true => Self::checked(raw),
            false => Err(Problem::new(
                Code::InvalidRequest,
                "arguments by name must be a struct or a map",
            )),
        }
    }

    /// The arguments in `raw`; `None` where it breaks [`Args::RULE`].
    pub(crate) fn from_raw(raw: Box<RawValue>) -> Option<Self> {
        let text = raw.get();
        if !text.starts_with(['[', '{']) {
            return None;
        }
        // So few commas, inside strings and arrays too, cannot part more items; then the text is not read once more.
        let is_short = memchr_iter(b',', text.as_bytes()).count() < MAX_ARGS;
        (is_short || count(text) <= MAX_ARGS).then_some(Self(raw))
    }

    fn checked(raw: Box<RawValue>) -> Result<Self, Problem> {
        let refuse = |rule: &str| {
            let detail = format!("the arguments must be {rule}");
            Problem::new(Code::InvalidRequest, detail)
        };
        json::check(raw.get().as_bytes())
            .map_err(|_| refuse("at most 64 deep, without lone surrogates in strings"))?;
        Self::from_raw(raw).ok_or_else(|| refuse(Self::RULE))
    }

    /// As they came.
    pub(crate) fn raw(&self) -> &RawValue {
        &self.0
    }

    /// The arguments as an array, for a function that declares `params`, or does not say.
    ///
    /// # Errors
    /// Which argument does not fit, in words: one that is missing, unknown or given twice, or another number of them.
    pub(crate) fn in_order(&self, params: Option<&[Param]>) -> Result<Cow<'_, Self>, String> {
        let text = self.0.get();
        if text.starts_with('{') {
            let params = params
                .ok_or("takes its arguments in an array: it declares no names of parameters")?;
            return by_name(text, params).map(Cow::Owned);
        }
        let Some(params) = params else {
            return Ok(Cow::Borrowed(self));
        };
        let (takes, given) = (params.len(), count(text));
        match takes == given {
            true => Ok(Cow::Borrowed(self)),
            false => Err(format!(
                "expected {takes} arguments ({}), got {given}",
                names(params)
            )),
        }
    }
}

impl Default for Args {
    /// No arguments: `[]`.
    fn default() -> Self {
        Self(json::empty_array())
    }
}

fn no_form(error: &serde_json::Error) -> Problem {
    let detail = format!("the arguments have no JSON form: {error}");
    Problem::new(Code::InvalidRequest, detail)
}

/// The members of the object `text` as an array in the order of `params`.
fn by_name(text: &str, params: &[Param]) -> Result<Args, String> {
    let members: Members<String, &RawValue> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut values = vec![None; params.len()];
    for (name, value) in members.0 {
        let Some(place) = params.iter().position(|param| param.name == name) else {
            return Err(format!(
                "argument {name:?} is unknown; expected {}",
                names(params)
            ));
        };
        if values[place].replace(value).is_some() {
            return Err(format!("argument {name:?} is given twice"));
        }
    }
    let mut array = String::with_capacity(text.len());
    for (param, value) in params.iter().zip(values) {
        let value = value.ok_or_else(|| format!("argument {:?} is missing", param.name))?;
        array.push(if array.is_empty() { '[' } else { ',' });
        array.push_str(value.get());
    }
    // Without parameters there was no bracket to open.
    array.push_str(if params.is_empty() { "[]" } else { "]" });
    let raw = RawValue::from_string(array).map_err(|error| error.to_string())?;
    Ok(Args(raw))
}

fn names(params: &[Param]) -> String {
    let mut names = String::new();
    for param in params {
        let comma = if names.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(names, "{comma}{}", param.name);
    }
    match names.is_empty() {
        true => "none".to_owned(),
        false => names,
    }
}

/// How many items an array has, or members an object. Nothing is kept of them: `IgnoredAny` has no size.
fn count(text: &str) -> usize {
    let counted = match text.starts_with('[') {
        true => serde_json::from_str(text).map(|items: Vec<IgnoredAny>| items.len()),
        false => serde_json::from_str(text)
            .map(|members: Members<IgnoredAny, IgnoredAny>| members.0.len()),
    };
    counted.unwrap_or_else(|error| unreachable!("args are JSON: {error}"))
}

/// The members of an object in order; one that is given twice is there twice.
struct Members<K, V>(Vec<(K, V)>);

impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Members<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<K, V>(PhantomData<(K, V)>);

        impl<'de, K: Deserialize<'de>, V: Deserialize<'de>> Visitor<'de> for Collect<K, V> {
            type Value = Members<K, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<K, V>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect(PhantomData))
    }
}
