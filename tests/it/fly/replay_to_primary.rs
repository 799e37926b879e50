//! An application of three regions under `ReplayToPrimary`, through Fly Proxy: where it reads and writes, and how often.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{self, Bytes},
    extract::DefaultBodyLimit,
    http::{HeaderMap, Request, StatusCode, header::HOST},
    response::IntoResponse,
    routing::{get, post},
};
use fly_rpc::{Config, Identity, ReplayToPrimary};
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};
use tower::ServiceExt;

use crate::support::{
    fly_proxy::{FlyProxy, Machine},
    network::Network,
    patience::in_time,
    process::{Answer, answer},
    raw,
};

/// What the application gives as the token of a write: some of it cannot stand in a cookie as it is.
const TOKEN: &str = "0/7;b~\"%2F,c";

/// The regions that wrote, once for each time.
type Writes = Arc<Mutex<Vec<&'static str>>>;

/// An edge in `syd` in front of an application in `iad`, which is the primary region, `syd` and `fra`.
struct Application {
    proxy: FlyProxy,
    writes: Writes,
}

impl Application {
    async fn start(layer: impl Fn(ReplayToPrimary) -> ReplayToPrimary) -> Self {
        Self::start_without(layer, &[]).await
    }

    /// The same where Fly Proxy reaches nobody in the regions `unreachable`.
    async fn start_without(
        layer: impl Fn(ReplayToPrimary) -> ReplayToPrimary,
        unreachable: &[&str],
    ) -> Self {
        let writes = Writes::default();
        let mut machines = Vec::new();
        for region in ["iad", "syd", "fra"] {
            let layer = layer(ReplayToPrimary::new(&identity(region)).unwrap());
            let address = serve(region, &writes, layer).await;
            let address = if unreachable.contains(&region) {
                nobody()
            } else {
                address
            };
            machines.push(Machine::new(&format!("{region}-1"), region, address));
        }
        Self {
            proxy: FlyProxy::start("syd", machines).await,
            writes,
        }
    }

    async fn read(&self, headers: &[(&str, &str)]) -> Answer {
        sent(self.proxy.request(Method::GET, "/notes", ""), headers).await
    }

    async fn write(&self, length: usize, headers: &[(&str, &str)]) -> Answer {
        sent(
            self.proxy
                .request(Method::POST, "/notes", vec![b'x'; length]),
            headers,
        )
        .await
    }

    fn writes(&self) -> Vec<&'static str> {
        self.writes.lock().unwrap().clone()
    }

    /// The Machines of the deliveries since this was last asked.
    fn way(&self) -> Vec<String> {
        self.proxy
            .deliveries()
            .into_iter()
            .map(|delivery| delivery.machine)
            .collect()
    }
}

/// Who an instance in `region` is, where `iad` is the primary region.
fn identity(region: &str) -> Identity {
    let mut identity = Config::default().identity;
    identity.region = region.parse().unwrap();
    identity.primary = "iad".parse().unwrap();
    identity
}

