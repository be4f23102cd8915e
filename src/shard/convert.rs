//! Converts one image to its encoded pairs: decode, check, make the LQ, cut, encode. Depends on
//! `dataset` and `codec`; runs on all threads at once and touches no shared state. Promises that a
//! fault in the content of a file becomes a rejection that names the file, and that an error of the
//! system never does: it is retried, then it ends the run.

use super::codec::Encoder;
use super::degraded::{HrPixels, LqPatch, PatchDegrader, draws_of_patch, pixel_key};
use super::file::Record;
use super::format::Geometry;
use super::job::kind_of_fault;
use super::plan::{BuildConfig, Job, Rejected, lq_dimensions, positions};
use super::source_table::SourceEntry;
use crate::dataset::decode;
use crate::dataset::degrade::Resampler;
use crate::dataset::measure::BlurMeasure;
use crate::dataset::recipe::{PatchMaker, image_key};
use crate::dataset::thumbnail::Thumbnail;
use crate::degrade::Recipe;
use crate::{support::failure, support::files};
use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::metadata::Orientation;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// The pairs of one image.
pub struct Converted {
    /// The image's entry in the source table.
    pub source: SourceEntry,
    /// Its perceptual hash, if near duplicates are looked for.
    pub hash: Option<u64>,
    /// Number of patches left out by `--min-detail`, `--min-entropy` or `--max-blur`.
    pub flat: u64,
    /// What was changed on the way to 8-bit RGB, one entry for each file and change.
    pub notes: Vec<String>,
    /// The pairs in order: rows of patches, left to right.
    pub records: Vec<Record>,
    /// Their payloads, one after the other.
    pub payload: Vec<u8>,
}

/// The buffers of one converting thread.
pub struct Worker {
    geometry: Geometry,
    encoder: Encoder,
    resampler: Resampler,
    patches: PatchMaker,
    blur: BlurMeasure,
    /// `None` without a degradation recipe.
    degrader: Option<PatchDegrader>,
    lq: Vec<u8>,
    hr: Vec<u8>,
}

