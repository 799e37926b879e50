//! A call: what is asked, in JSON and in memory. Owns the rules of its members; whether the function exists and
//! whether its arguments fit is the registry's affair.

use std::time::Duration;

use serde::{
    Deserializer as _, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    json::{self, BadJson, Unknown},
    name::{FunctionName, IdempotencyKey, InstanceId, Name},
    problem::{Code, Problem},
    region::Region,
};

/// The most items that `args` may have.
pub(crate) const MAX_ARGS: usize = 256;

/// The longest that any call may be allowed to take.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

const KEY_RULE: &str = "1 to 128 visible ASCII characters";

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a call that names no timeout.
    pub default: Duration,
    /// The longest that a call may ask for.
    pub max: Duration,
}

/// One request to run a function.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The function.
    pub name: FunctionName,
    /// Its arguments.
    pub args: Args,
    /// How long the caller waits, 1 ms to the configured maximum.
    pub timeout: Duration,
    /// Whether it may run twice: allows another attempt after one that may have run.
    pub idempotent: bool,
    /// Only on this instance of the region.
    pub instance: Option<InstanceId>,
    /// Makes a repeat of this call the same call.
    pub key: Option<IdempotencyKey>,
}

/// The arguments of a call: a JSON array of at most 256 items, kept exactly as received.
#[derive(Clone, Debug)]
pub(crate) struct Args(Box<RawValue>);

/// A call as one instance asks it of another, which must be in `region`.
#[derive(Debug)]
pub(crate) struct Exec {
    /// The region that the caller expects the peer to be in.
    pub region: Region,
    /// The call; its timeout is what was left of the deadline when it was sent.
    pub call: Call,
}

const MEMBERS: &[&str; 6] = &[
    "module",
    "function",
    "args",
    "timeout_ms",
    "idempotent",
    "instance",
];
const EXEC_MEMBERS: &[&str; 8] = &[
    "module",
    "function",
    "args",
    "timeout_ms",
    "idempotent",
    "instance",
    "region",
    "idempotency_key",
];

impl Call {
    /// The same call under the key of the header `Idempotency-Key`, which may stand in quotes.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a key that breaks its rule.
    pub(crate) fn with_key(self, header: &[u8]) -> Result<Self, Problem> {
        let rule = || {
            Problem::new(
                Code::InvalidRequest,
                format!("header idempotency-key must be {KEY_RULE}"),
            )
        };
        let bare = header
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""))
            .unwrap_or(header);
        let text = std::str::from_utf8(bare).map_err(|_| rule())?;
        Ok(Self {
            key: Some(text.parse().map_err(|_| rule())?),
            ..self
        })
    }

    /// The call in the body of `POST /rpc/{region}`.
    ///
    /// # Errors
    /// [`Code::InvalidJson`] for what is not one JSON value; [`Code::InvalidRequest`] for a missing, unknown,
    /// duplicate or wrongly typed member, a bad name or a timeout out of range; the detail names the member.
    pub(crate) fn from_json(body: &[u8], timeouts: Timeouts) -> Result<Self, Problem> {
        let members = json::members(body, MEMBERS, Unknown::Refused)?;
        Self::from_members(members, timeouts)
    }

    fn from_members(members: [Option<&RawValue>; 6], timeouts: Timeouts) -> Result<Self, Problem> {
        let [module, function, args, timeout_ms, idempotent, instance] = members;
        Ok(Self {
            name: FunctionName {
                module: name("module", module)?,
                function: name("function", function)?,
            },
            args: args.map_or_else(|| Ok(Args::default()), Args::from_raw)?,
            timeout: timeout_ms.map_or(Ok(timeouts.default), |raw| timeout(raw, timeouts.max))?,
            idempotent: idempotent
                .map_or(Ok(false), |raw| parsed("idempotent", raw, "true or false"))?,
            instance: instance
                .map(|raw| parsed("instance", raw, "1 to 128 characters of [A-Za-z0-9._-]"))
                .transpose()?,
            key: None,
        })
    }
}

impl Exec {
    /// The call in the body of `POST /internal/exec`; members that are not known here are ignored.
    ///
    /// # Errors
    /// As [`Call::from_json`].
    pub(crate) fn from_json(body: &[u8], timeouts: Timeouts) -> Result<Self, Problem> {
        let members = json::members(body, EXEC_MEMBERS, Unknown::Ignored)?;
        let [
            module,
            function,
            args,
            timeout_ms,
            idempotent,
            instance,
            region,
            key,
        ] = members;
        let region = region.ok_or_else(|| missing("region"))?;
        let members = [module, function, args, timeout_ms, idempotent, instance];
        // The caller's own limit was applied where the call came in, and may be another than ours.
        let timeouts = Timeouts {
            max: MAX_TIMEOUT,
            ..timeouts
        };
        let key = key
            .map(|raw| parsed("idempotency_key", raw, KEY_RULE))
            .transpose()?;
        Ok(Self {
            region: parsed("region", region, "a region")?,
            call: Call {
                key,
                ..Call::from_members(members, timeouts)?
            },
        })
    }

