//! Measures a network on images: finds LQ/HR pairs as `shard` does, upscales the LQ by the network
//! and by bicubic, and compares both with HR. Depends on the dataset, the metrics and the upscaler.
//! Promises finite figures, that memory is known from the images' headers, and that an image which
//! cannot be measured is reported and never silently missing from a mean.

use crate::dataset::decode::{Decoded, Limits, decode, read_header};
use crate::dataset::degrade::{Filter, downscale, upscale_bicubic};
use crate::dataset::scan::{RESTORATION_SCALE, Scan, ScanOptions, Source, scan};
use crate::inference::eval_set::EvalSet;
use crate::inference::metrics::{Channels, psnr, scratch_bytes, ssim};
use crate::inference::upscale::{Upscale, Upscaler};
use crate::support::budget::PROGRAM_BYTES;
use crate::support::failure::system_cause;
use anyhow::{Context, Result, ensure};
use image::{RgbImage, imageops};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The highest PSNR that is reported, dB. Equal images (such as an image of one colour and its
/// bicubic enlargement) have an infinite PSNR, which would make every mean infinite; 100 dB are
/// reported for this and for everything above.
pub const MOST_PSNR: f64 = 100.0;

/// PSNR in dB and SSIM, on RGB and on Y (BT.601); PSNR is at most [`MOST_PSNR`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// PSNR over R, G and B, dB.
    pub psnr: f64,
    /// SSIM, mean over R, G and B.
    pub ssim: f64,
    /// PSNR on Y, dB.
    pub psnr_y: f64,
    /// SSIM on Y.
    pub ssim_y: f64,
}

/// One image's result.
#[derive(Clone, Debug, Serialize)]
pub struct ImageResult {
    /// Name inside the dataset.
    pub name: String,
    /// Width of the compared HR image, pixels.
    pub width: u32,
    /// Height of the compared HR image, pixels.
    pub height: u32,
    /// Scores of the network's image.
    pub network: Scores,
    /// Scores of the bicubic enlargement of the same LQ; at scale 1 this is the LQ itself.
    pub bicubic: Scores,
    /// What decoding to 8-bit RGB changed (one text per file); empty if nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// An image that could not be measured.
#[derive(Clone, Debug, Serialize)]
pub struct NotMeasured {
    /// Name inside the dataset.
    pub name: String,
    /// The reason, with the file's path.
    pub reason: String,
}

/// The results of an evaluation.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// The images that were measured, in the order of their names.
    pub results: Vec<ImageResult>,
    /// The images that could not be measured.
    pub left_out: Vec<NotMeasured>,
}

/// An LQ/HR pair in memory; HR is exactly `scale` times LQ.
pub struct ImagePair {
    /// The low-resolution image.
    pub lq: RgbImage,
    /// The high-resolution image.
    pub hr: RgbImage,
}

/// Compares an upscaled image with HR, after cutting `crop` pixels from each side.
///
/// # Errors
/// When sizes differ or the crop leaves less than one SSIM window.
pub fn score(upscaled: &RgbImage, hr: &RgbImage, crop: u32) -> Result<Scores> {
    Ok(Scores {
        psnr: psnr(upscaled, hr, crop, Channels::Rgb)?.min(MOST_PSNR),
        ssim: ssim(upscaled, hr, crop, Channels::Rgb)?,
        psnr_y: psnr(upscaled, hr, crop, Channels::Y)?.min(MOST_PSNR),
        ssim_y: ssim(upscaled, hr, crop, Channels::Y)?,
    })
}

/// Finds the LQ/HR pairs of a folder for a scale. `hr` and `lq` name the folders of either kind, if
/// given.
///
/// # Errors
/// When the folder holds no images, or files that belong to no pair: an evaluation must not leave
/// out images silently.
pub fn find_pairs(
    root: &Path,
    hr: Option<PathBuf>,
    lq: Option<PathBuf>,
    scale: usize,
) -> Result<Vec<Source>> {
    Ok(find(
        root,
        &ScanOptions {
            scale: scale as u32,
            hr,
            lq,
            out: None,
        },
    )?
    .sources)
}

/// As [`find_pairs`], with all options and the whole result of a scan.
///
/// # Errors
/// Those of [`find_pairs`].
pub fn find(root: &Path, options: &ScanOptions) -> Result<Scan> {
    let found = scan(root, options)?;
    if let Some(first) = found.rejected.first() {
        let more = found.rejected.len() - 1;
        anyhow::bail!(
            "{}: {}{}",
            first.path.display(),
            first.reason,
            if more > 0 {
                format!(" (and {more} more)")
            } else {
                String::new()
            }
        );
    }
    Ok(found)
}

