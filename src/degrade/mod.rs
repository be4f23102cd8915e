//! The degradations that make LQ patches from HR patches as they occur in practice: blur, resizing,
//! noise, compression and more, by recipes whose parameters are drawn for each patch.
//!
//! A [`Recipe`] is a preset or a YAML file. A [`Degrader`] applies it: the bytes of an LQ patch are a
//! pure function of the HR pixels, the recipe and [`Draws`] (seed, image, patch, variant), the same
//! for any number of threads and every instruction set: sums are never reordered, products are fused
//! with them everywhere or nowhere, and logarithms do not come from the system. (WebP is as repeatable as libwebp is.) Its memory is known
//! beforehand. Depends on `config::yaml` and `support`.
//!
//! ```
//! use paragon::degrade::{Degrader, Draws, HrView, Recipe};
//!
//! # fn main() -> anyhow::Result<()> {
//! let recipe = Recipe::load("real-esrgan")?;
//! let mut degrader = Degrader::new(&recipe, 4, 64, 64);
//! let hr = vec![128; 64 * 64 * 3];
//! let mut lq = vec![0; 16 * 16 * 3];
//! let draws = Draws::new(1, 2, 3, 0);
//! degrader.apply(HrView::packed(&hr, 64, 64), &draws, &mut lq)?;
//! for step in degrader.explain(&draws, 64, 64) {
//!     println!("{step}");
//! }
//! # Ok(())
//! # }
//! ```

mod area;
mod blur;
mod bound;
mod canvas;
mod colour;
mod correlate;
mod drawn;
mod draws;
mod fixed;
mod jpeg;
mod kernel;
mod keys;
mod lanes;
mod noise;
mod quantise;
mod recipe;
#[cfg(test)]
mod reference_tests;
mod resize;
mod sharpen;
mod short;
mod step;
mod table;
#[cfg(test)]
mod tests;
mod webp;

pub use drawn::DrawnStep;
pub use draws::Draws;
pub use recipe::{Recipe, StepReference};

use anyhow::{Result, ensure};
use area::{Area, Span};
use canvas::Canvas;

/// An HR patch: 8-bit RGB, rows from top to bottom.
#[derive(Clone, Copy, Debug)]
pub struct HrView<'a> {
    /// The pixels, from the first one of the patch on.
    pub data: &'a [u8],
    /// Width in pixels, a multiple of the scale.
    pub width: usize,
    /// Height in pixels, a multiple of the scale.
    pub height: usize,
    /// Bytes from a row to the next.
    pub stride: usize,
}

impl<'a> HrView<'a> {
    /// `[height, width, 3]` without gaps.
    pub fn packed(data: &'a [u8], width: usize, height: usize) -> HrView<'a> {
        HrView {
            data,
            width,
            height,
            stride: 3 * width,
        }
    }
}

/// A rectangle of an LQ patch, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LqPart {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Width, not 0.
    pub width: usize,
    /// Height, not 0.
    pub height: usize,
}

/// Makes LQ patches by a recipe. It owns all scratch; every thread has one of its own.
pub struct Degrader {
    recipe: Recipe,
    scale: usize,
    most: (usize, usize),
    canvas: Canvas,
}

impl Degrader {
    /// For HR patches of at most `max_hr_w` by `max_hr_h` pixels. It allocates at most
    /// [`Recipe::memory`].
    ///
    /// # Panics
    /// If the scale is 0.
    pub fn new(recipe: &Recipe, scale: usize, max_hr_w: usize, max_hr_h: usize) -> Degrader {
        assert!(scale > 0, "the scale is 0");
        Degrader {
            recipe: recipe.clone(),
            scale,
            most: (max_hr_w, max_hr_h),
            canvas: Canvas::new(&recipe.layout(max_hr_w, max_hr_h, scale)),
        }
    }

    /// Writes the LQ of an HR patch to `lq`, `[height / scale, width / scale, 3]`.
    ///
    /// # Errors
    /// Sizes that do not fit, or a codec that fails.
    pub fn apply(&mut self, hr: HrView, draws: &Draws, lq: &mut [u8]) -> Result<()> {
        let part = LqPart {
            x: 0,
            y: 0,
            width: hr.width / self.scale,
            height: hr.height / self.scale,
        };
        self.apply_part(hr, draws, part, lq)
    }

    /// Writes a part of what [`Degrader::apply`] writes, with the same bytes, to `lq`,
    /// `[part.height, part.width, 3]`. Pixels that do not decide the part are not computed.
    ///
    /// # Errors
    /// Sizes that do not fit, or a codec that fails.
    pub fn apply_part(
        &mut self,
        hr: HrView,
        draws: &Draws,
        part: LqPart,
        lq: &mut [u8],
    ) -> Result<()> {
        let (w, h, scale) = (hr.width, hr.height, self.scale);
        ensure!(
            w > 0 && h > 0 && w.is_multiple_of(scale) && h.is_multiple_of(scale),
            "the HR patch has {w}x{h} pixels, which must be multiples of the scale {scale}"
        );
        ensure!(
            w <= self.most.0 && h <= self.most.1,
            "the HR patch has {w}x{h} pixels; this degrader is for at most {}x{}",
            self.most.0,
            self.most.1
        );
        ensure!(
            hr.stride >= 3 * w && hr.data.len() >= (h - 1) * hr.stride + 3 * w,
            "the HR patch of {w}x{h} pixels has only {} bytes",
            hr.data.len()
        );
        let span = |start: usize, length: usize| Span {
            start,
            end: start.saturating_add(length),
        };
        let area = Area {
            x: span(part.x, part.width),
            y: span(part.y, part.height),
        };
        ensure!(
            part.width > 0 && part.height > 0 && area.x.end <= w / scale && area.y.end <= h / scale,
            "{part:?} does not lie in an LQ patch of {}x{}",
            w / scale,
            h / scale
        );
        let expected = 3 * part.width * part.height;
        ensure!(
            lq.len() == expected,
            "the LQ patch takes {expected} bytes, not {}",
            lq.len()
        );
        let steps = self.explain(draws, w, h);
        let needed = area::needed(&steps, (w, h), area);
        self.canvas.read(&hr, needed[0]);
        for (step, after) in steps.iter().zip(&needed[1..]) {
            step.apply(&mut self.canvas, *after)?;
            self.canvas.crop(*after);
        }
        self.canvas.write(lq);
        Ok(())
    }

    /// The steps with the parameters that [`Degrader::apply`] draws for an HR patch of this size, in
    /// order.
    pub fn explain(&self, draws: &Draws, hr_w: usize, hr_h: usize) -> Vec<DrawnStep> {
        let (steps, last) = self.recipe.steps();
        step::draw(steps, last, *draws, (hr_w, hr_h), self.scale)
    }
}
