//! The fields of lines: of spans as JSON text, written as they come, since the library's own form sorts them through a map,
//! which took an eighth of the processor time of a forwarded call; and for a terminal without what it would obey.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

/// `text` with its control characters escaped: what others sent moves no cursor and makes no second line.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|character| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    });
    Cow::Owned(escaped.collect())
}

/// JSON text with the control characters escaped that JSON allows in a string, which change nothing in its value.
pub(crate) fn printable_json(text: &str) -> Cow<'_, str> {
    let is_obeyed = |character: char| character.is_control() && !"\n\r\t".contains(character);
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|character| match is_obeyed(character) {
        true => format!("\\u{:04x}", u32::from(character)),
        false => character.to_string(),
    });
    Cow::Owned(escaped.collect())
}

/// Writes one field of a line for a terminal.
pub(super) fn put_printable(
    writer: &mut Writer<'_>,
    field: &Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => writer.write_str(&printable(&text)),
        name => write!(writer, "{name}={}", printable(&text)),
    }
}

/// Writes the fields of a span as a JSON object.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonSpanFields;

impl FormatFields<'_> for JsonSpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'_>, fields: R) -> fmt::Result {
        writer.write_char('{')?;
        let mut members = Members {
            writer: &mut writer,
            is_first: true,
            outcome: Ok(()),
        };
        fields.record(&mut members);
        members.outcome?;
        writer.write_char('}')
    }

    fn add_fields(
        &self,
        current: &mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let is_first = current.fields == "{}";
        current.fields.pop();
        let mut members = Members {
            writer: &mut current.fields,
            is_first,
            outcome: Ok(()),
        };
        fields.record(&mut members);
        let outcome = members.outcome;
        current.fields.push('}');
        outcome
    }
}

struct Members<'a, W> {
    writer: &'a mut W,
    is_first: bool,
    outcome: fmt::Result,
}

impl<W: Write> Members<'_, W> {
    fn put(&mut self, field: &Field, value: &serde_json::Value) {
        let comma = if self.is_first { "" } else { "," };
        self.is_first = false;
        self.outcome = self
            .outcome
            .and_then(|()| write!(self.writer, "{comma}\"{}\":{value}", field.name()));
    }
}

impl<W: Write> Visit for Members<'_, W> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, &value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, &value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        assert_eq!(printable("syd-1 ü"), "syd-1 ü");
        assert_eq!(
            printable("a\u{1b}[2Jb\r\n\u{9b}c\u{7f}"),
            "a\\u{1b}[2Jb\\r\\n\\u{9b}c\\u{7f}"
        );
        assert_eq!(printable_json("[\n\"\u{9b}2J\"]"), "[\n\"\\u009b2J\"]");
    }
}
