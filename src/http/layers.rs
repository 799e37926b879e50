//! The one layer around every route: gives a request its [`Context`], lets it pass if its head is one that can be answered
//! and it comes from the route's [`Audience`], and finishes its response. A problem that a handler returned becomes its
//! document, a log line and a count here, and nowhere else.

use std::{net::Ipv6Addr, sync::Arc};

use axum::{
    Router,
    body::HttpBody,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
        header::{ALLOW, CACHE_CONTROL, CONNECTION, HOST, TRANSFER_ENCODING, WWW_AUTHENTICATE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

use super::{
    auth::{self, Audience},
    response::{Refusal, problem_document},
};
use crate::{
    access::Caller,
    dispatch::Dispatcher,
    local::LocalInstance,
    memory::{Budget, NoRoom, Share},
    name::RequestId,
    problem::{Code, Problem},
    protocol, replay,
    reply::{Meta, ProblemDocument},
};

// These limits are below hyper's own, whose bare 431 and 414 are not problem documents.
/// The most headers of a request.
const MAX_HEADERS: usize = 100;
/// The most bytes of all headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// The longest path with its query, in bytes.
const MAX_TARGET: usize = 8 << 10;

/// The most bytes of a path in a log line.
const LOGGED_PATH: usize = 128;
/// The size of documents that are sent also when the budget is full, in bytes: those for health checks and probes.
const ALWAYS_SENT: usize = 4 << 10;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One request: its id and when it arrived. An extension of every request.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) request_id: RequestId,
    pub(super) arrived: Instant,
}

impl Context {
    /// The context of a request that just arrived: its id is the one in its headers where that is valid, else a new one.
    fn new(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID);
        let given = given.and_then(|id| id.to_str().ok()?.parse().ok());
        // A replay goes on under the id that the first instance gave the request.
        let kept = given.or_else(|| replay::request_id(headers));
        Self {
            request_id: kept.unwrap_or_else(RequestId::fresh),
            arrived: Instant::now(),
        }
    }
}

/// Puts the layer around `routes`, their 404s and 405s included, which show a stranger nothing that way.
///
/// One layer and not one for each purpose: axum boxes a request's future once more for each.
pub(super) fn around(
    routes: Router<Arc<Dispatcher>>,
    dispatcher: &Arc<Dispatcher>,
    audience: Audience,
) -> Router<Arc<Dispatcher>> {
    let routes = routes.method_not_allowed_fallback(async || {
        let detail = "this route has other methods; see the header allow";
        Problem::new(Code::MethodNotAllowed, detail)
    });
    let state = (Arc::clone(dispatcher), audience);
    let layer = async |State((dispatcher, audience)): State<(Arc<Dispatcher>, Audience)>,
                       request,
                       next: Next| {
        answer(&dispatcher, audience, request, |request| next.run(request)).await
    };
    routes.layer(middleware::from_fn_with_state(state, layer))
}

