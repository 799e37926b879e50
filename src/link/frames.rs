//! The lines that travel between instances: NDJSON, one call or one answer each. Args, results and problems pass
//! through as raw JSON. Owns their form; when they travel is the stream's affair.

use std::io::Write;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::{
    json,
    problem::Problem,
    reply::{Meta, ProblemDocument, Returned},
    token::Proof,
};

/// How many bytes are read at once, at least.
const ROOM: usize = 8 << 10;

/// The media type of lines.
pub(crate) const NDJSON: &str = "application/x-ndjson";
/// The line by which an instance announces to its peers that it is draining.
pub(crate) const DRAINING_LINE: &[u8] = b"{\"state\":\"draining\"}\n";
/// The line that asks the peer for a sign of life.
pub(crate) const PING_LINE: &[u8] = b"{\"ping\":1}\n";
/// The answer to [`PING_LINE`].
pub(crate) const PONG_LINE: &[u8] = b"{\"pong\":1}\n";

/// Appends the line that asks for a call: `tail` is what `Exec` wrote of it, `at_us` the time on the connection's clock,
/// in microseconds.
pub(super) fn write_call(out: &mut Vec<u8>, id: u64, timeout_ms: u64, at_us: u64, tail: &[u8]) {
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "{{\"id\":{id},\"timeout_ms\":{timeout_ms},\"at_us\":{at_us},"
    );
    out.extend_from_slice(tail);
    out.push(b'\n');
}

/// Appends the line that takes back the call `id`, whose caller gave up.
pub(super) fn write_cancel(out: &mut Vec<u8>, id: u64) {
    let _ = writeln!(out, "{{\"cancel\":{id}}}");
}

/// The line that proves to the peer that the secret is known.
pub(super) fn proof_line(proof: &Proof) -> Vec<u8> {
    format!("{{\"proof\":\"{proof}\"}}\n").into_bytes()
}

/// Appends the line that answers the call `id`; `null` stands for an id that could not be read.
pub(crate) fn write_answer(
    out: &mut Vec<u8>,
    id: Option<u64>,
    result: Result<Returned, Problem>,
    meta: Meta,
) {
    let _ = match id {
        Some(id) => write!(out, "{{\"id\":{id},"),
        None => write!(out, "{{\"id\":null,"),
    };
    let start = out.len();
    match result {
        Ok(Returned { json, replayed }) => {
            if replayed {
                out.extend_from_slice(b"\"replayed\":true,");
            }
            out.extend_from_slice(b"\"result\":");
            out.extend_from_slice(json.get().as_bytes());
        }
        Err(problem) => {
            out.extend_from_slice(b"\"problem\":");
            out.append(&mut json::to_vec(&ProblemDocument::new(problem, meta)));
        }
    }
    json::join_lines(&mut out[start..]);
    out.extend_from_slice(b"}\n");
}

/// What a line from a peer says.
#[derive(Debug)]
pub(super) enum Frame {
    /// The answer to the call with this id.
    Answer(u64, Result<Returned, Box<ProblemDocument>>),
    /// Something else than an answer, about the call with this id.
    Garbled(u64),
    /// The peer is draining.
    Draining,
    /// A sign of life, or something that a newer release says: no answer to any call.
    Other,
    /// No JSON object.
    Nonsense,
}

/// What a caller's line asks for besides a call.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Control {
    /// Take back the call with this id unless it has started.
    pub(crate) cancel: Option<u64>,
    /// Answer with [`PONG_LINE`].
    pub(crate) ping: Option<u64>,
    /// The caller knows the cluster's secret.
    pub(crate) proof: Option<String>,
    /// Makes the line a call.
    id: Option<IgnoredAny>,
}

/// What a line asks for that is no call. A call has an id, and begins with it where this release wrote it.
pub(crate) fn control(line: &[u8]) -> Option<Control> {
    if line.starts_with(b"{\"id\"") {
        return None;
    }
    let control: Option<Control> = serde_json::from_slice(line).ok();
    control.filter(|control| control.id.is_none())
}

#[derive(Deserialize)]
struct Line<'a> {
    id: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(default)]
    replayed: bool,
    problem: Option<Box<ProblemDocument>>,
    state: Option<String>,
}

/// What is there, also when it is `null`.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// Reads one line from a peer.
pub(super) fn read(line: &[u8]) -> Frame {
    match serde_json::from_slice::<Line<'_>>(line) {
        Ok(Line {
            id: Some(id),
            result: Some(result),
            replayed,
            ..
        }) => {
            let json = result.to_owned();
            Frame::Answer(id, Ok(Returned { json, replayed }))
        }
        Ok(Line {
            id: Some(id),
            problem: Some(problem),
            ..
        }) => Frame::Answer(id, Err(problem)),
        Ok(Line { id: Some(id), .. }) => Frame::Garbled(id),
        Ok(Line { state, .. }) if state.as_deref() == Some("draining") => Frame::Draining,
        Ok(_) => Frame::Other,
        Err(_) => id_of(line).map_or(Frame::Nonsense, Frame::Garbled),
    }
}

