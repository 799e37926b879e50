//! `GET /metrics`: what this instance counts, in the text format of Prometheus, or of OpenMetrics for who prefers it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};

use super::{App, context::Context};
use crate::{
    cluster::{Health, Overview},
    metrics::Discovered,
    problem::{Code, Problem},
    region::Region,
};

/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that was counted, and how discovery stands now.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    context: Context,
    headers: HeaderMap,
) -> Response {
    let overview = app.cluster.overview().await;
    let regions = app.cluster.regions();
    app.metrics.discovery.show(&discovered(&overview, &regions));
    match app.metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, format(&headers))], text).into_response(),
        Err(_) => {
            let problem = Problem::new(Code::Internal, "the metrics cannot be written");
            context.refuse(None, problem)
        }
    }
}

/// The format that the scraper asks for; the text is right in both.
fn format(headers: &HeaderMap) -> HeaderValue {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let prefers = accepts.is_some_and(|accept| accept.contains("application/openmetrics-text"));
    HeaderValue::from_static(if prefers { OPENMETRICS } else { PROMETHEUS })
}

fn discovered<'a>(overview: &'a Overview, regions: &'a [Region]) -> Discovered<'a> {
    let mut peers = BTreeMap::new();
    for region in regions {
        for health in Health::ALL {
            peers.insert((region.as_str(), health.as_str()), 0);
        }
    }
    for state in overview.peers() {
        let labels = (state.peer.region.as_str(), state.health.as_str());
        *peers.entry(labels).or_default() += 1;
    }
    let progress = &overview.progress;
    Discovered {
        rounds: progress.rounds,
        last_success: progress.last_success.map(|instant| instant.elapsed()),
        is_stale: progress.error.is_some(),
        peers,
    }
}
