//! Reduces an image to 16 x 16 mean colours, to find out whether two images show the same. Depends
//! on the image crate alone. Promises that an image and a smaller copy of it have nearly the same
//! means, whatever their sizes.

use image::metadata::Orientation;

/// Number of means along a side.
const SIDE: usize = 16;

/// Mean colours of a grid of 16 x 16 parts, 0 to 255.
#[derive(Clone, Debug, PartialEq)]
pub struct Thumbnail {
    cells: Vec<[f32; 3]>,
}

impl Thumbnail {
    /// Makes the thumbnail of interleaved pixels (`[height, width, channels]`), RGB (`channels` =
    /// 3) or grey (1).
    pub fn new(pixels: &[u8], channels: usize, width: usize) -> Thumbnail {
        let mut cells = vec![[0f32; 3]; SIDE * SIDE];
        let height = pixels.len() / (channels * width.max(1)).max(1);
        let (across, down) = (shares(width), shares(height));
        let mut line = [[0f32; 3]; SIDE];
        for (row, parts) in pixels.chunks_exact((channels * width).max(1)).zip(&down) {
            line.fill([0.0; 3]);
            for (pixel, parts) in row.chunks_exact(channels).zip(&across) {
                for &(cell, share) in parts {
                    for c in 0..3 {
                        line[cell][c] += share * f32::from(pixel[c % channels]);
                    }
                }
            }
            for &(cell, share) in parts {
                for (to, from) in cells[cell * SIDE..][..SIDE].iter_mut().zip(&line) {
                    for c in 0..3 {
                        to[c] += share * from[c];
                    }
                }
            }
        }
        Thumbnail { cells }
    }

    /// Returns the thumbnail of the turned image.
    #[must_use]
    pub fn turned(&self, turn: Orientation) -> Thumbnail {
        use Orientation::{
            FlipHorizontal, FlipVertical, NoTransforms, Rotate90, Rotate90FlipH, Rotate180,
            Rotate270, Rotate270FlipH,
        };
        let end = SIDE - 1;
        let from = |x: usize, y: usize| match turn {
            NoTransforms => (x, y),
            FlipHorizontal => (end - x, y),
            Rotate180 => (end - x, end - y),
            FlipVertical => (x, end - y),
            Rotate90 => (y, end - x),
            Rotate270 => (end - y, x),
            Rotate90FlipH => (y, x),
            Rotate270FlipH => (end - y, end - x),
        };
        let cells = (0..SIDE * SIDE).map(|i| {
            let (x, y) = from(i % SIDE, i / SIDE);
            self.cells[y * SIDE + x]
        });
        Thumbnail {
            cells: cells.collect(),
        }
    }

    /// Mean difference of all colours, 0 to 255.
    pub fn distance(&self, other: &Thumbnail) -> f32 {
        let pairs = self
            .cells
            .iter()
            .flatten()
            .zip(other.cells.iter().flatten());
        pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / (3 * SIDE * SIDE) as f32
    }
}

/// For every pixel of a side, the parts of the grid that it overlaps, and its share of their means.
fn shares(length: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = SIDE as f64 / length.max(1) as f64;
    let parts = |pixel: usize| {
        let (start, end) = (pixel as f64 * scale, (pixel + 1) as f64 * scale);
        let cells = start as usize..(end.ceil() as usize).min(SIDE);
        cells
            .map(|cell| {
                (
                    cell,
                    (end.min((cell + 1) as f64) - start.max(cell as f64)) as f32,
                )
            })
            .collect()
    };
    (0..length).map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, Rgb, RgbImage};

    fn pattern(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([
                (x * 255 / width) as u8,
                (y * 200 / height) as u8,
                ((x * y) % 50) as u8,
            ])
        })
    }

    #[test]
    fn turning_a_thumbnail_is_turning_the_image() {
        let image = pattern(48, 32);
        let of = |i: &RgbImage| Thumbnail::new(i.as_raw(), 3, i.width() as usize);
        for exif in 1..=8 {
            let turn = Orientation::from_exif(exif).unwrap();
            let mut turned = DynamicImage::ImageRgb8(image.clone());
            turned.apply_orientation(turn);
            assert!(
                of(&turned.into_rgb8()).distance(&of(&image).turned(turn)) < 1e-3,
                "orientation {exif}"
            );
        }
    }

    #[test]
    fn size_hardly_matters() {
        let of = |i: &RgbImage| Thumbnail::new(i.as_raw(), 3, i.width() as usize);
        let (large, other) = (pattern(123, 77), pattern(9, 5));
        let small = image::imageops::resize(&large, 41, 26, image::imageops::FilterType::Triangle);
        assert!(
            of(&large).distance(&of(&small)) < 2.0,
            "{}",
            of(&large).distance(&of(&small))
        );
        assert!(of(&other).distance(&of(&other)) == 0.0);
        let level = RgbImage::from_pixel(7, 3, Rgb([90; 3]));
        assert!(
            of(&level)
                .cells
                .iter()
                .flatten()
                .all(|v| (v - 90.0).abs() < 0.01)
        );
    }
}
