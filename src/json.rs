//! The JSON that we accept: one value, at most 64 deep, its members looked up by name and left unparsed.
//! Args and results stay raw from here on; only the function that takes them looks inside.

use std::{borrow::Cow, fmt};

use memchr::{memchr, memchr2, memchr2_iter};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    name::Text,
    problem::{Code, Problem},
};

/// The size of most of our documents without their large part, in bytes.
const ENVELOPE: usize = 512;

/// The deepest nesting of arrays and objects that is accepted.
pub(crate) const MAX_DEPTH: usize = 64;

/// What to do with members that are not among the names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unknown {
    /// Refuse: a caller's typo must not go unnoticed.
    Refused,
    /// Ignore: a newer release may say more.
    Ignored,
}

/// The members of the JSON object `text` by `names`, in the order of `names`, each as its raw text.
///
/// # Errors
/// [`Code::InvalidJson`]; in whole JSON, [`Code::InvalidRequest`] for another value than an object, or a member that is
/// unknown or given twice. The detail repeats no value.
pub(crate) fn members<'a, const N: usize>(
    text: &'a [u8],
    names: &'static [&'static str; N],
    unknown: Unknown,
) -> Result<[Option<&'a RawValue>; N], Problem> {
    // Arguments that were a body of their own stand one deeper in the line of a peer.
    scan(text, MAX_DEPTH + usize::from(unknown == Unknown::Ignored))?;
    // Checked once for the whole text, and not for each member. Text that is not UTF-8 gets the error of the reader of
    // JSON.
    let Ok(text) = str::from_utf8(text) else {
        let read = serde_json::from_slice::<&RawValue>(text);
        return Err(read.map_or_else(not_json, |_| not_an_object()));
    };
    let (mut values, mut stranger, mut duplicate) = ([None; N], None, None);
    let read = each_member(text, |name, value| {
        match names.iter().position(|known| *known == name) {
            Some(at) if values[at].is_some() => duplicate = Some(names[at]),
            Some(at) => values[at] = Some(value),
            None => _ = stranger.get_or_insert(name),
        }
    });
    if let Err(error) = read {
        if !error.is_data() {
            return Err(not_json(error));
        }
        // Another value, if the rest of it is JSON too.
        let read = serde_json::from_str::<IgnoredAny>(text);
        return Err(read.map_or_else(not_json, |_| not_an_object()));
    }
    let wrong = |detail: String| Err(Problem::new(Code::InvalidRequest, detail));
    if let Some(name) = duplicate {
        return wrong(format!("member {name:?} is given twice"));
    }
    match stranger {
        Some(name) if unknown == Unknown::Refused => wrong(format!("unknown member {name:?}")),
        _ => Ok(values),
    }
}

fn not_json(error: impl fmt::Display) -> Problem {
    let detail = format!("the body is not one JSON value: {error}");
    Problem::new(Code::InvalidJson, detail)
}

fn not_an_object() -> Problem {
    Problem::new(Code::InvalidRequest, "the body must be a JSON object")
}

/// Gives `each` the name and the value of every member of the JSON object `text`, in order, duplicates included.
///
/// # Errors
/// The text is not one JSON value, or is no object; what was read before that was given.
pub(crate) fn each_member<'a>(
    text: &'a str,
    each: impl FnMut(Cow<'a, str>, &'a RawValue),
) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Members(each))?;
    json.end()
}

/// The only JSON value in `text`, as it stands there.
///
/// # Errors
/// [`Code::InvalidJson`].
pub(crate) fn value(text: &[u8]) -> Result<Box<RawValue>, Problem> {
    check(text)?;
    serde_json::from_slice(text).map_err(not_json)
}

/// What stands in a JSON string; `None` for another value.
pub(crate) fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    match memchr(b'\\', quoted.as_bytes()) {
        None => Some(Cow::Borrowed(quoted)),
        Some(_) => serde_json::from_str(raw.get()).ok(),
    }
}

/// A member for `deserialize_with`; `None` where it is not a valid `T`, so that the rest of the document is read.
pub(crate) fn if_valid<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let raw = Box::<RawValue>::deserialize(from)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

