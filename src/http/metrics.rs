//! `GET /metrics`: what this instance counts, in the text format of Prometheus, or of OpenMetrics where the scraper prefers it.

use std::{
    sync::atomic::AtomicU64,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::State,
    http::{
        HeaderMap,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Result},
};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{DispatcherState, request::lists};
use crate::{
    dispatch::Dispatcher,
    metrics::{PREFIX, Texts, registered},
    problem::{Code, Problem},
    protocol::PeerState,
};

/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that was counted, and the state of the instance now.
pub(super) async fn show(
    State(dispatcher): DispatcherState,
    headers: HeaderMap,
) -> Result<impl IntoResponse> {
    let text = dispatcher.local.metrics.text(&readings(&dispatcher));
    let text = text.map_err(|_| Problem::new(Code::Internal, "the metrics cannot be written"))?;
    let (format, text) = match lists(&headers, &ACCEPT, "application/openmetrics-text") {
        true => (OPENMETRICS, text),
        false => (PROMETHEUS, in_older_format(&text)),
    };
    Ok(([(CONTENT_TYPE, format)], text))
}

/// Turns `text`, in the format of OpenMetrics, into the older one: there a metric has the name of its samples, an info is a
/// gauge, and there are neither units nor an end.
fn in_older_format(text: &str) -> String {
    let mut older = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        let words = line.strip_prefix("# ").map(|rest| rest.splitn(3, ' '));
        let words = words.map(|mut words| [(); 3].map(|()| words.next().unwrap_or_default()));
        let written = match words {
            // It comes before the type, from which the name follows.
            Some(["HELP", _, text]) => {
                help = Some(text);
                continue;
            }
            Some(["TYPE", name, kind]) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                let help = help.take().unwrap_or_default();
                let about = format!("# HELP {name}{suffix} {help}\n");
                about + &format!("# TYPE {name}{suffix} {kind}\n")
            }
            Some(_) => continue,
            None => format!("{line}\n"),
        };
        older += &written;
    }
    older
}

/// What is not counted as it happens, but read at each scrape. It is not kept from one to the next, so a region that is no
/// longer known leaves no label behind.
fn readings(dispatcher: &Dispatcher) -> Registry {
    let progress = dispatcher.cluster.progress();
    let mut registry = Registry::with_prefix(PREFIX);
    let mut show = |name, help, value: usize| {
        let gauge: Gauge = registered(&mut registry, name, help);
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    };
    let help = "Calls that were accepted and are not answered yet, run here or forwarded";
    show("in_flight", help, dispatcher.in_flight());
    let help = "Functions that run here now";
    show("running", help, dispatcher.executor.running());
    let help = "How many functions may run here at once";
    show("running_limit", help, dispatcher.local.limits.max_in_flight);
    let help = "Calls that wait to leave for a peer";
    show("queued", help, dispatcher.link.queued());
    let help = "1 once the instance is stopping";
    show("draining", help, dispatcher.lifecycle.is_stopping().into());
    if let Some(app) = dispatcher.executor.app() {
        let help = "1 while the functions of the app beside the instance are offered";
        show("app_up", help, app.offered().is_some().into());
    }
    let memory = &dispatcher.local.memory;
    let help = "Bytes of heads, bodies and answers that wait here, as RPC_MAX_MEMORY counts them";
    show("memory_bytes", help, memory.held());
    let help = "How many of them may wait: RPC_MAX_MEMORY";
    show("memory_limit_bytes", help, memory.limit);
    if let Some(keys) = dispatcher.executor.keys.count() {
        let help =
            "Idempotency keys that this instance remembers, those of calls that run included";
        show("keys", help, keys);
    }
    if let Some(is_up) = dispatcher.executor.keys.store_is_up() {
        let help = "1 while the store of idempotency keys answers";
        show("key_store_up", help, is_up.into());
    }
    let help = "1 when the last DNS queries failed, so that the peers are those found before";
    show("discovery_stale", help, progress.error.is_some().into());
    let help = "Rounds of discovery that were finished";
    let rounds: Counter = registered(&mut registry, "discovery_rounds", help);
    rounds.inc_by(progress.rounds);
    let last_success = progress.last_success.and_then(|instant| {
        let date = SystemTime::now().checked_sub(instant.elapsed())?;
        date.duration_since(UNIX_EPOCH).ok()
    });
    let timestamp = Gauge::<f64, AtomicU64>::default();
    timestamp.set(last_success.unwrap_or_default().as_secs_f64());
    let help = "When DNS last gave a whole answer, in seconds since 1970; 0 when it never did";
    let name = "discovery_last_success_timestamp";
    registry.register_with_unit(name, help, Unit::Seconds, timestamp);
    let help = "Peers by region and state";
    let peers: Family<Texts<2>, Gauge> = registered(&mut registry, "peers", help);
    for region in dispatcher.cluster.regions() {
        let of_region = dispatcher.cluster.region(&region).unwrap_or_default();
        // Zeros too: an alert on a missing series never fires.
        for state in PeerState::ALL {
            let labels = [
                ("peer_region", region.to_string()),
                ("state", state.to_string()),
            ];
            let count = of_region
                .states()
                .filter(|of_peer| *of_peer == state)
                .count();
            let gauge = peers.get_or_create_owned(&labels);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    registry
}
