//! Any bytes as the log of a run. `cargo +nightly fuzz run log`.
#![no_main]

#[path = "../../tests/it/fuzz_common/mod.rs"]
mod fuzz_common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_common::read_log(input);
});
