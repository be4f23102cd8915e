//! The manifest: the one small file that makes a folder of shards a finished set. It is written
//! last, so a set without it is an unfinished one. Depends on bincode (bounded) and on `files`.
//! Promises that a damaged, foreign or newer manifest is refused with the reason.

use super::error::{Error, Kind, marked};
use super::format::{Geometry, MAJOR, check_lqs, check_version, u16_at, u32_at};
use super::hash::Hash64;
use crate::degrade::Recipe;
use crate::support::text::one_line;
use crate::{support::failure, support::files, sys};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The manifest's name in the folder of the set.
pub const MANIFEST_NAME: &str = "manifest.psm";
/// First eight bytes of a manifest.
pub const MANIFEST_MAGIC: [u8; 8] = *b"PGNMANIF";
/// Minor version of the manifest alone. 1 added [`Extra`]; content of version 0 ends before it.
const MANIFEST_MINOR: u16 = 1;
/// Magic, major and minor version, payload length, payload checksum.
const PREFIX_BYTES: usize = 20;
/// Largest manifest payload: a shard takes 40 bytes in it, so this is over a million shards.
const MAX_PAYLOAD_BYTES: usize = 64 << 20;

/// One shard as the manifest lists it; its index in the list is its number.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ShardInfo {
    /// Pairs in the shard.
    pub records: u64,
    /// Images that they were cut from.
    pub sources: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// CRC32 of the shard's source table.
    pub sources_crc: u32,
    /// CRC32 of the shard's index. The index holds the CRC32 of every record, so this value depends
    /// on all of the content.
    pub index_crc: u32,
}

/// The fields that minor version 1 added to the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Extra {
    /// Side of the crop that training uses by default, LQ pixels; 0 = the whole stored patch.
    pub crop: u32,
    /// Further options that decide the bytes, as name and value. An option at its default is left
    /// out.
    pub options: Vec<(String, String)>,
    /// Number of this part, from 1, and the number of parts; both are 0 in a whole set.
    pub part: (u32, u32),
    /// Configuration hash of the whole set that a part belongs to; 0 in a whole set.
    pub whole: u64,
    /// Patches left out because they show too little detail, and pairs left out as duplicates.
    pub dropped: (u64, u64),
    /// Number of images that gave no pairs, by kind of reason, sorted by kind.
    pub rejected: Vec<(String, u64)>,
    /// How often images were added to the finished set.
    pub appended: u32,
}

/// What a set is and how it was made. It holds nothing that depends on the machine, the number of
/// threads or the time.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Manifest {
    /// Version of the paragon that wrote the set. It is shown to people and never compared.
    pub paragon: String,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side, pixels.
    pub lq_size: u32,
    /// Distance between neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// How the LQ was made: 0 = it came with the images, otherwise the filter's identifier.
    pub recipe: u8,
    /// The recipe in words.
    pub recipe_name: String,
    /// Name of the codec that was asked for; single records may be stored raw.
    pub codec: String,
    /// Largest size of a shard, bytes; a record that does not fit begins the next shard.
    pub shard_bytes: u64,
    /// Hash of the names and sizes of the input files.
    pub inputs: u64,
    /// Hash of everything that decides the bytes of the set: the fields above, the inputs and the
    /// format.
    pub config: u64,
    /// Number of images found, rejected ones included. In a held-out set: images that gave pairs.
    pub images: u64,
    /// Images that gave at least one pair.
    pub used: u64,
    /// The shards in order.
    pub shards: Vec<ShardInfo>,
    /// The fields that version 1.1 added.
    pub extra: Extra,
}

