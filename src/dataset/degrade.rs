//! Resampling between HR and LQ: the antialiased filters that make a low-quality picture, and the bicubic enlargement
//! every network is compared with. Depends on fast_image_resize; promises what Pillow's `Image.resize` gives, within one
//! level of rounding.

use anyhow::{Context, Result, ensure};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a low-quality picture is made from a high-quality one. All but `Nearest` average over the area that a low-quality
/// pixel covers (antialiased), as Pillow, MATLAB's `imresize` and torch's `antialias=True` do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
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
}

impl Filter {
    /// Every filter, in the order of their ids.
    pub const ALL: [Filter; 5] = [Filter::Bicubic, Filter::Bilinear, Filter::Lanczos3, Filter::Box, Filter::Nearest];

    /// The number that stands for this filter in files; never reused for another.
    pub fn id(self) -> u8 {
        match self {
            Filter::Bicubic => 1,
            Filter::Bilinear => 2,
            Filter::Lanczos3 => 3,
            Filter::Box => 4,
            Filter::Nearest => 5,
        }
    }

    /// The filter with this id, or nothing where no filter has it (0 is never used).
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
        }
    }

    fn algorithm(self) -> ResizeAlg {
        match self {
            Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
            Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
            Filter::Lanczos3 => ResizeAlg::Convolution(FilterType::Lanczos3),
            Filter::Box => ResizeAlg::Convolution(FilterType::Box),
            Filter::Nearest => ResizeAlg::Nearest,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Resamples pictures and keeps its working buffers between calls: one per worker thread.
#[derive(Default)]
pub struct Resampler {
    resizer: fast_image_resize::Resizer,
}

impl Resampler {
    /// A resampler with empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// `hr` made smaller by `scale` in both directions. Fails where a side is no multiple of `scale` (crop first) or is
    /// empty.
    pub fn downscale(&mut self, hr: &RgbImage, scale: u32, filter: Filter) -> Result<RgbImage> {
        let (width, height) = hr.dimensions();
        ensure!(scale > 0, "the scale is 0");
        ensure!(
            width % scale == 0 && height % scale == 0,
            "the picture is {width}x{height}: expected multiples of the scale {scale}; crop it first"
        );
        self.resize(hr, width / scale, height / scale, filter)
    }

    /// `lq` enlarged by `scale` with the bicubic filter (a = -0.5).
    pub fn upscale_bicubic(&mut self, lq: &RgbImage, scale: u32) -> Result<RgbImage> {
        let (width, height) = lq.dimensions();
        let sides = width.checked_mul(scale).zip(height.checked_mul(scale));
        let (w, h) = sides.with_context(|| format!("{width}x{height} times {scale} is too large"))?;
        self.resize(lq, w, h, Filter::Bicubic)
    }

    /// `image` at any size, in pixels.
    pub fn resize(&mut self, image: &RgbImage, width: u32, height: u32, filter: Filter) -> Result<RgbImage> {
        let (w, h) = image.dimensions();
        ensure!(w > 0 && h > 0 && width > 0 && height > 0, "cannot resize {w}x{h} to {width}x{height}: a side is empty");
        if (w, h) == (width, height) {
            return Ok(image.clone());
        }
        let source = ImageRef::new(w, h, image.as_raw(), PixelType::U8x3)?;
        let mut target = Image::new(width, height, PixelType::U8x3);
        self.resizer.resize(&source, &mut target, &ResizeOptions::new().resize_alg(filter.algorithm()).use_alpha(false))?;
        RgbImage::from_raw(width, height, target.into_vec()).context("the resized picture has a wrong length")
    }
}

/// [`Resampler::downscale`] with buffers of its own, for a single picture.
pub fn downscale(hr: &RgbImage, scale: u32, filter: Filter) -> Result<RgbImage> {
    Resampler::new().downscale(hr, scale, filter)
}

/// [`Resampler::upscale_bicubic`] with buffers of its own, for a single picture.
pub fn upscale_bicubic(lq: &RgbImage, scale: u32) -> Result<RgbImage> {
    Resampler::new().upscale_bicubic(lq, scale)
}
