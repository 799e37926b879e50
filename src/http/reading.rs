//! Routes that only tell: the regions and their instances, the functions, and whether this instance lives and is ready.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, answer, context::Context};
use crate::{
    cluster::{Health, Overview, PeerState, Progress},
    lifecycle::Phase,
    name::InstanceId,
    problem::{Code, Problem},
    region::Region,
    registry::Catalogue,
    reply::{ProblemDocument, milliseconds},
};

/// The cluster as this instance knows it.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Regions)]
pub(crate) struct RegionsDocument {
    /// The region of the instance that answers.
    #[schema(value_type = String, example = "iad")]
    pub local: Region,
    /// The primary region.
    #[schema(value_type = String, example = "iad")]
    pub primary: Region,
    /// Whether the instance that answers is in the primary region.
    pub is_primary: bool,
    /// Every region in which an instance was ever seen.
    pub regions: Vec<RegionDocument>,
    /// How discovery fares.
    pub discovery: DiscoveryDocument,
}

/// One region and its instances.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Region)]
pub(crate) struct RegionDocument {
    /// The region.
    #[schema(value_type = String, example = "syd")]
    pub region: Region,
    /// Its instances, sorted by id.
    pub instances: Vec<InstanceDocument>,
}

/// One instance.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Instance)]
pub(crate) struct InstanceDocument {
    /// Its id.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: InstanceId,
    /// Where it answers its peers.
    #[schema(value_type = String, example = "[fdaa:0:18:a7b:7d:f066:b83b:2]:8080")]
    pub address: SocketAddr,
    /// Whether it takes calls.
    pub state: Health,
    /// Whether it is the instance that answers.
    pub local: bool,
    /// Its release.
    pub release: Option<String>,
    /// Milliseconds that its last probe took; null for the instance that answers.
    pub rtt_ms: Option<f64>,
    /// Milliseconds since it last answered; null for the instance that answers.
    pub last_seen_ms: Option<f64>,
}

/// How discovery fares.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Discovery)]
pub(crate) struct DiscoveryDocument {
    /// What it resolves; null for a cluster of one.
    #[schema(example = "shop.internal")]
    pub source: Option<String>,
    /// Milliseconds since DNS last gave a whole answer; null when it never did.
    pub last_success_ms: Option<f64>,
    /// Whether the last queries failed, so that the peers are those found before.
    pub stale: bool,
    /// Why they failed.
    pub last_error: Option<String>,
    /// Rounds that were finished.
    pub rounds: u64,
}

/// Whether an instance lives, or is ready.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Status)]
pub(super) struct StatusDocument {
    /// `live` or `ready`.
    #[schema(example = "ready")]
    pub status: String,
    /// The instance's id.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: InstanceId,
    /// Its region.
    #[schema(value_type = String, example = "iad")]
    pub region: Region,
}

/// List the regions and their instances
#[utoipa::path(
    get,
    path = "/regions",
    operation_id = "listRegions",
    tag = "cluster",
    responses((status = 200, description = "The cluster as this instance knows it", body = RegionsDocument))
)]
pub(super) async fn list_regions(State(app): State<Arc<App>>) -> Response {
    let overview = app.cluster.overview().await;
    let regions = regions(&app, &overview);
    let identity = &app.identity;
    answer::ok(&RegionsDocument {
        local: identity.region.clone(),
        primary: identity.primary.clone(),
        is_primary: identity.region == identity.primary,
        regions: regions
            .into_iter()
            .map(|(region, instances)| RegionDocument { region, instances })
            .collect(),
        discovery: discovery(&app, &overview.progress),
    })
}

/// Show one region and its instances
#[utoipa::path(
    get,
    path = "/regions/{region}",
    operation_id = "getRegion",
    tag = "cluster",
    params(("region" = String, Path, description = "A region such as `syd`")),
    responses(
        (status = 200, description = "The region", body = RegionDocument),
        (
            status = "default",
            description = "No such region",
            body = ProblemDocument,
            content_type = "application/problem+json"
        ),
    )
)]
pub(super) async fn get_region(
    State(app): State<Arc<App>>,
    context: Context,
    request: Request,
) -> Response {
    let asked = request
        .uri()
        .path()
        .strip_prefix("/regions/")
        .unwrap_or_default()
        .parse::<Region>();
    let region = match asked {
        Ok(region) => region,
        Err(invalid) => {
            return context.refuse(None, Problem::new(Code::InvalidRegion, invalid.to_string()));
        }
    };
    let overview = app.cluster.overview().await;
    if let Some(instances) = regions(&app, &overview).remove(&region) {
        return answer::ok(&RegionDocument { region, instances });
    }
    match app.dispatcher.peers(&region) {
        // Found since.
        Ok(_) => answer::ok(&RegionDocument {
            region,
            instances: Vec::new(),
        }),
        Err(problem) => context.refuse(Some(region), problem),
    }
}

