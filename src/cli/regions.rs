//! The cluster as one instance knows it: `fly-rpc regions`, a table of it, once or again and again; `fly-rpc explain`, where
//! calls for a region, or a list of regions, would run, and why not at the others.

use std::{io::ErrorKind, time::Duration};

use anstyle::AnsiColor;
use clap::Args;
use tokio::time;

use super::{
    Failure,
    ask::{AskArgs, HttpAnswer},
    function, print, say,
    table::{Cell, table},
    write_out,
};
use crate::{
    config::settings,
    http::documents::{
        CandidateDocument, ChoiceDocument, ExplanationDocument, InstanceDocument, PolicyDocument,
        PolicySource, RegionsDocument, UnplacedDocument,
    },
    protocol::PeerState,
    region::Targets,
    telemetry::printable,
};

/// Moves the cursor to the top left and clears the screen (ECMA-48, CUP and ED); `anstream` drops it where stdout is no
/// terminal.
const CLEAR: &str = "\x1b[H\x1b[J";
/// The shortest pause between two looks of a watch.
const SHORTEST: Duration = Duration::from_millis(10);

#[derive(Args)]
pub(super) struct RegionsArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Show it again and again, every second unless another pause is given, until Ctrl-C
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "1s", value_parser = pause, conflicts_with = "json")]
    watch: Option<Duration>,
}

fn pause(text: &str) -> Result<Duration, String> {
    match settings::duration(text)? {
        pause if pause >= SHORTEST => Ok(pause),
        _ => Err(format!("must be {SHORTEST:?} or more")),
    }
}

pub(super) async fn run(args: RegionsArgs) -> Result<(), Failure> {
    let ask = &args.ask;
    match args.watch {
        Some(pause) => watch(ask, pause).await,
        None if ask.json => ask.get("/regions").await?.print_json(),
        None => {
            let regions = known(&ask.get("/regions").await?)?;
            print(&shown(&regions))?;
            warn(&regions);
            Ok(())
        }
    }
}

/// Shows the cluster until the reader of stdout is gone; an instance that does not answer may come back.
async fn watch(ask: &AskArgs, pause: Duration) -> Result<(), Failure> {
    loop {
        let answer = match ask.get("/regions").await {
            Err(failure @ Failure::Usage(_)) => return Err(failure),
            answer => answer,
        };
        // Before the answer is shown: what it has for stderr must stay on the screen too.
        let cleared = write_out(format_args!("{CLEAR}"));
        let written = cleared.and_then(|()| match answer.and_then(|answer| known(&answer)) {
            Ok(regions) => {
                write_out(format_args!("{}\n", shown(&regions))).map(|()| warn(&regions))
            }
            Err(Failure::Failed(reason)) => {
                say(&format!("fly-rpc: {reason}"));
                Ok(())
            }
            Err(Failure::Usage(_) | Failure::Reported(_)) => Ok(()),
        });
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        time::sleep(pause).await;
    }
}

/// The cluster in `answer`; where its discovery is stale, the reason goes to stderr.
fn known(answer: &HttpAnswer) -> Result<RegionsDocument, Failure> {
    let regions: RegionsDocument = answer.document()?;
    if let Some(error) = &regions.discovery.last_error {
        say(&format!("stale: {}", printable(error)));
    }
    Ok(regions)
}

/// Says what else discovery found wrong, such as who is left out of the table.
fn warn(regions: &RegionsDocument) {
    for warning in &regions.discovery.warnings {
        say(&format!("warning: {}", printable(warning)));
    }
}

/// The cluster as a table.
fn shown(regions: &RegionsDocument) -> String {
    let mut rows = Vec::new();
    for region in &regions.regions {
        let is_primary = region.region == regions.primary;
        let primary = if is_primary { " (primary)" } else { "" };
        let name = format!("{}{primary}", region.region);
        rows.extend(region.instances.iter().map(|instance| row(&name, instance)));
        if region.instances.is_empty() {
            let mut row: [Cell; 7] = Default::default();
            (row[0], row[1]) = (name.into(), Cell::coloured("none now", AnsiColor::Red));
            rows.push(row);
        }
    }
    let header = [
        "REGION", "INSTANCE", "STATE", "ADDRESS", "RTT", "SEEN", "RELEASE",
    ];
    table(header, rows)
}

