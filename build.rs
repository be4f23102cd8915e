//! Lists the machine code of the CUDA kernels in `kernels/cubin`, where
//! `scripts/build_kernels.py --machine-code` writes it, for the program to embed. Files that were
//! not made from the PTX in `kernels/ptx` are left out with a warning. There need not be any: the
//! driver then compiles the PTX.

#[path = "src/backend/cuda/fingerprint.rs"]
pub mod fingerprint;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The types of activations: in names of files, and in Rust.
const TYPES: [(&str, &str); 3] = [("f32", "F32"), ("bf16", "Bf16"), ("fp16", "Fp16")];

fn main() {
    let variable = |name| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let kernels = variable("CARGO_MANIFEST_DIR").join("kernels");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/backend/cuda/fingerprint.rs");
    for folder in ["ptx", "cubin"] {
        // cargo runs this program at every build if a path that it watches does not exist
        if kernels.join(folder).is_dir() {
            println!("cargo::rerun-if-changed=kernels/{folder}");
        }
    }
    let (table, left_out) = machine_code(&kernels);
    for reason in left_out {
        println!("cargo::warning={reason}");
    }
    let path = variable("OUT_DIR").join("machine_code.rs");
    fs::write(path, table).expect("the table of machine code cannot be written");
}

/// The table of the files in `kernels/cubin`, as a Rust expression, and why files were left out of
/// it.
pub fn machine_code(kernels: &Path) -> (String, Vec<String>) {
    let (mut table, mut left_out) = ("[\n".to_string(), Vec::new());
    for name in names(&kernels.join("cubin"), ".cubin.zst") {
        let path = kernels.join("cubin").join(&name);
        match entry(kernels, &name, &path) {
            Ok((precision, generation)) => {
                let path = path.to_str().expect("the path of the sources is not UTF-8");
                writeln!(
                    table,
                    "    (Precision::{precision}, {generation}, include_bytes!({path:?}).as_slice()),"
                )
                .expect("a string takes everything");
            }
            Err(reason) => left_out.push(format!(
                "kernels/cubin/{name} {reason}. It is not embedded: run scripts/build_kernels.py --machine-code, or delete it"
            )),
        }
    }
    table.push_str("]\n");
    (table, left_out)
}

/// The type of activations and the generation of cards of a file, or what is wrong with the file.
fn entry(kernels: &Path, name: &str, path: &Path) -> Result<(&'static str, u32), String> {
    let (precision, generation) =
        parts(name, ".cubin.zst").ok_or("does not have a name as f32_86.cubin.zst".to_string())?;
    let rust_name = TYPES.iter().find(|(name, _)| *name == precision);
    let (_, rust_name) = rust_name.ok_or(format!("names no type of activations: {precision}"))?;
    // the program takes the newest PTX that is not newer than the card, too
    let ptx = names(&kernels.join("ptx"), ".ptx.zst")
        .into_iter()
        .filter_map(|name| {
            let (of, least) = parts(&name, ".ptx.zst")?;
            (of == precision && least <= generation).then_some((least, name))
        })
        .max();
    let (_, ptx) = ptx.ok_or("has no PTX in kernels/ptx".to_string())?;
    let read = |path: &Path| fs::read(path).map_err(|e| format!("cannot be compared: {e}"));
    let expected = fingerprint::header(&read(&kernels.join("ptx").join(&ptx))?);
    if !read(path)?.starts_with(&expected) {
        return Err(format!("was not made from kernels/ptx/{ptx}"));
    }
    Ok((rust_name, generation))
}

/// The type and the generation in a name as `f32_86.cubin.zst`.
fn parts<'a>(name: &'a str, ending: &str) -> Option<(&'a str, u32)> {
    let (precision, generation) = name.strip_suffix(ending)?.split_once('_')?;
    Some((precision, generation.parse().ok()?))
}

/// The names with this ending in a folder, sorted; none if it cannot be read.
fn names(folder: &Path, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(ending))
        .collect();
    names.sort();
    names
}
