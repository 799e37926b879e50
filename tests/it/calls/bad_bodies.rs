//! Bodies that should not be sent, as bytes: each is refused with its status and code and `executed: no`, and the instance
//! serves the next call as if nothing had been.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{self, Instant},
};

use crate::support::{
    bad_request::{Case, GOOD, assert_refused, assert_serves, instance, post, request},
    patience::in_time,
    raw,
};

/// The head of a request with a body of this length.
fn announced(length: &str) -> Vec<u8> {
    format!(
        "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
    .into_bytes()
}

#[tokio::test]
async fn bodies_that_are_no_json() {
    let body = |args: &str| format!(r#"{{"module":"Test","function":"echo","args":[{args}]}}"#);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let texts: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("white space", b" \n".to_vec()),
        ("no JSON", b"module=String".to_vec()),
        ("truncated", GOOD[..GOOD.len() - 1].to_vec()),
        ("trailing text", [GOOD, b" 2"].concat()),
        ("a second value", [GOOD, GOOD].concat()),
        ("a byte order mark", [b"\xef\xbb\xbf", GOOD].concat()),
        ("UTF-16", GOOD.iter().flat_map(|byte| [*byte, 0]).collect()),
        (
            "a control character in a string",
            body("\"?\"").replace('?', "\u{1}").into_bytes(),
        ),
        (
            "invalid UTF-8",
            [&b"{\"module\":\"\xff\xfe\""[..], b"}"].concat(),
        ),
        ("a lone surrogate", body(r#""\ud800""#).into_bytes()),
        (
            "surrogates in the wrong order",
            body(r#""\udc00\ud800""#).into_bytes(),
        ),
        ("nested 65 deep", body(&nested(63)).into_bytes()),
        ("nested 128 deep", body(&nested(126)).into_bytes()),
        ("nested 200,000 deep", body(&nested(200_000)).into_bytes()),
        ("NaN", body("NaN").into_bytes()),
        ("Infinity", body("-Infinity").into_bytes()),
        ("a hexadecimal number", body("0x10").into_bytes()),
        ("a leading zero", body("010").into_bytes()),
        ("a comment", body("1 /* one */").into_bytes()),
        ("a trailing comma", body("1,").into_bytes()),
        ("single quotes", body("'a'").into_bytes()),
    ];
    let cases: Vec<Case<'_>> = texts
        .iter()
        .map(|(what, text)| (*what, post("/rpc/iad", text), 400, "invalid_json"))
        .collect();
    assert_refused(&cases).await;
}

#[tokio::test]
async fn bodies_of_another_shape() {
    let long = "x".repeat(129);
    let many = format!(
        r#"{{"module":"Test","function":"echo","args":[{}1]}}"#,
        "1,".repeat(256)
    );
    let many_names = json!({"module": "Test", "function": "echo", "args": by_name(257)});
    let named = |module: &str, function: &str| {
        json!({"module": module, "function": function, "args": []}).to_string()
    };
    let with = |member: &str, value: &str| {
        format!(r#"{{"module":"String","function":"upcase","args":["fly"],"{member}":{value}}}"#)
    };
    let mut texts = vec![
        ("no object".to_owned(), "[]".to_owned()),
        ("a string".to_owned(), "\"x\"".to_owned()),
        ("null".to_owned(), "null".to_owned()),
        (
            "no module".to_owned(),
            r#"{"function":"upcase"}"#.to_owned(),
        ),
        (
            "no function".to_owned(),
            r#"{"module":"String"}"#.to_owned(),
        ),
        (
            "a module that is a number".to_owned(),
            r#"{"module":1,"function":"x"}"#.to_owned(),
        ),
        (
            "a module that is null".to_owned(),
            r#"{"module":null,"function":"x"}"#.to_owned(),
        ),
        ("an unknown member".to_owned(), with("arg", "1")),
        ("a member twice".to_owned(), with("module", "\"String\"")),
        (
            "a member twice, once escaped".to_owned(),
            with("mod\\u0075le", "\"String\""),
        ),
        ("args twice".to_owned(), with("args", "[]")),
        (
            "args that are a number".to_owned(),
            r#"{"module":"a","function":"b","args":1}"#.to_owned(),
        ),
        (
            "args that are null".to_owned(),
            r#"{"module":"a","function":"b","args":null}"#.to_owned(),
        ),
        ("257 args".to_owned(), many),
        ("257 args by name".to_owned(), many_names.to_string()),
        (
            "an instance with a slash".to_owned(),
            with("instance", "\"a/b\""),
        ),
        (
            "idempotent that is a number".to_owned(),
            with("idempotent", "1"),
        ),
    ];
    for name in ["", " ", "a b", "a\u{0}", "a\n", "é", &long] {
        texts.push((format!("module {name:?}"), named(name, "upcase")));
        texts.push((format!("function {name:?}"), named("String", name)));
    }
    for timeout in [
        "0",
        "-1",
        "1.5",
        "10001",
        "1000000000000",
        "99999999999999999999",
        "1e12",
        "1e400",
        "\"5s\"",
        "null",
        "[]",
    ] {
        texts.push((format!("timeout_ms {timeout}"), with("timeout_ms", timeout)));
    }
    let cases: Vec<Case<'_>> = texts
        .iter()
        .map(|(what, text)| {
            (
                what.as_str(),
                post("/rpc/iad", text),
                400,
                "invalid_request",
            )
        })
        .collect();
    assert_refused(&cases).await;
}

/// So many arguments, by names.
fn by_name(count: usize) -> Value {
    (0..count).map(|number| (format!("a{number}"), 0)).collect()
}

#[tokio::test]
async fn functions_and_arguments_that_are_not_there() {
    let longest = "!".repeat(128);
    let call = |module: &str, function: &str, args: Value| {
        post(
            "/rpc/iad",
            json!({"module": module, "function": function, "args": args}).to_string(),
        )
    };
    assert_refused(&[
        (
            "a prototype",
            call("__proto__", "constructor", json!([])),
            404,
            "function_unknown",
        ),
        (
            "a path",
            call("..", "/etc/passwd", json!([])),
            404,
            "function_unknown",
        ),
        (
            "a crate",
            call("std::process", "exit", json!([0])),
            404,
            "function_unknown",
        ),
        (
            "another case",
            call("string", "upcase", json!(["fly"])),
            404,
            "function_unknown",
        ),
        (
            "an unknown function",
            call("String", "none", json!([])),
            404,
            "function_unknown",
        ),
        (
            "the longest names",
            call(&longest, &longest, json!([])),
            404,
            "function_unknown",
        ),
        (
            "as many arguments as may be",
            call("String", "upcase", json!(vec![0; 256])),
            422,
            "invalid_arguments",
        ),
        (
            "as many by name",
            call("String", "upcase", by_name(256)),
            422,
            "invalid_arguments",
        ),
        (
            "too few arguments",
            call("String", "upcase", json!([])),
            422,
            "invalid_arguments",
        ),
        (
            "too many arguments",
            call("String", "upcase", json!(["a", "b"])),
            422,
            "invalid_arguments",
        ),
        (
            "a wrong type",
            call("String", "upcase", json!([1])),
            422,
            "invalid_arguments",
        ),
        (
            "a number beyond the type",
            post(
                "/rpc/iad",
                r#"{"module":"Kernel","function":"+","args":[1e400,1]}"#,
            ),
            422,
            "invalid_arguments",
        ),
    ])
    .await;
}

#[tokio::test]
async fn bodies_that_are_not_read() {
    let typed = |headers: &str| request("POST /rpc/iad", headers, GOOD);
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let chunked = format!(
        "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    let whole = post("/rpc/iad", vec![b' '; 4 << 20]);
    assert_refused(&[
        ("no content type", typed(""), 415, "unsupported_media_type"),
        (
            "text",
            typed("content-type: text/plain\r\n"),
            415,
            "unsupported_media_type",
        ),
        (
            "a form",
            typed("content-type: application/x-www-form-urlencoded\r\n"),
            415,
            "unsupported_media_type",
        ),
        (
            "an encoded body",
            typed("content-type: application/json\r\ncontent-encoding: gzip\r\n"),
            415,
            "unsupported_media_type",
        ),
        (
            "one byte too much, announced",
            announced("1048577"),
            413,
            "body_too_large",
        ),
        (
            "10 GB, announced",
            announced("10000000000"),
            413,
            "body_too_large",
        ),
        ("4 MiB, sent", whole, 413, "body_too_large"),
        (
            "2 MiB in chunks",
            chunked.into_bytes(),
            413,
            "body_too_large",
        ),
    ])
    .await;
}

/// Numbers beyond a double, a NUL, and a member twice: passed on as received.
#[tokio::test]
async fn arguments_keep_every_character() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let url = format!("http://{}/rpc/iad", instance.address);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for value in [
        "1e400",
        "18446744073709551617",
        "9007199254740993",
        "1.10",
        r#""\u0000""#,
        r#"{"a":1,"a":2}"#,
        // No depth is counted in a string.
        &format!("\"{}\"", "[".repeat(100)),
    ] {
        let body = format!(r#"{{"module":"Test","function":"echo","args":[{value}]}}"#);
        let request = client
            .post(&url)
            .header("content-type", "application/json")
            .body(body);
        let text = in_time("the answer", async { request.send().await?.text().await })
            .await
            .unwrap();
        assert!(
            text.starts_with(&format!(r#"{{"result":{value},"meta":"#)),
            "{value}: {text}"
        );
    }
}

#[tokio::test]
async fn a_body_that_stops_half_way_is_refused() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let mut stream = TcpStream::connect(instance.address).await.unwrap();
    let whole = post("/rpc/iad", GOOD);
    stream.write_all(&whole[..whole.len() - 3]).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = raw::next(&mut stream).await;
    assert_eq!(answer.problem(), (400, "invalid_json", "no"));
    assert_serves(&instance, "a body cut short").await;
}

/// Closing at once would reset the connection, and the reset may overtake the answer.
#[tokio::test]
async fn the_rest_of_a_refused_body_is_taken_for_a_second() {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    let mut stream = TcpStream::connect(instance.address).await.unwrap();
    let asked = Instant::now();
    stream.write_all(&announced("10000000000")).await.unwrap();
    let refused = raw::next(&mut stream).await;
    assert_eq!(refused.problem(), (413, "body_too_large", "no"));
    let mut beat = time::interval(Duration::from_millis(5));
    let sending = async {
        while stream.write_all(&[b' '; 4 << 10]).await.is_ok() {
            beat.tick().await;
        }
        asked.elapsed()
    };
    let lasted = in_time("the end of the connection", sending).await;
    let (second, noise) = (Duration::from_secs(1), Duration::from_secs(20));
    assert!((second..second + noise).contains(&lasted), "{lasted:?}");
}

#[tokio::test]
async fn a_client_that_goes_on_sending_reads_why_it_was_refused() {
    const LENGTH: usize = 1 << 20;
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    for (header, status) in [("rpc-forwarded", 508), ("rpc-unknown", 400)] {
        let mut client = TcpStream::connect(instance.address).await.unwrap();
        let head = format!(
            "POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {LENGTH}\r\n{header}: 1\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await.unwrap();
        in_time("an answer", client.peek(&mut [0])).await.unwrap();
        // On a busy machine the connection may be closed before all of it is taken; the answer is there.
        let _ = client.write_all(&[b' '; LENGTH]).await;
        assert_eq!(raw::next(&mut client).await.status, status);
    }
}
