//! Traces: what a request bears is continued on both instances, and exported where a collector is named.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::support::{
    asking::two_regions,
    cluster::Cluster,
    collector::{Collector, Received},
    command::run_with,
    network::Network,
    patience::eventually,
    process::{Answer, Environment, Process, answer},
};

const TRACE: [u8; 16] = [
    0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36,
];
const CALLER: [u8; 8] = [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// An instance that is to refuse the start: where it does not, it ends by itself.
const SERVE: [&str; 3] = ["serve", "--until-stdin-closes", "--listen=127.0.0.1:0"];

/// `iad` and `syd`, which export to `collector`.
async fn traced(collector: &Collector) -> Cluster {
    two_regions()
        .set(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &format!("http://{}", collector.address),
        )
        .set("OTEL_BSP_SCHEDULE_DELAY", "50")
        .start()
        .await
}

async fn call(via: &Process, function: &str, args: &str, traceparent: Option<&str>) -> Answer {
    let body = format!(r#"{{"module":"Kernel","function":"{function}","args":{args}}}"#);
    let mut request = via.request("/rpc/syd", &body);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    answer(request).await.unwrap()
}

/// Trace, caller, kind, function and instance.
fn seen(received: &Received) -> (Vec<u8>, Vec<u8>, SpanKind, String, String) {
    let span = &received.span;
    (
        span.trace_id.clone(),
        span.parent_span_id.clone(),
        span.kind(),
        received.attribute("rpc.method").unwrap(),
        received.resource("service.instance.id").unwrap(),
    )
}

#[tokio::test]
async fn a_trace_goes_on_through_both_instances() {
    let collector = Collector::start().await;
    let cluster = traced(&collector).await;
    let iad = cluster.instance("iad-1");
    assert_eq!(call(iad, "+", "[1,2]", Some(TRACEPARENT)).await.result(), 3);
    let calls = collector.spans("call", 1).await;
    let server = SpanKind::Server;
    let name = || "Kernel.+".to_owned();
    assert_eq!(
        seen(&calls[0]),
        (
            TRACE.into(),
            CALLER.into(),
            server,
            name(),
            "iad-1".to_owned()
        )
    );
    let execs = collector.spans("exec", 1).await;
    let call_span = calls[0].span.span_id.clone();
    assert_eq!(
        seen(&execs[0]),
        (TRACE.into(), call_span, server, name(), "syd-1".to_owned())
    );
    assert_eq!(
        calls[0].attribute("fly_rpc.target_region").as_deref(),
        Some("syd")
    );
    let of_service = ["service.name", "cloud.region"].map(|name| execs[0].resource(name).unwrap());
    assert_eq!(of_service, ["fly-rpc", "syd"]);
    assert!(calls[0].attribute("request_id").is_some());
}

#[tokio::test]
async fn the_calls_of_a_fan_out_are_parts_of_its_span_in_either_form() {
    for form in ["application/json", "application/x-ndjson"] {
        let collector = Collector::start().await;
        let cluster = traced(&collector).await;
        let body = r#"{"module":"Kernel","function":"+","args":[1,2]}"#;
        let request = cluster.instance("iad-1").request("/each/syd", body);
        let request = request
            .header("traceparent", TRACEPARENT)
            .header("accept", form);
        assert_eq!(answer(request).await.unwrap().status, 200);
        let calls = collector.spans("call", 1).await;
        let execs = collector.spans("exec", 1).await;
        assert_eq!(
            execs[0].span.parent_span_id, calls[0].span.span_id,
            "{form}"
        );
    }
}

#[tokio::test]
async fn without_a_trace_one_begins_and_a_failure_is_recorded_in_it() {
    let collector = Collector::start().await;
    let cluster = traced(&collector).await;
    let iad = cluster.instance("iad-1");
    let failed = call(iad, "raise", "[\"boom\"]", Some("00-nonsense")).await;
    assert_eq!(failed.problem(), (424, "function_failed", "yes"));
    let (calls, execs) = (
        collector.spans("call", 1).await,
        collector.spans("exec", 1).await,
    );
    assert_eq!(calls[0].span.parent_span_id, Vec::<u8>::new());
    let joined = |received: &Received| {
        (
            received.span.trace_id.clone(),
            received.attribute("error.type"),
        )
    };
    let code = Some("function_failed".to_owned());
    assert_eq!(
        joined(&execs[0]),
        (calls[0].span.trace_id.clone(), code.clone())
    );
    assert_eq!(joined(&calls[0]).1, code);
    assert_eq!(
        calls[0].attribute("fly_rpc.executed").as_deref(),
        Some("yes")
    );
    let message = &calls[0].span.status.as_ref().unwrap().message;
    assert_eq!(message, failed.detail());
    let text = format!("{calls:?}{execs:?}");
    assert!(!text.contains("boom"), "{text}");
}

#[tokio::test]
async fn a_call_that_is_not_sampled_is_not_exported() {
    let collector = Collector::start().await;
    let cluster = traced(&collector).await;
    let iad = cluster.instance("iad-1");
    let unsampled = TRACEPARENT.replace("-01", "-00");
    call(iad, "+", "[1,2]", Some(&unsampled)).await.result();
    call(iad, "-", "[1,2]", Some(TRACEPARENT)).await.result();
    for name in ["call", "exec"] {
        let spans = collector.spans(name, 1).await;
        assert_eq!(seen(&spans[0]).3, "Kernel.-");
    }
}

#[tokio::test]
async fn an_instance_that_exports_nothing_hands_the_trace_on() {
    let collector = Collector::start().await;
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let endpoint = format!("http://{}", collector.address);
    cluster
        .add_with(
            "syd",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &format!("{endpoint}/v1/traces"),
        )
        .await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let iad = cluster.instance("iad-1");
    call(iad, "+", "[1,2]", Some(TRACEPARENT)).await.result();
    cluster.instance("syd-1").terminate();
    cluster.instance_mut("syd-1").ended().await;
    let execs = collector.spans("exec", 1).await;
    let (trace, caller, ..) = seen(&execs[0]);
    assert_eq!((trace, caller), (TRACE.into(), CALLER.into()));
}

#[tokio::test]
async fn a_collector_that_is_not_there_harms_nothing() {
    let endpoint = format!("http://{}", Network::free().next_address());
    let mut local = Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
    ]))
    .await;
    let call = local.call("local", "String.upcase", json!(["fly"])).await;
    assert_eq!(call.result(), "FLY");
    let seen = async || local.log();
    let is_there = |log: &String| log.contains("traces cannot be exported");
    eventually("a line about it", seen, is_there).await;
    local.terminate();
    assert_eq!(local.ended().await.code(), Some(0));
}

