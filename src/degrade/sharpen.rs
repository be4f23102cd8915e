//! Sharpening: the unsharp mask by which Real-ESRGAN sharpens its HR, and one that overshoots.

use super::area::Area;
use super::blur::FilteredRows;
use super::canvas::Canvas;
use super::draws::Stream;
use super::fixed::{FixedRow, FixedRows};
use super::kernel::DrawnKernel;
use super::keys::{Keys, Numbers, Range};
use super::lanes::dispatch;

/// The ranges of unsharp masking.
#[derive(Clone, Debug)]
pub(crate) struct Sharpen {
    size: Range,
    amount: Range,
    threshold: Range,
}

impl Default for Sharpen {
    fn default() -> Sharpen {
        Sharpen {
            size: Range::new(51.0, 51.0),
            amount: Range::new(0.5, 0.5),
            threshold: Range::new(10.0, 10.0),
        }
    }
}

impl Sharpen {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        use Numbers::{Odd, Real};
        let about = "taps of the Gaussian, an odd number; its deviation is 0.3 ((taps - 1) / 2 - 1) + 0.8, as OpenCV's";
        keys.range("size", &mut self.size, Odd, (3.0, 51.0), about);
        let about = "how much of the difference is added";
        keys.range("amount", &mut self.amount, Real, (0.0, 5.0), about);
        let about = "differences up to so many levels of 8 bits stay as they are";
        keys.range("threshold", &mut self.threshold, Real, (0.0, 255.0), about);
    }

    /// Pixels that it reaches to each side: two filters.
    pub fn reach(&self) -> f64 {
        self.size.high - 1.0
    }

    /// Draws the parameters.
    pub fn draw(&self, stream: &mut Stream) -> DrawnSharpen {
        DrawnSharpen {
            size: self.size.draw_odd(stream),
            amount: self.amount.draw(stream),
            threshold: self.threshold.draw(stream),
        }
    }
}

/// Drawn unsharp masking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnSharpen {
    pub(crate) size: u32,
    pub(crate) amount: f64,
    pub(crate) threshold: f64,
}

impl DrawnSharpen {
    /// The deviation of its Gaussian.
    fn sigma(self) -> f64 {
        0.3 * (f64::from(self.size - 1) * 0.5 - 1.0) + 0.8
    }

    /// The part of the image before it that decides `area` after it: two filters.
    pub(super) fn input(self, whole: (usize, usize), area: Area) -> Area {
        area.grown(2 * (self.size as usize / 2), whole)
    }
}

/// The ranges of a halo.
#[derive(Clone, Debug)]
pub(crate) struct Halo {
    sigma: Range,
    amount: Range,
}

impl Default for Halo {
    fn default() -> Halo {
        Halo {
            sigma: Range::new(0.8, 2.5),
            amount: Range::new(0.5, 2.0),
        }
    }
}

impl Halo {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        use Numbers::Real;
        let about = "standard deviation of the Gaussian in pixels: the width of the halo";
        keys.range("sigma", &mut self.sigma, Real, (0.1, 8.0), about);
        let about = "how much of the difference is added";
        keys.range("amount", &mut self.amount, Real, (0.0, 10.0), about);
    }

    /// Pixels that it reaches to each side.
    pub fn reach(&self) -> f64 {
        f64::from(halo_taps(self.sigma.high) / 2)
    }

    /// Draws the parameters.
    pub fn draw(&self, stream: &mut Stream) -> DrawnHalo {
        DrawnHalo {
            sigma: self.sigma.draw(stream),
            amount: self.amount.draw(stream),
        }
    }
}

/// A drawn halo.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnHalo {
    pub(crate) sigma: f64,
    pub(crate) amount: f64,
}

impl DrawnHalo {
    /// The part of the image before it that decides `area` after it.
    pub(super) fn input(self, whole: (usize, usize), area: Area) -> Area {
        area.grown(halo_taps(self.sigma) as usize / 2, whole)
    }
}

