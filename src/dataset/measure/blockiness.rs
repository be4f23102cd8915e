//! Blockiness: how strong the steps of JPEG's grid of 8 x 8 blocks are, wherever the grid begins.

use super::Luma;

/// Side of a JPEG block, pixels.
const BLOCK: usize = 8;
/// A place takes part if the luma beside it changes by no more than this: where texture changes the
/// luma anyway, a step of the grid is neither visible nor measurable.
const QUIET: u16 = 12;
/// Fewest quiet places for each offset of the grid; with fewer there is no estimate.
const FEWEST: u64 = 64;

/// Sums for one direction, by the offset of the grid.
#[derive(Default)]
struct Steps {
    sums: [u64; BLOCK],
    counts: [u64; BLOCK],
}

impl Steps {
    /// Adds the four pixels around a boundary, which lies between the second and the third. The step
    /// is what the change there has more than the mean of the changes on its two sides, doubled to
    /// stay an integer.
    #[inline]
    fn add(&mut self, offset: usize, around: [u8; 4]) {
        let [a, b, c, d] = around.map(i16::from);
        if (b - a).unsigned_abs() + (d - c).unsigned_abs() <= QUIET {
            let step = 2 * (c - b) - (b - a) - (d - c);
            self.sums[offset] += u64::from(step.unsigned_abs());
            self.counts[offset] += 1;
        }
    }

    /// The mean step at the offset with the strongest steps, less the median of the eight offsets.
    fn excess(&self) -> Option<f64> {
        if self.counts.iter().any(|&n| n < FEWEST) {
            return None;
        }
        let mean = |i: usize| self.sums[i] as f64 / (2 * self.counts[i]) as f64;
        let mut means: [f64; BLOCK] = std::array::from_fn(mean);
        means.sort_by(f64::total_cmp);
        let median = (means[BLOCK / 2 - 1] + means[BLOCK / 2]) / 2.0;
        Some(means[BLOCK - 1] - median)
    }
}

/// Blockiness of an image, in levels of luma (0 to 255): by how much the mean step at the borders of
/// JPEG's blocks exceeds that elsewhere, the mean over both directions. `None`: the image is too
/// small, or has too few places without texture. The grid may begin anywhere, so a crop does not
/// matter; an image that was resized after JPEG no longer has a grid of 8 pixels, and 0 is measured.
pub fn blockiness(luma: &Luma) -> Option<f64> {
    let (mut across, mut down) = (Steps::default(), Steps::default());
    for y in 0..luma.height {
        for (x, a) in luma.row(y).windows(4).enumerate() {
            across.add(x % BLOCK, [a[0], a[1], a[2], a[3]]);
        }
    }
    for y in 0..luma.height.saturating_sub(3) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| luma.row(y + i));
        for (((&a, &b), &c), &d) in a.iter().zip(b).zip(c).zip(d) {
            down.add(y % BLOCK, [a, b, c, d]);
        }
    }
    match (across.excess(), down.excess()) {
        (Some(across), Some(down)) => Some((across + down) / 2.0),
        (one, other) => one.or(other),
    }
}
