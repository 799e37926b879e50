//! Who may do what: start rules, the cluster's token, clients' tokens and their limits.

use std::net::SocketAddr;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::{
    asking::two_regions,
    bad_request,
    cluster::{Cluster, NAME},
    command::run_with,
    patience::eventually,
    process::{Answer, Environment, Process, answer},
    raw,
};

const TOKEN: &str = "the-cluster-secret-of-the-tests-0001";
const NEXT: &str = "the-cluster-secret-of-the-tests-0002";
const SHOP: &str = "the-token-of-the-client-shop-00000003";
const DESK: &str = "the-token-of-the-client-desk-00000004";

/// An instance that is to refuse the start: where it does not, it ends by itself.
const SERVE: [&str; 2] = ["serve", "--until-stdin-closes"];

fn environment(settings: &[(&'static str, String)]) -> Environment {
    let mut environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("FLY_MACHINE_ID", "iad-1".to_owned()),
        ("PRIMARY_REGION", "iad".to_owned()),
        ("RPC_LOG", "debug".to_owned()),
    ]);
    environment.extend(settings.iter().cloned());
    environment
}

/// What proves that its sender opens a connection to `address`, with the cluster's token.
fn opening(address: SocketAddr) -> [(&'static str, String); 4] {
    let nonce = "0".repeat(32);
    let mut proof = Hmac::<Sha256>::new_from_slice(TOKEN.as_bytes()).unwrap();
    proof.update(format!("fly-rpc 1 opens\n{nonce}\n{address}").as_bytes());
    let proof = HEXLOWER.encode(&proof.finalize().into_bytes());
    [
        ("rpc-nonce", nonce),
        ("rpc-proof", proof),
        ("connection", "upgrade".to_owned()),
        ("upgrade", "fly-rpc-lines".to_owned()),
    ]
}

#[tokio::test]
async fn who_recorded_an_opening_gets_nothing_for_it() {
    let local = Process::start(&environment(&[("RPC_TOKEN", TOKEN.to_owned())])).await;
    let opening = opening(local.address);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = async |method: Method, path: &str| {
        let request = client.request(method, format!("http://{}{path}", local.address));
        let with =
            |request: RequestBuilder, (name, value): &(&str, String)| request.header(*name, value);
        let request = opening.iter().fold(request, with);
        request.send().await.unwrap().status().as_u16()
    };
    // It is one: the connection is accepted, and takes no call before its second proof.
    assert_eq!(asked(Method::POST, "/internal/exec").await, 101);
    for path in ["/metrics", "/internal/region", "/internal/functions"] {
        assert_eq!(asked(Method::GET, path).await, 401, "{path}");
    }
}

async fn with_clients() -> Process {
    let clients =
        format!("shop:{SHOP},desk:{DESK}:regions=iad:functions=String.*|Fly.RPC.my_region");
    Process::start(&environment(&[("RPC_CLIENT_TOKENS", clients)])).await
}

fn request(instance: &Process, method: &str, path: &str) -> RequestBuilder {
    let url = format!("http://{}{path}", instance.address);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client
        .request(method.parse::<Method>().unwrap(), url)
        .header("content-type", "application/json")
}

async fn call(
    instance: &Process,
    token: &str,
    region: &str,
    function: &str,
    args: Value,
) -> Answer {
    let (module, function) = function.rsplit_once('.').unwrap();
    let body = json!({"module": module, "function": function, "args": args}).to_string();
    let request = instance.request(&format!("/rpc/{region}"), &body);
    answer(request.bearer_auth(token)).await.unwrap()
}

#[tokio::test]
async fn what_other_machines_reach_needs_tokens() {
    let refused = async |settings: &[(&str, &str)]| {
        let (code, stdout, message) = run_with(&SERVE, settings).await;
        assert_eq!((code, stdout.len()), (64, 0), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    };
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let message = refused(&[("RPC_LISTEN", listen)]).await;
        assert!(
            message.starts_with("fly-rpc: RPC_TOKEN: is needed"),
            "{message}"
        );
        assert!(message.contains("`openssl rand -hex 32`"), "{message}");
        let message = refused(&[("RPC_LISTEN", listen), ("RPC_TOKEN", TOKEN)]).await;
        assert!(
            message.starts_with("fly-rpc: RPC_CLIENT_TOKENS: is needed"),
            "{message}"
        );
        assert!(message.contains("RPC_ALLOW_ANONYMOUS=true"), "{message}");
        let message = refused(&[("RPC_LISTEN", listen), ("RPC_ALLOW_ANONYMOUS", "true")]).await;
        assert!(
            message.starts_with("fly-rpc: RPC_TOKEN: is needed"),
            "{message}"
        );
    }
    for (variable, secret) in [
        ("RPC_TOKEN", "a-short-secret"),
        ("RPC_TOKEN", "a-secret-with-a:colon-in-it-and-32-long"),
        ("RPC_CLIENT_TOKENS", "shop:a-short-secret"),
        (
            "RPC_CLIENT_TOKENS",
            "a-name-without-a-token-of-32-characters",
        ),
    ] {
        let message = refused(&[(variable, secret)]).await;
        let start = format!("fly-rpc: {variable}: entry 1: ");
        assert!(
            message.starts_with(&start) && !message.contains(secret),
            "{message}"
        );
    }
}

#[tokio::test]
async fn tokens_that_contradict_each_other_stop_the_start() {
    let refused = async |settings: &[(&str, String)]| {
        let (code, _, message) = run_with(&SERVE, settings).await;
        assert_eq!(code, 64);
        message
    };
    let clients = |text: String| ("RPC_CLIENT_TOKENS", text);
    assert_eq!(
        refused(&[("RPC_TOKEN", format!("{TOKEN},{TOKEN}"))]).await,
        "fly-rpc: RPC_TOKEN: has an entry twice\n"
    );
    assert_eq!(
        refused(&[clients(format!("shop:{SHOP},shop:{DESK}"))]).await,
        "fly-rpc: RPC_CLIENT_TOKENS: has a name twice\n"
    );
    assert_eq!(
        refused(&[clients(format!("shop:{SHOP},desk:{SHOP}"))]).await,
        "fly-rpc: RPC_CLIENT_TOKENS: has a token twice\n"
    );
    assert_eq!(
        refused(&[
            clients(format!("shop:{TOKEN}")),
            ("RPC_TOKEN", TOKEN.to_owned())
        ])
        .await,
        "fly-rpc: RPC_CLIENT_TOKENS: has a token of RPC_TOKEN; clients must not have the cluster's secret\n"
    );
    assert_eq!(
        refused(&[
            clients(format!("shop:{SHOP}")),
            ("RPC_ALLOW_ANONYMOUS", "true".to_owned())
        ])
        .await,
        "fly-rpc: RPC_ALLOW_ANONYMOUS (--allow-anonymous): contradicts RPC_CLIENT_TOKENS; unset one of the two\n"
    );
}

#[tokio::test]
async fn with_its_tokens_an_instance_serves_other_machines() {
    let settings = [
        ("RPC_LISTEN", "0.0.0.0:0".to_owned()),
        ("RPC_TOKEN", TOKEN.to_owned()),
        ("RPC_ALLOW_ANONYMOUS", "true".to_owned()),
    ];
    let mut instance = Process::start(&environment(&settings)).await;
    instance.address.set_ip([127, 0, 0, 1].into());
    let answer = instance.call("iad", "String.upcase", json!(["fly"])).await;
    assert_eq!(answer.result(), "FLY");
}

#[tokio::test]
async fn everything_internal_wants_the_cluster_token() {
    let settings = [
        ("RPC_TOKEN", format!("{NEXT},{TOKEN}")),
        ("RPC_CLIENT_TOKENS", format!("shop:{SHOP}")),
    ];
    let instance = Process::start(&environment(&settings)).await;
    let paths = [
        "/internal",
        "/internal/",
        "/internal/region",
        "/internal/functions",
        "/internal/exec",
        "/internal/none",
        "/metrics",
    ];
    let wrong = [
        "",
        "Bearer ",
        "Bearer x",
        "Basic eDp5",
        TOKEN,
        &format!("Bearer {SHOP}"),
    ];
    let mut refusals = Vec::new();
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
        for path in paths {
            let bare = answer(request(&instance, method, path)).await.unwrap();
            assert_eq!(
                bare.problem(),
                (401, "unauthenticated", "no"),
                "{method} {path}"
            );
            assert_eq!(bare.headers["www-authenticate"], "Bearer");
            refusals.push(bare.body["detail"].clone());
            for wrong in wrong {
                let request = request(&instance, method, path).header("authorization", wrong);
                let refused = answer(request).await.unwrap();
                assert_eq!(
                    refused.problem(),
                    (401, "unauthenticated", "no"),
                    "{method} {path} {wrong}"
                );
                refusals.push(refused.body["detail"].clone());
            }
            for right in [TOKEN, NEXT] {
                let request = request(&instance, method, path).bearer_auth(right);
                assert_ne!(
                    answer(request).await.unwrap().status,
                    401,
                    "{method} {path}"
                );
            }
        }
    }
    refusals.dedup();
    assert_eq!(
        refusals,
        ["this route requires the cluster's token: `authorization: Bearer TOKEN`"]
    );
    let twice = request(&instance, "GET", "/internal/region")
        .bearer_auth(TOKEN)
        .bearer_auth(TOKEN);
    assert_eq!(
        answer(twice).await.unwrap().problem(),
        (401, "unauthenticated", "no")
    );
    let log = instance.log();
    assert!(
        ![TOKEN, NEXT, SHOP].iter().any(|token| log.contains(token)),
        "{log}"
    );
}

