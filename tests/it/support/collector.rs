//! A small OpenTelemetry collector: takes traces by OTLP over HTTP, and keeps their spans.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::support::patience::eventually;

/// A collector and the spans that came.
pub(crate) struct Collector {
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Received>>>,
}

/// A span, and the resource whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub span: Span,
    resource: Vec<KeyValue>,
}

impl Received {
    /// An attribute of the span.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        text(&self.span.attributes, name)
    }

    /// An attribute of the resource.
    pub(crate) fn resource(&self, name: &str) -> Option<String> {
        text(&self.resource, name)
    }
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        other => panic!("{name} is {other:?}"),
    }
}

impl Collector {
    /// Listens.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            spans: Arc::default(),
        };
        let spans = Arc::clone(&collector.spans);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let received = receive(stream).await;
                spans.lock().unwrap().extend(received);
            }
        });
        collector
    }

    /// The spans called `name`, once there are `count` of them.
    pub(crate) async fn spans(&self, name: &str, count: usize) -> Vec<Received> {
        let found = async || {
            let spans = self.spans.lock().unwrap();
            let found = spans.iter().filter(|received| received.span.name == name);
            found.cloned().collect::<Vec<_>>()
        };
        eventually(name, found, |found| found.len() == count).await
    }
}

/// The spans in one request; the connection ends with it.
async fn receive(stream: TcpStream) -> Vec<Received> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_until(b'\n', &mut head).await.unwrap();
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf\r\n"),
        "{head}"
    );
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).await.unwrap();
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    let mut received = Vec::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap().attributes;
        let spans = of_resource
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans);
        received.extend(spans.map(|span| Received {
            span,
            resource: resource.clone(),
        }));
    }
    received
}
