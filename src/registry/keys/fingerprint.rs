//! An idempotency key, and what two calls under it must have in common, hashed: the function and the value of the arguments.
//!
//! White space, the order of an object's members and the escapes of strings do not count. Every digit of a number does,
//! because functions see them all: `1.0` is not `1`.

use data_encoding::HEXLOWER;
use memchr::memchr2;
use sha2::{Digest, Sha256};

use crate::{call::Call, name::IdempotencyKey};

/// A key, or a call's function and arguments, hashed: small, whatever their length.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Fingerprint([u8; 16]);

impl Fingerprint {
    pub(super) fn of_key(key: &IdempotencyKey) -> Self {
        Self::of(key.as_str().as_bytes())
    }

    /// The fingerprint of `call`. Names hold no NUL, so that no two calls give the same text.
    pub(super) fn of_call(call: &Call) -> Self {
        let mut out = format!("{}\0{}\0", call.name.module, call.name.function).into_bytes();
        let text = call.args.raw().get().as_bytes();
        JsonCursor { text, at: 0 }.value(&mut out);
        Self::of(&out)
    }

    fn of(text: &[u8]) -> Self {
        let hash = Sha256::digest(text);
        Self(std::array::from_fn(|byte| hash[byte]))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

/// Reads text that is JSON, as was checked before, and writes each value in one form that no other value has.
struct JsonCursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl JsonCursor<'_> {
    fn value(&mut self, out: &mut Vec<u8>) {
        match self.peek() {
            Some(b'{') => self.object(out),
            Some(b'[') => self.array(out),
            Some(b'"') => self.string(out),
            _ => self.word(out),
        }
    }

    fn object(&mut self, out: &mut Vec<u8>) {
        self.at += 1;
        let mut members = Vec::new();
        while self.peek().is_some_and(|byte| byte != b'}') {
            let (mut name, mut value) = (Vec::new(), Vec::new());
            self.string(&mut name);
            self.skip(b':');
            self.value(&mut value);
            self.skip(b',');
            members.push((name, value));
        }
        self.at += 1;
        // Of members with the same name the order counts, so the sort must be stable.
        members.sort_by(|(one, _), (other, _)| one.cmp(other));
        out.push(b'{');
        for (name, value) in members {
            out.extend(name);
            out.extend(value);
        }
        out.push(b'}');
    }

    fn array(&mut self, out: &mut Vec<u8>) {
        self.at += 1;
        out.push(b'[');
        while self.peek().is_some_and(|byte| byte != b']') {
            self.value(out);
            self.skip(b',');
        }
        self.at += 1;
        out.push(b']');
    }

    /// Writes a string's characters behind their number, so that none of them ends it.
    fn string(&mut self, out: &mut Vec<u8>) {
        self.peek();
        let start = self.at;
        self.at += 1;
        while let Some(found) = memchr2(b'"', b'\\', self.rest()) {
            self.at += found + 1;
            if self.text[self.at - 1] == b'"' {
                break;
            }
            self.at += 1;
        }
        let quoted = &self.text[start..self.at.min(self.text.len())];
        let text = serde_json::from_slice::<String>(quoted).unwrap_or_default();
        out.push(b'"');
        out.extend(text.len().to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// Writes a number or a literal.
    fn word(&mut self, out: &mut Vec<u8>) {
        let is_end = |byte: &u8| b",]} \t\r\n".contains(byte);
        let length = self.rest().iter().position(is_end);
        let length = length.unwrap_or(self.rest().len());
        out.extend(&self.rest()[..length]);
        out.push(b',');
        self.at += length.max(1);
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !byte.is_ascii_whitespace() {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    fn skip(&mut self, byte: u8) {
        if self.peek() == Some(byte) {
            self.at += 1;
        }
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn of(args: &str) -> Fingerprint {
        let timeouts = Config::default().timeouts;
        let body = format!(r#"{{"module":"M","function":"f","args":{args}}}"#);
        Fingerprint::of_call(&Call::from_json(body.as_bytes(), timeouts).unwrap())
    }

    #[test]
    fn equal_values_have_equal_fingerprints() {
        for (one, other) in [
            ("[300]", " [ 300\n]"),
            (
                r#"[{"a":1,"b":[2,{"c":3,"d":4}]}]"#,
                r#"[{ "b" : [2, {"d":4,"c":3}], "a":1 }]"#,
            ),
            (r#"["a/\u00e9\ud83d\ude00"]"#, r#"["\u0061\/é😀"]"#),
            (r#"[{"\u0061":null}]"#, r#"[{"a":null}]"#),
            ("[]", "[ ]"),
            ("[{},[],\"\"]", "[ { } , [ ] , \"\" ]"),
        ] {
            assert_eq!(of(one), of(other), "{one} {other}");
        }
    }

    #[test]
    fn different_values_have_different_fingerprints() {
        let texts = r#"[] [[]] [{}] [null] [1] [1.0] [1e0] [10] [1,0] [-1] [[1],0] [[1,0]] [true] [false] [""] ["1"] ["true"]
            ["a","b"] ["a\",\"b"] ["ab",""] [{"a":1}] [{"a":1,"b":2}] [{"a":2,"b":1}] [{"a":1},{"b":2}] [{"a":1,"a":2}]
            [{"a":2,"a":1}] [{"a":{"b":1}}] ["{"] ["\u0000"]"#;
        let texts: Vec<_> = texts.split_whitespace().collect();
        for (at, one) in texts.iter().enumerate() {
            for other in &texts[at + 1..] {
                assert_ne!(of(one), of(other), "{one} {other}");
            }
        }
    }
}
