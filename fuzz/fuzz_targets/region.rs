//! A region, by itself and in a path.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fly_rpc::fuzzing::region(bytes));
