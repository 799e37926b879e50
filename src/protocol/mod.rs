//! What instances say to each other: paths, headers, lines and proofs. Both ends use it: `link` and `cluster` ask,
//! `http` answers. Owns the form of each message and sends none.

mod catalogue;
mod challenge;
mod exec;
mod introduction;
pub(crate) mod lines;

pub(crate) use self::{
    catalogue::{Catalogue, CatalogueDocument, CatalogueHash},
    challenge::{Challenge, Statement, new_nonce},
    exec::Exec,
    introduction::{Introduction, Readiness},
};

/// The version of what instances say to each other, part of an [`Introduction`].
pub(crate) const PROTOCOL: u32 = 1;

/// The path at which an instance introduces itself.
pub(crate) const INTRODUCTION: &str = "/internal/region";
/// The path at which an instance lists its functions.
pub(crate) const FUNCTIONS: &str = "/internal/functions";
/// The path that takes calls, and that is upgraded to [`LINES`].
pub(crate) const EXEC: &str = "/internal/exec";
/// The paths that an instance may ask for with a proof instead of the token.
pub(crate) const PROVABLE: [&str; 2] = [INTRODUCTION, FUNCTIONS];

/// The protocol that a request for [`EXEC`] is upgraded to: lines of JSON in both directions.
pub(crate) const LINES: &str = "fly-rpc-lines";

/// The header of a challenge's nonce.
pub(crate) const NONCE: &str = "rpc-nonce";
/// The header of a proof, in requests and answers.
pub(crate) const PROOF: &str = "rpc-proof";
/// The header of an upgrade that carries the time on the connection's clock, in microseconds.
pub(crate) const CLOCK: &str = "rpc-clock-us";
/// The header of a call that was already forwarded, so that it is not forwarded again.
pub(crate) const FORWARDED: &str = "rpc-forwarded";
/// The header of an answer that carries the state of the instance.
pub(crate) const STATE: &str = "rpc-state";
/// The value of [`STATE`] on a draining instance.
pub(crate) const DRAINING: &str = "draining";
