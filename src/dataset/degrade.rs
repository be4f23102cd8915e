//! Resamples between HR and LQ: the antialiased filters that make an LQ image, and the bicubic
//! enlargement that networks are compared with. Depends on fast_image_resize. Promises the values
//! of Pillow's `Image.resize`, to within 1.

use anyhow::{Context, Result, ensure};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3, U16};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions};
use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How an LQ image is made from an HR image. All filters except `Nearest` average over the area
/// that an LQ pixel covers (antialiased), as Pillow, MATLAB's `imresize` and torch's
/// `antialias=True` do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Keys' cubic with a = -0.5, the usual choice of super-resolution data sets
    Bicubic,
    /// Triangle
    Bilinear,
    /// Windowed sinc with three lobes
    Lanczos3,
    /// Plain mean of the covered pixels
    Box,
    /// One pixel of each block, with aliasing
    Nearest,
    /// Magic Kernel Sharp 2021 (J. Costella): a quadratic B-spline with its own blur taken out
    Magic,
}

/// Centre and one side of the symmetric taps that sharpen the quadratic B-spline to Magic Kernel
/// Sharp 2021.
const MAGIC_TAPS: [f64; 4] = [204.0 / 144.0, -35.0 / 144.0, 6.0 / 144.0, -1.0 / 144.0];

/// Magic Kernel Sharp 2021 at a distance of `x` pixels: the B-spline under its sharpening taps.
fn magic_kernel(x: f64) -> f64 {
    let spline = |x: f64| match x.abs() {
        d if d <= 0.5 => 0.75 - d * d,
        d if d < 1.5 => 0.5 * (1.5 - d) * (1.5 - d),
        _ => 0.0,
    };
    let sides = (1..MAGIC_TAPS.len())
        .map(|k| MAGIC_TAPS[k] * (spline(x - k as f64) + spline(x + k as f64)));
    MAGIC_TAPS[0] * spline(x) + sides.sum::<f64>()
}

impl Filter {
    /// Every filter, in the order of their ids.
    pub const ALL: [Filter; 6] = [
        Filter::Bicubic,
        Filter::Bilinear,
        Filter::Lanczos3,
        Filter::Box,
        Filter::Nearest,
        Filter::Magic,
    ];

    /// The number of this filter in files. It is never used for another filter.
    pub fn id(self) -> u8 {
        match self {
            Filter::Bicubic => 1,
            Filter::Bilinear => 2,
            Filter::Lanczos3 => 3,
            Filter::Box => 4,
            Filter::Nearest => 5,
            Filter::Magic => 6,
        }
    }

