//! Blur: the deviation of the Gaussian that would blur ideal edges as the sharpest edges of a patch
//! are blurred.

use super::Luma;

/// Deviation of the Gaussian that a patch is blurred by, to compare its edges before and after,
/// pixels.
const SIGMA: f64 = 1.5;
/// Its weights, of 65536 together.
const WEIGHTS: [u32; 11] = [
    67, 498, 2359, 7167, 13960, 17434, 13960, 7167, 2359, 498, 67,
];
const RADIUS: usize = WEIGHTS.len() / 2;
/// Bits after the point of the values that are kept of the blurred patch.
const FRACTION: u32 = 8;
/// An edge is a place where the blurred luma changes by at least this much from pixel to pixel, and
/// by more than beside it: 2 levels, which a sharp step of 8 levels gives.
const EDGE: i32 = 2 << FRACTION;
/// Fewest edges, for each direction with any; with fewer the patch has no estimate.
const FEWEST: usize = 32;
/// The largest blur that is told apart: beyond it, edges hardly change when they are blurred again.
const LARGEST: f64 = 10.0;

/// Measures the blur of patches; it keeps its buffers from patch to patch.
#[derive(Default)]
pub struct BlurMeasure {
    columns: Vec<u32>,
    blurred: Vec<u16>,
    ratios: Vec<f32>,
}

impl BlurMeasure {
    /// Bytes that the buffers take for patches of `side` pixels, the luma included.
    pub fn bytes(side: u64) -> u64 {
        // luma, columns, blurred, and a ratio for at most half of the pixels in each direction
        side * side * (1 + 2 + 4) + 4 * side
    }

    /// Bytes that the buffers take now.
    #[cfg(test)]
    pub(super) fn bytes_taken(&self) -> usize {
        4 * self.columns.len() + 2 * self.blurred.len() + 4 * self.ratios.len()
    }

    /// Blur in pixels, up to 10: for an ideal edge the deviation of the Gaussian that blurred it. In a
    /// photograph, texture beside the edges makes it smaller: in focus 0.2 to 0.6, blurred by a
    /// Gaussian of 1.5 pixels about 1, of 3 pixels about 1.8. `None`: the patch shows too few edges to say, as sky or a wall does.
    ///
    /// An edge blurred by `s` has a slope proportional to `1/s`, and once more blurred by `r` one
    /// proportional to `1/sqrt(s^2 + r^2)`. So the ratio `R` of the two slopes gives
    /// `s = r / sqrt(R^2 - 1)` (Zhuo and Sim, Defocus map estimation from a single image, 2011). The
    /// quarter of the edges with the largest ratios is what counts: a sharp subject before a blurred
    /// background is sharp. Noise makes a patch look sharper than it is.
    pub fn measure(&mut self, luma: &Luma) -> Option<f64> {
        let (width, height) = (luma.width, luma.height);
        if width < 3 || height < 3 {
            return None;
        }
        self.blur(luma);
        self.ratios.clear();
        let at = |x: usize, y: usize| i32::from(luma.values[y * width + x]);
        let blurred = |x: usize, y: usize| i32::from(self.blurred[y * width + x]);
        for y in 0..height {
            let slope = |x: usize| (blurred(x + 1, y) - blurred(x, y)).abs();
            let sharp = |x: usize| (at(x + 1, y) - at(x, y)).abs();
            edges(width - 1, slope, sharp, &mut self.ratios);
        }
        for x in 0..width {
            let slope = |y: usize| (blurred(x, y + 1) - blurred(x, y)).abs();
            let sharp = |y: usize| (at(x, y + 1) - at(x, y)).abs();
            edges(height - 1, slope, sharp, &mut self.ratios);
        }
        if self.ratios.len() < FEWEST {
            return None;
        }
        let rank = self.ratios.len() * 3 / 4;
        let ratio = f64::from(*self.ratios.select_nth_unstable_by(rank, f32::total_cmp).1);
        let least = (1.0 + (SIGMA / LARGEST).powi(2)).sqrt();
        Some(if ratio <= least {
            LARGEST
        } else {
            SIGMA / (ratio * ratio - 1.0).sqrt()
        })
    }

    /// Blurs the luma; at the border its last value goes on.
    fn blur(&mut self, luma: &Luma) {
        let (width, height) = (luma.width, luma.height);
        self.columns.resize(width, 0);
        self.blurred.clear();
        let clamped = |at: usize, shift: usize, length: usize| {
            (at + shift).saturating_sub(RADIUS).min(length - 1)
        };
        for y in 0..height {
            self.columns.fill(0);
            for (shift, &weight) in WEIGHTS.iter().enumerate() {
                let row = luma.row(clamped(y, shift, height));
                for (sum, &value) in self.columns.iter_mut().zip(row) {
                    *sum += weight * u32::from(value);
                }
            }
            // 255 x 65536 before; 16 bits less half of the fraction make room for the second pass
            self.columns.iter_mut().for_each(|sum| *sum >>= FRACTION);
            for x in 0..width {
                let sum: u64 = (0..WEIGHTS.len())
                    .map(|i| u64::from(WEIGHTS[i]) * u64::from(self.columns[clamped(x, i, width)]))
                    .sum();
                self.blurred.push((sum >> 16) as u16);
            }
        }
    }
}

/// Adds the ratio of the slopes before and after blurring for every edge of a row or column with
/// `length` slopes.
fn edges(
    length: usize,
    slope: impl Fn(usize) -> i32,
    sharp: impl Fn(usize) -> i32,
    ratios: &mut Vec<f32>,
) {
    for i in 1..length.saturating_sub(1) {
        let here = slope(i);
        if here >= EDGE && here > slope(i - 1) && here >= slope(i + 1) {
            // noise and rounding can move the steepest place by a pixel
            let steepest = sharp(i - 1).max(sharp(i)).max(sharp(i + 1)) << FRACTION;
            ratios.push(steepest as f32 / here as f32);
        }
    }
}
