//! From a plan to a finished set: images are converted on many threads and written in their order by one. Depends on
//! `convert`, `file` and `manifest`. Promises the same bytes for any number of threads and after any number of kills, a
//! bound on the memory of images under way, and that the manifest, written last, only ever names what is on the disk.

use super::codec::Codec;
use super::convert::{Converted, Worker};
use super::file::ShardWriter;
use super::format::{Header, SourceEntry};
use super::manifest::{Manifest, ShardInfo, path_in, shard_name};
use super::plan::{BuildConfig, Job, Plan, Rejected, pool};
use super::report::{Report, bytes};
use super::resume::{self, Found};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Images that may be under way for each thread: enough that none waits for the slowest, few enough to stay small.
const LOOK_AHEAD: usize = 8;

/// Makes the set that `plan` describes.
///
/// # Errors
/// No image can be used, the output folder is in use, holds another set or cannot be written, the disk is full. A
/// shard that was finished before the error stays and is not made again by the next run.
pub fn build(config: &BuildConfig, plan: Plan, progress: &Progress) -> Result<Report> {
    let started = Instant::now();
    if plan.jobs.is_empty() {
        bail!(nothing_left(config, plan.images, &plan.rejected));
    }
    let _lock = resume::prepare(&config.out)?;
    let mut tally = Tally::new(config, &plan);
    let done = match resume::find(config, &plan)? {
        Found::Complete(manifest, rejected) => {
            tally.rejected.extend(rejected);
            let mut report = tally.report(&manifest, started.elapsed().as_secs_f64());
            report.already_complete = true;
            return Ok(report);
        }
        Found::Shards(done) => done,
    };
    let (used_before, converted_before) = (done.whole_images(), done.skip.iter().filter(|s| s.is_some()).count());
    if !done.shards.is_empty() {
        progress.line(&format!("{} finished shard(s) of an interrupted run are kept ({converted_before} images)", done.shards.len()));
    }
    tally.used = used_before;
    tally.resumed = used_before;
    let mut set = SetWriter {
        folder: config.out.clone(),
        header: Header {
            geometry: plan.geometry,
            recipe: plan.manifest.recipe,
            config: plan.manifest.config,
            number: done.shards.len() as u32,
        },
        limit: config.shard_bytes,
        shards: done.shards,
        current: None,
    };
    convert_in_order(config, &plan, &done.skip, progress, &mut tally, &mut set)
        .context("the set is not finished; what is finished stays, run the same command again to go on")?;
    let mut manifest = plan.manifest.clone();
    manifest.used = tally.used;
    manifest.shards = set.finish()?;
    if manifest.records() == 0 {
        bail!(nothing_left(config, plan.images, &tally.rejected));
    }
    manifest.write(&config.out)?;
    progress.finish();
    Ok(tally.report(&manifest, started.elapsed().as_secs_f64()))
}

/// What one task sends back.
type Outcome = Result<Result<Converted, Rejected>>;