impl Worker {
    /// Allocates for the records of a set.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(geometry: Geometry, config: &BuildConfig) -> Result<Self> {
        let recipe = config.degrade.as_ref().filter(|_| !config.hr_only);
        let degrader = |recipe: &Arc<Recipe>| {
            PatchDegrader::new(recipe, geometry.scale, geometry.lq(), usize::MAX)
        };
        Ok(Worker {
            geometry,
            degrader: recipe.map(degrader),
            encoder: Encoder::with_lqs(geometry, config.lqs())?,
            resampler: Resampler::new(),
            patches: PatchMaker::default(),
            blur: BlurMeasure::default(),
            lq: Vec::with_capacity(geometry.lq_bytes()),
            hr: Vec::with_capacity(geometry.hr_bytes()),
        })
    }

    /// Converts one image.
    ///
    /// # Errors
    /// The outer error is one of the system (the disk, no memory, no descriptors, a file that was
    /// removed or changed during the run) or a fault of the program, and says nothing about the
    /// image. The inner one is a fault of the image.
    pub fn convert(
        &mut self,
        job: &Job,
        config: &BuildConfig,
    ) -> Result<Result<Converted, Rejected>> {
        let outcome = self.convert_files(job, config)?;
        if outcome.is_err() {
            // the file may be faulty only because another program is writing to it: check the size
            let mut bytes = 0;
            for path in [Some(&job.source.hr), job.source.lq.as_ref()]
                .into_iter()
                .flatten()
            {
                let about = failure::retry(|| std::fs::metadata(path));
                bytes += about
                    .with_context(|| format!("{}: {SYSTEM_FAULT}", path.display()))?
                    .len();
            }
            check_unchanged(job, bytes)?;
        }
        Ok(outcome)
    }

    fn convert_files(
        &mut self,
        job: &Job,
        config: &BuildConfig,
    ) -> Result<Result<Converted, Rejected>> {
        let g = self.geometry;
        let reject = |path: &Path, kind: &str, reason| Ok(Err(Rejected::new(path, kind, reason)));
        let mut notes = Vec::new();
        let mut crc = crc32fast::Hasher::new();
        let mut file_bytes = 0;
        // each file is read once, for its checksum and for its pixels
        let mut read = |path: &Path, side: &str| -> Result<(RgbImage, Changes)> {
            let bytes = decode::load(path, &config.limits)?;
            crc.update(&bytes);
            file_bytes += bytes.len() as u64;
            let decoded = decode::decode_loaded(path, &bytes, &config.limits)?;
            notes.extend(decoded.notes.iter().map(|note| format!("{note}{side}")));
            let changes = Changes {
                turn: decoded.turn(),
                unconverted: decoded.unconverted,
            };
            Ok((decoded.image, changes))
        };
        let (mut hr, hr_changes) = match read(&job.source.hr, "") {
            Ok(found) => found,
            Err(e) => {
                let (kind, reason) = fault_of_content(e)?;
                return reject(&job.source.hr, kind, reason);
            }
        };
        let size = hr.dimensions();
        if size != job.size {
            let reason = format!(
                "the header says {}x{}, the image is {}x{}",
                job.size.0, job.size.1, size.0, size.1
            );
            return reject(&job.source.hr, "damaged", reason);
        }
        let hash = match config.criteria.hash_or_reject(&hr) {
            Ok(hash) => hash,
            Err((kind, reason)) => return reject(&job.source.hr, kind, reason),
        };
        let mut lq_changes = None;
        let lq = match &job.source.lq {
            Some(path) => match read(path, LQ_NOTE) {
                Ok((image, changes)) => {
                    lq_changes = Some(changes);
                    Some(image)
                }
                Err(e) => {
                    let (kind, reason) = fault_of_content(e)?;
                    return reject(path, kind, reason);
                }
            },
            None => {
                hr = crop_to_multiple(hr, g.scale);
                let filter = config.recipe.whole().filter(|_| !config.needs_hr_alone());
                let whole = filter.map(|filter| self.resampler.downscale(&hr, g.scale, filter));
                whole.transpose().context("cannot make the LQ")?
            }
        };
        let given = job
            .source
            .lq
            .as_ref()
            .and(lq.as_ref())
            .map(RgbImage::dimensions);
        if let Err((kind, reason)) = lq_dimensions(size, given, g) {
            return reject(&job.source.hr, kind, reason);
        }
        check_unchanged(job, file_bytes)?;
        if let (Some(lq), Some(lq_changes)) = (&lq, lq_changes)
            && let Some(reason) = mismatch((&hr, &hr_changes), (lq, &lq_changes))
        {
            return reject(&job.source.hr, "mismatch", reason);
        }
        let source = SourceEntry {
            name: job.source.name.clone(),
            width: size.0,
            height: size.1,
            bytes: job.file_bytes,
            crc: crc.finalize(),
        };
        let image = if self.degrader.is_some() {
            pixel_key(&hr)
        } else {
            image_key(&job.source.name)
        };
        let (records, payload, flat) = self.cut(lq.as_ref(), &hr, image, config)?;
        Ok(Ok(Converted {
            source,
            hash,
            flat,
            notes,
            records,
            payload,
        }))
    }

    /// Cuts and encodes every pair that no criterion drops, and counts the others. Without an LQ image,
    /// each LQ patch is made from its part of the HR image.
    fn cut(
        &mut self,
        lq: Option<&RgbImage>,
        hr: &RgbImage,
        image: u64,
        config: &BuildConfig,
    ) -> Result<(Vec<Record>, Vec<u8>, u64)> {
        let mut flat = 0;
        let g = self.geometry;
        let mut records = Vec::new();
        let (width, height) = lq.map_or(
            (hr.width() / g.scale, hr.height() / g.scale),
            RgbImage::dimensions,
        );
        let (rows, columns) = (
            positions(height, g.lq_size, config.stride),
            positions(width, g.lq_size, config.stride),
        );
        // photographs take about half of the bytes of their pixels
        let mut payload =
            Vec::with_capacity(rows.len() * columns.len() * g.record_bytes(config.lqs()) / 2);
        for &y in &rows {
            for &x in &columns {
                self.hr.clear();
                copy_patch(
                    hr,
                    x * g.scale,
                    y * g.scale,
                    g.lq_size * g.scale,
                    &mut self.hr,
                );
                if config.min_detail > 0.0 && detail(&self.hr, g.hr()) < config.min_detail
                    || config.criteria.drops(&self.hr, g.hr(), &mut self.blur)
                {
                    flat += 1;
                    continue;
                }
                self.lq.clear();
                match lq {
                    _ if config.hr_only => {}
                    Some(lq) => copy_patch(lq, x, y, g.lq_size, &mut self.lq),
                    None => self
                        .make_lq(hr, (image, x, y), config)
                        .context("cannot make the LQ")?,
                }
                let start = payload.len();
                let codec = self
                    .encoder
                    .encode(config.codec, &self.lq, &self.hr, &mut payload)?;
                let bytes = &payload[start..];
                records.push(Record {
                    x,
                    y,
                    codec,
                    crc: crc32fast::hash(bytes),
                    length: bytes.len() as u32,
                });
            }
        }
        Ok((records, payload, flat))
    }
}