/// Taps of a Gaussian that reaches three deviations to each side.
fn halo_taps(sigma: f64) -> u32 {
    2 * libm::ceil(3.0 * sigma) as u32 + 1
}

/// One axis of a Gaussian.
fn gaussian_row(taps: u32, sigma: f64) -> Vec<f64> {
    let n = taps as usize;
    let weights = DrawnKernel::gaussian(taps, sigma).weights();
    let sums = (0..n).map(|x| (0..n).map(|y| weights[y * n + x]).sum());
    sums.collect()
}

impl Canvas {
    /// Unsharp masking: where the difference from the blurred image is above the threshold, in a mask
    /// that is itself blurred, the image becomes `clamp(x + amount (x - blurred))`.
    pub(super) fn sharpen(&mut self, drawn: DrawnSharpen) {
        let size = (self.width, self.height);
        let row = FixedRow::new(&gaussian_row(drawn.size, drawn.sigma()));
        let (amount, threshold) = (drawn.amount as f32, drawn.threshold as f32);
        let n = size.0 * size.1;
        let (sums, rest) = self.other[..3 * n].split_at_mut(n);
        let sums = bytemuck::cast_slice_mut(sums);
        let (mask, filtered) = rest.split_at_mut(n);
        let mut rows = FixedRows {
            size,
            lines: self.lines.lines(),
            filtered,
            padded: &mut self.padded,
        };
        for plane in self.planes[..3 * n].chunks_exact_mut(n) {
            rows.fill(plane, &row);
            rows.filter(&row, sums);
            mark(plane, sums, mask, row.unit(), threshold);
            rows.fill(mask, &row);
            sharpened(plane, sums, mask, row.unit(), amount);
            rows.filter(&row, sums);
            blend(plane, mask, sums, row.unit());
        }
    }

    /// Unsharp masking of all differences.
    pub(super) fn halo(&mut self, drawn: DrawnHalo) {
        let size = (self.width, self.height);
        let row = gaussian_row(halo_taps(drawn.sigma), drawn.sigma);
        let row: Vec<f32> = row.iter().map(|w| *w as f32).collect();
        let n = size.0 * size.1;
        let blurred = &mut self.other[..n];
        for plane in self.planes[..3 * n].chunks_exact_mut(n) {
            let mut rows = FilteredRows::new(&mut self.padded, size, row.len() / 2);
            rows.fill(plane, &row, self.lines.lines());
            rows.filter(&row, blurred);
            overshoot(plane, blurred, drawn.amount as f32);
        }
    }
}

dispatch! {
    /// Writes 1 where the difference from the blurred image is above the threshold, else 0.
    fn mark(plane: &[f32], sums: &[i32], mask: &mut [f32], unit: f32, threshold: f32) {
        for ((value, sum), mask) in plane.iter().zip(sums).zip(mask) {
            let difference = value - *sum as f32 * unit;
            *mask = f32::from(u8::from(difference.abs() * 255.0 > threshold));
        }
    }
}

dispatch! {
    /// Writes the image with its differences from the blurred image enlarged.
    fn sharpened(plane: &[f32], sums: &[i32], out: &mut [f32], unit: f32, amount: f32) {
        for ((value, sum), out) in plane.iter().zip(sums).zip(out) {
            *out = (value + amount * (value - *sum as f32 * unit)).clamp(0.0, 1.0);
        }
    }
}

dispatch! {
    /// Takes as much of the sharpened image as the filtered mask says.
    fn blend(plane: &mut [f32], sharp: &[f32], sums: &[i32], unit: f32) {
        for ((value, sharp), sum) in plane.iter_mut().zip(sharp).zip(sums) {
            let mask = *sum as f32 * unit;
            *value = mask * sharp + (1.0 - mask) * *value;
        }
    }
}

dispatch! {
    /// Adds the differences from the blurred image.
    fn overshoot(plane: &mut [f32], blurred: &[f32], amount: f32) {
        for (value, blurred) in plane.iter_mut().zip(blurred) {
            *value = (*value + amount * (*value - blurred)).clamp(0.0, 1.0);
        }
    }
}