fn convert_in_order(
    config: &BuildConfig,
    plan: &Plan,
    skip: &[Option<u64>],
    progress: &Progress,
    tally: &mut Tally,
    set: &mut SetWriter,
) -> Result<()> {
    let pool = pool(config.threads)?;
    let window = pool.current_num_threads() * LOOK_AHEAD;
    // an image that was finished before needs no second look; the last one may have been cut off by the shard's end
    let todo: Vec<(usize, &Job, u64)> = (0..plan.jobs.len())
        .map(|i| (i, &plan.jobs[i], skip[i].unwrap_or(0)))
        .filter(|(i, job, done)| skip[*i].is_none() || *done < job.pairs)
        .collect();
    progress.advance((plan.jobs.len() - todo.len()) as u64);
    let first_new = skip.iter().rposition(Option::is_some).unwrap_or(0);
    let workers: Mutex<Vec<Worker>> = Mutex::new(Vec::new());
    let cancelled = AtomicBool::new(false);
    // as many places as tasks under way: sending never waits, so no thread of the pool ever blocks
    let (sender, receiver) = crossbeam_channel::bounded::<(usize, Outcome)>(window);
    pool.in_place_scope(|scope| {
        let mut waiting: BTreeMap<usize, Outcome> = BTreeMap::new();
        let (mut started, mut written, mut held) = (0, 0, 0u64);
        let mut run = || -> Result<()> {
            while written < todo.len() {
                while started < todo.len()
                    && started - written < window
                    && (held == 0 || held + todo[started].1.memory <= config.host_memory)
                {
                    let (number, job) = (started, todo[started].1);
                    let (sender, workers, cancelled) = (sender.clone(), &workers, &cancelled);
                    scope.spawn(move |_| {
                        if !cancelled.load(Ordering::Relaxed) {
                            let _ = sender.send((number, task(job, config, plan, workers)));
                        }
                    });
                    held += job.memory;
                    tally.most_held = tally.most_held.max(held);
                    started += 1;
                }
                let (number, outcome) = receiver.recv().context("the converting threads are gone")?;
                waiting.insert(number, outcome);
                while let Some(outcome) = waiting.remove(&written) {
                    let (index, job, skip) = todo[written];
                    match outcome? {
                        Ok(converted) => {
                            if index < first_new {
                                bail!(
                                    "{} gave no pairs in the interrupted run and does now; start over with --overwrite",
                                    job.source.hr.display()
                                );
                            }
                            tally.add(&converted, skip);
                            set.add(&converted, skip as usize)?;
                        }
                        Err(rejected) => {
                            progress.line(&format!("rejected {}: {}", rejected.file.display(), rejected.reason));
                            tally.rejected.push(rejected);
                        }
                    }
                    held -= job.memory;
                    written += 1;
                    progress.advance(1);
                    progress.message(format!("{} pairs, {}", tally.pairs, bytes(set.bytes())));
                }
            }
            Ok(())
        };
        let result = run();
        cancelled.store(true, Ordering::Relaxed);
        result
    })
}

fn task(job: &Job, config: &BuildConfig, plan: &Plan, workers: &Mutex<Vec<Worker>>) -> Outcome {
    let lock = || workers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let spare = lock().pop();
    let mut worker = match spare {
        Some(worker) => worker,
        None => Worker::new(plan.geometry)?,
    };
    let converted = catch_unwind(AssertUnwindSafe(|| worker.convert(job, config)));
    match converted {
        Ok(outcome) => {
            lock().push(worker);
            outcome.with_context(|| format!("cannot convert {}", job.source.hr.display()))
        }
        Err(_) => bail!("{}: converting it ended in a fault of paragon; please report it", job.source.hr.display()),
    }
}

/// Appends records to shard after shard.
struct SetWriter {
    folder: PathBuf,
    header: Header,
    limit: u64,
    shards: Vec<ShardInfo>,
    current: Option<ShardWriter>,
}

impl SetWriter {
    /// Bytes of finished shards.
    fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Writes the records of one image but for the first `skip`, which an earlier run has written.
    fn add(&mut self, converted: &Converted, skip: usize) -> Result<()> {
        let mut at: usize = converted.records.iter().take(skip).map(|r| r.length as usize).sum();
        let mut named = false;
        for record in converted.records.iter().skip(skip) {
            let payload = &converted.payload[at..at + record.length as usize];
            at += payload.len();
            let needed = payload.len() as u64 + if named { 0 } else { source_bytes(&converted.source) };
            if self.current.as_ref().is_some_and(|shard| !shard.fits(needed, self.limit)) {
                self.end_shard()?;
                named = false;
            }
            let shard = match &mut self.current {
                Some(shard) => shard,
                empty => empty.insert(ShardWriter::create(&self.folder.join(shard_name(self.shards.len())), &self.header)?),
            };
            if !named {
                shard.begin_source(converted.source.clone());
                named = true;
            }
            shard.append(record, payload)?;
        }
        Ok(())
    }

