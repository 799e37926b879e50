//! `fly-rpc call --each`: what came of a call on each of many instances, as a table.

use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::{
    Failure,
    ask::Answer,
    print, say,
    table::{Cell, header, table},
};
use crate::{
    http::{EntryDocument, FanOutReply},
    reply::milliseconds,
    telemetry::{printable, printable_json},
};

/// Prints `answer`, which took so long; a failure if one of the calls is.
pub(super) fn show(answer: &Answer, took: Duration, is_quiet: bool) -> Result<(), Failure> {
    let FanOutReply { results, meta } = answer.document()?;
    let mut rows = vec![header(["REGION", "INSTANCE", "RESULT"])];
    rows.extend(results.iter().map(row));
    print(&table(&rows))?;
    if !is_quiet {
        let (dim, took) = (Style::new().dimmed(), milliseconds(took));
        say(&format!(
            "{dim}{} of {} have a result · {:.1} ms, {took:.1} ms from here · request {}{dim:#}",
            meta.succeeded, meta.asked, meta.elapsed_ms, meta.request_id
        ));
    }
    match meta.succeeded == meta.asked {
        true => Ok(()),
        false => Err(Failure::Told),
    }
}

fn row(entry: &EntryDocument) -> Vec<Cell> {
    let instance = entry.instance.as_ref().map(ToString::to_string);
    let result = match (&entry.problem, &entry.result) {
        (Some(problem), _) => {
            let (code, executed) = (&problem.word, problem.executed);
            let text = format!("{code} (executed: {executed}): {}", problem.detail);
            Cell::styled(printable(&text), AnsiColor::Red.on_default())
        }
        (None, Some(result)) => printable_json(result.get()).into(),
        (None, None) => "null".to_owned().into(),
    };
    vec![
        entry.region.to_string().into(),
        instance.unwrap_or_default().into(),
        result,
    ]
}
