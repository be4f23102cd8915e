//! `paragon upscale`: applies a network to a file or a folder of images. Depends on
//! `inference::upscale`, `encode` and the dataset's rows. The memory of an image is known before it
//! is started, a bad image does not stop the others, and every image left out is reported.

mod jobs;
mod pipeline;
mod planning;
mod summary;

pub use jobs::file_of;

use super::ModelArgs;
use super::device::{Workers, fit_text};
use super::flags::{print_json, tell};
use anyhow::{Context, Result, anyhow, ensure};
use jobs::{Failed, Job, Jobs, of_file, of_folder};
use paragon::backend;
use paragon::dataset::decode::{Limits, Note};
use paragon::dataset::encode::Format;
use paragon::dataset::rows::{FileRows, PixelRows, RereadRows, need};
use paragon::inference::upscale::{ImageKind, Upscaler};
use paragon::support::budget::Budget;
use paragon::support::failure::system_cause;
use paragon::support::files::{create_folder, write_output};
use paragon::support::progress::Progress;
use pipeline::Work;
use planning::{Planned, Planner};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;
use summary::{conclude, json};

/// Upscale an image, or every image of a folder and of the folders below it.
///
/// The results of a folder have the same folders and names. PNG images are read, upscaled and written in strips, so that a large one takes little memory;
/// the memory of an image is computed from its header before it is started. An alpha channel is
/// enlarged by the bicubic filter if the format of the output supports one. Colour profiles are
/// converted to sRGB. Images that cannot be upscaled are listed and skipped, and the exit code is 1.
#[derive(clap::Args)]
pub struct Args {
    /// An image or a folder
    input: PathBuf,
    /// The image or folder to write; the ending of a file decides its format (png, jpg, webp,
    /// bmp, tiff)
    output: PathBuf,
    /// The network: a safetensors file, a PyTorch checkpoint (.pth, .pt, .ckpt), or the folder of a
    /// run, whose best network is taken
    #[arg(long, short, value_name = "FILE|RUN")]
    model: PathBuf,
    #[command(flatten)]
    apply: ModelArgs,
    /// Format of the results in a folder or on a device, where no file name ending decides it
    /// [default: png]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Leave alone the images whose results exist already, so that a folder can be done in several
    /// goes; results are written whole or not at all
    #[arg(long)]
    skip_existing: bool,
    /// Leave out the folders within the folder
    #[arg(long)]
    no_recursive: bool,
    /// Folders within the folder are included without it; earlier versions needed it.
    #[arg(long, short, hide = true, conflicts_with = "no_recursive")]
    recursive: bool,
    /// Print a summary as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Print only errors
    #[arg(long, short)]
    quiet: bool,
}

/// An image that was upscaled.
#[derive(Serialize)]
struct Done {
    input: String,
    output: String,
    /// Size of the result, pixels.
    width: u32,
    height: u32,
    alpha: bool,
    /// Bits per channel of the result.
    bits: u32,
    /// Changes made to the image on the way to sRGB.
    notes: Vec<String>,
    /// Whether an earlier file of this name was replaced.
    replaced: bool,
}

/// The images that were upscaled, and those that were not.
#[derive(Default)]
struct Outcome {
    done: Vec<Done>,
    failed: Vec<Failed>,
    /// Images whose results existed already (`--skip-existing`).
    existing: usize,
    /// The system error that ended the command, and the number of images not tried.
    stopped: Option<(anyhow::Error, usize)>,
}