async fn serve(region: &'static str, writes: &Writes, layer: ReplayToPrimary) -> SocketAddr {
    let app = application(region, writes, layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

fn application(region: &'static str, writes: &Writes, layer: ReplayToPrimary) -> Router {
    let writes = Arc::clone(writes);
    let counts = Arc::clone(&writes);
    let write = async move |_body: Bytes| {
        writes.lock().unwrap().push(region);
        ([("rpc-consistency", TOKEN)], region)
    };
    // A read that writes: where the database is a copy, it fails.
    let count = async move || {
        if region != "iad" {
            let failed = StatusCode::INTERNAL_SERVER_ERROR;
            return (failed, [("x-read-only", "1")], "read-only").into_response();
        }
        counts.lock().unwrap().push("count");
        region.into_response()
    };
    let host = async |headers: HeaderMap, _body: Bytes| headers[HOST].as_bytes().to_vec();
    Router::new()
        .route("/notes", get(async move || region).post(write))
        .route("/host", post(host))
        .route(
            "/admin",
            get(async move || region).post(async move || region),
        )
        .route("/count", get(count))
        .layer(DefaultBodyLimit::disable())
        .layer(layer)
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    Network::free().next_address()
}

async fn sent(request: RequestBuilder, headers: &[(&str, &str)]) -> Answer {
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    answer(request).await.unwrap()
}

/// A cookie that lasts for so many seconds from now.
fn cookie_for(seconds: f64) -> String {
    format!("fly-replay-threshold={}", until(seconds))
}

/// The same with a token.
fn cookie_with(token: &str, seconds: f64) -> String {
    format!("fly-replay-after={}~{token}", until(seconds))
}

fn until(seconds: f64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{:.3}", now.as_secs_f64() + seconds)
}

/// The cookie that an answer sets, as a client sends it back.
fn cookie(answer: &Answer) -> Option<&str> {
    answer.headers.get("set-cookie")?.split(';').next()
}

#[tokio::test]
async fn reads_are_answered_where_they_arrive_and_writes_in_the_primary_region() {
    let application = Application::start(|layer| layer).await;
    assert_eq!(application.read(&[]).await.body, "syd");
    assert_eq!(application.way(), ["syd-1"]);
    let written = application.write(100, &[]).await;
    assert_eq!((written.status, written.body.as_str()), (200, Some("iad")));
    assert_eq!(
        (application.way(), application.writes()),
        (vec!["syd-1".to_owned(), "iad-1".to_owned()], vec!["iad"])
    );
    let set = &written.headers["set-cookie"];
    let wrote = "fly-replay-threshold=";
    assert!(
        set.starts_with(wrote) && set.ends_with("; Path=/; Max-Age=5; HttpOnly; SameSite=Lax"),
        "{set}"
    );
}

#[tokio::test]
async fn who_wrote_reads_in_the_primary_region_for_a_while() {
    let application = Application::start(|layer| layer.window(Duration::from_secs(60))).await;
    let before = until(60.0);
    let written = application.write(1, &[]).await;
    let wrote = cookie(&written).unwrap();
    let ends = wrote.split_once('=').unwrap().1;
    assert!((before.as_str()..=&until(60.0)).contains(&ends), "{wrote}");
    let both = format!("theme=dark; {wrote}");
    // The clocks of two regions may differ by 2 s.
    let of_a_fast_clock = cookie_for(61.0);
    for cookies in [wrote, &both, &of_a_fast_clock] {
        let read = application.read(&[("cookie", cookies)]).await;
        // Reading does not lengthen the while.
        assert_eq!((read.body.as_str(), cookie(&read)), (Some("iad"), None));
    }
    for over in [
        "fly-replay-threshold=1.5",
        &cookie_for(-0.01),
        "fly-replay-threshold=soon",
        "fly-replay-threshold=NaN",
        "fly-replay-threshold=",
        "fly-replay-threshold=-inf",
        // What no answer of ours sets, and would never end.
        &cookie_for(100.0),
        "fly-replay-threshold=inf",
        "fly-replay-threshold=infinity",
        "fly-replay-threshold=1e300",
        "fly-replay-threshold=99999999999",
        "fly-replay-threshold=inf~0/7",
        "threshold",
    ] {
        assert_eq!(
            application.read(&[("cookie", over)]).await.body,
            "syd",
            "{over}"
        );
    }
    let none = Application::start(|layer| layer.window(Duration::ZERO)).await;
    assert_eq!(cookie(&none.write(1, &[]).await), None);
}

#[tokio::test]
async fn a_write_too_large_to_be_replayed_is_refused_with_the_way_that_is_left() {
    let application = Application::start(|layer| layer).await;
    let refused = application.write(1_000_000, &[]).await;
    let document = json!({
        "type": "about:blank",
        "title": "Payload Too Large",
        "status": 413,
        "detail": "this writes in region \"iad\", and is too large to be replayed there; send it with the header \
            fly-prefer-region: iad",
    });
    assert_eq!(
        (refused.content_type.as_str(), refused.body),
        ("application/problem+json", document)
    );
    assert_eq!(
        (application.way(), application.writes()),
        (vec!["syd-1".to_owned()], vec![])
    );
    let written = application
        .write(1_000_000, &[("fly-prefer-region", "iad")])
        .await;
    assert_eq!(written.body, "iad");
    assert_eq!(application.write(999_000, &[]).await.body, "iad");
}

#[tokio::test]
async fn a_write_that_does_not_reach_the_primary_region_runs_nowhere() {
    let application = Application::start_without(|layer| layer, &["iad"]).await;
    let refused = application.write(1, &[]).await;
    assert_eq!(
        (refused.status, refused.headers["retry-after"].as_str()),
        (503, "1")
    );
    assert_eq!(
        refused.body["detail"],
        "this writes in region \"iad\", which was not reached; nothing was written"
    );
    assert_eq!(
        (application.way(), application.writes()),
        (vec!["syd-1".to_owned(); 2], vec![])
    );
    // A read goes on here: old news are better than none.
    let read = application.read(&[("cookie", &cookie_for(4.0))]).await;
    assert_eq!(read.body, "syd");
    assert_eq!(application.way(), ["syd-1", "syd-1"]);
}

#[tokio::test]
async fn what_a_client_invents_is_neither_replayed_again_nor_written_in_another_region() {
    let application = Application::start(|layer| layer).await;
    for invented in [
        (
            "fly-replay-src",
            "instance=iad-1;region=iad;t=1;state=write",
        ),
        ("fly-replay-failed", ""),
        ("fly-replay-cache-status", "hit"),
    ] {
        assert_eq!(
            application.write(1, &[invented]).await.status,
            503,
            "{invented:?}"
        );
        assert_eq!(application.way(), ["syd-1"]);
        let wrote = cookie_for(4.0);
        let wrote = ("cookie", wrote.as_str());
        assert_eq!(application.read(&[invented, wrote]).await.body, "syd");
        assert_eq!(application.way(), ["syd-1"]);
    }
    assert_eq!(application.writes(), [""; 0]);
}

#[tokio::test]
async fn an_application_says_what_writes() {
    let by_path = |layer: ReplayToPrimary| layer.writes(|head| head.uri.path() == "/admin");
    let application = Application::start(by_path).await;
    assert_eq!(application.write(1, &[]).await.body, "syd");
    let admin = sent(application.proxy.request(Method::GET, "/admin", ""), &[]).await;
    assert_eq!(admin.body, "iad");
    assert!(cookie(&admin).is_some());
}

#[tokio::test]
async fn a_write_is_replayed_however_slowly_it_comes() {
    let application = Application::start(|layer| layer).await;
    for length in [60_000, 200_000, 900_000] {
        let written = application.write(length, &[]).await;
        assert_eq!((written.status, written.body.as_str()), (200, Some("iad")));
        assert_eq!(application.way(), ["syd-1", "iad-1"], "{length}");
    }
    assert_eq!(application.writes(), ["iad"; 3]);
}

#[tokio::test]
async fn a_write_that_does_not_say_how_large_it_is_is_refused_when_it_turns_out_too_large() {
    let application = Application::start(|layer| layer).await;
    let piece = |_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 100_000])));
    for (pieces, status) in [(9, 200), (11, 413)] {
        let body = Body::wrap(StreamBody::new(stream::iter((0..pieces).map(piece))));
        let request = application.proxy.request(Method::POST, "/notes", body);
        assert_eq!(sent(request, &[]).await.status, status, "{pieces}");
    }
    assert_eq!(application.way(), ["syd-1", "iad-1", "syd-1"]);
    assert_eq!(application.writes(), ["iad"]);
}