#[tokio::test]
async fn nothing_internal_is_reached_through_fly_proxy() {
    let settings = [("RPC_TOKEN", TOKEN.to_owned())];
    let instance = Process::start(&environment(&settings)).await;
    for header in ["Fly-Client-IP", "fly-forwarded-port"] {
        for path in [
            "/internal/region",
            "/internal/exec",
            "/internal/none",
            "/metrics",
        ] {
            let request = request(&instance, "GET", path)
                .bearer_auth(TOKEN)
                .header(header, "443");
            let refused = answer(request).await.unwrap();
            assert_eq!(refused.problem(), (403, "forbidden", "no"), "{path}");
        }
        let body = r#"{"module":"String","function":"upcase","args":["fly"]}"#;
        let request = instance.request("/rpc/iad", body).header(header, "443");
        assert_eq!(answer(request).await.unwrap().result(), "FLY");
    }
}

#[tokio::test]
async fn public_routes_want_a_client_token_where_there_are_any() {
    let instance = with_clients().await;
    for path in [
        "/rpc/iad",
        "/rpc/IAD",
        "/regions",
        "/regions/iad",
        "/functions",
        "/none",
        "/",
    ] {
        for token in ["", "x", TOKEN, &SHOP[..SHOP.len() - 1]] {
            let request = request(&instance, "GET", path).bearer_auth(token);
            let refused = answer(request).await.unwrap();
            assert_eq!(
                refused.problem(),
                (401, "unauthenticated", "no"),
                "{path} {token}"
            );
            let challenge = match token {
                "" => "Bearer",
                _ => "Bearer error=\"invalid_token\"",
            };
            assert_eq!(refused.headers["www-authenticate"], challenge);
        }
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(instance.get(path).await.status, 200, "{path}");
    }
    for path in ["/regions", "/regions/iad", "/functions"] {
        let answer = answer(request(&instance, "GET", path).bearer_auth(DESK))
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{path}");
    }
    let answer = call(&instance, SHOP, "iad", "Kernel.+", json!([1, 2])).await;
    assert_eq!(answer.result(), 3);
}

