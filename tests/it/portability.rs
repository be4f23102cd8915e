//! Only `src/sys` calls functions that some operating systems lack. Depends on the sources of the
//! repository only.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules, crates and paths that some systems lack.
const SYSTEM_ONLY: [&str; 7] = [
    "std::os::",
    "libc::",
    "signal_hook",
    "windows_sys",
    "\"/proc",
    "target_os",
    "cfg(windows)",
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn system_calls_are_in_the_sys_folder_alone() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&sources, &mut files);
    let own = sources.join("sys");
    let mut outside = Vec::new();
    for file in files.iter().filter(|file| !file.starts_with(&own)) {
        for (i, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            if SYSTEM_ONLY.iter().any(|word| line.contains(word)) {
                outside.push(format!("{}:{}: {}", file.display(), i + 1, line.trim()));
            }
        }
    }
    assert!(
        outside.is_empty(),
        "move these calls to src/sys:\n{}",
        outside.join("\n")
    );
    assert!(files.len() > 50, "the sources were not found");
}
