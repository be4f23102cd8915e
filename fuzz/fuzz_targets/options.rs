//! Any bytes as an option file, ours or another trainer's. `cargo +nightly fuzz run options`.
#![no_main]

#[path = "../../tests/it/fuzz_common/options.rs"]
mod options;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    options::options(input);
});
