//! Any bytes as the payload of a record. `cargo +nightly fuzz run decoder`; the first bytes choose
//! geometry, codec and crop.
#![no_main]

#[path = "../../tests/it/fuzz_common/mod.rs"]
mod fuzz_common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_common::decode(input);
});
