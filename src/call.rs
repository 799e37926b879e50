//! A call: what is asked, in JSON and in memory. Owns the rules of its members; the registry decides whether the function
//! exists and whether its arguments fit. Arguments stay as they came. They are counted, and rebuilt only to put arguments
//! given by name into the order of the function's parameters.

use std::{borrow::Cow, pin::Pin, str::FromStr, sync::Arc, time::Duration};

use memchr::memchr_iter;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    declaration::{MAX_PARAMS, MAX_TIMEOUT_MS, Param, Policy},
    gate::Ticket,
    json::{self, Unknown},
    memory::Reserved,
    name::{BootId, ConsistencyToken, FunctionName, IdempotencyKey, InstanceId, KeyOwner, Name},
    problem::{Code, Problem},
    trace::TraceParent,
};

/// The longest that any call may be allowed to take.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_millis(MAX_TIMEOUT_MS);

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
    pub name: FunctionName,
    pub args: Args,
    /// How long the caller waits, 1 ms to the configured maximum.
    pub timeout: Duration,
    /// Whether it may run twice: allows another attempt after one that may have run.
    pub idempotent: bool,
    /// What the caller said of the timeout and of `idempotent`; for the rest, what the function declares holds.
    pub said: Policy,
    /// Only on this instance of the region.
    pub instance: Option<InstanceId>,
    /// Makes a repeat of this call the same call.
    pub key: Option<IdempotencyKey>,
    /// Whose key it is; `None` for callers without a name.
    pub key_owner: Option<KeyOwner>,
    /// The consistency token that the data which the function reads must have seen.
    pub after: Option<ConsistencyToken>,
    /// Only in this process of the instance, which may have run the call before.
    pub boot: Option<BootId>,
    /// What called it, in a trace.
    pub trace: Option<TraceParent>,
    /// What the arguments take of the memory budget, until their last holder drops them.
    pub memory: Option<Arc<Reserved>>,
    /// Lets a caller on another instance cancel the call while it waits; a caller here drops the future.
    pub ticket: Option<Ticket>,
}

/// The members of a call in JSON, in the order of [`Call::from_members`].
pub(crate) const MEMBERS: &[&str; 6] = &[
    "module",
    "function",
    "args",
    "timeout_ms",
    "idempotent",
    "instance",
];

/// How many instances of each region a fan-out asks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Every instance.
    #[default]
    Instance,
    /// One instance of each region, chosen as for a call to that region.
    Region,
}

/// The members of a fan-out in JSON.
const EACH_MEMBERS: &[&str; MEMBERS.len() + 1] = &[
    MEMBERS[0], MEMBERS[1], MEMBERS[2], MEMBERS[3], MEMBERS[4], MEMBERS[5], "per",
];

impl Call {
    /// A call of `name` with `args`, under what its caller `said`; `default` is its timeout if the caller named none.
    pub(crate) fn new(name: FunctionName, args: Args, said: Policy, default: Duration) -> Self {
        Self {
            name,
            args,
            timeout: said.timeout.unwrap_or(default),
            idempotent: said.idempotent.unwrap_or(false),
            said,
            instance: None,
            key: None,
            key_owner: None,
            after: None,
            boot: None,
            trace: None,
            memory: None,
            ticket: None,
        }
    }

    /// Waits for what the call needs before it starts, such as its turn; `None` if its caller gave up first. By reference,
    /// because a future has the size of what it is given twice.
    pub(crate) async fn unless_given_up<T>(
        &self,
        wait: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        match &self.ticket {
            Some(ticket) => ticket.wait(wait).await,
            None => Some(wait.await),
        }
    }

