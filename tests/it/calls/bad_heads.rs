//! Heads of requests that should not be sent, as bytes: what is HTTP is refused with its status and code and
//! `executed: no`, what is none with a bare 400, and the instance serves the next call as if nothing had been.

use serde_json::json;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    bad_request::{
        Case, GOOD, assert_refused, assert_serves, instance, post, request, with_header,
    },
    process::Answer,
    raw,
};

/// What hyper answers by itself to what it cannot read as HTTP: a bare 400, and the connection's end.
async fn assert_not_http(cases: &[(&str, &str)]) {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    for (what, text) in cases {
        let answers = raw::answers(instance.address, text.as_bytes()).await;
        let got: Vec<_> = answers
            .iter()
            .map(|answer| (answer.status, &answer.body))
            .collect();
        assert_eq!(got, [(400, &json!(""))], "{what}");
        assert_serves(&instance, what).await;
    }
}

#[tokio::test]
async fn paths_reach_no_route_that_the_plain_path_would_not() {
    let long = "r".repeat(10_000);
    let mut cases: Vec<Case<'_>> = vec![
        (
            "an unknown region",
            post("/rpc/zzz", GOOD),
            404,
            "region_unknown",
        ),
        (
            "a route with another method",
            request("GET /rpc/iad", "", b""),
            405,
            "method_not_allowed",
        ),
        (
            "TRACE",
            request("TRACE /rpc/iad", "", b""),
            405,
            "method_not_allowed",
        ),
        (
            "an unknown method",
            request("PURGE /regions", "", b""),
            405,
            "method_not_allowed",
        ),
        (
            "CONNECT",
            request("CONNECT evil:443", "", b""),
            405,
            "method_not_allowed",
        ),
        ("OPTIONS *", request("OPTIONS *", "", b""), 404, "not_found"),
    ];
    let regions = [
        "/rpc/IAD",
        "/rpc/%20iad",
        "/rpc/iad%20",
        "/rpc/a%2Fb",
        "/rpc/%ff%fe",
        "/rpc/iad%00",
        "/rpc/iad;a=b",
        "/rpc/-iad",
        "/rpc/..",
        "/rpc/../internal/exec",
        "/rpc/.",
        "/rpc/%2e%2e",
        "/rpc/iad,",
        "/rpc/iad,,syd",
        "/rpc/iad,syd,fra,ord",
        "/rpc/PRIMARY",
    ];
    for long in [
        format!("/rpc/{long}"),
        format!("/regions/{long}"),
        format!("/{long}"),
        format!("/healthz?{long}"),
    ] {
        cases.push(("a long target", post(&long, GOOD), 414, "target_too_long"));
    }
    cases.extend(regions.map(|path| (path, post(path, GOOD), 400, "invalid_region")));
    let nowhere = [
        "/",
        "/rpc",
        "/rpc/",
        "//rpc/iad",
        "/rpc//iad",
        "/./rpc/iad",
        "/rpc/./iad",
        "/rpc/iad/",
        "/rpc/iad/..",
        "/RPC/iad",
        "/%72pc/iad",
        "/rpc%2Fiad",
        "/internal%2Fexec",
        "/x/../internal/exec",
        "/internal//exec",
        "/internal/exec/",
        "/Internal/exec",
        "//internal/exec",
        "/healthz/",
        "/regions/iad/x",
    ];
    cases.extend(nowhere.map(|path| (path, post(path, GOOD), 404, "not_found")));
    assert_refused(&cases).await;
}

#[tokio::test]
async fn a_method_that_a_route_has_not_is_answered_with_those_it_has() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    for (line, allowed) in [
        ("GET /rpc/iad", "POST"),
        ("DELETE /regions", "GET,HEAD"),
        ("GET /internal/exec", "POST"),
        ("CONNECT evil:443", "GET, POST"),
    ] {
        let answer = raw::answer(instance.address, &request(line, "", b"")).await;
        assert_eq!(
            answer.problem(),
            (405, "method_not_allowed", "no"),
            "{line}"
        );
        assert_eq!(answer.headers["allow"], allowed, "{line}");
    }
}

