//! Noise: its standard deviation, from the finest differences in the flattest places of an image.

use super::LEVELS;
use image::RgbImage;

/// Side of the blocks that are compared for flatness, pixels.
const BLOCK: usize = 8;
/// Share of the blocks, the flattest ones, that the estimate uses.
const FLATTEST: f64 = 0.1;
/// Fewest blocks of which the flattest are taken; with fewer there is no estimate.
const FEWEST: usize = 64;
/// The differences are those of the mask `[1 -2 1; -2 4 -2; 1 -2 1]`, which is 0 on any plane and on
/// any straight edge along an axis (Immerkaer, Fast Noise Variance Estimation, 1996). It multiplies
/// the deviation of independent noise by the root of the sum of its squares, 6.
const GAIN: f64 = 6.0;
/// Median of the absolute value of a normal variable of deviation 1.
const MEDIAN_OF_NORMAL: f64 = 0.674_489_75;
/// Values of the mask's result: up to 8 x 255 on either side.
const DIFFERENCES: usize = 8 * (LEVELS - 1) + 1;

/// Bytes that [`noise`] allocates for an image of `pixels` pixels.
pub fn noise_bytes(pixels: u64) -> u64 {
    // the flatness of every block, once in order and once sorted
    2 * 2 * pixels / (BLOCK * BLOCK) as u64 + 8 * DIFFERENCES as u64
}

/// Standard deviation of the noise, in units of 1/255: the mean of the estimates for red, green and
/// blue. `None`: the image is too small or nearly all of it is clipped to black or white. Noise whose
/// neighbouring pixels are alike (from a camera's own processing, from JPEG, from enlarging) is
/// underestimated, and an image that is textured everywhere has its finest texture counted as noise.
pub fn noise(image: &RgbImage) -> Option<f64> {
    let channels: Vec<f64> = (0..3).filter_map(|c| noise_of_channel(image, c)).collect();
    (!channels.is_empty()).then(|| channels.iter().sum::<f64>() / channels.len() as f64)
}

fn noise_of_channel(image: &RgbImage, channel: usize) -> Option<f64> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let values = image.as_raw();
    let at = |x: usize, y: usize| values[(y * width + x) * 3 + channel];
    let blocks = || {
        let down = (0..height / BLOCK).map(|y| y * BLOCK);
        down.flat_map(|y| (0..width / BLOCK).map(move |x| (x * BLOCK, y)))
    };
    let flatness: Vec<u16> = blocks().map(|(x, y)| flatness(&at, x, y)).collect();
    let mut sorted: Vec<u16> = flatness.iter().copied().filter(|&f| f != CLIPPED).collect();
    if sorted.len() < FEWEST {
        return None;
    }
    let rank = (sorted.len() as f64 * FLATTEST) as usize;
    let limit = *sorted.select_nth_unstable(rank).1;
    let mut counts = vec![0u64; DIFFERENCES];
    for ((x, y), _) in blocks().zip(&flatness).filter(|&(_, &f)| f <= limit) {
        for y in y + 1..y + BLOCK - 1 {
            for x in x + 1..x + BLOCK - 1 {
                let row = |y: usize| {
                    i32::from(at(x - 1, y)) - 2 * i32::from(at(x, y)) + i32::from(at(x + 1, y))
                };
                counts[(row(y - 1) - 2 * row(y) + row(y + 1)).unsigned_abs() as usize] += 1;
            }
        }
    }
    Some(median(&counts) / GAIN / MEDIAN_OF_NORMAL)
}

/// Flatness of a block that has black or white pixels, which hide noise.
const CLIPPED: u16 = u16::MAX;

/// How much the four quarters of a block differ: the largest sum of the 16 values of a quarter less
/// the smallest. Such sums hardly depend on the finest differences, so choosing by them does not
/// choose places that happen to have little noise.
fn flatness(at: &impl Fn(usize, usize) -> u8, x: usize, y: usize) -> u16 {
    const HALF: usize = BLOCK / 2;
    let mut sums = [0u16; 4];
    for dy in 0..BLOCK {
        for dx in 0..BLOCK {
            let value = at(x + dx, y + dy);
            if value == 0 || value == u8::MAX {
                return CLIPPED;
            }
            sums[dy / HALF * 2 + dx / HALF] += u16::from(value);
        }
    }
    let [a, b, c, d] = sums;
    a.max(b).max(c).max(d) - a.min(b).min(c).min(d)
}

/// Median of absolute differences that were rounded to integers: within the class of the median, the
/// values are taken as evenly spread.
fn median(counts: &[u64]) -> f64 {
    let half = counts.iter().sum::<u64>() as f64 / 2.0;
    let mut below = 0.0;
    for (value, &count) in counts.iter().enumerate() {
        let count = count as f64;
        if count > 0.0 && below + count >= half {
            let share = (half - below) / count;
            return match value {
                0 => share / 2.0,
                _ => value as f64 - 0.5 + share,
            };
        }
        below += count;
    }
    0.0
}
