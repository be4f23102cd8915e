//! The location of the reference data. A small part is in `tests/data`; the rest is in the folder
//! that `PARAGON_SHARED` names, or else in `../shared` beside the project. Depends on the
//! environment only. If data is absent, prints `SKIP` with the reason, or fails the test if
//! `PARAGON_REQUIRE_REFERENCE=1` is set, as in `.ci/run`.

use std::path::{Path, PathBuf};

/// A file or folder of the reference data, by its path within it; `None` if it is absent and need
/// not exist.
pub fn reference(test: &str, path: &str) -> Option<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let outside =
        std::env::var_os("PARAGON_SHARED").map_or_else(|| project.join("../shared"), PathBuf::from);
    let found = [project.join("tests/data"), outside.clone()]
        .into_iter()
        .map(|root| root.join(path))
        .find(|full| full.exists());
    if found.is_none() {
        let reason = format!(
            "{test}: there is no {path} in tests/data or {} (set PARAGON_SHARED)",
            outside.display()
        );
        let required = std::env::var("PARAGON_REQUIRE_REFERENCE")
            .is_ok_and(|value| !["", "0"].contains(&value.as_str()));
        assert!(!required, "PARAGON_REQUIRE_REFERENCE is set, and {reason}");
        println!("SKIP {reason}");
    }
    found
}