impl Manifest {
    /// Pairs in the whole set.
    pub fn records(&self) -> u64 {
        self.shards.iter().map(|s| s.records).sum()
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Side of the crop that training uses by default, LQ pixels.
    pub fn crop(&self) -> u32 {
        if self.extra.crop == 0 {
            self.lq_size
        } else {
            self.extra.crop
        }
    }

    /// The value of an option that has no field of its own.
    pub fn option(&self, name: &str) -> Option<&str> {
        let mut options = self.extra.options.iter();
        options.find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    /// The degradation recipe that the set was made with, or that a set of HR alone names for
    /// training; `None` without one.
    ///
    /// # Errors
    /// Its text cannot be read, or is not the one whose hash the manifest gives.
    pub fn degrade(&self) -> Result<Option<Recipe>> {
        let Some(text) = self.option(DEGRADE) else {
            return Ok(None);
        };
        let recipe = Recipe::parse(text, MANIFEST_NAME)
            .context("the degradation recipe in the manifest cannot be read")?;
        let mark = recipe_mark(&recipe);
        ensure!(
            self.recipe_name.contains(&mark),
            "the degradation recipe in the manifest has another hash ({mark}) than the manifest says ({})",
            one_line(&self.recipe_name)
        );
        Ok(Some(recipe))
    }

    /// LQ patches of every record: 1, 0 for HR alone, or the number of variants.
    ///
    /// # Errors
    /// The option that says it makes no sense.
    pub fn lqs(&self) -> Result<u16> {
        if self.option(HR_ONLY).is_some() {
            return Ok(0);
        }
        let Some(text) = self.option(VARIANTS) else {
            return Ok(1);
        };
        let lqs = text.parse().ok().filter(|&lqs| lqs > 1);
        let lqs = lqs.with_context(|| {
            format!("the manifest gives {text:?} as the number of variants of an LQ patch")
        })?;
        check_lqs(lqs)?;
        Ok(lqs)
    }

    /// Identity of the content: two sets have the same fingerprint if they have the same
    /// configuration and the same records.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Hash64::default();
        hash.word(self.config);
        for s in &self.shards {
            hash.word(s.records)
                .word(s.bytes)
                .word(u64::from(s.sources_crc) << 32 | u64::from(s.index_crc));
        }
        hash.finish()
    }

    /// Whether the unfinished set of this manifest is the set that `wanted` describes. The version
    /// of paragon that began it does not matter.
    pub fn asks_for(&self, wanted: &Manifest) -> bool {
        Manifest {
            paragon: wanted.paragon.clone(),
            ..self.clone()
        } == *wanted
    }

    /// Lists in words the options that differ from those of `wanted`. The list is empty if only the
    /// images differ.
    pub fn differences(&self, wanted: &Manifest) -> Vec<String> {
        let mut out = Vec::new();
        let mut compare = |what: &str, there: String, now: String| {
            if there != now {
                out.push(format!("{what} is {there} there and {now} here"));
            }
        };
        compare(
            "the scale",
            self.scale.to_string(),
            wanted.scale.to_string(),
        );
        compare(
            "the LQ patch",
            self.lq_size.to_string(),
            wanted.lq_size.to_string(),
        );
        compare(
            "the stride",
            self.stride.to_string(),
            wanted.stride.to_string(),
        );
        compare(
            "the LQ recipe",
            self.recipe_name.clone(),
            wanted.recipe_name.clone(),
        );
        compare("the codec", self.codec.clone(), wanted.codec.clone());
        compare(
            "the shard size",
            self.shard_bytes.to_string(),
            wanted.shard_bytes.to_string(),
        );
        for (name, _) in self.extra.options.iter().chain(&wanted.extra.options) {
            if name == DEGRADE {
                continue; // a long text; the name of the LQ recipe holds its hash
            }
            let value = |m: &Manifest| {
                let option = m.extra.options.iter().find(|(n, _)| n == name);
                option.map_or("not given".to_string(), |(_, value)| value.clone())
            };
            compare(&format!("--{name}"), value(self), value(wanted));
        }
        let part = |m: &Manifest| match m.extra.part {
            (0, _) => "the whole".to_string(),
            (i, n) => format!("{i}/{n}"),
        };
        compare("the part", part(self), part(wanted));
        out.dedup();
        out
    }

    /// Writes the manifest under a temporary name, syncs it, makes it read-only and renames it. The
    /// rename is what makes the set a finished one.
    ///
    /// # Errors
    /// Too many shards for one manifest; an error of the system.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let config = bincode::config::standard().with_fixed_int_encoding();
        let payload = bincode::encode_to_vec(self, config).context("cannot encode the manifest")?;
        ensure!(
            payload.len() <= MAX_PAYLOAD_BYTES,
            "{} shards are too many for one set; make larger shards",
            self.shards.len()
        );
        files::write_atomic(&path_in(folder), |out| {
            out.write_all(&MANIFEST_MAGIC)?;
            out.write_all(&MAJOR.to_le_bytes())?;
            out.write_all(&MANIFEST_MINOR.to_le_bytes())?;
            out.write_all(&(payload.len() as u32).to_le_bytes())?;
            out.write_all(&crc32fast::hash(&payload).to_le_bytes())?;
            out.write_all(&payload)?;
            Ok(sys::make_read_only(out.get_ref())?)
        })
    }

