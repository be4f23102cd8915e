//! The report of a run of `paragon shard`, for people and as JSON. Depends on serde and
//! `dataset::scan`. Promises that the counts add up: images found = used + rejected.

use super::plan::Rejected;
use crate::dataset::scan::{IgnoredFiles, LeftOut};
use crate::support::text::bytes_text;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;

/// The held-out set.
#[derive(Clone, Debug, Serialize)]
pub struct HeldOutReport {
    /// Images that gave pairs.
    pub images: u64,
    /// LQ/HR pairs.
    pub pairs: u64,
    /// Shard files.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes_out: u64,
}

/// The figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Folder of the set.
    #[serde(serialize_with = "path_in_words")]
    pub out: PathBuf,
    /// The folder held the set already, made from the same images with the same options; nothing
    /// was written.
    pub already_complete: bool,
    /// With `--append`: nothing new was found that gives pairs, and the set is unchanged.
    pub nothing_new: bool,
    /// Images that an interrupted run had converted, and this run did not convert again.
    pub resumed_images: u64,
    /// Images found.
    pub images: u64,
    /// Images that gave pairs, those held out included.
    pub used: u64,
    /// Images that gave none.
    pub rejected: Vec<Rejected>,
    /// Rejected images by kind of reason.
    pub reasons: BTreeMap<String, u64>,
    /// Files without an image's extension.
    pub ignored: u64,
    /// The same by extension.
    pub ignored_endings: IgnoredFiles,
    /// With `--append`: images of the set that are no longer in the folder.
    pub gone: u64,
    /// Images and folders that take no part by rule, one entry for each reason.
    pub left_out: Vec<LeftOut>,
    /// What was changed on the way to 8-bit RGB, with the number of files.
    pub notes: BTreeMap<String, u64>,
    /// For each note the first file.
    pub note_examples: BTreeMap<String, String>,
    /// Number of patches cut: pairs, held-out pairs, flat patches and duplicates.
    pub patches: u64,
    /// Patches left out by `--min-detail`, `--min-entropy` or `--max-blur`.
    pub flat: u64,
    /// Pairs left out as duplicates.
    pub duplicates: u64,
    /// LQ/HR pairs in the set to train on.
    pub pairs: u64,
    /// The held-out set.
    pub held_out: Option<HeldOutReport>,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side as stored, pixels.
    pub lq_size: u32,
    /// LQ patch side that training uses by default, pixels.
    pub crop: u32,
    /// How the LQ was made.
    pub lq_recipe: String,
    /// Codec that was asked for.
    pub codec: String,
    /// Pairs that were stored raw because prediction did not make them smaller.
    pub stored_raw: u64,
    /// Shard files.
    pub shards: u64,
    /// Bytes of the image files read.
    pub bytes_in: u64,
    /// Bytes of all pairs as pixels.
    pub bytes_raw: u64,
    /// Bytes of all shards.
    pub bytes_out: u64,
    /// `bytes_out / bytes_raw`.
    pub ratio: f64,
    /// Identity of the content, hexadecimal.
    pub fingerprint: String,
    /// Threads that converted.
    pub threads: usize,
    /// Largest sum of the estimated memory of the images that were converted at one time, bytes.
    pub memory_in_flight: u64,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Images converted per second.
    pub images_per_second: f64,
    /// Pairs written per second.
    pub pairs_per_second: f64,
}

/// Writes a path to JSON, which is always UTF-8: other bytes are shown as replacement characters.
pub(super) fn path_in_words<S: serde::Serializer>(
    path: &std::path::Path,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, text: String| writeln!(f, "  {name:10} {text}");
        let rejected = self.rejected.len() as u64;
        let images = match (self.nothing_new, rejected) {
            (true, 0) => "nothing new was found; the set is unchanged".to_string(),
            (true, _) => format!(
                "nothing new was found that gives pairs ({rejected} rejected); the set is unchanged"
            ),
            _ => format!(
                "{} found = {} used + {rejected} rejected",
                self.images, self.used
            ),
        };
        row("images", images)?;
        for (reason, count) in &self.reasons {
            row("", format!("{count} rejected: {reason}"))?;
        }
        if self.ignored > 0 {
            row("", self.ignored_endings.to_string())?;
        }
        if self.gone > 0 {
            let (count, are, their) = match self.gone {
                1 => ("1 image", "is", "its"),
                n => (&*format!("{n} images"), "are", "their"),
            };
            row(
                "",
                format!(
                    "{count} of the set {are} no longer in the folder; {their} pairs stay (--overwrite makes the set anew)"
                ),
            )?;
        }
        for left in &self.left_out {
            row("", left.to_string())?;
        }
        for (note, count) in &self.notes {
            let file = self.note_examples.get(note).map(|file| {
                if *count == 1 {
                    format!(": {file}")
                } else {
                    format!(", first {file}")
                }
            });
            row(
                "notes",
                format!("{count} x {note}{}", file.unwrap_or_default()),
            )?;
        }
        let hr = self.lq_size * self.scale;
        let crop = if self.crop == self.lq_size {
            String::new()
        } else {
            format!(" (for crops of {})", self.crop)
        };
        row(
            "pairs",
            format!(
                "{} of LQ {} / HR {hr}{crop}, LQ {}",
                self.pairs, self.lq_size, self.lq_recipe
            ),
        )?;
        if self.flat + self.duplicates > 0 {
            row(
                "",
                format!(
                    "of {} patches {} left out by their measures, {} as duplicates",
                    self.patches, self.flat, self.duplicates
                ),
            )?;
        }
        if let Some(held_out) = &self.held_out {
            row(
                "held out",
                format!(
                    "{} pairs of {} images, {}",
                    held_out.pairs,
                    held_out.images,
                    bytes_text(held_out.bytes_out)
                ),
            )?;
        }
        let mut size = String::new();
        write!(
            size,
            "{} of pixels -> {} in {} shard(s)",
            bytes_text(self.bytes_raw),
            bytes_text(self.bytes_out),
            self.shards
        )?;
        write!(size, ", ratio {:.3} ({}", self.ratio, self.codec)?;
        if self.stored_raw > 0 && self.codec != "raw" {
            write!(size, ", {} stored raw", self.stored_raw)?;
        }
        write!(size, "); read {}", bytes_text(self.bytes_in))?;
        row("size", size)?;
        if self.nothing_new {
            row("time", format!("{:.1} s", self.seconds))?;
        } else if self.already_complete {
            row(
                "time",
                "nothing to do: the same set was there already".to_string(),
            )?;
        } else {
            let mut time = format!(
                "{:.1} s, {:.0} images/s, {:.0} pairs/s on {} threads, at most {} in flight",
                self.seconds,
                self.images_per_second,
                self.pairs_per_second,
                self.threads,
                bytes_text(self.memory_in_flight)
            );
            if self.resumed_images > 0 {
                write!(
                    time,
                    " ({} images were finished before)",
                    self.resumed_images
                )?;
            }
            row("time", time)?;
        }
        row(
            "set",
            format!("{} (fingerprint {})", self.out.display(), self.fingerprint),
        )
    }
}
