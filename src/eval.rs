//! Measuring a network on pictures: pairs found as `shard` finds them, upscaled, and compared with HR beside bicubic. Depends on
//! the dataset, the metrics and the upscaler.

use crate::dataset::decode::{Limits, decode};
use crate::dataset::degrade::{Filter, downscale, upscale_bicubic};
use crate::dataset::scan::{Scan, ScanOptions, Source, scan};
use crate::metrics::{Channels, psnr, ssim};
use crate::upscale::Upscale;
use anyhow::{Context, Result, ensure};
use image::{RgbImage, imageops};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// PSNR in dB and SSIM, on RGB and on Y (BT.601).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// dB over R, G and B.
    pub psnr: f64,
    /// Mean over R, G and B.
    pub ssim: f64,
    /// dB on Y.
    pub psnr_y: f64,
    /// On Y.
    pub ssim_y: f64,
}

/// One picture's result.
#[derive(Clone, Debug, Serialize)]
pub struct ImageResult {
    /// Name inside the dataset.
    pub name: String,
    /// HR size compared, pixels.
    pub width: u32,
    /// See `width`.
    pub height: u32,
    /// The network.
    pub network: Scores,
    /// Bicubic upscaling of the same LQ.
    pub bicubic: Scores,
}

/// An LQ/HR pair in memory; HR is exactly `scale` times LQ.
pub struct Pair {
    /// Low resolution.
    pub lq: RgbImage,
    /// Its original.
    pub hr: RgbImage,
}

/// Compares a picture with its original.
///
/// # Errors
/// When sizes differ or the crop leaves nothing.
pub fn score(picture: &RgbImage, hr: &RgbImage, crop: u32) -> Result<Scores> {
    Ok(Scores {
        psnr: psnr(picture, hr, crop, Channels::Rgb)?,
        ssim: ssim(picture, hr, crop, Channels::Rgb)?,
        psnr_y: psnr(picture, hr, crop, Channels::Y)?,
        ssim_y: ssim(picture, hr, crop, Channels::Y)?,
    })
}

/// Finds the pairs of a folder for a scale.
///
/// # Errors
/// When the folder holds no pictures, or files that belong to no pair: an evaluation must not leave some out silently.
pub fn find_pairs(root: &Path, hr: Option<PathBuf>, lq: Option<PathBuf>, scale: usize) -> Result<Vec<Source>> {
    Ok(find(root, &ScanOptions { scale: scale as u32, hr, lq, out: None })?.sources)
}

/// As [`find_pairs`], with all that a scan is told and tells.
///
/// # Errors
/// Those of [`find_pairs`].
pub fn find(root: &Path, options: &ScanOptions) -> Result<Scan> {
    let found = scan(root, options)?;
    if let Some(first) = found.rejected.first() {
        let more = found.rejected.len() - 1;
        anyhow::bail!("{}: {}{}", first.path.display(), first.reason, if more > 0 { format!(" (and {more} more)") } else { String::new() });
    }
    Ok(found)
}

/// Reads a pair; makes the LQ by antialiased bicubic where there is only HR.
///
/// # Errors
/// When a file cannot be read, or the HR is not `scale` times the LQ (up to `scale - 1` pixels more are cut off).
pub fn load_pair(source: &Source, scale: usize) -> Result<Pair> {
    let scale = scale as u32;
    let hr = decode(&source.hr, &Limits::default())?.image;
    let size = |image: &RgbImage| (image.width(), image.height());
    let cut = |hr: RgbImage, (w, h): (u32, u32)| if size(&hr) == (w, h) { hr } else { imageops::crop_imm(&hr, 0, 0, w, h).to_image() };
    let Some(path) = &source.lq else {
        let whole = (hr.width() / scale * scale, hr.height() / scale * scale);
        ensure!(whole.0 > 0 && whole.1 > 0, "{} has {}x{} pixels, too few for x{scale}", source.hr.display(), hr.width(), hr.height());
        let hr = cut(hr, whole);
        let lq = downscale(&hr, scale, Filter::Bicubic)?;
        return Ok(Pair { lq, hr });
    };
    let lq = decode(path, &Limits::default())?.image;
    let (w, h) = (lq.width() * scale, lq.height() * scale);
    let fits = |hr: u32, lq: u32| hr >= lq && hr < lq + scale;
    ensure!(
        fits(hr.width(), w) && fits(hr.height(), h),
        "{} has {}x{} pixels and {} {}x{}: HR must be {scale} times LQ",
        source.hr.display(),
        hr.width(),
        hr.height(),
        path.display(),
        lq.width(),
        lq.height()
    );
    Ok(Pair { hr: cut(hr, (w, h)), lq })
}

/// Upscales and scores every pair; `each` is told every result with its pictures (network, bicubic, pair).
///
/// # Errors
/// Those of reading and scoring, with the picture named.
pub fn evaluate(
    upscaler: &mut dyn Upscale,
    sources: &[Source],
    crop: u32,
    each: &mut dyn FnMut(&ImageResult, &RgbImage, &RgbImage, &Pair) -> Result<()>,
) -> Result<Vec<ImageResult>> {
    let scale = upscaler.scale();
    let mut results = Vec::with_capacity(sources.len());
    for source in sources {
        let pair = load_pair(source, scale)?;
        let measured = evaluate_pair(upscaler, &source.name, &pair, crop).with_context(|| source.hr.display().to_string())?;
        each(&measured.result, &measured.ours, &measured.bicubic, &pair)?;
        results.push(measured.result);
    }
    Ok(results)
}

/// A pair measured, and the pictures that were.
pub struct Measured {
    /// The figures.
    pub result: ImageResult,
    /// The network's picture.
    pub ours: RgbImage,
    /// Bicubic upscaling of the LQ.
    pub bicubic: RgbImage,
}

/// Upscales and scores one pair.
///
/// # Errors
/// When the crop leaves nothing, or memory is short.
pub fn evaluate_pair(upscaler: &mut dyn Upscale, name: &str, pair: &Pair, crop: u32) -> Result<Measured> {
    let ours = upscaler.upscale(&pair.lq)?;
    let bicubic = upscale_bicubic(&pair.lq, upscaler.scale() as u32)?;
    let result = ImageResult {
        name: name.to_string(),
        width: pair.hr.width(),
        height: pair.hr.height(),
        network: score(&ours, &pair.hr, crop)?,
        bicubic: score(&bicubic, &pair.hr, crop)?,
    };
    Ok(Measured { result, ours, bicubic })
}

/// Mean over pictures.
pub fn mean(scores: impl ExactSizeIterator<Item = Scores>) -> Scores {
    let n = scores.len().max(1) as f64;
    let sum = scores.fold(Scores::default(), |a, b| Scores {
        psnr: a.psnr + b.psnr,
        ssim: a.ssim + b.ssim,
        psnr_y: a.psnr_y + b.psnr_y,
        ssim_y: a.ssim_y + b.ssim_y,
    });
    Scores { psnr: sum.psnr / n, ssim: sum.ssim / n, psnr_y: sum.psnr_y / n, ssim_y: sum.ssim_y / n }
}
