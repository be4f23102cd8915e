//! Any bytes as a picture file: `cargo +nightly fuzz run picture`. Files of `tests/pictures` and of
//! any collection are good seeds.
#![no_main]

#[path = "../../tests/fuzz_common/mod.rs"]
mod fuzz_common;

use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_common::picture(input, FOLDER.path());
});