/// Upscales the image or the folder.
pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let is_folder = check_places(args)?;
    let scratch = scratch_folder(args, is_folder);
    let place = args.apply.place()?;
    let mut upscaler = args.apply.upscaler(&place, &args.model, &scratch)?;
    let Jobs {
        mut jobs,
        failed,
        left_out,
        renamed,
    } = if is_folder {
        of_folder(
            &args.input,
            &args.output,
            args.format.unwrap_or(Format::Png),
            !args.no_recursive,
        )?
    } else {
        of_file(&args.input, &args.output, args.format)?
    };
    if !args.quiet {
        left_out
            .iter()
            .for_each(|line| tell(format_args!("note: {line}")));
        renamed.iter().for_each(tell);
    }
    let found = jobs.len();
    if args.skip_existing {
        jobs.retain(|job| !job.output.exists());
    }
    let budget = args.apply.budget();
    let mut outcome = Outcome {
        failed,
        existing: found - jobs.len(),
        ..Outcome::default()
    };
    let total = found + outcome.failed.len();
    let fit = match upscaler.device() {
        Some(_) => args.apply.fit(&mut upscaler, &place, &image_kinds(&jobs))?,
        None => None,
    };
    let mut planner = Planner {
        upscaler: &mut upscaler,
        budget: &budget,
        scratch: &scratch,
        falls_back: args.apply.tile.is_none() && !args.apply.approximate_tiles,
        quiet: args.quiet,
    };
    let planned = planner.plan_all(jobs, is_folder, &mut outcome.failed)?;
    outcome
        .failed
        .iter()
        .for_each(|f| tell(format_args!("error: {}", f.text())));
    let largest = planned.iter().map(|p| p.bytes).max().unwrap_or(0);
    let workers = Workers::new(
        upscaler.device().is_some(),
        (planned.len(), largest),
        &budget,
        args.apply.threads,
    );
    if let (Some(fit), Some(device), false) = (fit, upscaler.device(), args.quiet) {
        tell(fit_text(device, fit, workers.threads));
    }
    if is_folder {
        create_folder(&args.output)?;
    }
    let progress = progress(args, is_folder, planned.len());
    let work = Work {
        budget: &budget,
        is_folder,
        quiet: args.quiet,
        progress: &progress,
    };
    work.upscale_all(&mut upscaler, planned, workers.threads, &mut outcome)?;
    progress.finish();
    if args.json {
        print_json(&json(
            args,
            (&upscaler, fit),
            &outcome,
            &left_out,
            (&workers, &budget),
        )?)?;
    }
    conclude(args, is_folder, outcome, total, (workers.memory, started))
}

/// The display of a folder's images.
fn progress(args: &Args, is_folder: bool, images: usize) -> Progress {
    match (is_folder, args.quiet) {
        (true, false) => Progress::new("upscale", images as u64, "images"),
        (true, true) => Progress::warnings_only(),
        (false, _) => Progress::hidden(),
    }
}

/// Refuses an input or output that cannot be used; returns whether the input is a folder.
fn check_places(args: &Args) -> Result<bool> {
    ensure!(
        args.input.exists(),
        "{} does not exist: expected an image or a folder of images",
        args.input.display()
    );
    let is_folder = args.input.is_dir();
    ensure!(
        is_folder || args.input.is_file(),
        "{} is neither a file nor a folder; copy it to a file first",
        args.input.display()
    );
    ensure!(
        !args.json || !paragon::sys::is_stdout(&args.output),
        "the image and the summary of --json would both go to stdout; give one of them another place"
    );
    Ok(is_folder)
}

impl Failed {
    /// The reason; with the name of the file if the message lacks it.
    fn text(&self) -> String {
        let file = self.input.display().to_string();
        if self.reason.contains(&file) {
            self.reason.clone()
        } else {
            format!("{file}: {}", self.reason)
        }
    }
}

/// The folder for temporary files: the given one, or else that of the result.
fn scratch_folder(args: &Args, is_folder: bool) -> PathBuf {
    if let Some(folder) = &args.apply.scratch {
        return folder.clone();
    }
    let folder = match is_folder {
        true => Some(args.output.as_path()),
        false => args.output.parent(),
    };
    match folder {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => PathBuf::from("."),
    }
}

/// Whether an error is one of the system or of the GPU, so that the next image would fail too. A
/// missing file or permission is not: it concerns one image only.
fn ends_all(error: &anyhow::Error) -> bool {
    is_of_device(error) || is_of_system(error)
}

/// Whether a GPU failed in the middle of the work.
fn is_of_device(error: &anyhow::Error) -> bool {
    use backend::Error as E;
    let found = error.chain().find_map(|cause| cause.downcast_ref::<E>());
    matches!(found, Some(E::DeviceLost { .. } | E::Driver { .. }))
}

fn is_of_system(error: &anyhow::Error) -> bool {
    system_cause(error).is_some_and(|cause| {
        !matches!(
            cause.kind(),
            ErrorKind::NotFound | ErrorKind::PermissionDenied
        )
    })
}

/// The sizes of the images whose headers can be read; the others are reported when they are planned.
fn image_kinds(jobs: &[Job]) -> Vec<ImageKind> {
    let kind = |job: &Job| {
        let needs = need(&job.input, &Limits::default()).ok()?;
        Some(ImageKind {
            size: needs.size,
            deep: needs.deep && job.format.holds_deep(),
        })
    };
    jobs.iter().filter_map(kind).collect()
}

/// Why an image was not upscaled.
struct UpscaleError {
    error: anyhow::Error,
    /// Whether the next image would fail too.
    ends_all: bool,
}

