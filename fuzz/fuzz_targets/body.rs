//! The body of `POST /rpc/{region}`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fly_rpc::fuzzing::body(bytes));
