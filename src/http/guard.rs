//! Who may use a route: anybody, clients, or instances of the cluster. The layer before every handler, 404 and 405
//! included; closed for clients where it does not know better, so that a new route is not open by omission.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::Response,
};

use super::{
    App, Crowded, Reached,
    context::{Context, Refusal},
    site, upgrade,
};
use crate::{
    problem::{Code, Problem},
    protocol::{Challenge, NONCE, PROOF, PROVABLE, Who},
    replay::came_through_fly_proxy,
    token::{Borne, Proof},
};

/// Whom a route is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Audience {
    Anybody,
    Clients,
    Instances,
}

impl Audience {
    fn of(path: &str) -> Self {
        match path {
            "/healthz" | "/readyz" | "/openapi.json" | "/docs" => Self::Anybody,
            path if path.starts_with("/docs/") => Self::Anybody,
            "/internal" | "/metrics" => Self::Instances,
            path if path.starts_with("/internal/") => Self::Instances,
            _ => Self::Clients,
        }
    }
}

/// Lets a request pass that bears what its route asks for, and refuses every other.
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    context: Context,
    mut request: Request,
    next: Next,
) -> Response {
    let borne = borne(request.headers());
    let audience = Audience::of(request.uri().path());
    let needs_no_token = match audience {
        Audience::Anybody => false,
        Audience::Clients => app.access.clients.is_empty(),
        Audience::Instances => app.access.cluster.is_empty(),
    };
    if needs_no_token && let Err(problem) = check_site(&app, &request, audience) {
        return context.refuse(None, problem);
    }
    match audience {
        Audience::Anybody => next.run(request).await,
        Audience::Clients if is_crowded(&request) => {
            let detail = "clients keep as many connections busy as this instance has places for";
            refuse(context, Code::Overloaded, detail)
        }
        Audience::Clients => match app.access.caller(borne.as_ref()) {
            Some(caller) => {
                request.extensions_mut().insert(caller.clone());
                let mut response = next.run(request).await;
                if let Some(refusal) = response.extensions_mut().get_mut::<Refusal>() {
                    refusal.client = Some(caller);
                }
                response
            }
            None => challenge(context, borne.as_ref(), "this route wants a client's token"),
        },
        Audience::Instances if came_through_fly_proxy(request.headers()) => {
            let detail = "this route is for instances, and not to be reached through Fly Proxy";
            refuse(context, Code::Forbidden, detail)
        }
        Audience::Instances if app.access.is_instance(borne.as_ref()) => next.run(request).await,
        Audience::Instances if upgrade::is_asked(request.headers()) => {
            match opening(&app, &request) {
                Some(opening) => {
                    request.extensions_mut().insert(opening);
                    next.run(request).await
                }
                None => challenge(
                    context,
                    borne.as_ref(),
                    "this route wants a proof of the cluster's token",
                ),
            }
        }
        Audience::Instances => match proof(&app, &request) {
            Some(proof) => {
                let mut response = next.run(request).await;
                response.headers_mut().insert(PROOF, proof);
                response
            }
            None => challenge(
                context,
                borne.as_ref(),
                "this route wants the cluster's token",
            ),
        },
    }
}

/// What a request without a token says of the page behind it; see [`site::check`].
fn check_site(app: &App, request: &Request, audience: Audience) -> Result<(), Problem> {
    let reached = request.extensions().get::<Reached>();
    let reached = reached.map(|Reached(address)| *address);
    let any_host = audience == Audience::Clients && app.access.allow_anonymous;
    site::check(request.headers(), reached, any_host)
}

/// Whether the last places for connections are in use, which are for instances and health checks.
fn is_crowded(request: &Request) -> bool {
    request.extensions().get::<Crowded>().is_some()
}

/// What a request bears; `None` without exactly one token.
fn borne(headers: &HeaderMap) -> Option<Borne> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Borne::from_authorization(value.as_bytes()),
        _ => None,
    }
}

/// What shows that who asks for a connection for calls knows a token of ours.
fn opening(app: &App, request: &Request) -> Option<upgrade::Opening> {
    let text = |header| request.headers().get(header)?.to_str().ok();
    let Reached(address) = request.extensions().get()?;
    let challenge = Challenge::received(text(NONCE)?, *address)?;
    let proof: Proof = text(PROOF)?.parse().ok()?;
    let mut tokens = app.access.cluster.iter();
    let token = tokens.find(|token| challenge.is_opened(token, &proof))?;
    Some(upgrade::Opening {
        token: token.clone(),
        challenge,
    })
}

/// The answer's proof for a probe whose asker knows a token of ours, made of that very token.
fn proof(app: &App, request: &Request) -> Option<HeaderValue> {
    let path = PROVABLE
        .into_iter()
        .find(|path| *path == request.uri().path())?;
    let text = |header| request.headers().get(header)?.to_str().ok();
    let Reached(address) = request.extensions().get()?;
    let challenge = Challenge::received(text(NONCE)?, *address)?;
    let asked: Proof = text(PROOF)?.parse().ok()?;
    let tokens = &app.access.cluster;
    let token = tokens
        .iter()
        .find(|token| challenge.is_asked(token, path, &asked))?;
    let who = Who {
        instance: &app.identity.instance,
        region: &app.identity.region,
        boot: Some(&app.boot),
    };
    let proof = challenge.answer(token, path, who);
    HeaderValue::try_from(proof.to_string()).ok()
}

fn refuse(context: Context, code: Code, detail: &str) -> Response {
    context.refuse(None, Problem::new(code, detail))
}

/// Asks for a token, and says so where the one that was sent is wrong (RFC 6750, section 3.1).
fn challenge(context: Context, borne: Option<&Borne>, detail: &str) -> Response {
    let challenge = match borne {
        Some(_) => "Bearer error=\"invalid_token\"",
        None => "Bearer",
    };
    let mut response = refuse(context, Code::Unauthenticated, detail);
    let challenge = HeaderValue::from_static(challenge);
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}
