//! `fly-rpc call`: one call to a function in a region, its result on stdout; or one on each of many instances, as a table.

use std::{collections::BTreeMap, io, time::Duration};

use anstyle::{AnsiColor, Style};
use bytes::Bytes;
use clap::Args;
use http::{Request, header::CONTENT_TYPE};
use http_body_util::Full;
use serde::Serialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::time::Instant;

use super::{
    Failure,
    ask::{AskArgs, EARLIER, HttpAnswer, REQUEST_ID},
    function, print, say,
    table::{Cell, table},
};
use crate::{
    call::{MAX_TIMEOUT, Per},
    config::settings,
    deadline::whole_ms,
    http::documents::{Accepted, EntryDocument, FanOutMeta, FanOutReply},
    json,
    name::{ConsistencyToken, IdempotencyKey, InstanceId, InvalidName, Name, RequestId},
    problem::counted,
    region::{Regions, Targets},
    reply::{Meta, Reply, milliseconds},
    telemetry::printable_json,
};

/// The shortest timeout of a call.
const SHORTEST: Duration = Duration::from_millis(1);
/// How long a call may take that names no timeout: the default of `RPC_MAX_TIMEOUT`.
const LONGEST: Duration = Duration::from_secs(60);
/// How much longer than the call's own timeout an answer is waited for.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc call syd String.upcase fly
  fly-rpc call syd,iad,any String.upcase fly
  fly-rpc call primary Kernel.+ 1 2 --timeout 500ms
  fly-rpc call syd String.split '\"a,b\"' , --json
  fly-rpc call syd Orders.create '{\"id\": 1234}' --idempotency-key order-1234
  fly-rpc call syd Notes.create --named title=Milk due=2026-12-01
  fly-rpc call --each all Cache.clear

An argument that is JSON is sent as it stands, any other as a string: 12 is a number, '\"12\"' a string. One that \
begins like an array, an object or a string of JSON and is not valid is refused. \
Arguments that begin with two dashes come after a lone --. The token in FLY_RPC_TOKEN is sent, if there is one.")]
pub(super) struct CallArgs {
    /// A region such as `syd`, `primary`, `any`, or a list such as `syd,iad,any`: the next is tried where nothing ran. With
    /// --each, `all` or a list of regions
    #[arg(value_parser = region)]
    region: String,
    /// The function, such as `String.upcase`
    #[arg(value_name = "MODULE.FUNCTION")]
    function: String,
    /// The arguments: JSON, or plain words, which are strings
    #[arg(allow_negative_numbers = true)]
    args: Vec<String>,
    /// Take the arguments as NAME=VALUE, by the names of the function's parameters
    #[arg(long)]
    named: bool,
    /// Call on every instance of the regions at the same time, or with --each=region on one instance of each
    #[arg(
        long,
        value_name = "PER",
        value_parser = per,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "instance",
        conflicts_with = "instance"
    )]
    each: Option<Per>,
    /// How long to wait, such as 500ms or 5s, from 1ms to 24h; without it, the call has the timeout that its function declares,
    /// else `RPC_DEFAULT_TIMEOUT` of the instance, and this command waits for 65 s
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Do not wait for the end: the instance that is asked sees the call through, and its log has what came of it
    #[arg(long = "async", conflicts_with = "each")]
    is_async: bool,
    /// Allow another attempt after one that may have run, whatever the function declares; --idempotent=false forbids it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    idempotent: Option<bool>,
    /// Run it once: for ten minutes, a repeat with the same key gets the outcome of the first call
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Read nothing older than this: the consistency token of an earlier answer
    #[arg(long, value_name = "TOKEN")]
    after: Option<ConsistencyToken>,
    /// Only on this instance of the region
    #[arg(long)]
    instance: Option<InstanceId>,
    /// Do not say on stderr where the call ran and how long it took
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    ask: AskArgs,
}

/// The body of `POST /rpc/{region}` and `POST /each/{regions}`.
#[derive(Serialize)]
struct Body<'a> {
    module: &'a Name,
    function: &'a Name,
    args: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotent: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a InstanceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per: Option<Per>,
}

pub(super) async fn run(args: CallArgs) -> Result<(), Failure> {
    let request = request(&args)?;
    let patience = args.timeout.unwrap_or(LONGEST).saturating_add(GRACE);
    let asked = Instant::now();
    let mut answer = args.ask.send(request, patience).await?;
    let took = asked.elapsed();
    if args.ask.json {
        answer.print_json()?;
        return match answer.found() {
            Some(FanOutReply { meta, .. }) if args.each.is_some() => all_succeeded(&meta),
            _ => Ok(()),
        };
    }
    if let Some(Accepted { meta }) = answer.accepted() {
        print(&meta.request_id.to_string())?;
        if !args.quiet {
            say("the call is admitted; the log of the instance has its end, under this request id");
        }
        return Ok(());
    }
    if args.each.is_some() {
        return show_each(&answer, took, args.quiet);
    }
    if args.idempotency_key.is_some() {
        answer.after_maybe = "it may have run: call again with the same --idempotency-key";
    } else if args.idempotent == Some(true) {
        answer.after_maybe = "it may have run: call again, because it may run twice";
    }
    let Reply { result, meta } = answer.document()?;
    print(&printable_json(result.get()))?;
    if !args.quiet {
        say(&account(&meta, took));
    }
    Ok(())
}

