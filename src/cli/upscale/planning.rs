//! What each image needs, before the first one is upscaled: its size, its memory, and for a network
//! that looks at the whole image whether it is computed in stages. Depends on the headers of the
//! images alone.

use super::jobs::{Failed, Job};
use super::{ModelArgs, ends_all, tell};
use anyhow::{Context, Result, ensure};
use paragon::backend::DRIVER_HOST_ESTIMATE;
use paragon::dataset::decode::Limits;
use paragon::dataset::encode::Format;
use paragon::dataset::rows::{MemoryNeed, need};
use paragon::inference::upscale::{ImageKind, Upscale, Upscaler};
use paragon::support::budget::{Budget, PROGRAM_BYTES};
use paragon::support::text::bytes_text;
use paragon::sys::free_space;
use std::path::{Path, PathBuf};

/// A job with the data of its image's header.
pub struct Planned {
    pub job: Job,
    pub size: (u32, u32),
    pub alpha: bool,
    /// Whether 16 bits per channel are kept.
    pub deep: bool,
    pub bytes: u64,
    pub stages: Stages,
}

/// Whether an image is computed in stages.
#[derive(Clone)]
pub enum Stages {
    /// As all images are.
    AsGiven,
    /// This one is, because memory cannot hold it as a whole; with temporary files in the folder.
    Fallback(PathBuf),
    /// This one is not, but others are.
    Whole,
}

impl Stages {
    /// Prepares the network for the image.
    pub fn apply(&self, upscaler: &mut Upscaler) -> Result<()> {
        match self {
            Stages::AsGiven => Ok(()),
            Stages::Fallback(folder) => upscaler.use_stages(folder.clone(), 0),
            Stages::Whole => upscaler.use_whole_images(),
        }
    }
}

/// Reads the headers of images.
pub struct Planner<'a> {
    pub upscaler: &'a mut Upscaler,
    pub budget: &'a Budget,
    /// The folder for temporary files.
    pub scratch: &'a Path,
    /// Whether an image that memory cannot hold as a whole is computed in stages.
    pub falls_back: bool,
    /// Print nothing.
    pub quiet: bool,
}

impl Planner<'_> {
    /// Reads the header of every image. One that cannot be upscaled is added to `failed` if it is in
    /// a folder, and ends the command otherwise.
    pub fn plan_all(
        &mut self,
        jobs: Vec<Job>,
        is_folder: bool,
        failed: &mut Vec<Failed>,
    ) -> Result<Vec<Planned>> {
        let mut planned = Vec::with_capacity(jobs.len());
        for job in jobs {
            let input = job.input.clone();
            match self.plan(job) {
                Ok(plan) => planned.push(plan),
                Err(error) if !is_folder || ends_all(&error) => return Err(error),
                Err(error) => failed.push(Failed {
                    input,
                    reason: format!("{error:#}"),
                }),
            }
        }
        Ok(planned)
    }

    /// Reads an image's header: size, alpha, memory.
    fn plan(&mut self, job: Job) -> Result<Planned> {
        let needs = need(&job.input, &Limits::default())?;
        let name = || job.input.display().to_string();
        let scale = self.upscaler.scale() as u32;
        let (w, h) = needs.size;
        let sides = w.checked_mul(scale).zip(h.checked_mul(scale));
        let large = sides
            .with_context(|| format!("{}: the result is larger than any image can be", name()))?;
        job.format.check(large).with_context(name)?;
        let alpha = needs.alpha && job.format.holds_alpha();
        let deep = needs.deep && job.format.holds_deep();
        let pixel = (if alpha { 4 } else { 3 }) * (if deep { 2 } else { 1 });
        if self.upscaler.takes_whole_images() {
            let image = ImageKind {
                size: needs.size,
                deep,
            };
            self.upscaler.check_on_device(image).with_context(name)?;
        }
        let program = match self.upscaler.device() {
            Some(_) => PROGRAM_BYTES + DRIVER_HOST_ESTIMATE,
            None => PROGRAM_BYTES,
        };
        let files = program
            + needs
                .opening
                .max(needs.reading + job.format.bytes(large, pixel));
        let falls_back = self.falls_back && self.upscaler.has_stages();
        if falls_back {
            self.upscaler.use_whole_images()?;
        }
        let mut bytes = files + self.upscaler.bytes_in_rows(needs.size, alpha, deep)?;
        let mut stages = match falls_back {
            true => Stages::Whole,
            false => Stages::AsGiven,
        };
        if falls_back && self.budget.check(bytes, "").is_err() {
            stages = Stages::Fallback(self.scratch.into());
            stages.apply(self.upscaler)?;
            let whole = bytes;
            bytes = files + self.upscaler.bytes_in_rows(needs.size, alpha, deep)?;
            if !self.quiet {
                tell(format_args!(
                    "{}: the network looks at the whole image, which would take {} of memory; it is \
                     computed in stages with the same result, in {} and with temporary files of {}",
                    name(),
                    bytes_text(whole),
                    bytes_text(bytes),
                    bytes_text(self.upscaler.file_bytes(needs.size)?)
                ));
            }
        }
        let advice = advice(self.upscaler, &needs, job.format);
        self.budget.check(bytes, &advice).with_context(name)?;
        self.check_disk(needs.size).with_context(name)?;
        Ok(Planned {
            size: needs.size,
            alpha,
            deep,
            bytes,
            stages,
            job,
        })
    }

    /// Checks the room for the temporary files of an image.
    fn check_disk(&self, size: (u32, u32)) -> Result<()> {
        let temporary = self.upscaler.file_bytes(size)?;
        // the folder of the results may not be there yet
        let place = std::path::absolute(self.scratch)?;
        let place = place.ancestors().find(|folder| folder.exists());
        let free = place.and_then(free_space).unwrap_or(u64::MAX);
        ensure!(
            temporary <= free,
            "its temporary files take {} in {}, where {} are free; name another folder with --scratch, \
             or give --approximate-tiles (the result then differs)",
            bytes_text(temporary),
            self.scratch.display(),
            bytes_text(free)
        );
        Ok(())
    }
}

/// How the image could take less memory.
fn advice(upscaler: &Upscaler, needs: &MemoryNeed, format: Format) -> String {
    let mut ways = Vec::new();
    if needs.opening > needs.reading {
        ways.push("convert it to a PNG that is not interlaced, which is read in strips");
    }
    if format == Format::Webp {
        ways.push("write it as png, which is done in strips");
    }
    ways.extend([
        ModelArgs::smaller_tiles(upscaler),
        "allow more with --host-memory",
    ]);
    ways.join(", or ")
}