impl From<anyhow::Error> for UpscaleError {
    fn from(error: anyhow::Error) -> UpscaleError {
        UpscaleError {
            ends_all: ends_all(&error),
            error,
        }
    }
}

/// The rows of a file, or of the result; keeps the error of a failed read. The writer of the result
/// would otherwise report it as a writing error.
struct RowsWithError<R> {
    rows: R,
    failed: Option<anyhow::Error>,
}

impl<R: PixelRows> PixelRows for RowsWithError<R> {
    fn size(&self) -> (u32, u32) {
        self.rows.size()
    }

    fn channels(&self) -> usize {
        self.rows.channels()
    }

    fn sample_bytes(&self) -> usize {
        self.rows.sample_bytes()
    }

    fn read(&mut self, rows: &mut [u8]) -> Result<()> {
        self.rows.read(rows).map_err(|error| {
            self.failed = Some(error);
            anyhow!("the image could not be read")
        })
    }
}

impl RereadRows for RowsWithError<FileRows> {
    fn restart(&mut self) -> Result<()> {
        self.rows.restart().map_err(|error| {
            self.failed = Some(error);
            anyhow!("the image could not be read again")
        })
    }
}

/// Upscales one image and writes its result.
fn upscale_one(
    upscaler: &mut Upscaler,
    planned: &Planned,
    budget: &Budget,
    (is_folder, quiet): (bool, bool),
) -> Result<Done, UpscaleError> {
    let Planned {
        job,
        size,
        alpha,
        deep,
        bytes,
        stages,
    } = planned;
    stages.apply(upscaler)?;
    upscaler.make_room_for(*size, *deep);
    let name = || job.input.display().to_string();
    if is_folder {
        // The free memory may have changed since the headers were read.
        let advice = format!(
            "end other programs, or {}",
            ModelArgs::smaller_tiles(upscaler)
        );
        budget.check(*bytes, &advice).with_context(name)?;
        if let Some(folder) = job.output.parent() {
            create_folder(folder).map_err(|error| UpscaleError {
                ends_all: system_cause(&error).is_some(),
                error,
            })?;
        }
    }
    let open = if *deep {
        FileRows::open_deep
    } else {
        FileRows::open
    };
    let rows = open(&job.input, &Limits::default(), *alpha)?;
    let notes = rows.notes().iter().filter_map(|note| match note {
        Note::Alpha if *alpha => None,
        Note::SixteenBit if *deep => None,
        Note::Alpha => Some(format!(
            "{note}, since the output's format has none (png, webp and tiff have)"
        )),
        Note::SixteenBit if !job.format.holds_deep() => Some(format!(
            "{note}, since the output's format has no more (png and tiff have)"
        )),
        other => Some(other.to_string()),
    });
    let notes: Vec<String> = notes.collect();
    let mut rows = RowsWithError { rows, failed: None };
    let steps = upscaler.steps_of_stages(*size)?;
    let progress = match is_folder || quiet || steps == 0 {
        true => Progress::hidden(),
        false => Progress::new("stages", steps, "rows of tiles"),
    };
    let bands = match upscaler.upscale_rows(&mut rows, &progress) {
        Ok(bands) => bands,
        Err(error) => return Err(rows.failed.unwrap_or(error).into()),
    };
    progress.finish();
    let replaced = std::fs::metadata(&job.output).is_ok_and(|about| about.is_file());
    let (width, height) = bands.size();
    let mut bands = RowsWithError {
        rows: bands,
        failed: None,
    };
    let written = write_output(&job.output, |out| job.format.write(out, &mut bands));
    let computing = bands.failed.take();
    drop(bands);
    if let Err(error) = written {
        // the first cause: reading, then computing, then writing
        let computing = computing.map(|error| error.context(name()));
        return Err(match rows.failed.or(computing) {
            Some(error) => error.into(),
            None => UpscaleError {
                ends_all: system_cause(&error).is_some(),
                error: with_advice(error),
            },
        });
    }
    let text = |path: &Path| path.display().to_string();
    Ok(Done {
        input: text(&job.input),
        output: text(&job.output),
        width,
        height,
        alpha: *alpha,
        bits: if *deep { 16 } else { 8 },
        notes,
        replaced,
    })
}

/// A writing error, with advice.
fn with_advice(error: anyhow::Error) -> anyhow::Error {
    let advice = match system_cause(&error).map(std::io::Error::kind) {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => {
            "free some room there, or name another place"
        }
        Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            "make the place writable, or name another one"
        }
        Some(ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            "its folder must be there already; create it, or name another place"
        }
        _ => return error,
    };
    anyhow!("{error:#}; {advice}")
}
