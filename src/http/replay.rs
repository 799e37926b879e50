//! Calls that Fly Proxy is asked to replay in their region, instead of being forwarded from here. Decides for one request
//! by its headers, which a client may invent: a request that claims to be a replay is forwarded, so that none can loop.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

use super::{layers::Context, request::header, response::Refusal};
use crate::{
    call::Call,
    cluster::Condition,
    config::{Identity, Route},
    deadline::Deadline,
    dispatch::Dispatcher,
    problem::{Code, Executed, Problem},
    region::{Region, Targets},
    replay::{self, Machines},
    reply::Report,
};

pub(super) const ROUTE: HeaderName = HeaderName::from_static("rpc-route");

/// The route that a request asks for, else the instance's.
///
/// # Errors
/// [`Code::InvalidRequest`] for a header `rpc-route` with another value, or given twice.
pub(super) fn route(headers: &HeaderMap, default: Route) -> Result<Route, Problem> {
    let asked = header(headers, &ROUTE, "proxy, replay or auto", |text| {
        text.parse().ok()
    })?;
    Ok(asked.unwrap_or(default))
}

/// The answer that has Fly Proxy replay `call`, which may be replayed, in the first region of `targets`; `None` where it runs
/// here or is forwarded from here.
///
/// A call whose peers there are all suspect or draining is forwarded: Fly Proxy waits without end for a Machine that takes
/// a connection and does not answer.
pub(super) fn ask(
    dispatcher: &Dispatcher,
    context: &Context,
    call: &Call,
    targets: &Targets,
) -> Option<Response> {
    let region = &dispatcher.first_region(targets, call)?;
    let is_here = *region == dispatcher.local.identity.region;
    let deadline = Deadline::since(context.arrived, call.timeout);
    if is_here || !replay::is_fly_region(region) || deadline.has_passed() {
        return None;
    }
    let left = deadline.remaining();
    let peers = dispatcher.cluster.region(region).unwrap_or_default();
    let chosen = match &call.instance {
        Some(instance) => peers.find(instance),
        None => peers.choose(&call.name, &[]),
    };
    // The time that is not given to the replay is for what follows if it reaches no Machine: the call is forwarded from
    // here, or answered with the reason why not.
    let (preferred, timeout) = match chosen {
        Some(peer) if peers.condition(peer) == Condition::Ready => (Some(&peer.instance), left / 2),
        Some(_) => return None,
        None => (None, left * 9 / 10),
    };
    let (regions, or_any) = list(targets, region, &dispatcher.local.identity.primary);
    let machines = match &call.instance {
        Some(instance) => Machines::Only(region, instance),
        None => Machines::In {
            regions: &regions,
            or_any,
            preferred,
        },
    };
    let state = replay::call_state(&context.request_id, left);
    let detail = format!(
        "Fly Proxy is to replay this call in region \"{region}\"; without it, send the header rpc-route: proxy"
    );
    let refusal = Refusal::new(Problem::new(Code::Replay, detail), Some(region));
    let asks = replay::header(machines, timeout, &state);
    Some(([(replay::REPLAY, asks)], refusal).into_response())
}

/// Whether Fly Proxy would replay a request with a body of `size` bytes that is to take `route`. One that says that it is a
/// replay is never replayed again.
pub(super) fn may_be_replayed(route: Route, head: &Parts, size: usize) -> bool {
    let headers = &head.headers;
    let is_wanted = match route {
        Route::Proxy => false,
        Route::Replay => true,
        Route::Auto => replay::came_through_fly_proxy(headers),
    };
    is_wanted
        && !replay::was_replayed(headers)
        && replay::request_size(&head.uri, headers, size) <= replay::MAX_REQUEST
}

/// What Fly Proxy may be asked for of `targets`, of which `first` comes first: the regions that Fly can have, and whether any
/// other will do. Fly Proxy has no word for the `any` of a client that is limited to some regions.
fn list<'a>(
    targets: &'a Targets,
    first: &'a Region,
    primary: &'a Region,
) -> (Vec<&'a Region>, bool) {
    let mut regions = vec![first];
    for region in targets.named(primary) {
        if replay::is_fly_region(region) && !regions.contains(&region) {
            regions.push(region);
        }
    }
    (regions, targets.has_any() && targets.within.is_none())
}

/// When a call arrived for the first time. Its timeout includes the time before its replay was asked for, and the time that
/// Fly Proxy lost where the replay reached no Machine.
pub(super) fn first_arrival(context: &Context, headers: &HeaderMap, call: &Call) -> Instant {
    let left = replay::time_left(headers).unwrap_or(call.timeout);
    let spent = call.timeout.saturating_sub(left);
    let lost = (spent + replay::time_lost(headers)).min(call.timeout);
    context.arrived.checked_sub(lost).unwrap_or(context.arrived)
}

/// The header that has Fly Proxy try another Machine with a call that this instance, and each sibling that was asked after
/// it, refused because it drains or is overloaded. A client that is not behind Fly Proxy gets the refusal alone.
pub(super) fn to_others(
    identity: &Identity,
    head: &Parts,
    size: usize,
    call: &Call,
    arrived: Instant,
    report: &Report,
) -> Option<HeaderValue> {
    let Report { result, meta } = report;
    let problem = result.as_ref().err()?;
    let me = &identity.instance;
    let is_mine = meta.instance.as_ref().is_none_or(|instance| instance == me);
    // A call for the own region is tried here first, unless it names an instance or its key may pick one.
    let is_ours = meta.region.as_ref() == Some(&identity.region)
        && call.instance.is_none()
        && call.key.is_none();
    // Another Machine would run once more what may have run: a repeat is refused too while its first call runs.
    let is_own_refusal = matches!(problem.code, Code::Draining | Code::Overloaded)
        && problem.executed == Executed::No
        && (is_mine || is_ours);
    let left = Deadline::since(arrived, call.timeout).remaining();
    let must_be_here = call.instance.as_ref() == Some(me);
    if !is_own_refusal
        || must_be_here
        || left.is_zero()
        || !may_be_replayed(Route::Auto, head, size)
    {
        return None;
    }
    let state = replay::call_state(&meta.request_id, left);
    Some(replay::header(Machines::Others, left / 2, &state))
}

/// Turns an unknown region or instance into one that is not available yet, where Fly Proxy reached no Machine there in time:
/// one may be starting, so that a repeat may succeed.
pub(super) fn came_back(headers: &HeaderMap, report: &mut Report) {
    let is_unknown =
        |problem: &Problem| matches!(problem.code, Code::RegionUnknown | Code::InstanceUnknown);
    if let Some(region) = &report.meta.region
        && replay::was_unreached(headers)
        && report.result.as_ref().is_err_and(is_unknown)
    {
        let detail = format!(
            "region \"{region}\": Fly Proxy could not reach a Machine there within {} ms; it may be starting",
            replay::time_lost(headers).as_millis()
        );
        report.result = Err(Problem::new(Code::RegionUnavailable, detail));
    }
}
