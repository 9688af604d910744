//! `cargo +nightly fuzz run --features libfuzzer bus_requests`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| realtime_fuzz::bus_requests(bytes));
