//! The URLs of what an instance has beside it: an app, and the store of idempotency keys.

use std::{
    fmt,
    os::unix::net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use http::{Uri, uri::Scheme};

use super::settings::port;
use crate::name::debug_as_text;

/// A text that is not the URL of an app or of a store.
#[derive(Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("{what}; write for example {example}")]
pub struct InvalidUrl {
    what: &'static str,
    example: &'static str,
}

debug_as_text!(InvalidUrl);

/// Where an app serves its functions: `http://127.0.0.1:3000/rpc` or `unix:/run/app.sock:/rpc`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppUrl {
    /// What to connect to.
    pub address: AppAddress,
    /// The path of the list, without a slash at its end; each function's begins with it.
    pub(crate) base: String,
}

/// What to connect to, for an app.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AppAddress {
    /// A host and a port.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

impl AppUrl {
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.address, AppAddress::Unix(_))
    }
}

impl FromStr for AppUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        read_url(text).map_err(|what| InvalidUrl {
            what,
            example: "http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc",
        })
    }
}

fn read_url(text: &str) -> Result<AppUrl, &'static str> {
    if let Some(rest) = text.strip_prefix("unix:") {
        // The last colon: the path of a socket may have others.
        let (socket, path) = rest
            .rsplit_once(':')
            .ok_or("has no path behind the socket")?;
        if !Path::new(socket).is_absolute() {
            return Err("has a socket that is no absolute path");
        }
        check_socket(Path::new(socket))?;
        return Ok(AppUrl {
            address: AppAddress::Unix(socket.into()),
            base: base(path)?,
        });
    }
    let uri: Uri = text.parse().map_err(|_| "is no URL")?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err("is no http URL");
    }
    let authority = uri.authority().ok_or("has no host")?;
    if authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') {
        return Err("has more than a host, a port and a path");
    }
    let host = authority.host();
    // `http` takes any text behind the colon.
    let port = match authority.as_str().strip_prefix(host) {
        Some("" | ":") => 80,
        rest => {
            let port = rest.and_then(|rest| port(rest.strip_prefix(':')?).ok());
            port.ok_or("has an invalid port")?
        }
    };
    Ok(AppUrl {
        address: AppAddress::Tcp(format!("{host}:{port}")),
        base: base(uri.path())?,
    })
}

/// Refuses a path that the system takes for no socket.
fn check_socket(path: &Path) -> Result<(), &'static str> {
    match SocketAddr::from_pathname(path) {
        Ok(_) => Ok(()),
        Err(_) => Err("has a socket whose path is longer than the system takes"),
    }
}

fn base(path: &str) -> Result<String, &'static str> {
    let is_path = |uri: Uri| uri.authority().is_none() && uri.query().is_none();
    match path.starts_with('/') && path.parse().is_ok_and(is_path) {
        true => Ok(path.trim_end_matches('/').to_owned()),
        false => Err("has an invalid path"),
    }
}

impl fmt::Display for AppUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = if self.base.is_empty() {
            "/"
        } else {
            &self.base
        };
        match &self.address {
            AppAddress::Tcp(address) => write!(f, "http://{address}{base}"),
            AppAddress::Unix(socket) => write!(f, "unix:{}:{base}", socket.display()),
        }
    }
}

/// Where all instances remember the outcomes of calls with an idempotency key.
///
/// `redis://host:6379/0` or `redis+unix:///run/redis.sock`, of Redis 7 or Valkey. It may hold a password, which nothing
/// shows.
#[derive(Clone)]
pub struct KeyStoreUrl {
    /// What connects to it.
    #[cfg(feature = "redis")]
    pub(crate) client: redis::Client,
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
            // The client would ignore the query and use database 0.
            #[cfg(feature = "redis")]
            Some("redis" | "valkey") if text.contains('?') => Err(InvalidUrl {
                what: "must have its database in the path, and no query",
                example: "redis://127.0.0.1:6379/5",
            }),
            #[cfg(feature = "redis")]
            Some("redis" | "valkey" | "redis+unix" | "valkey+unix") => {
                let Ok(client) = redis::Client::open(text) else {
                    return wrong("is no URL of a Redis");
                };
                if let redis::ConnectionAddr::Unix(socket) = client.get_connection_info().addr()
                    && let Err(what) = check_socket(socket)
                {
                    return wrong(what);
                }
                Ok(Self { client })
            }
            #[cfg(feature = "redis")]
            Some("rediss" | "valkeys") => wrong("needs TLS, which instances do not speak"),
            #[cfg(feature = "redis")]
            Some(_) => wrong("is no store that this program knows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_apps() {
        let read = |text: &str| text.parse::<AppUrl>().map(|url| url.to_string());
        for (text, means) in [
            ("http://127.0.0.1:3000/rpc", "http://127.0.0.1:3000/rpc"),
            ("http://[::1]:3000/rpc/", "http://[::1]:3000/rpc"),
            ("http://app", "http://app:80/"),
            ("unix:/run/app.sock:/rpc", "unix:/run/app.sock:/rpc"),
            ("unix:/run/a:b.sock:/", "unix:/run/a:b.sock:/"),
        ] {
            assert_eq!(read(text).unwrap(), means);
        }
        let wrong = " 127.0.0.1:3000 https://127.0.0.1/rpc http:///rpc http://user@host/rpc http://host/rpc?x=1 \
                     http://host/rpc#x http://host:65536/rpc http://host:0/rpc http://host:3OOO/rpc http://host:+3000/rpc \
                     unix:/run/app.sock unix:run/app.sock:/rpc unix:/run/app.sock:/rpc?x";
        for text in wrong.split(' ') {
            let refusal = read(text).unwrap_err().to_string();
            assert!(refusal.contains("write for example"), "{text}: {refusal}");
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn urls_of_stores_and_what_is_wrong_with_others() {
        for good in [
            "redis://127.0.0.1:6379",
            "valkey://:secret@[::1]/1",
            "redis+unix:///run/redis.sock?db=5",
        ] {
            let url: KeyStoreUrl = good.parse().unwrap();
            assert_eq!(format!("{url:?}"), "KeyStoreUrl(…)");
        }
        for (bad, why) in [
            ("127.0.0.1:6379", "is no URL;"),
            ("rediss://host", "needs TLS,"),
            ("postgres://host", "is no store that this program knows;"),
            ("redis://host:port", "is no URL of a Redis;"),
            (
                "redis://host?db=5",
                "must have its database in the path, and no query;",
            ),
        ] {
            let refusal = bad.parse::<KeyStoreUrl>().unwrap_err().to_string();
            assert!(refusal.starts_with(why), "{bad}: {refusal}");
        }
    }
}
