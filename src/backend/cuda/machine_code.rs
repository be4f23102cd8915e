//! The kernels' machine code, where the program was built with some, or a folder with some is
//! named. It spares the driver the compilation of the PTX at the first start. Depends on the header
//! of its files.

use super::fingerprint;
use crate::plan::Precision;
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::path::Path;

/// (type, compute capability x 10, file) for every file of `kernels/cubin`.
static EMBEDDED: &[(Precision, i32, &[u8])] =
    &include!(concat!(env!("OUT_DIR"), "/machine_code.rs"));

/// The machine code for a type of activations on a card of this compute capability x 10, as a
/// file, and its generation; from `folder` instead of the program if there is one.
pub(super) fn find(
    precision: Precision,
    capability: i32,
    folder: Option<&Path>,
) -> Option<(i32, Cow<'static, [u8]>)> {
    newest(capability, |generation| match folder {
        Some(folder) => {
            let name = format!("{precision}_{generation}.cubin.zst");
            Some(Cow::Owned(std::fs::read(folder.join(name)).ok()?))
        }
        None => EMBEDDED
            .iter()
            .find(|(p, g, _)| (*p, *g) == (precision, generation))
            .map(|(_, _, file)| Cow::Borrowed(*file)),
    })
}

/// The newest generation that a card of this compute capability x 10 runs, and what `get` has for
/// it. A card runs the machine code of its own generation and of older ones with the same major
/// number.
fn newest<T>(capability: i32, get: impl Fn(i32) -> Option<T>) -> Option<(i32, T)> {
    let oldest = capability / 10 * 10;
    (oldest..=capability)
        .rev()
        .find_map(|generation| Some((generation, get(generation)?)))
}

/// The machine code in a file.
///
/// # Errors
/// When the file is damaged or does not belong to this PTX, given compressed as in the program.
pub(super) fn decoded(file: &[u8], ptx: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        file.starts_with(&fingerprint::header(ptx)),
        "it was not made from the PTX of this program"
    );
    zstd::decode_all(&file[fingerprint::HEADER_BYTES..]).context("it is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_runs_the_newest_machine_code_of_its_major_number() {
        let carried = [75, 80, 86, 90];
        let chosen = |capability| {
            let get = |generation| carried.contains(&generation).then_some(());
            newest(capability, get).map(|(generation, ())| generation)
        };
        for (capability, generation) in [
            (70, None),
            (75, Some(75)),
            (80, Some(80)),
            (86, Some(86)),
            (87, Some(86)),
            (89, Some(86)),
            (90, Some(90)),
            (100, None),
            (120, None),
        ] {
            assert_eq!(chosen(capability), generation, "{capability}");
        }
        let all = [86, 89];
        let get = |generation| all.contains(&generation).then_some(());
        assert_eq!(newest(89, get), Some((89, ())));
    }

    /// Says nothing where the program was built without machine code.
    #[test]
    fn what_is_embedded_is_machine_code_of_its_generation() {
        for (precision, generation, file) in EMBEDDED {
            let code = zstd::decode_all(*file).unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{precision}, {generation}");
            // the machine is NVIDIA's, and the first of its flags is the generation
            assert_eq!(code[18..20], 190_u16.to_le_bytes(), "{precision}");
            assert_eq!(i32::from(code[48]), *generation, "{precision}");
            let found = find(*precision, *generation, None).unwrap();
            assert_eq!((found.0, &found.1[..]), (*generation, *file));
        }
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_ptx_is_refused() {
        let (ptx, code) = (b"some text", b"\x7fELF and more".repeat(9));
        let frame = zstd::encode_all(&code[..], 1).unwrap();
        let file = [&fingerprint::header(ptx)[..], &frame].concat();
        assert_eq!(decoded(&file, ptx).unwrap(), code);
        // decoders skip the header
        assert_eq!(zstd::decode_all(&file[..]).unwrap(), code);
        let error = |file: &[u8], ptx: &[u8]| decoded(file, ptx).unwrap_err().to_string();
        assert!(error(&file, b"some text.").contains("not made from the PTX"));
        assert!(error(&frame, ptx).contains("not made from the PTX"));
        assert!(error(&file[..20], ptx).contains("not made from the PTX"));
        assert!(error(&file[..file.len() - 3], ptx).contains("damaged"));
        // the published sum of this word
        assert_eq!(fingerprint::fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
