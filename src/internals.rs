//! What `benches/micro.rs` measures of the layers that nobody sees from outside. Compiled for that benchmark alone.

use std::time::Duration;

use crate::call::{Exec, Timeouts};
pub use crate::{
    cluster::internals::Peers,
    link::internals::{read_answer, written_call},
};

/// Reads the line that asks for a call, as the instance that runs it does; whether it is one.
pub fn read_call(line: &[u8]) -> bool {
    let timeouts = Timeouts {
        default: Duration::from_secs(5),
        max: Duration::from_secs(60),
    };
    Exec::from_line(line, timeouts).1.is_ok()
}
