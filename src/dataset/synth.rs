//! Dead-leaves pictures.

use image::RgbImage;

/// The picture with this number under this seed, `width` x `height` pixels.
pub fn picture(seed: u64, index: u64, width: u32, height: u32) -> RgbImage {
    let base = crate::rng::key(&[seed, index]);
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x ^ y) as u8, base as u8, x as u8]))
}
