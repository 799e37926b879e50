//! `GET /regions`, `/regions/{region}` and `/functions`: the cluster as this instance knows it.

use std::{collections::BTreeMap, time::Duration};

use axum::{Extension, extract::State, response::Result};

use super::{
    DispatcherState,
    documents::{
        AppDocument, DiscoveryDocument, FunctionsDocument, InstanceDocument, RegionDocument,
        RegionsDocument,
    },
    request::InPath,
    response::{Json, Refusal},
};
use crate::{
    access::Caller,
    cluster::{KnownPeer, Overview},
    dispatch::Dispatcher,
    name::BootId,
    problem::{Code, Problem},
    protocol::{Catalogue, CatalogueDocument, PeerState},
    region::{Region, Target},
    reply::milliseconds,
};

/// List the regions and their instances
#[utoipa::path(
    get,
    path = "/regions",
    operation_id = "listRegions",
    tag = "cluster",
    responses((status = 200, description = "The cluster as this instance knows it", body = RegionsDocument)),
    security(("client_token" = []), ())
)]
pub(super) async fn list_regions(State(dispatcher): DispatcherState) -> Json<RegionsDocument> {
    let overview = dispatcher.cluster.overview().await;
    let regions = regions(&dispatcher, &overview);
    let identity = &dispatcher.local.identity;
    Json(RegionsDocument {
        local: identity.region.clone(),
        primary: identity.primary.clone(),
        is_primary: identity.region == identity.primary,
        regions: regions
            .into_iter()
            .map(|(region, instances)| RegionDocument { region, instances })
            .collect(),
        discovery: discovery(&dispatcher, &overview),
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
    responses((status = 200, description = "The region", body = RegionDocument)),
    security(("client_token" = []), ())
)]
pub(super) async fn get_region(
    State(dispatcher): DispatcherState,
    InPath(target): InPath<Target>,
) -> Result<Json<RegionDocument>> {
    let region = target.region(&dispatcher.local.identity.primary);
    let region = region.cloned().ok_or_else(|| {
        let detail = "\"any\" is where a call may run, and no region; /regions lists them";
        Problem::new(Code::InvalidRegion, detail)
    })?;
    let overview = dispatcher.cluster.overview().await;
    let instances = match regions(&dispatcher, &overview).remove(&region) {
        Some(instances) => instances,
        None => match dispatcher.peers(&region) {
            // Found since.
            Ok(_) => Vec::new(),
            Err(problem) => return Err(Refusal::new(problem, Some(&region)).into()),
        },
    };
    Ok(Json(RegionDocument { region, instances }))
}

/// List the functions of this instance
///
/// Those that the client may call.
#[utoipa::path(
    get,
    path = "/functions",
    operation_id = "listFunctions",
    tag = "cluster",
    responses((
        status = 200,
        description = "The functions by module, what each declares, and the hash of both; the app beside this instance",
        body = FunctionsDocument
    )),
    security(("client_token" = []), ())
)]
pub(super) async fn list_functions(
    State(dispatcher): DispatcherState,
    Extension(caller): Extension<Caller>,
) -> Json<FunctionsDocument> {
    let all = dispatcher.executor.catalogue();
    let CatalogueDocument {
        functions, details, ..
    } = match caller.functions() {
        Some(_) => CatalogueDocument::from(&all.only(|name| caller.may_call(name))),
        None => CatalogueDocument::from(&*all),
    };
    let beside = dispatcher.executor.app().map(|beside| {
        let status = beside.status();
        AppDocument {
            url: beside.url().to_string(),
            state: status.health,
            reason: status.reason,
        }
    });
    Json(FunctionsDocument {
        // As /regions and other instances have it.
        catalogue: all.hash().clone(),
        functions,
        details,
        app: beside,
    })
}

/// Every region ever seen, with its instances sorted by id; this one is among them.
fn regions(
    dispatcher: &Dispatcher,
    overview: &Overview,
) -> BTreeMap<Region, Vec<InstanceDocument>> {
    let seen = dispatcher.cluster.regions().into_iter();
    let mut regions: BTreeMap<_, Vec<_>> = seen.map(|region| (region, Vec::new())).collect();
    let mut add = |region: &Region, boot, instance| {
        let instances = regions.entry(region.clone()).or_default();
        instances.push((boot, instance));
    };
    add(
        &dispatcher.local.identity.region,
        Some(&dispatcher.local.boot),
        this_instance(dispatcher),
    );
    for known in overview.peers() {
        add(&known.peer.region, known.peer.boot.as_ref(), peer(known));
    }
    let regions = regions.into_iter();
    regions
        .map(|(region, instances)| (region, each_once(instances)))
        .collect()
}

/// Each process once, sorted: of two addresses of one, that by which it can be called. Two ready ones that differ in their
/// boot id are two, although they have one id, as for calls.
fn each_once(mut instances: Vec<(Option<&BootId>, InstanceDocument)>) -> Vec<InstanceDocument> {
    let is_ready = |it: &InstanceDocument| it.state == PeerState::Ready;
    let order = |(boot, it): &(Option<&BootId>, InstanceDocument)| {
        (
            it.instance.clone(),
            !is_ready(it),
            boot.cloned(),
            it.address,
        )
    };
    instances.sort_by_key(order);
    instances.dedup_by(|(boot, it), (kept, before)| {
        let is_other = is_ready(it) && kept.is_some() && boot != kept;
        it.instance == before.instance && !is_other
    });
    instances.into_iter().map(|(_, it)| it).collect()
}

pub(super) fn own_state(dispatcher: &Dispatcher) -> PeerState {
    match dispatcher.lifecycle.is_stopping() {
        true => PeerState::Draining,
        false => PeerState::Ready,
    }
}

pub(super) fn this_instance(dispatcher: &Dispatcher) -> InstanceDocument {
    let catalogue = dispatcher.executor.catalogue();
    InstanceDocument {
        instance: dispatcher.local.identity.instance.clone(),
        address: dispatcher.local.address,
        state: own_state(dispatcher),
        local: true,
        release: dispatcher.local.identity.release.clone(),
        rtt_ms: None,
        last_seen_ms: None,
        functions: Some(catalogue.len()),
        catalogue: Some(catalogue.hash().clone()),
        app: dispatcher
            .executor
            .app()
            .map(|beside| beside.status().health),
    }
}

pub(super) fn peer(known: &KnownPeer) -> InstanceDocument {
    let catalogue = known.peer.catalogue.as_deref();
    InstanceDocument {
        instance: known.peer.instance.clone(),
        address: known.peer.address,
        state: known.state(),
        local: false,
        release: known.peer.release.clone(),
        rtt_ms: known.peer.stats.round_trip().map(milliseconds),
        last_seen_ms: Some(whole_milliseconds(known.last_seen.elapsed())),
        functions: catalogue.map(Catalogue::len),
        catalogue: catalogue.map(|catalogue| catalogue.hash().clone()),
        app: known.peer.app_state,
    }
}

pub(super) fn discovery(dispatcher: &Dispatcher, overview: &Overview) -> DiscoveryDocument {
    let progress = &overview.progress;
    let last_success = progress.last_success;
    DiscoveryDocument {
        source: dispatcher.cluster.source.clone(),
        last_success_ms: last_success.map(|instant| whole_milliseconds(instant.elapsed())),
        stale: progress.error.is_some(),
        last_error: progress.error.clone(),
        warnings: overview.warnings.clone(),
        rounds: progress.rounds,
    }
}

pub(super) fn whole_milliseconds(span: Duration) -> f64 {
    milliseconds(span).round()
}