fn request(args: &CallArgs) -> Result<Request<Full<Bytes>>, Failure> {
    let name = function(&args.function)?;
    let arguments = match args.named {
        true => to_raw_value(&named(&args.args)?),
        false => to_raw_value(&arguments(&args.args)?),
    };
    let body = json::to_vec(&Body {
        module: &name.module,
        function: &name.function,
        args: arguments.map_err(io::Error::from)?,
        timeout_ms: args.timeout.map(whole_ms),
        idempotent: args.idempotent,
        instance: args.instance.as_ref(),
        per: args.each,
    });
    let mut request = Request::post(path(args)?)
        .header(CONTENT_TYPE, "application/json")
        // Made here, to be named where there is no answer.
        .header(REQUEST_ID, RequestId::fresh().as_str());
    let options = [
        (
            "idempotency-key",
            args.idempotency_key.as_ref().map(|key| key.as_str()),
        ),
        ("prefer", args.is_async.then_some("respond-async")),
        ("rpc-after", args.after.as_ref().map(|token| token.as_str())),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    Ok(request.body(body.into())?)
}

/// Where a call ran and how long it took: in the cluster, and from here, the connection included.
fn account(meta: &Meta, took: Duration) -> String {
    let (dim, took) = (Style::new().dimmed(), milliseconds(took));
    let instance = meta.instance.as_ref().map_or("?", |id| id.as_str());
    let region = meta.region.as_ref().map_or("?", |region| region.as_str());
    let attempts = counted(meta.attempts as usize, "attempt");
    let token = meta.consistency.as_ref();
    let token = token.map_or(String::new(), |token| format!(" · consistency {token}"));
    let replayed = if meta.replayed { EARLIER } else { "" };
    format!(
        "{dim}{instance} in {region} · {:.1} ms, {took:.1} ms from here · {attempts} · request \
         {}{token}{replayed}{dim:#}",
        meta.elapsed_ms, meta.request_id
    )
}

/// Prints `answer`, which `took` so long.
///
/// # Errors
/// One of the calls has no result.
fn show_each(answer: &HttpAnswer, took: Duration, is_quiet: bool) -> Result<(), Failure> {
    let FanOutReply { results, meta } = answer.document()?;
    print(&table(
        ["REGION", "INSTANCE", "RESULT"],
        results.iter().map(row),
    ))?;
    if !is_quiet {
        let (dim, took) = (Style::new().dimmed(), milliseconds(took));
        say(&format!(
            "{dim}{} of {} have a result · {:.1} ms, {took:.1} ms from here · request {}{dim:#}",
            meta.succeeded, meta.asked, meta.elapsed_ms, meta.request_id
        ));
    }
    all_succeeded(&meta)
}

fn all_succeeded(meta: &FanOutMeta) -> Result<(), Failure> {
    match meta.succeeded == meta.asked {
        true => Ok(()),
        false => Err(Failure::Reported(1)),
    }
}

fn row(entry: &EntryDocument) -> [Cell; 3] {
    let result = match (&entry.problem, &entry.result) {
        (Some(document), _) => Cell::coloured(&document.problem, AnsiColor::Red),
        (None, Some(result)) => printable_json(result.get()).into(),
        (None, None) => "null".into(),
    };
    [
        (&entry.region).into(),
        Cell::of(entry.instance.as_ref()),
        result,
    ]
}

fn path(args: &CallArgs) -> Result<String, Failure> {
    let region = &args.region;
    let (room, checked) = match args.each {
        None => ("rpc", region.parse::<Targets>().map(drop)),
        Some(_) => ("each", region.parse::<Regions>().map(drop)),
    };
    checked.map_err(|invalid| Failure::Usage(format!("{region:?}: {invalid}")))?;
    Ok(format!("/{room}/{region}"))
}

/// Checks that it is a region or a list of them; [`path`] checks that it goes with the other arguments.
fn region(text: &str) -> Result<String, InvalidName> {
    match text.parse::<Regions>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => text.parse::<Targets>().map(|_| text.to_owned()),
    }
}

fn per(text: &str) -> Result<Per, String> {
    match text {
        "instance" => Ok(Per::Instance),
        "region" => Ok(Per::Region),
        _ => Err("must be instance or region".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match settings::duration(text)? {
        duration if (SHORTEST..=MAX_TIMEOUT).contains(&duration) => Ok(duration),
        _ => Err("must be from 1ms to 24h".to_owned()),
    }
}

fn arguments(typed: &[String]) -> Result<Vec<Box<RawValue>>, Failure> {
    let numbered = typed.iter().enumerate();
    numbered
        .map(|(number, text)| argument(&(number + 1).to_string(), text))
        .collect()
}

/// Arguments of the form `NAME=VALUE`.
fn named(typed: &[String]) -> Result<BTreeMap<String, Box<RawValue>>, Failure> {
    let mut named = BTreeMap::new();
    for text in typed {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Failure::Usage(format!("{text:?} is not NAME=VALUE, as --named wants it"))
        })?;
        let value = argument(&format!("{name:?}"), value)?;
        if named.insert(name.to_owned(), value).is_some() {
            return Err(Failure::Usage(format!("argument {name:?} is given twice")));
        }
    }
    Ok(named)
}

fn argument(which: &str, text: &str) -> Result<Box<RawValue>, Failure> {
    json_of(text).map_err(|why| {
        let json = string(text);
        Failure::Usage(format!(
            "argument {which}: {text:?} begins like JSON and is not valid ({why}); a string that begins so is written as \
             JSON: '{json}'"
        ))
    })
}

/// An argument as it was typed: JSON if it is JSON, else a string; what begins like an array, an object or a string of
/// JSON must be one.
fn json_of(text: &str) -> Result<Box<RawValue>, serde_json::Error> {
    let trimmed = text.trim();
    match RawValue::from_string(trimmed.to_owned()) {
        Ok(json) => Ok(json),
        Err(error) if trimmed.starts_with(['[', '{', '"']) => Err(error),
        Err(_) => RawValue::from_string(string(text)),
    }
}

fn string(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
