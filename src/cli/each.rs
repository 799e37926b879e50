//! `fly-rpc call --each`: what came of a call on each of many instances, as a table.

use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::{
    Failure,
    ask::Answer,
    print, say,
    table::{Cell, table},
};
use crate::{
    http::{EntryDocument, FanOutReply},
    reply::milliseconds,
    telemetry::printable_json,
};

/// Prints `answer`, which took so long; a failure if one of the calls is.
pub(super) fn show(answer: &Answer, took: Duration, is_quiet: bool) -> Result<(), Failure> {
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
    match meta.succeeded == meta.asked {
        true => Ok(()),
        false => Err(Failure::Reported(1)),
    }
}

fn row(entry: &EntryDocument) -> [Cell; 3] {
    let instance = entry.instance.as_ref().map(ToString::to_string);
    let result = match (&entry.problem, &entry.result) {
        (Some(document), _) => Cell::coloured(&document.problem, AnsiColor::Red),
        (None, Some(result)) => printable_json(result.get()).into(),
        (None, None) => "null".into(),
    };
    [
        (&entry.region).into(),
        instance.unwrap_or_default().into(),
        result,
    ]
}
