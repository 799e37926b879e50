//! `GET /regions/{region}/explain`: where calls for a region, or a list of regions, would run, and why; what discovery knows
//! of each address. The choice itself is made by `dispatch`: this explains it in words.

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::Result,
};

use super::{
    DispatcherState, auth,
    cluster::{discovery, peer, this_instance, whole_milliseconds},
    documents::{
        CandidateDocument, ChoiceDocument, ExplanationDocument, InstanceDocument, PolicyDocument,
        PolicySource, UnplacedDocument,
    },
    request::InPath,
    response::{Json, Refusal},
};
use crate::{
    access::Caller,
    call::Timeouts,
    cluster::{KnownAddress, KnownPeer, Overview},
    deadline::whole_ms,
    declaration::Policy,
    dispatch::{Choice, Dispatcher, Needs, Standing},
    name::FunctionName,
    problem::{Code, Problem},
    protocol::PeerState,
    region::{Region, Targets},
    reply::milliseconds,
};

/// Why no peer is chosen in the region of the instance that answers.
const RUNS_HERE: &str = "a call for the own region runs on the instance that it reaches";

/// Explain where calls for a region would run
///
/// Of a list of regions, which one the first attempt goes to and why. For each instance of that region, whether a call would go to it and why, its last probe and what was wrong with it; the
/// addresses at which no peer was found; and the state of discovery. A function that the client may not call is refused.
#[utoipa::path(
    get,
    path = "/regions/{region}/explain",
    operation_id = "explainRegion",
    tag = "cluster",
    params(
        (
            "region" = String,
            Path,
            description = "A region such as `syd`, `primary`, `any`, or a list of up to three of these",
            pattern = r"^[a-z0-9][a-z0-9\-]{0,31}(,[a-z0-9][a-z0-9\-]{0,31}){0,2}$",
            example = "syd"
        ),
        (
            "function" = Option<String>,
            Query,
            description = "A function, `Module.function`, that not every instance may have",
            pattern = r"^[!-~]{1,128}\.[!-\-\/-~]{1,128}$",
            example = "String.upcase"
        ),
    ),
    responses((status = 200, description = "The explanation", body = ExplanationDocument)),
    security(("client_token" = []), ())
)]
pub(super) async fn explain_region(
    State(dispatcher): DispatcherState,
    Extension(caller): Extension<Caller>,
    InPath(mut targets): InPath<Targets>,
    RawQuery(query): RawQuery,
) -> Result<Json<ExplanationDocument>> {
    targets.within = caller.regions().map(<[_]>::to_vec);
    let refuse = |problem| Refusal::new(problem, targets.first(&dispatcher.local.identity.primary));
    let function = asked_function(query.as_deref()).map_err(refuse)?;
    if let Some(name) = &function {
        auth::check_function(&caller, name).map_err(refuse)?;
    }
    let needs = Needs {
        function: function.as_ref(),
        instance: None,
    };
    let choices = dispatcher.choices(&targets, needs);
    // Without a limit to some regions, there is always one.
    let region = dispatcher.first_of(&choices).ok_or_else(|| {
        let what = function
            .as_ref()
            .map_or("an instance".to_owned(), ToString::to_string);
        let detail = format!("no region that this client may call has {what}");
        refuse(Problem::new(Code::FunctionUnknown, detail))
    })?;
    is_known(&dispatcher, &region).map_err(refuse)?;
    let overview = dispatcher.cluster.overview().await;
    let candidates = candidates(&dispatcher, &overview, &region, function.as_ref());
    let function_policy = function
        .as_ref()
        .map(|name| policy(&dispatcher, &targets, name));
    Ok(Json(ExplanationDocument {
        choices: explained(&choices, &targets, &region),
        function: function.map(|function| function.to_string()),
        policy: function_policy,
        candidates,
        unplaced: overview.addresses.iter().filter_map(unplaced).collect(),
        discovery: discovery(&dispatcher, &overview),
        region,
    }))
}

