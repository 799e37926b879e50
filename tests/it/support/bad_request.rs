//! Requests as bytes that should not be sent, and what each must meet: a refusal, and an instance that serves on.

use tempfile::TempDir;

use super::{
    process::{Environment, Process},
    raw,
};

pub(crate) const GOOD: &[u8] = br#"{"module":"String","function":"upcase","args":["fly"]}"#;

/// What an input is, its bytes, and the status and code that answer it.
pub(crate) type Case<'a> = (&'a str, Vec<u8>, u16, &'a str);

pub(crate) async fn instance(directory: &TempDir) -> Process {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("PRIMARY_REGION", "iad".to_owned()),
        ("RPC_MAX_TIMEOUT", "10s".to_owned()),
        ("RPC_MAX_BODY", "1MiB".to_owned()),
    ]);
    Process::start_with_functions(&environment, directory.path()).await
}

/// A request with a whole body, on a connection that ends with its answer.
pub(crate) fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let line = format!("POST {path}");
    request(&line, "content-type: application/json\r\n", body.as_ref())
}

pub(crate) fn with_header(header: &str) -> Vec<u8> {
    let headers = format!("content-type: application/json\r\n{header}\r\n");
    request("POST /rpc/iad", &headers, GOOD)
}

pub(crate) async fn assert_serves(instance: &Process, after: &str) {
    let answer = raw::answer(instance.address, &post("/rpc/iad", GOOD)).await;
    assert_eq!(answer.result(), "FLY", "after {after}");
}

pub(crate) async fn assert_refused(cases: &[Case<'_>]) {
    let directory = TempDir::new().unwrap();
    let instance = instance(&directory).await;
    for (what, bytes, status, code) in cases {
        let answer = raw::answer(instance.address, bytes).await;
        assert_eq!(answer.problem(), (*status, *code, "no"), "{what}");
        assert_serves(&instance, what).await;
    }
}
