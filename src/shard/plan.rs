//! What a run of `paragon shard` will do, known before any image is decoded: which images take
//! part, how many pairs each gives, what is rejected and why. Depends on `dataset`. Promises that
//! every image found is either in `jobs` or in `rejected`.

use super::codec::Codec;
use super::format::{Geometry, MAJOR};
use super::hash::Hash64;
use super::manifest::{Extra, Manifest};
use super::source_table::check_name;
use crate::dataset::decode::{self, Limits};
use crate::dataset::degrade::Filter;
use crate::dataset::recipe::{LqFilter, RECIPE_GIVEN, Recipe, image_key};
use crate::dataset::scan::{self, LeftOut, ScanOptions, Source, photograph};
use crate::support::failure;
use crate::support::rng::key;
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Largest size of a shard, bytes: where a record lies is told in 40 bits.
pub const MAX_SHARD_BYTES: u64 = 1 << 40;
/// Files that are named where the system cannot read some.
const SHOWN: usize = 5;

/// Everything `paragon shard` is told.
#[derive(Clone, Debug)]
pub struct BuildConfig {
    /// Folder of the images.
    pub dataset: PathBuf,
    /// Folder for the set.
    pub out: PathBuf,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side as stored, pixels.
    pub lq_size: u32,
    /// How much of the side is there for crops to move in, LQ pixels: training takes `lq_size -
    /// margin` by default.
    pub margin: u32,
    /// Distance of neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// The HR folder, where it is not to be found by name.
    pub hr: Option<PathBuf>,
    /// The LQ folder, where it is not to be found by name.
    pub lq: Option<PathBuf>,
    /// How the LQ is made where there is none.
    pub recipe: Recipe,
    /// Patches whose HR shows less detail than this are left out (see `convert::detail`); 0 = none.
    pub min_detail: f64,
    /// Whether a pair that was there before is stored again.
    pub keep_duplicates: bool,
    /// Images held out in a set of their own, `out/val`.
    pub val: Option<HeldOut>,
    /// Only this part of all, from 1, for one of several machines.
    pub part: Option<(u32, u32)>,
    /// Whether images are added to a finished set.
    pub append: bool,
    /// How pairs are stored.
    pub codec: Codec,
    /// Threads that convert; 0 = one for each core.
    pub threads: usize,
    /// A new shard is begun at this size, bytes.
    pub shard_bytes: u64,
    /// Bound on the memory of images under way, bytes.
    pub host_memory: u64,
    /// The limit that `host_memory` comes from, in words, where the user has not stated it: an
    /// image that needs more then stops the run, since what a set holds must not depend on the
    /// machine that makes it.
    pub memory_limit: Option<String>,
    /// Whether a different set in `out` is removed first.
    pub overwrite: bool,
    /// Bounds on single image files.
    pub limits: Limits,
}

impl BuildConfig {
    /// What the command line takes where it is told nothing else.
    pub fn new(
        dataset: impl Into<PathBuf>,
        out: impl Into<PathBuf>,
        scale: u32,
        lq_size: u32,
    ) -> Self {
        BuildConfig {
            dataset: dataset.into(),
            out: out.into(),
            scale,
            lq_size,
            margin: 0,
            min_detail: 0.0,
            keep_duplicates: false,
            val: None,
            part: None,
            append: false,
            stride: lq_size,
            hr: None,
            lq: None,
            recipe: Recipe::fixed(Filter::Bicubic),
            codec: Codec::Predict,
            threads: 0,
            shard_bytes: 512 << 20,
            host_memory: 2 << 30,
            memory_limit: None,
            overwrite: false,
            limits: Limits::default(),
        }
    }
}

/// How many images are held out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeldOut {
    /// This many, and the other tiles of their photographs; images added later all go to the set to
    /// train on.
    Count(u64),
    /// About this share; whether an image is held out depends on nothing but the name of its
    /// photograph and the seed.
    Share(f64),
}

impl std::fmt::Display for HeldOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HeldOut::Count(n) => write!(f, "{n}"),
            HeldOut::Share(share) => write!(f, "{share:?}"),
        }
    }
}

/// A file that gives no pairs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rejected {
    /// The file.
    #[serde(serialize_with = "super::report::path_in_words")]
    pub file: PathBuf,
    /// The kind of reason, for counting.
    pub kind: String,
    /// The reason in words.
    pub reason: String,
}

