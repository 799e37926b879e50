//! An instance in a program that has an axum server of its own: the program of `examples/axum_app.rs`, two of it.

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::{self, Body},
    http::{Request, Version},
};
use fly_rpc::{Config, DnsName, Embedded, Registry};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tower::ServiceExt;

use crate::support::{
    patience::{eventually, in_time},
    process::answer,
};

#[path = "../../../examples/axum_app.rs"]
#[expect(dead_code, reason = "a whole program, of which its server is used")]
mod axum_app;

const TOKEN: &str = "the-token-of-the-whole-cluster-00000001";
const SHOP: &str = "the-token-of-the-client-shop-00000003";

/// A running program in `region`, whose primary region is iad.
struct Program {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Program {
    async fn start(region: &str, others: &[&Self]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::default();
        config.identity.region = region.parse().unwrap();
        config.identity.primary = "iad".parse().unwrap();
        config.access.cluster = vec![TOKEN.parse().unwrap()];
        config.access.clients = vec![
            format!("shop:{SHOP}")
                .parse()
                .map(std::sync::Arc::new)
                .unwrap(),
        ];
        let named = |other: &&Self| DnsName::Address(other.address);
        config.discovery.names = others.iter().map(named).collect();
        config.discovery.poll_interval = Duration::from_millis(100);
        config.drain.delay = Duration::ZERO;
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { stopped.await.unwrap_or_default() };
        let served = tokio::spawn(async move {
            axum_app::serve(listener, config, stopped).await.unwrap();
        });
        Self {
            address,
            stop,
            served,
        }
    }

    /// What it answers to `GET path`.
    async fn get(&self, path: &str) -> (u16, String) {
        let client = Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}{path}", self.address);
        let answer = client.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        in_time("the end of the program", self.served)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_axum_program_serves_an_instance_on_its_own_port() {
    let iad = Program::start("iad", &[]).await;
    let syd = Program::start("syd", &[&iad]).await;
    // Its own route, by a call to the other program, to which it proved the cluster's token.
    assert_eq!(syd.get("/price/tea").await, (200, "250 cents\n".to_owned()));
    let (status, text) = syd.get("/price/gold").await;
    assert_eq!(status, 502);
    let (seen, _) = text.split_once(" (request ").unwrap();
    assert_eq!(
        seen,
        "function_failed (executed: yes): NotForSale: we have no gold"
    );
    // A path that neither has is the program's to answer, and needs no token.
    assert_eq!(syd.get("/nothing").await, (404, String::new()));
    assert_eq!(syd.get("/readyz").await.0, 200);
    for path in ["/docs", "/docs/problems", "/docs/docs.js"] {
        assert_eq!(syd.get(path).await.0, 200, "{path}");
    }

    let client = Client::builder().no_proxy().build().unwrap();
    let call = json!({"module": "Shop", "function": "price", "args": ["tea", 3]}).to_string();
    let url = format!("http://{}/rpc/iad", syd.address);
    let request = || {
        let request = client.post(&url).header("content-type", "application/json");
        request.body(call.clone())
    };
    let refused = answer(request()).await.unwrap();
    assert_eq!(refused.problem(), (401, "unauthenticated", "no"));
    let allowed = answer(request().bearer_auth(SHOP)).await.unwrap();
    assert_eq!(allowed.result(), 750);
    let wrong = answer(client.get(&url).bearer_auth(SHOP)).await.unwrap();
    assert_eq!(wrong.problem(), (405, "method_not_allowed", "no"));

    iad.stop().await;
    let gone = async || answer(request().bearer_auth(SHOP)).await.unwrap().status;
    eventually("iad is gone", gone, |status| *status == 503).await;
    syd.stop().await;
}

#[tokio::test]
async fn a_program_that_speaks_http_2_reads_that_an_instance_does_not() {
    let address = "127.0.0.1:1".parse().unwrap();
    let instance = Embedded::start(Config::default(), Registry::builtin(), address).await;
    let instance = instance.unwrap();
    // As HTTP/2 has it, the host is in the target alone.
    let request = Request::get("http://localhost/regions").version(Version::HTTP_2);
    let request = request.body(Body::empty()).unwrap();
    let refused = instance.router().oneshot(request).await.unwrap();
    assert_eq!(refused.status(), 400);
    let body = body::to_bytes(refused.into_body(), 1 << 16).await.unwrap();
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        problem["detail"],
        "HTTP/2 is not served here; send HTTP/1.1"
    );
    instance.drain().await;
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_keep_an_axum_program() {
    let iad = Program::start("iad", &[]).await;
    let mut endless = TcpStream::connect(iad.address).await.unwrap();
    endless
        .write_all(b"GET /readyz HTTP/1.1\r\nho")
        .await
        .unwrap();
    // It was accepted before this one.
    assert_eq!(iad.get("/healthz").await.0, 200);
    iad.stop().await;
}