/// The service whose span of a call an instance exports that starts with `variables`.
async fn service(variables: &[(&'static str, &str)]) -> String {
    let collector = Collector::start().await;
    let mut environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", collector.address),
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
    ]);
    environment.extend(
        variables
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    let local = Process::start(&environment).await;
    let call = local.call("local", "String.upcase", json!(["fly"])).await;
    assert_eq!(call.result(), "FLY");
    let spans = collector.spans("call", 1).await;
    spans[0].resource("service.name").unwrap()
}

#[tokio::test]
async fn the_service_has_the_name_that_either_variable_gives() {
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name = notes ,c=d");
    assert_eq!(service(&[attributes]).await, "notes");
    let named = ("OTEL_SERVICE_NAME", "shop");
    assert_eq!(service(&[attributes, named]).await, "shop");
    // Variables that say what holds anyhow change nothing; an empty one is none.
    let usual = [
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=,a=b"),
        ("OTEL_SERVICE_NAME", ""),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
    ];
    assert_eq!(service(&usual).await, "fly-rpc");
}

#[tokio::test]
async fn a_variable_that_would_be_ignored_stops_the_start() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    for (name, value, supported) in [
        ("OTEL_TRACES_EXPORTER", "console", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "http/json",
            "http/protobuf",
        ),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "none"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "none"),
        (
            "OTEL_TRACES_SAMPLER",
            "xray",
            "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio",
        ),
    ] {
        let (code, stdout, stderr) = run_with(&SERVE, &[endpoint, (name, value)]).await;
        let message =
            format!("fly-rpc: {name}: {value:?} is not supported for traces, only {supported}\n");
        assert_eq!((code, stdout, stderr), (64, String::new(), message));
    }
    for name in ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] {
        let (code, _, stderr) = run_with(&SERVE, &[endpoint, (name, "0")]).await;
        let message = format!("fly-rpc: {name}: \"0\" would export nothing\n");
        assert_eq!((code, stderr), (64, message));
    }
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_stops_the_start() {
    for endpoint in ["http://", "http://:4318", "http://a b", "collector:4318"] {
        let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        let (code, _, stderr) = run_with(&SERVE, &settings).await;
        let start =
            format!("fly-rpc: OTEL_EXPORTER_OTLP_ENDPOINT: {endpoint:?} is not http://HOST:PORT");
        assert!(code == 64 && stderr.starts_with(&start), "{code} {stderr}");
    }
}

#[tokio::test]
async fn a_collector_behind_tls_stops_the_start_unless_traces_are_disabled() {
    let collector = [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.test:4318")];
    let (code, _, stderr) = run_with(&["serve"], &collector).await;
    let message = "fly-rpc: OTEL_EXPORTER_OTLP_ENDPOINT: \"https://collector.test:4318\" is not http://HOST:PORT; this program \
                   speaks no TLS, so run a collector beside it\n";
    assert_eq!((code, stderr.as_str()), (64, message));
    // Nothing is exported: <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>.
    let serve = [
        "serve",
        "--until-stdin-closes",
        "--listen=127.0.0.1:0",
        "--drain-delay=0s",
    ];
    for disabled in [
        ("OTEL_SDK_DISABLED", "True"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ] {
        assert_eq!(run_with(&serve, &[collector[0], disabled]).await.0, 0);
    }
}