    /// The filter with this id; `None` if there is none (0 is never used).
    pub fn from_id(id: u8) -> Option<Filter> {
        Filter::ALL.into_iter().find(|f| f.id() == id)
    }

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Filter::Bicubic => "bicubic",
            Filter::Bilinear => "bilinear",
            Filter::Lanczos3 => "lanczos3",
            Filter::Box => "box",
            Filter::Nearest => "nearest",
            Filter::Magic => "magic",
        }
    }

    /// Distance that the filter reaches from the middle of an LQ pixel, in LQ pixels.
    pub fn support(self) -> f64 {
        match self {
            Filter::Box | Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos3 => 3.0,
            Filter::Magic => 4.5,
        }
    }

    fn algorithm(self) -> ResizeAlg {
        match self {
            Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
            Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
            Filter::Lanczos3 => ResizeAlg::Convolution(FilterType::Lanczos3),
            Filter::Box => ResizeAlg::Convolution(FilterType::Box),
            Filter::Nearest => ResizeAlg::Nearest,
            // `new` fails only for a support that is not positive
            Filter::Magic => fast_image_resize::Filter::new(
                "magic kernel sharp 2021",
                magic_kernel,
                self.support(),
            )
            .map_or(ResizeAlg::Convolution(FilterType::CatmullRom), |f| {
                ResizeAlg::Convolution(FilterType::Custom(f))
            }),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Larger buffers, in bytes, are not kept for the next image.
const KEPT_BYTES: usize = 8 << 20;

/// Resamples images and keeps its buffers between calls. Each thread has its own.
#[derive(Default)]
pub struct Resampler {
    resizer: fast_image_resize::Resizer,
    /// The image after the horizontal pass, its bytes in words that are aligned for every kind of pixel.
    between: Vec<u16>,
}

impl Resampler {
    /// A resampler with empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reduces `hr` by `scale` in both directions.
    ///
    /// # Errors
    /// A side is not a multiple of `scale` (crop first), or is empty.
    pub fn downscale(&mut self, hr: &RgbImage, scale: u32, filter: Filter) -> Result<RgbImage> {
        let (width, height) = hr.dimensions();
        ensure!(scale > 0, "the scale is 0");
        ensure!(
            width.is_multiple_of(scale) && height.is_multiple_of(scale),
            "the image is {width}x{height}: expected multiples of the scale {scale}; crop it first"
        );
        self.resize(hr, width / scale, height / scale, filter)
    }

    /// Enlarges `lq` by `scale` with the bicubic filter (a = -0.5).
    ///
    /// # Errors
    /// The result is too large or empty.
    pub fn upscale_bicubic(&mut self, lq: &RgbImage, scale: u32) -> Result<RgbImage> {
        let (width, height) = lq.dimensions();
        let sides = width.checked_mul(scale).zip(height.checked_mul(scale));
        let (w, h) =
            sides.with_context(|| format!("{width}x{height} times {scale} is too large"))?;
        self.resize(lq, w, h, Filter::Bicubic)
    }

    /// Enlarges one channel, such as alpha, by `scale` with the bicubic filter (a = -0.5).
    ///
    /// # Errors
    /// The result is too large or empty.
    pub fn upscale_plane(&mut self, plane: &GrayImage, scale: u32) -> Result<GrayImage> {
        let (width, height) = plane.dimensions();
        let sides = width.checked_mul(scale).zip(height.checked_mul(scale));
        let (w, h) =
            sides.with_context(|| format!("{width}x{height} times {scale} is too large"))?;
        let large =
            self.samples::<U8, u8>(plane.as_raw(), (width, height), (w, h), Filter::Bicubic)?;
        GrayImage::from_raw(w, h, large).context("the resized image has a wrong length")
    }

    /// As [`Resampler::upscale_plane`], for a channel of 16 bits (`[height, width]`).
    ///
    /// # Errors
    /// The result is too large or empty.
    pub fn upscale_deep_plane(
        &mut self,
        plane: &[u16],
        (width, height): (u32, u32),
        scale: u32,
    ) -> Result<Vec<u16>> {
        let sides = width.checked_mul(scale).zip(height.checked_mul(scale));
        let sides =
            sides.with_context(|| format!("{width}x{height} times {scale} is too large"))?;
        self.samples::<U16, u16>(plane, (width, height), sides, Filter::Bicubic)
    }

    /// Resamples `image` to any size, in pixels.
    ///
    /// # Errors
    /// A side is empty.
    pub fn resize(
        &mut self,
        image: &RgbImage,
        width: u32,
        height: u32,
        filter: Filter,
    ) -> Result<RgbImage> {
        let sides = (width, height);
        let data = self.samples::<U8x3, u8>(image.as_raw(), image.dimensions(), sides, filter)?;
        RgbImage::from_raw(width, height, data).context("the resized image has a wrong length")
    }

    /// Resamples pixels `P` whose channels are values of `T`. The untyped calls of the library would
    /// compile its loops for every kind of pixel that it knows, which takes minutes.
    fn samples<P: PixelTrait, T: bytemuck::Pod>(
        &mut self,
        data: &[T],
        (w, h): (u32, u32),
        (width, height): (u32, u32),
        filter: Filter,
    ) -> Result<Vec<T>> {
        ensure!(
            w > 0 && h > 0 && width > 0 && height > 0,
            "cannot resize {w}x{h} to {width}x{height}: a side is empty"
        );
        if (w, h) == (width, height) {
            return Ok(data.to_vec());
        }
        let options = ResizeOptions::new()
            .resize_alg(filter.algorithm())
            .use_alpha(false);
        let bytes = |w: u32, h: u32| w as usize * h as usize * size_of::<P>();
        let source = TypedImageRef::<P>::from_buffer(w, h, bytemuck::cast_slice(data))?;
        let mut large = vec![T::zeroed(); bytes(width, height) / size_of::<T>()];
        let target = bytemuck::cast_slice_mut(&mut large);
        let mut target = TypedImage::<P>::from_buffer(width, height, target)?;
        if filter == Filter::Nearest {
            self.resizer.resize_typed(&source, &mut target, &options)?;
        } else {
            // Along x first, as Pillow does. By default the library begins with y for 8-bit pixels.
            // Each pass ends in clamped bytes, so the results would differ by several values beside
            // strong edges.
            self.between.resize(bytes(width, h).div_ceil(2), 0);
            let buffer = bytemuck::cast_slice_mut(&mut self.between);
            let mut between = TypedImage::<P>::from_buffer(width, h, buffer)?;
            self.resizer.resize_typed(&source, &mut between, &options)?;
            // a source of the same type, for which the library's loops are compiled already
            let between = TypedImageRef::new(width, h, between.pixels())?;
            self.resizer.resize_typed(&between, &mut target, &options)?;
            if 2 * self.between.capacity() > KEPT_BYTES {
                self.between = Vec::new();
            }
        }
        Ok(large)
    }
}

/// [`Resampler::downscale`] with its own buffers, for a single image.
///
/// # Errors
/// Those of [`Resampler::downscale`].
pub fn downscale(hr: &RgbImage, scale: u32, filter: Filter) -> Result<RgbImage> {
    Resampler::new().downscale(hr, scale, filter)
}

/// [`Resampler::upscale_bicubic`] with its own buffers, for a single image.
///
/// # Errors
/// Those of [`Resampler::upscale_bicubic`].
pub fn upscale_bicubic(lq: &RgbImage, scale: u32) -> Result<RgbImage> {
    Resampler::new().upscale_bicubic(lq, scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn pattern(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([0, 1, 2].map(|c| ((x * 37 + y * 91 + c * 53 + x * y * 7) % 256) as u8))
        })
    }

    fn assert_close(found: &RgbImage, wanted: &[u8], what: &str) {
        assert_eq!(found.as_raw().len(), wanted.len(), "{what}");
        for (i, (a, b)) in found.as_raw().iter().zip(wanted).enumerate() {
            assert!(
                a.abs_diff(*b) <= 1,
                "{what}: value {i} is {a}, Pillow gives {b}"
            );
        }
    }

    /// Pillow 13.0.0, `Image.resize((6, 4), filter)` of the 12x8 pattern, first row.
    #[test]
    fn downscaling_agrees_with_pillow() {
        let hr = pattern(12, 8);
        let cases: [(Filter, u32, &[u8]); 6] = [
            (
                Filter::Bicubic,
                2,
                &[
                    84, 127, 152, 127, 130, 143, 119, 146, 142, 117, 113, 140, 116, 128, 136, 106,
                    132, 120,
                ],
            ),
            (
                Filter::Bilinear,
                2,
                &[
                    89, 127, 149, 125, 132, 144, 122, 143, 141, 119, 117, 138, 116, 128, 135, 111,
                    132, 123,
                ],
            ),
            (
                Filter::Lanczos3,
                2,
                &[
                    85, 129, 147, 123, 129, 148, 123, 143, 142, 116, 115, 134, 109, 130, 143, 112,
                    129, 115,
                ],
            ),
            (
                Filter::Box,
                2,
                &[
                    66, 119, 172, 147, 136, 125, 100, 153, 142, 117, 106, 159, 134, 123, 112, 87,
                    140, 129,
                ],
            ),
            (
                Filter::Nearest,
                2,
                &[
                    135, 188, 241, 223, 20, 73, 55, 108, 161, 143, 196, 249, 231, 28, 81, 63, 116,
                    169,
                ],
            ),
            (
                Filter::Bicubic,
                4,
                &[120, 135, 137, 130, 132, 132, 123, 129, 131],
            ),
        ];
        let mut resampler = Resampler::new();
        for (filter, scale, wanted) in cases {
            let mut found = resampler.downscale(&hr, scale, filter).unwrap();
            assert_eq!(found.dimensions(), (12 / scale, 8 / scale));
            found = image::imageops::crop_imm(&found, 0, 0, found.width(), 1).to_image();
            assert_close(&found, wanted, &format!("{filter} x{scale}"));
        }
    }

    /// Pillow 13.0.0, `Image.resize((3 * s, 2 * s), BICUBIC)` of the 3x2 pattern.
    #[test]
    fn upscaling_agrees_with_pillow() {
        let lq = pattern(3, 2);
        #[rustfmt::skip]
        let twice = [
            0, 42, 95, 0, 51, 103, 18, 71, 122, 39, 92, 150, 59, 112, 183, 68, 121, 198, 18, 69, 122, 25, 78, 132, 46, 99,
            156, 69, 122, 163, 90, 143, 152, 99, 152, 147, 69, 121, 174, 79, 132, 190, 102, 155, 222, 127, 180, 188, 150, 203,
            92, 161, 214, 46, 95, 148, 201, 106, 159, 219, 130, 183, 255, 157, 210, 201, 181, 234, 61, 192, 245, 0,
        ];
        assert_close(&upscale_bicubic(&lq, 2).unwrap(), &twice, "x2");
        let first_row_of_four_times = [
            0, 39, 92, 0, 41, 94, 0, 46, 99, 0, 53, 104, 10, 63, 114, 21, 74, 126, 31, 84, 139, 42,
            95, 158, 52, 105, 178, 59, 112, 192,
        ];
        let four = upscale_bicubic(&lq, 4).unwrap();
        let row = image::imageops::crop_imm(&four, 0, 0, 10, 1).to_image();
        assert_close(&row, &first_row_of_four_times, "x4");
    }

    #[test]
    fn a_level_image_stays_level() {
        let image = RgbImage::from_pixel(24, 12, Rgb([3, 128, 255]));
        for filter in Filter::ALL {
            for scale in [1, 2, 3, 4] {
                let small = downscale(&image, scale, filter).unwrap();
                assert!(
                    small.pixels().all(|p| p.0 == [3, 128, 255]),
                    "{filter} x{scale}"
                );
            }
        }
        assert!(
            upscale_bicubic(&image, 3)
                .unwrap()
                .pixels()
                .all(|p| p.0 == [3, 128, 255])
        );
    }

    #[test]
    fn rejects_what_does_not_divide() {
        let text = downscale(&pattern(9, 8), 2, Filter::Bicubic)
            .unwrap_err()
            .to_string();
        assert!(text.contains("9x8") && text.contains("multiples"), "{text}");
        assert!(downscale(&pattern(8, 8), 0, Filter::Box).is_err());
        assert!(downscale(&RgbImage::new(0, 0), 2, Filter::Box).is_err());
        assert!(upscale_bicubic(&pattern(3, 3), u32::MAX).is_err());
        assert!(upscale_bicubic(&pattern(3, 3), 0).is_err());
    }

    /// The published closed form of the kernel, at points of all its pieces.
    #[test]
    fn the_magic_kernel_is_the_published_one() {
        let published = |x: f64| match x.abs() {
            d if d < 0.5 => 577.0 / 576.0 - 239.0 / 144.0 * d * d,
            d if d < 1.5 => (140.0 * d * d - 379.0 * d + 239.0) / 144.0,
            d if d < 2.5 => -(24.0 * d * d - 113.0 * d + 130.0) / 144.0,
            d if d < 3.5 => (4.0 * d * d - 27.0 * d + 45.0) / 144.0,
            d if d < 4.5 => -(2.0 * d - 9.0) * (2.0 * d - 9.0) / 1152.0,
            _ => 0.0,
        };
        for i in -500..=500 {
            let x = f64::from(i) / 100.0;
            assert!(
                (magic_kernel(x) - published(x)).abs() < 1e-12,
                "{x}: {} {}",
                magic_kernel(x),
                published(x)
            );
        }
    }

    /// Sums in double precision, written out for scale 2, along x and then y with bytes between.
    #[test]
    fn the_magic_filter_reduces_as_its_kernel_says() {
        let hr = pattern(40, 40);
        let small = downscale(&hr, 2, Filter::Magic).unwrap();
        let reduce = |line: Vec<u8>, at: usize| -> u8 {
            let centre = 2.0 * at as f64 + 1.0;
            let weight = |i: usize| magic_kernel((i as f64 + 0.5 - centre) / 2.0);
            let sum: f64 = line
                .iter()
                .enumerate()
                .map(|(i, v)| weight(i) * f64::from(*v))
                .sum();
            (sum / (0..line.len()).map(weight).sum::<f64>())
                .round()
                .clamp(0.0, 255.0) as u8
        };
        for (x, y) in [(0, 0), (3, 9), (10, 10), (19, 19)] {
            for c in 0..3 {
                let column = (0..40)
                    .map(|row| reduce((0..40).map(|i| hr.get_pixel(i, row).0[c]).collect(), x))
                    .collect();
                let (wanted, found) = (reduce(column, y), small.get_pixel(x as u32, y as u32).0[c]);
                assert!(
                    wanted.abs_diff(found) <= 1,
                    "{x} {y} {c}: {found}, not {wanted}"
                );
            }
        }
    }

    #[test]
    fn ids_and_names_are_stable() {
        let known = [
            (1, "bicubic"),
            (2, "bilinear"),
            (3, "lanczos3"),
            (4, "box"),
            (5, "nearest"),
            (6, "magic"),
        ];
        for (filter, (id, name)) in Filter::ALL.into_iter().zip(known) {
            assert_eq!((filter.id(), filter.name()), (id, name));
            assert_eq!(Filter::from_id(id), Some(filter));
            assert_eq!(
                serde_json::to_string(&filter).unwrap(),
                format!("\"{name}\"")
            );
        }
        assert_eq!(Filter::from_id(0), None);
        assert_eq!(Filter::from_id(7), None);
    }
}
