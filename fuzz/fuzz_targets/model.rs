//! Any bytes as a network file. `cargo +nightly fuzz run model`.
#![no_main]

#[path = "../../tests/it/fuzz_common/model.rs"]
mod model;

use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    model::model(&FOLDER.path().join("model.safetensors"), input);
});