fn row(region: &str, instance: &InstanceDocument) -> [Cell; 7] {
    let colour = match instance.state {
        PeerState::Ready => AnsiColor::Green,
        PeerState::Suspect => AnsiColor::Red,
        PeerState::Draining => AnsiColor::Yellow,
    };
    [
        region.into(),
        (&instance.instance).into(),
        Cell::coloured(instance.state, colour),
        instance.address.into(),
        round_trip(instance.rtt_ms),
        when(instance.local, instance.last_seen_ms, ""),
        Cell::of(instance.release.as_ref()),
    ]
}

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc explain syd
  fly-rpc explain syd String.upcase
  fly-rpc explain syd,primary,any")]
pub(super) struct ExplainArgs {
    /// A region such as `syd`, `primary`, `any`, or a list of up to three of these
    region: Targets,
    /// A function that not every instance may have, such as `String.upcase`
    #[arg(value_name = "MODULE.FUNCTION")]
    function: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let mut path = format!("/regions/{}/explain", args.region);
    if let Some(function) = &args.function {
        let function = self::function(function)?.to_string();
        let function: String = form_urlencoded::byte_serialize(function.as_bytes()).collect();
        path += &format!("?function={function}");
    }
    let answer = args.ask.get(&path).await?;
    if args.ask.json {
        return answer.print_json();
    }
    let explanation: ExplanationDocument = answer.document()?;
    if let Some(error) = &explanation.discovery.last_error {
        say(&format!("stale: {}", printable(error)));
    }
    let mut parts = Vec::new();
    if explanation.choices.len() > 1 {
        parts.push(format!("{}\n", choices(&explanation.choices)));
    }
    parts.push(candidates(&explanation));
    if !explanation.unplaced.is_empty() {
        parts.push(format!("\n{}", unplaced(&explanation.unplaced)));
    }
    parts.extend(explanation.policy.as_ref().map(policy));
    print(&parts.join("\n"))
}

fn choices(choices: &[ChoiceDocument]) -> String {
    let row = |choice: &ChoiceDocument| {
        [
            (&choice.region).into(),
            yes_or_no(choice.chosen),
            format!("{} {}", choice.item, choice.target).into(),
            round_trip(choice.rtt_ms),
            (&choice.reason).into(),
        ]
    };
    let header = ["REGION", "CHOSEN", "ITEM", "ROUND TRIP", "WHY"];
    table(header, choices.iter().map(row))
}

fn policy(policy: &PolicyDocument) -> String {
    let from = |source| match source {
        PolicySource::Function => "declared by the function",
        PolicySource::Setting => "as this instance is set",
    };
    let concurrency = policy
        .concurrency
        .map(|calls| format!(", {calls} at once on an instance (declared by the function)"));
    format!(
        "\na call that does not say otherwise: {} ms ({}), idempotent: {} ({}){}",
        policy.timeout_ms,
        from(policy.timeout_from),
        policy.idempotent,
        from(policy.idempotent_from),
        concurrency.unwrap_or_default(),
    )
}

fn yes_or_no(is_chosen: bool) -> Cell {
    match is_chosen {
        true => Cell::coloured("yes", AnsiColor::Green),
        false => "no".into(),
    }
}

fn candidates(explanation: &ExplanationDocument) -> String {
    if explanation.candidates.is_empty() {
        return format!("no instance was found in {}", explanation.region);
    }
    let header = ["INSTANCE", "CHOSEN", "STATE", "ADDRESS", "PROBED", "WHY"];
    table(header, explanation.candidates.iter().map(candidate_row))
}

fn candidate_row(candidate: &CandidateDocument) -> [Cell; 6] {
    let why = match &candidate.last_probe_error {
        Some(error) => format!("{}; last probe: {error}", candidate.reason),
        None => candidate.reason.clone(),
    };
    [
        (&candidate.instance).into(),
        yes_or_no(candidate.chosen),
        candidate.state.into(),
        candidate.address.into(),
        when(candidate.local, candidate.last_probe_ms, "never"),
        why.into(),
    ]
}

fn unplaced(addresses: &[UnplacedDocument]) -> String {
    let row = |unplaced: &UnplacedDocument| {
        [
            unplaced.address.into(),
            when(false, unplaced.last_probe_ms, "never"),
            Cell::of(unplaced.last_probe_error.as_ref()),
        ]
    };
    table(["NOBODY AT", "PROBED", "WHY"], addresses.iter().map(row))
}

/// How long ago an instance was last heard of; the one that answers is marked instead.
fn when(is_local: bool, milliseconds: Option<f64>, never: &str) -> Cell {
    match (is_local, milliseconds) {
        (true, _) => "this one".into(),
        (false, Some(ms)) => format!("{:.1} s ago", ms / 1e3).into(),
        (false, None) => never.into(),
    }
}

fn round_trip(milliseconds: Option<f64>) -> Cell {
    Cell::of(milliseconds.map(|ms| format!("{ms:.1} ms")))
}
