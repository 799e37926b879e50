//! The cookies of a client that wrote: until when it reads in the primary region, and what a copy must have seen before
//! that. They are two, so that a write without a token does not end what one with a token began. A client can invent
//! them, so each is believed for no longer than the layer would ever have set it.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::COOKIE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::name::ConsistencyToken;

/// The cookie of a write without a token. Its value is a number of seconds since 1970.
const THRESHOLD: &str = "fly-replay-threshold";
/// The cookie of a write with one: such a number and, behind [`BEHIND`], the token.
const AFTER: &str = "fly-replay-after";
/// Separates the two.
const BEHIND: char = '~';
/// All but the characters of a token that need no escape in a cookie.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'/');
/// By how many seconds the clocks of two regions may differ.
const SKEW: f64 = 2.0;

/// For how long a client that wrote reads in the primary region.
#[derive(Clone, Copy, Debug)]
pub(super) struct CookieTimes {
    /// Where the application cannot say what a copy has seen.
    pub(super) window: Duration,
    /// At most, where a copy says whether it has seen the write.
    pub(super) longest: Duration,
}

impl CookieTimes {
    /// What the cookies of a request say at `now`, as far as they are believed: whether its client wrote without a token, and the
    /// token of its last write that has one.
    pub(super) fn read(self, headers: &HeaderMap, now: f64) -> (bool, Option<ConsistencyToken>) {
        let values = headers.get_all(COOKIE).iter();
        let cookies = values.filter_map(|value| value.to_str().ok());
        let cookies = cookies.flat_map(|cookies| cookies.split(';'));
        let (mut wrote_untokened, mut written) = (false, None);
        for (name, value) in cookies.filter_map(|cookie| cookie.trim().split_once('=')) {
            match name {
                THRESHOLD => wrote_untokened |= lasts(value, now, self.window),
                AFTER => written = written.or_else(|| self.token(value, now)),
                _ => {}
            }
        }
        (wrote_untokened, written)
    }

    fn token(self, value: &str, now: f64) -> Option<ConsistencyToken> {
        let (until, token) = value.split_once(BEHIND)?;
        let token = percent_decode_str(token).decode_utf8().ok()?;
        token
            .parse()
            .ok()
            .filter(|_| lasts(until, now, self.longest))
    }

    /// The cookie of a client that writes `now`, with a token if the application gave one; none where it would last for no
    /// time.
    pub(super) fn cookie(self, token: Option<&ConsistencyToken>, now: f64) -> Option<HeaderValue> {
        let (name, span, token) = match token {
            Some(token) => {
                let escaped = utf8_percent_encode(token.as_str(), ESCAPED);
                (AFTER, self.longest, format!("{BEHIND}{escaped}"))
            }
            None => (THRESHOLD, self.window, String::new()),
        };
        let seconds = whole_seconds(span);
        let until = now + seconds;
        let cookie =
            format!("{name}={until:.3}{token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax");
        HeaderValue::try_from(cookie).ok().filter(|_| seconds > 0.0)
    }
}

/// Whether `until` is later than `now`, and no later than a cookie for `span` may last, which was invented: it would last for
/// ever.
fn lasts(until: &str, now: f64, span: Duration) -> bool {
    let latest = now + whole_seconds(span) + SKEW;
    let until = until.parse::<f64>();
    until.is_ok_and(|until| until > now && until <= latest)
}

fn whole_seconds(span: Duration) -> f64 {
    span.as_secs_f64().ceil()
}
