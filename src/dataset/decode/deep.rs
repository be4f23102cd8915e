//! Decodes files of 16 bits per channel without rounding them.

use super::{Decoded, Limits, Metadata, Note, decode_bytes, load, probe};
use crate::dataset::colour;
use anyhow::{Context, Result};
use image::{ColorType, DynamicImage, GrayImage, ImageBuffer};
use std::path::Path;

/// What is kept besides 8-bit colours.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Keep {
    Nothing,
    Alpha,
    /// 16 bits per channel, alpha included.
    Deep,
}

/// A decoded image, with what was to be kept.
pub(super) struct Kept {
    pub plain: Decoded,
    pub alpha: Option<GrayImage>,
    /// Upright, RGB or RGBA.
    pub deep: Option<DynamicImage>,
}

/// Decodes a file with 16 bits per channel to upright sRGB of 16 bits, with its alpha channel if it
/// has one. The notes are those of [`decode`], with the one on rounding.
///
/// # Errors
/// Those of [`decode`]; the file has 8 bits.
pub(in crate::dataset) fn decode_deep(
    path: &Path,
    limits: &Limits,
) -> Result<(DynamicImage, Vec<Note>)> {
    probe(path, limits)?; // before the file is read into memory
    let decoded = decode_bytes(path, &load(path, limits)?, limits, Keep::Deep)?;
    let deep = decoded.deep;
    let deep = deep.with_context(|| format!("{} has 8 bits per channel", path.display()))?;
    Ok((deep, decoded.plain.notes))
}

/// Whether samples have 16 bits.
pub(super) fn is_deep(colour: ColorType) -> bool {
    use ColorType::{L16, La16, Rgb16, Rgba16};
    matches!(colour, L16 | La16 | Rgb16 | Rgba16)
}

/// Upright RGB or RGBA of 16 bits from samples as they are in a file of (width, height) pixels.
pub(super) fn deep_image(
    data: &[u16],
    channels: usize,
    (width, height): (u32, u32),
    head: &Metadata,
) -> Result<DynamicImage> {
    let rgb = colour::to_deep_srgb(data.to_vec(), channels, &head.colours)?;
    let image = if channels.is_multiple_of(2) {
        let alpha = data.iter().skip(channels - 1).step_by(channels);
        let (rgb, _) = rgb.as_chunks::<3>();
        let pixels = rgb.iter().zip(alpha);
        let all = pixels
            .flat_map(|(&[r, g, b], &alpha)| [r, g, b, alpha])
            .collect();
        ImageBuffer::from_raw(width, height, all).map(DynamicImage::ImageRgba16)
    } else {
        ImageBuffer::from_raw(width, height, rgb).map(DynamicImage::ImageRgb16)
    };
    let mut image = image.context("the decoded image has a wrong length")?;
    image.apply_orientation(head.orientation);
    Ok(image)
}