impl Worker {
    /// Makes the LQ patch at (x, y) of the LQ image, or all its variants, and leaves it in `lq`.
    fn make_lq(
        &mut self,
        hr: &RgbImage,
        (image, x, y): (u64, u32, u32),
        config: &BuildConfig,
    ) -> Result<()> {
        let g = self.geometry;
        let Some(degrader) = &mut self.degrader else {
            let patch = (image, x, y, g.lq_size);
            let (resampler, lq) = (&mut self.resampler, &mut self.lq);
            let patches = &mut self.patches;
            return patches.make(resampler, hr, g.scale, &config.recipe, patch, lq);
        };
        let hr = HrPixels {
            pixels: hr.as_raw(),
            width: hr.width() as usize,
            height: hr.height() as usize,
        };
        let patch = LqPatch {
            x: x as usize,
            y: y as usize,
            size: g.lq(),
        };
        self.lq
            .resize(g.lq_bytes() * usize::from(config.variants), 0);
        for (variant, lq) in self.lq.chunks_exact_mut(g.lq_bytes()).enumerate() {
            let draws = draws_of_patch(config.recipe.seed, image, x, y, variant as u16);
            degrader.make(hr, patch, &draws, lq)?;
        }
        Ok(())
    }
}

/// Refuses to go on if the files of a job have other sizes than when their headers were read.
fn check_unchanged(job: &Job, bytes: u64) -> Result<()> {
    ensure!(
        bytes == job.file_bytes,
        "it has changed since this run began ({} bytes then, {bytes} now); let what writes it end and run the same command again",
        job.file_bytes
    );
    Ok(())
}

/// Returns the kind of a fault in the content of a file, and in words what is wrong. An error of the
/// system is returned as an error.
fn fault_of_content(error: anyhow::Error) -> Result<(&'static str, String)> {
    match failure::system_cause(&error) {
        None => Ok((kind_of_fault(&error), format!("{error:#}"))),
        Some(_) => Err(error.context(SYSTEM_FAULT)),
    }
}

/// Context of every error of the system while an image is converted.
pub(super) const SYSTEM_FAULT: &str = "an error of the system (disk, network, permissions, limits), which says nothing about the image and is not recorded";
/// Suffix of a note on an LQ file; a note on an HR file has none.
pub const LQ_NOTE: &str = " (LQ)";

/// Changes on the way to 8-bit RGB that could make the two sides of a pair differ.
struct Changes {
    /// The orientation that was applied.
    turn: Orientation,
    /// The colours before they were converted from a profile; `None` if they were not converted.
    unconverted: Option<Thumbnail>,
}