#[tokio::test]
async fn a_write_that_is_cut_short_is_refused() {
    let writes = Writes::default();
    let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
    let syd = serve("syd", &writes, layer).await;
    let refused = raw::answer(
        syd,
        b"POST /notes HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nnone\r\n",
    )
    .await;
    assert_eq!(
        (refused.status, refused.headers.get("fly-replay")),
        (400, None)
    );
    assert_eq!(
        refused.body["detail"],
        "this writes in region \"iad\", and its body was cut short; nothing was written"
    );
}

#[tokio::test]
async fn who_wrote_reads_in_the_primary_region_until_the_copy_has_seen_it() {
    let has_seen = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let application = Application::start(|layer| {
        let (has_seen, asked) = (Arc::clone(&has_seen), Arc::clone(&asked));
        layer.caught_up(Duration::from_secs(600), move |token| {
            asked.lock().unwrap().push(token.to_string());
            let has_seen = has_seen.load(Ordering::SeqCst);
            async move { has_seen }
        })
    });
    let application = application.await;
    let written = application.write(1, &[]).await;
    let set = &written.headers["set-cookie"];
    let ends = "~0/7%3Bb%7E%22%252F%2Cc; Path=/; Max-Age=600; HttpOnly; SameSite=Lax";
    assert!(
        set.starts_with("fly-replay-after=") && set.ends_with(ends),
        "{set}"
    );
    let wrote = cookie(&written).unwrap();
    assert_eq!(application.read(&[("cookie", wrote)]).await.body, "iad");
    has_seen.store(true, Ordering::SeqCst);
    application.way();
    assert_eq!(application.read(&[("cookie", wrote)]).await.body, "syd");
    assert_eq!(application.way(), ["syd-1"]);
    assert_eq!(*asked.lock().unwrap(), [TOKEN, TOKEN]);
    // Whatever a client invents, its end is not later than that of a cookie of ours.
    has_seen.store(false, Ordering::SeqCst);
    for (cookie, region) in [
        (cookie_with("FF/FF", 590.0), "iad"),
        (cookie_with("FF/FF", 700.0), "syd"),
        ("fly-replay-after=inf~FF/FF".to_owned(), "syd"),
        (cookie_with("", 4.0), "syd"),
        (cookie_with("%20", 4.0), "syd"),
        (cookie_with("%ff", 4.0), "syd"),
        // Without a token, the time decides.
        (cookie_for(4.0), "iad"),
    ] {
        let read = application.read(&[("cookie", &cookie)]).await;
        assert_eq!(read.body, region, "{cookie}");
    }
}

