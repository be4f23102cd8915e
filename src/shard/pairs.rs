//! The pairs of a finished set as images: single ones, files, a contact sheet. Depends on `reader`,
//! `degraded` and `report`. Promises to change nothing in the set and to use read calls only.

use super::degraded::{HrPixels, LqPatch, PatchDegrader, draws_of_sample};
use super::manifest::DEGRADE;
use super::reader::{Crop, Io, Scratch, ShardSet};
use super::tools::every_patch;
use crate::degrade::Recipe;
use crate::support::files;
use anyhow::{Context, Result};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use std::path::Path;

/// The name of a pair: that of its image and the position of its patch in the LQ image, as in
/// `2019/beach_x128_y64`; the number of the record if its tables cannot be read.
pub fn pair_name(set: &ShardSet, record: u64) -> String {
    match set.source(record) {
        Ok(source) => format!("{}_x{}_y{}", source.image, source.x, source.y),
        Err(_) => format!("record {record}"),
    }
}

/// Reads pairs as images. From a set of HR alone a recipe makes the LQ, with draws that depend on
/// the record alone, so that everybody who reads a record with one recipe sees the same pair.
pub struct PairReader<'a> {
    set: &'a ShardSet,
    scratch: Scratch,
    /// For a set of HR alone.
    degrader: Option<PatchDegrader>,
}

