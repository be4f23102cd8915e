//! Machine code of the kernels: build.rs embeds the files that belong to the PTX beside them, and
//! the program loads it before PTX, here on the stand-in driver.

use crate::{cli_common, kernels_common};

#[allow(dead_code)] // its `main`
#[path = "../../build.rs"]
mod build_script;

use build_script::fingerprint::header;
use build_script::machine_code;
use cli_common::{Ran, paragon, text};
use kernels_common::driver;
use std::path::Path;

/// Writes files into a folder of its own within `kernels`.
fn write(kernels: &Path, folder: &str, files: &[(&str, &[u8])]) {
    std::fs::create_dir_all(kernels.join(folder)).unwrap();
    for (name, contents) in files {
        std::fs::write(kernels.join(folder).join(name), contents).unwrap();
    }
}

#[test]
fn machine_code_is_embedded_if_it_was_made_from_the_ptx() {
    let kernels = tempfile::tempdir().unwrap();
    let kernels = kernels.path();
    let (old, new, half) = (b"PTX for 75", b"PTX for 80", b"PTX of halves");
    let ptx: [(&str, &[u8]); 3] = [
        ("fp16_75.ptx.zst", old),
        ("fp16_80.ptx.zst", new),
        ("bf16_80.ptx.zst", half),
    ];
    write(kernels, "ptx", &ptx);
    // without a folder, and with an empty one, there is nothing to embed and nothing to say
    assert_eq!(machine_code(kernels), ("[\n]\n".to_string(), vec![]));
    let code = |ptx: &[u8]| [&header(ptx)[..], b"code"].concat();
    write(kernels, "cubin", &[("README.md", b"text")]);
    assert_eq!(machine_code(kernels), ("[\n]\n".to_string(), vec![]));
    let good: [(&str, &[u8]); 3] = [
        ("bf16_90.cubin.zst", &code(half)),
        ("fp16_75.cubin.zst", &code(old)),
        ("fp16_86.cubin.zst", &code(new)),
    ];
    write(kernels, "cubin", &good);
    let (table, left_out) = machine_code(kernels);
    let path = |name: &str| kernels.join("cubin").join(name);
    let rows: Vec<String> = [("Bf16", 90), ("Fp16", 75), ("Fp16", 86)]
        .iter()
        .zip(good)
        .map(|((precision, generation), (name, _))| {
            let path = path(name);
            format!(
                "    (Precision::{precision}, {generation}, include_bytes!({path:?}).as_slice()),\n"
            )
        })
        .collect();
    assert_eq!(table, format!("[\n{}]\n", rows.concat()));
    assert_eq!(left_out, Vec::<String>::new());
    // a change of one PTX leaves out what was made from it, and nothing else
    write(kernels, "ptx", &[("fp16_80.ptx.zst", b"PTX for 8O")]);
    let (table, left_out) = machine_code(kernels);
    assert_eq!(table, format!("[\n{}{}]\n", rows[0], rows[1]));
    let [reason] = &left_out[..] else {
        panic!("{left_out:?}")
    };
    for words in [
        "kernels/cubin/fp16_86.cubin.zst was not made from kernels/ptx/fp16_80.ptx.zst",
        "scripts/build_kernels.py --machine-code",
    ] {
        assert!(reason.contains(words), "{reason}");
    }
}

#[test]
fn files_that_are_no_machine_code_are_left_out() {
    let kernels = tempfile::tempdir().unwrap();
    let kernels = kernels.path();
    write(kernels, "ptx", &[("fp16_80.ptx.zst", b"PTX")]);
    let code = [&header(b"PTX")[..], b"code"].concat();
    let bad: [(&str, &[u8], &str); 6] = [
        ("bf16_80.cubin.zst", &code, "has no PTX in kernels/ptx"),
        (
            "f64_80.cubin.zst",
            &code,
            "names no type of activations: f64",
        ),
        ("fp16_75.cubin.zst", &code, "has no PTX in kernels/ptx"),
        ("fp16_80.cubin.zst", &code[..23], "was not made from"),
        ("fp16_86.cubin.zst", b"", "was not made from"),
        ("fp16_x.cubin.zst", &code, "does not have a name as"),
    ];
    for (name, contents, _) in bad {
        write(kernels, "cubin", &[(name, contents)]);
    }
    let (table, left_out) = machine_code(kernels);
    assert_eq!(table, "[\n]\n");
    assert_eq!(left_out.len(), bad.len(), "{left_out:?}");
    for (reason, (name, _, words)) in left_out.iter().zip(bad) {
        assert!(reason.contains(name) && reason.contains(words), "{reason}");
    }
}