    /// The body that asks a peer in `region` for `call` with `timeout_ms` milliseconds left.
    pub(crate) fn to_json(region: &Region, call: &Call, timeout_ms: u64) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            region: &'a Region,
            module: &'a Name,
            function: &'a Name,
            args: &'a RawValue,
            timeout_ms: u64,
            idempotent: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            instance: Option<&'a InstanceId>,
            #[serde(skip_serializing_if = "Option::is_none")]
            idempotency_key: Option<&'a IdempotencyKey>,
        }
        json::to_vec(&Body {
            region,
            module: &call.name.module,
            function: &call.name.function,
            args: &call.args.0,
            timeout_ms,
            idempotent: call.idempotent,
            instance: call.instance.as_ref(),
            idempotency_key: call.key.as_ref(),
        })
    }
}

impl Args {
    /// The arguments that `values` stand for: a tuple or list gives an argument for each item, `()` none, and
    /// anything else is the only argument.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when `values` has no JSON form or more than 256 items.
    pub(crate) fn from_values(values: &impl Serialize) -> Result<Self, Problem> {
        let text = serde_json::to_string(values).map_err(|error| {
            Problem::new(
                Code::InvalidRequest,
                format!("the arguments have no JSON form: {error}"),
            )
        })?;
        let array = match text.as_bytes().first() {
            Some(b'[') => text,
            _ if text == "null" => "[]".into(),
            _ => format!("[{text}]"),
        };
        let raw = RawValue::from_string(array).map_err(|error| {
            Problem::new(
                Code::InvalidRequest,
                format!("the arguments have no JSON form: {error}"),
            )
        })?;
        Self::from_raw(&raw)
    }

    fn from_raw(raw: &RawValue) -> Result<Self, Problem> {
        let count = serde_json::Deserializer::from_str(raw.get()).deserialize_seq(Counter);
        match count {
            Ok(count) if count <= MAX_ARGS => Ok(Self(raw.to_owned())),
            _ => Err(wrong(
                "args",
                &format!("an array of at most {MAX_ARGS} items"),
            )),
        }
    }

    /// The array itself.
    pub(crate) fn raw(&self) -> &RawValue {
        &self.0
    }
}

impl Default for Args {
    /// No arguments: `[]`.
    fn default() -> Self {
        Self(json::empty_array())
    }
}

/// Counts the items of an array without keeping them.
struct Counter;

