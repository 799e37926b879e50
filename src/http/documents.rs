//! What clients send and read at the public routes, as the OpenAPI document has it: a call and its headers, its answers, the
//! cluster, its functions, where calls for a region would run, what came of a fan-out. The command line reads some too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::openapi::entry_problem;
use crate::{
    app::AppHealth,
    declaration::Declaration,
    name::{ConsistencyToken, InstanceId, Name, RequestId},
    protocol::{CatalogueHash, PeerState},
    region::Region,
    reply::{Meta, ProblemDocument},
};

/// A call: which function, with which arguments, for how long.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CallRequest)]
pub(super) struct CallDocument {
    /// The function's module.
    #[schema(pattern = r"^[!-~]{1,128}$", example = "String")]
    module: String,
    /// The function.
    #[schema(pattern = r"^[!-~]{1,128}$", example = "upcase")]
    function: String,
    /// Its arguments, any JSON values, passed on exactly as received. Where the function declares its parameters, an object by
    /// their names is taken too.
    #[schema(value_type = Vec<Value>, required = false, max_items = 256, example = json!(["fly"]))]
    args: Option<Vec<Box<RawValue>>>,
    /// How long to wait, in milliseconds; at most what `RPC_MAX_TIMEOUT` allows, 60000 where it is not set. 5000 where
    /// neither this nor `RPC_DEFAULT_TIMEOUT` says otherwise.
    #[schema(value_type = u64, required = false, minimum = 1, maximum = 86_400_000, example = 5000)]
    timeout_ms: Option<u64>,
    /// Whether the function may run twice: allows another attempt after one that may have run. False when it is not
    /// given.
    // No `default`: openapi-typescript takes a member that has one for required.
    #[schema(value_type = bool, required = false, example = false)]
    idempotent: Option<bool>,
    /// Only on this instance of the region.
    #[schema(value_type = String, required = false, pattern = r"^[A-Za-z0-9._\-]{1,128}$", example = "148e21dad76789")]
    instance: Option<String>,
}

/// What any call may say in headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the document is made of it")]
pub(super) struct CallHeaders {
    /// Makes a repeat of this call the same call of the same client: within ten minutes it is not run again by the instance
    /// that ran it, and gets the outcome of the first, marked by the header idempotency-replayed. The same key with another
    /// function or other values as arguments is refused. 1 to 128 visible ASCII characters; may stand in quotes, which do
    /// not count. The memory is that of one process: it does not outlive a restart, and a change of the region's instances
    /// moves keys
    #[param(
        rename = "Idempotency-Key",
        pattern = "^(\"[!-~]{1,128}\"|[!#-~][!-~]{0,127})$"
    )]
    idempotency_key: Option<String>,
    /// A consistency token, as an earlier answer gave it in `rpc-consistency`: the function reads data that has seen it, or
    /// says that it did not run, and the next instance, or region of the list, is asked. Only the app knows what it means.
    /// 1 to 256 visible ASCII characters
    #[param(rename = "rpc-after", pattern = "^[!-~]{1,256}$")]
    after: Option<String>,
    /// How the call gets to another region: `proxy` forwards it; `replay` answers 409 with the header `fly-replay`, on which
    /// Fly Proxy replays it there; `auto` is `replay` behind Fly Proxy, else `proxy`. What `RPC_ROUTE` says when it is not
    /// given
    #[param(rename = "rpc-route", pattern = "^(proxy|replay|auto)$")]
    route: Option<String>,
    /// `respond-async` (RFC 7240): the answer is 202 as soon as the call is admitted, and the instance sees the call through
    /// by itself. With an idempotency key, the same call sent later without this header waits for its outcome, or gets it
    #[param(rename = "prefer")]
    prefer: Option<String>,
    /// Kept when it is 1 to 128 letters, digits, `.`, `_` and `-`, else replaced; in the answer, and in the logs of every instance it met
    #[param(rename = "x-request-id")]
    request_id: Option<String>,
    /// The trace that the call is part of (W3C Trace Context); passed on to the instance that runs it
    #[param(rename = "traceparent")]
    trace: Option<String>,
}