/// A folder with what the stand-in takes for machine code of sm_86: the PTX, which it knows by its
/// text, and a file whose PTX was another one.
pub fn stand_ins(dir: &Path) -> [String; 2] {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx");
    let ptx = std::fs::read(root.join("f32_75.ptx.zst")).unwrap();
    [&ptx[..], b"an older text"].map(|made_from| {
        let folder = dir.join(made_from.len().to_string());
        std::fs::create_dir(&folder).unwrap();
        let file = [&header(made_from)[..], &ptx].concat();
        std::fs::write(folder.join("f32_86.cubin.zst"), file).unwrap();
        text(&folder).to_string()
    })
}

/// A small step in f32 on the stand-in; the variables describe the card. `None` without a C++
/// compiler.
fn step(more: &[&str], variables: &[(&str, &str)]) -> Option<Ran> {
    let mut command = paragon(&["bench", "step", "--device", "cuda", "--precision", "f32"]);
    command.args(["--batch-size", "1", "--lq-size", "8", "--steps", "1"]);
    command.arg("--step-only").args(more);
    command.env("LD_LIBRARY_PATH", driver()?);
    command.env("FAKE_CUDA_MEMORY", "220000000");
    command.envs(variables.iter().copied());
    Some(command.output().unwrap().into())
}

/// Variables, what is loaded, and why it is not the machine code.
type LoadCase<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<&'a str>);

#[test]
fn machine_code_is_loaded_first_and_ptx_where_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [fresh, stale] = stand_ins(dir.path());
    let (fresh, stale) = (
        ("PARAGON_CUDA_CUBIN", &*fresh),
        ("PARAGON_CUDA_CUBIN", &*stale),
    );
    let card = |capability| ("FAKE_CUDA_CAPABILITY", capability);
    let fail = |how| ("FAKE_CUDA_FAIL", how);
    let cases: [LoadCase; 8] = [
        (&[fresh], "sm_86", None),
        // a newer card of the same major number runs it, one of another does not
        (&[fresh, card("89")], "sm_86", None),
        (&[fresh, card("90")], "compute_90", None),
        // nor does an older one
        (&[fresh, card("80")], "compute_75", None),
        (&[fresh, ("PARAGON_CUDA_PTX", "1")], "compute_75", None),
        (
            &[fresh, fail("cuModuleLoadData:1:209")],
            "compute_75",
            Some("sm_86: unknown error, error 209"),
        ),
        (
            &[fresh, fail("cuModuleLoadData:1:222")],
            "compute_75",
            Some("sm_86: unknown error, error 222"),
        ),
        (
            &[stale],
            "compute_75",
            Some("sm_86: it was not made from the PTX of this program"),
        ),
    ];
    for (variables, code, refused) in cases {
        let Some(ran) = step(&["--json"], variables) else {
            return;
        };
        assert_eq!(ran.code, Some(0), "{variables:?}: {ran:?}");
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let loaded = &report["loaded"];
        assert_eq!(loaded["code"], code, "{variables:?}");
        let reason = loaded["machine_code_refused"].as_str();
        assert_eq!(reason, refused, "{variables:?}");
        assert!(loaded["load_seconds"].as_f64().is_some(), "{loaded}");
    }
    let words = [
        (fresh, " s (machine code for sm_86): up to"),
        (
            stale,
            " s (PTX for compute_75; machine code was refused, sm_86: it was not made",
        ),
        (
            ("PARAGON_CUDA_CUBIN", "/no/such/folder"),
            "\"/no/such/folder\", which is no folder",
        ),
    ];
    for (variable, expected) in words {
        let ran = step(&[], &[variable]).unwrap();
        assert!(
            (ran.stdout.clone() + &ran.stderr).contains(expected),
            "{ran:?}"
        );
    }
}
