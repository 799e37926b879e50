//! `fly-rpc explain`: where calls for a region, or a list of regions, would run as one instance sees it, and why not at the others.

use anstyle::AnsiColor;
use clap::Args;

use super::{
    Failure,
    ask::AskArgs,
    print, say,
    table::{Cell, table},
};
use crate::{
    http::documents::{
        CandidateDocument, ChoiceDocument, ExplanationDocument, PolicyDocument, PolicySource,
        UnplacedDocument,
    },
    region::Targets,
    telemetry::printable,
};

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

pub(super) async fn run(args: ExplainArgs) -> Result<(), Failure> {
    let mut path = format!("/regions/{}/explain", args.region);
    if let Some(function) = &args.function {
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
        let rtt = choice.rtt_ms.map(|ms| format!("{ms:.1} ms"));
        [
            (&choice.region).into(),
            yes_or_no(choice.chosen),
            format!("{} {}", choice.item, choice.target).into(),
            Cell::of(rtt),
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
    table(header, explanation.candidates.iter().map(row))
}

fn row(candidate: &CandidateDocument) -> [Cell; 6] {
    let probed = match candidate.local {
        true => "this one".to_owned(),
        false => ago(candidate.last_probe_ms),
    };
    let why = match &candidate.last_probe_error {
        Some(error) => format!("{}; last probe: {error}", candidate.reason),
        None => candidate.reason.clone(),
    };
    [
        (&candidate.instance).into(),
        yes_or_no(candidate.chosen),
        candidate.state.into(),
        candidate.address.into(),
        probed.into(),
        why.into(),
    ]
}

fn unplaced(addresses: &[UnplacedDocument]) -> String {
    let row = |unplaced: &UnplacedDocument| {
        [
            unplaced.address.into(),
            ago(unplaced.last_probe_ms).into(),
            Cell::of(unplaced.last_probe_error.as_ref()),
        ]
    };
    table(["NOBODY AT", "PROBED", "WHY"], addresses.iter().map(row))
}

fn ago(milliseconds: Option<f64>) -> String {
    milliseconds.map_or_else(|| "never".to_owned(), |ms| format!("{:.1} s ago", ms / 1e3))
}
