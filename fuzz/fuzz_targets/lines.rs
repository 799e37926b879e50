//! The lines that travel between instances, both ways.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fly_rpc::fuzzing::lines(bytes));