/// What a call whose body is its arguments says in headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the document is made of it")]
pub(super) struct OptionHeaders {
    /// How long to wait, in milliseconds; at most what `RPC_MAX_TIMEOUT` allows, 60000 where it is not set. What the function
    /// declares, else 5000 or `RPC_DEFAULT_TIMEOUT`, when it is not given
    #[param(rename = "rpc-timeout-ms", minimum = 1, maximum = 86_400_000)]
    timeout: Option<u64>,
    /// Whether the function may run twice: allows another attempt after one that may have run. What the function declares,
    /// else false, when it is not given
    #[param(rename = "rpc-idempotent")]
    idempotent: Option<bool>,
    /// Only on this instance of the region
    #[param(rename = "rpc-instance", pattern = r"^[A-Za-z0-9._\-]{1,128}$")]
    instance: Option<String>,
}

/// The cluster as this instance knows it.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Cluster)]
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
    /// The state of discovery.
    pub discovery: DiscoveryDocument,
}

/// One region and its instances.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = RegionEntry)]
pub(crate) struct RegionDocument {
    /// The region.
    #[schema(value_type = String, example = "syd")]
    pub region: Region,
    /// Its instances, sorted by id.
    pub instances: Vec<InstanceDocument>,
}

/// One instance.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = InstanceEntry)]
pub(crate) struct InstanceDocument {
    /// Its id.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: InstanceId,
    /// Where it answers its peers.
    #[schema(value_type = String, example = "[fdaa:0:18:a7b:7d:f066:b83b:2]:8080")]
    pub address: SocketAddr,
    /// Whether it takes calls.
    pub state: PeerState,
    /// Whether it is the instance that answers.
    pub local: bool,
    /// Its release; null when it has none.
    #[schema(required, example = "registry.fly.io/shop:deployment-01J9")]
    pub release: Option<String>,
    /// Milliseconds that a few bytes to it and its answer take, smoothed over probes and the connection of calls; null
    /// for the instance that answers.
    #[schema(required, example = 81.4)]
    pub rtt_ms: Option<f64>,
    /// Milliseconds since it last answered; null for the instance that answers.
    #[schema(required, example = 1204.0)]
    pub last_seen_ms: Option<f64>,
    /// How many functions it offers; null as long as its list was not read.
    #[schema(required, example = 17)]
    pub functions: Option<usize>,
    /// The hash of its functions and of what they declare, as `GET /functions` has it: equal hashes, equal functions.
    #[schema(value_type = Option<String>, required, example = "5d41402abc4b2a76b9719d911017c592")]
    pub catalogue: Option<CatalogueHash>,
    /// How the app beside it is; left out without one, and of an instance that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = AppHealth, required = false)]
    pub app: Option<AppHealth>,
}

/// Where calls for a region, or a list of regions, would run, and why.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Explanation)]
pub(crate) struct ExplanationDocument {
    /// The region of the first attempt.
    #[schema(value_type = String, example = "syd")]
    pub region: Region,
    /// The regions that the path stands for, those of `any` by their distance: why the first attempt goes to one of them.
    pub choices: Vec<ChoiceDocument>,
    /// The function that was asked about; null for any.
    #[schema(required, example = "String.upcase")]
    pub function: Option<String>,
    /// The policy of a call of that function which says nothing of its own; left out for any function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = PolicyDocument, required = false)]
    pub policy: Option<PolicyDocument>,
    /// The instances of the region of the first attempt, sorted by id and address.
    pub candidates: Vec<CandidateDocument>,
    /// Addresses that discovery knows and at which no peer was found, of whichever region they may be.
    pub unplaced: Vec<UnplacedDocument>,
    /// The state of discovery.
    pub discovery: DiscoveryDocument,
}

