//! Makes the set of a plan: many threads convert images, and one thread appends them in input
//! order. Depends on `convert`, `assembly` and `resume`. Promises the same bytes for any number of
//! threads and after any number of kills, a bound on the memory of images that are being converted,
//! and that the manifest, written last, only names shards that are on the disk.

use super::assembly::Assembly;
use super::convert::{Converted, SYSTEM_FAULT, Worker};
use super::output_folder::{prepare, remove_set};
use super::plan::{BuildConfig, Job, Plan, Rejected, pool};
use super::rejections::{all_too_small, size_hint};
use super::report::Report;
use super::resume::{OutputState, inspect};
use super::same_files::stamp;
use super::tally::Tally;
use crate::support::progress::Progress;
use crate::support::text::bytes_text;
use crate::support::text::one_line;
use anyhow::{Context, Result, bail};
use crossbeam_channel::RecvTimeoutError;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Images that may be started and not yet appended, for each thread: with 8, the other threads can
/// go on while one converts a large image, and the converted images take little memory.
const LOOK_AHEAD: usize = 8;
/// Rejected images that are named if there is no usable one.
const SHOWN: usize = 5;

/// A run that was stopped from outside, by [`BuildConfig::stop`]. What is done is kept.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// Images that are done, those of earlier runs included.
    pub done: u64,
    /// Images of the whole run.
    pub images: u64,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stopped { done, images } = self;
        write!(
            f,
            "stopped; {done} of {images} images are done. The same command goes on from here."
        )
    }
}

impl std::error::Error for Stopped {}

/// How often a run looks whether it is to stop, while no image is done.
const STOP_INTERVAL: Duration = Duration::from_millis(100);

/// Makes the set that `plan` describes.
///
/// # Errors
/// No image can be used; the output folder is in use, holds another set or cannot be written; the
/// disk is full; [`Stopped`]. The images that were converted before the error are kept, and the next
/// run continues after them.
pub fn build(config: &BuildConfig, mut plan: Plan, progress: &Progress) -> Result<Report> {
    let started = Instant::now();
    let one_of_many = config.part.is_some();
    if plan.jobs.is_empty() && !one_of_many {
        bail!(nothing_left(config, plan.images, &plan.rejected));
    }
    let _lock = prepare(&config.out, progress)?;
    let (state, base) = inspect(config, &mut plan, progress)?;
    let mut assembly = match state {
        OutputState::Complete(complete) => {
            let (manifest, held_out, rejected) = *complete;
            let mut tally = Tally::new(config, &plan);
            if !config.append {
                tally.take_from(&manifest, held_out.as_ref(), rejected);
            }
            let seconds = started.elapsed().as_secs_f64();
            let mut report = tally.report(&manifest, held_out.as_ref(), seconds);
            report.already_complete = true;
            report.nothing_new = config.append;
            return Ok(report);
        }
        OutputState::Ready(assembly) => *assembly,
    };
    if assembly.decided > 0 {
        progress.line(&format!(
            "{} of {} images were done by an interrupted run and are kept",
            assembly.decided,
            plan.jobs.len()
        ));
    }
    convert_in_order(config, &plan, progress, &mut assembly).map_err(|error| {
        if error.is::<Stopped>() {
            return error;
        }
        error.context(
            "the set is not finished; what is finished stays, run the same command again to go on",
        )
    })?;
    if let ([Some(main), held_out], 0) = (&base, assembly.tally.kept) {
        // the new images gave no pairs: the set stays as it is, and without a journal the next run
        // looks at them again
        let tally = assembly.abandon()?;
        let mut report = tally.report(main, held_out.as_ref(), started.elapsed().as_secs_f64());
        report.already_complete = true;
        report.nothing_new = true;
        return Ok(report);
    }
    let finished = assembly
        .finish(&config.out, &plan, base)
        .context("the set is not finished; run the same command again to go on")?;
    if finished.manifest.records() == 0 && !one_of_many {
        remove_set(&config.out)?;
        bail!(nothing_left(config, plan.images, &finished.tally.rejected));
    }
    progress.finish();
    Ok(finished.tally.report(
        &finished.manifest,
        finished.held_out.as_ref(),
        started.elapsed().as_secs_f64(),
    ))
}

/// Result of one task: the stamp of the files that it read, and the converted or rejected image.
type Outcome = Result<(u64, Result<Converted, Rejected>)>;