impl<'a> PairReader<'a> {
    /// Allocates. Without `recipe`, the one of the set makes the LQ of a set of HR alone.
    ///
    /// # Errors
    /// A set of HR alone without a recipe that can be used; too little memory.
    pub fn new(set: &'a ShardSet, recipe: Option<&Recipe>) -> Result<PairReader<'a>> {
        let g = set.geometry();
        let mut degrader = None;
        if set.lqs() == 0 {
            let own = match recipe {
                Some(_) => None,
                None => set.manifest().degrade()?,
            };
            let recipe = recipe.or(own.as_ref()).with_context(|| {
                format!(
                    "the set in {} holds HR alone and names no recipe that makes the LQ; give one with --degrade",
                    set.folder().display()
                )
            })?;
            let crop = set.manifest().crop() as usize;
            degrader = Some(PatchDegrader::new(recipe, g.scale, crop, g.hr()));
        }
        Ok(PairReader {
            set,
            scratch: set.scratch_for(Io::Pread)?,
            degrader,
        })
    }

    /// Bytes that making the LQ of a set of HR alone takes.
    pub fn degrade_bytes(set: &ShardSet, recipe: &Recipe) -> u64 {
        let g = set.geometry();
        let crop = set.manifest().crop() as usize;
        g.hr_bytes() as u64 + PatchDegrader::bytes(recipe, g.scale, crop, g.hr())
    }

    /// Reads LQ and HR of a record, with the LQ of this number. From a set of HR alone, these are
    /// the middle of the stored patch, as large as training takes by default.
    ///
    /// # Errors
    /// Those of [`ShardSet::read_part`].
    pub fn read(&mut self, record: u64, variant: u16) -> Result<(RgbImage, RgbImage)> {
        let g = self.set.geometry();
        let square = |side: usize| RgbImage::new(side as u32, side as u32);
        let whole = Crop {
            x: 0,
            y: 0,
            size: g.lq(),
        };
        let mut hr = square(g.hr());
        let Some(degrader) = &mut self.degrader else {
            let mut lq = square(g.lq());
            let room = Some((variant, &mut *lq));
            self.set
                .read_part(record, whole, &mut self.scratch, room, &mut hr)?;
            return Ok((lq, hr));
        };
        self.set
            .read_part(record, whole, &mut self.scratch, None, &mut hr)?;
        let crop = self.set.manifest().crop() as usize;
        let edge = (g.lq() - crop) / 2;
        let patch = LqPatch {
            x: edge,
            y: edge,
            size: crop,
        };
        let pixels = HrPixels {
            pixels: hr.as_raw(),
            width: g.hr(),
            height: g.hr(),
        };
        let mut lq = square(crop);
        degrader.make(pixels, patch, &draws_of_sample(0, 0, record), &mut lq)?;
        let (at, side) = (edge as u32 * g.scale, crop as u32 * g.scale);
        let hr = image::imageops::crop_imm(&hr, at, at, side, side).to_image();
        Ok((lq, hr))
    }
}

/// Reads a pair as two images, LQ and HR; see [`PairReader`].
///
/// # Errors
/// Those of [`PairReader`].
pub fn pair(set: &ShardSet, record: u64) -> Result<(RgbImage, RgbImage)> {
    PairReader::new(set, None)?.read(record, 0)
}

/// Writes pairs as PNG files `NUMBER_lq.png` and `NUMBER_hr.png` into a folder. Further variants of
/// an LQ are `NUMBER_lq_v1.png`, `NUMBER_lq_v2.png` and so on. Of a set of HR alone without a
/// recipe, only the HR is written.
///
/// # Errors
/// A record cannot be read, or a file not written.
pub fn extract(set: &ShardSet, records: &[u64], out: &Path) -> Result<()> {
    files::create_folder(out)?;
    let write = |name: String, image: &RgbImage| {
        files::write_atomic(&out.join(name), |to| {
            let (width, height) = image.dimensions();
            Ok(PngEncoder::new(to).write_image(
                image.as_raw(),
                width,
                height,
                ExtendedColorType::Rgb8,
            )?)
        })
    };
    if set.lqs() == 0 && set.manifest().option(DEGRADE).is_none() {
        let g = set.geometry();
        let mut scratch = set.scratch_for(Io::Pread)?;
        let mut hr = RgbImage::new(g.hr() as u32, g.hr() as u32);
        for &record in records {
            every_patch(set, record, &mut scratch, &mut [], &mut hr)?;
            write(format!("{record:08}_hr.png"), &hr)?;
        }
        return Ok(());
    }
    let mut reader = PairReader::new(set, None)?;
    for &record in records {
        for variant in 0..set.lqs().max(1) {
            let (lq, hr) = reader.read(record, variant)?;
            if variant == 0 {
                write(format!("{record:08}_lq.png"), &lq)?;
                write(format!("{record:08}_hr.png"), &hr)?;
            } else {
                write(format!("{record:08}_lq_v{variant}.png"), &lq)?;
            }
        }
    }
    Ok(())
}

/// Pairs in one row of a contact sheet.
#[cfg(feature = "report")]
const SHEET_COLUMNS: usize = 3;

/// Largest number of pixels of all images on a contact sheet, before they are enlarged for display:
/// about 150 MB while it is drawn.
#[cfg(feature = "report")]
const SHEET_PIXELS: u64 = 50_000_000;
/// Largest number of pairs on a contact sheet, however small they are.
#[cfg(feature = "report")]
const SHEET_PAIRS: u64 = 1000;
/// Separates the draws of a contact sheet from others with the same seed: "SHEE" in ASCII.
#[cfg(feature = "report")]
const PURPOSE_SHEET: u64 = 0x5348_4545;

/// Most variants of an LQ on a contact sheet.
#[cfg(feature = "report")]
const SHEET_VARIANTS: u16 = 5;

/// Writes a contact sheet of `count` pairs drawn by `seed`. Each LQ, enlarged by repeating its
/// pixels, is shown beside its HR; the first variants of an LQ are shown side by side.
///
/// # Errors
/// No pair or too many pairs are asked for, a record cannot be read, the file cannot be written.
#[cfg(feature = "report")]
pub fn sheet(set: &ShardSet, count: u64, seed: u64, path: &Path) -> Result<()> {
    use crate::report::sheet::{Panel, comparison};
    use crate::support::rng::Rng;
    use std::collections::BTreeSet;

    anyhow::ensure!(count > 0, "a contact sheet needs at least one pair");
    let hr = set.geometry().hr() as u64;
    let variants = set.lqs().clamp(1, SHEET_VARIANTS);
    let most = (SHEET_PIXELS / ((u64::from(variants) + 1) * hr * hr)).clamp(1, SHEET_PAIRS);
    anyhow::ensure!(
        count.min(set.len()) <= most,
        "--count {count} is more than a contact sheet holds: at most {most} pairs of HR {hr}x{hr}; give fewer, and another --seed for others"
    );
    let mut rng = Rng::new(&[PURPOSE_SHEET, seed]);
    let mut drawn = BTreeSet::new();
    while (drawn.len() as u64) < count.min(set.len()) {
        drawn.insert(rng.below(set.len()));
    }
    let mut reader = PairReader::new(set, None)?;
    let mut shown = Vec::new();
    for &record in &drawn {
        let source = set.source(record)?;
        let name = source.image.rsplit('/').next().unwrap_or_default();
        for variant in 0..variants {
            let (lq, hr) = reader.read(record, variant)?;
            let large = RgbImage::from_fn(hr.width(), hr.height(), |x, y| {
                *lq.get_pixel(x / set.scale(), y / set.scale())
            });
            let title = match variants {
                1 => format!("#{record} LQ"),
                _ => format!("#{record} LQ {variant}"),
            };
            shown.push((large, title, name.to_string()));
            if variant + 1 == variants {
                let place = format!("at {}, {}", source.x, source.y);
                shown.push((hr, format!("#{record} HR"), place));
            }
        }
    }
    let columns = match variants {
        1 => 2 * SHEET_COLUMNS,
        several => usize::from(several) + 1,
    };
    let rows = shown.chunks(columns);
    let rows: Vec<Vec<Panel>> = rows
        .map(|row| {
            row.iter()
                .map(|(image, title, note)| Panel {
                    image,
                    title: title.clone(),
                    note: note.clone(),
                })
                .collect()
        })
        .collect();
    comparison(&rows, path)
}