#[tokio::test]
async fn a_client_calls_what_its_limits_name() {
    let instance = with_clients().await;
    let good = call(&instance, DESK, "primary", "String.upcase", json!(["fly"])).await;
    assert_eq!(good.result(), "FLY");
    let good = call(&instance, DESK, "iad", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(good.result(), "iad");
    // Only who may call all is told of a name.
    let hint = "; did you mean String.upcase?";
    for (token, hint) in [(DESK, ""), (SHOP, hint)] {
        let mistyped = call(&instance, token, "iad", "String.upcas", json!(["fly"])).await;
        assert_eq!(mistyped.problem(), (404, "function_unknown", "no"));
        assert_eq!(
            mistyped.detail(),
            format!("no function String.upcas on iad-1{hint}")
        );
    }
    for (region, function, detail) in [
        (
            "syd",
            "String.upcase",
            "client \"desk\" may not call in region \"syd\"",
        ),
        ("iad", "Kernel.+", "client \"desk\" may not call Kernel.+"),
        (
            "iad",
            "Fly.RPC.primary_region",
            "client \"desk\" may not call Fly.RPC.primary_region",
        ),
        ("iad", "None.such", "client \"desk\" may not call None.such"),
    ] {
        let refused = call(&instance, DESK, region, function, json!([])).await;
        assert_eq!(refused.problem(), (403, "forbidden", "no"));
        assert_eq!(refused.detail(), detail);
        assert_eq!(refused.body["meta"]["region"], region);
    }
    let lines = |what: &str| {
        let log = instance.log();
        log.lines().filter(|line| line.contains(what)).count()
    };
    let counts = async || (lines(r#""client":"desk""#), lines(r#""code":"forbidden""#));
    eventually("a line for each call", counts, |counts| *counts == (7, 4)).await;
    let log = instance.log();
    assert!(!log.contains(DESK) && !log.contains(SHOP), "{log}");
}

#[tokio::test]
async fn a_client_is_shown_the_functions_that_it_may_call() {
    let instance = with_clients().await;
    let functions = async |token| {
        let listed = request(&instance, "GET", "/functions").bearer_auth(token);
        answer(listed).await.unwrap().body["functions"].clone()
    };
    let modules = |functions: Value| Vec::from_iter(functions.as_object().unwrap().keys().cloned());
    let all = ["Fly.RPC", "Kernel", "Process", "String"];
    assert_eq!(modules(functions(SHOP).await), all);
    assert_eq!(
        functions(DESK).await,
        json!({
            "Fly.RPC": ["my_region"],
            "String": ["capitalize", "downcase", "length", "reverse", "split", "trim", "upcase"],
        })
    );
}

#[tokio::test]
async fn a_client_is_told_nothing_of_a_function_that_it_may_not_call() {
    let instance = with_clients().await;
    let explain = async |token: &str, function: &str| {
        let path = format!("/regions/iad/explain?function={function}");
        let request = request(&instance, "GET", &path).bearer_auth(token);
        answer(request).await.unwrap()
    };
    for (token, function) in [
        (SHOP, "Process.sleep"),
        (SHOP, "None.such"),
        (DESK, "String.upcase"),
    ] {
        assert_eq!(explain(token, function).await.status, 200, "{function}");
    }
    for function in ["Process.sleep", "None.such"] {
        let refused = explain(DESK, function).await;
        assert_eq!(refused.problem(), (403, "forbidden", "no"));
        let detail = format!("client \"desk\" may not call {function}");
        assert_eq!(refused.detail(), detail);
    }
}

#[tokio::test]
async fn commands_bear_the_token_of_their_environment() {
    let instance = with_clients().await;
    let url = format!("http://{}", instance.address);
    let run = async |token: Option<&str>| {
        let call = ["call", "iad", "String.upcase", "fly", "--url", &url];
        let token: Vec<_> = token
            .map(|token| ("FLY_RPC_TOKEN", token))
            .into_iter()
            .collect();
        run_with(&call, &token).await
    };
    let (code, result, _) = run(Some(SHOP)).await;
    assert_eq!((code, result.as_str()), (0, "\"FLY\"\n"));
    let (code, _, message) = run(None).await;
    assert_eq!(code, 1);
    assert!(message.contains("unauthenticated"), "{message}");
    let (code, _, message) = run(Some("short")).await;
    assert_eq!(code, 64);
    assert!(
        message.starts_with("fly-rpc: FLY_RPC_TOKEN: a token must be 32 to 256"),
        "{message}"
    );
}

#[tokio::test]
async fn a_cluster_with_a_token_calls_across_regions() {
    let cluster = two_regions().set("RPC_TOKEN", TOKEN).start().await;
    let answer = cluster
        .instance("iad-1")
        .call("syd", "String.upcase", json!(["fly"]))
        .await;
    assert_eq!(
        (answer.result(), answer.instance()),
        (&json!("FLY"), "syd-1")
    );
}

/// The address in the second line that an instance prints when it has an own listener for its peers.
async fn internal_address(instance: &Process) -> String {
    let regions = instance.get("/regions").await.body;
    regions["regions"][0]["instances"][0]["address"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn an_own_listener_takes_everything_internal_away_from_the_public_one() {
    for internal in ["127.0.0.1:0", "[::1]:0", "localhost:0"] {
        let settings = [("RPC_INTERNAL_LISTEN", internal.to_owned())];
        let instance = Process::start(&environment(&settings)).await;
        let inside = internal_address(&instance).await;
        assert_ne!(inside, instance.address.to_string());
        for path in [
            "/internal/region",
            "/internal/functions",
            "/internal/exec",
            "/internal/none",
            "/metrics",
        ] {
            for method in ["GET", "POST"] {
                let refused = answer(request(&instance, method, path)).await.unwrap();
                assert_eq!(
                    refused.problem(),
                    (404, "not_found", "no"),
                    "{method} {path}"
                );
                assert_eq!(
                    refused.detail(),
                    "no such route here; the public listener has /metrics and what instances ask of each other, unless \
                     RPC_INTERNAL_LISTEN is set: then that has them"
                );
            }
        }
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let get = async |path: &str| {
            answer(client.get(format!("http://{inside}{path}")))
                .await
                .unwrap()
        };
        assert_eq!(get("/internal/region").await.body["region"], "iad");
        for path in [
            "/rpc/iad",
            "/regions",
            "/functions",
            "/healthz",
            "/openapi.json",
        ] {
            assert_eq!(
                get(path).await.problem(),
                (404, "not_found", "no"),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn instances_find_each_other_at_their_own_listeners() {
    let mut cluster = Cluster::builder()
        .region("iad", 0)
        .set("RPC_TOKEN", TOKEN)
        .start()
        .await;
    let mut inside = Vec::new();
    for (region, name) in [("iad", "iad-1"), ("syd", "syd-1")] {
        let own = cluster.free_address();
        let mut environment = cluster.environment(region, name, own);
        environment.insert("RPC_LISTEN", "127.0.0.1:0".to_owned());
        environment.insert("RPC_INTERNAL_LISTEN", own.to_string());
        cluster.instances.push(Process::start(&environment).await);
        inside.push(own.ip());
    }
    cluster.dns.set_addresses(NAME, inside);
    let iad = cluster.instance("iad-1");
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    let answer = iad.call("syd", "String.upcase", json!(["fly"])).await;
    assert_eq!(
        (answer.result(), answer.instance()),
        (&json!("FLY"), "syd-1")
    );
}

#[tokio::test]
async fn an_exposed_listener_for_instances_needs_the_token() {
    let public = ("RPC_LISTEN", "127.0.0.1:0");
    let (code, _, message) = run_with(&SERVE, &[public, ("RPC_INTERNAL_LISTEN", "[::]:0")]).await;
    assert_eq!(code, 64);
    assert!(message.starts_with(
        "fly-rpc: RPC_TOKEN: is needed, because other machines reach /internal/* at [::]:"
    ));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (code, _, message) = run_with(&SERVE, &[public, ("RPC_INTERNAL_LISTEN", &taken)]).await;
    let line =
        format!("fly-rpc: RPC_INTERNAL_LISTEN (--internal-listen): cannot listen on {taken}: ");
    assert!(code == 1 && message.starts_with(&line), "{message}");
}

#[tokio::test]
async fn connect_to_a_path_of_instances_wants_their_token_too() {
    let instance = Process::start(&environment(&[("RPC_TOKEN", TOKEN.to_owned())])).await;
    for path in ["/internal/exec", "/internal/none", "/metrics"] {
        let bare = bad_request::request(&format!("CONNECT {path}"), "", b"");
        let refused = raw::answer(instance.address, &bare).await;
        assert_eq!(refused.problem(), (401, "unauthenticated", "no"), "{path}");
    }
    let known = format!("authorization: Bearer {TOKEN}\r\n");
    let known = bad_request::request("CONNECT /internal/exec", &known, b"");
    let refused = raw::answer(instance.address, &known).await;
    assert_eq!(refused.problem(), (405, "method_not_allowed", "no"));
}

/// A page in a browser may let a name of its own point here, or ask across sites: without tokens, neither is served.
#[tokio::test]
async fn pages_of_other_sites_call_nothing_without_tokens() {
    let plain = Process::start(&environment(&[])).await;
    let open = Process::start(&environment(&[("RPC_ALLOW_ANONYMOUS", "true".to_owned())])).await;
    let guarded = with_clients().await;
    let body = br#"{"module":"String","function":"upcase","args":["fly"]}"#;
    let asked = async |instance: &Process, line: &str, headers: &str| {
        let (length, address) = (body.len(), instance.address);
        let headers = headers.replace("OWN", &address.to_string());
        let head = format!(
            "{line} HTTP/1.1\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{headers}\r\n\r\n"
        );
        raw::answer(address, &[head.as_bytes(), body].concat()).await
    };
    for line in [
        "POST /rpc/iad",
        "POST /internal/exec",
        "GET /regions",
        "GET /functions",
        "GET /none",
    ] {
        for headers in [
            "host: evil.example:8080",
            "host: 127.0.0.1.evil.example",
            "host: localhost.evil.example",
            "host: ",
            "host: 10.1.2.3",
            "host: OWN\r\norigin: http://evil.example",
            "host: OWN\r\norigin: http://127.0.0.1:1",
            "host: OWN\r\norigin: null",
            "host: OWN\r\norigin: ",
            "host: OWN\r\nsec-fetch-site: cross-site",
            "host: OWN\r\nsec-fetch-site: same-site",
            "host: evil.example\r\norigin: http://evil.example\r\nsec-fetch-site: same-origin",
        ] {
            let refused = asked(&plain, line, headers).await;
            assert_eq!(
                refused.problem(),
                (403, "forbidden", "no"),
                "{line} {headers}"
            );
        }
    }
    // Each refusal names the setting that would help, whatever is set of the others.
    let elsewhere = "host: evil.example";
    for (instance, line, cure) in [
        (&plain, "POST /rpc/iad", "RPC_CLIENT_TOKENS"),
        (&plain, "GET /metrics", "RPC_METRICS_LISTEN"),
        (&open, "GET /metrics", "RPC_TOKEN"),
        (&guarded, "POST /internal/exec", "RPC_TOKEN"),
    ] {
        let refused = asked(instance, line, elsewhere).await;
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains(cure), "{line}: {detail}");
        let is_of_clients = detail.contains("RPC_CLIENT_TOKENS");
        assert_eq!(is_of_clients, cure == "RPC_CLIENT_TOKENS", "{detail}");
    }
    let call = "POST /rpc/iad";
    for headers in [
        "host: OWN",
        "host: localhost:1",
        "host: LOCALHOST:8080",
        "host: app.localhost.",
        "host: 127.0.0.9:1",
        "host: [::1]",
        "host: [::1]:8080",
        "host: OWN\r\norigin: http://OWN",
        "host: OWN\r\norigin: http://OWN\r\nsec-fetch-site: same-origin",
        "host: OWN\r\nsec-fetch-site: none",
    ] {
        assert_eq!(
            asked(&plain, call, headers).await.result(),
            "FLY",
            "{headers}"
        );
    }
    // Behind a proxy, which has a name that the instance does not know.
    let proxied = "host: shop.example\r\norigin: https://shop.example";
    assert_eq!(asked(&open, call, proxied).await.result(), "FLY");
    let across = asked(
        &open,
        call,
        "host: shop.example\r\norigin: https://evil.example",
    )
    .await;
    assert_eq!(across.problem(), (403, "forbidden", "no"));
    // A token says who asks.
    let bearing = format!(
        "host: shop.example\r\norigin: https://evil.example\r\nauthorization: Bearer {SHOP}"
    );
    assert_eq!(asked(&guarded, call, &bearing).await.result(), "FLY");
    for path in ["/docs", "/openapi.json", "/healthz", "/readyz"] {
        let answer = asked(
            &plain,
            &format!("GET {path}"),
            "host: OWN\r\nsec-fetch-site: cross-site",
        )
        .await;
        assert_eq!(answer.status, 200, "{path}");
    }
}
