//! Who may use a route: clients, or the cluster's instances.

use std::net::IpAddr;

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName,
        header::{AUTHORIZATION, HOST, ORIGIN},
    },
};

use super::{Crowded, Reached, internal};
use crate::{
    access::{Access, Caller},
    name::FunctionName,
    problem::{Code, Problem},
    protocol::{Challenge, EXEC, NONCE, PROOF, PROVABLE, Statement},
    region::Region,
    replay::came_through_fly_proxy,
    token::{PresentedToken, Token},
};

/// Set by browsers alone, and by no page: <https://www.w3.org/TR/fetch-metadata/>.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What lets other hosts reach the routes of clients.
const CLIENTS_HINT: &str = "set RPC_CLIENT_TOKENS, or RPC_ALLOW_ANONYMOUS=true to serve every host";
/// What lets other hosts reach those of instances.
const INSTANCES_HINT: &str = "set RPC_TOKEN, or RPC_METRICS_LISTEN for scrapers";

#[derive(Clone, Copy, Debug)]
pub(super) enum Audience {
    Anyone,
    /// Clients: by a client's token, where there are any.
    Clients,
    /// The cluster's instances: by the cluster's token, or a proof that they know it, where there is one.
    Instances,
}

/// On a request with a proof instead of a token: the token that it proves, and the challenge to answer.
#[derive(Clone, Debug)]
pub(super) struct ProvenToken {
    pub(super) token: Token,
    pub(super) challenge: Challenge,
}

/// Lets a request pass whose sender is one of `audience`, with an extension that says who: a [`Caller`], or a [`ProvenToken`]
/// of an instance that sent a proof and no token.
pub(super) fn admit(
    access: &Access,
    audience: Audience,
    request: &mut Request,
) -> Result<(), Problem> {
    match audience {
        Audience::Anyone => {}
        Audience::Clients => {
            let caller = client(access, request)?;
            request.extensions_mut().insert(caller);
        }
        Audience::Instances => {
            if let Some(proven) = instance(access, request)? {
                request.extensions_mut().insert(proven);
            }
        }
    }
    Ok(())
}

/// The client whose token a request has, where there are clients.
fn client(access: &Access, request: &Request) -> Result<Caller, Problem> {
    if access.clients.is_empty() {
        check_site(request, access.allow_anonymous, CLIENTS_HINT)?;
    }
    check_places(request)?;
    let token = presented_token(request.headers());
    let caller = access.caller(token.as_ref());
    caller.ok_or_else(|| match token {
        Some(_) => unauthenticated("no client has the token in header authorization"),
        None => {
            unauthenticated("this route requires a client's token: `authorization: Bearer TOKEN`")
        }
    })
}

/// Refuses a request on a connection that is kept for instances and health checks.
pub(super) fn check_places(request: &Request) -> Result<(), Problem> {
    if request.extensions().get::<Crowded>().is_none() {
        return Ok(());
    }
    let detail = "all connections for clients are busy";
    Err(Problem::new(Code::Overloaded, detail))
}

/// Checks that a request has the cluster's token, or a proof that its sender knows it, which is returned.
fn instance(access: &Access, request: &Request) -> Result<Option<ProvenToken>, Problem> {
    // Without a cluster's token, whoever reaches this instance counts as an instance; a page in a browser must not.
    if access.cluster.is_empty() {
        check_site(request, false, INSTANCES_HINT)?;
    }
    if came_through_fly_proxy(request.headers()) {
        let detail = "this route is for instances, and not to be reached through Fly Proxy";
        return Err(Problem::new(Code::Forbidden, detail));
    }
    let token = presented_token(request.headers());
    if access.is_instance(token.as_ref()) {
        return Ok(None);
    }
    let path = request.uri().path();
    let is_provable = PROVABLE.contains(&path);
    let (says, detail) = match path == EXEC && internal::is_upgrade(request) {
        true => (
            Some(Statement::Opens),
            "this route requires a proof of the cluster's token",
        ),
        false => (
            is_provable.then_some(Statement::Asks { path }),
            "this route requires the cluster's token: `authorization: Bearer TOKEN`",
        ),
    };
    let proven = says.and_then(|says| proven(access, request, says));
    proven.map(Some).ok_or_else(|| unauthenticated(detail))
}

