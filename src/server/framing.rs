//! Finds requests whose head tells their end twice, by a length and by chunks: two readers may then end them at different
//! bytes (RFC 9112, section 6.3). hyper drops the length without a word, so the bytes are watched as they are read. Only
//! finds; what is no HTTP is hyper's to refuse, and the answer is http's.

use httparse::{EMPTY_HEADER, Request, Status};
use memchr::{memchr, memmem};

use super::{MAX_HEAD, MAX_HEADERS};

/// Where in its requests a connection is.
#[derive(Debug, Default)]
pub(super) struct Framing {
    at: At,
    /// What came of a head, or of a line, that is not whole yet.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum At {
    #[default]
    Head,
    /// In a body of which so many bytes are to come.
    Body(u64),
    /// In the line that tells the size of a chunk.
    ChunkSize,
    /// In a chunk of which so many bytes are to come, its line end among them.
    Chunk(u64),
    /// In the lines behind the last chunk.
    Trailer,
    /// Behind a head that tells its end twice.
    Double,
    /// Behind what hyper does not read either.
    Over,
}

impl Framing {
    /// Follows `bytes`, which came next; whether they, or earlier ones, had a head that tells its end twice.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && !matches!(self.at, At::Double | At::Over) {
            let taken = match self.at {
                At::Body(left) | At::Chunk(left) => self.skip(left, bytes.len()),
                _ => self.hold(bytes),
            };
            bytes = &bytes[taken..];
        }
        self.at == At::Double
    }

    fn skip(&mut self, left: u64, there: usize) -> usize {
        let taken = usize::try_from(left).map_or(there, |left| left.min(there));
        self.at = match (self.at, left - taken as u64) {
            (At::Body(_), 0) => At::Head,
            (At::Body(_), left) => At::Body(left),
            (_, 0) => At::ChunkSize,
            (_, left) => At::Chunk(left),
        };
        taken
    }

    /// Takes `bytes` to the end of the head or the line that they are in, and reads it once it is whole.
    fn hold(&mut self, bytes: &[u8]) -> usize {
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        // The end may have begun in what was held.
        let searched = before.saturating_sub(3);
        let Some(end) = end_of(self.at, &self.held[searched..]).map(|end| searched + end) else {
            if self.held.len() > MAX_HEAD {
                self.at = At::Over;
            }
            return bytes.len();
        };
        self.held.truncate(end);
        self.at = match self.at {
            At::Head => behind_head(&self.held),
            At::ChunkSize => behind_size(&self.held),
            _ if self.held.trim_ascii().is_empty() => At::Head,
            trailer => trailer,
        };
        self.held.clear();
        end.saturating_sub(before)
    }
}

/// The position behind the end of a head, which is an empty line, or of a line.
fn end_of(at: At, text: &[u8]) -> Option<usize> {
    if at != At::Head {
        return memchr(b'\n', text).map(|end| end + 1);
    }
    let crlf = memmem::find(text, b"\n\r\n").map(|end| end + 3);
    let lf = memmem::find(text, b"\n\n").map(|end| end + 2);
    crlf.into_iter().chain(lf).min()
}

fn behind_head(head: &[u8]) -> At {
    if head.trim_ascii().is_empty() {
        return At::Head;
    }
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let Ok(Status::Complete(_)) = request.parse(head) else {
        return At::Over;
    };
    let value = |name: &str| {
        let mut headers = request.headers.iter();
        headers.find_map(|header| {
            header
                .name
                .eq_ignore_ascii_case(name)
                .then_some(header.value)
        })
    };
    match (value("transfer-encoding"), value("content-length")) {
        (Some(_), Some(_)) => At::Double,
        (Some(_), None) => At::ChunkSize,
        (None, Some(length)) => match str::from_utf8(length).map(str::parse) {
            Ok(Ok(0)) => At::Head,
            Ok(Ok(length)) => At::Body(length),
            _ => At::Over,
        },
        (None, None) => At::Head,
    }
}

fn behind_size(line: &[u8]) -> At {
    match httparse::parse_chunk_size(line) {
        Ok(Status::Complete((_, 0))) => At::Trailer,
        Ok(Status::Complete((_, size))) => At::Chunk(size.saturating_add(2)),
        _ => At::Over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    const LENGTH: &str = "\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n12\n\r\n";
    const CHUNKS: &str =
        "POST / HTTP/1.1\ntransfer-encoding: chunked\n\n3;a=b\r\n\r\n\r\r\n0\r\nx: y\r\n\r\n";
    const DOUBLE: &str =
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH: 5\r\n\r\n";

    /// Whether and where a text tells an end twice, read in pieces of `size`.
    fn found(text: &str, size: usize) -> Option<usize> {
        let mut framing = Framing::default();
        let mut pieces = text.as_bytes().chunks(size);
        pieces.position(|piece| framing.follow(piece))
    }

    #[test]
    fn a_double_end_is_found_behind_any_requests_however_the_bytes_come() {
        let whole = [GET, LENGTH, CHUNKS, GET].concat();
        let double = format!("{whole}{DOUBLE}");
        for size in 1..double.len() {
            assert_eq!(found(&whole, size), None, "{size}");
            assert_eq!(
                found(&double, size),
                Some((double.len() - 1) / size),
                "{size}"
            );
        }
    }

    #[test]
    fn a_body_is_no_head() {
        let body = format!(
            "POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{DOUBLE}",
            DOUBLE.len()
        );
        let chunk = format!(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{DOUBLE}\r\n0\r\n\r\n",
            DOUBLE.len()
        );
        for size in 1..body.len() {
            assert_eq!((found(&body, size), found(&chunk, size)), (None, None));
        }
    }

    #[test]
    fn what_hyper_refuses_is_not_followed() {
        for text in [
            "\x16\x03\x01\n\n",
            "POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        ] {
            assert_eq!(found(&format!("{text}{DOUBLE}"), 7), None);
        }
        assert_eq!(found(&"x".repeat(MAX_HEAD + 2), 1000), None);
    }
}
