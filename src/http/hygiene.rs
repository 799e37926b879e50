//! Requests that HTTP allows to be sent and a server should not take: refused before anybody looks at their route.

use axum::{
    extract::Request,
    http::{
        HeaderValue, Method, Version,
        header::{ALLOW, HOST},
    },
    middleware::Next,
    response::Response,
};

use super::context::Context;
use crate::problem::{Code, Problem};

/// Lets a request pass that names one host, and this one.
pub(super) async fn inspect(context: Context, request: Request, next: Next) -> Response {
    // A target in the form of a path is the guard's to judge, as with every other method.
    if request.method() == Method::CONNECT && request.uri().authority().is_some() {
        let problem = Problem::new(Code::MethodNotAllowed, "an instance is no proxy");
        let mut response = context.refuse(None, problem);
        let methods = HeaderValue::from_static("GET, POST");
        response.headers_mut().insert(ALLOW, methods);
        return response;
    }
    match check_host(&request) {
        Ok(()) => next.run(request).await,
        Err(detail) => context.refuse(None, Problem::new(Code::InvalidRequest, detail)),
    }
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
