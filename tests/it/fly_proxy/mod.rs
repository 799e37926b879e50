//! A stand-in for Fly Proxy: takes requests at one edge, adds the headers of the platform, delivers them to Machines and
//! replays them as an answer with `fly-replay` asks, within Fly's limits. What Fly refuses it refuses, with a status that
//! no instance uses and the code of <https://fly.io/docs/monitoring/error-codes/>.

mod directive;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Uri, header},
    response::Response,
};
use reqwest::{Client, RequestBuilder};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout_at},
};

use self::directive::Directive;

/// The largest request that is replayed, head included, in bytes.
const MAX_REPLAYED: usize = 1_000_000;
/// The largest request that is taken, in bytes.
const MAX_REQUEST: usize = 10_000_000;
/// The most replays of one request.
const MAX_REPLAYS: usize = 10;
/// How often a Machine that nobody reaches is tried, and the rest between two tries.
const TRIES: usize = 3;
const REST: Duration = Duration::from_millis(20);
/// How long a replay without a timeout of its own is tried.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The status of what the proxy itself refuses; an instance answers 502 too, but as a problem document.
const REFUSED: u16 = 502;

/// A Machine that requests are delivered to.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub id: String,
    pub region: String,
    pub address: SocketAddr,
}

/// One delivery of a request: to which Machine, and what the proxy told it of a replay.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Delivery {
    pub machine: String,
    pub replay_src: Option<String>,
    pub replay_failed: Option<String>,
}

/// A running proxy at one edge; it stops when it is dropped.
pub(crate) struct FlyProxy {
    address: SocketAddr,
    edge: Arc<Edge>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

/// How `fly-replay-src` separates its fields: documentation and code disagree.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Separator {
    #[default]
    Semicolon,
    Comma,
}

struct Edge {
    region: String,
    separator: Separator,
    machines: Vec<Machine>,
    deliveries: Mutex<Vec<Delivery>>,
    client: Client,
}

impl FlyProxy {
    /// An edge in `region` in front of `machines`.
    pub(crate) async fn start(region: &str, machines: Vec<Machine>) -> Self {
        Self::start_with(region, machines, Separator::default()).await
    }

    /// The same with another separator in `fly-replay-src`.
    pub(crate) async fn start_with(
        region: &str,
        machines: Vec<Machine>,
        separator: Separator,
    ) -> Self {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        let edge = Arc::new(Edge {
            region: region.to_owned(),
            separator,
            machines,
            deliveries: Mutex::default(),
            client,
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(Arc::clone(&edge));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            edge,
            _task: tokio_util::task::AbortOnDropHandle::new(task),
        }
    }

    /// `POST path` at this edge with a JSON text, to be completed and sent by the test.
    pub(crate) fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        let request = self.request(Method::POST, path, body);
        request.header("content-type", "application/json")
    }

    /// A request of `path` at this edge, to be completed and sent by the test.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.edge.client.request(method, url).body(body)
    }

    /// The deliveries since this was last asked, in their order.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        std::mem::take(&mut *self.edge.deliveries.lock().unwrap())
    }
}

/// A request as it was taken, and kept for replays.
struct Taken {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

async fn take(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_REQUEST).await else {
        return refuse("PA01: the request is too large to be buffered");
    };
    let mut headers = parts.headers;
    edge.mark(&mut headers);
    let taken = Taken {
        method: parts.method,
        uri: parts.uri,
        headers,
        body,
    };
    edge.serve(taken).await
}

impl Taken {
    fn size(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        self.uri.to_string().len() + headers + self.body.len()
    }
}

