//! `paragon upscale`: a network on a file or a folder of pictures.

use super::ModelArgs;
use anyhow::{Context, Result, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use paragon::dataset::decode::{Limits, decode};
use paragon::progress::Progress;
use paragon::upscale::{Upscale, Upscaler};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Upscale a picture, or every picture of a folder.
#[derive(clap::Args)]
pub struct Args {
    /// A picture or a folder
    input: PathBuf,
    /// The picture or folder to write; the ending of a file decides its format (png, jpg, webp, bmp, tiff)
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// Endings of files that are taken for pictures in a folder.
const ENDINGS: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];

/// The encoder's own default of 75 takes away what the network has added.
const JPEG_QUALITY: u8 = 95;

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ENDINGS.contains(&e.to_string_lossy().to_lowercase().as_str()))
}

/// Upscales.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.input.exists(), "{} does not exist: expected a picture or a folder of pictures", args.input.display());
    let mut upscaler = args.model.upscaler()?;
    if !args.input.is_dir() {
        let output = if args.output.is_dir() {
            let stem = args.input.file_stem().context("the input has no file name")?;
            args.output.join(png_name(stem))
        } else {
            args.output.clone()
        };
        check_ending(&output)?;
        ensure!(!same(&args.input, &output), "{} would be overwritten by its result; name another output", args.input.display());
        return one(&mut upscaler, &args.input, &output);
    }
    let mut inputs: Vec<PathBuf> = std::fs::read_dir(&args.input)
        .with_context(|| format!("cannot list {}", args.input.display()))?
        .map(|e| Ok(e?.path()))
        .collect::<Result<_>>()?;
    inputs.retain(|p| p.is_file() && is_picture(p));
    inputs.sort();
    ensure!(!inputs.is_empty(), "{} holds no pictures ({})", args.input.display(), ENDINGS.join(", "));
    ensure!(!same(&args.input, &args.output), "results in {} would overwrite its pictures; name another folder", args.input.display());
    paragon::files::create_folder(&args.output)?;
    let mut stems: Vec<_> = inputs.iter().filter_map(|p| p.file_stem()).collect();
    stems.sort();
    stems.dedup();
    ensure!(
        stems.len() == inputs.len(),
        "two pictures in {} have the same name but for the ending; their results would collide",
        args.input.display()
    );
    let progress = Progress::new("upscale", inputs.len() as u64, "pictures");
    let mut failed = 0;
    for input in &inputs {
        let name = input.file_stem().context("a picture without a name")?;
        if let Err(error) = one(&mut upscaler, input, &args.output.join(png_name(name))) {
            progress.line(&format!("error: {error:#}"));
            failed += 1;
        }
        progress.advance(1);
    }
    progress.finish();
    ensure!(failed == 0, "{failed} of {} pictures could not be upscaled; the others are in {}", inputs.len(), args.output.display());
    Ok(())
}

/// `a.v1` becomes `a.v1.png`: what stands behind a dot need not be an ending.
fn png_name(stem: &OsStr) -> OsString {
    let mut name = stem.to_os_string();
    name.push(".png");
    name
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(x), Ok(y)) if x == y)
}

/// The format of a file's ending, known before any work is done.
fn check_ending(path: &Path) -> Result<ImageFormat> {
    let format = ImageFormat::from_path(path).ok().filter(|_| is_picture(path));
    format.with_context(|| format!("{} has no ending of a picture format; use one of {}", path.display(), ENDINGS.join(", ")))
}

fn one(upscaler: &mut Upscaler, input: &Path, output: &Path) -> Result<()> {
    let picture = decode(input, &Limits::default())?.image;
    save(&upscaler.upscale(&picture)?, output)
}

/// Writes a picture atomically in the format of its ending.
pub fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let format = check_ending(path)?;
    paragon::files::write_output(path, |out| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        match format {
            ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(picture)?,
            _ => picture.write_to(&mut bytes, format)?,
        }
        Ok(out.write_all(bytes.get_ref())?)
    })
}
