//! Any bytes as an image file: `cargo +nightly fuzz run image`. Files of `tests/images` and of
//! any collection are good seeds.
#![no_main]

#[path = "../../tests/it/fuzz_common/mod.rs"]
mod fuzz_common;

use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    fuzz_common::picture(input, FOLDER.path());
});
