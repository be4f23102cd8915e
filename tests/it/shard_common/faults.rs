//! Simulated errors of the system: a small library that makes chosen calls fail, compiled once for
//! each run of the tests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Makes calls of a command fail: after `skip` calls, `call` (open, read, pread, stat, flock) on
/// paths that contain `marker` returns `errno`, `count` times (-1 = always).
pub fn inject<'a>(
    command: &'a mut Command,
    call: &str,
    errno: i32,
    (skip, count): (u64, i64),
    marker: &str,
) -> &'a mut Command {
    command.env("LD_PRELOAD", library()).env(
        "PARAGON_FAULT",
        format!("{call}:{errno}:{skip}:{count}:{marker}"),
    )
}

fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/shard_common/faults.c");
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let (path, made) = (
            folder.join("faults.so"),
            folder.join(format!("faults-{}.so", std::process::id())),
        );
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-fno-delete-null-pointer-checks", "-o"])
            .args([&made, &source])
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        std::fs::rename(&made, &path).unwrap(); // another run may use the old one
        path
    })
}
