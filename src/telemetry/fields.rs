//! The text of a line of the log. As JSON, its fields are written as they come: the library's own format goes through a
//! map, and parses those of the span again for each line. For a terminal, the characters that it would obey are escaped.

use std::{
    borrow::Cow,
    fmt::{self, Write},
    time::SystemTime,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::LookupSpan,
};

/// What most lines need, in bytes.
const USUAL_LINE: usize = 512;
/// The target of a line that a library wrote through the crate `log`.
const LOG: &str = "log";
/// What such a line has as fields: its own target, and where it was written on the machine that built this program.
const OF_LOG: [&str; 4] = [LOG_TARGET, "log.module_path", "log.file", "log.line"];
const LOG_TARGET: &str = "log.target";

/// `text` with the characters that a terminal obeys escaped: what others sent cannot move the cursor, begin a line, or
/// change the order of other text.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed, |it| it.escape_default().to_string())
}

/// JSON text with those of these characters escaped that may stand in a string; its value stays the same.
pub(crate) fn printable_json(text: &str) -> Cow<'_, str> {
    let is_in_string = |character: char| is_obeyed(character) && !"\n\r\t".contains(character);
    escaped(text, is_in_string, |it| {
        let mut units = [0; 2];
        let units = it.encode_utf16(&mut units).iter();
        units.map(|unit| format!("\\u{unit:04x}")).collect()
    })
}

/// Whether a terminal shows nothing for a character, and may obey it: those of Unicode's categories Cc, Zl, Zp and, as of
/// Unicode 16, Cf (<https://www.unicode.org/Public/16.0.0/ucd/extracted/DerivedGeneralCategory.txt>). Without those that join
/// and part signs, as U+200C and U+200D do in Persian and in emoji, and without those that are signs of their own.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}'
        )
}

fn escaped(
    text: &str,
    is_obeyed: impl Fn(char) -> bool,
    escape: impl Fn(char) -> String,
) -> Cow<'_, str> {
    if !text.contains(&is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|character| match is_obeyed(character) {
        true => escape(character),
        false => character.to_string(),
    });
    Cow::Owned(escaped.collect())
}

pub(super) fn put_printable(
    writer: &mut Writer<'_>,
    field: &Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => writer.write_str(&printable(&text)),
        name if OF_LOG.contains(&name) => Ok(()),
        name => write!(writer, "{name}={}", printable(&text)),
    }
}

/// Writes a line as a JSON object: its time, its level, the `target` where a library wrote it, its fields, and as `span` those
/// of the span around it, which became an object when the span began.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonLine;

impl<S> FormatEvent<S, Self> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, Self>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::with_capacity(USUAL_LINE);
        line.push_str("{\"timestamp\":\"");
        write!(
            line,
            "{}",
            humantime::format_rfc3339_micros(SystemTime::now())
        )?;
        line.push_str("\",\"level\":\"");
        line.push_str(event.metadata().level().as_str());
        line.push('"');
        // What a library says does not name what it is about.
        let target = event.metadata().target();
        if !target.starts_with(env!("CARGO_CRATE_NAME")) && target != LOG {
            LineMembers(&mut line).put_text("target", |text| text.write_str(target));
        }
        event.record(&mut LineMembers(&mut line));
        if let Some(span) = context.lookup_current() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<Self>>();
            line.push_str(",\"span\":");
            line.push_str(fields.map_or("{}", |fields| &fields.fields));
            // Opened again, for one more member.
            line.pop();
            LineMembers(&mut line).put_text("name", |text| text.write_str(span.name()));
            line.push('}');
        }
        line.push_str("}\n");
        writer.write_str(&line)
    }
}

impl FormatFields<'_> for JsonLine {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'_>, fields: R) -> fmt::Result {
        let mut object = "{".to_owned();
        fields.record(&mut LineMembers(&mut object));
        object.push('}');
        writer.write_str(&object)
    }

    fn add_fields(
        &self,
        current: &mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        current.fields.pop();
        fields.record(&mut LineMembers(&mut current.fields));
        current.fields.push('}');
        Ok(())
    }
}

/// Appends members to a JSON object that is open.
struct LineMembers<'a>(&'a mut String);

impl LineMembers<'_> {
    fn begin(&mut self, name: &str) {
        let Self(object) = self;
        if !object.ends_with('{') {
            object.push(',');
        }
        object.push('"');
        object.push_str(name);
        object.push_str("\":");
    }

    fn put(&mut self, name: &str, value: impl fmt::Display) {
        self.begin(name);
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{value}");
    }

    fn put_text(&mut self, name: &str, write: impl FnOnce(&mut Escaped<'_>) -> fmt::Result) {
        self.begin(name);
        self.0.push('"');
        // As above.
        let _ = write(&mut Escaped(self.0));
        self.0.push('"');
    }
}

/// Appends what is written to the text of a JSON string.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        if text.bytes().any(is_escaped) {
            let quoted = serde_json::Value::from(text).to_string();
            self.0.push_str(&quoted[1..quoted.len() - 1]);
        } else {
            self.0.push_str(text);
        }
        Ok(())
    }
}

impl Visit for LineMembers<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), serde_json::Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !OF_LOG.contains(&field.name()) {
            self.put(field.name(), value);
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let name = match field.name() {
            LOG_TARGET => "target",
            name if OF_LOG.contains(&name) => return,
            name => name,
        };
        self.put_text(name, |text| text.write_str(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field.name(), |text| write!(text, "{value:?}"));
    }
}
