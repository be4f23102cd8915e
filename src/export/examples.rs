//! Example images for a model page: the LQ enlarged, the result, and both side by side. Depends on
//! `inference::upscale`, on the dataset's decoders and on a run's previews.

use super::model_db::{BLANK, ExamplePair};
use super::source::Source;
use crate::backend::cpu::CpuOptions;
use crate::dataset::decode::{Limits, decode};
use crate::dataset::scan::list_images;
use crate::inference::upscale::{Upscale, Upscaler};
use crate::support::files::{bounded_name, create_folder, write_atomic};
use crate::train::{kept_previews, read_preview};
use anyhow::{Context, Result, ensure};
use image::imageops::{FilterType, overlay, resize};
use image::{ImageFormat, RgbImage};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

/// Most images that are made examples of.
pub const MOST: usize = 16;
/// Most pixels of an LQ image: its result is in memory as a whole.
const MOST_PIXELS: u64 = 4_000_000;
/// Columns between the two halves of a side-by-side image.
const GAP: u32 = 8;
/// The folder of the examples below the export's folder.
const FOLDER: &str = "examples";

/// The examples that were written.
#[derive(Default)]
pub struct Examples {
    /// All files.
    pub files: Vec<PathBuf>,
    /// The pairs for the entry of OpenModelDB.
    pub pairs: Vec<ExamplePair>,
    /// One line for each image that was left out.
    pub left_out: Vec<String>,
}

impl Examples {
    /// Writes the three files of an example.
    fn add(&mut self, out: &Path, stem: &str, before: &RgbImage, after: &RgbImage) -> Result<()> {
        let folder = out.join(FOLDER);
        create_folder(&folder)?;
        let (w, h) = after.dimensions();
        let mut both = RgbImage::from_pixel(2 * w + GAP, h, image::Rgb([255; 3]));
        overlay(&mut both, before, 0, 0);
        overlay(&mut both, after, i64::from(w + GAP), 0);
        let mut names = Vec::new();
        for (part, image) in [("LR", before), ("SR", after), ("side_by_side", &both)] {
            let name = bounded_name(stem, &format!("_{part}.png"));
            let path = folder.join(&name);
            write_png(&path, image)?;
            self.files.push(path);
            names.push(name);
        }
        let place = |name: &str| format!("{BLANK}: URL of {FOLDER}/{name}");
        self.pairs.push(ExamplePair {
            kind: "paired",
            before: place(&names[0]),
            after: place(&names[1]),
        });
        Ok(())
    }
}

fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let mut bytes = Vec::new();
    image
        .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
        .with_context(|| format!("cannot encode {}", path.display()))?;
    write_atomic(path, |file| Ok(file.write_all(&bytes)?))
}

/// Examples of the images of a folder: each LQ is enlarged by nearest neighbour, and by the network.
///
/// # Errors
/// A folder without images, or whose images all cannot be used; a file that cannot be written.
pub fn of_folder(source: &Source, folder: &Path, out: &Path) -> Result<Examples> {
    let listing = list_images(folder, false)?;
    let mut examples = Examples::default();
    let rejected = listing.rejected.iter();
    examples.left_out.extend(rejected.map(|r| r.reason.clone()));
    let count = listing.images.len();
    if count > MOST {
        let text = format!(
            "{count} images in {}: the first {MOST} are used",
            folder.display()
        );
        examples.left_out.push(text);
    }
    let (net, options) = (source.net.clone(), CpuOptions::new(0));
    let mut upscaler = Upscaler::new(net, source.parameters.clone(), options, 0)?;
    for file in listing.images.iter().take(MOST) {
        let path = &file.path;
        match upscaled(&mut upscaler, path) {
            Ok((before, after)) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                examples.add(out, &stem, &before, &after)?;
            }
            Err(error) => examples.left_out.push(format!("{error:#}")),
        }
    }
    ensure!(
        !examples.pairs.is_empty(),
        "{} gives no example{}; --examples takes a folder of LQ images of at most {} megapixels",
        folder.display(),
        examples
            .left_out
            .first()
            .map_or(String::new(), |line| format!(" ({line})")),
        MOST_PIXELS / 1_000_000
    );
    Ok(examples)
}

/// The image of a file enlarged by nearest neighbour, and by the network.
fn upscaled(upscaler: &mut Upscaler, path: &Path) -> Result<(RgbImage, RgbImage)> {
    let limits = Limits::default();
    let (w, h) = crate::dataset::decode::probe(path, &limits)?;
    ensure!(
        u64::from(w) * u64::from(h) <= MOST_PIXELS,
        "{}: {w} x {h} pixels are too many for an example",
        path.display()
    );
    let lq = decode(path, &limits)?.image;
    let after = upscaler.upscale(&lq)?;
    let (w, h) = after.dimensions();
    Ok((resize(&lq, w, h, FilterType::Nearest), after))
}

/// Examples of a run's previews: the bicubic enlargement and the newest result of the network.
///
/// # Errors
/// A file that cannot be written.
pub fn of_previews(run: &Path, out: &Path) -> Result<Examples> {
    let (previews, left_out) = kept_previews(run);
    let mut examples = Examples {
        left_out,
        ..Examples::default()
    };
    for preview in previews {
        let Some((_, newest)) = preview.network.last() else {
            continue;
        };
        let read = || -> Result<(RgbImage, RgbImage)> {
            let before = image::load_from_memory_with_format(&preview.bicubic, ImageFormat::Png)?;
            let (after, _) = read_preview(newest)?;
            let after = image::load_from_memory_with_format(&after, ImageFormat::Png)?;
            Ok((before.to_rgb8(), after.to_rgb8()))
        };
        match read() {
            Ok((before, after)) => {
                let stem = Path::new(&preview.name).with_extension("");
                examples.add(
                    out,
                    &stem.to_string_lossy().replace('/', "_"),
                    &before,
                    &after,
                )?;
            }
            Err(error) => examples
                .left_out
                .push(format!("{}: {error:#}", preview.name)),
        }
    }
    Ok(examples)
}