/// What holds for a call of a function that does not say otherwise, and where it comes from: from the function, as an
/// instance declares it, or from the instance that was asked.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Policy)]
pub(crate) struct PolicyDocument {
    /// How long the call may take, in milliseconds.
    #[schema(example = 2000)]
    pub timeout_ms: u64,
    /// Where that comes from.
    pub timeout_from: PolicySource,
    /// Whether it may run twice.
    pub idempotent: bool,
    /// Where that comes from.
    pub idempotent_from: PolicySource,
    /// Calls of the function that run on one instance at once; null for no limit of its own.
    #[schema(required, example = 8)]
    pub concurrency: Option<usize>,
}

/// Where a part of a policy comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicySource {
    /// The function declares it.
    Function,
    /// The instance that was asked has it from its settings, or from how it was built.
    Setting,
}

/// One region that a call may run in, and whether its first attempt goes there.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = RegionChoice)]
pub(crate) struct ChoiceDocument {
    /// The place in the path's list of what stands for it, from 1.
    #[schema(example = 1)]
    pub item: usize,
    /// What stands for it: its name, `primary` or `any`.
    #[schema(example = "any")]
    pub target: String,
    /// The region.
    #[schema(value_type = String, example = "syd")]
    pub region: Region,
    /// Milliseconds that a few bytes to its nearest ready instance and their answer take; null for the own region, and
    /// where no instance is ready.
    #[schema(required, example = 81.4)]
    pub rtt_ms: Option<f64>,
    /// Whether the first attempt goes there.
    pub chosen: bool,
    /// Why, or why not.
    #[schema(example = "a ready instance may have the function")]
    pub reason: String,
}

/// One instance of a region, and whether a call would go to it.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Candidate)]
pub(crate) struct CandidateDocument {
    /// Its id.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: InstanceId,
    /// Where it answers its peers.
    #[schema(value_type = String, example = "[fdaa:0:18:a7b:7d:f066:b83b:2]:8080")]
    pub address: SocketAddr,
    /// Whether it takes calls.
    pub state: PeerState,
    /// Whether it is the instance that answers.
    pub local: bool,
    /// Whether the first attempt of a call without a key may go to it: the less busy of two at random of those that may.
    pub chosen: bool,
    /// Why, or why not.
    #[schema(example = "ready")]
    pub reason: String,
    /// How the app beside it is; left out without one, and of an instance that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = AppHealth, required = false)]
    pub app: Option<AppHealth>,
    /// Whether it is in the last whole DNS answer; null for the instance that answers.
    #[schema(required, example = true)]
    pub listed: Option<bool>,
    /// Milliseconds since its last probe ended; null for the instance that answers.
    #[schema(required, example = 1204.0)]
    pub last_probe_ms: Option<f64>,
    /// Why its last probe failed; null when it did not.
    #[schema(required)]
    pub last_probe_error: Option<String>,
}

/// An address at which no peer was found.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Unplaced)]
pub(crate) struct UnplacedDocument {
    /// The address.
    #[schema(value_type = String, example = "[fdaa:0:18:a7b:7d:f066:b83b:9]:8080")]
    pub address: SocketAddr,
    /// Milliseconds since its last probe ended; null before the first one.
    #[schema(required, example = 1204.0)]
    pub last_probe_ms: Option<f64>,
    /// Why its last probe found no peer; null before the first one.
    #[schema(required, example = "it answered with 404 Not Found")]
    pub last_probe_error: Option<String>,
}