/// The id with which a line begins that is no JSON.
fn id_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"id\":")?;
    let digits = rest.split(|byte| !byte.is_ascii_digit()).next()?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Bytes as they come, lines as they go.
#[derive(Debug)]
pub(crate) struct Lines {
    buffer: BytesMut,
    searched: usize,
    limit: usize,
}

/// A line that is longer than it may be.
#[derive(Debug)]
pub(crate) struct TooLong;

impl Lines {
    /// Lines of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            limit,
        }
    }

    /// Takes the bytes that came.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end; empty ones are left out.
    ///
    /// # Errors
    /// A line is longer than the limit; there is no way to read on behind it.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let unseen = &self.buffer[self.searched..];
            let Some(end) = memchr(b'\n', unseen) else {
                self.searched = self.buffer.len();
                return if self.searched > self.limit {
                    Err(TooLong)
                } else {
                    Ok(None)
                };
            };
            let line = self.buffer.split_to(self.searched + end).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            if line.len() > self.limit {
                return Err(TooLong);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// Where the next bytes are read into, with room for some.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        self.buffer.reserve(ROOM);
        &mut self.buffer
    }

    /// How many bytes wait to be taken as lines.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// What came behind the last line's end.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.buffer.split().freeze();
        self.searched = 0;
        (!rest.trim_ascii().is_empty()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_the_bytes_come_in() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\n{\"c\"";
        for size in 1..text.len() {
            let mut lines = Lines::new(100);
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.next().unwrap() {
                    found.push(line.trim_ascii().to_vec());
                }
            }
            found.extend(lines.rest().map(|rest| rest.to_vec()));
            assert_eq!(found, [&b"{\"a\":1}"[..], b"{\"b\":2}", b"{\"c\""]);
        }
        let mut lines = Lines::new(3);
        lines.push(b"123\n1234");
        assert_eq!(lines.next().unwrap().unwrap(), "123");
        lines.next().unwrap_err();
    }

    #[test]
    fn what_is_written_is_read() {
        let meta = || Meta::untried(None, std::time::Duration::ZERO, "r".parse().unwrap());
        let line = |id, result| {
            let mut line = Vec::new();
            write_answer(&mut line, id, result, meta());
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            line
        };
        for text in ["null", "[1,\n2.0]", "\"\\n\""] {
            let raw = RawValue::from_string(text.to_owned()).unwrap();
            for replayed in [false, true] {
                let json = raw.clone();
                match read(&line(Some(7), Ok(Returned { json, replayed }))) {
                    Frame::Answer(7, Ok(returned)) => assert_eq!(
                        (returned.json.get(), returned.replayed),
                        (&*text.replace('\n', " "), replayed)
                    ),
                    other => panic!("{other:?}"),
                }
            }
        }
        let problem = || Problem::new(crate::problem::Code::Overloaded, "busy");
        match read(&line(Some(7), Err(problem()))) {
            Frame::Answer(7, Err(document)) => assert_eq!(document.detail, "busy"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(read(&line(None, Err(problem()))), Frame::Other));
        assert!(matches!(read(DRAINING_LINE), Frame::Draining));
    }

    #[test]
    fn a_garbled_line_is_told_by_its_id() {
        for line in [
            "{\"id\":7,\"result\":[1",
            "{\"id\":7}",
            "{\"id\":7,\"problem\":{}}",
        ] {
            assert!(matches!(read(line.as_bytes()), Frame::Garbled(7)), "{line}");
        }
        for line in ["", "<html>", "{\"id\":-1,\"result\":1}", "[]"] {
            assert!(matches!(read(line.as_bytes()), Frame::Nonsense), "{line}");
        }
    }

    #[test]
    fn a_line_of_a_newer_release_is_no_answer_and_no_nonsense() {
        for line in [
            &b"{}"[..],
            b"{\"weather\":\"fine\"}",
            b"{\"state\":\"resting\"}",
            PONG_LINE,
        ] {
            assert!(matches!(read(line), Frame::Other), "{line:?}");
        }
    }

    #[test]
    fn what_is_no_call_is_a_control() {
        let mut out = Vec::new();
        write_cancel(&mut out, 7);
        assert_eq!(control(&out).unwrap().cancel, Some(7));
        assert_eq!(control(PING_LINE).unwrap().ping, Some(1));
        for call in ["{\"id\":7,\"cancel\":7}", "{\"cancel\":7,\"id\":7}"] {
            assert!(control(call.as_bytes()).is_none(), "{call}");
        }
        assert!(control(b"<html>").is_none());
    }
}
