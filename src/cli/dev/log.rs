//! The instances' logs for people: JSON lines made readable again, each behind its instance in its region's colour.

use std::collections::BTreeMap;

use anstyle::{AnsiColor, Style};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::{cli::say, region::Region, telemetry::printable};

const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Blue,
    AnsiColor::BrightRed,
];

/// One line of an instance's log.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) region: Region,
    pub(super) instance: String,
    pub(super) text: String,
}

/// Prints lines on stderr until no instance is left to write one.
pub(super) async fn print_all(mut lines: mpsc::Receiver<Line>) {
    let mut styles: BTreeMap<Region, Style> = BTreeMap::new();
    while let Some(line) = lines.recv().await {
        let next = COLOURS[styles.len() % COLOURS.len()].on_default();
        let style = *styles.entry(line.region).or_insert(next);
        say(&format!(
            "{style}{:>8}{style:#} {}",
            line.instance,
            printable(&readable(&line.text))
        ));
    }
}

/// A JSON line as time, level, message and `name=value` pairs; any other line as it is.
fn readable(text: &str) -> String {
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(text) else {
        return text.to_owned();
    };
    if let Some(Value::Object(mut span)) = fields.remove("span") {
        span.remove("name");
        fields.extend(span);
    }
    let mut take = |name: &str| {
        fields
            .remove(name)
            .map(|value| plain(&value))
            .unwrap_or_default()
    };
    let (timestamp, level, message) = (take("timestamp"), take("level"), take("message"));
    let time = timestamp.get(11..23).unwrap_or(&timestamp);
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!(" {name}={}", plain(value)))
        .collect();
    format!("{time} {level:<5} {message}{fields}")
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_become_readable_and_others_stay() {
        let json = r#"{"timestamp":"2026-08-21T10:11:12.345678Z","level":"INFO","message":"call","attempts":1,"region":"syd"}"#;
        assert_eq!(
            readable(json),
            "10:11:12.345 INFO  call attempts=1 region=syd"
        );
        let spanned = r#"{"timestamp":"2026-08-21T10:11:12.345678Z","level":"WARN","message":"no connection","instance":"syd-1","span":{"request_id":"01M","name":"call"}}"#;
        assert_eq!(
            readable(spanned),
            "10:11:12.345 WARN  no connection instance=syd-1 request_id=01M"
        );
        assert_eq!(
            readable("fly-rpc: no such setting"),
            "fly-rpc: no such setting"
        );
    }
}
