//! A stand-in for Fly Proxy: takes requests at one edge, adds the headers of the platform, delivers them to Machines and
//! replays them as an answer with `fly-replay` asks, within Fly's limits. What Fly refuses it refuses, with a status that
//! no instance uses and the code of <https://fly.io/docs/monitoring/error-codes/>.

mod directive;
mod wire;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, header},
    response::Response,
};
use reqwest::{Client, RequestBuilder};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout_at},
};

use self::{
    directive::Directive,
    wire::{Lost, Taken},
};

/// The largest request that is replayed, head included, in bytes.
const MAX_REPLAYED: usize = 1_000_000;
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
    /// How long it takes to start when somebody connects; zero for one that runs.
    pub start: Duration,
}

impl Machine {
    /// One that runs.
    pub(crate) fn new(id: &str, region: &str, address: SocketAddr) -> Self {
        Self {
            id: id.to_owned(),
            region: region.to_owned(),
            address,
            start: Duration::ZERO,
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        sleep(self.start).await;
        wire::connect(self.address).await
    }
}

/// One delivery of a request: to which Machine, and what the proxy said of a replay.
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

async fn take(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let (parts, rest) = request.into_parts();
    let mut headers = parts.headers;
    edge.mark(&mut headers);
    let mut taken = Taken {
        method: parts.method,
        uri: parts.uri,
        headers,
        kept: Vec::new(),
        rest,
    };
    let answer = edge.serve(&mut taken).await;
    taken.take_rest().await;
    answer
}

impl Taken {
    fn size(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        self.uri.to_string().len() + headers + self.kept.len()
    }
}

impl Edge {
    /// What every request bears: <https://fly.io/docs/networking/request-headers/>. Whether Fly Proxy takes away what a
    /// client invents of `fly-replay-src` and its like is not documented; this one does not.
    fn mark(&self, headers: &mut HeaderMap) {
        for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
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

    async fn serve(&self, request: &mut Taken) -> Response {
        let (mut sender, mut answer) = match self.first(request).await {
            Ok(first) => first,
            Err(refused) => return refuse(refused),
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
            let answered = match self.target(request, &sender, &directive).await {
                Ok((machine, stream)) => {
                    sender = machine;
                    self.deliver(request, &sender, stream).await
                }
                Err(failed) if directive.falls_back => {
                    fell_back = true;
                    request.headers.insert("fly-replay-failed", failed);
                    match sender.connect().await {
                        Ok(stream) => self.deliver(request, &sender, stream).await,
                        Err(_) => return refuse("PR01: the Machine that replayed is gone"),
                    }
                }
                Err(_) => return refuse("PR03: the target of the replay cannot be reached"),
            };
            answer = match answered {
                Ok(answer) => answer,
                Err(refused) => return refuse(refused),
            };
        }
        to_client(answer)
    }

    /// The answer of the Machine that gets a request first: one of the preferred region, else of the edge's, else any.
    ///
    /// # Errors
    /// What the edge refuses the request with.
    async fn first(&self, request: &mut Taken) -> Result<(Machine, Response<Bytes>), &'static str> {
        let preferred = request.headers.get("fly-prefer-region").cloned();
        let preferred = preferred.as_ref().and_then(|region| region.to_str().ok());
        for machine in self.nearest(preferred) {
            if let Ok(stream) = machine.connect().await {
                let answer = self.deliver(request, machine, stream).await?;
                return Ok((machine.clone(), answer));
            }
        }
        Err("PR01: no Machine takes the request")
    }

    /// The Machines, those of the region `preferred` first, then those of the edge's region.
    fn nearest(&self, preferred: Option<&str>) -> Vec<&Machine> {
        let mut machines: Vec<_> = self.machines.iter().collect();
        machines.sort_by_key(|machine| {
            let is_preferred = preferred == Some(machine.region.as_str());
            (!is_preferred, machine.region != self.region)
        });
        machines
    }

    /// A Machine that `directive` asks for, and a connection to it; marks `request` as a replay.
    ///
    /// # Errors
    /// The header `fly-replay-failed`, when no connection to one came about.
    async fn target(
        &self,
        request: &mut Taken,
        sender: &Machine,
        directive: &Directive,
    ) -> Result<(Machine, TcpStream), HeaderValue> {
        let started = Instant::now();
        let deadline = started + directive.timeout.unwrap_or(TIMEOUT);
        let mut candidates = self.nearest(None);
        candidates.retain(|machine| directive.allows(machine, sender));
        candidates.sort_by_key(|machine| directive.prefers != Some(machine.id.clone()));
        let headers = &mut request.headers;
        headers.remove("fly-replay-failed");
        headers.insert("fly-replay-src", self.source(sender, directive));
        headers.insert("fly-replay-cache-status", HeaderValue::from_static("miss"));
        let mut reason = "no_candidate";
        'tries: for _ in 0..TRIES {
            for machine in &candidates {
                match timeout_at(deadline, machine.connect()).await {
                    Ok(Ok(stream)) => return Ok(((*machine).clone(), stream)),
                    Ok(Err(_)) => reason = "retries_exhausted",
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

    /// The answer of `machine` to `request`.
    ///
    /// # Errors
    /// What the edge refuses the request with.
    async fn deliver(
        &self,
        request: &mut Taken,
        machine: &Machine,
        stream: TcpStream,
    ) -> Result<Response<Bytes>, &'static str> {
        let text = |name| {
            let value = request.headers.get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let delivery = Delivery {
            machine: machine.id.clone(),
            replay_src: text("fly-replay-src"),
            replay_failed: text("fly-replay-failed"),
        };
        self.deliveries.lock().unwrap().push(delivery);
        let answer = wire::exchange(stream, request).await;
        answer.map_err(|lost| match lost {
            Lost::TooLarge => "PA01: the request is too large to be buffered",
            Lost::Cut => "PU02: the Machine closed the connection before the message was complete",
        })
    }
}

/// An answer as the client gets it, marked by the proxy.
fn to_client(answer: Response<Bytes>) -> Response {
    let mut response = answer.map(Body::from);
    let headers = response.headers_mut();
    for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(hop);
    }
    headers.insert("server", HeaderValue::from_static("Fly"));
    headers.insert("via", HeaderValue::from_static("1.1 fly.io"));
    response
}

fn refuse(why: &'static str) -> Response {
    let response = Response::builder().status(REFUSED).header("server", "Fly");
    response.body(Body::from(why)).unwrap()
}
