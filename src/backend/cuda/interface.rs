//! The generated header `kernels/interface.cuh`: the shared constants and the argument structs as
//! C. Only the tests write or compare it; the kernels include it. Depends on the tables of
//! constants and signatures.

use super::{constants, plain, signatures};
use std::path::Path;

/// Where the header is, from the repository's root.
const FILE: &str = "kernels/interface.cuh";
/// Set it and run the test below to write the header.
const WRITE: &str = "PARAGON_WRITE_INTERFACE";

fn header() -> String {
    format!(
        "// Generated from src/backend/cuda/constants.rs and signatures.rs; do not edit. To write it\n\
         // again: scripts/build_kernels.py, or\n\
         // {WRITE}=1 cargo test --lib kernel_interface\n\
         #pragma once\n\
         \n\
         {}\n\
         {}\n\n\
         {}",
        constants::c_text(),
        signatures::c_text().trim_end(),
        plain::c_text().trim_end()
    ) + "\n"
}

#[test]
fn the_kernel_interface_is_what_rust_declares() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let expected = header();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{FILE} is not what the Rust sources declare; run {WRITE}=1 cargo test --lib kernel_interface"
    );
}
