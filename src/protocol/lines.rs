//! The lines between instances: NDJSON, one call or one answer each. Args and results pass through as raw JSON.
//! Why no codec of tokio-util: its `LinesCodec` copies each line and checks it for UTF-8, which the JSON reader does
//! anyway, and both of its codecs read on behind a line that is too long; here a line is a slice of what was read.

use std::{borrow::Cow, io::Write, str::FromStr, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2, memmem};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::{
    json,
    memory::{Budget, NoRoom, Reserved, Share},
    problem::Problem,
    reply::{ProblemDocument, Report, Returned},
    token::Proof,
};

/// The smallest space for one read, in bytes.
const ROOM: usize = 8 << 10;
/// The largest buffer of a connection that is kept uncounted while nothing is in it, in bytes.
pub(crate) const KEPT: usize = 256 << 10;
/// The size, in bytes, up to which the beginning of a line is not counted in the memory budget: where that is full, small
/// calls are still answered, if only by a refusal.
const UNCOUNTED: usize = 8 << 10;

/// What stands before the id of a call or an answer.
pub(super) const ID: &[u8] = b"{\"id\":";
/// What stands before a result.
const RESULT: &[u8] = b"\"result\":";
/// What stands before a function's error, which is the last member of a problem.
const ERROR: &[u8] = b"\"error\":";
/// The most bytes that stand before either: an id, a consistency token, the other members of a problem.
const MAX_START: usize = 2 << 10;

/// The media type of lines.
pub(crate) const NDJSON: &str = "application/x-ndjson";
/// The line that announces that the instance is draining.
pub(crate) const DRAINING_LINE: &[u8] = b"{\"state\":\"draining\"}\n";
/// The line that announces that other functions can be called than before, or with another policy.
pub(crate) const CHANGED_LINE: &[u8] = b"{\"changed\":1}\n";
/// The line that asks the other end whether it still reads.
pub(crate) const PING_LINE: &[u8] = b"{\"ping\":1}\n";
/// The answer to [`PING_LINE`].
pub(crate) const PONG_LINE: &[u8] = b"{\"pong\":1}\n";

/// A call as the line that asks for it, in three parts: what [`begin_call`] writes of its `members`, its arguments, which may
/// be large, and [`END_OF_CALL`].
#[derive(Debug)]
pub(crate) struct CallLine<'a> {
    /// All members, each behind a comma, except the arguments and what is known only when the call leaves.
    pub(super) members: Vec<u8>,
    pub(super) args: Cow<'a, str>,
}

impl CallLine<'_> {
    /// The arguments, in one line.
    pub(crate) fn args(&self) -> &[u8] {
        self.args.as_bytes()
    }

    /// The length of the line in bytes, without what is known only when it leaves.
    pub(crate) fn len(&self) -> usize {
        self.members.len() + self.args.len()
    }
}

pub(crate) const END_OF_CALL: &[u8] = b"}\n";

/// Appends what stands before the arguments of a call; `at_us` is the time on the connection's clock in microseconds.
pub(crate) fn begin_call(
    out: &mut Vec<u8>,
    id: u64,
    timeout_ms: u64,
    at_us: u64,
    line: &CallLine<'_>,
) {
    let starts: [(&[u8], u64); 3] = [
        (ID, id),
        (b",\"timeout_ms\":", timeout_ms),
        (b",\"at_us\":", at_us),
    ];
    for (start, number) in starts {
        out.extend_from_slice(start);
        put_number(out, number);
    }
    out.extend_from_slice(&line.members);
    out.extend_from_slice(b",\"args\":");
}