/// Reads a pair. If there is no LQ file, LQ is computed from HR by antialiased bicubic.
///
/// # Errors
/// When a file cannot be read, there is no LQ file at scale 1, or HR is not `scale` times LQ. Up to
/// `scale - 1` more HR pixels are accepted and cut off at the right and at the bottom, as `shard`
/// does.
pub fn load_pair(source: &Source, scale: usize) -> Result<ImagePair> {
    Ok(load_pair_with_notes(source, scale)?.0)
}

/// [`load_pair`], with what decoding changed in each file.
pub(super) fn load_pair_with_notes(
    source: &Source,
    scale: usize,
) -> Result<(ImagePair, Vec<String>)> {
    let scale = scale as u32;
    let mut notes = Vec::new();
    let mut read = |path: &Path| -> Result<RgbImage> {
        let Decoded {
            image,
            notes: changes,
            ..
        } = decode(path, &Limits::default())?;
        if !changes.is_empty() {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            notes.push(format!("{}: {}", path.display(), changes.join(", ")));
        }
        Ok(image)
    };
    let hr = read(&source.hr)?;
    let Some(path) = &source.lq else {
        return Ok((pair_from_hr(hr, &source.hr, scale)?, notes));
    };
    let lq = read(path)?;
    let (w, h) = (
        u64::from(lq.width()) * u64::from(scale),
        u64::from(lq.height()) * u64::from(scale),
    );
    let fits = |hr: u32, lq: u64| u64::from(hr) >= lq && u64::from(hr) < lq + u64::from(scale);
    let rule = || match scale {
        RESTORATION_SCALE => "at scale 1 both must have the same size".to_string(),
        _ => format!(
            "HR must be {scale} times LQ, or up to {} pixels more, which are cut off",
            scale - 1
        ),
    };
    ensure!(
        fits(hr.width(), w) && fits(hr.height(), h),
        "{} has {}x{} pixels and {} {}x{}: {}",
        source.hr.display(),
        hr.width(),
        hr.height(),
        path.display(),
        lq.width(),
        lq.height(),
        rule()
    );
    Ok((
        ImagePair {
            hr: cut_to(hr, w as u32, h as u32), // both fit: at most the HR's sides
            lq,
        },
        notes,
    ))
}

/// Cuts an image at the right and at the bottom to `w` x `h` pixels.
fn cut_to(image: RgbImage, w: u32, h: u32) -> RgbImage {
    if image.dimensions() == (w, h) {
        return image;
    }
    imageops::crop_imm(&image, 0, 0, w, h).to_image()
}

/// A pair whose LQ is computed from HR, which is cut to a multiple of the scale.
fn pair_from_hr(hr: RgbImage, path: &Path, scale: u32) -> Result<ImagePair> {
    ensure!(
        scale != RESTORATION_SCALE,
        "{} has no LQ image, and at scale 1 none can be made from the HR",
        path.display()
    );
    let (w, h) = (hr.width() / scale * scale, hr.height() / scale * scale);
    ensure!(
        w > 0 && h > 0,
        "{} has {}x{} pixels, too few for x{scale}",
        path.display(),
        hr.width(),
        hr.height()
    );
    let hr = cut_to(hr, w, h);
    let lq = downscale(&hr, scale, Filter::Bicubic)?;
    Ok(ImagePair { lq, hr })
}

/// (width, height) of a pair's LQ image, from the headers of its files.
///
/// # Errors
/// When a header cannot be read.
pub(super) fn lq_size(source: &Source, scale: u32) -> Result<(u32, u32)> {
    let size = |path: &Path| Ok(read_header(path, &Limits::default())?.size);
    match &source.lq {
        Some(path) => size(path),
        None => size(&source.hr).map(|(w, h)| (w / scale, h / scale)),
    }
}

/// Most bytes of host memory that measuring a pair needs, the program's own included; computed from the headers of
/// its files.
///
/// # Errors
/// When a header cannot be read.
pub fn pair_bytes(upscaler: &Upscaler, source: &Source) -> Result<u64> {
    let scale = upscaler.scale() as u64;
    let pixels = |(w, h): (u32, u32)| u64::from(w) * u64::from(h);
    let decoding = |path: &Path| -> Result<((u32, u32), u64)> {
        let header = read_header(path, &Limits::default())?;
        let file = std::fs::metadata(path)
            .with_context(|| path.display().to_string())?
            .len();
        Ok((
            header.size,
            file + header.metadata_bytes + header.pixel_bytes * pixels(header.size),
        ))
    };
    let (hr_size, hr_decoding) = decoding(&source.hr)?;
    let (lq_size, lq_making) = match &source.lq {
        Some(path) => decoding(path)?,
        None => {
            let size = (hr_size.0 / scale as u32, hr_size.1 / scale as u32);
            (size, 3 * pixels(size) * (scale + 1)) // LQ, and HR reduced along x only
        }
    };
    if pixels(lq_size) == 0 {
        return Ok(PROGRAM_BYTES + hr_decoding); // too small: reported as not measured
    }
    let (hr, lq) = (3 * pixels(hr_size), 3 * pixels(lq_size));
    let result = lq * scale * scale;
    let steps = [
        hr_decoding.max(2 * hr), // with a copy that is cut to a multiple of the scale
        hr + lq_making,
        hr + lq + result,                  // the network's image
        hr + lq + 2 * result + lq * scale, // the bicubic image, and LQ enlarged along x only
        hr + lq + 2 * result + scratch_bytes(hr_size.0),
    ];
    Ok(PROGRAM_BYTES + upscaler.bytes_in_memory(lq_size)? + steps.into_iter().max().unwrap_or(0))
}