    /// Reads and checks the manifest of a folder.
    ///
    /// # Errors
    /// No folder, no set in it, an unfinished set, a damaged or newer manifest: each named, with
    /// what to try.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = path_in(folder);
        Self::read_file(folder, &path).map_err(|e| Error::classify(&path, e))
    }

    fn read_file(folder: &Path, path: &Path) -> Result<Self> {
        let most = (PREFIX_BYTES + MAX_PAYLOAD_BYTES) as u64;
        let read = || {
            let mut bytes = Vec::new();
            files::open_regular(path)?
                .take(most + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match failure::retry(read) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(marked(Kind::Missing, missing(folder)));
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        Self::decode(&bytes).with_context(|| path.display().to_string())
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        ensure!(
            bytes.len() >= PREFIX_BYTES,
            "the manifest has {} bytes, less than its prefix: it is cut short",
            bytes.len()
        );
        if bytes[..8] != MANIFEST_MAGIC {
            let text = "this is not a manifest of paragon shards (it does not start with PGNMANIF)";
            return Err(marked(Kind::NotAShard, text));
        }
        check_version("manifest", u16_at(bytes, 8), u16_at(bytes, 10), MAJOR)?;
        let (prefix, payload) = bytes.split_at(PREFIX_BYTES);
        let length = u32_at(prefix, 12) as usize;
        ensure!(
            length <= MAX_PAYLOAD_BYTES,
            "the manifest claims {length} bytes; the most is {MAX_PAYLOAD_BYTES}"
        );
        ensure!(
            length == payload.len(),
            "the manifest was written with {length} bytes of content and has {}",
            payload.len()
        );
        ensure!(
            crc32fast::hash(payload) == u32_at(prefix, 16),
            "the manifest is damaged (checksum mismatch)"
        );
        let config = bincode::config::standard()
            .with_fixed_int_encoding()
            .with_limit::<MAX_PAYLOAD_BYTES>();
        // a newer minor version may append fields, which are ignored here; version 1.0 ends before
        // `Extra`, so the bytes of its default are put behind the payload
        let mut payload = payload.to_vec();
        payload.extend(
            bincode::encode_to_vec(Extra::default(), config).context("cannot encode a default")?,
        );
        let (manifest, _): (Manifest, usize) = bincode::decode_from_slice(&payload, config)
            .context("the manifest's content makes no sense")?;
        Geometry::new(manifest.scale, manifest.lq_size)?;
        manifest.lqs()?;
        let (crop, (part, parts)) = (manifest.extra.crop, manifest.extra.part);
        ensure!(
            crop <= manifest.lq_size,
            "the manifest asks for crops of {crop} out of LQ patches of {}",
            manifest.lq_size
        );
        ensure!(
            part <= parts,
            "the manifest says that this is part {part} of {parts}"
        );
        let counts: [fn(&ShardInfo) -> u64; 3] = [|s| s.records, |s| s.sources, |s| s.bytes];
        for count in counts {
            let sum = manifest
                .shards
                .iter()
                .try_fold(0u64, |sum, shard| sum.checked_add(count(shard)));
            ensure!(
                sum.is_some(),
                "the manifest's counts are too large to be added"
            );
        }
        Ok(manifest)
    }
}

/// The hash of a degradation recipe, as the words of a set's recipe hold it.
pub(super) fn recipe_mark(recipe: &Recipe) -> String {
    format!("recipe {:016x}", recipe.hash())
}

/// Option of a manifest: the text of the degradation recipe ([`crate::degrade::Recipe`]).
pub const DEGRADE: &str = "degrade";
/// Option of a manifest: how many LQ patches a record has, where it is more than one.
pub const VARIANTS: &str = "variants";
/// Option of a manifest: records hold HR alone.
pub const HR_ONLY: &str = "hr-only";

/// Path of the manifest in a folder.
pub fn path_in(folder: &Path) -> PathBuf {
    folder.join(MANIFEST_NAME)
}

/// Folder of the held-out set, inside that of the set to train on.
pub(super) fn held_out_folder(out: &Path) -> PathBuf {
    out.join("val")
}

/// Whether a folder holds a manifest, and so a finished set.
///
/// # Errors
/// An error of the system.
pub fn is_in(folder: &Path) -> Result<bool> {
    let path = path_in(folder);
    failure::retry(|| path.try_exists())
        .with_context(|| format!("cannot look for {}", path.display()))
}

/// File name of shard `number`.
pub fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.psh")
}

