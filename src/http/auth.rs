//! Who may use a route: clients, or the cluster's instances.

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderValue,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    response::{ErrorResponse, Response, Result},
};

use super::{App, Crowded, Reached, internal, response::Refusal, site};
use crate::{
    access::Caller,
    name::FunctionName,
    problem::{Code, Problem},
    protocol::{Challenge, NONCE, PROOF, PROVABLE, Statement},
    region::Region,
    replay::came_through_fly_proxy,
    token::{PresentedToken, Proof},
};

/// Lets a request pass that has the token of a client, where there are clients; its [`Caller`]
/// becomes an extension of it.
pub(super) async fn clients<F: Future<Output = Response>>(
    app: &App,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Result<Response> {
    if app.access.clients.is_empty() {
        check_site(&request, app.access.allow_anonymous)?;
    }
    if request.extensions().get::<Crowded>().is_some() {
        let detail = "clients keep as many connections busy as this instance has places for";
        return Err(Problem::new(Code::Overloaded, detail).into());
    }
    let token = presented_token(request.headers());
    let Some(caller) = app.access.caller(token.as_ref()) else {
        return Err(unauthenticated(token.as_ref(), "a client's token"));
    };
    request.extensions_mut().insert(caller.clone());
    let mut response = next(request).await;
    if let Some(refusal) = response.extensions_mut().get_mut::<Refusal>() {
        refusal.client = Some(caller);
    }
    Ok(response)
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
        false => Err(beyond(caller, "this function")),
    }
}

/// The problem of a call beyond the limits of its client.
pub(super) fn beyond(caller: &Caller, what: &str) -> Problem {
    let detail = format!("client \"{}\" may not call {what}", caller.name());
    Problem::new(Code::Forbidden, detail)
}

/// Who asks on a route that is open to anybody; `None` for a stranger, who is shown what everybody may see.
pub(super) fn known_caller(app: &App, request: &Request) -> Option<Caller> {
    if app.access.clients.is_empty() {
        check_site(request, app.access.allow_anonymous).ok()?;
    }
    let token = presented_token(request.headers());
    app.access.caller(token.as_ref())
}

/// Lets a request pass that has the cluster's token, or a proof that its sender knows it; the answer to a probe with a
/// proof has a proof in turn.
pub(super) async fn instances<F: Future<Output = Response>>(
    app: &App,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Result<Response> {
    if app.access.cluster.is_empty() {
        check_site(&request, false)?;
    }
    if came_through_fly_proxy(request.headers()) {
        let detail = "this route is for instances, and not to be reached through Fly Proxy";
        return Err(Problem::new(Code::Forbidden, detail).into());
    }
    let token = presented_token(request.headers());
    if app.access.is_instance(token.as_ref()) {
        return Ok(next(request).await);
    }
    if internal::is_upgrade(request.headers()) {
        let wanted = "a proof of the cluster's token";
        let opening =
            opening(app, &request).ok_or_else(|| unauthenticated(token.as_ref(), wanted))?;
        request.extensions_mut().insert(opening);
        return Ok(next(request).await);
    }
    let proof = proof(app, &request)
        .ok_or_else(|| unauthenticated(token.as_ref(), "the cluster's token"))?;
    let mut response = next(request).await;
    response.headers_mut().insert(PROOF, proof);
    Ok(response)
}

/// Checks where the page behind a request comes from, on a route that needs no token; see [`site::check`].
fn check_site(request: &Request, any_host: bool) -> Result<(), Problem> {
    let reached = request.extensions().get::<Reached>();
    let reached = reached.map(|Reached(address)| *address);
    site::check(request.headers(), reached, any_host)
}

/// The token in the headers of a request; `None` without exactly one. The typed header of the crate `headers` would take the
/// first of two.
fn presented_token(headers: &HeaderMap) -> Option<PresentedToken> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => PresentedToken::from_authorization(value.as_bytes()),
        _ => None,
    }
}

/// The proof of the peer that asks for a connection for calls that it knows a token of ours.
fn opening(app: &App, request: &Request) -> Option<internal::Opening> {
    let (challenge, proof) = challenge(request)?;
    let mut tokens = app.access.cluster.iter();
    let token = tokens.find(|token| challenge.is_proven(token, Statement::Opens, &proof))?;
    Some(internal::Opening {
        token: token.clone(),
        challenge,
    })
}

/// The answer's proof for a probe whose sender knows a token of ours, made of that very token.
fn proof(app: &App, request: &Request) -> Option<HeaderValue> {
    let path = request.uri().path();
    let path = PROVABLE.into_iter().find(|probed| *probed == path)?;
    let (challenge, proof) = challenge(request)?;
    let mut tokens = app.access.cluster.iter();
    let asks = Statement::Asks { path };
    let token = tokens.find(|token| challenge.is_proven(token, asks, &proof))?;
    let answers = Statement::Answers {
        path,
        instance: &app.identity.instance,
        region: &app.identity.region,
        boot: Some(&app.boot),
    };
    let proof = challenge.prove(token, answers);
    HeaderValue::try_from(proof.to_string()).ok()
}

/// The challenge in a request, and its sender's proof.
fn challenge(request: &Request) -> Option<(Challenge, Proof)> {
    let text = |header| request.headers().get(header)?.to_str().ok();
    let Reached(address) = request.extensions().get()?;
    let challenge = Challenge::received(text(NONCE)?, *address)?;
    Some((challenge, text(PROOF)?.parse().ok()?))
}

/// Asks for a token, and says so where the one that was sent is wrong (RFC 6750, section 3.1).
fn unauthenticated(token: Option<&PresentedToken>, wanted: &str) -> ErrorResponse {
    let challenge = match token {
        Some(_) => "Bearer error=\"invalid_token\"",
        None => "Bearer",
    };
    let problem = Problem::new(Code::Unauthenticated, format!("this route wants {wanted}"));
    ([(WWW_AUTHENTICATE, challenge)], problem).into()
}