/// `value` as JSON text.
///
/// For values of our own, whose members are names, numbers and raw JSON and so always have a JSON form.
pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    to_vec_around(0, value)
}

/// As [`to_vec`], for a document around a part of `size` bytes: a buffer that grows with it would take up to twice as much.
pub(crate) fn to_vec_around(size: usize, value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + ENVELOPE);
    serde_json::to_writer(&mut text, value)
        .unwrap_or_else(|error| unreachable!("a value of ours has a JSON form: {error}"));
    text
}

/// JSON text in one line: outside of tokens a line break is white space, and inside of them there is none.
pub(crate) fn in_one_line(text: &str) -> Cow<'_, str> {
    match memchr2(b'\n', b'\r', text.as_bytes()) {
        Some(_) => Cow::Owned(text.replace(['\n', '\r'], " ")),
        None => Cow::Borrowed(text),
    }
}

/// Makes one line of JSON text.
pub(crate) fn join_lines(text: &mut [u8]) {
    let mut from = 0;
    while let Some(at) = memchr2(b'\n', b'\r', &text[from..]) {
        from += at;
        text[from] = b' ';
    }
}

pub(crate) fn empty_array() -> Box<RawValue> {
    RawValue::from_string("[]".to_owned())
        .unwrap_or_else(|error| unreachable!("[] is JSON: {error}"))
}

/// A reader of an object, with what is to be done with each member.
struct Members<F>(F);

impl<'de, F: FnMut(Cow<'de, str>, &'de RawValue)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            (self.0)(name, map.next_value()?);
        }
        Ok(())
    }
}

/// Finds what the raw values of `serde_json` let through: any depth, and lone surrogates.
///
/// # Errors
/// [`Code::InvalidJson`].
pub(crate) fn check(text: &[u8]) -> Result<(), Problem> {
    scan(text, MAX_DEPTH)
}

fn scan(text: &[u8], most: usize) -> Result<(), Problem> {
    // Nearly every text ends here: without a backslash and with so few brackets, there is nothing to find.
    let brackets = memchr2_iter(b'[', b'{', text).take(most + 1).count();
    if brackets <= most && memchr(b'\\', text).is_none() {
        return Ok(());
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_string(text, at)?,
            _ => {}
        }
        if depth > most {
            let detail = format!("the body is nested deeper than {MAX_DEPTH}");
            return Err(Problem::new(Code::InvalidJson, detail));
        }
    }
    Ok(())
}

/// The position behind the string whose content starts at `at`.
fn end_of_string(text: &[u8], mut at: usize) -> Result<usize, Problem> {
    while let Some(plain) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += plain;
        if text[at] == b'"' {
            return Ok(at + 1);
        }
        at += match surrogate(text, at) {
            Some(0xD800..0xDC00) if matches!(surrogate(text, at + 6), Some(0xDC00..0xE000)) => 12,
            // Half of a pair, which no text in UTF-8 can hold.
            Some(0xD800..0xE000) => return Err(not_json("lone surrogate in a string")),
            _ => 2,
        };
    }
    Ok(text.len())
}

/// The code unit of the `\uXXXX` escape at `at`, if there is one.
fn surrogate(text: &[u8], at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str; 2] = &["a", "b"];

    #[test]
    fn members_come_raw_and_in_order() {
        let found = members(
            br#" {"b": [1.10, "x"] , "\u0061":18446744073709551617}"#,
            NAMES,
            Unknown::Refused,
        )
        .unwrap();
        assert_eq!(
            found.map(|raw| raw.unwrap().get()),
            ["18446744073709551617", r#"[1.10, "x"]"#]
        );
    }

    #[test]
    fn surrogate_pairs_and_escaped_backslashes_are_fine() {
        for text in [
            r#"{"a":"\ud83d\ude00"}"#,
            r#"{"a":"\\ud800"}"#,
            r#"{"a":"\"[[\u00e9"}"#,
        ] {
            members(text.as_bytes(), NAMES, Unknown::Refused).unwrap();
        }
    }
}
