//! Requests as bytes on a socket, for what no HTTP client would send, and the answers as they come back.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{patience::in_time, process::Answer};

/// Every answer to `bytes`, until the instance closes the connection; the test itself does not close it.
pub(crate) async fn answers(instance: SocketAddr, bytes: &[u8]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(instance).await.unwrap();
    // The instance may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut received = Vec::new();
    let _ = in_time(
        "the end of the connection",
        stream.read_to_end(&mut received),
    )
    .await;
    parse(&received)
}

/// The answer to `bytes`, of an instance that closes the connection after it.
pub(crate) async fn answer(instance: SocketAddr, bytes: &[u8]) -> Answer {
    let mut answers = answers(instance, bytes).await;
    assert_eq!(
        answers.len(),
        1,
        "{answers:?} to {:?}",
        String::from_utf8_lossy(bytes)
    );
    answers.remove(0)
}

/// The next answer on `stream`, which may stay open.
pub(crate) async fn next(stream: &mut TcpStream) -> Answer {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut answers = parse(&received);
        if !answers.is_empty() {
            return answers.remove(0);
        }
        let count = in_time("an answer", stream.read(&mut buffer))
            .await
            .unwrap();
        assert_ne!(
            count,
            0,
            "closed after {:?}",
            String::from_utf8_lossy(&received)
        );
        received.extend(&buffer[..count]);
    }
}

/// Whole answers, one after the other; each has a `content-length`.
fn parse(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((answer, rest)) = first(bytes) {
        answers.push(answer);
        bytes = rest;
    }
    answers
}

fn first(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let headers: BTreeMap<String, String> = lines.map(header).collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let body = bytes.get(end + 4..end + 4 + length)?;
    let text = || Value::from(String::from_utf8_lossy(body).as_ref());
    let answer = Answer {
        status,
        content_type: headers.get("content-type").cloned().unwrap_or_default(),
        body: serde_json::from_slice(body).unwrap_or_else(|_| text()),
        headers,
    };
    Some((answer, &bytes[end + 4 + length..]))
}
