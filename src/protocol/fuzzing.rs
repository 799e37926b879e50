//! What must hold of the lines of a peer that sends anything, for fuzzing and for unit tests.

use std::time::Duration;

use bytes::Bytes;

use super::lines::{self, Frame, Lines};
use crate::reply::Meta;

/// The longest line.
const LIMIT: usize = 1 << 10;

/// The lines of a peer's answer; what is an answer stays one when we write it ourselves.
pub(crate) fn answers(bytes: &[u8]) {
    for line in split(bytes) {
        let Frame::Answer(id, result) = lines::read_answer(&line) else {
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
        lines::write_answer(&mut written, Some(id), sent, meta);
        assert_eq!(
            written.iter().position(|byte| *byte == b'\n'),
            Some(written.len() - 1)
        );
        match (lines::read_answer(&written), result) {
            (Frame::Answer(again, Ok(received)), Ok(result)) => {
                assert_eq!(
                    (again, received.json.get().len()),
                    (id, result.json.get().len())
                );
            }
            (Frame::Answer(again, Err(received)), Err(document)) => {
                assert_eq!(
                    (again, received.code, received.executed),
                    (id, document.code, document.executed)
                );
                assert!(
                    received.detail.len() <= 256 && document.detail.starts_with(&received.detail)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The lines in `bytes`, which are the same however the bytes come in.
pub(crate) fn split(bytes: &[u8]) -> Vec<Bytes> {
    let found = split_in_pieces(bytes, bytes.len().max(1));
    assert_eq!(split_in_pieces(bytes, 1), found);
    assert_eq!(split_in_pieces(bytes, 7), found);
    found
}

fn split_in_pieces(bytes: &[u8], size: usize) -> Vec<Bytes> {
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