/// The state of discovery.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Discovery)]
pub(crate) struct DiscoveryDocument {
    /// What it resolves; null for a cluster of one.
    #[schema(required, example = "shop.internal")]
    pub source: Option<String>,
    /// Milliseconds since DNS last gave a whole answer; null when it never did.
    #[schema(required, example = 1204.0)]
    pub last_success_ms: Option<f64>,
    /// Whether the last queries failed, so that the peers are those found before.
    pub stale: bool,
    /// Why they failed; null when they did not.
    #[schema(required)]
    pub last_error: Option<String>,
    /// What else is wrong: addresses that are left out, instances of which there are two.
    #[schema(example = json!([]))]
    pub warnings: Vec<String>,
    /// Rounds that were finished.
    pub rounds: u64,
}

/// The functions of this instance.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = FunctionList)]
pub(crate) struct FunctionsDocument {
    /// A hash of what peers read, functions that the client may not call included: equal for equal sets of functions that
    /// declare the same.
    #[schema(value_type = String, example = "5d41402abc4b2a76b9719d911017c592")]
    pub catalogue: CatalogueHash,
    /// The functions of each module that can be called now.
    #[schema(value_type = BTreeMap<String, Vec<String>>, example = json!({"String": ["upcase"]}))]
    pub functions: BTreeMap<Name, BTreeSet<Name>>,
    /// What functions declare, by `Module.function`; those that declare nothing are not in it.
    #[schema(example = json!({"Notes.create": {"timeout_ms": 2000}}))]
    pub details: BTreeMap<String, Declaration>,
    /// The app beside this instance; null without one.
    #[schema(value_type = AppDocument, required)]
    pub app: Option<AppDocument>,
}

/// The app beside an instance.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(
    as = AppStatus,
    description = "The app beside an instance, whose functions it offers; null without one."
)]
pub(crate) struct AppDocument {
    /// Where it serves its functions.
    #[schema(example = "http://127.0.0.1:3000/rpc")]
    pub url: String,
    /// How it is.
    pub state: AppHealth,
    /// Why it is not up; null when it is.
    #[schema(required, example = "no list within 1s")]
    pub reason: Option<String>,
}

/// What came of the call on one instance: a result, which may be null, or a problem.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = FanOutEntry)]
pub(crate) struct EntryDocument {
    /// Its region.
    #[schema(value_type = String, example = "syd")]
    pub region: Region,
    /// The instance; null where none was found in the region.
    #[schema(value_type = Option<String>, required, example = "syd-1")]
    pub instance: Option<InstanceId>,
    /// What the function returned, any JSON value; null where there is a problem.
    #[schema(value_type = Value, required, example = 3)]
    pub result: Option<Box<RawValue>>,
    /// Why there is no result; null where there is one.
    #[schema(schema_with = entry_problem, required)]
    pub problem: Option<ProblemDocument>,
    /// True on the result of an earlier call with the same idempotency key; else left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false, example = true)]
    pub replayed: bool,
    /// What the function said of its data with its result; left out where it said nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "0/3000148")]
    pub consistency: Option<ConsistencyToken>,
}

/// What came of a fan-out.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = FanOutMeta)]
pub(crate) struct FanOutMeta {
    /// How many were asked; each has an entry.
    #[schema(example = 2)]
    pub asked: usize,
    /// How many have a result.
    #[schema(example = 2)]
    pub succeeded: usize,
    /// Milliseconds from the request's arrival to this answer, to the microsecond.
    #[schema(example = 83.1)]
    pub elapsed_ms: f64,
    /// The request's id, in the header `x-request-id` and in the logs of every instance that was asked.
    #[schema(value_type = String, example = "01J9ZK3V6T8Q4W2XB5N7RCM1DE")]
    pub request_id: RequestId,
}

/// The answer to a fan-out.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = FanOutReply)]
pub(crate) struct FanOutReply {
    /// What came of each call, sorted by region and instance.
    pub results: Vec<EntryDocument>,
    /// How many there are, and what it took.
    pub meta: FanOutMeta,
}

/// The answer to a call that was admitted and goes on.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Accepted {
    /// What is known so far: no instance, and the request's id, under which the log has the end of the call.
    pub meta: Meta,
}