/// What [`evaluate`] calls for every image: its result, the network's image, the bicubic one, and
/// the pair.
pub type EachImage<'a> =
    dyn FnMut(&ImageResult, &RgbImage, &RgbImage, &ImagePair) -> Result<()> + 'a;

/// Upscales and scores every pair; calls `each` with every result and its images (network, bicubic,
/// pair). An image that is damaged, too small or of another size than its partner is listed in
/// [`Evaluation::left_out`], and the evaluation goes on.
///
/// # Errors
/// Errors of the operating system, with the image's path, and those of `each`.
pub fn evaluate(
    upscaler: &mut dyn Upscale,
    sources: &[Source],
    crop: u32,
    each: &mut EachImage,
) -> Result<Evaluation> {
    let scale = upscaler.scale();
    let pairs = sources.iter().map(|source| {
        let pair = load_pair_with_notes(source, scale);
        (source.name.clone(), source.hr.display().to_string(), pair)
    });
    evaluate_pairs(upscaler, pairs, crop, each)
}

/// As [`evaluate`], for the pairs of a set.
///
/// # Errors
/// Those of [`evaluate`].
pub fn evaluate_set(
    upscaler: &mut dyn Upscale,
    set: &EvalSet,
    crop: u32,
    each: &mut EachImage,
) -> Result<Evaluation> {
    let scale = upscaler.scale();
    let pairs = (0..set.len()).map(|index| set_pair(set, index, scale));
    evaluate_pairs(upscaler, pairs, crop, each)
}

