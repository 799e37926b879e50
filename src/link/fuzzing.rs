//! What a fuzzer holds against this layer: the answers of a peer that says anything.

use std::time::Duration;

use bytes::Bytes;

use super::frames::{self, Frame, Lines};
use crate::reply::Meta;

/// The longest line.
const LIMIT: usize = 1 << 10;

/// The lines of a peer's answer; what is an answer stays one when we write it ourselves.
pub(crate) fn answers(bytes: &[u8]) {
    for line in lines(bytes) {
        let Frame::Answer(id, result) = frames::read(&line) else {
            continue;
        };
        let Ok(request_id) = "fuzz".parse() else {
            unreachable!("this is a good name");
        };
        let sent = match &result {
            Ok(result) => Ok(result.clone()),
            Err(document) => Err(document.as_ref().clone().into_problem()),
        };
        let mut written = Vec::new();
        let meta = Meta::untried(None, Duration::ZERO, request_id);
        frames::write_answer(&mut written, Some(id), sent, meta);
        assert_eq!(
            written.iter().position(|byte| *byte == b'\n'),
            Some(written.len() - 1)
        );
        match (frames::read(&written), result) {
            (Frame::Answer(again, Ok(heard)), Ok(result)) => {
                assert_eq!(
                    (again, heard.json.get().len()),
                    (id, result.json.get().len())
                );
            }
            (Frame::Answer(again, Err(heard)), Err(document)) => {
                assert_eq!(
                    (again, heard.code, heard.executed),
                    (id, document.code, document.executed)
                );
                assert!(heard.detail.len() <= 256 && document.detail.starts_with(&heard.detail));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The lines in `bytes`, which are the same however the bytes come in.
pub(crate) fn lines(bytes: &[u8]) -> Vec<Bytes> {
    let found = lines_in_pieces(bytes, bytes.len().max(1));
    assert_eq!(lines_in_pieces(bytes, 1), found);
    assert_eq!(lines_in_pieces(bytes, 7), found);
    found
}

fn lines_in_pieces(bytes: &[u8], size: usize) -> Vec<Bytes> {
    let (mut lines, mut found) = (Lines::new(LIMIT), Vec::new());
    for piece in bytes.chunks(size) {
        lines.push(piece);
        loop {
            match lines.next() {
                Ok(Some(line)) => found.push(line),
                Ok(None) => break,
                Err(_) => return found,
            }
        }
    }
    found
}