/// Appends a comma and a member. Its value is visible ASCII, in which JSON escapes only two characters.
pub(super) fn put(out: &mut Vec<u8>, member: &str, word: &str) {
    for part in [",\"", member, "\":\""] {
        out.extend_from_slice(part.as_bytes());
    }
    match memchr2(b'"', b'\\', word.as_bytes()) {
        None => out.extend_from_slice(word.as_bytes()),
        Some(_) => {
            out.extend_from_slice(word.replace('\\', "\\\\").replace('"', "\\\"").as_bytes())
        }
    }
    out.push(b'"');
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends the line that cancels the call `id`, whose caller gave up.
pub(crate) fn write_cancel(out: &mut Vec<u8>, id: u64) {
    let _ = writeln!(out, "{{\"cancel\":{id}}}");
}

pub(crate) fn proof_line(proof: &Proof) -> Vec<u8> {
    format!("{{\"proof\":\"{proof}\"}}\n").into_bytes()
}

/// Appends the line that answers the call `id`; the id is `null` when that of the call could not be read.
pub(crate) fn write_answer(out: &mut Vec<u8>, id: Option<u64>, report: Report) {
    out.extend_from_slice(ID);
    match id {
        Some(id) => put_number(out, id),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b',');
    let start = out.len();
    let Report { result, meta } = report;
    match result {
        Ok(Returned {
            json,
            replayed,
            consistency,
            ..
        }) => {
            if let Some(token) = consistency {
                out.extend_from_slice(b"\"consistency\":");
                out.append(&mut json::to_vec(&token));
                out.push(b',');
            }
            if replayed {
                out.extend_from_slice(b"\"replayed\":true,");
            }
            // With room for the end of the line: for those two bytes a full buffer would double.
            out.reserve(RESULT.len() + json.get().len() + 2);
            out.extend_from_slice(RESULT);
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

/// A line from the instance that runs calls.
#[derive(Debug)]
pub(crate) enum Frame {
    /// The answer to the call with this id.
    Answer(u64, Result<Returned, Box<Problem>>),
    /// A line with this id that is not a valid answer.
    Garbled(u64),
    Draining,
    /// Its functions changed.
    Changed,
    Pong,
    /// No answer to any call: a line that a later release added.
    Other,
    /// Not a JSON object.
    Nonsense,
}

/// What a line from the instance that calls may ask for besides a call.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Control {
    /// Cancel the call with this id unless it has started.
    pub(crate) cancel: Option<u64>,
    /// Answer with [`PONG_LINE`].
    pub(crate) ping: Option<u64>,
    /// The proof that confirms the connection.
    pub(crate) proof: Option<String>,
    /// Makes the line a call.
    id: Option<IgnoredAny>,
}

/// What a line asks for besides a call. A call has an id, and begins with it where this release wrote it.
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
    #[serde(borrow)]
    consistency: Option<&'a RawValue>,
    problem: Option<ProblemDocument>,
    state: Option<String>,
    pong: Option<IgnoredAny>,
    changed: Option<IgnoredAny>,
}

/// Keeps a `null`, which is a result like any other.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// Reads one line from the instance that runs calls.
pub(crate) fn read_answer(line: &[u8]) -> Frame {
    if let Some((id, json)) = plain_answer(line) {
        return Frame::Answer(id, Ok(Returned::fresh(json)));
    }
    match serde_json::from_slice::<Line<'_>>(line) {
        Ok(Line {
            id: Some(id),
            result: Some(result),
            replayed,
            consistency,
            ..
        }) => {
            let returned = Returned {
                json: result.to_owned(),
                replayed,
                // The result is worth more than a token that this release does not take.
                consistency: consistency.and_then(|raw| serde_json::from_str(raw.get()).ok()),
                reserved: None,
            };
            Frame::Answer(id, Ok(returned))
        }
        Ok(Line {
            id: Some(id),
            problem: Some(document),
            ..
        }) => Frame::Answer(id, Err(Box::new(document.problem))),
        Ok(Line { id: Some(id), .. }) => Frame::Garbled(id),
        Ok(Line { pong: Some(_), .. }) => Frame::Pong,
        Ok(Line {
            changed: Some(_), ..
        }) => Frame::Changed,
        Ok(Line { state, .. }) if state.as_deref() == Some("draining") => Frame::Draining,
        Ok(_) => Frame::Other,
        Err(_) => id_of(line).map_or(Frame::Nonsense, Frame::Garbled),
    }
}

/// The id and the result of an answer that is nothing else, as nearly all are, as [`write_answer`] writes it.
fn plain_answer(line: &[u8]) -> Option<(u64, Box<RawValue>)> {
    let mut line = PlainLine(line);
    let id = line.number(ID)?;
    let result = PlainLine(line.0.strip_prefix(b",")?).last(RESULT)?;
    Some((id, serde_json::from_slice(result).ok()?))
}

/// The id at the start of a line that cannot be read.
pub(super) fn id_of(line: &[u8]) -> Option<u64> {
    PlainLine(line).number(ID)
}

/// The rest of a line whose members stand exactly as this release writes them, so that the text before a value tells which
/// it is. It takes less than half of the work of a reader of any JSON, which reads all other lines.
pub(super) struct PlainLine<'a>(pub(super) &'a [u8]);

