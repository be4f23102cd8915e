//! A hash of 64 bits that an image shares with resized, recompressed and slightly changed copies of
//! it.

use super::Luma;

/// Side of the reduced image.
const REDUCED: usize = 32;
/// Number of frequencies along a side that take part.
const FREQUENCIES: usize = 8;
/// Bits after the point of the reduced values and of the cosines.
const FRACTION: u32 = 12;

/// The perceptual hash of an image: its luma is reduced to 32 x 32 means, of whose cosine transform
/// the 8 x 8 lowest frequencies are taken, without the mean; a bit is set where a coefficient is
/// above the median. Two images differ by the number of bits that differ ([`u64::count_ones`] of the
/// exclusive or): copies that were resized or recompressed by 0 to about 4, unrelated images by
/// about 32. An image that was mirrored, turned or cropped is another image.
pub fn perceptual_hash(luma: &Luma) -> u64 {
    let means = reduce(luma);
    let cosines: Vec<[i64; REDUCED]> = (0..FREQUENCIES).map(cosine).collect();
    let mut coefficients = [0i64; FREQUENCIES * FREQUENCIES];
    let mut rows = [[0i64; FREQUENCIES]; REDUCED];
    for (row, means) in rows.iter_mut().zip(means.chunks_exact(REDUCED)) {
        for (sum, wave) in row.iter_mut().zip(&cosines) {
            *sum = means.iter().zip(wave).map(|(m, c)| m * c).sum();
        }
    }
    for (v, wave) in cosines.iter().enumerate() {
        for u in 0..FREQUENCIES {
            let product = rows.iter().zip(wave).map(|(row, c)| row[u] * c);
            coefficients[v * FREQUENCIES + u] = product.sum();
        }
    }
    // the mean says nothing about the content
    coefficients[0] = 0;
    let mut sorted = coefficients;
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    let bit = |(i, &c): (usize, &i64)| u64::from(c > median) << i;
    coefficients.iter().enumerate().map(bit).sum()
}

/// One cosine of the transform, in units of `2^-12`.
fn cosine(frequency: usize) -> [i64; REDUCED] {
    std::array::from_fn(|x| {
        let angle = std::f64::consts::PI * frequency as f64 * (x as f64 + 0.5) / REDUCED as f64;
        (angle.cos() * f64::from(1 << FRACTION)).round() as i64
    })
}

/// The means of a grid of 32 x 32 equal parts, in units of `2^-12`. A pixel that lies in several
/// parts is shared out by area, exactly: lengths are counted in parts of a pixel, 32 to a pixel.
fn reduce(luma: &Luma) -> Vec<i64> {
    let (across, down) = (shares(luma.width), shares(luma.height));
    let mut sums = vec![0u64; REDUCED * REDUCED];
    let mut line = [0u64; REDUCED];
    for (y, parts) in down.iter().enumerate() {
        line.fill(0);
        for (&value, parts) in luma.row(y).iter().zip(&across) {
            for &(cell, share) in parts {
                line[cell] += share * u64::from(value);
            }
        }
        for &(cell, share) in parts {
            let to = &mut sums[cell * REDUCED..][..REDUCED];
            to.iter_mut().zip(&line).for_each(|(t, l)| *t += share * l);
        }
    }
    let area = (luma.width * luma.height).max(1) as u128;
    let mean = |sum: u64| ((u128::from(sum) << FRACTION) / area) as i64;
    sums.into_iter().map(mean).collect()
}

/// For every pixel of a side, the parts of the grid that it lies in, and how much of it does.
fn shares(length: usize) -> Vec<Vec<(usize, u64)>> {
    let parts = |pixel: usize| {
        let (start, end) = (pixel * REDUCED, (pixel + 1) * REDUCED);
        let overlap = |cell: usize| end.min((cell + 1) * length) - start.max(cell * length);
        let cells = start / length..end.div_ceil(length);
        cells.map(|cell| (cell, overlap(cell) as u64)).collect()
    };
    (0..length).map(parts).collect()
}
