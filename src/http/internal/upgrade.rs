//! The upgrade of `POST /internal/exec` to a connection for calls: both ends prove that they know the cluster's secret, and
//! the lines go to `lines.rs`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CONNECTION, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;

use super::{clock::Clock, lines};
use crate::{
    http::{App, layers::Context, response::Refusal},
    lifecycle::Phase,
    problem::{Code, Problem},
    protocol::{CLOCK, Challenge, LINES, NONCE, PROOF, Statement, lines::control, new_nonce},
    token::{Proof, Token},
};

/// On a request without a token: its sender knows this one, as its proof shows.
#[derive(Clone, Debug)]
pub(in crate::http) struct Opening {
    pub(in crate::http) challenge: Challenge,
    pub(in crate::http) token: Token,
}

/// What the first line of a connection must prove.
#[derive(Debug)]
pub(super) struct Confirmation {
    opening: Opening,
    nonce: String,
}

impl Confirmation {
    /// Whether `line` proves it.
    pub(super) fn is_given_by(&self, line: &[u8]) -> bool {
        let Opening { challenge, token } = &self.opening;
        let proof = control(line).and_then(|control| control.proof?.parse().ok());
        let confirms = Statement::Confirms { nonce: &self.nonce };
        proof.is_some_and(|proof: Proof| challenge.is_proven(token, confirms, &proof))
    }
}

/// Whether a request asks for a connection for calls.
pub(in crate::http) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).map(HeaderValue::as_bytes) == Some(LINES.as_bytes())
}

/// Answers a request that asks for a connection, and serves it in the background until either side ends it.
pub(super) fn accept(app: Arc<App>, context: Context, mut request: Request) -> Response {
    if app.lifecycle.phase() >= Phase::Refusing {
        let detail = "this instance is stopping and takes no new calls";
        let problem = Problem::new(Code::Draining, detail);
        return Refusal::new(problem, Some(&app.identity.region)).into_response();
    }
    let clock_us = request
        .headers()
        .get(CLOCK)
        .and_then(|at| at.to_str().ok()?.parse().ok());
    let clock = Clock::new(clock_us.unwrap_or(0), context.arrived);
    let confirmation = request
        .extensions()
        .get::<Opening>()
        .map(|opening| Confirmation {
            opening: opening.clone(),
            nonce: new_nonce(),
        });
    let response = switching(&app, confirmation.as_ref());
    let upgraded = hyper::upgrade::on(&mut request);
    let lifecycle = Arc::clone(&app.lifecycle);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let connection = TokioIo::new(upgraded);
                // A peer that does not read holds up the end no longer than a client does.
                tokio::select! {
                    // First what has ended is written.
                    biased;
                    () = lines::serve(app, context, clock, confirmation, connection) => {}
                    () = lifecycle.reached(Phase::Cut) => {}
                }
            }
            Err(error) => tracing::debug!(%error, "a connection for calls was not made"),
        }
    });
    response
}

/// The answer that switches protocols (RFC 9110, section 15.2.2).
fn switching(app: &App, confirmation: Option<&Confirmation>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(LINES));
    let Some(Confirmation { opening, nonce }) = confirmation else {
        return response;
    };
    let Opening { challenge, token } = opening;
    let accepts = Statement::Accepts {
        nonce,
        instance: &app.identity.instance,
        region: &app.identity.region,
    };
    let proof = challenge.prove(token, accepts);
    for (name, value) in [(NONCE, nonce.clone()), (PROOF, proof.to_string())] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}
