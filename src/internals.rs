//! What `benches/micro.rs` measures of the inner layers. Compiled for that benchmark alone.

pub use crate::{
    cluster::internals::Peers,
    protocol::internals::{read_answer, read_call, written_call},
};
