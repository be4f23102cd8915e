//! Any bytes as a shard, its checksums made right. `cargo +nightly fuzz run reader`; the golden set
//! gives the manifest.
#![no_main]

#[path = "../../tests/it/fuzz_common/mod.rs"]
mod fuzz_common;

use paragon::shard::manifest::Manifest;
use std::path::Path;
use std::sync::LazyLock;

static SET: LazyLock<(tempfile::TempDir, Manifest)> = LazyLock::new(|| {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shards/golden");
    (
        tempfile::tempdir().unwrap(),
        Manifest::read(&golden).unwrap(),
    )
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (folder, manifest) = &*SET;
    let mut shard = input.to_vec();
    fuzz_common::reseal(&mut shard);
    fuzz_common::install(folder.path(), manifest, &shard);
    fuzz_common::read_set(folder.path());
});
