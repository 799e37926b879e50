//! The stand-in for Fly Proxy keeps to Fly's rules: what is replayed, what falls back, and what is refused.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, HeaderValue},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    fly_proxy::{FlyProxy, Machine, Separator},
    process::{Answer, answer},
};

/// A Machine of an application that always answers `fly-replay`, if with any, and else says what reached it.
async fn machine(id: &str, region: &str, replay: Option<&'static str>) -> Machine {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let name = Arc::<str>::from(id);
    let app = Router::new().fallback(move |headers: HeaderMap, body: Bytes| {
        let name = Arc::clone(&name);
        async move {
            if let Some(replay) = replay {
                return replayed(replay);
            }
            let text = |name| Some(headers.get(name)?.to_str().unwrap().to_owned());
            let got = json!({
                "machine": &*name,
                "length": body.len(),
                "client": text("fly-client-ip"),
                "source": text("fly-replay-src"),
                "failed": text("fly-replay-failed"),
            });
            got.to_string().into_response()
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Machine::new(id, region, address)
}

fn replayed(replay: &'static str) -> Response {
    let mut response = "dropped".into_response();
    response
        .headers_mut()
        .insert("fly-replay", HeaderValue::from_static(replay));
    response
}

/// A Machine at whose address nobody listens.
async fn stopped(id: &str, region: &str) -> Machine {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    Machine::new(id, region, address)
}

async fn post(proxy: &FlyProxy, length: usize) -> Answer {
    answer(proxy.post("/", vec![b'x'; length])).await.unwrap()
}

/// An edge in `iad`, where `a` answers with `replay`; `b` is in `syd`, `c` in `fra` has stopped.
async fn edge(replay: &'static str) -> FlyProxy {
    let machines = vec![
        machine("a", "iad", Some(replay)).await,
        machine("b", "syd", None).await,
        stopped("c", "fra").await,
    ];
    FlyProxy::start("iad", machines).await
}

#[tokio::test]
async fn a_request_is_replayed_whole_and_its_first_answer_dropped() {
    for separator in [Separator::Semicolon, Separator::Comma] {
        let machines = vec![
            machine("a", "iad", Some("region=syd;state=why")).await,
            machine("b", "syd", None).await,
        ];
        let proxy = FlyProxy::start_with("iad", machines, separator).await;
        let answer = post(&proxy, 5).await;
        assert_eq!(
            (answer.status, answer.headers.get("fly-replay")),
            (200, None)
        );
        let body = &answer.body;
        assert_eq!(
            [
                &body["machine"],
                &body["length"],
                &body["client"],
                &body["failed"]
            ],
            [&json!("b"), &json!(5), &json!("203.0.113.7"), &Value::Null]
        );
        let source = body["source"].as_str().unwrap();
        let (begin, end) = match separator {
            Separator::Semicolon => ("instance=a;region=iad;t=", ";state=why"),
            Separator::Comma => ("instance=a,region=iad,t=", ",state=why"),
        };
        assert!(
            source.starts_with(begin) && source.ends_with(end),
            "{source}"
        );
        let machines: Vec<_> = proxy
            .deliveries()
            .into_iter()
            .map(|delivery| delivery.machine)
            .collect();
        assert_eq!(machines, ["a", "b"]);
    }
}

#[tokio::test]
async fn what_fly_refuses_is_refused() {
    for (replay, length, why) in [
        (
            "region=sydney",
            1,
            "PA03: the header fly-replay is not valid",
        ),
        ("region=iad", 1, "PA02: too many replays"),
        (
            "region=syd",
            1_000_001,
            "PA01: the request is too large to be replayed",
        ),
        (
            "region=fra;timeout=1s",
            1,
            "PR03: the target of the replay cannot be reached",
        ),
        (
            "region=nrt",
            1,
            "PR03: the target of the replay cannot be reached",
        ),
        (
            "region=nrt;fallback=prefer_self",
            1,
            "PA03: a request that fell back cannot be replayed",
        ),
    ] {
        let refused = post(&edge(replay).await, length).await;
        assert_eq!(
            (refused.status, refused.body),
            (502, json!(why)),
            "{replay}"
        );
    }
}