impl<'de> Visitor<'de> for Counter {
    type Value = usize;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

fn name(member: &'static str, raw: Option<&RawValue>) -> Result<Name, Problem> {
    let raw = raw.ok_or_else(|| missing(member))?;
    parsed(
        member,
        raw,
        "1 to 128 printable ASCII characters without space",
    )
}

fn timeout(raw: &RawValue, max: Duration) -> Result<Duration, Problem> {
    let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    match serde_json::from_str::<u64>(raw.get()) {
        Ok(ms) if (1..=max_ms).contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(wrong(
            "timeout_ms",
            &format!("an integer from 1 to {max_ms}"),
        )),
    }
}

fn parsed<'a, T: serde::Deserialize<'a>>(
    member: &str,
    raw: &'a RawValue,
    rule: &str,
) -> Result<T, Problem> {
    serde_json::from_str(raw.get()).map_err(|_| wrong(member, rule))
}

fn missing(member: &str) -> Problem {
    Problem::new(
        Code::InvalidRequest,
        format!("member {member:?} is missing"),
    )
}

fn wrong(member: &str, rule: &str) -> Problem {
    Problem::new(
        Code::InvalidRequest,
        format!("member {member:?} must be {rule}"),
    )
}

impl From<BadJson> for Problem {
    fn from(bad: BadJson) -> Self {
        let code = match bad {
            BadJson::Syntax(_) | BadJson::LoneSurrogate | BadJson::TooDeep => Code::InvalidJson,
            BadJson::NotAnObject | BadJson::UnknownMember(_) | BadJson::DuplicateMember(_) => {
                Code::InvalidRequest
            }
        };
        Self::new(code, bad.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        default: Duration::from_secs(5),
        max: Duration::from_secs(60),
    };

    fn refusal(body: &str) -> (Code, String) {
        let problem = Call::from_json(body.as_bytes(), TIMEOUTS).unwrap_err();
        (problem.code, problem.detail)
    }

    #[test]
    fn a_call_needs_only_its_function() {
        let call = Call::from_json(
            br#"{"module":"Fly.RPC","function":"is_primary?"}"#,
            TIMEOUTS,
        )
        .unwrap();
        assert_eq!(call.name.to_string(), "Fly.RPC.is_primary?");
        assert_eq!(
            (call.args.raw().get(), call.timeout, call.idempotent),
            ("[]", TIMEOUTS.default, false)
        );
        assert!(call.instance.is_none());
    }

    #[test]
    fn args_keep_every_digit() {
        let body = br#"{"module":"m","function":"f","args":[18446744073709551617, 1.10, 1e400, {"a":1,"a":2}]}"#;
        let call = Call::from_json(body, TIMEOUTS).unwrap();
        assert_eq!(
            call.args.raw().get(),
            r#"[18446744073709551617, 1.10, 1e400, {"a":1,"a":2}]"#
        );
    }

    #[test]
    fn each_member_is_refused_by_name() {
        let with =
            |member: &str| refusal(&format!(r#"{{"module":"m","function":"f",{member}}}"#)).1;
        assert_eq!(
            refusal(r#"{"function":"f"}"#).1,
            r#"member "module" is missing"#
        );
        assert_eq!(
            refusal(r#"{"module":"m"}"#).1,
            r#"member "function" is missing"#
        );
        let name = "must be 1 to 128 printable ASCII characters without space";
        assert_eq!(
            refusal(r#"{"module":"a b","function":"f"}"#).1,
            format!(r#"member "module" {name}"#)
        );
        assert_eq!(
            refusal(r#"{"module":"m","function":1}"#).1,
            format!(r#"member "function" {name}"#)
        );
        assert_eq!(
            with(r#""args":{}"#),
            r#"member "args" must be an array of at most 256 items"#
        );
        assert_eq!(
            with(r#""args":null"#),
            r#"member "args" must be an array of at most 256 items"#
        );
        for timeout in ["0", "-1", "60001", "1.5", "1e3", "\"5s\"", "null", "1e12"] {
            let detail = with(&format!(r#""timeout_ms":{timeout}"#));
            assert_eq!(
                detail,
                r#"member "timeout_ms" must be an integer from 1 to 60000"#
            );
        }
        assert_eq!(
            with(r#""idempotent":1"#),
            r#"member "idempotent" must be true or false"#
        );
        assert_eq!(
            with(r#""instance":"""#),
            r#"member "instance" must be 1 to 128 characters of [A-Za-z0-9._-]"#
        );
        assert_eq!(with(r#""timeout":1"#), r#"unknown member "timeout""#);
        assert_eq!(with(r#""module":"m""#), r#"member "module" is given twice"#);
    }

    #[test]
    fn at_most_256_args() {
        let body = |n: usize| {
            format!(
                r#"{{"module":"m","function":"f","args":[{}]}}"#,
                vec!["0"; n].join(",")
            )
        };
        Call::from_json(body(256).as_bytes(), TIMEOUTS).unwrap();
        assert_eq!(refusal(&body(257)).0, Code::InvalidRequest);
    }

    #[test]
    fn a_peer_reads_what_a_peer_writes_and_ignores_what_it_does_not_know() {
        let call = Call::from_json(
            br#"{"module":"m","function":"f","args":[1.0],"instance":"i"}"#,
            TIMEOUTS,
        )
        .unwrap();
        let body = Exec::to_json(&"syd".parse().unwrap(), &call, 7);
        let text = String::from_utf8(body).unwrap();
        assert_eq!(
            text,
            r#"{"region":"syd","module":"m","function":"f","args":[1.0],"timeout_ms":7,"idempotent":false,"instance":"i"}"#
        );
        let exec = Exec::from_json(
            text.replace("\"m\"", "\"m\",\"later\":1").as_bytes(),
            TIMEOUTS,
        )
        .unwrap();
        assert_eq!(
            (exec.region.as_str(), exec.call.timeout),
            ("syd", Duration::from_millis(7))
        );
        assert_eq!(exec.call.args.raw().get(), "[1.0]");
    }

    #[test]
    fn a_key_stands_bare_or_in_quotes_and_travels_along() {
        let keyed = |header: &[u8]| {
            let call = Call::from_json(br#"{"module":"m","function":"f"}"#, TIMEOUTS).unwrap();
            let body = Exec::to_json(&"syd".parse().unwrap(), &call.with_key(header)?, 7);
            Ok::<_, Problem>(
                Exec::from_json(&body, TIMEOUTS)
                    .unwrap()
                    .call
                    .key
                    .unwrap()
                    .to_string(),
            )
        };
        for header in [&b"a-1"[..], b"\"a-1\""] {
            assert_eq!(keyed(header).unwrap(), "a-1");
        }
        for header in [
            &b""[..],
            b"\"\"",
            b"a b",
            "\u{e9}".as_bytes(),
            b"\xff",
            &[b'x'; 129],
        ] {
            let problem = keyed(header).unwrap_err();
            assert_eq!(
                problem.detail,
                "header idempotency-key must be 1 to 128 visible ASCII characters"
            );
        }
    }

    #[test]
    fn values_become_args() {
        #[derive(Serialize)]
        struct Account {
            id: u8,
        }
        let args = |args: Result<Args, Problem>| args.unwrap().raw().get().to_owned();
        assert_eq!(args(Args::from_values(&(1, "two"))), r#"[1,"two"]"#);
        assert_eq!(args(Args::from_values(&())), "[]");
        assert_eq!(args(Args::from_values(&"fly")), r#"["fly"]"#);
        assert_eq!(args(Args::from_values(&Account { id: 1 })), r#"[{"id":1}]"#);
    }
}