    /// Applies the policy that the function `declared`, where the caller said nothing; a declared timeout above `max`
    /// becomes `max`.
    pub(crate) fn put_under(&mut self, declared: Policy, max: Duration) {
        if let (None, Some(timeout)) = (self.said.timeout, declared.timeout) {
            self.timeout = timeout.min(max);
        }
        let said = self.said.idempotent.or(declared.idempotent);
        self.idempotent = said.unwrap_or(false);
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

    /// The call in the body of `POST /each/{regions}`, which names no instance, and on how many instances of each region it is
    /// to run.
    pub(crate) fn from_fan_out(body: &[u8], timeouts: Timeouts) -> Result<(Self, Per), Problem> {
        let members = json::members(body, EACH_MEMBERS, Unknown::Refused)?;
        let [call @ .., per] = members;
        let per = per.map_or(Ok(Per::default()), |raw| {
            let per = serde_json::from_str(raw.get());
            per.map_err(|_| wrong("per", "\"instance\" or \"region\""))
        })?;
        let call = Self::from_members(call, timeouts)?;
        if call.instance.is_some() {
            let detail =
                "member \"instance\" is for a call on one instance; POST /rpc/{region} takes it";
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
        Ok((call, per))
    }

    /// The call in the values of [`MEMBERS`].
    pub(crate) fn from_members(
        members: [Option<&RawValue>; 6],
        timeouts: Timeouts,
    ) -> Result<Self, Problem> {
        let [module, function, args, timeout_ms, idempotent, instance] = members;
        let name = FunctionName {
            module: name("module", module)?,
            function: name("function", function)?,
        };
        let args = args.map_or_else(|| Ok(Args::default()), arguments)?;
        let timeout = timeout_ms.map(|raw| timeout(raw, timeouts.max));
        let idempotent = idempotent.map(|raw| raw.get().parse());
        let said = Policy {
            timeout: timeout.transpose()?,
            idempotent: idempotent
                .transpose()
                .map_err(|_| wrong("idempotent", "true or false"))?,
        };
        Ok(Self {
            instance: optional("instance", instance, InstanceId::RULE)?,
            ..Self::new(name, args, said, timeouts.default)
        })
    }
}

fn arguments(raw: &RawValue) -> Result<Args, Problem> {
    Args::from_raw(raw.to_owned()).ok_or_else(|| wrong("args", Args::RULE))
}

fn name(member: &'static str, raw: Option<&RawValue>) -> Result<Name, Problem> {
    let raw = raw.ok_or_else(|| missing(member))?;
    parsed(member, raw, Name::RULE)
}

/// A timeout in whole milliseconds; 5e3 and 5000.0 are whole numbers, as JSON Schema has it (draft 2020-12, 6.1.1).
fn timeout(raw: &RawValue, max: Duration) -> Result<Duration, Problem> {
    let max_ms = max.as_millis();
    // Of all JSON values, only numbers parse as a number.
    match raw.get().parse::<f64>() {
        Ok(ms) if ms.fract() == 0.0 && (1.0..=max_ms as f64).contains(&ms) => {
            Ok(Duration::from_secs_f64(ms / 1e3))
        }
        _ => Err(wrong(
            "timeout_ms",
            &format!("an integer from 1 to {max_ms}"),
        )),
    }
}

/// What the text of `member` names.
///
/// # Errors
/// [`Code::InvalidRequest`] with the `rule` that it breaks.
pub(crate) fn parsed<T: FromStr>(member: &str, raw: &RawValue, rule: &str) -> Result<T, Problem> {
    let value = json::text(raw).and_then(|text| text.parse().ok());
    value.ok_or_else(|| wrong(member, rule))
}

/// The value of an optional member.
pub(crate) fn optional<T: FromStr>(
    member: &str,
    raw: Option<&RawValue>,
    rule: &str,
) -> Result<Option<T>, Problem> {
    raw.map(|raw| parsed(member, raw, rule)).transpose()
}

/// The problem of a call without `member`.
pub(crate) fn missing(member: &str) -> Problem {
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

/// The most arguments that a call may have.
const MAX_ARGS: usize = MAX_PARAMS;

/// The arguments of a call, at most 256, exactly as received: a JSON array, or an object by the names of the function's
/// parameters.
#[derive(Clone, Debug)]
pub(crate) struct Args(Box<RawValue>);

impl Args {
    /// What arguments must be.
    pub(crate) const RULE: &str =
        "an array, or an object by the names of parameters, of at most 256 arguments";

    /// The arguments that `values` stand for: a tuple or list gives an argument for each item, `()` none, and
    /// anything else is the only argument.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when `values` has no JSON form or more than 256 items.
    pub(crate) fn from_values(values: &impl Serialize) -> Result<Self, Problem> {
        let raw = to_raw_value(values).map_err(|error| no_form(&error))?;
        match raw.get().as_bytes().first() {
            Some(b'[') => Self::checked(raw),
            _ if raw.get() == "null" => Ok(Self::default()),
            _ => Self::checked(to_raw_value(&[raw]).map_err(|error| no_form(&error))?),
        }
    }

    /// The arguments that the members of `values`, a struct or a map, are by their names.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when `values` has no JSON form, is not an object, or has more than 256 members.
    pub(crate) fn from_members(values: &impl Serialize) -> Result<Self, Problem> {
        let raw = to_raw_value(values).map_err(|error| no_form(&error))?;
        match raw.get().starts_with('{') {
            true => Self::checked(raw),
            false => Err(Problem::new(
                Code::InvalidRequest,
                "arguments by name must be a struct or a map",
            )),
        }
    }

    /// The arguments in `raw`; `None` where it breaks [`Args::RULE`].
    pub(crate) fn from_raw(raw: Box<RawValue>) -> Option<Self> {
        let text = raw.get();
        if !text.starts_with(['[', '{']) {
            return None;
        }
        // With so few commas, those inside strings and arrays included, there cannot be more items, and the text is not
        // read again.
        let is_short = memchr_iter(b',', text.as_bytes()).count() < MAX_ARGS;
        (is_short || count(text) <= MAX_ARGS).then_some(Self(raw))
    }

    fn checked(raw: Box<RawValue>) -> Result<Self, Problem> {
        let refuse = |rule: &str| {
            let detail = format!("the arguments must be {rule}");
            Problem::new(Code::InvalidRequest, detail)
        };
        json::check(raw.get().as_bytes())
            .map_err(|_| refuse("at most 64 deep, without lone surrogates in strings"))?;
        Self::from_raw(raw).ok_or_else(|| refuse(Self::RULE))
    }

    /// As they came.
    pub(crate) fn raw(&self) -> &RawValue {
        &self.0
    }

    /// The arguments as an array, for a function that declares `params`, or does not say.
    ///
    /// # Errors
    /// What does not fit, in words: an argument that is missing, unknown or given twice, or the number of arguments.
    pub(crate) fn in_order(&self, params: Option<&[Param]>) -> Result<Cow<'_, Self>, String> {
        let text = self.0.get();
        if text.starts_with('{') {
            let params = params
                .ok_or("takes its arguments in an array: it declares no names of parameters")?;
            return by_name(text, params).map(Cow::Owned);
        }
        let Some(params) = params else {
            return Ok(Cow::Borrowed(self));
        };
        let (takes, given) = (params.len(), count(text));
        match takes == given {
            true => Ok(Cow::Borrowed(self)),
            false => Err(format!(
                "expected {takes} arguments ({}), got {given}",
                names(params)
            )),
        }
    }
}

impl Default for Args {
    /// No arguments: `[]`.
    fn default() -> Self {
        Self(json::empty_array())
    }
}

fn no_form(error: &serde_json::Error) -> Problem {
    let detail = format!("the arguments have no JSON form: {error}");
    Problem::new(Code::InvalidRequest, detail)
}

/// The members of the object `text` as an array in the order of `params`.
fn by_name(text: &str, params: &[Param]) -> Result<Args, String> {
    let mut members = Vec::new();
    json::each_member(text, |name, value| members.push((name, value)))
        .map_err(|error| error.to_string())?;
    let mut values = vec![None; params.len()];
    for (name, value) in members {
        let Some(place) = params.iter().position(|param| param.name == name) else {
            return Err(format!(
                "argument {name:?} is unknown; expected {}",
                names(params)
            ));
        };
        if values[place].replace(value).is_some() {
            return Err(format!("argument {name:?} is given twice"));
        }
    }
    let mut array = String::with_capacity(text.len());
    for (param, value) in params.iter().zip(values) {
        let value = value.ok_or_else(|| format!("argument {:?} is missing", param.name))?;
        array.push(if array.is_empty() { '[' } else { ',' });
        array.push_str(value.get());
    }
    // Without parameters, no bracket was opened.
    array.push_str(if params.is_empty() { "[]" } else { "]" });
    let raw = RawValue::from_string(array).map_err(|error| error.to_string())?;
    Ok(Args(raw))
}

fn names(params: &[Param]) -> String {
    let names: Vec<_> = params.iter().map(|param| &*param.name).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// How many items an array has, or members an object.
fn count(text: &str) -> usize {
    let counted = if text.starts_with('[') {
        // Nothing is kept of the items: `IgnoredAny` has no size.
        serde_json::from_str(text).map(|items: Vec<IgnoredAny>| items.len())
    } else {
        let mut count = 0;
        json::each_member(text, |_, _| count += 1).map(|()| count)
    };
    counted.unwrap_or_else(|error| unreachable!("args are JSON: {error}"))
}