impl Rejected {
    /// A rejected file. A reason that begins with the file's path loses it, since both are shown
    /// together.
    pub(super) fn new(file: &Path, kind: &str, reason: String) -> Rejected {
        let reason = match reason.strip_prefix(&format!("{}: ", file.display())) {
            Some(rest) => rest.to_string(),
            None => reason,
        };
        Rejected {
            file: file.to_path_buf(),
            kind: kind.to_string(),
            reason,
        }
    }
}

/// One image to be converted.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its files and name.
    pub source: Source,
    /// HR width and height from the file's header, pixels.
    pub size: (u32, u32),
    /// Bytes of its file, or of its two files.
    pub file_bytes: u64,
    /// Patches it is cut into.
    pub pairs: u64,
    /// Whether it is held out.
    pub held_out: bool,
    /// Memory to be counted while it is under way, bytes.
    pub memory: u64,
}

/// The outcome of looking at every header.
#[derive(Debug)]
pub struct Plan {
    /// Side lengths of the pairs.
    pub geometry: Geometry,
    /// The images, in the order their records will have.
    pub jobs: Vec<Job>,
    /// What is left out so far; decoding may add to it.
    pub rejected: Vec<Rejected>,
    /// Images found: jobs and rejected.
    pub images: u64,
    /// Files without an image's extension.
    pub ignored: u64,
    /// Images and folders that take no part by rule, one entry for each reason.
    pub left_out: Vec<LeftOut>,
    /// The manifest of the set to be, without shards.
    pub manifest: Manifest,
}

impl Plan {
    /// Configuration hash of the set to train on or of the one held out.
    pub fn config(&self, held_out: bool) -> u64 {
        if held_out {
            Hash64::default()
                .word(self.manifest.config)
                .bytes(b"held out")
                .finish()
        } else {
            self.manifest.config
        }
    }

    /// Patches of all jobs.
    pub fn pairs(&self) -> u64 {
        self.jobs.iter().map(|j| j.pairs).sum()
    }

    /// Bytes of all pairs before any coding.
    pub fn raw_bytes(&self) -> u64 {
        self.pairs() * (self.geometry.lq_bytes() + self.geometry.hr_bytes()) as u64
    }
}

/// Left (or top) edges of patches of `size` that cover a side of `length` at `stride`: the last one
/// ends at the border.
pub fn positions(length: u32, size: u32, stride: u32) -> Vec<u32> {
    if length < size {
        return Vec::new();
    }
    let last = length - size;
    let mut out: Vec<u32> = (0..=last).step_by(stride.max(1) as usize).collect();
    if out.last() != Some(&last) {
        out.push(last);
    }
    out
}

/// Width and height of the LQ image of a pair, or why the two sizes are of no use. Without an LQ of
/// its own the HR is cropped to a multiple of the scale; with one, up to `scale - 1` pixels more
/// than `scale` times the LQ are cut off at the right and at the bottom, since sets are handed
/// round whose HR was not cropped.
pub fn lq_dimensions(
    hr: (u32, u32),
    lq: Option<(u32, u32)>,
    g: Geometry,
) -> Result<(u32, u32), (&'static str, String)> {
    let made = (hr.0 / g.scale, hr.1 / g.scale);
    let size = lq.unwrap_or(made);
    let wanted = (
        u64::from(size.0) * u64::from(g.scale),
        u64::from(size.1) * u64::from(g.scale),
    );
    let fits =
        |hr: u32, wanted: u64| (wanted..wanted + u64::from(g.scale)).contains(&u64::from(hr));
    if lq.is_some() && !(fits(hr.0, wanted.0) && fits(hr.1, wanted.1)) {
        let reason = format!(
            "the HR is {}x{} and the LQ {}x{}: at scale {} the HR should be {}x{}, or up to {} pixels more",
            hr.0,
            hr.1,
            size.0,
            size.1,
            g.scale,
            wanted.0,
            wanted.1,
            g.scale - 1
        );
        return Err(("geometry", reason));
    }
    if size.0 < g.lq_size || size.1 < g.lq_size {
        let reason = format!(
            "too small: the HR is {}x{}, the LQ {}x{}; one patch needs an HR of {}x{} (LQ {}x{})",
            hr.0,
            hr.1,
            size.0,
            size.1,
            g.hr(),
            g.hr(),
            g.lq(),
            g.lq()
        );
        return Err(("too small", reason));
    }
    Ok(size)
}

