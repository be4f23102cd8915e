//! Side-by-side pictures with labels.

use anyhow::{Result, bail};
use image::RgbImage;
use std::path::Path;

/// One picture of a comparison.
pub struct Panel<'a> {
    /// What is shown.
    pub image: &'a RgbImage,
    /// Above the picture.
    pub title: String,
    /// Below the picture.
    pub note: String,
}

/// Writes rows of panels as one PNG.
pub fn comparison(rows: &[Vec<Panel>], path: &Path) -> Result<()> {
    let _ = rows;
    bail!("{}: not written yet", path.display())
}
