//! The settings of the app beside an instance: where it is, what it is sent, how much at once.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use http::{Uri, uri::Scheme};

use super::{
    ConfigError, InvalidUrl,
    settings::{
        RPC_APP_ALLOW_ANONYMOUS, RPC_APP_CONCURRENCY, RPC_APP_STOP_TIMEOUT, RPC_APP_TOKEN,
        RPC_APP_URL,
    },
    values::{Values, count, duration, parsed, true_or_false},
};
use crate::{call::MAX_TIMEOUT, token::Token};

/// The app beside an instance.
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// Where it serves its functions.
    pub url: AppUrl,
    /// The token in every request to it; only an app at a unix socket needs none.
    pub token: Option<Token>,
    /// Calls in it at once, 1 or more; as many again wait.
    pub concurrency: usize,
    /// How long a child process may take to stop.
    pub stop_timeout: Duration,
    /// Whether its functions are offered although it gives its list without the token.
    pub allow_anonymous: bool,
}

/// Where an app serves its functions: `http://127.0.0.1:3000/rpc` or `unix:/run/app.sock:/rpc`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppUrl {
    /// What to connect to.
    pub address: AppAddress,
    /// The path of the list, without a slash at its end; each function's begins with it.
    base: String,
}

/// What to connect to, for an app.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AppAddress {
    /// A host and a port.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

impl AppConfig {
    /// Checks what no value shows by itself.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.token.is_none() && !self.url.is_unix() {
            let detail = "is needed with RPC_APP_URL: make one with `openssl rand -hex 32`, and have the app answer 401 \
                          to requests that do not bear it";
            return Err(RPC_APP_TOKEN.error(detail));
        }
        if self.concurrency == 0 {
            return Err(RPC_APP_CONCURRENCY.error("must be 1 or more"));
        }
        if self.stop_timeout > MAX_TIMEOUT {
            return Err(RPC_APP_STOP_TIMEOUT.error("must be 24h or less"));
        }
        Ok(())
    }
}

impl AppUrl {
    /// The path of the list, without a slash at its end.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Whether the app listens on a unix socket.
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
        let (socket, path) = rest
            .rsplit_once(':')
            .ok_or("has no path behind the socket")?;
        if !Path::new(socket).is_absolute() {
            return Err("has a socket that is no absolute path");
        }
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
    let port = authority.port_u16().unwrap_or(80);
    Ok(AppUrl {
        address: AppAddress::Tcp(format!("{}:{port}", authority.host())),
        base: base(uri.path())?,
    })
}

fn base(path: &str) -> Result<String, &'static str> {
    let is_path = |uri: Uri| uri.authority().is_none() && uri.query().is_none();
    match path.starts_with('/') && path.parse().is_ok_and(is_path) {
        true => Ok(path.trim_end_matches('/').to_owned()),
        false => Err("has a path that is none"),
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

/// The app that the settings describe, if they name one.
pub(super) fn read(values: &Values) -> Result<Option<AppConfig>, ConfigError> {
    let others = [
        RPC_APP_TOKEN,
        RPC_APP_CONCURRENCY,
        RPC_APP_STOP_TIMEOUT,
        RPC_APP_ALLOW_ANONYMOUS,
    ];
    let Some(url) = values.given(RPC_APP_URL, parsed)? else {
        return match others.into_iter().find(|setting| values.has(*setting)) {
            Some(setting) => {
                let detail = "has no effect without RPC_APP_URL; set that too, or unset this";
                Err(setting.error(detail))
            }
            None => Ok(None),
        };
    };
    Ok(Some(AppConfig {
        url,
        token: values.secret(RPC_APP_TOKEN, parsed)?,
        concurrency: values.get(RPC_APP_CONCURRENCY, count)?,
        stop_timeout: values.get(RPC_APP_STOP_TIMEOUT, duration)?,
        allow_anonymous: values.get(RPC_APP_ALLOW_ANONYMOUS, true_or_false)?,
    }))
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
        for text in [
            "",
            "127.0.0.1:3000",
            "https://127.0.0.1/rpc",
            "http:///rpc",
            "http://user@host/rpc",
            "http://host/rpc?x=1",
            "http://host/rpc#x",
            "unix:/run/app.sock",
            "unix:run/app.sock:/rpc",
            "unix:/run/app.sock:/rpc?x",
        ] {
            let refusal = read(text).unwrap_err().to_string();
            assert!(refusal.contains("write for example"), "{text}: {refusal}");
        }
    }
}
