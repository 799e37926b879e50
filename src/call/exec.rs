//! A call as one instance asks it of another: the object of `POST /rpc/{region}` with what only instances tell each
//! other. Written once by the instance that asks, read once by the one that runs it.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Call, MAX_TIMEOUT, MEMBERS, Timeouts, missing, parsed};
use crate::{
    json::{self, Unknown},
    name::{BootId, IdempotencyKey, InstanceId, KeyOwner, Name, RequestId},
    problem::Problem,
    region::Region,
    trace::{self, TRACEPARENT, TraceParent},
};

/// A call that one instance asks of another, which must be in `region`.
#[derive(Debug)]
pub(crate) struct Exec {
    /// The region that the caller expects the peer to be in.
    pub region: Region,
    /// The call; its timeout is what was left of the deadline when it was sent.
    pub call: Call,
    /// The id of the client's request, where the header of the peer's request does not tell it.
    pub request_id: Option<RequestId>,
    /// When it was sent, in microseconds on the clock of the connection that it came on.
    pub at_us: Option<u64>,
}

const EXEC_MEMBERS: &[&str; MEMBERS.len() + 8] = &[
    MEMBERS[0],
    MEMBERS[1],
    MEMBERS[2],
    MEMBERS[3],
    MEMBERS[4],
    MEMBERS[5],
    "region",
    "idempotency_key",
    "client",
    "boot",
    "request_id",
    TRACEPARENT,
    "at_us",
    "id",
];

impl Exec {
    /// The call in the body of `POST /internal/exec`; members that are not known here are ignored.
    ///
    /// # Errors
    /// As [`Call::from_json`].
    pub(crate) fn from_json(body: &[u8], timeouts: Timeouts) -> Result<Self, Problem> {
        Self::from_line(body, timeouts).1
    }

    /// The call in one line of many, and the line's id where it can be told.
    pub(crate) fn from_line(
        line: &[u8],
        timeouts: Timeouts,
    ) -> (Option<u64>, Result<Self, Problem>) {
        let members = match json::members(line, EXEC_MEMBERS, Unknown::Ignored) {
            Ok(members) => members,
            Err(bad) => return (None, Err(bad.into())),
        };
        let id = members[EXEC_MEMBERS.len() - 1].and_then(|id| id.get().parse().ok());
        (id, Self::from_members(members, timeouts))
    }

    fn from_members(
        members: [Option<&RawValue>; EXEC_MEMBERS.len()],
        timeouts: Timeouts,
    ) -> Result<Self, Problem> {
        let [
            call @ ..,
            region,
            key,
            client,
            boot,
            request_id,
            trace,
            at_us,
            _,
        ] = members;
        // The caller's own limit was applied where the call came in, and may be another than ours.
        let timeouts = Timeouts {
            max: MAX_TIMEOUT,
            ..timeouts
        };
        let region = region.ok_or_else(|| missing("region"))?;
        Ok(Self {
            region: parsed("region", region, Region::RULE)?,
            call: Call {
                key: key
                    .map(|raw| parsed("idempotency_key", raw, IdempotencyKey::RULE))
                    .transpose()?,
                key_owner: client
                    .map(|raw| parsed("client", raw, KeyOwner::RULE))
                    .transpose()?,
                boot: boot
                    .map(|raw| parsed("boot", raw, BootId::RULE))
                    .transpose()?,
                // One that cannot be read is left out, as the specification asks.
                trace: trace.and_then(|raw| serde_json::from_str(raw.get()).ok()),
                ..Call::from_members(call, timeouts)?
            },
            request_id: request_id
                .map(|raw| parsed("request_id", raw, RequestId::RULE))
                .transpose()?,
            at_us: at_us.and_then(|at| at.get().parse().ok()),
        })
    }

    /// What asks a peer in `region` for `call`: the object without its opening brace, so that what is known only when
    /// it leaves can be put in front. One line: a raw newline in JSON can only be white space.
    pub(crate) fn tail(region: &Region, call: &Call, request_id: &RequestId) -> Vec<u8> {
        #[derive(Serialize)]
        struct Tail<'a> {
            region: &'a Region,
            module: &'a Name,
            function: &'a Name,
            args: &'a RawValue,
            idempotent: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            instance: Option<&'a InstanceId>,
            #[serde(skip_serializing_if = "Option::is_none")]
            idempotency_key: Option<&'a IdempotencyKey>,
            #[serde(skip_serializing_if = "Option::is_none")]
            client: Option<&'a KeyOwner>,
            #[serde(skip_serializing_if = "Option::is_none")]
            boot: Option<&'a BootId>,
            request_id: &'a RequestId,
            #[serde(skip_serializing_if = "Option::is_none")]
            traceparent: Option<TraceParent>,
        }
        let mut tail = json::to_vec(&Tail {
            region,
            module: &call.name.module,
            function: &call.name.function,
            args: call.args.raw(),
            idempotent: call.idempotent,
            instance: call.instance.as_ref(),
            idempotency_key: call.key.as_ref(),
            client: call.key.as_ref().and(call.key_owner.as_ref()),
            boot: call.boot.as_ref(),
            request_id,
            traceparent: trace::current().or(call.trace),
        });
        json::join_lines(&mut tail);
        tail.remove(0);
        tail
    }
}
