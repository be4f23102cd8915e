//! A few pictures of every validation, kept beside the run: what the network makes of the same places as it learns. Depends on `files`
//! and PNG encoding. Promises small whole files, and the same ones for the same run.

use crate::eval::{ImageResult, Pair};
use crate::files::{create_folder, write_atomic};
use anyhow::{Context, Result};
use image::{ImageFormat, RgbImage, imageops};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

/// Pictures that are kept: the first of the validation folder.
pub const PICTURES: usize = 4;
/// Largest side of what is kept, HR pixels, out of the middle of the picture.
const SIDE: u32 = 256;

/// One kept picture of a run.
pub struct Kept {
    /// Its folder's name.
    pub name: String,
    /// HR as PNG.
    pub hr: Vec<u8>,
    /// Bicubic of the LQ as PNG.
    pub bicubic: Vec<u8>,
    /// Iteration and the network's picture as PNG, in order.
    pub network: Vec<(u64, Vec<u8>)>,
}

/// Folder of all previews of a run.
pub fn folder(run: &Path) -> PathBuf {
    run.join("previews")
}

/// Keeps the network's picture of one validation picture (number `index`), and the first time the HR and bicubic beside it.
///
/// # Errors
/// When a file cannot be written.
pub fn keep(
    run: &Path,
    iteration: u64,
    index: usize,
    result: &ImageResult,
    ours: &RgbImage,
    bicubic: &RgbImage,
    pair: &Pair,
) -> Result<()> {
    if index >= PICTURES {
        return Ok(());
    }
    let plain: String = result.name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    let place = folder(run).join(format!("{index}_{plain}"));
    create_folder(&place)?;
    for (name, picture) in [("hr.png", &pair.hr), ("bicubic.png", bicubic)] {
        if !place.join(name).exists() {
            write(&place.join(name), picture)?;
        }
    }
    write(&place.join(format!("{iteration:08}.png")), ours)
}

fn write(path: &Path, picture: &RgbImage) -> Result<()> {
    let (w, h) = (picture.width().min(SIDE), picture.height().min(SIDE));
    let middle = imageops::crop_imm(picture, (picture.width() - w) / 2, (picture.height() - h) / 2, w, h).to_image();
    let mut bytes = Vec::new();
    middle.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).with_context(|| format!("cannot encode {}", path.display()))?;
    write_atomic(path, |out| Ok(out.write_all(&bytes)?))
}

/// What a run has kept; empty where there was no validation.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn kept(run: &Path) -> Result<Vec<Kept>> {
    let Ok(entries) = std::fs::read_dir(folder(run)) else { return Ok(Vec::new()) };
    let mut places: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()).collect();
    places.sort();
    places.iter().map(|place| read(place)).collect()
}

fn read(place: &Path) -> Result<Kept> {
    let bytes = |name: &str| std::fs::read(place.join(name)).with_context(|| format!("cannot read {}", place.join(name).display()));
    let mut network = Vec::new();
    for entry in std::fs::read_dir(place).with_context(|| format!("cannot read {}", place.display()))? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(iteration) = name.strip_suffix(".png").and_then(|n| n.parse().ok()) {
            network.push((iteration, bytes(name)?));
        }
    }
    network.sort();
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let name = name.split_once('_').map_or(name.as_ref(), |(_, rest)| rest).to_string();
    Ok(Kept { name, hr: bytes("hr.png")?, bicubic: bytes("bicubic.png")?, network })
}