/// Whether a file name is one that [`shard_name`] gives.
pub fn is_shard_name(name: &str) -> bool {
    let digits = name
        .strip_prefix("shard-")
        .and_then(|n| n.strip_suffix(".psh"));
    digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit()))
}

/// Says why there is no manifest, as far as the content of the folder shows.
fn missing(folder: &Path) -> String {
    let place = folder.display();
    if !folder.exists() && place.to_string().contains(',') {
        return format!(
            "there is no folder {place}; several sets are given one by one: --shards A --shards B"
        );
    }
    if !folder.exists() {
        return format!(
            "there is no folder {place}; make a set with `paragon shard DATASET --out {place}`"
        );
    }
    if !folder.is_dir() {
        return format!("{place} is a file where the folder of a shard set is expected");
    }
    let left = |name: &str| name.contains(".psh") || name == super::journal::JOURNAL_NAME;
    let shards = fs::read_dir(folder).map_or(0, |entries| {
        entries
            .flatten()
            .filter(|e| e.file_name().to_str().is_some_and(left))
            .count()
    });
    if shards > 0 {
        format!(
            "{place} holds {shards} shard file(s) but no {MANIFEST_NAME}: the set was not finished; \
             run the same `paragon shard` command again"
        )
    } else {
        format!(
            "there is no shard set in {place} (no {MANIFEST_NAME}); make one with `paragon shard DATASET --out {place}`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            paragon: "0.1.0".into(),
            scale: 2,
            lq_size: 32,
            stride: 32,
            recipe: 1,
            recipe_name: "bicubic".into(),
            codec: "predict".into(),
            shard_bytes: 1 << 20,
            inputs: 5,
            config: 6,
            images: 7,
            used: 6,
            shards: vec![
                ShardInfo {
                    records: 1,
                    sources: 1,
                    bytes: 200,
                    sources_crc: 3,
                    index_crc: 4
                };
                2
            ],
            extra: Extra {
                crop: 24,
                options: vec![("seed".into(), "4".into())],
                ..Extra::default()
            },
        }
    }

    fn written() -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        manifest().write(dir.path()).unwrap();
        let bytes = fs::read(path_in(dir.path())).unwrap();
        (dir, bytes)
    }

    #[test]
    fn comes_back_and_is_read_only() {
        let (dir, _) = written();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest());
        assert!(
            fs::metadata(path_in(dir.path()))
                .unwrap()
                .permissions()
                .readonly()
        );
    }

    #[test]
    fn rejects_every_truncation_and_every_flipped_bit() {
        let (_dir, bytes) = written();
        for length in 0..bytes.len() {
            assert!(
                Manifest::decode(&bytes[..length]).is_err(),
                "length {length}"
            );
        }
        for bit in 0..bytes.len() * 8 {
            let mut b = bytes.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            match Manifest::decode(&b) {
                Err(_) => {}
                // the minor version does not change the meaning of the fields that are read here
                Ok(m) => assert!(
                    m == manifest() && (10..12).contains(&(bit / 8)),
                    "bit {bit}"
                ),
            }
        }
    }

    #[test]
    fn rejects_a_newer_version_and_names_it() {
        let (_dir, mut bytes) = written();
        bytes[8] = 7;
        let e = format!("{:#}", Manifest::decode(&bytes).unwrap_err());
        assert!(e.contains("7.1") && e.contains("newer"), "{e}");
    }

    #[test]
    fn rejects_a_length_beyond_the_limit() {
        let (_dir, mut bytes) = written();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(format!("{:#}", Manifest::decode(&bytes).unwrap_err()).contains("the most is"));
    }

    #[test]
    fn says_why_there_is_no_set() {
        let dir = tempfile::tempdir().unwrap();
        let message = |p: &Path| format!("{:#}", Manifest::read(p).unwrap_err());
        assert!(message(&dir.path().join("none")).contains("no folder"));
        assert!(message(dir.path()).contains("make one with"));
        fs::write(dir.path().join(".shard-00000.psh.17.partial"), b"x").unwrap();
        assert!(message(dir.path()).contains("not finished"));
        let file = dir.path().join("file");
        fs::write(&file, b"x").unwrap();
        assert!(message(&file).contains("file"));
    }
}