/// Gives the request its context, has `next` answer it, and finishes the response.
pub(super) async fn answer<F: Future<Output = Response>>(
    dispatcher: &Dispatcher,
    audience: Audience,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let (context, local) = (Context::new(request.headers()), &dispatcher.local);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let admitted =
        check_head(&request).and_then(|()| auth::admit(&local.access, audience, &mut request));
    let caller = request.extensions().get::<Caller>().cloned();
    let places = match audience {
        Audience::Anyone => auth::check_places(&request),
        // A client was refused already, and for instances such connections are kept.
        Audience::Clients | Audience::Instances => Ok(()),
    };
    let mut response = match admitted {
        Ok(()) => {
            request.extensions_mut().insert(context.clone());
            next(request).await
        }
        Err(problem) => refuse(request.headers(), problem),
    };
    // Before refusals become documents, because this makes one.
    if method == Method::GET
        && let Err(problem) = check_room(&local.memory, places, uri.path(), &response)
    {
        response = problem.into_response();
    }
    let id = HeaderValue::from_str(context.request_id.as_str());
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        // It keeps the headers that it was given, such as `allow`.
        let headers = std::mem::take(response.headers_mut());
        response = refused(
            local,
            context,
            refusal,
            caller.as_ref(),
            &method,
            uri.path(),
        );
        response.headers_mut().extend(headers);
    }
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    if let Ok(id) = id {
        headers.insert(REQUEST_ID, id);
    }
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    // A client must not send its next request on a connection that is about to be closed.
    if dispatcher.lifecycle.is_stopping() && !is_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A refusal with the header that belongs to it: `allow` for `CONNECT`, `www-authenticate` for a missing or wrong token (RFC
/// 6750, section 3.1), `connection` where it is uncertain what the next request is.
fn refuse(headers: &HeaderMap, problem: Problem) -> Response {
    match problem.code {
        Code::MethodNotAllowed => ([(ALLOW, "GET, POST")], problem).into_response(),
        Code::Unauthenticated => {
            let challenge = match auth::presented_token(headers) {
                Some(_) => "Bearer error=\"invalid_token\"",
                None => "Bearer",
            };
            ([(WWW_AUTHENTICATE, challenge)], problem).into_response()
        }
        _ if !is_framed(headers) => ([(CONNECTION, "close")], problem).into_response(),
        _ => problem.into_response(),
    }
}

/// The document of a request that was refused before any instance was tried; counted, and logged without its query and body.
/// One that Fly Proxy is to replay was not refused, and has its line and count already.
fn refused(
    local: &LocalInstance,
    context: Context,
    refusal: Refusal,
    caller: Option<&Caller>,
    method: &Method,
    path: &str,
) -> Response {
    let Refusal { problem, region } = refusal;
    let meta = Meta::untried(region, context.arrived.elapsed(), context.request_id);
    let document = ProblemDocument::new(problem, meta);
    let (problem, meta) = (&document.problem, &document.meta);
    if problem.code == Code::Replay {
        return problem_document(&document);
    }
    let (elapsed_ms, request_id) = (meta.elapsed_ms, &meta.request_id);
    let client = caller.and_then(Caller::name);
    let path = &path[..path.floor_char_boundary(LOGGED_PATH)];
    let (status, code, executed) = (problem.status(), problem.code, problem.executed);
    let detail = &problem.detail;
    local.metrics.calls.refused(code);
    tracing::info!(
        client, %method, path, status, %code, %executed, detail, elapsed_ms, %request_id, "refused"
    );
    problem_document(&document)
}

/// Refuses a document that was asked for, unless the memory budget has room for it and `places` says that the connection is
/// not kept for others: anybody may ask for one and not read it.
fn check_room(
    memory: &Budget,
    places: Result<(), Problem>,
    path: &str,
    response: &Response,
) -> Result<(), Problem> {
    let size = usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX);
    if size <= ALWAYS_SENT {
        return Ok(());
    }
    places?;
    let share = match path {
        "/metrics" | protocol::FUNCTIONS => Share::Results,
        _ => Share::Strangers,
    };
    match memory.has_room(size, share) {
        true => Ok(()),
        false => Err(NoRoom.into()),
    }
}

/// Refuses a request that no route can answer: its head is too large, its body is uncertain, or it is for another host.
fn check_head(request: &Request) -> Result<(), Problem> {
    check_size(request.uri(), request.headers())?;
    // A target in the form of a path is left to the routes, as with every other method.
    if request.method() == Method::CONNECT && request.uri().authority().is_some() {
        let detail = "an instance is no proxy";
        return Err(Problem::new(Code::MethodNotAllowed, detail));
    }
    if !is_framed(request.headers()) {
        let detail = "header transfer-encoding must be chunked, and given once";
        return Err(Problem::new(Code::InvalidRequest, detail));
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

/// Whether every reader agrees where the body ends: its transfer encoding, if it has one, is `chunked` alone. hyper reads
/// any list that ends in `chunked` (RFC 9112, section 6.1).
fn is_framed(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => true,
        (Some(encoding), None) => encoding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// A request of HTTP/1.1 has one `Host`, which is a host and a port (RFC 9112, section 3.2); a target in absolute form names
/// the same host. HTTP/2, which the server of a program that embeds an instance may speak, is refused.
fn check_host(request: &Request) -> Result<(), &'static str> {
    if request.version() > Version::HTTP_11 {
        return Err("HTTP/2 is not served here; send HTTP/1.1");
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err("header host is given twice"),
        (None, _) if request.version() == Version::HTTP_11 => return Err("header host is missing"),
        (host, _) => host.map(HeaderValue::as_bytes),
    };
    if host.is_some_and(|host| !is_host(host)) {
        return Err("header host is no host, or host:port");
    }
    match request.uri().authority() {
        Some(authority) if host != Some(authority.as_str().as_bytes()) => {
            Err("the request's target names another host than header host")
        }
        _ => Ok(()),
    }
}

/// Whether `text` is a host with or without a port (RFC 9110, section 7.2; RFC 3986, section 3.2): no user before an `@`,
/// behind which another host might be read. It may be empty, for a target that has none.
fn is_host(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else {
        return false;
    };
    let (is_name, rest) = match text.strip_prefix('[') {
        Some(literal) => {
            let (address, rest) = literal.split_once(']').unwrap_or_default();
            (address.parse::<Ipv6Addr>().is_ok(), rest)
        }
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_registered_name(name), rest)
        }
    };
    let port = rest.strip_prefix(':').unwrap_or(rest);
    let is_port = rest.is_empty() || rest.len() > port.len();
    is_name && is_port && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `name` has only characters that RFC 3986 allows in a name, section 3.2.2; so has an IPv4 address.
fn is_registered_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let is_allowed = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
        };
        if !is_allowed {
            return false;
        }
    }
    true
}
