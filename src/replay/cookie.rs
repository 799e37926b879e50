//! The cookie of a client that wrote: until when it reads in the primary region, and what a copy must have seen before
//! that. A client can invent it, so it is believed for no longer than the layer would ever have set it.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::COOKIE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::name::ConsistencyToken;

/// The cookie's name. Its value is a number of seconds since 1970 and, behind [`BEHIND`], a token.
const NAME: &str = "fly-replay-threshold";
/// Stands between the two.
const BEHIND: char = '~';
/// What of a token stands in a cookie as it is.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'/');
/// By how many seconds the clocks of two regions may differ.
const SKEW: f64 = 2.0;

/// For how long a client that wrote reads in the primary region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Where the application cannot say what a copy has seen.
    pub(super) window: Duration,
    /// At most, where a copy says whether it has seen the write.
    pub(super) longest: Duration,
}

/// That a client wrote.
#[derive(Debug, PartialEq)]
pub(super) struct Wrote {
    /// What it wrote, as the application says.
    pub(super) token: Option<ConsistencyToken>,
}

impl Bounds {
    fn of(self, token: Option<&ConsistencyToken>) -> f64 {
        let span = match token {
            Some(_) => self.longest,
            None => self.window,
        };
        span.as_secs_f64().ceil()
    }
}

impl Wrote {
    /// What the cookies of a request say at `now`, if one is of a client that wrote within `bounds`.
    pub(super) fn read(headers: &HeaderMap, now: f64, bounds: Bounds) -> Option<Self> {
        let values = headers.get_all(COOKIE).iter();
        let cookies = values.filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|cookies| cookies.split(';'));
        cookies.find_map(|cookie| {
            let value = cookie.trim().strip_prefix(NAME)?.strip_prefix('=')?;
            Self::parse(value, now, bounds)
        })
    }

    fn parse(value: &str, now: f64, bounds: Bounds) -> Option<Self> {
        let (until, token) = match value.split_once(BEHIND) {
            Some((until, token)) => {
                let token = percent_decode_str(token).decode_utf8().ok()?;
                (until, Some(token.parse().ok()?))
            }
            None => (value, None),
        };
        let until: f64 = until.parse().ok()?;
        // What is later than any cookie of ours was invented, and would last for ever.
        let latest = now + bounds.of(token.as_ref()) + SKEW;
        (until > now && until <= latest).then_some(Self { token })
    }

    /// The cookie of a client that writes now; none where it would last for no time.
    pub(super) fn header(&self, now: f64, bounds: Bounds) -> Option<HeaderValue> {
        let seconds = bounds.of(self.token.as_ref());
        let until = now + seconds;
        let token = self.token.as_ref().map_or(String::new(), |token| {
            format!("{BEHIND}{}", utf8_percent_encode(token.as_str(), ESCAPED))
        });
        let cookie =
            format!("{NAME}={until:.3}{token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax");
        HeaderValue::try_from(cookie).ok().filter(|_| seconds > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        window: Duration::from_secs(5),
        longest: Duration::from_secs(60),
    };

    fn read(value: &str, now: f64) -> Option<Option<String>> {
        let mut headers = HeaderMap::new();
        let cookies = format!("theme=dark; {NAME}={value}");
        headers.insert(COOKIE, cookies.parse().unwrap());
        let wrote = Wrote::read(&headers, now, BOUNDS)?;
        Some(wrote.token.map(|token| token.to_string()))
    }

    #[test]
    fn what_is_set_is_read_until_it_is_over() {
        for (token, seconds) in [
            (None, 5.0),
            (Some("0/3000148"), 60.0),
            (Some("a;b~\"%2F,c"), 60.0),
        ] {
            let wrote = Wrote {
                token: token.map(|token| token.parse().unwrap()),
            };
            let header = wrote.header(1000.0, BOUNDS).unwrap();
            let (value, rest) = header.to_str().unwrap().split_once("; ").unwrap();
            assert_eq!(
                rest,
                format!("Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax")
            );
            let value = value.strip_prefix("fly-replay-threshold=").unwrap();
            let expected = Some(token.map(str::to_owned));
            for now in [1000.0, 1000.0 + seconds - 0.1] {
                assert_eq!(read(value, now), expected);
            }
            assert_eq!(read(value, 1000.0 + seconds), None);
        }
        let none = Bounds {
            window: Duration::ZERO,
            ..BOUNDS
        };
        assert_eq!(Wrote { token: None }.header(1000.0, none), None);
    }
}
