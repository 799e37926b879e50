//! Answers of a DNS server, to the table of peers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fly_rpc::fuzzing::dns(bytes));