/// The policy of a call of `name` that says nothing itself.
fn policy(dispatcher: &Dispatcher, targets: &Targets, name: &FunctionName) -> PolicyDocument {
    let Timeouts { default, max } = dispatcher.local.timeouts;
    let (policy, concurrency) = dispatcher.policy(targets, name).unwrap_or_default();
    let Policy {
        timeout,
        idempotent,
    } = policy;
    let from = |is_declared| match is_declared {
        true => PolicySource::Function,
        false => PolicySource::Setting,
    };
    let holds = timeout.map_or(default, |timeout| timeout.min(max));
    PolicyDocument {
        timeout_ms: whole_ms(holds),
        timeout_from: from(timeout.is_some()),
        idempotent: idempotent.unwrap_or(false),
        idempotent_from: from(idempotent.is_some()),
        concurrency,
    }
}

/// Refuses a region that no instance was ever seen in, unless discovery has not finished: the explanation says so.
fn is_known(dispatcher: &Dispatcher, region: &Region) -> Result<(), Problem> {
    match dispatcher.peers(region) {
        Err(problem)
            if *region != dispatcher.local.identity.region
                && problem.code == Code::RegionUnknown =>
        {
            Err(problem)
        }
        _ => Ok(()),
    }
}

/// The function that the query names, if it names one.
fn asked_function(query: Option<&str>) -> Result<Option<FunctionName>, Problem> {
    let wrong = || {
        let detail = "query parameter \"function\" must be Module.function, given once";
        Problem::new(Code::InvalidRequest, detail)
    };
    let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut asked = parameters.filter(|(name, _)| name == "function");
    let text = match (asked.next(), asked.next()) {
        (None, _) => return Ok(None),
        (Some((_, text)), None) => text,
        (Some(_), Some(_)) => return Err(wrong()),
    };
    FunctionName::of(&text).map(Some).ok_or_else(wrong)
}

/// Why the first attempt goes to `chosen`, and not to the others.
fn explained(choices: &[Choice], targets: &Targets, chosen: &Region) -> Vec<ChoiceDocument> {
    let mut is_chosen_before = false;
    let explained = choices.iter().map(|choice| {
        let is_chosen = choice.region == *chosen && !is_chosen_before;
        is_chosen_before |= is_chosen;
        let reason = match choice.standing {
            Standing::Serving if is_chosen => "a ready instance may have the function",
            Standing::Serving => "tried where nothing ran in those before",
            Standing::Doubtful => "the instances that may have the function are suspect or draining, so this region is tried last",
            Standing::Without if choice.is_any => "no instance that may have the function is known",
            Standing::Without => "no instance that may have the function is known, so this region is tried last",
        };
        ChoiceDocument {
            item: choice.item + 1,
            target: targets.items[choice.item].to_string(),
            region: choice.region.clone(),
            rtt_ms: choice.distance.map(milliseconds),
            chosen: is_chosen,
            reason: reason.to_owned(),
        }
    });
    explained.collect()
}

/// Whether a call may go to each of `peers`, and why.
fn verdicts(
    peers: &[&KnownPeer],
    function: Option<&FunctionName>,
) -> impl Fn(&KnownPeer) -> (bool, String) {
    let has_it = |known: &&KnownPeer| function.is_none_or(|name| known.peer.may_have(name));
    let is_ready = |known: &&KnownPeer| known.state() == PeerState::Ready;
    let any = |holds: &dyn Fn(&&KnownPeer) -> bool| peers.iter().any(holds);
    let (one_is_ready, one_has_it) = (any(&is_ready), any(&has_it));
    let an_app_is_out = any(&|known| is_ready(known) && known.peer.app_is_out());
    let a_ready_one_has_it = any(&|known| is_ready(known) && has_it(known));
    move |known| {
        let state = known.state();
        let is_ready = state == PeerState::Ready;
        // The app beside it, if that is not up: it may have functions that are not listed now.
        let app = known.peer.app_state.filter(|_| known.peer.app_is_out());
        match function {
            Some(name) if !one_has_it && (is_ready || !one_is_ready) => {
                let none = format!("{state}; no instance has {name}");
                match app {
                    Some(app) => (
                        true,
                        format!("{none}, and its app, which is {app}, may have it"),
                    ),
                    None if an_app_is_out => (false, none + ": those whose app is out are asked"),
                    None => (true, none + ": any of them is asked"),
                }
            }
            Some(name) if !known.peer.may_have(name) => {
                let app = app.map_or(String::new(), |app| format!("; its app is {app}"));
                (false, format!("it has no function {name}{app}"))
            }
            _ if is_ready => (true, "ready".to_owned()),
            _ if a_ready_one_has_it => (
                false,
                format!("{state}: used only when no ready one is left"),
            ),
            _ => (true, format!("{state}, and no ready one is left")),
        }
    }
}

