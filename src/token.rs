//! Secrets that requests present, and proofs that the sender knows one without sending it. A token is compared by its
//! digest in constant time and never shown; `access.rs` decides what it allows.

use std::{fmt, str::FromStr};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::name::InvalidName;

/// A secret: 32 to 256 characters of `[A-Za-z0-9._~+/=-]`, the alphabet of bearer tokens (RFC 6750, section 2.1).
#[derive(Clone)]
pub struct Token {
    secret: Box<str>,
    digest: [u8; 32],
}

impl Token {
    /// The value of `Authorization` that presents it, which no log shows.
    pub(crate) fn bearer(&self) -> HeaderValue {
        let value = HeaderValue::try_from(format!("Bearer {}", self.secret));
        let mut value = value.unwrap_or_else(|_| unreachable!("tokens have characters of headers"));
        value.set_sensitive(true);
        value
    }

    /// The proof, for others that know this token, that `statement` was made by one that knows it.
    pub(crate) fn prove(&self, statement: &str) -> Proof {
        let mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes());
        let mut mac = mac.unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(statement.as_bytes());
        Proof(mac.finalize().into_bytes().into())
    }
}

impl FromStr for Token {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_token_character =
            |byte: u8| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(&byte);
        if !(32..=256).contains(&text.len()) || !text.bytes().all(is_token_character) {
            return Err(InvalidName::new(
                "a token",
                "32 to 256 characters of [A-Za-z0-9._~+/=-]; make one with `openssl rand -hex 32`",
            ));
        }
        Ok(Self {
            secret: text.into(),
            digest: Sha256::digest(text).into(),
        })
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// The token in a request, as the digest that is compared.
#[derive(Clone)]
pub(crate) struct PresentedToken([u8; 32]);

impl PresentedToken {
    /// The token in the value of an `Authorization` header; `None` for another scheme than `Bearer`.
    pub(crate) fn from_authorization(value: &[u8]) -> Option<Self> {
        let (scheme, token) = value.split_at_checked("Bearer ".len())?;
        scheme
            .eq_ignore_ascii_case(b"Bearer ")
            .then(|| Self(Sha256::digest(token).into()))
    }

    /// The index of this token in `tokens`. Every one is compared, so that the time does not depend on the index.
    pub(crate) fn position<'a>(
        &self,
        tokens: impl IntoIterator<Item = &'a Token>,
    ) -> Option<usize> {
        // Digests have one length, so that the time does not depend on how much of a token was right either.
        let is_equal = |token: &Token| -> Choice { token.digest.ct_eq(&self.0) };
        let comparisons = tokens.into_iter().map(is_equal).enumerate();
        comparisons.fold(None, |found, (index, is_equal)| {
            bool::from(is_equal).then_some(index).or(found)
        })
    }
}

/// The HMAC-SHA-256 (RFC 2104) of a statement under a token: 64 hexadecimal digits in text. Compared in constant time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proof([u8; 32]);

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Proof {}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl FromStr for Proof {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        let proof = bytes.and_then(|bytes| bytes.try_into().ok());
        proof
            .map(Self)
            .ok_or(InvalidName::new("a proof", "64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(character: char) -> Token {
        character.to_string().repeat(32).parse().unwrap()
    }

    #[test]
    fn a_token_is_long_and_has_the_alphabet_of_bearer_tokens() {
        for good in ["x".repeat(32), "aZ09._~+/=-".repeat(3), "x".repeat(256)] {
            good.parse::<Token>().unwrap();
        }
        for (bad, times) in [("x", 31), ("x", 257), (" ", 40), ("a:b,", 10)] {
            let bad = bad.repeat(times);
            let refused = bad.parse::<Token>().unwrap_err().to_string();
            assert!(!refused.contains(&bad), "{refused}");
        }
    }

    #[test]
    fn a_presented_token_is_found_by_its_whole_text() {
        let tokens = [token('a'), token('b')];
        let position =
            |value: &str| PresentedToken::from_authorization(value.as_bytes())?.position(&tokens);
        let bearer = |character| token(character).bearer().to_str().unwrap().to_owned();
        assert_eq!(position(&bearer('a')), Some(0));
        assert_eq!(position(&bearer('b').replace("Bearer", "bearer")), Some(1));
        for wrong in ["", "Bearer ", "Bearer a", "Basic YTpi", &"a".repeat(32)] {
            assert_eq!(position(wrong), None, "{wrong}");
        }
        assert_eq!(position(&format!("{} ", bearer('a'))), None);
    }

    #[test]
    fn a_proof_holds_for_its_token_and_its_statement_only() {
        let proof: Proof = token('a').prove("one").to_string().parse().unwrap();
        assert_eq!(token('a').prove("one"), proof);
        assert_ne!(token('a').prove("two"), proof);
        assert_ne!(token('b').prove("one"), proof);
    }

    #[test]
    fn proofs_are_64_hexadecimal_digits() {
        for bad in ["", "0", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            bad.parse::<Proof>().unwrap_err();
        }
        let text = "0f".repeat(32);
        assert_eq!(text.parse::<Proof>().unwrap().to_string(), text);
    }
}
