//! `paragon synth`: writes synthetic images to a folder. Flags to a call of `dataset::synth`; the
//! images depend on the seed, their number and their size alone, not on threads or on earlier
//! runs.

use super::flags;
use anyhow::{Context, Result};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use paragon::dataset::synth::synthetic_image;
use paragon::support::text::bytes_text;
use paragon::{support::files, support::progress::Progress};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Longest side in pixels: such an image takes 1.5 GB of memory while it is drawn.
const MAX_SIDE: u32 = 8192;
/// The shortest file number, so that small sets sort by name too.
const MIN_DIGITS: usize = 6;

/// Draw synthetic images (dead leaves: textured shapes that hide one another), a stand-in for
/// photographs in trials, demonstrations and tests of scale.
#[derive(clap::Args)]
pub struct Args {
    /// The folder to write to; made where it does not exist. Files are named 000000.png, 000001.png
    /// ...
    out: PathBuf,
    /// How many images.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Size in pixels: one number for a square, or WIDTHxHEIGHT.
    #[arg(long, default_value = "512", value_parser = parse_size)]
    size: (u32, u32),
    /// The same seed gives the same images.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What kind of file to write.
    #[arg(long, value_enum, default_value_t = Format::Png)]
    format: Format,
    /// JPEG quality, 1 to 100.
    #[arg(long, default_value_t = 92, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Worker threads [default: one for each core].
    #[arg(long, value_name = "N", value_parser = flags::count(flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
    /// Keep the files that are there already and write the missing ones, to resume after an
    /// interruption.
    #[arg(long)]
    resume: bool,
    /// Print the summary as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Lossless
    Png,
    /// Smaller, with compression noise as in photographs
    Jpeg,
}

/// `512` or `640x480`.
fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let wrong = || {
        format!(
            "expected a number of pixels such as 512, or WIDTHxHEIGHT such as 640x480, up to {MAX_SIDE} a side"
        )
    };
    let (width, height) = text.split_once(['x', 'X']).unwrap_or((text, text));
    let side = |t: &str| {
        t.trim()
            .parse::<u32>()
            .ok()
            .filter(|n| (1..=MAX_SIDE).contains(n))
            .ok_or_else(wrong)
    };
    Ok((side(width)?, side(height)?))
}

/// What was drawn.
pub struct Drawn {
    written: u64,
    kept: u64,
    bytes: u64,
    seconds: f64,
}

/// Draws and writes the images.
pub fn draw(args: &Args) -> Result<Drawn> {
    files::create_folder(&args.out)?;
    let digits = (args.count - 1).to_string().len().max(MIN_DIGITS);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.unwrap_or(0))
        .build()
        .context("cannot start the worker threads")?;
    let started = Instant::now();
    let (bytes, kept) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = Progress::new("synth", args.count, "pictures");
    let result = pool.install(|| {
        (0..args.count)
            .into_par_iter()
            .try_for_each(|index| -> Result<()> {
                let path = args
                    .out
                    .join(format!("{index:0digits$}.{}", args.format.extension()));
                if args.resume && path.is_file() {
                    kept.fetch_add(1, Ordering::Relaxed);
                } else {
                    let data =
                        args.encode(&synthetic_image(args.seed, index, args.size.0, args.size.1))?;
                    write_beside(&path, &data)?;
                    bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                progress.advance(1);
                Ok(())
            })
    });
    progress.finish();
    result?;
    let kept = kept.into_inner();
    Ok(Drawn {
        written: args.count - kept,
        kept,
        bytes: bytes.into_inner(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let Drawn {
        written,
        kept,
        bytes,
        seconds,
    } = draw(args)?;
    let rate = written as f64 / seconds.max(1e-9);
    if args.json {
        let summary = serde_json::json!({
            "folder": args.out.to_string_lossy(), "written": written, "kept": kept, "width": args.size.0, "height": args.size.1,
            "seed": args.seed, "bytes": bytes, "seconds": seconds, "pictures_per_second": rate,
        });
        flags::print(summary)
    } else {
        let old = if kept > 0 {
            format!(", {kept} kept from before")
        } else {
            String::new()
        };
        flags::print(format_args!(
            "{written} images of {}x{} in {}{old}: {}, {seconds:.1} s ({rate:.1} a second)",
            args.size.0,
            args.size.1,
            args.out.display(),
            bytes_text(bytes)
        ))
    }
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpg",
        }
    }
}

impl Args {
    /// `count` square PNG images of `side` pixels, otherwise with the command's defaults.
    pub fn squares(out: PathBuf, count: u64, side: u32, seed: u64, threads: Option<usize>) -> Args {
        Args {
            out,
            count,
            size: (side, side),
            seed,
            format: Format::Png,
            quality: 90,
            threads,
            resume: false,
            json: false,
        }
    }

    /// The image as a file's bytes.
    fn encode(&self, image: &RgbImage) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let (width, height) = image.dimensions();
        match self.format {
            Format::Png => {
                PngEncoder::new_with_quality(&mut data, CompressionType::Fast, FilterType::Adaptive)
                    .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)?
            }
            Format::Jpeg => JpegEncoder::new_with_quality(&mut data, self.quality).encode(
                image.as_raw(),
                width,
                height,
                ExtendedColorType::Rgb8,
            )?,
        }
        Ok(data)
    }
}

/// Writes beside and renames, so that a file under its final name is whole. Unlike
/// `files::write_atomic` it does not wait for the disk: 100,000 syncs would take longer than the
/// drawing, and a lost image can be drawn again.
fn write_beside(path: &Path, data: &[u8]) -> Result<()> {
    let partial = files::partial_path(path);
    let written = fs::write(&partial, data).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused() {
        assert_eq!(parse_size("512"), Ok((512, 512)));
        assert_eq!(parse_size("640x480"), Ok((640, 480)));
        for wrong in ["", "0", "x", "12x", "-3", "12x0", "99999", "1x2x3", "large"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
