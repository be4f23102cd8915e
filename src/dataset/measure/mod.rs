//! Measures by which training images are chosen: blockiness, noise, blur, entropy, and a hash that
//! similar images share. Depends on nothing of ours. Promises the same value on every machine: sums
//! are integers, and only the last step of a measure is floating point.

mod blockiness;
mod blur;
mod noise;
mod perceptual_hash;

pub use blockiness::blockiness;
pub use blur::BlurMeasure;
pub use noise::{noise, noise_bytes};
pub use perceptual_hash::perceptual_hash;

use image::RgbImage;

/// Number of values of a channel.
const LEVELS: usize = 256;

/// The luma of an image or patch, `[height, width]`: weights 77, 150 and 29 of 256 (BT.601), rounded
/// down, 0 to 255.
pub struct Luma {
    width: usize,
    height: usize,
    values: Vec<u8>,
}

impl Luma {
    /// The luma of an image. It takes one byte for each pixel.
    pub fn new(image: &RgbImage) -> Luma {
        Luma::of_rows(image.as_raw(), image.width() as usize)
    }

    /// The luma of interleaved RGB (`[height, width, 3]`).
    pub fn of_rows(rgb: &[u8], width: usize) -> Luma {
        let values: Vec<u8> = rgb
            .chunks_exact(3)
            .map(|p| {
                let [r, g, b] = [p[0], p[1], p[2]].map(u32::from);
                ((r * 77 + g * 150 + b * 29) >> 8) as u8
            })
            .collect();
        Luma {
            width,
            height: values.len() / width.max(1),
            values,
        }
    }

    /// One row, from the left.
    fn row(&self, y: usize) -> &[u8] {
        &self.values[y * self.width..][..self.width]
    }
}

/// Shannon entropy of the luma: the sum over its 256 values of `-p log2 p`, in bits. One colour has
/// 0, an even spread over all values 8, and photographs mostly 5 to 7.8.
pub fn entropy(luma: &Luma) -> f64 {
    let mut counts = [0u64; LEVELS];
    for &value in &luma.values {
        counts[usize::from(value)] += 1;
    }
    let all = luma.values.len().max(1) as f64;
    let bits = |&n: &u64| {
        let p = n as f64 / all;
        -p * p.log2()
    };
    counts.iter().filter(|&&n| n > 0).map(bits).sum()
}

#[cfg(test)]
mod tests;
