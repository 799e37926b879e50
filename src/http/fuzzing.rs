//! What a fuzzer holds against this layer: the targets of requests.

use axum::http::Uri;

use super::rpc;
use crate::region::Target;

/// A request's target: a region is found only in a path that is its plain text.
pub(crate) fn target(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else {
        return;
    };
    match rpc::target(uri.path()) {
        Ok(Target::Region(region)) => assert_eq!(uri.path(), format!("/rpc/{region}")),
        Ok(Target::Primary) => assert_eq!(uri.path(), "/rpc/primary"),
        Err(problem) => assert!(problem.detail.len() <= 256),
    }
}