/// Refuses a call for a region that its client may not call.
pub(super) fn check_regions<'a>(
    caller: &Caller,
    mut regions: impl Iterator<Item = &'a Region>,
) -> Result<(), Problem> {
    match regions.find(|region| !caller.may_call_in(region)) {
        Some(region) => Err(beyond(caller, &format!("in region \"{region}\""))),
        None => Ok(()),
    }
}

/// Refuses a call of a function that its client may not call.
pub(super) fn check_function(caller: &Caller, name: &FunctionName) -> Result<(), Problem> {
    match caller.may_call(name) {
        true => Ok(()),
        false => Err(beyond(caller, &name.to_string())),
    }
}

pub(super) fn beyond(caller: &Caller, what: &str) -> Problem {
    // Anybody may call everything.
    let client = caller.name().unwrap_or_default();
    let detail = format!("client \"{client}\" may not call {what}");
    Problem::new(Code::Forbidden, detail)
}

/// Who asks on a route that is open to anybody; `None` for a stranger, who is shown what everybody may see.
pub(super) fn known_caller(access: &Access, request: &Request) -> Option<Caller> {
    if access.clients.is_empty() {
        check_site(request, access.allow_anonymous, CLIENTS_HINT).ok()?;
    }
    let token = presented_token(request.headers());
    access.caller(token.as_ref())
}

/// The token in the headers of a request; `None` without exactly one. The typed header of the crate `headers` would take the
/// first of two.
pub(super) fn presented_token(headers: &HeaderMap) -> Option<PresentedToken> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => PresentedToken::from_authorization(value.as_bytes()),
        _ => None,
    }
}

/// The token of the cluster that the sender of a request knows, if its proof of what it `says` is valid.
fn proven(access: &Access, request: &Request, says: Statement<'_>) -> Option<ProvenToken> {
    let text = |header| request.headers().get(header)?.to_str().ok();
    let Reached(address) = request.extensions().get()?;
    let challenge = Challenge::received(text(NONCE)?, *address)?;
    let proof = text(PROOF)?.parse().ok()?;
    let mut tokens = access.cluster.iter();
    let token = tokens.find(|token| challenge.is_proven(token, says, &proof))?;
    Some(ProvenToken {
        token: token.clone(),
        challenge,
    })
}

fn unauthenticated(detail: &str) -> Problem {
    Problem::new(Code::Unauthenticated, detail)
}

/// Checks which page is behind a request that needs no token: a page of another site must not call functions, neither
/// openly nor under a host name of its own that resolves to this instance (DNS rebinding). With `any_host` every host is
/// served: a proxy in front has a name that this instance does not know; else the refusal ends with `hint`, which says how to
/// serve other hosts.
///
/// # Errors
/// [`Code::Forbidden`] for a page of another site, or a host that is neither a loopback name or address nor the one at which
/// this instance was reached.
pub(crate) fn check_site(request: &Request, any_host: bool, hint: &str) -> Result<(), Problem> {
    let text = |header: HeaderName| request.headers().get(header)?.to_str().ok();
    let host = text(HOST);
    let is_own_site = match (text(SEC_FETCH_SITE), text(ORIGIN)) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, authority)| authority) == host,
        (None, None) => true,
    };
    if !is_own_site {
        return Err(forbidden(
            "a page of another site may not use what needs no token",
        ));
    }
    let reached = request.extensions().get();
    if any_host || host.is_none_or(|host| is_here(host, reached)) {
        return Ok(());
    }
    Err(forbidden(&format!(
        "header host must be localhost or the address of this instance where no token is needed; {hint}"
    )))
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

    /// With the address of a machine; `tests/it/http/security.rs` can only use loopback.
    #[test]
    fn the_address_at_which_an_instance_is_reached_is_its_own() {
        let is_served = |host: &str| {
            let mut request = Request::default();
            request.headers_mut().insert(HOST, host.parse().unwrap());
            let reached = Reached("10.0.0.7:8080".parse().unwrap());
            request.extensions_mut().insert(reached);
            check_site(&request, false, CLIENTS_HINT).is_ok()
        };
        assert!(is_served("10.0.0.7") && is_served("[::ffff:10.0.0.7]:1"));
        assert!(!is_served("10.0.0.8"));
    }
}
