//! Routes that only tell: the regions and their instances, the functions, and whether this instance lives and is ready.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{
    App, answer,
    context::Context,
    documents::{
        DiscoveryDocument, InstanceDocument, RegionDocument, RegionsDocument, StatusDocument,
    },
    openapi::{ClusterProblems, OpenProblems, ReadinessProblems, RegionProblems},
};
use crate::{
    cluster::{Health, Overview, PeerState, Progress},
    lifecycle::Phase,
    name::InvalidName,
    problem::{Code, Problem},
    region::{Region, Target},
    registry::Catalogue,
    reply::milliseconds,
};

/// List the regions and their instances
#[utoipa::path(
    get,
    path = "/regions",
    operation_id = "listRegions",
    tag = "cluster",
    responses(
        (
            status = 200,
            description = "The cluster as this instance knows it",
            body = RegionsDocument,
            examples((
                "two-regions" = (
                    summary = "iad, which answers and is the primary, and syd",
                    value = json!({
                        "local": "iad", "primary": "iad", "is_primary": true,
                        "regions": [
                            {"region": "iad", "instances": [{
                                "instance": "iad-1", "address": "127.8.0.1:8080", "state": "ready", "local": true,
                                "release": null, "rtt_ms": null, "last_seen_ms": null,
                            }]},
                            {"region": "syd", "instances": [{
                                "instance": "syd-1", "address": "127.8.0.2:8080", "state": "ready", "local": false,
                                "release": null, "rtt_ms": 0.412, "last_seen_ms": 1204.0,
                            }]},
                        ],
                        "discovery": {
                            "source": "cluster.test", "last_success_ms": 1204.0, "stale": false, "last_error": null,
                            "rounds": 12, "warnings": [],
                        },
                    })
                )
            ))
        ),
        ClusterProblems,
    ),
    security(("client_token" = []), ())
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
    params((
        "region" = String,
        Path,
        description = "A region such as `syd`, or `primary`",
        pattern = r"^[a-z0-9][a-z0-9\-]{0,31}$",
        example = "syd"
    )),
    responses(
        (
            status = 200,
            description = "The region",
            body = RegionDocument,
            examples((
                "syd" = (
                    summary = "syd as iad sees it",
                    value = json!({"region": "syd", "instances": [{
                        "instance": "syd-1", "address": "127.8.0.2:8080", "state": "ready", "local": false,
                        "release": null, "rtt_ms": 0.412, "last_seen_ms": 1204.0,
                    }]})
                )
            ))
        ),
        RegionProblems,
    ),
    security(("client_token" = []), ())
)]
pub(super) async fn get_region(
    State(app): State<Arc<App>>,
    context: Context,
    request: Request,
) -> Response {
    let region = match asked_region(&app, request.uri().path(), "") {
        Ok(region) => region,
        Err(problem) => return context.refuse(None, problem),
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

/// The region in a path `/regions/{region}` that goes on with `rest`, `primary` resolved.
pub(super) fn asked_region(app: &App, path: &str, rest: &str) -> Result<Region, Problem> {
    let target = path.strip_prefix("/regions/");
    let target = target.and_then(|target| target.strip_suffix(rest));
    let invalid = |invalid: InvalidName| Problem::new(Code::InvalidRegion, invalid.to_string());
    let target: Target = target.unwrap_or_default().parse().map_err(invalid)?;
    Ok(target.region(&app.identity.primary).clone())
}

/// List the functions of this instance
#[utoipa::path(
    get,
    path = "/functions",
    operation_id = "listFunctions",
    tag = "cluster",
    responses(
        (
            status = 200,
            description = "The functions by module, and their hash",
            body = Catalogue,
            examples((
                "two-modules" = (
                    summary = "Two functions of one module and one of another",
                    value = json!({
                        "catalogue": "5d41402abc4b2a76b9719d911017c592",
                        "functions": {"Kernel": ["+"], "String": ["downcase", "upcase"]},
                    })
                )
            ))
        ),
        ClusterProblems,
    ),
    security(("client_token" = []), ())
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
    responses(
        (
            status = 200,
            description = "It does",
            body = StatusDocument,
            examples((
                "live" = (
                    summary = "It works",
                    value = json!({"status": "live", "instance": "iad-1", "region": "iad"})
                )
            ))
        ),
        OpenProblems,
    ),
    security()
)]
pub(super) async fn get_liveness(State(app): State<Arc<App>>) -> Response {
    status(&app, "live")
}

/// Tell whether the instance takes calls
///
/// It does from the end of the first discovery round for which DNS answered, at the latest 15 s after its start, until it
/// starts to drain.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "health",
    responses(
        (
            status = 200,
            description = "It does",
            body = StatusDocument,
            examples((
                "ready" = (
                    summary = "It takes calls",
                    value = json!({"status": "ready", "instance": "iad-1", "region": "iad"})
                )
            ))
        ),
        ReadinessProblems,
    ),
    security()
)]
pub(super) async fn get_readiness(State(app): State<Arc<App>>, context: Context) -> Response {
    let region = || Some(app.identity.region.clone());
    if app.lifecycle.phase() > Phase::Serving {
        return context.refuse(
            region(),
            Problem::new(Code::Draining, "this instance is stopping"),
        );
    }
    if !app.cluster.is_ready() {
        let detail =
            "DNS has not answered yet; without it, this instance is ready 15 s after its start";
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
    for state in overview.peers() {
        regions
            .entry(state.peer.region.clone())
            .or_default()
            .push(peer(state));
    }
    for instances in regions.values_mut() {
        // Of two addresses of one instance, the one by which it can be called.
        let order =
            |a: &InstanceDocument| (a.instance.clone(), a.state != Health::Ready, a.address);
        instances.sort_by_key(order);
        instances.dedup_by(|a, b| a.instance == b.instance);
    }
    regions
}

fn this_instance(app: &App) -> InstanceDocument {
    InstanceDocument {
        instance: app.identity.instance.clone(),
        address: app.address,
        state: own_state(app),
        local: true,
        release: app.identity.release.clone(),
        rtt_ms: None,
        last_seen_ms: None,
    }
}

/// The state of the instance that answers.
pub(super) fn own_state(app: &App) -> Health {
    match app.lifecycle.phase() {
        Phase::Serving => Health::Ready,
        Phase::Draining | Phase::Refusing | Phase::Cut => Health::Draining,
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

pub(super) fn discovery(app: &App, progress: &Progress) -> DiscoveryDocument {
    DiscoveryDocument {
        source: app.cluster.source().map(str::to_owned),
        last_success_ms: progress
            .last_success
            .map(|instant| whole_milliseconds(instant.elapsed())),
        stale: progress.error.is_some(),
        last_error: progress.error.clone(),
        warnings: progress.warnings.clone(),
        rounds: progress.rounds,
    }
}

pub(super) fn whole_milliseconds(span: Duration) -> f64 {
    milliseconds(span).round()
}
