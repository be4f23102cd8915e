//! The limits on single image files, checked against headers. Depends on nothing.

use anyhow::{Result, ensure};

/// Bytes of a JPEG in which its first scan must begin. The profiles, previews and depth maps of
/// real files are far smaller.
pub(super) const MAX_JPEG_HEADER: u64 = 64 << 20;
/// Most bytes of a pixel while it is decoded (16-bit RGBA).
pub(super) const MAX_PIXEL_BYTES: u64 = 8;

/// Limits on a single image file.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Width x height of the largest image that is read. Decoding takes up to 11 bytes per pixel (3
    /// for the result, 8 for a 16-bit RGBA source) and the decoder's own buffers.
    pub max_pixels: u64,
}

impl Default for Limits {
    /// 200 million pixels, twice a 100-megapixel medium-format photograph: 600 MB as 8-bit RGB.
    fn default() -> Self {
        Limits {
            max_pixels: 200_000_000,
        }
    }
}

/// Why CMYK images are refused.
pub(super) const CMYK: &str = "CMYK colours (for print); convert it to RGB with its colour profile";

/// Checks the size in a header.
///
/// # Errors
/// An empty image, or one with more pixels than the limit.
pub(in super::super) fn check_size(width: u32, height: u32, limits: &Limits) -> Result<()> {
    ensure!(
        width > 0 && height > 0,
        "the header says {width}x{height}: an empty image"
    );
    let pixels = u64::from(width) * u64::from(height);
    ensure!(
        pixels <= limits.max_pixels,
        super::NotSupported(format!(
            "the header says {width}x{height}, {:.0} million pixels: more than the limit of {:.0} million; cut it into parts",
            pixels as f64 / 1e6,
            limits.max_pixels as f64 / 1e6
        ))
    );
    Ok(())
}
