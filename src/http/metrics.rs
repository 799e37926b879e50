//! `GET /metrics`: what this instance counts, in the text format of Prometheus, or of OpenMetrics where the scraper prefers it.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Result},
};

use super::{App, AppState};
use crate::{
    cluster::Overview,
    lifecycle::Phase,
    metrics::Readings,
    problem::{Code, Problem},
    region::Region,
    state::PeerState,
};

/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that was counted, and the state of the instance now.
pub(super) async fn show(State(app): AppState, headers: HeaderMap) -> Result<impl IntoResponse> {
    let overview = app.cluster.overview().await;
    let regions = app.cluster.regions();
    let text = app.metrics.text(&readings(&app, &overview, &regions));
    let text = text.map_err(|_| Problem::new(Code::Internal, "the metrics cannot be written"))?;
    Ok(([(CONTENT_TYPE, format(&headers))], text))
}

/// The format that the scraper asks for; the text is right in both.
fn format(headers: &HeaderMap) -> HeaderValue {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let prefers = accepts.is_some_and(|accept| accept.contains("application/openmetrics-text"));
    HeaderValue::from_static(if prefers { OPENMETRICS } else { PROMETHEUS })
}

fn readings<'a>(app: &App, overview: &'a Overview, regions: &'a [Region]) -> Readings<'a> {
    let mut peers = BTreeMap::new();
    for region in regions {
        for state in PeerState::ALL {
            peers.insert((region.as_str(), state.as_str()), 0);
        }
    }
    for known in overview.peers() {
        let labels = (known.peer.region.as_str(), known.state().as_str());
        *peers.entry(labels).or_default() += 1;
    }
    let progress = &overview.progress;
    Readings {
        in_flight: app.lifecycle.in_flight() + app.of_child.in_flight(),
        running: app.executor.running(),
        running_limit: app.limits.max_in_flight,
        queued: app.dispatcher.queued(),
        is_draining: app.lifecycle.phase() > Phase::Serving,
        key_store_is_up: app.executor.key_store_is_up(),
        rounds: progress.rounds,
        last_success: progress.last_success.map(|instant| instant.elapsed()),
        is_stale: progress.error.is_some(),
        peers,
    }
}