/// The cookies of a browser by name, each with the seconds for which it is kept.
#[derive(Default)]
struct Jar(BTreeMap<String, (String, u64)>);

impl Jar {
    fn put(&mut self, answer: &Answer) {
        let set = &answer.headers["set-cookie"];
        let (pair, rest) = set.split_once("; ").unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        let age = rest.split_once("Max-Age=").unwrap().1;
        let age = age.split(';').next().unwrap().parse().unwrap();
        self.0.insert(name.to_owned(), (value.to_owned(), age));
    }

    /// What it sends so many seconds after all of them were set.
    fn after(&self, seconds: u64) -> String {
        let kept = self.0.iter().filter(|(_, (_, age))| *age > seconds);
        let pairs: Vec<_> = kept
            .map(|(name, (value, _))| format!("{name}={value}"))
            .collect();
        pairs.join("; ")
    }
}

#[tokio::test]
async fn a_write_without_a_token_does_not_end_what_one_with_a_token_began() {
    let longest = Duration::from_secs(600);
    let never = |layer: ReplayToPrimary| layer.caught_up(longest, async |_| false);
    let application = Application::start(never).await;
    let mut jar = Jar::default();
    jar.put(&application.write(1, &[]).await);
    let signed_in = application.proxy.request(Method::POST, "/admin", "");
    jar.put(&sent(signed_in, &[("cookie", &jar.after(0))]).await);
    for (seconds, region) in [(1, "iad"), (6, "iad"), (600, "syd")] {
        let read = application.read(&[("cookie", &jar.after(seconds))]).await;
        assert_eq!(read.body, region, "{seconds} s later");
    }
}