/// List the functions of this instance
#[utoipa::path(
    get,
    path = "/functions",
    operation_id = "listFunctions",
    tag = "cluster",
    responses((status = 200, description = "The functions by module, and their hash", body = Catalogue))
)]
pub(super) async fn list_functions(State(app): State<Arc<App>>) -> Response {
    answer::ok(app.executor.catalogue())
}

/// Tell whether the process works
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getLiveness",
    tag = "health",
    responses((status = 200, description = "It does", body = StatusDocument))
)]
pub(super) async fn get_liveness(State(app): State<Arc<App>>) -> Response {
    status(&app, "live")
}

/// Tell whether the instance takes calls
///
/// It does from the end of the first discovery round, found or not, until it starts to drain.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "health",
    responses(
        (status = 200, description = "It does", body = StatusDocument),
        (
            status = 503,
            description = "Not yet, or not any more",
            body = ProblemDocument,
            content_type = "application/problem+json"
        ),
    )
)]
pub(super) async fn get_readiness(State(app): State<Arc<App>>, context: Context) -> Response {
    let region = || Some(app.identity.region.clone());
    if app.lifecycle.phase() > Phase::Serving {
        return context.refuse(
            region(),
            Problem::new(Code::Draining, "this instance is stopping"),
        );
    }
    if !app.cluster.was_tried() {
        let detail = "the first discovery round has not finished yet";
        return context.refuse(region(), Problem::new(Code::DiscoveryPending, detail));
    }
    status(&app, "ready")
}

fn status(app: &App, status: &str) -> Response {
    let (instance, region) = (app.identity.instance.clone(), app.identity.region.clone());
    answer::ok(&StatusDocument {
        status: status.to_owned(),
        instance,
        region,
    })
}

/// Every region ever seen, with its instances sorted by id; this one is among them.
fn regions(app: &App, overview: &Overview) -> BTreeMap<Region, Vec<InstanceDocument>> {
    let mut regions: BTreeMap<Region, Vec<InstanceDocument>> = BTreeMap::new();
    regions.extend(
        app.cluster
            .regions()
            .into_iter()
            .map(|region| (region, Vec::new())),
    );
    regions
        .entry(app.identity.region.clone())
        .or_default()
        .push(this_instance(app));
    for state in &overview.peers {
        regions
            .entry(state.peer.region.clone())
            .or_default()
            .push(peer(state));
    }
    for instances in regions.values_mut() {
        instances.sort_by(|a, b| (&a.instance, a.address).cmp(&(&b.instance, b.address)));
        instances.dedup_by(|a, b| a.instance == b.instance);
    }
    regions
}

fn this_instance(app: &App) -> InstanceDocument {
    let serves = app.lifecycle.phase() == Phase::Serving;
    InstanceDocument {
        instance: app.identity.instance.clone(),
        address: app.address,
        state: if serves {
            Health::Ready
        } else {
            Health::Draining
        },
        local: true,
        release: app.identity.release.clone(),
        rtt_ms: None,
        last_seen_ms: None,
    }
}

fn peer(state: &PeerState) -> InstanceDocument {
    InstanceDocument {
        instance: state.peer.instance.clone(),
        address: state.peer.address,
        state: state.health,
        local: false,
        release: state.peer.release.clone(),
        rtt_ms: Some(milliseconds(state.rtt)),
        last_seen_ms: Some(whole_milliseconds(state.last_seen.elapsed())),
    }
}

fn discovery(app: &App, progress: &Progress) -> DiscoveryDocument {
    DiscoveryDocument {
        source: app.cluster.source().map(str::to_owned),
        last_success_ms: progress
            .last_success
            .map(|instant| whole_milliseconds(instant.elapsed())),
        stale: progress.error.is_some(),
        last_error: progress.error.clone(),
        rounds: progress.rounds,
    }
}

fn whole_milliseconds(span: Duration) -> f64 {
    milliseconds(span).round()
}
