//! Tokens, proofs and nonces, in headers and in settings.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fly_rpc::fuzzing::tokens(bytes));
