//! Makes LQ patches by a degradation recipe, each from its HR patch and the recipe's margin around
//! it. Depends on `degrade`. Promises that a patch is a pure function of the HR pixels around it, of
//! the recipe and of the draws, and that the buffers of a thread are allocated once, with a size
//! that [`PatchDegrader::bytes`] gives.

use crate::degrade::{Degrader, Draws, HrView, LqPart, Recipe};
use crate::support::rng::key;
use anyhow::{Result, ensure};
use image::RgbImage;

/// The buffers of one thread that makes LQ patches.
pub(crate) struct PatchDegrader {
    degrader: Degrader,
    scale: usize,
    /// Context of a patch on each side, LQ pixels.
    context: usize,
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
    pub fn new(recipe: &Recipe, scale: u32, lq_size: usize, whole: usize) -> PatchDegrader {
        let scale = scale as usize;
        let side = window(recipe, scale, lq_size * scale, whole);
        PatchDegrader {
            degrader: Degrader::new(recipe, scale, side, side),
            scale,
            context: recipe.margin(scale) / scale,
        }
    }

    /// Bytes that [`PatchDegrader::new`] allocates.
    pub fn bytes(recipe: &Recipe, scale: u32, lq_size: usize, whole: usize) -> u64 {
        let scale = scale as usize;
        let side = window(recipe, scale, lq_size * scale, whole);
        recipe.memory(side, side, scale)
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
        let part = LqPart {
            x: patch.x - left,
            y: patch.y - top,
            width: patch.size,
            height: patch.size,
        };
        self.degrader.apply_part(view, draws, part, out)
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
