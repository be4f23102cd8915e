//! Names the kind of a file that is not of the expected kind, from its first bytes: a PyTorch file
//! given as a network, an image given as an option file. Depends on nothing. The usual mistakes are
//! recognised and nothing is guessed; only bytes count, never the ending of a name.

/// Number of first bytes that are enough to recognise every kind.
pub const HEAD_BYTES: usize = 4096;

/// The remedy for a file of the wrong kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// PyTorch wrote it; it can be converted.
    Convert,
    /// A placeholder or an error page that was stored instead of the intended file.
    Fetch,
    /// An archive that may contain the intended file.
    Unpack,
    /// Not a related file; the user meant another one.
    Another,
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// With its article: "a zip archive".
    pub what: &'static str,
    /// The remedy.
    pub remedy: Remedy,
}

/// Kinds that begin with fixed bytes.
const SIGNATURES: [(&[u8], &str, Remedy); 23] = [
    (
        b"GGUF",
        "a GGUF file (llama.cpp, stable-diffusion.cpp)",
        Remedy::Another,
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (Keras)",
        Remedy::Another,
    ),
    (b"\x93NUMPY", "a NumPy array", Remedy::Another),
    (b"7767517\n", "an ncnn network", Remedy::Another),
    (b"\x1f\x8b", "a gzip archive", Remedy::Unpack),
    (b"\xfd7zXZ\x00", "an xz archive", Remedy::Unpack),
    (b"BZh", "a bzip2 archive", Remedy::Unpack),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", Remedy::Unpack),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", Remedy::Unpack),
    (b"Rar!\x1a\x07", "a RAR archive", Remedy::Unpack),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer",
        Remedy::Fetch,
    ),
    (b"/annex/objects/", "a git-annex pointer", Remedy::Fetch),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", Remedy::Another),
    (b"\xff\xd8\xff", "a JPEG image", Remedy::Another),
    (b"RIFF", "a RIFF file (WebP, AVI, WAV)", Remedy::Another),
    (b"II*\0", "a TIFF image", Remedy::Another),
    (b"MM\0*", "a TIFF image", Remedy::Another),
    (b"GIF8", "a GIF image", Remedy::Another),
    (b"%PDF-", "a PDF document", Remedy::Another),
    (b"\x7fELF", "a program", Remedy::Another),
    (b"\xff\xfe", "text in UTF-16", Remedy::Another),
    (b"\xfe\xff", "text in UTF-16", Remedy::Another),
    (b"#!", "a script", Remedy::Another),
];

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The kind of a file with these first bytes (up to [`HEAD_BYTES`]). `None`: not recognised.
pub fn look(head: &[u8]) -> Option<Found> {
    let found = |what, remedy| Some(Found { what, remedy });
    if head.is_empty() {
        return found("an empty file", Remedy::Fetch);
    }
    if head.len() >= 16 && head.iter().all(|b| *b == 0) {
        return found(
            "a file that begins with zeros alone (an unfinished download)",
            Remedy::Fetch,
        );
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        // PyTorch stores every tensor as one file of the archive, beside a pickle that names them
        return if contains(head, b"data.pkl")
            || contains(head, b"/version")
            || contains(head, b"/byteorder")
        {
            found(
                "a zip archive as torch.save writes it (.pth, .pt, .ckpt)",
                Remedy::Convert,
            )
        } else if contains(head, b".npy") {
            found("a zip archive of NumPy arrays (.npz)", Remedy::Another)
        } else {
            found(
                "a zip archive (torch.save writes .pth, .pt and .ckpt as such)",
                Remedy::Convert,
            )
        };
    }
    if let Some((_, what, remedy)) = SIGNATURES
        .iter()
        .find(|(start, ..)| head.starts_with(start))
    {
        return found(what, *remedy);
    }
    if matches!(head, [0x80, 1..=5, ..]) {
        return found(
            "a Python pickle, as older torch.save writes it (.pth, .pt)",
            Remedy::Convert,
        );
    }
    if head.get(4..8) == Some(b"TFL3") {
        return found("a TensorFlow Lite network", Remedy::Another);
    }
    if head.get(257..262) == Some(b"ustar") {
        return found("a tar archive", Remedy::Unpack);
    }
    // protocol buffers: field 1 is the version of the format, and field 2, 3, 7 or 8 follows
    if matches!(head, [0x08, 1..=20, 0x12 | 0x1a | 0x3a | 0x42, ..]) {
        return found("an ONNX network", Remedy::Another);
    }
    look_at_text(head)
}

