//! The setting of the store for idempotency keys: where it is, and what this program can speak.

use std::{fmt, str::FromStr, sync::Arc};

use super::InvalidUrl;

/// Where all instances remember the outcomes of calls with an idempotency key.
///
/// `redis://host:6379/0` or `redis+unix:///run/redis.sock`, of Redis 7 or Valkey. It may hold a password, which nothing
/// shows.
#[derive(Clone, Eq, PartialEq)]
pub struct KeyStoreUrl(Arc<str>);

impl KeyStoreUrl {
    /// The URL itself, with its password.
    #[cfg(feature = "redis")]
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }

    /// That the client of the store refuses the URL after all.
    #[cfg(feature = "redis")]
    pub(crate) fn refused() -> super::ConfigError {
        super::settings::RPC_KEY_STORE.error("is no URL of a store that this program knows")
    }
}

impl fmt::Debug for KeyStoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyStoreUrl(…)")
    }
}

impl FromStr for KeyStoreUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let wrong = |what| {
            let example = "redis://127.0.0.1:6379";
            Err(InvalidUrl { what, example })
        };
        match text.split_once("://").map(|(scheme, _)| scheme) {
            None => wrong("is no URL"),
            #[cfg(not(feature = "redis"))]
            Some(_) => wrong("needs the feature `redis`, which this program was built without"),
            #[cfg(feature = "redis")]
            Some("redis" | "valkey" | "redis+unix" | "valkey+unix") => {
                match redis::Client::open(text) {
                    Ok(_) => Ok(Self(text.into())),
                    Err(_) => wrong("is no URL of a Redis"),
                }
            }
            #[cfg(feature = "redis")]
            Some("rediss" | "valkeys") => wrong("needs TLS, which instances do not speak"),
            #[cfg(feature = "redis")]
            Some(_) => wrong("is no store that this program knows"),
        }
    }
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