/// As [`evaluate_set`], by several threads, each with an upscaler of its own that shares a device with
/// the others. The results are in the order of the set; `each` is called in the order in which they
/// come, by the calling thread.
///
/// # Errors
/// Those of [`evaluate`].
pub fn evaluate_set_by(
    upscalers: Vec<Upscaler>,
    set: &EvalSet,
    crop: u32,
    each: &mut EachImage,
) -> Result<Evaluation> {
    let next = AtomicUsize::new(0);
    let mut found: Vec<(usize, Outcome)> = std::thread::scope(|scope| {
        // a thread waits until the one before its result was taken, so that few images are in memory
        let (results, taken) = std::sync::mpsc::sync_channel(0);
        for mut upscaler in upscalers {
            let (next, results) = (&next, results.clone());
            scope.spawn(move || {
                let scale = upscaler.scale();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= set.len() {
                        return;
                    }
                    let pair = set_pair(set, index, scale);
                    // the other side is gone after an error that ends the evaluation
                    if results
                        .send((index, measure(&mut upscaler, pair, crop)))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(results);
        let outcomes = taken
            .into_iter()
            .map(|(index, measured)| Ok((index, finish(measured, each)?)));
        outcomes.collect::<Result<_>>()
    })?;
    found.sort_by_key(|(index, _)| *index);
    let mut evaluation = Evaluation::default();
    found
        .into_iter()
        .for_each(|(_, outcome)| evaluation.add(outcome));
    Ok(evaluation)
}

/// A pair, or why it could not be read, with its name and its place.
type LoadedPair = (String, String, Result<(ImagePair, Vec<String>)>);

/// A pair of a set.
fn set_pair(set: &EvalSet, index: usize, scale: usize) -> LoadedPair {
    let name = set.name(index);
    let place = set.sources().get(index);
    let place = place.map_or_else(|| name.clone(), |source| source.hr.display().to_string());
    (name, place, set.pair(index, scale))
}

/// A measured pair with its images, or the name of a pair and why it could not be measured.
type MeasuredPair = Result<(ImagePair, Measured), (String, anyhow::Error)>;

/// What is kept of a pair.
type Outcome = Result<ImageResult, NotMeasured>;

fn measure(
    upscaler: &mut dyn Upscale,
    (name, place, loaded): LoadedPair,
    crop: u32,
) -> MeasuredPair {
    let measured = loaded.and_then(|(pair, notes)| {
        let mut measured = evaluate_pair(upscaler, &name, &pair, crop).context(place)?;
        measured.result.notes = notes;
        Ok((pair, measured))
    });
    measured.map_err(|error| (name, error))
}

/// Calls `each` with a pair.
///
/// # Errors
/// Errors of the operating system and of a device, and those of `each`.
fn finish(measured: MeasuredPair, each: &mut EachImage) -> Result<Outcome> {
    match measured {
        Ok((pair, measured)) => {
            each(&measured.result, &measured.ours, &measured.bicubic, &pair)?;
            Ok(Ok(measured.result))
        }
        Err((_, error)) if system_cause(&error).is_some() || is_of_device(&error) => Err(error),
        Err((name, error)) => Ok(Err(NotMeasured {
            name,
            reason: format!("{error:#}"),
        })),
    }
}

/// Whether a device failed, which says nothing about the image.
fn is_of_device(error: &anyhow::Error) -> bool {
    use crate::backend::Error as E;
    let found = error.chain().find_map(|cause| cause.downcast_ref::<E>());
    matches!(found, Some(E::DeviceLost { .. } | E::Driver { .. }))
}

impl Evaluation {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Ok(result) => self.results.push(result),
            Err(left_out) => self.left_out.push(left_out),
        }
    }
}

fn evaluate_pairs(
    upscaler: &mut dyn Upscale,
    pairs: impl Iterator<Item = LoadedPair>,
    crop: u32,
    each: &mut EachImage,
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::default();
    for pair in pairs {
        evaluation.add(finish(measure(upscaler, pair, crop), each)?);
    }
    Ok(evaluation)
}

/// The result of one pair, with the upscaled images.
pub struct Measured {
    /// The scores.
    pub result: ImageResult,
    /// The LQ image upscaled by the network.
    pub ours: RgbImage,
    /// The LQ image upscaled by bicubic; at scale 1 it is the LQ.
    pub bicubic: RgbImage,
}

/// Upscales and scores one pair.
///
/// # Errors
/// When the crop leaves less than one SSIM window, or memory is short.
pub fn evaluate_pair(
    upscaler: &mut dyn Upscale,
    name: &str,
    pair: &ImagePair,
    crop: u32,
) -> Result<Measured> {
    let ours = upscaler.upscale(&pair.lq)?;
    let bicubic = upscale_bicubic(&pair.lq, upscaler.scale() as u32)?;
    let result = ImageResult {
        name: name.to_string(),
        width: pair.hr.width(),
        height: pair.hr.height(),
        network: score(&ours, &pair.hr, crop)?,
        bicubic: score(&bicubic, &pair.hr, crop)?,
        notes: Vec::new(),
    };
    Ok(Measured {
        result,
        ours,
        bicubic,
    })
}

/// Mean of each score over images. PSNR values are at most [`MOST_PSNR`], so the mean is finite.
pub fn mean(scores: impl ExactSizeIterator<Item = Scores>) -> Scores {
    let n = scores.len().max(1) as f64;
    let sum = scores.fold(Scores::default(), |a, b| Scores {
        psnr: a.psnr + b.psnr,
        ssim: a.ssim + b.ssim,
        psnr_y: a.psnr_y + b.psnr_y,
        ssim_y: a.ssim_y + b.ssim_y,
    });
    Scores {
        psnr: sum.psnr / n,
        ssim: sum.ssim / n,
        psnr_y: sum.psnr_y / n,
        ssim_y: sum.ssim_y / n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_images_count_as_a_hundred_decibels() {
        let level = RgbImage::from_pixel(24, 24, image::Rgb([90; 3]));
        let mut other = level.clone();
        let equal = score(&level, &level, 2).unwrap();
        assert_eq!((equal.psnr, equal.psnr_y), (MOST_PSNR, MOST_PSNR));
        other.pixels_mut().for_each(|p| p.0 = [91; 3]);
        let near = score(&other, &level, 2).unwrap();
        let mean = mean([equal, near].into_iter());
        assert!(
            (mean.psnr - (MOST_PSNR + near.psnr) / 2.0).abs() < 1e-12 && mean.psnr_y.is_finite(),
            "{mean:?}"
        );
        // a PSNR above the limit is reported as the limit
        let large = RgbImage::from_pixel(400, 300, image::Rgb([90; 3]));
        let mut one = large.clone();
        one.put_pixel(200, 150, image::Rgb([91, 90, 90]));
        assert!(psnr(&one, &large, 0, Channels::Rgb).unwrap() > MOST_PSNR);
        assert_eq!(score(&one, &large, 0).unwrap().psnr, MOST_PSNR);
    }
}
