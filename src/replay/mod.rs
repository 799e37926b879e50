//! The words of `fly-replay`, by which Fly Proxy is asked to send a request once more to another Machine, and of the
//! headers that describe it: <https://fly.io/docs/networking/dynamic-request-routing/>.
//!
//! Whether Fly Proxy takes these headers away when a client sends them is not documented. They are believed for routing
//! only, and only in the direction that ends it: a request that claims to be a replay is never replayed.

mod body;
mod cookie;
mod layer;

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

#[cfg(feature = "dev")]
pub(crate) use self::body::drop_hop;
pub use self::layer::{ReplayToPrimary, ReplayToPrimaryService};
use crate::{
    config::settings::digits,
    name::{InstanceId, RequestId},
    region::Region,
};

/// Asks Fly Proxy, as a header of an answer, to replay the request.
pub(crate) const REPLAY: HeaderName = HeaderName::from_static("fly-replay");
/// On a replayed request: who asked for the replay, from where, when, and the `state` that it gave.
const SOURCE: HeaderName = HeaderName::from_static("fly-replay-src");
/// On a request that came back because its replay reached no Machine: why, and how long that took.
const FAILED: HeaderName = HeaderName::from_static("fly-replay-failed");
/// On a request that was replayed without `fly-replay-src`, from the replay cache.
const CACHED: HeaderName = HeaderName::from_static("fly-replay-cache-status");
/// What Fly Proxy puts on every request: <https://fly.io/docs/networking/request-headers/>.
const FLY_PROXY: [HeaderName; 2] = [
    HeaderName::from_static("fly-client-ip"),
    HeaderName::from_static("fly-forwarded-port"),
];

/// The largest request that Fly Proxy replays, in bytes. Its documents say 1 MB of "requests" here and 10 MB on another page:
/// this is the smallest that can be meant, head included.
pub(crate) const MAX_REQUEST: usize = 1_000_000;

/// What stands for every region.
const ANY: &str = "any";
/// Names of three letters that stand for several regions.
const ALIASES: [&str; 2] = [ANY, "usa"];

/// The Machines that Fly Proxy may choose from. A region is one that [`is_fly_region`] accepts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Machines<'a> {
    /// Those of the first of these regions in which one can be reached, else those of any region where that is wanted; this
    /// one, where it can be reached.
    In {
        /// The regions, the preferred one first.
        regions: &'a [&'a Region],
        /// Whether any other will do.
        or_any: bool,
        /// The preferred one of the first.
        preferred: Option<&'a InstanceId>,
    },
    Only(&'a Region, &'a InstanceId),
    /// All but the one that asks.
    Others,
}

impl fmt::Display for Machines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In {
                regions,
                or_any,
                preferred,
            } => {
                let codes = regions.iter().map(|region| region.as_str());
                let codes: Vec<_> = codes.chain(or_any.then_some(ANY)).collect();
                match codes[..] {
                    [only] => write!(f, "region={only}")?,
                    // Fly Proxy wants a list in quotes.
                    _ => write!(f, "region=\"{}\"", codes.join(","))?,
                }
                match preferred {
                    Some(instance) => write!(f, ";prefer_instance={instance}"),
                    None => Ok(()),
                }
            }
            Self::Only(region, instance) => write!(f, "region={region};instance={instance}"),
            Self::Others => f.write_str("elsewhere=true"),
        }
    }
}

/// The value of the header `fly-replay` that asks Fly Proxy to reach one of `machines` within `timeout`, or else to come
/// back with the request; one that has reached a Machine is never cut.
///
/// `state` comes back in `fly-replay-src`: characters of `[A-Za-z0-9._~-]`, because how others are quoted is not documented.
pub(crate) fn header(machines: Machines<'_>, timeout: Duration, state: &str) -> HeaderValue {
    let milliseconds = timeout.as_millis().max(1);
    let value = format!("{machines};timeout={milliseconds}ms;fallback=prefer_self;state={state}");
    HeaderValue::try_from(value)
        .unwrap_or_else(|_| unreachable!("{machines} and {state} are words"))
}

/// Whether Fly can have a region of this name: its codes have three letters.
pub(crate) fn is_fly_region(region: &Region) -> bool {
    let code = region.as_str();
    code.len() == 3
        && code.bytes().all(|byte| byte.is_ascii_lowercase())
        && !ALIASES.contains(&code)
}

/// Whether a request came through Fly Proxy, or says so.
pub(crate) fn came_through_fly_proxy(headers: &HeaderMap) -> bool {
    FLY_PROXY.iter().any(|name| headers.contains_key(name))
}

/// Whether a request was replayed before, or came back from a replay, or says so.
pub(crate) fn was_replayed(headers: &HeaderMap) -> bool {
    [SOURCE, FAILED, CACHED]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// The `state` of a call's replay: the request's id, and the milliseconds that the call has left, after a character that
/// no id has.
///
/// A span and no time of day, because clocks disagree; `t` in `fly-replay-src` is by a clock of Fly's. What Fly Proxy takes
/// to reach a Machine is not in it: at most the `timeout` of [`header`].
pub(crate) fn call_state(request_id: &RequestId, left: Duration) -> String {
    format!("{request_id}~{}", left.as_millis())
}

/// The id that a replayed call was given where it arrived first. What else asks for replays has a `state` of its own.
pub(crate) fn request_id(headers: &HeaderMap) -> Option<RequestId> {
    let (request_id, _) = state(headers)?.split_once('~')?;
    request_id.parse().ok()
}

/// The time that a replayed call had left when its replay was asked for. A client can invent it: it may only shorten.
pub(crate) fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let (_, milliseconds) = state(headers)?.split_once('~')?;
    digits(milliseconds).map(Duration::from_millis)
}

/// The `state` that was given where a replay was asked for, as far as a client did not invent it.
fn state(headers: &HeaderMap) -> Option<&str> {
    field(headers.get(SOURCE)?, "state")
}

/// Whether a request came back from Machines that Fly Proxy knows and could not reach in time: they may be starting. Else
/// it knows none.
pub(crate) fn was_unreached(headers: &HeaderMap) -> bool {
    matches!(
        failure(headers, "reason"),
        Some("timeout" | "retries_exhausted")
    )
}

/// How long Fly Proxy tried to replay a request that came back; zero where it does not say.
pub(crate) fn time_lost(headers: &HeaderMap) -> Duration {
    let elapsed = failure(headers, "elapsed_ms");
    let milliseconds = elapsed.and_then(digits);
    Duration::from_millis(milliseconds.unwrap_or(0))
}

fn failure<'a>(headers: &'a HeaderMap, key: &str) -> Option<&'a str> {
    field(headers.get(FAILED)?, key)
}

/// The value of `key` among fields `key=value`. Fly's documents separate them by `;` and by `,`.
fn field<'a>(fields: &'a HeaderValue, key: &str) -> Option<&'a str> {
    let mut fields = fields.to_str().ok()?.split([';', ',']).map(str::trim);
    fields.find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
}

/// The bytes of a request with a body of `body` bytes, as it was received.
pub(crate) fn request_size(target: &Uri, headers: &HeaderMap, body: usize) -> usize {
    // What stands around each part on the wire: `POST  HTTP/1.1`, `: ` and line ends.
    const LINE: usize = 24;
    const HEADER: usize = 4;
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER);
    let target = target
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    (LINE + target + sizes.sum::<usize>()).saturating_add(body)
}