#[tokio::test]
async fn a_read_that_turns_out_to_write_is_replayed() {
    let captures =
        |layer: ReplayToPrimary| layer.captures(|head| head.headers.contains_key("x-read-only"));
    let application = Application::start(captures).await;
    let count = async |application: &Application, headers: &[(&str, &str)]| {
        sent(
            application.proxy.request(Method::GET, "/count", ""),
            headers,
        )
        .await
    };
    let counted = count(&application, &[]).await;
    assert_eq!((counted.status, counted.body.as_str()), (200, Some("iad")));
    assert_eq!(application.way(), ["syd-1", "iad-1"]);
    assert_eq!(application.writes(), ["count"]);
    // It wrote, and so its client reads there for a while.
    let wrote = cookie(&counted).unwrap();
    assert_eq!(application.read(&[("cookie", wrote)]).await.body, "iad");
    assert_eq!(application.read(&[]).await.body, "syd");
    // One that says that it was replayed is not replayed again.
    application.way();
    let refused = count(&application, &[("fly-replay-src", "state=captured")]).await;
    assert_eq!(
        (refused.status, application.way()),
        (503, vec!["syd-1".to_owned()])
    );
    let alone = Application::start_without(captures, &["iad"]).await;
    let refused = count(&alone, &[]).await;
    assert_eq!((refused.status, alone.writes()), (503, vec![]));
}

#[tokio::test]
async fn a_connection_that_is_upgraded_stays_where_it_is_whatever_was_written() {
    let application = Application::start(|layer| layer).await;
    let written = application.write(1, &[]).await;
    let wrote = ("cookie", cookie(&written).unwrap());
    application.way();
    let upgrade = [wrote, ("connection", "upgrade"), ("upgrade", "websocket")];
    assert_eq!(application.read(&upgrade).await.body, "syd");
    assert_eq!(application.way(), ["syd-1"]);
    assert_eq!(application.read(&[wrote]).await.body, "iad");
}

/// An application whose large writes go from `syd` to `primary`.
async fn forwarding(primary: SocketAddr) -> Application {
    let writes = Writes::default();
    let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
    let layer = layer.forwards_to(&primary.to_string());
    let syd = serve("syd", &writes, layer).await;
    let machines = vec![
        Machine::new("syd-1", "syd", syd),
        Machine::new("iad-1", "iad", primary),
    ];
    Application {
        proxy: FlyProxy::start("syd", machines).await,
        writes,
    }
}

#[tokio::test]
async fn of_a_body_without_end_ten_megabytes_are_read() {
    let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
    let syd = application("syd", &Writes::default(), layer);
    let read = Arc::<AtomicUsize>::default();
    let reading = Arc::clone(&read);
    let pieces = stream::repeat_with(move || {
        reading.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 100_000])))
    });
    let body = body::Body::new(StreamBody::new(pieces));
    let request = Request::post("/notes").body(body).unwrap();
    let refused = in_time("an answer", syd.oneshot(request)).await.unwrap();
    assert_eq!(
        (refused.status(), read.load(Ordering::Relaxed)),
        (413.try_into().unwrap(), 101)
    );
}

#[tokio::test]
async fn a_write_too_large_to_be_replayed_goes_to_the_primary_region_over_the_private_network() {
    let writes = Writes::default();
    let layer = ReplayToPrimary::new(&identity("iad")).unwrap();
    let iad = serve("iad", &writes, layer).await;
    let application = forwarding(iad).await;
    for length in [1_000_000, 9_000_000] {
        let written = application.write(length, &[]).await;
        assert_eq!((written.status, written.body.as_str()), (200, Some("iad")));
        // The client gets the cookie of the primary region.
        assert!(cookie(&written).is_some());
        assert_eq!(application.way(), ["syd-1"], "{length}");
    }
    let piece = |_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 100_000])));
    let body = Body::wrap(StreamBody::new(stream::iter((0..11).map(piece))));
    let unknown = sent(application.proxy.request(Method::POST, "/notes", body), &[]).await;
    assert_eq!(
        (unknown.status, application.way()),
        (200, vec!["syd-1".to_owned()])
    );
    assert_eq!(*writes.lock().unwrap(), ["iad"; 3]);
    // What fits is replayed as before.
    application.write(100, &[]).await;
    assert_eq!(application.way(), ["syd-1", "iad-1"]);
    // What came from another region, or says so, goes no further.
    let refused = application
        .write(1_000_000, &[("fly-rpc-forwarded", "1")])
        .await;
    assert_eq!((refused.status, writes.lock().unwrap().len()), (503, 4));
    assert_eq!(application.writes(), [""; 0]);
}