#[tokio::test]
async fn heads_with_a_double_meaning() {
    let body = String::from_utf8(GOOD.to_vec()).unwrap();
    let head = |line: &str, headers: &str| {
        format!(
            "{line}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            GOOD.len()
        )
        .into_bytes()
    };
    let plain = "POST /rpc/iad HTTP/1.1";
    assert_refused(&[
        ("no host", head(plain, ""), 400, "invalid_request"),
        (
            "two hosts",
            head(plain, "host: localhost\r\nhost: b\r\n"),
            400,
            "invalid_request",
        ),
        (
            "the same host twice",
            head(plain, "host: localhost\r\nhost: localhost\r\n"),
            400,
            "invalid_request",
        ),
        (
            "another host in the target",
            head("POST http://evil/rpc/iad HTTP/1.1", "host: localhost\r\n"),
            400,
            "invalid_request",
        ),
        (
            "a user before the host in the target",
            head(
                "POST http://a@localhost/rpc/iad HTTP/1.1",
                "host: a@localhost\r\n",
            ),
            400,
            "invalid_request",
        ),
        (
            "a key twice",
            with_header("idempotency-key: a\r\nidempotency-key: b"),
            400,
            "invalid_request",
        ),
        (
            "an empty key",
            with_header("idempotency-key: "),
            400,
            "invalid_request",
        ),
        (
            "a long key",
            with_header(&format!("idempotency-key: {}", "k".repeat(129))),
            400,
            "invalid_request",
        ),
        (
            "a key that is no ASCII",
            with_header("idempotency-key: é"),
            400,
            "invalid_request",
        ),
        (
            "a call that was forwarded",
            with_header("rpc-forwarded: 1"),
            508,
            "loop_detected",
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_host_is_a_name_or_an_address_and_a_port() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let at = async |host: &str| {
        let head = format!("GET /healthz HTTP/1.1\r\nconnection: close\r\nhost: {host}\r\n\r\n");
        raw::answer(instance.address, head.as_bytes()).await
    };
    for bad in [
        "localhost:80@evil.example",
        "user@localhost",
        "localhost:http",
        "localhost:80:80",
        "localhost:-1",
        "http://localhost",
        "localhost/rpc",
        "localhost?a",
        "local host",
        "localhost, localhost",
        "localhost%",
        "localhost%4",
        "localhöst",
        "::1",
        "[::1",
        "[::1]80",
        "[localhost]",
        "[]",
        "\"localhost\"",
        "localhost\\evil.example",
    ] {
        let refused = at(bad).await;
        assert_eq!(refused.problem(), (400, "invalid_request", "no"), "{bad}");
        assert_eq!(
            refused.detail(),
            "header host is no host, or host:port",
            "{bad}"
        );
    }
    for good in [
        "localhost",
        "LOCALHOST:80",
        "localhost.:80",
        "localhost:",
        "my_app.internal",
        "a%2Db",
        "10.0.0.7:1",
        "[::1]",
        "[fdaa::3]:8080",
        "[::ffff:10.0.0.7]:1",
        "",
    ] {
        assert_eq!(at(good).await.status, 200, "{good}");
    }
}

#[tokio::test]
async fn what_is_no_http() {
    let line = "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let head = |headers: &str| format!("{line}{headers}\r\n\r\n{{}}");
    let cases = [
        (
            "two lengths",
            head("content-length: 2\r\ncontent-length: 3"),
        ),
        ("a signed length", head("content-length: +2")),
        ("a list of lengths", head("content-length: 2, 3")),
        ("a length that is no number", head("content-length: two")),
        (
            "an unknown transfer encoding",
            head("transfer-encoding: xchunked"),
        ),
        (
            "chunked is not the last",
            head("transfer-encoding: chunked, gzip"),
        ),
        (
            "a space before the colon",
            head("transfer-encoding : chunked"),
        ),
        (
            "a folded header",
            head("x-a: b\r\n c: d\r\ncontent-length: 2"),
        ),
        ("a NUL in a header", head("x-a: \0\r\ncontent-length: 2")),
        ("a header without a name", head(": x\r\ncontent-length: 2")),
        (
            "a bare CR in a header",
            head("x-a: b\rc: d\r\ncontent-length: 2"),
        ),
        ("no version", "POST /rpc/iad\r\n\r\n".to_owned()),
        (
            "another protocol",
            "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\r\n\r\n".to_owned(),
        ),
        (
            "a space in the path",
            "POST /rpc/i ad HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        ),
        (
            "HTTP/1.2",
            "GET /healthz HTTP/1.2\r\nhost: localhost\r\n\r\n".to_owned(),
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(what, text)| (*what, text.as_str()))
        .collect();
    assert_not_http(&cases).await;
}

#[tokio::test]
async fn a_length_that_cannot_be_counted_has_a_bare_431() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    for (length, status) in [(u64::MAX, 431), (u64::MAX - 1, 431), (u64::MAX - 2, 413)] {
        let text = format!(
            "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{{}}"
        );
        let answer = raw::answer(instance.address, text.as_bytes()).await;
        assert_eq!(answer.status, status, "{length}");
        assert_eq!(answer.body == json!(""), status == 431, "{length}");
    }
}

#[tokio::test]
async fn http_2_is_not_spoken() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert_eq!(raw::answers(instance.address, preface).await, []);
    let upgrade = with_header("upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__");
    assert_eq!(
        raw::answer(instance.address, &upgrade).await.result(),
        "FLY"
    );
    assert_serves(&instance, "HTTP/2").await;
}

#[tokio::test]
async fn an_upgrade_is_asked_for_in_the_header_connection_too() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let body = r#"{"module":"String","function":"upcase","args":["fly"],"region":"iad"}"#;
    let asked = async |version: &str, connection: &str| {
        let length = body.len();
        let head = format!(
            "POST /internal/exec {version}\r\nhost: localhost\r\nconnection: {connection}\r\nupgrade: fly-rpc-lines\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let mut stream = TcpStream::connect(instance.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        raw::next(&mut stream).await
    };
    for (version, connection) in [("HTTP/1.1", "close"), ("HTTP/1.0", "upgrade")] {
        let answer = asked(version, connection).await;
        assert_eq!(answer.result(), "FLY", "{version} {connection}");
    }
    assert_eq!(asked("HTTP/1.1", "close, Upgrade").await.status, 101);
}

#[tokio::test]
async fn what_is_odd_and_harmless_is_served() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let body = String::from_utf8(GOOD.to_vec()).unwrap();
    let length = GOOD.len();
    let typed = |kind: &str| request("POST /rpc/iad", &format!("content-type: {kind}\r\n"), GOOD);
    let cases = [
        ("a charset", typed("application/json; charset=utf-8")),
        ("a query", post("/rpc/iad?region=syd", GOOD)),
        ("the primary region", post("/rpc/primary", GOOD)),
        (
            "the same host in the target",
            format!(
                "POST http://localhost/rpc/iad HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n\r\n{body}"
            )
            .into_bytes(),
        ),
        (
            "bare line feeds",
            format!(
                "POST /rpc/iad HTTP/1.1\nhost: localhost\nconnection: close\ncontent-type: application/json\ncontent-length: {length}\n\n{body}"
            )
            .into_bytes(),
        ),
        (
            "HTTP/1.0 without a host",
            format!("POST /rpc/iad HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
                .into_bytes(),
        ),
        ("what only a proxy says", with_header("fly-client-ip: 1.2.3.4\r\nforwarded: for=1.2.3.4\r\nx-forwarded-for: ::1")),
        ("what only peers say", with_header("rpc-nonce: x\r\nrpc-proof: x\r\nrpc-state: draining")),
        ("a malformed trace", with_header("traceparent: 00-zz")),
    ];
    for (what, bytes) in cases {
        let answer = raw::answer(instance.address, &bytes).await;
        assert_eq!(
            (answer.status, &answer.body["result"]),
            (200, &json!("FLY")),
            "{what}"
        );
    }
}

#[tokio::test]
async fn request_ids_that_do_not_fit_are_replaced() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let long = "x".repeat(10_000);
    for bad in ["", "a b", "é", "{\"a\":1}", "a%0d%0ab", long.as_str()] {
        let answer = raw::answer(
            instance.address,
            &with_header(&format!("x-request-id: {bad}")),
        )
        .await;
        assert_eq!(answer.result(), "FLY");
        assert_eq!(answer.headers["x-request-id"].len(), 26, "{bad}");
        assert_eq!(
            answer.body["meta"]["request_id"],
            answer.headers["x-request-id"].as_str()
        );
    }
}

/// A request with a length and chunks ends where its chunks do, and nothing behind it is read (RFC 9112, section 6.3):
/// what a proxy in front took for the rest of the body is never a request. One before it is answered as ever.
#[tokio::test]
async fn nothing_is_smuggled_behind_a_length_and_chunks() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let (size, body) = (GOOD.len(), String::from_utf8_lossy(GOOD));
    let clean = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let smuggled = String::from_utf8(post("/rpc/none", GOOD)).unwrap();
    for headers in [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
    ] {
        // Sizes that other readers cut short or cannot hold.
        for chunk in [format!("{size:x}"), format!("{size:017x}")] {
            let text = format!(
                "{clean}POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\r\n\r\n\
                 {chunk}\r\n{body}\r\n0\r\n\r\n{smuggled}"
            );
            let answers: Vec<Answer> = raw::answers(instance.address, text.as_bytes()).await;
            let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
            assert_eq!(statuses, [200, 200], "{answers:?}");
            assert_eq!(answers[1].result(), "FLY");
            assert_eq!(answers[1].headers["connection"], "close");
        }
    }
}

/// Where two readers could see different ends of a body, none is read, and nothing behind it (RFC 9112, section 6.1).
#[tokio::test]
async fn a_transfer_encoding_is_chunked_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let (size, body) = (GOOD.len(), String::from_utf8_lossy(GOOD));
    let sent = |path: &str, kind: &str, headers: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n{headers}\r\n\r\n{size:x}\r\n{body}\r\n\
             0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
        )
    };
    let json = "application/json";
    for headers in [
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "transfer-encoding: ,chunked",
    ] {
        for (path, kind) in [
            ("/rpc/iad", json),
            ("/rpc/iad/String/upcase", json),
            ("/each/all", json),
            ("/internal/exec", json),
            ("/internal/exec", "application/x-ndjson"),
        ] {
            let text = sent(path, kind, headers);
            let answer = raw::answer(instance.address, text.as_bytes()).await;
            let what = format!("{path} {kind} {headers}");
            assert_eq!(answer.problem(), (400, "invalid_request", "no"), "{what}");
            assert_eq!(
                answer.detail(),
                "header transfer-encoding must be chunked, and given once"
            );
            assert_eq!(answer.headers["connection"], "close", "{what}");
        }
    }
    let text = sent(
        "/rpc/iad",
        json,
        "connection: close\r\ntransfer-encoding: Chunked",
    );
    let answer = raw::answer(instance.address, text.as_bytes()).await;
    assert_eq!(answer.result(), "FLY");
}