/// Finds pairs of which only one side was turned or converted, although both need it: a program
/// that ignores orientations or profiles made the LQ from the HR's raw pixels, or the other way
/// round. The sides are compared as they will be trained on, and as they would be without the
/// change. Returns the reason for rejecting the pair.
fn mismatch(hr: (&RgbImage, &Changes), lq: (&RgbImage, &Changes)) -> Option<String> {
    /// Mean difference up to which two thumbnails show the same image, in values of 0 to 255.
    const SAME: f32 = 1.0;
    /// The sides must fit at least this many times better without the change.
    const CLEARLY_BETTER: f32 = 2.0;
    let turned = hr.1.turn != lq.1.turn;
    let converted = hr.1.unconverted.is_some() != lq.1.unconverted.is_some();
    if !turned && !converted {
        return None;
    }
    let thumbnail = |image: &RgbImage| Thumbnail::new(image.as_raw(), 3, image.width() as usize);
    let (large, small) = (thumbnail(hr.0), thumbnail(lq.0));
    let as_trained = large.distance(&small);
    if as_trained < SAME {
        return None;
    }
    if turned {
        let all = (2..=8).filter_map(Orientation::from_exif);
        let fits = |turn: &Orientation| hr.0.width() == hr.0.height() || turn.to_exif() < 5;
        let best = all
            .filter(fits)
            .map(|turn| large.distance(&small.turned(turn)))
            .fold(f32::MAX, f32::min);
        if best < as_trained / CLEARLY_BETTER {
            let (hr, lq) = (hr.1.turn.to_exif(), lq.1.turn.to_exif());
            return Some(format!(
                "HR and LQ show the same turned against each other: the EXIF orientation of the HR is {hr}, of the LQ {lq} (1 = upright); \
                 store both upright"
            ));
        }
    }
    if converted {
        let as_stored = match (&hr.1.unconverted, &lq.1.unconverted) {
            (Some(large), _) => large.distance(&small),
            (_, Some(small)) => large.distance(small),
            _ => return None,
        };
        if as_stored < as_trained / CLEARLY_BETTER {
            let (with, without) = if hr.1.unconverted.is_some() {
                ("HR", "LQ")
            } else {
                ("LQ", "HR")
            };
            return Some(format!(
                "the {with} has a colour profile and was converted to sRGB; the {without} has none, though its numbers are those of the \
                 same profile: give both the profile, or convert both to sRGB"
            ));
        }
    }
    None
}

/// CRC32 over the file of an image, or over its HR file and then its LQ file.
///
/// # Errors
/// A file cannot be read.
pub fn files_crc(job: &Job) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = [0; 1 << 16];
    for path in [Some(&job.source.hr), job.source.lq.as_ref()]
        .into_iter()
        .flatten()
    {
        let opened = failure::retry(|| files::open_regular(path));
        let mut file = opened.with_context(|| format!("cannot open {}", path.display()))?;
        loop {
            match failure::retry(|| file.read(&mut buffer))
                .with_context(|| format!("cannot read {}", path.display()))?
            {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
    }
    Ok(hasher.finalize())
}

/// Detail of a square patch (`[side, side, 3]`, u8 RGB): the mean over its pixels of |difference to
/// the left neighbour| + |difference to the upper neighbour|, in luma of 0 to 255. The luma has the
/// weights 77, 150 and 29 of 256 (BT.601) and is rounded down. A patch of one colour has 0,
/// photographs mostly 4 to 40.
pub fn detail(patch: &[u8], side: usize) -> f64 {
    let luma = |p: &[u8]| {
        ((u32::from(p[0]) * 77 + u32::from(p[1]) * 150 + u32::from(p[2]) * 29) >> 8) as i32
    };
    let mut sum = 0u64;
    let mut above: Vec<i32> = Vec::new();
    for row in patch.chunks_exact(side * 3) {
        let line: Vec<i32> = row.chunks_exact(3).map(luma).collect();
        sum += line
            .windows(2)
            .map(|w| u64::from(w[0].abs_diff(w[1])))
            .sum::<u64>();
        sum += line
            .iter()
            .zip(&above)
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum::<u64>();
        above = line;
    }
    sum as f64 / (side * side).max(1) as f64
}

/// Crops the image at the right and at the bottom to a multiple of `scale`.
fn crop_to_multiple(image: RgbImage, scale: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let (w, h) = (width - width % scale, height - height % scale);
    if (w, h) == (width, height) {
        image
    } else {
        image::imageops::crop_imm(&image, 0, 0, w, h).to_image()
    }
}

/// Appends the rows of a square patch to `out`.
pub(super) fn copy_patch(image: &RgbImage, x: u32, y: u32, size: u32, out: &mut Vec<u8>) {
    let stride = image.width() as usize * 3;
    let bytes = image.as_raw();
    for row in y as usize..(y + size) as usize {
        let at = row * stride + x as usize * 3;
        out.extend_from_slice(&bytes[at..at + size as usize * 3]);
    }
}
