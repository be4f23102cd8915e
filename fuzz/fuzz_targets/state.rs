//! Any bytes as the state of a run, as they are and with their checksum made right. `cargo +nightly
//! fuzz run state`; a seed lies in tests/data.
#![no_main]

#[path = "../../tests/it/fuzz_common/mod.rs"]
mod fuzz_common;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_common::read_state(input);
    let mut state = input.to_vec();
    fuzz_common::reseal_state(&mut state);
    fuzz_common::read_state(&state);
});
