//! What the head of a request must be, whatever its route: small enough to be answered, and for this host. How its lists
//! are read.

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
        header::{ALLOW, HOST},
    },
    response::{IntoResponse, Response},
};

use crate::problem::{Code, Problem};

// These limits are below hyper's own, whose bare 431 and 414 are no problem documents.
/// The most headers of a request.
const MAX_HEADERS: usize = 100;
/// The most bytes of all headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// The longest path with its query, in bytes.
const MAX_TARGET: usize = 8 << 10;

/// The answer to a request whose head is wrong.
pub(super) fn refuse(request: &Request) -> Option<Response> {
    let problem = check(request).err()?;
    Some(match problem.code {
        Code::MethodNotAllowed => ([(ALLOW, "GET, POST")], problem).into_response(),
        _ => problem.into_response(),
    })
}

fn check(request: &Request) -> Result<(), Problem> {
    check_size(request.uri(), request.headers())?;
    // A target in the form of a path is left to the routes, as with every other method.
    if request.method() == Method::CONNECT && request.uri().authority().is_some() {
        let detail = "an instance is no proxy";
        return Err(Problem::new(Code::MethodNotAllowed, detail));
    }
    check_host(request).map_err(|detail| Problem::new(Code::InvalidRequest, detail))
}

fn check_size(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let target = uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET {
        let detail = format!("the path and query have {target} bytes, more than {MAX_TARGET}");
        return Err(Problem::new(Code::TargetTooLong, detail));
    }
    let count = headers.len();
    if count > MAX_HEADERS {
        let detail = format!("the request has {count} headers, more than {MAX_HEADERS}");
        return Err(Problem::new(Code::HeadersTooLarge, detail));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes > MAX_HEADER_BYTES {
        let detail = format!("the headers have {bytes} bytes, more than {MAX_HEADER_BYTES}");
        return Err(Problem::new(Code::HeadersTooLarge, detail));
    }
    Ok(())
}

/// A request of HTTP/1.1 has one `Host` (RFC 9112, section 3.2); a target in absolute form names the same host.
fn check_host(request: &Request) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err("header host is given twice"),
        (None, _) if request.version() == Version::HTTP_11 => return Err("header host is missing"),
        (host, _) => host.map(HeaderValue::as_bytes),
    };
    match request.uri().authority() {
        Some(authority) if host != Some(authority.as_str().as_bytes()) => {
            Err("the request's target names another host than header host")
        }
        _ => Ok(()),
    }
}

/// The items of a header that is a list.
pub(super) fn items<'a>(
    headers: &'a HeaderMap,
    name: &'a HeaderName,
) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

/// Whether a header that is a list has `word`, whatever its parameters, unless its weight is 0 (RFC 9110, section 12.4.2).
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let is_nothing = |parameter: &str| {
        let weight = parameter.trim().strip_prefix("q=");
        weight.is_some_and(|weight| !weight.parse().is_ok_and(|weight: f32| weight > 0.0))
    };
    items(headers, name).any(|item| {
        let mut parts = item.split(';');
        let found = parts.next().unwrap_or_default().trim();
        found.eq_ignore_ascii_case(word) && !parts.any(is_nothing)
    })
}
