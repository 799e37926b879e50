//! Which page is behind a request, on a route that needs no token: a page of another site must not call functions, neither
//! openly nor under a host name of its own that resolves to this instance (DNS rebinding).

use std::net::IpAddr;

use axum::{
    extract::Request,
    http::{
        HeaderName,
        header::{HOST, ORIGIN},
    },
};

use super::Reached;
use crate::problem::{Code, Problem};

/// Set by browsers alone, and by no page: <https://www.w3.org/TR/fetch-metadata/>.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Checks the headers of a request that needs no token. With `any_host`, its host may be any: a proxy in front has a name
/// that this instance does not know.
///
/// # Errors
/// [`Code::Forbidden`] for a page of another site, or a host that is neither a loopback name or address nor the one at which
/// this instance was reached.
pub(crate) fn check(request: &Request, any_host: bool) -> Result<(), Problem> {
    let text = |header: HeaderName| request.headers().get(header)?.to_str().ok();
    let host = text(HOST);
    let is_own_site = match (text(SEC_FETCH_SITE), text(ORIGIN)) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, authority)| authority) == host,
        (None, None) => true,
    };
    if !is_own_site {
        return Err(forbidden(
            "a page of another site may not use this instance, which has no client tokens",
        ));
    }
    let reached = request.extensions().get();
    if any_host || host.is_none_or(|host| is_here(host, reached)) {
        return Ok(());
    }
    Err(forbidden(
        "header host must be localhost or the address of this instance, which has no client tokens; set \
         RPC_CLIENT_TOKENS, or RPC_ALLOW_ANONYMOUS=true to serve every host",
    ))
}

fn is_here(host: &str, reached: Option<&Reached>) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        let reached = reached.map(|Reached(reached)| reached.ip().to_canonical());
        let address = address.to_canonical();
        return address.is_loopback() || Some(address) == reached;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn forbidden(detail: &str) -> Problem {
    Problem::new(Code::Forbidden, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That of a machine, which is no loopback address as in `tests/it/http/security.rs`.
    #[test]
    fn the_address_at_which_an_instance_is_reached_is_its_own() {
        let is_served = |host: &str| {
            let mut request = Request::default();
            request.headers_mut().insert(HOST, host.parse().unwrap());
            let reached = Reached("10.0.0.7:8080".parse().unwrap());
            request.extensions_mut().insert(reached);
            check(&request, false).is_ok()
        };
        assert!(is_served("10.0.0.7") && is_served("[::ffff:10.0.0.7]:1"));
        assert!(!is_served("10.0.0.8"));
    }
}