fn candidates(
    dispatcher: &Dispatcher,
    overview: &Overview,
    region: &Region,
    function: Option<&FunctionName>,
) -> Vec<CandidateDocument> {
    let is_own = *region == dispatcher.local.identity.region;
    let has_it = function.is_none_or(|name| dispatcher.executor.catalogue().has(name));
    let known = overview.addresses.iter();
    let known = known.filter_map(|seen| Some((seen, seen.peer.as_ref()?)));
    let (seen, peers): (Vec<_>, Vec<_>) = known
        .filter(|(_, known)| known.peer.region == *region)
        .unzip();
    let siblings = dispatcher.cluster.region(region).unwrap_or_default();
    let may_know = |name: &FunctionName| siblings.may_know(name);
    // A call for the own region goes on to a sibling only where that may have the function and this instance has not.
    let is_here = is_own && (has_it || !function.is_some_and(may_know));
    let verdict = verdicts(&peers, function);
    let candidates = peers.iter().zip(seen).map(|(known, seen)| {
        let verdict = match is_here {
            true => (false, RUNS_HERE.to_owned()),
            false => verdict(known),
        };
        candidate(peer(known), verdict, Some(seen))
    });
    let mut candidates: Vec<_> = candidates.collect();
    if is_own {
        let reason = why_here(dispatcher, function.filter(|_| !has_it), is_here);
        candidates.push(candidate(
            this_instance(dispatcher),
            (is_here, reason),
            None,
        ));
    }
    candidates.sort_by(|a, b| (&a.instance, a.address).cmp(&(&b.instance, b.address)));
    candidates
}

fn candidate(
    instance: InstanceDocument,
    (chosen, reason): (bool, String),
    seen: Option<&KnownAddress>,
) -> CandidateDocument {
    CandidateDocument {
        instance: instance.instance,
        address: instance.address,
        state: instance.state,
        local: instance.local,
        chosen,
        reason,
        app: instance.app,
        listed: seen.map(|seen| seen.listed),
        last_probe_ms: seen.and_then(last_probe_ms),
        last_probe_error: seen.and_then(last_probe_error),
    }
}

/// Why a call runs on this instance, or does not because the function is `missing`.
fn why_here(dispatcher: &Dispatcher, missing: Option<&FunctionName>, is_here: bool) -> String {
    let Some(name) = missing else {
        return RUNS_HERE.to_owned();
    };
    let instance = &dispatcher.local.identity.instance;
    let why = match dispatcher.executor.app() {
        Some(beside) => beside.status().missing(name, instance).detail,
        None => Problem::no_function(name, instance).detail,
    };
    match is_here {
        true => format!("{RUNS_HERE}: {why}"),
        false => format!("{why}; a call goes on to an instance that has it"),
    }
}

fn unplaced(seen: &KnownAddress) -> Option<UnplacedDocument> {
    seen.peer.is_none().then(|| UnplacedDocument {
        address: seen.address,
        last_probe_ms: last_probe_ms(seen),
        last_probe_error: last_probe_error(seen),
    })
}

fn last_probe_error(seen: &KnownAddress) -> Option<String> {
    seen.probe_error.as_ref().map(ToString::to_string)
}

fn last_probe_ms(seen: &KnownAddress) -> Option<f64> {
    let ended = seen.last_probe?;
    Some(whole_milliseconds(ended.elapsed()))
}