/// Scans the dataset and looks at every header.
///
/// # Errors
/// Options out of range, a dataset that cannot be read, errors of the system with single files.
/// What is wrong with a file itself only adds to `rejected`.
pub fn plan(config: &BuildConfig) -> Result<Plan> {
    let geometry = Geometry::new(config.scale, config.lq_size)?;
    ensure!(
        config.shard_bytes > 0,
        "--shard-size is 0; give the size of a shard file in MiB"
    );
    ensure!(
        config.shard_bytes <= MAX_SHARD_BYTES,
        "--shard-size is {} MiB; the most is {} (1 TiB)",
        config.shard_bytes >> 20,
        MAX_SHARD_BYTES >> 20
    );
    ensure!(
        config.stride > 0,
        "the stride is 0; it is the distance of neighbouring patches in LQ pixels"
    );
    config.recipe.check()?;
    ensure!(
        config.margin < config.lq_size,
        "a margin of {} leaves nothing of {} pixels",
        config.margin,
        config.lq_size
    );
    if let Some((part, parts)) = config.part {
        ensure!(
            (1..=parts).contains(&part),
            "part {part} of {parts}: parts are counted from 1, as in 1/8"
        );
        ensure!(
            !config.append,
            "--append and --part do not go together: append to the merged set"
        );
    }
    let options = ScanOptions {
        scale: config.scale,
        hr: config.hr.clone(),
        lq: config.lq.clone(),
        out: Some(config.out.clone()),
    };
    let scan = scan::scan(&config.dataset, &options)?;
    ensure!(
        scan.lq_root.is_none()
            || (config.recipe.blur == 0.0 && config.recipe.filter != LqFilter::Random),
        "{} has LQ images of its own, so none are made: leave out --lq-blur and --lq-filter random",
        config.dataset.display()
    );
    let pool = pool(config.threads)?;
    let looked = look_at_all(scan.sources, config, geometry, &pool)?;
    let mut rejected: Vec<Rejected> = scan
        .rejected
        .into_iter()
        .map(|r| Rejected {
            file: r.path,
            kind: "pairing".into(),
            reason: r.reason,
        })
        .collect();
    let mut jobs = Vec::with_capacity(looked.len());
    for outcome in looked {
        match outcome {
            Ok(job) => jobs.push(job),
            Err(reject) => rejected.push(reject),
        }
    }
    if let Some(limit) = &config.memory_limit
        && let Some(first) = rejected.iter().find(|r| r.kind == "memory")
    {
        let count = rejected.iter().filter(|r| r.kind == "memory").count();
        bail!(
            "{count} image(s) need more memory than half of {limit}, among them {}: {}; give more memory, leave such images out with \
             --max-megapixels, or state --host-memory, which rejects what needs more",
            first.file.display(),
            first.reason
        );
    }
    if let Some(val) = config.val {
        hold_out(&mut jobs, val, config.recipe.seed)?;
    }
    let mut manifest = manifest(config, &jobs, scan.lq_root.is_some());
    let (mut ignored, mut left_out) = (scan.ignored as u64, scan.left_out);
    if let Some((part, parts)) = config.part {
        jobs = take_part(jobs, u64::from(part), u64::from(parts));
        manifest.extra.part = (part, parts);
        manifest.extra.whole = manifest.config;
        manifest.config = Hash64::default()
            .word(manifest.config)
            .word(part.into())
            .word(parts.into())
            .finish();
        if part > 1 {
            // what is known before any decoding is told by the first part alone, so that the parts
            // add up
            rejected.clear();
            ignored = 0;
            left_out.clear();
        }
    }
    let images = (jobs.len() + rejected.len()) as u64;
    manifest.images = images;
    Ok(Plan {
        geometry,
        jobs,
        rejected,
        images,
        ignored,
        left_out,
        manifest,
    })
}