#[tokio::test]
async fn a_large_read_is_no_write_that_is_sent_on() {
    let writes = Writes::default();
    let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
    let layer = layer
        .forwards_to(&nobody().to_string())
        .captures(|head| head.headers.contains_key("x-read-only"));
    let syd = serve("syd", &writes, layer).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let read = async |path: &str| {
        let request = client.get(format!("http://{syd}{path}"));
        let request = request.body(vec![b'x'; 1_100_000]);
        sent(request, &[("cookie", &cookie_for(4.0))]).await
    };
    // Its client reads old news rather than none.
    let old = read("/notes").await;
    assert_eq!((old.status, old.body.as_str()), (200, Some("syd")));
    // Fly Proxy would not replay it.
    let captured = read("/count").await;
    assert_eq!(
        (captured.status, captured.headers.get("fly-replay")),
        (413, None)
    );
}

/// As HTTP/2 has it, neither the size of the body nor the host is in a header.
#[tokio::test]
async fn a_write_without_headers_about_its_body_is_forwarded_too() {
    let writes = Writes::default();
    let in_region = |region| ReplayToPrimary::new(&identity(region)).unwrap();
    let iad = serve("iad", &writes, in_region("iad")).await;
    let layer = in_region("syd").forwards_to(&iad.to_string());
    let syd = application("syd", &writes, layer);
    let piece = |_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 100_000])));
    let body = StreamBody::new(stream::iter((0..11).map(piece)));
    let request = Request::post("http://notes.example/host").body(body::Body::new(body));
    let answered = syd.oneshot(request.unwrap()).await.unwrap();
    let status = answered.status();
    let body = body::to_bytes(answered.into_body(), 1 << 20).await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"notes.example"[..]));
}

#[tokio::test]
async fn a_forwarded_write_says_whether_it_may_have_been_written() {
    let refused = forwarding(nobody()).await.write(1_000_000, &[]).await;
    assert_eq!(
        (refused.status, refused.headers["retry-after"].as_str()),
        (503, "1")
    );
    // Somebody who takes a part of it and closes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 1024]).await.unwrap();
    });
    let lost = forwarding(address).await.write(1_000_000, &[]).await;
    assert_eq!(
        (lost.status, lost.body["detail"].as_str().unwrap()),
        (
            502,
            "this was sent to region \"iad\", which gave no answer; it may have been written"
        )
    );
}

#[tokio::test]
async fn a_primary_region_that_does_not_answer_is_not_waited_for_without_end() {
    for takes in [0, usize::MAX] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let primary = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut taken = stream.take(takes as u64);
            tokio::io::copy(&mut taken, &mut tokio::io::sink())
                .await
                .unwrap();
            // It is open still.
            future::pending::<()>().await;
        });
        let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
        let layer = layer
            .forwards_to(&primary.to_string())
            .body_timeouts(Duration::from_millis(50), Duration::from_millis(500));
        let syd = serve("syd", &Writes::default(), layer).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(format!("http://{syd}/notes"));
        let request = request.body(vec![b'x'; 9_000_000]);
        let lost = in_time("an answer", sent(request, &[])).await;
        let detail = lost.body["detail"].as_str().unwrap();
        assert_eq!(
            (lost.status, detail),
            (
                502,
                "this was sent to region \"iad\", which gave no answer in time; it may have been written"
            )
        );
    }
}

