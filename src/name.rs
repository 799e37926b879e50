//! The words that name things: each a short text that was checked once, shared cheaply and never checked again.
//! Owns their rules; regions have a file of their own.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use ulid::Ulid;

/// Makes the text of an error its Debug form too, because that is what `main` prints of an error that it returns.
macro_rules! debug_as_text {
    ($error:ty) => {
        impl std::fmt::Debug for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
    };
}
pub(crate) use debug_as_text;

/// A text that breaks the rule of the word it was meant to be.
#[derive(Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct InvalidName {
    what: &'static str,
    rule: &'static str,
}

debug_as_text!(InvalidName);

impl InvalidName {
    pub(crate) const fn new(what: &'static str, rule: &'static str) -> Self {
        Self { what, rule }
    }
}

/// Defines a checked text: parsed by its rule, shared as `Arc<str>`, a plain string in JSON.
macro_rules! word {
    ($(#[$doc:meta])* $vis:vis $word:ident, $what:literal, $rule:literal, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        $vis struct $word(std::sync::Arc<str>);

        impl $word {
            /// What a text must be.
            pub(crate) const RULE: &'static str = $rule;

            /// The text itself.
            $vis fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $word {
            type Err = crate::name::InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let fits: fn(&str) -> bool = $fits;
                if !fits(text) {
                    return Err(crate::name::InvalidName::new($what, Self::RULE));
                }
                Ok(Self(text.into()))
            }
        }

        impl serde::Serialize for $word {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $word {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let crate::name::Text(text) = serde::Deserialize::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl std::borrow::Borrow<str> for $word {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $word {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
pub(crate) use word;

/// A string, borrowed from the JSON text unless it has escapes: serde borrows into a `Cow` only with this attribute.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

fn is_identifier(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

word! {
    /// A module or a function: 1 to 128 printable ASCII characters without space, such as `Fly.RPC` or `is_primary?`.
    pub(crate) Name, "a name", "1 to 128 printable ASCII characters without space",
    |text| (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

word! {
    /// A running process of this service: 1 to 128 characters of `[A-Za-z0-9._-]`, on Fly the Machine's id.
    pub InstanceId, "an instance", "1 to 128 characters of [A-Za-z0-9._-]", is_identifier
}

word! {
    /// One run of an instance, from the start of its process to its end: 32 hexadecimal digits.
    pub(crate) BootId, "a boot", "32 hexadecimal digits",
    |text| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

word! {
    /// One call in logs and answers: 1 to 128 characters of `[A-Za-z0-9._-]`.
    pub(crate) RequestId, "a request id", "1 to 128 characters of [A-Za-z0-9._-]", is_identifier
}

word! {
    /// The owner of idempotency keys: a client's name, or `:` and a word for other callers.
    pub(crate) KeyOwner, "an owner of keys", "1 to 65 characters of [A-Za-z0-9._-], or a : before them",
    |text| text.len() <= 65 && is_identifier(text.strip_prefix(':').unwrap_or(text))
}

word! {
    /// What makes a repeat of a call the same call: 1 to 128 visible ASCII characters.
    pub IdempotencyKey, "an idempotency key", "1 to 128 visible ASCII characters",
    |text| (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

word! {
    /// At least as new as this: what an app, or a function, says of its data, and understands; 1 to 256 visible ASCII
    /// characters. In Postgres it is an LSN, in `LiteFS` a TXID.
    pub ConsistencyToken, "a consistency token", "1 to 256 visible ASCII characters",
    |text| (1..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl ConsistencyToken {
    /// The header of an answer with what the function said of its data.
    pub(crate) const HEADER: &str = "rpc-consistency";
}

impl InstanceId {
    /// A new id of 14 hexadecimal digits, the shape of a Fly Machine's id.
    pub fn random() -> Self {
        Self(format!("{:014x}", rand::random::<u64>() >> 8).into())
    }
}

impl IdempotencyKey {
    /// This key for one place of a fan-out: an instance or a region.
    pub(crate) fn of_place(&self, place: &str) -> Self {
        let hash = Sha256::digest(format!("{self}\0{place}"));
        Self(HEXLOWER.encode(&hash).into())
    }
}

impl BootId {
    pub(crate) fn random() -> Self {
        Self(random_word().into())
    }
}

impl KeyOwner {
    /// The program that embeds an instance.
    pub(crate) fn program() -> Self {
        Self(":program".into())
    }
}

impl RequestId {
    /// A new id, a ULID: ids of one instance sort by the time they were made.
    pub(crate) fn fresh() -> Self {
        let mut text = [0; ulid::ULID_LEN];
        Self((&*Ulid::generate().array_to_str(&mut text)).into())
    }
}

/// 32 random hexadecimal digits: a word that nobody else has.
pub(crate) fn random_word() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// What a call names: a function of a module.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize)]
pub(crate) struct FunctionName {
    pub module: Name,
    pub function: Name,
}

/// What stays as it is in a path: what RFC 3986 calls unreserved.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

impl FunctionName {
    pub(crate) fn new(module: &str, function: &str) -> Result<Self, InvalidName> {
        Ok(Self {
            module: module.parse()?,
            function: function.parse()?,
        })
    }

    /// The function that `text` names, split at its last dot, as in `String.upcase`.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let (module, function) = text.rsplit_once('.')?;
        Self::new(module, function).ok()
    }

    /// Its path: its names as two segments, whatever is in them.
    pub(crate) fn path(&self) -> String {
        let segment = |name: &Name| utf8_percent_encode(name.as_str(), UNRESERVED).to_string();
        format!("{}/{}", segment(&self.module), segment(&self.function))
    }

    /// Whether each name stays a segment of a path: `.` and `..` lead to another path, also when they are encoded.
    pub(crate) fn is_segments(&self) -> bool {
        let names = [&self.module, &self.function];
        !names.iter().any(|name| matches!(name.as_str(), "." | ".."))
    }
}

impl std::fmt::Display for FunctionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [self.module.as_str(), ".", self.function.as_str()];
        parts.into_iter().try_for_each(|part| f.write_str(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_segment() {
        let path =
            |module: &str, function: &str| FunctionName::new(module, function).unwrap().path();
        assert_eq!(path("Fly.RPC", "is_primary?"), "Fly.RPC/is_primary%3F");
        assert_eq!(path("a/b", "#?%2e"), "a%2Fb/%23%3F%252e");
        assert_eq!(path("Kernel", "+"), "Kernel/%2B");
        assert_eq!(path("\\", "/"), "%5C/%2F");
        assert_eq!(path("{region}", "f"), "%7Bregion%7D/f");
    }
}