/// Chooses the images to hold out: those whose names hash lowest, so that the choice is the same on
/// any machine. Tiles of one photograph (`0001_s001`, `0001_s002`) overlap or continue one another,
/// so they stay together, by the name of the photograph.
fn hold_out(jobs: &mut [Job], val: HeldOut, seed: u64) -> Result<()> {
    /// Keeps the draw apart from others of the same seed.
    const PURPOSE: u64 = 0x7661_6C69;
    let draw = |job: &Job| key(&[PURPOSE, seed, image_key(photograph(&job.source.name))]);
    match val {
        HeldOut::Share(share) => {
            ensure!(
                (0.0..1.0).contains(&share),
                "the share held out is {share}; it must be 0 or more and below 1"
            );
            jobs.iter_mut().for_each(|job| {
                job.held_out = ((draw(job) >> 11) as f64) < share * (1u64 << 53) as f64
            });
        }
        HeldOut::Count(count) => {
            ensure!(
                count < jobs.len().max(1) as u64,
                "{count} images are to be held out of {} usable ones",
                jobs.len()
            );
            let mut order: Vec<usize> = (0..jobs.len()).collect();
            order.sort_by_key(|&i| (draw(&jobs[i]), i));
            let of = |i: usize| photograph(&jobs[i].source.name);
            let mut taken = count as usize;
            while taken > 0 && taken < order.len() && of(order[taken - 1]) == of(order[taken]) {
                taken += 1;
            }
            ensure!(
                taken == 0 || taken < jobs.len(),
                "holding out {count} images takes all {taken}, since tiles of one photograph (NAME_s001, NAME_s002 ...) stay together; hold out \
                 fewer, or rename the tiles"
            );
            order
                .iter()
                .take(taken)
                .for_each(|&i| jobs[i].held_out = true);
        }
    }
    Ok(())
}

/// The jobs of one part: a run of neighbours, so that parts only need to be put one behind the
/// other, with about the same number of patches in each.
fn take_part(jobs: Vec<Job>, part: u64, parts: u64) -> Vec<Job> {
    let all: u64 = jobs.iter().map(|j| j.pairs).sum();
    let mut before = 0;
    let mut part_of = |job: &Job| {
        let middle = before + job.pairs / 2;
        before += job.pairs;
        1 + middle * parts / all.max(1)
    };
    jobs.into_iter()
        .filter(|job| part_of(job) == part)
        .collect()
}

/// A pool of `threads` threads that convert; 0 = one for each core.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("convert-{i}"));
    builder.build().with_context(|| {
        let count = if threads == 0 {
            "the".to_string()
        } else {
            threads.to_string()
        };
        format!(
            "cannot start {count} threads; give fewer with --threads, or raise what limits them \
             (`ulimit -u`, `ulimit -v`, the limits of the container)"
        )
    })
}

/// Looks at every header. The first few files that the system cannot read end it, and are named.
fn look_at_all(
    sources: Vec<Source>,
    config: &BuildConfig,
    g: Geometry,
    pool: &rayon::ThreadPool,
) -> Result<Vec<Result<Job, Rejected>>> {
    let unread: Mutex<Vec<anyhow::Error>> = Mutex::new(Vec::new());
    let lock = || unread.lock().unwrap_or_else(PoisonError::into_inner);
    let one = |source| {
        if lock().len() >= SHOWN {
            return None;
        }
        look(source, config, g).map_err(|e| lock().push(e)).ok()
    };
    let looked: Vec<_> = pool.install(|| sources.into_par_iter().map(one).collect());
    let mut unread = unread.into_inner().unwrap_or_else(PoisonError::into_inner);
    unread.truncate(SHOWN); // as many as there are threads may have failed at once
    let Some(first) = unread.pop() else {
        return Ok(looked.into_iter().flatten().collect());
    };
    let mut all: Vec<String> = unread
        .iter()
        .chain([&first])
        .map(|e| format!("  {e:#}"))
        .collect();
    all.sort();
    bail!(
        "{} cannot be read as a whole, because of errors of the system (disk, network, permissions, limits), which say nothing about the \
         images; nothing was recorded. See to that and run the same command again, or take the files out:\n{}",
        config.dataset.display(),
        all.join("\n")
    )
}

/// What the headers of one image say. The outer error is one of the system.
fn look(source: Source, config: &BuildConfig, g: Geometry) -> Result<Result<Job, Rejected>> {
    if let Err(e) = check_name(&source.name) {
        let reason = format!("its name below the data set cannot be used ({e:#}); rename it");
        return Ok(Err(Rejected {
            file: source.hr.clone(),
            kind: "name".into(),
            reason,
        }));
    }
    let mut headers = [None, None];
    for (header, path) in headers
        .iter_mut()
        .zip([Some(&source.hr), source.lq.as_ref()])
    {
        let Some(path) = path else { continue };
        let read = || -> Result<(decode::Header, u64)> {
            let about = failure::retry(|| std::fs::metadata(path))
                .with_context(|| path.display().to_string())?;
            Ok((decode::look(path, &config.limits)?, about.len()))
        };
        match read() {
            Ok(found) => *header = Some(found),
            Err(e) if failure::system_cause(&e).is_some() => return Err(e),
            Err(e) => return Ok(Err(Rejected::new(path, "unreadable", format!("{e:#}")))),
        }
    }
    let [hr, lq] = headers;
    let hr = hr.context("an image without a file")?;
    Ok(job_of(source, hr, lq, config, g))
}