#[tokio::test]
async fn a_forwarded_write_that_stops_coming_is_not_waited_for_without_end() {
    for answers in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let primary = listener.local_addr().unwrap();
        let (closed, is_closed) = oneshot::channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 1024]).await.unwrap();
            if answers {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nDone";
                stream.write_all(answer).await.unwrap();
            }
            let rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            closed.send(rest).unwrap();
        });
        let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
        let layer = layer
            .forwards_to(&primary.to_string())
            .body_timeouts(Duration::from_millis(300), Duration::from_secs(60));
        let syd = serve("syd", &Writes::default(), layer).await;
        let part = b"POST /notes HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 9000000\r\n\r\n";
        let part = [&part[..], &[b'x'; 2048]].concat();
        let ended = raw::answer(syd, &part).await;
        if answers {
            assert_eq!((ended.status, ended.body), (200, json!("Done")));
        } else {
            assert_eq!(ended.status, 400);
            assert_eq!(
                ended.body["detail"],
                "this was sent to region \"iad\", and no more of it came for 0.3 s; it may have been written"
            );
        }
        // The primary region is not left waiting for the rest.
        in_time("the end of the way", is_closed)
            .await
            .unwrap()
            .unwrap_or_default();
    }
}

/// The way ends while the connection that takes it is at work on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_forwarded_body_that_stops_coming_never_looks_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let primary = listener.local_addr().unwrap();
    let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
    let layer = layer
        .forwards_to(&primary.to_string())
        .body_timeouts(Duration::from_millis(1), Duration::from_secs(60));
    // Every other one looked whole where the end of the way was taken for the end of the body.
    for _ in 0..50 {
        let taken = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut taken = Vec::new();
            let _ = stream.read_to_end(&mut taken).await;
            taken
        };
        let syd = application("syd", &Writes::default(), layer.clone());
        let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(
            b"half",
        )))]);
        let body = StreamBody::new(first.chain(stream::pending()));
        let request = Request::post("/notes")
            .header(HOST, "a")
            .body(body::Body::new(body))
            .unwrap();
        let (taken, answered) = tokio::join!(taken, syd.oneshot(request));
        assert_eq!(answered.unwrap().status(), 400);
        assert!(!taken.ends_with(b"0\r\n\r\n"));
    }
}

#[tokio::test]
async fn the_times_are_those_that_are_set() {
    let writes = Writes::default();
    let layer = ReplayToPrimary::new(&identity("syd")).unwrap();
    let layer = layer.timeout(Duration::from_millis(700));
    let within =
        |layer: &ReplayToPrimary, stall, arrival| layer.clone().body_timeouts(stall, arrival);
    let (short, long) = (Duration::from_millis(50), Duration::from_secs(60));
    let stalls = serve("syd", &writes, within(&layer, short, long)).await;
    let ends = serve("syd", &writes, within(&layer, long, short)).await;
    let whole =
        b"POST /notes HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    let replayed = raw::answer(stalls, whole).await;
    let asks = &replayed.headers["fly-replay"];
    assert!(asks.contains(";timeout=700ms;"), "{asks}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (syd, passed) in [
        (stalls, "no more of its body came for 0.05 s"),
        (ends, "its body did not arrive whole within 0.05 s"),
    ] {
        // Its body never comes.
        let never = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let request = client.post(format!("http://{syd}/notes"));
        let refused = sent(request.body(Body::wrap(StreamBody::new(never))), &[]).await;
        let detail = format!("this writes in region \"iad\", and {passed}; nothing was written");
        assert_eq!(
            (refused.status, &refused.body["detail"]),
            (400, &json!(detail))
        );
    }
}

#[test]
fn a_primary_region_that_fly_cannot_have_is_refused_at_the_start() {
    let mut identity = identity("syd");
    for primary in ["local", "nowhere", "us-east-1"] {
        identity.primary = primary.parse().unwrap();
        let refused = ReplayToPrimary::new(&identity).unwrap_err().to_string();
        let expected = format!(
            "PRIMARY_REGION (--primary): \"{primary}\" is no region of Fly, and what writes in region \"syd\" is to be replayed \
             there; set primary_region in fly.toml"
        );
        assert_eq!(refused, expected);
    }
    // Off Fly, an application without either name runs where it is.
    identity.region = "local".parse().unwrap();
    identity.primary = "local".parse().unwrap();
    ReplayToPrimary::new(&identity).unwrap();
}