impl Edge {
    /// What every request bears: <https://fly.io/docs/networking/request-headers/>. Whether Fly Proxy takes away what a
    /// client invents of `fly-replay-src` and its like is not documented; this one does not.
    fn mark(&self, headers: &mut HeaderMap) {
        for hop in [
            header::CONNECTION,
            header::TRANSFER_ENCODING,
            header::CONTENT_LENGTH,
        ] {
            headers.remove(hop);
        }
        for (name, value) in [
            ("fly-client-ip", "203.0.113.7"),
            ("fly-forwarded-port", "443"),
            ("fly-region", self.region.as_str()),
            ("fly-request-id", "01M83V4TZ858W3FMWW27MNHTWG-iad"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-ssl", "on"),
            ("via", "2 fly.io"),
        ] {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
    }

    async fn serve(&self, mut request: Taken) -> Response {
        let Some((mut sender, mut answer)) = self.first(&request).await else {
            return refuse("PR01: no Machine takes the request");
        };
        let (mut replays, mut fell_back) = (0, false);
        while let Some(header) = answer.headers().get("fly-replay") {
            let Some(directive) = header.to_str().ok().and_then(Directive::parse) else {
                return refuse("PA03: the header fly-replay is not valid");
            };
            replays += 1;
            if replays > MAX_REPLAYS {
                return refuse("PA02: too many replays");
            }
            if fell_back {
                return refuse("PA03: a request that fell back cannot be replayed");
            }
            if request.size() > MAX_REPLAYED {
                return refuse("PA01: the request is too large to be replayed");
            }
            match self.replay(&mut request, &sender, &directive).await {
                Ok((machine, again)) => (sender, answer) = (machine, again),
                Err(failed) if directive.falls_back => {
                    fell_back = true;
                    request.headers.insert("fly-replay-failed", failed);
                    match self.deliver(&request, &sender).await {
                        Ok(again) => answer = again,
                        Err(_) => return refuse("PR01: the Machine that replayed is gone"),
                    }
                }
                Err(_) => return refuse("PR03: the target of the replay cannot be reached"),
            }
        }
        to_client(answer).await
    }

    /// The answer of the Machine that gets a request first: one of the preferred region, else of the edge's, else any.
    async fn first(&self, request: &Taken) -> Option<(Machine, reqwest::Response)> {
        let preferred = request.headers.get("fly-prefer-region");
        let preferred = preferred
            .and_then(|region| region.to_str().ok())
            .unwrap_or_default();
        let mut machines: Vec<_> = self.machines.iter().collect();
        machines
            .sort_by_key(|machine| (machine.region != preferred, machine.region != self.region));
        for machine in machines {
            if let Ok(answer) = self.deliver(request, machine).await {
                return Some((machine.clone(), answer));
            }
        }
        None
    }

    /// The answer of a Machine that `directive` asks for.
    ///
    /// # Errors
    /// The header `fly-replay-failed`, when no connection to one came about.
    async fn replay(
        &self,
        request: &mut Taken,
        sender: &Machine,
        directive: &Directive,
    ) -> Result<(Machine, reqwest::Response), HeaderValue> {
        let started = Instant::now();
        let deadline = started + directive.timeout.unwrap_or(TIMEOUT);
        let is_asked_for = |machine: &&Machine| {
            directive.allows_region(&machine.region)
                && directive
                    .instance
                    .as_ref()
                    .is_none_or(|id| *id == machine.id)
                && !(directive.elsewhere && machine.id == sender.id)
        };
        let candidates: Vec<_> = self.machines.iter().filter(is_asked_for).cloned().collect();
        request.headers.remove("fly-replay-failed");
        request
            .headers
            .insert("fly-replay-src", self.source(sender, directive));
        request
            .headers
            .insert("fly-replay-cache-status", HeaderValue::from_static("miss"));
        let mut reason = "no_candidate";
        'tries: for _ in 0..TRIES {
            for machine in &candidates {
                match timeout_at(deadline, self.connects(machine)).await {
                    Ok(true) => match self.deliver(request, machine).await {
                        Ok(answer) => return Ok((machine.clone(), answer)),
                        Err(_) => reason = "retries_exhausted",
                    },
                    Ok(false) => reason = "retries_exhausted",
                    Err(_) => {
                        reason = "timeout";
                        break 'tries;
                    }
                }
            }
            sleep(REST).await;
        }
        let (id, region) = (directive.instance.as_deref(), directive.regions.first());
        let failed = format!(
            "instance={};app=shop;region={};replay_source={};reason={reason};elapsed_ms={}",
            id.unwrap_or_default(),
            region.map_or("", String::as_str),
            sender.id,
            started.elapsed().as_millis()
        );
        Err(HeaderValue::from_str(&failed).unwrap())
    }

    async fn connects(&self, machine: &Machine) -> bool {
        tokio::net::TcpStream::connect(machine.address)
            .await
            .is_ok()
    }

    /// The header `fly-replay-src`.
    fn source(&self, sender: &Machine, directive: &Directive) -> HeaderValue {
        let separator = match self.separator {
            Separator::Semicolon => ";",
            Separator::Comma => ",",
        };
        let microseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_micros();
        let mut fields = vec![
            format!("instance={}", sender.id),
            format!("region={}", sender.region),
            format!("t={microseconds}"),
        ];
        fields.extend(directive.state.iter().map(|state| format!("state={state}")));
        HeaderValue::from_str(&fields.join(separator)).unwrap()
    }

    /// Sends `request` to `machine`; an error means that no whole answer came.
    async fn deliver(
        &self,
        request: &Taken,
        machine: &Machine,
    ) -> reqwest::Result<reqwest::Response> {
        let text = |name| {
            let value = request.headers.get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let delivery = Delivery {
            machine: machine.id.clone(),
            replay_src: text("fly-replay-src"),
            replay_failed: text("fly-replay-failed"),
        };
        let answer = self
            .client
            .request(
                request.method.clone(),
                format!("http://{}{}", machine.address, request.uri),
            )
            .headers(request.headers.clone())
            .body(request.body.clone())
            .send()
            .await?;
        self.deliveries.lock().unwrap().push(delivery);
        Ok(answer)
    }
}

/// An answer as the client gets it, marked by the proxy.
async fn to_client(answer: reqwest::Response) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
        response.headers_mut().remove(hop);
    }
    let marks = [("server", "Fly"), ("via", "1.1 fly.io")];
    for (name, value) in marks {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    match answer.bytes().await {
        Ok(body) => {
            *response.body_mut() = Body::from(body);
            response
        }
        Err(_) => refuse("PU02: the answer was cut short"),
    }
}

fn refuse(why: &'static str) -> Response {
    let response = Response::builder().status(REFUSED).header("server", "Fly");
    response.body(Body::from(why)).unwrap()
}
