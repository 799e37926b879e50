//! Commands for a running cluster, a line each, typed or sent by the page: to see what happens when instances fail.
//! For the page, the program of `dev --chaos` serves each instance below `/at/NAME/`, so that the page outlives the instance
//! that it shows, and takes lines at `/control`.
//!
//! It listens on loopback, for pages of its own address only: a page of another site, or a name that is made to point here
//! (DNS rebinding), is refused. `/control` wants a token besides, which only the page knows, from its fragment.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::BufRead,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing,
};
use futures_util::stream;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use super::cluster::DevCluster;
use crate::{
    cli::{Failure, run::secret},
    http::check_site,
    name::InvalidName,
    replay::drop_hop,
    token::{PresentedToken, Token},
};

/// The largest body that is passed on, in bytes: what an instance takes by default.
const MAX_BODY: usize = 1 << 20;

pub(super) const HELP: &str = "Type, while it runs:
  kill NAME    ends an instance at once, as a crash does
  stop NAME    lets it hang: it keeps its sockets, and does nothing
  resume NAME  lets a stopped instance go on
  drain NAME   lets it finish what it does and end, as a deploy does
  start NAME   starts it again
  dns down     takes the DNS server down
  dns up       brings it up again";

/// Runs the command in `line`; returns what to print.
pub(super) async fn obey(cluster: &mut DevCluster, line: &str) -> String {
    let done = try_to(cluster, line).await;
    done.unwrap_or_else(|failure| failure.to_string())
}

async fn try_to(cluster: &mut DevCluster, line: &str) -> Result<String, Failure> {
    let words: Vec<_> = line.split_whitespace().collect();
    Ok(match words[..] {
        ["kill", name] => {
            cluster.child(name)?.signal(Signal::SIGKILL).await;
            format!("{name} is killed; `start {name}` starts it again")
        }
        ["stop", name] => {
            cluster.child(name)?.signal(Signal::SIGSTOP).await;
            format!("{name} hangs; `resume {name}` lets it go on")
        }
        ["resume", name] => {
            cluster.child(name)?.signal(Signal::SIGCONT).await;
            format!("{name} goes on")
        }
        ["drain", name] => {
            cluster.child(name)?.drain();
            format!("{name} drains; `start {name}` starts it again")
        }
        ["start", name] => {
            cluster.child(name)?.start_again().await?;
            format!("{name} is back")
        }
        ["dns", "down"] => {
            cluster.dns.take_down();
            "DNS is down; `dns up` brings it up again".to_owned()
        }
        ["dns", "up"] => {
            cluster.dns.bring_up().await?;
            "DNS is up".to_owned()
        }
        [] | ["help"] => HELP.to_owned(),
        _ => format!("no command {line:?}\n{HELP}"),
    })
}

/// Sends the lines of stdin. In a thread of its own, because a read of stdin cannot be cancelled.
pub(super) fn read_stdin(orders: mpsc::Sender<Order>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n').map_while(Result::ok) {
            let (answer, _) = oneshot::channel();
            let line = Some(String::from_utf8_lossy(&line).into_owned());
            if orders.blocking_send(Order { line, answer }).is_err() {
                return;
            }
        }
    });
}

/// A message to the loop that owns the cluster: to run a line, or without one to list the instances.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) line: Option<String>,
    pub(super) answer: oneshot::Sender<Value>,
}

#[derive(Debug)]
struct Shared {
    instances: BTreeMap<String, SocketAddr>,
    client: reqwest::Client,
    token: Token,
    orders: mpsc::Sender<Order>,
}

/// Listens from now on, for the cluster of `instances`, which `client` asks: the address of the page that shows `first`.
pub(super) async fn start(
    first: &str,
    instances: BTreeMap<String, SocketAddr>,
    client: reqwest::Client,
    orders: mpsc::Sender<Order>,
) -> Result<String, Failure> {
    let token = secret();
    let parsed = token.parse();
    let shared = Shared {
        instances,
        client,
        token: parsed.map_err(|error: InvalidName| Failure::Failed(error.to_string()))?,
        orders,
    };
    let router = Router::new()
        .route("/at/{name}/{*rest}", routing::any(pass_on))
        .route("/control", routing::get(control).post(control))
        .layer(middleware::from_fn(own_pages))
        .with_state(Arc::new(shared));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(format!(
        "http://localhost:{port}/at/{first}/ui#control={token}"
    ))
}

/// Refuses a request from a page of another site, or for another host than this machine.
async fn own_pages(request: Request, next: Next) -> Response {
    match check_site(&request, false, "open the address that fly-rpc dev printed") {
        Ok(()) => next.run(request).await,
        Err(problem) => said(StatusCode::FORBIDDEN, &problem.detail),
    }
}

/// `POST /control` takes one line of what may be typed; `GET /control` has the instances.
async fn control(
    State(shared): State<Arc<Shared>>,
    method: Method,
    headers: HeaderMap,
    line: String,
) -> Response {
    let presented = headers.get(header::AUTHORIZATION);
    let presented = presented.map(HeaderValue::as_bytes);
    let presented = presented.and_then(PresentedToken::from_authorization);
    if presented.is_none_or(|presented| presented.position([&shared.token]).is_none()) {
        let why = "this wants the token of the page's address, as `fly-rpc dev` printed it";
        return said(StatusCode::UNAUTHORIZED, why);
    }
    let line = (method == Method::POST).then_some(line);
    let (answer, answered) = oneshot::channel();
    // Where the loop has ended, the channel of the answer is closed with it.
    let _ = shared.orders.send(Order { line, answer }).await;
    match answered.await {
        Ok(document) => document_of(StatusCode::OK, &document),
        Err(_) => said(StatusCode::SERVICE_UNAVAILABLE, "the cluster stops"),
    }
}

/// `/at/{name}/…`: whatever the instance answers.
async fn pass_on(
    State(shared): State<Arc<Shared>>,
    Path((name, _)): Path<(String, String)>,
    request: Request,
) -> Response {
    let Some(address) = shared.instances.get(&name) else {
        return said(StatusCode::NOT_FOUND, "no such instance");
    };
    let (mut parts, body) = request.into_parts();
    // From the URI as it came, because axum has decoded its parameters.
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let path = path.trim_start_matches("/at/");
    let path = path.find('/').map_or("/", |slash| &path[slash..]);
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return said(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
    };
    let url = format!("http://{address}{path}");
    drop_hop(&mut parts.headers);
    // The instance would refuse those of another address than its own.
    for name in [header::HOST, header::ORIGIN] {
        parts.headers.remove(name);
    }
    let asked = shared.client.request(parts.method, url);
    match asked.headers(parts.headers).body(body).send().await {
        Ok(answered) => passed_back(answered),
        Err(_) => said(StatusCode::BAD_GATEWAY, &format!("{name} does not answer")),
    }
}

fn passed_back(mut answered: reqwest::Response) -> Response {
    let (status, mut headers) = (answered.status(), std::mem::take(answered.headers_mut()));
    drop_hop(&mut headers);
    // A stream that breaks ends: the page connects again.
    let pieces = stream::unfold(answered, async |mut answered| {
        let piece = answered.chunk().await.ok()??;
        Some((Ok::<_, Infallible>(piece), answered))
    });
    (status, headers, Body::from_stream(pieces)).into_response()
}

fn said(status: StatusCode, what: &str) -> Response {
    document_of(status, &said_document(what))
}

/// What is said to people; a page that expects a problem document finds its detail.
pub(super) fn said_document(what: &str) -> Value {
    json!({ "said": what, "detail": what })
}

fn document_of(status: StatusCode, document: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, document.to_string()).into_response()
}
