//! What a benchmark measures of the lines between instances: writing calls, reading calls and answers.

use super::{
    Exec,
    lines::{self, Frame},
};
use crate::{
    call::{Args, Call, Timeouts},
    name::FunctionName,
};

/// The line of the call `String.upcase(text)`; `None` for an invalid name.
pub fn written_call(text: &str) -> Option<Vec<u8>> {
    let call = Call {
        name: FunctionName {
            module: "String".parse().ok()?,
            function: "upcase".parse().ok()?,
        },
        args: Args::from_values(&(text,)).ok()?,
        timeout: std::time::Duration::from_secs(5),
        idempotent: false,
        unsaid: crate::call::Unsaid::default(),
        instance: None,
        key: None,
        key_owner: None,
        after: None,
        boot: None,
        trace: None,
        memory: None,
    };
    let text = Exec::text(&"syd".parse().ok()?, &call, &"request".parse().ok()?);
    let mut line = Vec::new();
    lines::write_call(&mut line, 7, 5000, 7, &text);
    Some(line)
}

/// Reads the line of an answer; whether it is one.
pub fn read_answer(line: &[u8]) -> bool {
    matches!(lines::read_answer(line), Frame::Answer(..))
}

/// Reads the line of a call, as the instance that runs it does; whether it is valid.
pub fn read_call(line: &[u8]) -> bool {
    let timeouts = Timeouts {
        default: std::time::Duration::from_secs(5),
        max: std::time::Duration::from_secs(60),
    };
    Exec::from_line(line, timeouts).1.is_ok()
}