fn look_at_text(head: &[u8]) -> Option<Found> {
    let found = |what, remedy| Some(Found { what, remedy });
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // the last character may be cut
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}'))
    {
        return None;
    }
    let start = text
        .trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t'])
        .to_ascii_lowercase();
    if start.starts_with("<!doctype html")
        || start.starts_with("<html")
        || start.starts_with("<head")
    {
        return found(
            "a web page (a download that was answered with a page)",
            Remedy::Fetch,
        );
    }
    match start.chars().next() {
        Some('<') => found("XML text", Remedy::Another),
        Some('{') => found("JSON text", Remedy::Another),
        _ => found("a text file", Remedy::Another),
    }
}

/// The language of an option file that is not YAML, by the first line that shows it. `None` if no
/// line does.
pub fn look_at_options(text: &str) -> Option<&'static str> {
    let lines = || {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
    };
    let word = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_alphanumeric() || "_-. \"'".contains(c))
    };
    let section = |line: &str| {
        let inner = line
            .strip_prefix('[')
            .and_then(|l| l.split_once(']'))
            .map(|(inner, rest)| (inner.trim_start_matches('['), rest));
        inner.is_some_and(|(inner, rest)| {
            word(inner)
                && (rest.trim_start_matches(']').trim().is_empty() || rest.trim().starts_with('#'))
        })
    };
    let assigns = |line: &str| {
        line.split_once('=')
            .is_some_and(|(name, value)| word(name.trim()) && !value.starts_with('='))
    };
    let python = |line: &str| {
        ["import ", "from ", "def ", "class "]
            .iter()
            .any(|start| line.starts_with(start))
            || line.split_once('=').is_some_and(|(name, value)| {
                word(name.trim()) && value.trim_start().starts_with("dict(")
            })
    };
    let first = lines().next()?;
    if first.starts_with('<') {
        return Some("XML or a web page");
    }
    if lines().take(50).any(python) {
        return Some("Python");
    }
    (section(first) || assigns(first)).then_some("TOML or INI")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_kinds_are_named() {
        let tar = [&[b'x'; 257][..], b"ustar"].concat();
        for (head, word, remedy) in [
            (&b""[..], "empty", Remedy::Fetch),
            (&[0; 64], "zeros", Remedy::Fetch),
            (
                b"PK\x03\x04\x00\x00net/data.pkl",
                "torch.save",
                Remedy::Convert,
            ),
            (b"PK\x03\x04\x14\x00", "zip", Remedy::Convert),
            (b"PK\x03\x04\x14\x00arr_0.npy", "NumPy", Remedy::Another),
            (b"\x80\x02\x8a\x0al\xfc", "pickle", Remedy::Convert),
            (b"\x80\x04\x95", "pickle", Remedy::Convert),
            (b"GGUF\x03", "GGUF", Remedy::Another),
            (b"\x08\x08\x12\x07pytorch", "ONNX", Remedy::Another),
            (b"\x89HDF\r\n\x1a\n", "HDF5", Remedy::Another),
            (b"\x1f\x8b\x08", "gzip", Remedy::Unpack),
            (
                b"version https://git-lfs.github.com/spec/v1\noid",
                "LFS",
                Remedy::Fetch,
            ),
            (b"\n<!DOCTYPE html><html>", "web page", Remedy::Fetch),
            (b"<?xml version", "XML", Remedy::Another),
            (b"{\"metadata\": 1}", "JSON", Remedy::Another),
            (b"404: Not Found", "text", Remedy::Another),
            (b"\x89PNG\r\n\x1a\n", "PNG", Remedy::Another),
            (&tar, "tar", Remedy::Unpack),
        ] {
            let found = look(head).unwrap_or_else(|| panic!("nothing for {head:?}"));
            assert!(
                found.what.contains(word) && found.remedy == remedy,
                "{head:?}: {found:?}"
            );
        }
        assert_eq!(look(b"\x01\x02\x03\x04\x05"), None);
        // a character that is cut at the end is still text
        assert!(look("Zürich".as_bytes().get(..2).unwrap()).is_some());
    }

    #[test]
    fn languages_of_options_are_named() {
        for (text, word) in [
            ("# a comment\n[train]\ntotal_iter = 5\n", "TOML"),
            ("[[losses]]\ntype = \"l1\"\n", "TOML"),
            ("total_iter = 5\n", "TOML"),
            ("; old\n[train]\ntotal_iter=5", "INI"),
            ("_base_ = ['x.py']\nmodel = dict(type='SR')\n", "Python"),
            ("import os\n", "Python"),
            ("<config/>", "XML"),
        ] {
            assert!(
                look_at_options(text).is_some_and(|name| name.contains(word)),
                "{text}: {:?}",
                look_at_options(text)
            );
        }
        for text in [
            "train:\n  total_iter: 5\n",
            "[1, 2]",
            "- a\n- b",
            "",
            "name: a=b",
            "{\"a\": 1}",
        ] {
            assert_eq!(look_at_options(text), None, "{text}");
        }
    }
}