impl<'a> PlainLine<'a> {
    /// The integer behind `start`.
    pub(super) fn number(&mut self, start: &[u8]) -> Option<u64> {
        let value = self.0.strip_prefix(start)?;
        let (mut number, mut rest) = (0_u64, value);
        while let [digit @ b'0'..=b'9', behind @ ..] = rest {
            let digit = u64::from(digit - b'0');
            number = number.checked_mul(10)?.checked_add(digit)?;
            rest = behind;
        }
        self.0 = rest;
        (rest.len() < value.len()).then_some(number)
    }

    /// The word behind `start`, up to its closing quote.
    pub(super) fn word<T: FromStr>(&mut self, start: &[u8]) -> Option<T> {
        let value = self.0.strip_prefix(start)?;
        let (word, rest) = value.split_at(memchr2(b'"', b'\\', value)?);
        self.0 = rest.strip_prefix(b"\"")?;
        str::from_utf8(word).ok()?.parse().ok()
    }

    /// The value behind `start`, which is that of the last member.
    pub(super) fn last(self, start: &[u8]) -> Option<&'a [u8]> {
        self.0.strip_prefix(start)?.strip_suffix(b"}")
    }
}

/// Splits a stream of bytes into lines, and counts in the memory budget what they take until they are whole.
#[derive(Debug)]
pub(crate) struct Lines {
    buffer: BytesMut,
    searched: usize,
    limit: usize,
    /// The size of the buffer once it grew beyond [`KEPT`], else 0.
    large: usize,
    /// Whether the rest of a line is thrown away as it comes.
    is_skipping: bool,
    /// For what has come of a line, or for a large buffer that waits for the next line.
    reserved: Reserved,
}

/// A line is longer than the limit; its id, where it begins with one.
#[derive(Debug)]
pub(crate) struct TooLong(pub(crate) Option<u64>);

impl Lines {
    /// Lines of at most `limit` bytes, counted in `memory`.
    pub(crate) fn new(limit: usize, memory: &Arc<Budget>) -> Self {
        Self {
            buffer: BytesMut::new(),
            searched: 0,
            limit,
            large: 0,
            is_skipping: false,
            reserved: memory.take(0),
        }
    }