    fn end_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.current.take() {
            self.shards.push(shard.finish()?);
            self.header.number = self.shards.len() as u32;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<ShardInfo>> {
        self.end_shard()?;
        Ok(self.shards)
    }
}

fn source_bytes(source: &SourceEntry) -> u64 {
    (super::format::SOURCE_ENTRY_BYTES + source.name.len()) as u64
}

/// Counts kept along the way.
struct Tally {
    out: PathBuf,
    images: u64,
    ignored: u64,
    used: u64,
    resumed: u64,
    rejected: Vec<Rejected>,
    notes: BTreeMap<String, u64>,
    pairs: u64,
    stored_raw: u64,
    bytes_in: u64,
    pair_bytes: u64,
    threads: usize,
    most_held: u64,
}

impl Tally {
    fn new(config: &BuildConfig, plan: &Plan) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Tally {
            out: config.out.clone(),
            images: plan.images,
            ignored: plan.ignored,
            used: 0,
            resumed: 0,
            rejected: plan.rejected.clone(),
            notes: BTreeMap::new(),
            pairs: 0,
            stored_raw: 0,
            bytes_in: 0,
            pair_bytes: (plan.geometry.lq_bytes() + plan.geometry.hr_bytes()) as u64,
            threads: if config.threads == 0 { cores() } else { config.threads },
            most_held: 0,
        }
    }

    fn add(&mut self, converted: &Converted, skip: u64) {
        self.used += 1;
        self.bytes_in += converted.source.bytes;
        self.pairs += converted.records.len() as u64 - skip;
        self.stored_raw += converted.records.iter().skip(skip as usize).filter(|r| r.codec == Codec::Raw).count() as u64;
        for note in &converted.notes {
            *self.notes.entry(note.clone()).or_default() += 1;
        }
    }

    fn report(mut self, manifest: &Manifest, seconds: f64) -> Report {
        self.rejected.sort_by(|a, b| a.file.cmp(&b.file));
        let mut reasons = BTreeMap::new();
        for rejected in &self.rejected {
            *reasons.entry(rejected.kind.to_string()).or_insert(0) += 1;
        }
        let pairs = manifest.records();
        let raw = pairs * self.pair_bytes;
        let rate = |n: u64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        Report {
            out: self.out,
            already_complete: false,
            resumed_images: self.resumed,
            images: self.images,
            used: manifest.used,
            rejected: self.rejected,
            reasons,
            ignored: self.ignored,
            notes: self.notes,
            pairs,
            scale: manifest.scale,
            lq_size: manifest.lq_size,
            lq_recipe: manifest.recipe_name.clone(),
            codec: manifest.codec.clone(),
            stored_raw: self.stored_raw,
            shards: manifest.shards.len() as u64,
            bytes_in: self.bytes_in,
            bytes_raw: raw,
            bytes_out: manifest.bytes(),
            ratio: manifest.bytes() as f64 / raw.max(1) as f64,
            fingerprint: format!("{:016x}", manifest.fingerprint()),
            threads: self.threads,
            memory_in_flight: self.most_held,
            seconds,
            images_per_second: rate(self.used.saturating_sub(self.resumed)),
            pairs_per_second: rate(self.pairs),
        }
    }
}

/// Why there is no set at all: the first reasons stand for the rest.
fn nothing_left(config: &BuildConfig, images: u64, rejected: &[Rejected]) -> String {
    let dataset = config.dataset.display();
    if images == 0 {
        return format!("{dataset}: no pictures found (PNG, JPEG, WebP, TIFF or BMP)");
    }
    let shown = 5;
    let mut text = format!("{dataset}: none of the {images} images found can be used:");
    for r in rejected.iter().take(shown) {
        text += &format!("\n  {}: {}", r.file.display(), r.reason);
    }
    if rejected.len() > shown {
        text += &format!("\n  and {} more", rejected.len() - shown);
    }
    if rejected.iter().all(|r| r.kind == "too small") {
        text += "\nall are too small for one patch: try a smaller --lq-size";
    }
    text
}

/// Removes a set, so that another can take its place: the manifest first, so that no moment shows half of a set.
pub(super) fn remove_set(folder: &Path) -> Result<()> {
    let manifest = path_in(folder);
    if manifest.exists() {
        std::fs::remove_file(&manifest).with_context(|| format!("cannot remove {}", manifest.display()))?;
    }
    for path in resume::shard_files(folder)? {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
