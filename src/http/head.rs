//! How large a request's head may be. The limits are below hyper's own, whose bare 431 and 414 no client of ours can read.

use axum::http::{HeaderMap, Uri};

use crate::problem::{Code, Problem};

/// The most headers of a request.
const MAX_HEADERS: usize = 100;
/// The most bytes of all headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// The longest path with its query, in bytes.
const MAX_TARGET: usize = 8 << 10;

/// Refuses a head that is too large.
///
/// # Errors
/// [`Code::TargetTooLong`] or [`Code::HeadersTooLarge`].
pub(super) fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
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