    /// Appends bytes that were read already.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line without its end; blank lines are skipped.
    ///
    /// # Errors
    /// [`TooLong`], until [`Lines::skip`] throws that line away.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let unsearched = &self.buffer[self.searched..];
            let Some(end) = memchr(b'\n', unsearched) else {
                if self.is_skipping {
                    self.buffer.clear();
                }
                self.searched = self.buffer.len();
                return if self.searched > self.limit {
                    Err(TooLong(id_of(&self.buffer)))
                } else {
                    Ok(None)
                };
            };
            let end = self.searched + end;
            if end > self.limit && !self.is_skipping {
                return Err(TooLong(id_of(&self.buffer)));
            }
            let line = self.buffer.split_to(end).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            // Whoever takes a line counts it for as long as it is needed.
            self.reserved.clear();
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    /// The buffer to read into, with space for the next read.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        // A long line is read in pieces that grow with it.
        let more = ROOM.max(self.buffer.len());
        if self.buffer.len() + more > KEPT {
            self.large = self.large.max(self.buffer.len() + more);
        }
        self.buffer.reserve(more);
        &mut self.buffer
    }

    /// Counts what has come of a line that is not whole. If that is next to nothing, a large buffer is kept for the next
    /// large line as long as the budget is little used: to allocate it again costs more than to read the line.
    pub(crate) fn count(&mut self) -> Result<(), NoRoom> {
        self.reserved.clear();
        if self.buffer.len() > UNCOUNTED {
            return self.reserved.grow(self.buffer.len(), Share::Results);
        }
        if self.reserved.grow(self.large, Share::Spare).is_err() {
            self.give_back();
        }
        Ok(())
    }

    /// Drops the first line, also the part that has not arrived. Returns the answer in it, with `null` in
    /// place of its result or of its function's error.
    pub(crate) fn skip(&mut self) -> Frame {
        let end = memchr(b'\n', &self.buffer);
        let start = &self.buffer[..end.unwrap_or(self.buffer.len()).min(MAX_START)];
        let cut = |member: &'static [u8], end: &'static [u8]| {
            memmem::find(start, member).map(|at| (at, member, end))
        };
        // What stands in the result or in the error comes behind it, and no text before it has such quotes.
        let first = [cut(RESULT, b"null}"), cut(ERROR, b"null}}")];
        let frame = match first.into_iter().flatten().min() {
            Some((at, member, end)) => read_answer(&[&start[..at], member, end].concat()),
            None => id_of(start).map_or(Frame::Nonsense, Frame::Garbled),
        };
        match end {
            Some(end) => self.buffer.advance(end + 1),
            None => self.buffer.clear(),
        }
        (self.searched, self.is_skipping) = (0, end.is_none());
        self.reserved.clear();
        self.give_back();
        frame
    }

    /// The id of the answer whose line has begun and is not whole, and how many bytes of it came.
    pub(crate) fn begun(&self) -> Option<(u64, usize)> {
        Some((id_of(&self.buffer)?, self.buffer.len()))
    }

    /// Gives the memory of an empty buffer back.
    pub(crate) fn give_back(&mut self) {
        if self.buffer.is_empty() {
            (self.buffer, self.large) = (BytesMut::new(), 0);
            self.reserved.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::{Executed, FunctionError, Problem},
        reply::Meta,
    };

    /// However the bytes come in: see `fuzz/checks.rs`.
    #[test]
    fn lines_are_what_stands_between_newlines_and_no_longer_than_their_limit() {
        let mut lines = Lines::new(8, &Budget::new(0));
        lines.push(b"{\"a\":1}\n\n{\"b\":2}\r\n123456789\n");
        assert_eq!(lines.next().unwrap().unwrap(), "{\"a\":1}");
        assert_eq!(lines.next().unwrap().unwrap(), "{\"b\":2}\r");
        lines.next().unwrap_err();
    }

    #[test]
    fn a_line_that_is_skipped_leaves_the_next_ones_whole() {
        let mut lines = Lines::new(1000, &Budget::new(0));
        let error = FunctionError::new("Refusal", "\"result\":")
            .with_data(&serde_json::json!({"result": 1}));
        let meta = Meta::untried(None, std::time::Duration::ZERO, "r".parse().unwrap());
        let problem = Problem {
            replayed: true,
            consistency: Some("a".parse().unwrap()),
            ..Problem::function_failed(error)
        };
        let mut failed = Vec::new();
        write_answer(&mut failed, Some(7), Report::new(Err(problem), meta));
        let failed = String::from_utf8(failed).unwrap();
        for start in [
            "{\"id\":7,\"consistency\":\"a\",\"replayed\":true,\"result\":[{\"error\":1",
            failed.trim_end_matches("}}}}\n"),
            "{\"id\":7,\"problem\":{",
        ] {
            lines.push(start.as_bytes());
            assert!(lines.next().unwrap().is_none());
            match lines.skip() {
                Frame::Answer(7, Ok(returned)) => {
                    let token = returned.consistency.unwrap();
                    assert_eq!((token.as_str(), returned.replayed), ("a", true));
                }
                Frame::Answer(7, Err(problem)) => {
                    assert_eq!(problem.executed, Executed::Yes);
                    assert!(problem.error.is_none());
                    let token = problem.consistency.unwrap();
                    assert_eq!((token.as_str(), problem.replayed), ("a", true));
                }
                Frame::Garbled(7) => assert!(start.ends_with("\"problem\":{")),
                other => panic!("{other:?}"),
            }
            lines.push(&[b'x'; 2000]);
            assert!(lines.next().unwrap().is_none());
            assert_eq!(lines.buffer.len(), 0);
            lines.push(b"x\n{}\n");
            assert_eq!(lines.next().unwrap().unwrap(), "{}");
        }
        lines.push(b"<html");
        assert!(matches!(lines.skip(), Frame::Nonsense));
        let mut lines = Lines::new(20, &Budget::new(0));
        lines.push(b"{\"id\":7,\"result\":1234567}\n{}\n");
        for _ in 0..2 {
            assert_eq!(lines.next().unwrap_err().0, Some(7));
        }
        assert!(matches!(lines.skip(), Frame::Answer(7, Ok(_))));
        assert_eq!(lines.next().unwrap().unwrap(), "{}");
    }

    #[test]
    fn a_large_buffer_is_kept_as_long_as_the_budget_is_little_used() {
        for (limit, is_kept) in [(8 * KEPT, false), (64 * KEPT, true)] {
            let memory = Budget::new(limit);
            let mut lines = Lines::new(4 * KEPT, &memory);
            for _ in 0..2 * KEPT / ROOM {
                lines.room().extend_from_slice(&[b'x'; ROOM]);
                lines.count().unwrap();
            }
            assert_eq!(memory.held(), 2 * KEPT);
            lines.push(b"\n{}\n");
            assert_eq!(lines.next().unwrap().unwrap().len(), 2 * KEPT);
            assert_eq!(
                (memory.held(), lines.next().unwrap().unwrap()),
                (0, "{}".into())
            );
            assert!(lines.next().unwrap().is_none());
            lines.count().unwrap();
            assert_eq!(memory.held() > 2 * KEPT, is_kept);
            assert_eq!(lines.buffer.capacity() > 0, is_kept);
            lines.give_back();
            assert_eq!((memory.held(), lines.buffer.capacity()), (0, 0));
        }
    }

    /// What else is read as it was written: see `fuzz/checks.rs`.
    #[test]
    fn a_result_is_on_one_line_and_keeps_its_token() {
        let raw = RawValue::from_string("[1,\n2.0]".to_owned()).unwrap();
        for (replayed, token) in [(false, None), (true, Some("0/1\"\\"))] {
            let returned = Returned {
                replayed,
                consistency: token.map(|token| token.parse().unwrap()),
                ..Returned::fresh(raw.clone())
            };
            let meta = Meta::untried(None, std::time::Duration::ZERO, "r".parse().unwrap());
            let mut line = Vec::new();
            write_answer(&mut line, Some(7), Report::new(Ok(returned), meta));
            let Frame::Answer(7, Ok(read)) = read_answer(&line) else {
                panic!("{}", String::from_utf8_lossy(&line));
            };
            let consistency = read.consistency.as_ref().map(|token| token.as_str());
            assert_eq!(
                (read.json.get(), read.replayed, consistency),
                ("[1, 2.0]", replayed, token)
            );
        }
        for strange in ["\"\"", "\"a b\"", "7", "null"] {
            let line = format!("{{\"id\":7,\"consistency\":{strange},\"result\":1}}");
            match read_answer(line.as_bytes()) {
                Frame::Answer(7, Ok(returned)) => assert_eq!(returned.consistency, None),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_garbled_line_is_known_by_its_id() {
        for line in [
            "{\"id\":7,\"result\":[1",
            "{\"id\":7}",
            "{\"id\":7,\"problem\":{}}",
        ] {
            assert!(
                matches!(read_answer(line.as_bytes()), Frame::Garbled(7)),
                "{line}"
            );
        }
        for line in ["", "<html>", "{\"id\":-1,\"result\":1}", "[]"] {
            assert!(
                matches!(read_answer(line.as_bytes()), Frame::Nonsense),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_not_a_call_is_a_control() {
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
