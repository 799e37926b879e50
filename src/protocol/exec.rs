//! A call as one instance sends it to another: the object of `POST /rpc/{region}` with the members that only instances
//! send. Written once by the instance that asks, read once by the one that runs it.

use std::time::Duration;

use serde_json::value::RawValue;

use super::lines::{self, CallLine, ID, PlainLine, id_of};
use crate::{
    call::{Args, Call, MAX_TIMEOUT, MEMBERS, Timeouts, missing, optional, parsed},
    declaration::Policy,
    json::{self, Unknown},
    name::{
        BootId, ConsistencyToken, FunctionName, IdempotencyKey, InstanceId, KeyOwner, RequestId,
    },
    problem::Problem,
    region::Region,
    trace::{self, TRACEPARENT},
};

/// A call for an instance in `region`.
#[derive(Debug)]
pub(crate) struct Exec {
    /// The region in which the sender expects the instance that runs it.
    pub region: Region,
    /// The call; its timeout is what was left of the deadline when it was sent.
    pub call: Call,
    /// The id of the client's request; `None` where a header of the request carries it.
    pub request_id: Option<RequestId>,
    /// When it was sent, in microseconds on the clock of the connection that it came on.
    pub at_us: Option<u64>,
}

const EXEC_MEMBERS: &[&str; MEMBERS.len() + 9] = &[
    // First those of a call, which `Call::from_members` takes as they stand here.
    MEMBERS[0],
    MEMBERS[1],
    MEMBERS[2],
    MEMBERS[3],
    MEMBERS[4],
    MEMBERS[5],
    "region",
    "idempotency_key",
    "client",
    "after",
    "boot",
    "request_id",
    TRACEPARENT,
    "at_us",
    "id",
];

impl Exec {
    /// The call in the body of `POST /internal/exec`; unknown members are ignored.
    pub(crate) fn from_json(body: &[u8], timeouts: Timeouts) -> Result<Box<Self>, Problem> {
        Self::from_line(body, timeouts).1
    }

    /// The call in one of many lines, in a box, because it is passed on several times; and the line's id, if it has one.
    pub(crate) fn from_line(
        line: &[u8],
        timeouts: Timeouts,
    ) -> (Option<u64>, Result<Box<Self>, Problem>) {
        if let Some((id, exec)) = Self::plain(line) {
            return (Some(id), Ok(exec));
        }
        let members = match json::members(line, EXEC_MEMBERS, Unknown::Ignored) {
            Ok(members) => members,
            Err(problem) => return (id_of(line), Err(problem)),
        };
        let id = members[EXEC_MEMBERS.len() - 1].and_then(|id| id.get().parse().ok());
        (id, Self::from_members(members, timeouts).map(Box::new))
    }

