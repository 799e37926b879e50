//! Traces to an OpenTelemetry collector (OTLP over HTTP, protobuf), through the HTTP client that everything here uses.
//! A thread of the library's own sends them; spans are dropped when the collector is too slow.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_subscriber::{Layer, filter::LevelFilter, registry::LookupSpan};

use crate::{client, config::Identity, problem::with_causes, trace};

/// How long a connection to the collector may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the collector may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest answer of a collector that is read.
const MAX_ANSWER: usize = 64 << 10;
/// How long the end of the process waits for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Exports spans until it is dropped, which waits for the last ones, for at most 2 s.
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Exports the spans of the instance `identity`, as one of `service`, from now on. The exporter reads the variables
    /// `OTEL_…` of the OpenTelemetry specification itself.
    pub(super) fn start(service: String, identity: &Identity) -> Result<Self, String> {
        let client = client::builder(CONNECT).timeout(ANSWER).build();
        let sender = Sender {
            client: client
                .map_err(|error| format!("the HTTP client for traces cannot be built: {error}"))?,
            runtime: Handle::current(),
            is_failing: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .build()
            .map_err(|error| format!("traces cannot be exported: {error}"))?;
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new(
                "service.instance.id",
                identity.instance.to_string(),
            ))
            .with_attribute(KeyValue::new("cloud.region", identity.region.to_string()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        trace::continue_traces();
        Ok(Self(provider))
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("fly-rpc"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(LevelFilter::INFO)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// The HTTP client for the exporter's thread, which is outside the runtime.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
    is_failing: AtomicBool,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.runtime.spawn(send(self.client.clone(), request));
        let answer = sent.await.map_err(HttpError::from).flatten();
        let cause = match &answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answered {}", response.status())),
            Err(error) => Some(with_causes(error.as_ref())),
        };
        let was_failing = self.is_failing.swap(cause.is_some(), Ordering::Relaxed);
        match cause {
            Some(cause) if !was_failing => tracing::warn!(cause, "traces cannot be exported"),
            None if was_failing => tracing::info!("traces are exported again"),
            _ => {}
        }
        answer
    }
}

async fn send(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (parts, body) = request.into_parts();
    let request = client
        .request(parts.method, parts.uri.to_string())
        .headers(parts.headers)
        .body(body);
    let answer = request.send().await?;
    let status = answer.status();
    let body = client::body(answer, MAX_ANSWER).await?;
    Ok(Response::builder().status(status).body(body)?)
}
