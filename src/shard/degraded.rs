//! Makes LQ patches by a degradation recipe, each from its HR patch and the recipe's margin around
//! it. Depends on `degrade`. Promises that a patch is a pure function of the HR pixels around it, of
//! the recipe and of the draws, and that the buffers of a thread are allocated once, with a size
//! that [`PatchDegrader::bytes`] gives.

use crate::degrade::{Degrader, Draws, HrView, Recipe};
use crate::support::failure;
use crate::support::rng::key;
use anyhow::{Context, Result, ensure};
use image::RgbImage;

/// The buffers of one thread that makes LQ patches.
pub(crate) struct PatchDegrader {
    degrader: Degrader,
    scale: usize,
    /// Context of a patch on each side, LQ pixels.
    context: usize,
    /// The LQ of a patch with its context.
    lq: Vec<u8>,
}

/// A square patch of an LQ image, pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LqPatch {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Side.
    pub size: usize,
}

/// HR pixels `[height, width, 3]`, u8 RGB.
#[derive(Clone, Copy)]
pub(crate) struct HrPixels<'a> {
    pub pixels: &'a [u8],
    pub width: usize,
    pub height: usize,
}

/// Side in HR pixels of the part of a square HR image of `whole` pixels that a patch of `patch`
/// pixels is made from.
fn window(recipe: &Recipe, scale: usize, patch: usize, whole: usize) -> usize {
    (patch + 2 * recipe.margin(scale)).min(whole)
}

impl PatchDegrader {
    /// Allocates for LQ patches of up to `lq_size` pixels, cut from HR images with sides of up to
    /// `whole` pixels.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(recipe: &Recipe, scale: u32, lq_size: usize, whole: usize) -> Result<PatchDegrader> {
        let scale = scale as usize;
        let side = window(recipe, scale, lq_size * scale, whole);
        let mut lq = Vec::new();
        let bytes = (side / scale).pow(2) * 3;
        lq.try_reserve_exact(bytes)
            .map_err(|_| failure::no_memory(bytes as u64, "LQ patch"))?;
        lq.resize(bytes, 0);
        Ok(PatchDegrader {
            degrader: Degrader::new(recipe, scale, side, side),
            scale,
            context: recipe.margin(scale) / scale,
            lq,
        })
    }

    /// Bytes that [`PatchDegrader::new`] allocates.
    pub fn bytes(recipe: &Recipe, scale: u32, lq_size: usize, whole: usize) -> u64 {
        let scale = scale as usize;
        let side = window(recipe, scale, lq_size * scale, whole);
        recipe.memory(side, side, scale) + ((side / scale).pow(2) * 3) as u64
    }

    /// Makes an LQ patch of the image `hr`, whose sides are multiples of the scale, and writes it to
    /// `out` (`[size, size, 3]`, u8 RGB).
    ///
    /// # Errors
    /// The patch does not lie in the image; those of [`Degrader::apply`].
    pub fn make(
        &mut self,
        hr: HrPixels<'_>,
        patch: LqPatch,
        draws: &Draws,
        out: &mut [u8],
    ) -> Result<()> {
        let (width, height) = (hr.width / self.scale, hr.height / self.scale);
        ensure!(
            patch.x + patch.size <= width && patch.y + patch.size <= height,
            "{patch:?} does not lie in an LQ image of {width} x {height}"
        );
        let span = |at: usize, most: usize| {
            let end = (at + patch.size + self.context).min(most);
            (at.saturating_sub(self.context), end)
        };
        let ((left, right), (top, bottom)) = (span(patch.x, width), span(patch.y, height));
        let (w, h) = (right - left, bottom - top);
        let first = (top * self.scale * hr.width + left * self.scale) * 3;
        let view = HrView {
            data: &hr.pixels[first..],
            width: w * self.scale,
            height: h * self.scale,
            stride: hr.width * 3,
        };
        let lq = self.lq.get_mut(..w * h * 3);
        let lq = lq.context("a patch is larger than those that its thread was set up for")?;
        self.degrader.apply(view, draws, lq)?;
        let rows = lq.chunks_exact(w * 3).skip(patch.y - top);
        let at = (patch.x - left) * 3;
        for (row, line) in rows.zip(out.chunks_exact_mut(patch.size * 3)) {
            line.copy_from_slice(&row[at..at + patch.size * 3]);
        }
        Ok(())
    }
}

/// The key of an image for the draws of its patches: its pixels and not its name, so that copies of
/// an image give the same pairs, which are then found as duplicates.
pub(crate) fn pixel_key(image: &RgbImage) -> u64 {
    let (width, height) = image.dimensions();
    let crc = crc32fast::hash(image.as_raw());
    key(&[crc.into(), width.into(), height.into()])
}

/// The draws of a stored LQ patch at (x, y) of an LQ image.
pub(crate) fn draws_of_patch(seed: u64, image: u64, x: u32, y: u32, variant: u16) -> Draws {
    Draws::new(
        seed,
        image,
        u64::from(y) << 32 | u64::from(x),
        variant.into(),
    )
}

/// Separates the draws of samples from those of stored patches: "SAMP" in ASCII.
const PURPOSE_SAMPLE: u64 = 0x5341_4D50;

/// The draws of a sample of a training whose LQ is made while it is loaded.
pub(crate) fn draws_of_sample(seed: u64, epoch: u64, position: u64) -> Draws {
    Draws::new(key(&[PURPOSE_SAMPLE, seed]), epoch, position, 0)
}

#[cfg(test)]
pub(crate) mod tests;
