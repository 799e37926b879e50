//! `fly-rpc explain`: where calls for a region, or a list of regions, would run as one instance sees it, and why not elsewhere.

use anstyle::{AnsiColor, Style};
use clap::Args;

use super::{
    Failure,
    ask::AskArgs,
    print, say,
    table::{Cell, header, table},
};
use crate::{
    http::{
        CandidateDocument, ChoiceDocument, ExplanationDocument, PolicyDocument, PolicySource,
        UnplacedDocument,
    },
    region::Targets,
    telemetry::printable,
};

/// What to explain.
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

/// Prints the instances of the region, and the addresses at which nobody was found.
pub(super) async fn run(args: ExplainArgs) -> Result<(), Failure> {
    let mut path = format!("/regions/{}/explain", args.region);
    if let Some(function) = &args.function {
        let function: String = form_urlencoded::byte_serialize(function.as_bytes()).collect();
        path += &format!("?function={function}");
    }
    let answer = args.ask.endpoint.get(&path).await?;
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
    let mut rows = vec![header(["REGION", "CHOSEN", "ITEM", "ROUND TRIP", "WHY"])];
    rows.extend(choices.iter().map(|choice| {
        let rtt = choice.rtt_ms.map(|ms| format!("{ms:.1} ms"));
        vec![
            choice.region.to_string().into(),
            yes_or_no(choice.chosen),
            format!("{} {}", choice.item, choice.target).into(),
            rtt.unwrap_or_default().into(),
            choice.reason.clone().into(),
        ]
    }));
    table(&rows)
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
        true => Cell::styled("yes", AnsiColor::Green.on_default()),
        false => Cell::styled("no", Style::new()),
    }
}

fn candidates(explanation: &ExplanationDocument) -> String {
    if explanation.candidates.is_empty() {
        return format!("no instance was found in {}", explanation.region);
    }
    let names = ["INSTANCE", "CHOSEN", "STATE", "ADDRESS", "PROBED", "WHY"];
    let mut rows = vec![header(names)];
    rows.extend(explanation.candidates.iter().map(row));
    table(&rows)
}

fn row(candidate: &CandidateDocument) -> Vec<Cell> {
    let probed = match candidate.local {
        true => "this one".to_owned(),
        false => ago(candidate.last_probe_ms),
    };
    let why = match &candidate.last_probe_error {
        Some(error) => format!("{}; last probe: {error}", candidate.reason),
        None => candidate.reason.clone(),
    };
    vec![
        candidate.instance.to_string().into(),
        yes_or_no(candidate.chosen),
        candidate.state.to_string().into(),
        candidate.address.to_string().into(),
        probed.into(),
        why.into(),
    ]
}

fn unplaced(addresses: &[UnplacedDocument]) -> String {
    let mut rows = vec![header(["NOBODY AT", "PROBED", "WHY"])];
    rows.extend(addresses.iter().map(|unplaced| {
        let why = unplaced.last_probe_error.clone().unwrap_or_default();
        vec![
            unplaced.address.to_string().into(),
            ago(unplaced.last_probe_ms).into(),
            why.into(),
        ]
    }));
    table(&rows)
}

fn ago(milliseconds: Option<f64>) -> String {
    milliseconds.map_or_else(|| "never".to_owned(), |ms| format!("{:.1} s ago", ms / 1e3))
}
