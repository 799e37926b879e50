//! The setting of the store for idempotency keys: where it is, and what this program can speak.

use std::{fmt, str::FromStr, sync::Arc};

use super::{ConfigError, settings::RPC_KEY_STORE, values::Values};

/// Where all instances remember the outcomes of calls with an idempotency key.
///
/// `redis://host:6379/0` or `redis+unix:///run/redis.sock`, of Redis 7 or Valkey. It may hold a password, which nothing
/// shows.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyStoreUrl(Arc<str>);

/// A text that is no URL of a store for keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}; write for example redis://127.0.0.1:6379")]
pub struct InvalidKeyStore(&'static str);

impl KeyStoreUrl {
    /// The URL itself, with its password.
    #[cfg(feature = "redis")]
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl KeyStoreUrl {
    /// That it is none after all.
    pub(crate) fn refused() -> ConfigError {
        RPC_KEY_STORE.error("is no URL of a store that this program knows")
    }
}

impl fmt::Debug for KeyStoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyStoreUrl(…)")
    }
}

impl FromStr for KeyStoreUrl {
    type Err = InvalidKeyStore;

    fn from_str(text: &str) -> Result<Self, InvalidKeyStore> {
        let (scheme, _) = text.split_once("://").ok_or(InvalidKeyStore("is no URL"))?;
        match scheme {
            _ if cfg!(not(feature = "redis")) => Err(InvalidKeyStore(
                "needs the feature `redis`, which this program was built without",
            )),
            "rediss" | "valkeys" => Err(InvalidKeyStore("needs TLS, which instances do not speak")),
            "redis" | "valkey" | "redis+unix" | "valkey+unix" => check(text),
            _ => Err(InvalidKeyStore("is no store that this program knows")),
        }?;
        Ok(Self(text.into()))
    }
}

#[cfg(feature = "redis")]
fn check(text: &str) -> Result<(), InvalidKeyStore> {
    let opened = redis::Client::open(text);
    opened
        .map(drop)
        .map_err(|_| InvalidKeyStore("is no URL of a Redis"))
}

#[cfg(not(feature = "redis"))]
fn check(_: &str) -> Result<(), InvalidKeyStore> {
    Ok(())
}

/// The store that the settings name, if they do.
pub(super) fn read(values: &Values) -> Result<Option<KeyStoreUrl>, ConfigError> {
    let url = |text: &str| {
        let url = text
            .parse()
            .map_err(|invalid: InvalidKeyStore| invalid.to_string());
        Ok(vec![url?])
    };
    Ok(values.secrets(RPC_KEY_STORE, url)?.pop())
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn urls_of_stores_and_what_is_wrong_with_others() {
        for good in [
            "redis://127.0.0.1:6379",
            "valkey://:secret@[::1]/1",
            "redis+unix:///run/redis.sock",
        ] {
            let url: KeyStoreUrl = good.parse().unwrap();
            assert_eq!(
                (url.secret(), format!("{url:?}").as_str()),
                (good, "KeyStoreUrl(…)")
            );
        }
        for (bad, why) in [
            ("127.0.0.1:6379", "is no URL;"),
            ("rediss://host", "needs TLS,"),
            ("postgres://host", "is no store that this program knows;"),
            ("redis://host:port", "is no URL of a Redis;"),
        ] {
            let refusal = bad.parse::<KeyStoreUrl>().unwrap_err().to_string();
            assert!(refusal.starts_with(why), "{bad}: {refusal}");
        }
    }
}
