//! Any bytes as the pickle of a PyTorch checkpoint with a few storages, and as the whole file.
//! `cargo +nightly fuzz run checkpoint`; the checkpoints of `tests/data/checkpoints` are seeds.
#![no_main]

#[path = "../../tests/it/fuzz_common/checkpoint.rs"]
#[allow(dead_code)]
mod checkpoint;
#[path = "../../tests/it/fuzz_common/model.rs"]
mod model;

use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let path = FOLDER.path().join("model.safetensors");
    model::model(&path, input);
    let storages = [16, 64, 432].map(|bytes| vec![0; bytes]);
    model::model(&path, &checkpoint::archive(input, &storages));
});
