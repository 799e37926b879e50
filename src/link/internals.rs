//! What a benchmark measures of this layer: the lines that a caller writes and reads.

use super::frames::{self, Frame};
use crate::{
    call::{Args, Call, Exec},
    name::FunctionName,
};

/// The line that asks for `String.upcase(text)`; `None` where a name is none.
pub fn written_call(text: &str) -> Option<Vec<u8>> {
    let call = Call {
        name: FunctionName {
            module: "String".parse().ok()?,
            function: "upcase".parse().ok()?,
        },
        args: Args::from_values(&(text,)).ok()?,
        timeout: std::time::Duration::from_secs(5),
        idempotent: false,
        instance: None,
        key: None,
        key_owner: None,
        boot: None,
        trace: None,
        memory: None,
    };
    let tail = Exec::tail(&"syd".parse().ok()?, &call, &"request".parse().ok()?);
    let mut line = Vec::new();
    frames::write_call(&mut line, 7, 5000, 7, &tail);
    Some(line)
}

/// Reads the line of an answer; whether it is one.
pub fn read_answer(line: &[u8]) -> bool {
    matches!(frames::read(line), Frame::Answer(..))
}