/// The job of an image whose headers are known, each with the bytes of its file.
fn job_of(
    source: Source,
    (hr, mut file_bytes): (decode::Header, u64),
    lq: Option<(decode::Header, u64)>,
    config: &BuildConfig,
    g: Geometry,
) -> Result<Job, Rejected> {
    let reject = Rejected::new;
    let size = hr.size;
    let pixels = |size: (u32, u32)| u64::from(size.0) * u64::from(size.1);
    // the HR is decoded from its file, then the LQ beside it, then patches are cut from both
    let mut decoding = file_bytes + hr.metadata_bytes + pixels(size) * hr.pixel_bytes;
    let mut made = if size.0 % g.scale == 0 && size.1 % g.scale == 0 {
        3 * pixels(size)
    } else {
        6 * pixels(size)
    };
    let mut lq_size = None;
    if let Some((lq, bytes)) = lq {
        lq_size = Some(lq.size);
        file_bytes += bytes;
        decoding = decoding
            .max(3 * pixels(size) + bytes + lq.metadata_bytes + pixels(lq.size) * lq.pixel_bytes);
        made += 3 * pixels(lq.size);
    } else {
        // the LQ, and what lies between reducing along x and along y
        made +=
            3 * pixels(size) / u64::from(g.scale) + 3 * pixels(size) / u64::from(g.scale * g.scale);
    }
    let lq = lq_dimensions(size, lq_size, g)
        .map_err(|(kind, reason)| reject(&source.hr, kind, reason))?;
    let across = positions(lq.0, g.lq_size, config.stride).len() as u64;
    let pairs = across * positions(lq.1, g.lq_size, config.stride).len() as u64;
    let memory = decoding.max(made + pairs * (g.lq_bytes() + g.hr_bytes()) as u64);
    if memory > config.host_memory {
        let mib = |b: u64| b.div_ceil(1 << 20);
        let reason = format!(
            "needs about {} MiB of memory ({}x{} pixels, {pairs} pairs) where --host-memory allows {} MiB",
            mib(memory),
            size.0,
            size.1,
            mib(config.host_memory)
        );
        return Err(reject(&source.hr, "memory", reason));
    }
    Ok(Job {
        source,
        size,
        file_bytes,
        pairs,
        held_out: false,
        memory,
    })
}

/// Names the bytes that the encoder makes of a pair, and so takes part in a set's identity. It
/// changes only when those bytes change, and never because paragon has a new version: the bytes of
/// 0.1.0 are still the ones.
const ENCODER: &str = "0.1.0";

/// The manifest of the set that a configuration and its inputs give; the shards are still to come.
fn manifest(config: &BuildConfig, jobs: &[Job], paired: bool) -> Manifest {
    let mut inputs = Hash64::default();
    for job in jobs {
        inputs
            .bytes(job.source.name.as_bytes())
            .word(job.file_bytes)
            .word(u64::from(job.source.lq.is_some()));
    }
    let mut manifest = Manifest {
        paragon: env!("CARGO_PKG_VERSION").to_string(),
        scale: config.scale,
        lq_size: config.lq_size,
        stride: config.stride,
        recipe: if paired {
            RECIPE_GIVEN
        } else {
            config.recipe.id()
        },
        recipe_name: if paired {
            "given".to_string()
        } else {
            config.recipe.to_string()
        },
        codec: config.codec.name().to_string(),
        shard_bytes: config.shard_bytes,
        inputs: inputs.finish(),
        config: 0,
        images: 0,
        used: 0,
        shards: Vec::new(),
        extra: Extra {
            crop: config.lq_size - config.margin,
            options: options(config),
            ..Extra::default()
        },
    };
    let mut hash = Hash64::default();
    hash.word(u64::from(MAJOR)).bytes(ENCODER.as_bytes());
    for number in [
        manifest.scale,
        manifest.lq_size,
        manifest.stride,
        u32::from(manifest.recipe),
    ] {
        hash.word(u64::from(number));
    }
    hash.bytes(manifest.recipe_name.as_bytes())
        .bytes(manifest.codec.as_bytes())
        .word(manifest.shard_bytes)
        .word(manifest.inputs);
    for (name, value) in &manifest.extra.options {
        hash.bytes(name.as_bytes()).bytes(value.as_bytes());
    }
    manifest.config = hash.finish();
    manifest
}