/// Converts the images of the plan that are not done yet, and appends them in order.
fn convert_in_order(
    config: &BuildConfig,
    plan: &Plan,
    progress: &Progress,
    assembly: &mut Assembly,
) -> Result<()> {
    let pool = pool(config.threads)?;
    let window = pool.current_num_threads() * LOOK_AHEAD;
    let todo = &plan.jobs[assembly.decided as usize..];
    progress.advance(assembly.decided);
    let workers: Mutex<Vec<Worker>> = Mutex::new(Vec::new());
    let cancelled = AtomicBool::new(false);
    // the channel holds the results of all tasks that may be started: no thread of the pool waits
    let (sender, receiver) = crossbeam_channel::bounded::<(usize, Outcome)>(window);
    pool.in_place_scope(|scope| {
        let mut waiting: BTreeMap<usize, Outcome> = BTreeMap::new();
        let (mut started, mut written, mut held) = (0, 0, 0u64);
        let mut run = || -> Result<()> {
            while written < todo.len() {
                while started < todo.len()
                    && started - written < window
                    && (held == 0 || held + todo[started].memory <= config.host_memory)
                {
                    let (number, job) = (started, &todo[started]);
                    let (sender, workers, cancelled) = (sender.clone(), &workers, &cancelled);
                    scope.spawn(move |_| {
                        if !cancelled.load(Ordering::Relaxed) {
                            let _ = sender.send((number, task(job, config, plan, workers)));
                        }
                    });
                    held += job.memory;
                    assembly.tally.most_held = assembly.tally.most_held.max(held);
                    started += 1;
                }
                match receiver.recv_timeout(STOP_INTERVAL) {
                    Ok((number, outcome)) => _ = waiting.insert(number, outcome),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(gone) => return Err(gone).context("the converting threads are gone"),
                }
                while let Some(outcome) = waiting.remove(&written) {
                    let job = &todo[written];
                    let (stamp, outcome) = outcome?;
                    if let Some(rejected) = assembly.accept(job, stamp, outcome)? {
                        progress.line(&format!(
                            "rejected {}: {}",
                            one_line(rejected.file.display()),
                            rejected.reason
                        ));
                    }
                    held -= job.memory;
                    written += 1;
                    progress.advance(1);
                    progress.message(format!(
                        "{} pairs, {}",
                        assembly.tally.pairs,
                        bytes_text(assembly.bytes())
                    ));
                }
                if written < todo.len() && config.stop.load(Ordering::Relaxed) {
                    let images = plan.jobs.len() as u64;
                    let done = assembly.decided;
                    bail!(Stopped { done, images });
                }
            }
            Ok(())
        };
        let result = run();
        if result.is_err() {
            // keeps what is done for the next run; if this fails too, that run continues earlier
            let _ = assembly.commit();
        }
        cancelled.store(true, Ordering::Relaxed);
        result
    })
}

/// Converts one image on a thread of the pool.
fn task(job: &Job, config: &BuildConfig, plan: &Plan, workers: &Mutex<Vec<Worker>>) -> Outcome {
    let lock = || {
        workers
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    };
    let spare = lock().pop();
    let mut worker = match spare {
        Some(worker) => worker,
        None => Worker::new(plan.geometry, config)?,
    };
    let stamp = stamp(job).context(SYSTEM_FAULT)?;
    let converted = catch_unwind(AssertUnwindSafe(|| worker.convert(job, config)));
    match converted {
        Ok(outcome) => {
            lock().push(worker);
            Ok((
                stamp,
                outcome.with_context(|| format!("cannot convert {}", job.source.hr.display()))?,
            ))
        }
        Err(_) => bail!(
            "{}: converting it ended in a fault of paragon; please report it",
            job.source.hr.display()
        ),
    }
}

/// Says why no set can be made, with the reasons of the first rejected images.
fn nothing_left(config: &BuildConfig, images: u64, rejected: &[Rejected]) -> String {
    let dataset = config.dataset_text();
    if images == 0 {
        return format!("{dataset}: no images found (PNG, JPEG, WebP, TIFF or BMP)");
    }
    if (rejected.len() as u64) < images {
        return format!(
            "{dataset}: every usable image was held out, none is left to train on; hold out fewer with --val"
        );
    }
    let mut text = format!("{dataset}: none of the {images} images found can be used:");
    for r in rejected.iter().take(SHOWN) {
        text += &format!("\n  {}: {}", r.file.display(), r.reason);
    }
    if rejected.len() > SHOWN {
        text += &format!("\n  and {} more", rejected.len() - SHOWN);
    }
    if all_too_small(rejected)
        && let Some(hint) = size_hint(config, images, rejected)
    {
        text += &format!("\nall are too small for one patch: {hint}");
    }
    text
}