    /// The id and the call of a line with exactly the members that most lines have, as [`begin_call`](lines::begin_call)
    /// and [`Exec::line`] write them.
    fn plain(line: &[u8]) -> Option<(u64, Box<Self>)> {
        let mut line = PlainLine(line);
        let id = line.number(ID)?;
        let timeout = Duration::from_millis(line.number(b",\"timeout_ms\":")?);
        let at_us = line.number(b",\"at_us\":")?;
        let region = line.word(b",\"region\":\"")?;
        let name = FunctionName {
            module: line.word(b",\"module\":\"")?,
            function: line.word(b",\"function\":\"")?,
        };
        let request_id = line.word(b",\"request_id\":\"")?;
        let args = Args::from_raw(json::value(line.last(b",\"args\":")?).ok()?)?;
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return None;
        }
        let said = Policy {
            timeout: Some(timeout),
            idempotent: None,
        };
        let exec = Self {
            region,
            call: Call::new(name, args, said, timeout),
            request_id: Some(request_id),
            at_us: Some(at_us),
        };
        Some((id, Box::new(exec)))
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
            after,
            boot,
            request_id,
            trace,
            at_us,
            _,
        ] = members;
        // The sender has applied its own maximum, which may be larger than that of this instance.
        let timeouts = Timeouts {
            max: MAX_TIMEOUT,
            ..timeouts
        };
        let region = region.ok_or_else(|| missing("region"))?;
        Ok(Self {
            region: parsed("region", region, Region::RULE)?,
            call: Call {
                key: optional("idempotency_key", key, IdempotencyKey::RULE)?,
                key_owner: optional("client", client, KeyOwner::RULE)?,
                after: optional("after", after, ConsistencyToken::RULE)?,
                boot: optional("boot", boot, BootId::RULE)?,
                // An invalid one is ignored, as the specification of Trace Context demands.
                trace: trace.and_then(|raw| json::text(raw)?.parse().ok()),
                ..Call::from_members(call, timeouts)?
            },
            request_id: optional("request_id", request_id, RequestId::RULE)?,
            at_us: at_us.and_then(|at| at.get().parse().ok()),
        })
    }

    /// The line that asks an instance in `region` for `call`. Its arguments are not copied, unless there are line breaks in
    /// them, which in JSON can only be white space.
    pub(crate) fn line<'a>(
        region: &Region,
        call: &'a Call,
        request_id: &RequestId,
    ) -> CallLine<'a> {
        let mut members = Vec::with_capacity(256);
        let mut put = |member, word| lines::put(&mut members, member, word);
        put("region", region.as_str());
        put("module", call.name.module.as_str());
        put("function", call.name.function.as_str());
        put("request_id", request_id.as_str());
        let key = call.key.as_ref();
        // The owner of the key; a call without a key does not name its client.
        let owner = key.and(call.key_owner.as_ref());
        let some_have = [
            ("instance", call.instance.as_ref().map(InstanceId::as_str)),
            ("idempotency_key", key.map(IdempotencyKey::as_str)),
            ("client", owner.map(KeyOwner::as_str)),
            ("after", call.after.as_ref().map(ConsistencyToken::as_str)),
            ("boot", call.boot.as_ref().map(BootId::as_str)),
        ];
        for (member, word) in some_have {
            word.into_iter().for_each(|word| put(member, word));
        }
        if let Some(parent) = trace::current().or(call.trace) {
            put(TRACEPARENT, &parent.to_string());
        }
        if call.idempotent {
            members.extend_from_slice(b",\"idempotent\":true");
        }
        CallLine {
            members,
            args: json::in_one_line(call.args.raw().get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lines::begin_call, *};

    const TIMEOUTS: Timeouts = Timeouts {
        default: Duration::from_secs(5),
        max: Duration::from_secs(60),
    };

    /// The line that asks an instance in `syd` for `call`.
    fn line_of(call: &Call) -> String {
        let (region, id) = ("syd".parse().unwrap(), "r".parse().unwrap());
        let line = Exec::line(&region, call, &id);
        let mut text = Vec::new();
        begin_call(&mut text, 9, 7, 5, &line);
        text.extend_from_slice(line.args());
        text.push(b'}');
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_peer_reads_what_a_peer_writes_and_ignores_what_it_does_not_know() {
        let call = Call::from_json(
            br#"{"module":"\"\\","function":"f","args":[1.0,
2],"instance":"i","idempotent":true}"#,
            TIMEOUTS,
        )
        .unwrap();
        let text = line_of(&call);
        assert_eq!(
            text,
            r#"{"id":9,"timeout_ms":7,"at_us":5,"region":"syd","module":"\"\\","function":"f","request_id":"r","instance":"i","idempotent":true,"args":[1.0, 2]}"#
        );
        let later = text.replace("\"f\"", "\"f\",\"later\":1");
        let (id, exec) = Exec::from_line(later.as_bytes(), TIMEOUTS);
        let exec = exec.unwrap();
        assert_eq!(id, Some(9));
        assert_eq!(exec.request_id.unwrap().as_str(), "r");
        assert_eq!(
            (exec.region.as_str(), exec.call.timeout),
            ("syd", Duration::from_millis(7))
        );
        assert_eq!(exec.call.name.to_string(), "\"\\.f");
        assert!(exec.call.idempotent);
        assert_eq!(exec.call.args.raw().get(), "[1.0, 2]");
    }

    #[test]
    fn a_plain_line_is_read_as_any_other_way_to_write_it() {
        let call = Call::from_json(
            br#"{"module":"M","function":"f","args":[1, "a,b"]}"#,
            TIMEOUTS,
        );
        let text = line_of(&call.unwrap());
        let (id, plain) = Exec::plain(text.as_bytes()).unwrap();
        let spaced = text.replace(",\"args\"", ", \"args\"");
        assert!(Exec::plain(spaced.as_bytes()).is_none());
        let (other_id, other) = Exec::from_line(spaced.as_bytes(), TIMEOUTS);
        assert_eq!(
            (Some(id), format!("{plain:?}")),
            (other_id, format!("{:?}", other.unwrap()))
        );
        for (from, to) in [
            (":7,", ":0,"),
            (":7,", ":86400001,"),
            (":7,", ":7.0,"),
            ("syd", "SYD"),
            ("syd", "\\u0073yd"),
            ("\"M\"", "\"M M\""),
            ("\"f\"", "\"f\",\"idempotent\":true"),
            ("]}", "]]}"),
            ("]}", "],\"args\":[2]}"),
            ("]}", "]"),
            ("[1", "\"[1"),
            ("\"a,b\"", "\"\\ud800\""),
        ] {
            let other = text.replace(from, to);
            assert!(Exec::plain(other.as_bytes()).is_none(), "{other}");
        }
    }
}