/// The options that decide the bytes and have no field in the manifest, as far as they are not at
/// their default.
fn options(config: &BuildConfig) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut note =
        |name: &str, value: Option<String>| out.extend(value.map(|v| (name.to_string(), v)));
    note(
        "margin",
        (config.margin > 0).then(|| config.margin.to_string()),
    );
    note(
        "min-detail",
        (config.min_detail > 0.0).then(|| format!("{:?}", config.min_detail)),
    );
    note(
        "keep-duplicates",
        config.keep_duplicates.then(|| "yes".to_string()),
    );
    note("val", config.val.map(|val| val.to_string()));
    note("seed", config.val.map(|_| config.recipe.seed.to_string())); // a seed of the recipe is told in its own words
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_cover_the_side(length in 1u32..400, size in 1u32..100, stride in 1u32..120) {
            let at = positions(length, size, stride);
            prop_assert_eq!(at.is_empty(), length < size);
            prop_assert!(at.windows(2).all(|w| w[0] < w[1]));
            if let (Some(&first), Some(&last)) = (at.first(), at.last()) {
                prop_assert_eq!(first, 0);
                prop_assert_eq!(last + size, length);
                // gaps only where the stride asks for them
                prop_assert!(at.windows(2).all(|w| w[1] - w[0] <= stride));
            }
        }
    }

    #[test]
    fn tiles_of_one_photograph_are_held_out_together() {
        let jobs = |names: &[&str]| -> Vec<Job> {
            let source = |name: &str| Source {
                name: name.into(),
                hr: PathBuf::new(),
                lq: None,
            };
            let job = |name: &&str| Job {
                source: source(name),
                size: (1, 1),
                file_bytes: 1,
                pairs: 1,
                held_out: false,
                memory: 1,
            };
            names.iter().map(job).collect()
        };
        let names: Vec<String> = (0..12)
            .flat_map(|photo| (1..=5).map(move |tile| format!("d/{photo:04}_s{tile:03}")))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for val in [HeldOut::Count(7), HeldOut::Count(10), HeldOut::Share(0.4)] {
            let mut jobs = jobs(&names);
            hold_out(&mut jobs, val, 3).unwrap();
            let held: Vec<usize> = jobs
                .chunks(5)
                .map(|tiles| tiles.iter().filter(|j| j.held_out).count())
                .collect();
            assert!(
                held.iter().all(|n| [0, 5].contains(n)) && held.contains(&5) && held.contains(&0),
                "{val}: {held:?}"
            );
            assert!(
                !matches!(val, HeldOut::Count(_)) || held.iter().sum::<usize>() == 10,
                "{val}: {held:?}"
            );
        }
        let mut one = jobs(&["a_s001", "a_s002", "a_s003"]);
        assert!(
            hold_out(&mut one, HeldOut::Count(1), 0)
                .unwrap_err()
                .to_string()
                .contains("tiles of one photograph")
        );
        let mut apart = jobs(&["a_s1", "a_s2", "a_s3"]);
        hold_out(&mut apart, HeldOut::Count(1), 0).unwrap();
        assert_eq!(
            apart.iter().filter(|j| j.held_out).count(),
            1,
            "other names are photographs of their own"
        );
    }

    #[test]
    fn sizes_are_judged_before_cropping() {
        let g = Geometry {
            scale: 2,
            lq_size: 32,
        };
        assert_eq!(lq_dimensions((65, 67), None, g), Ok((32, 33)));
        assert_eq!(lq_dimensions((64, 64), Some((32, 32)), g), Ok((32, 32)));
        assert_eq!(lq_dimensions((129, 131), Some((64, 65)), g), Ok((64, 65)));
        assert!(lq_dimensions((63, 64), Some((32, 32)), g).is_err());
        let (kind, why) = lq_dimensions((66, 64), Some((32, 32)), g).unwrap_err();
        assert!(
            kind == "geometry"
                && why.contains("66x64")
                && why.contains("32x32")
                && why.contains("64x64"),
            "{why}"
        );
        let (kind, why) = lq_dimensions((63, 640), None, g).unwrap_err();
        assert!(kind == "too small" && why.contains("63x640"), "{why}");
    }
}
