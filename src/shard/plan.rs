//! The plan of a run of `paragon shard`, made before any image is decoded: which images take part,
//! how many pairs each gives, what is rejected and why. Depends on `dataset`, `headers` and
//! `selection`. Promises that every image found is either in `jobs` or in `rejected`.

pub use super::config::{BuildConfig, DatasetFolder, HeldOut, MAX_SHARD_BYTES};
pub use super::headers::{lq_dimensions, positions};
pub use super::job::{Job, Rejected};

use super::codec::Codec;
use super::format::{Geometry, MAJOR, check_lqs};
use super::hash::Hash64;
use super::headers::read_all;
use super::job::MEMORY;
use super::manifest::{DEGRADE, Extra, HR_ONLY, Manifest, VARIANTS, recipe_mark};
use super::roots::{Scanned, scan_all};
use super::selection::{hold_out, take_part};
use crate::dataset::degrade::Filter;
use crate::dataset::recipe::{LqFilter, RECIPE_DEGRADED, RECIPE_GIVEN, RECIPE_HR_ONLY};
use crate::dataset::scan::{IgnoredFiles, LeftOut, RESTORATION_SCALE};
use crate::support::text::one_line;
use anyhow::{Context, Result, bail, ensure};

/// What all headers together say about a run.
#[derive(Debug)]
pub struct Plan {
    /// Side lengths of the pairs.
    pub geometry: Geometry,
    /// LQ patches of every record.
    pub lqs: u16,
    /// The images, in the order their records will have.
    pub jobs: Vec<Job>,
    /// Files rejected so far; decoding may add to them.
    pub rejected: Vec<Rejected>,
    /// Number of images found: jobs and rejected.
    pub images: u64,
    /// Files without an image's extension.
    pub ignored: IgnoredFiles,
    /// With `--append`: number of images of the set that are no longer in the folder. Known once the
    /// set was read.
    pub gone: u64,
    /// Images and folders that take no part by rule, one entry for each reason.
    pub left_out: Vec<LeftOut>,
    /// The manifest of the set that the run makes, without shards.
    pub manifest: Manifest,
}

impl Plan {
    /// Configuration hash of the set to train on, or of the held-out set.
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

    /// Number of patches of all jobs.
    pub fn pairs(&self) -> u64 {
        self.jobs.iter().map(|j| j.pairs).sum()
    }

    /// Bytes of all pairs as pixels, before encoding.
    pub fn raw_bytes(&self) -> u64 {
        self.pairs() * self.geometry.record_bytes(self.lqs) as u64
    }
}

/// Scans the data set and reads every header.
///
/// # Errors
/// Options out of range, a data set that cannot be read, errors of the system with single files.
/// A fault in the content of a file is no error: the file is listed in `rejected`.
pub fn plan(config: &BuildConfig) -> Result<Plan> {
    let geometry = Geometry::new(config.scale, config.lq_size)?;
    check_options(config)?;
    let Scanned {
        sources,
        rejected: unpaired,
        paired,
        ignored,
        left_out,
    } = scan_all(config)?;
    ensure!(
        !paired || (config.recipe.blur == 0.0 && config.recipe.filter != LqFilter::Random),
        "{} has LQ images of its own, so none are made: leave out --lq-blur and --lq-filter random",
        config.dataset_text()
    );
    ensure!(
        !paired || !config.needs_hr_alone(),
        "{} has LQ images of its own, and {} takes HR images alone: name their folder with --hr, which leaves all others out",
        config.dataset_text(),
        if config.hr_only {
            "--hr-only"
        } else {
            "--degrade"
        }
    );
    let mut rejected: Vec<Rejected> = unpaired
        .into_iter()
        .map(|r| Rejected {
            file: r.path,
            kind: "pairing".into(),
            reason: r.reason,
            lq_side: None,
        })
        .collect();
    let outcomes = read_all(sources, config, geometry, &pool(config.threads)?)?;
    let mut jobs = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        match outcome {
            Ok(job) => jobs.push(job),
            Err(reject) => rejected.push(reject),
        }
    }
    check_memory(config, &rejected)?;
    // images that are added to a set with a number of held-out ones all go to the set to train on
    let is_done = config.append && matches!(config.val, Some(HeldOut::Count(_)));
    if let Some(val) = config.val.filter(|_| !is_done) {
        hold_out(&mut jobs, val, config.recipe.seed)?;
    }
    let mut plan = Plan {
        geometry,
        lqs: config.lqs(),
        images: 0,
        manifest: manifest(config, &jobs, paired),
        jobs,
        rejected,
        ignored,
        gone: 0,
        left_out,
    };
    if let Some((part, parts)) = config.part {
        keep_part(&mut plan, part, parts);
    }
    plan.images = (plan.jobs.len() + plan.rejected.len()) as u64;
    plan.manifest.images = plan.images;
    Ok(plan)
}

/// Refuses options that do not depend on the data set.
fn check_options(config: &BuildConfig) -> Result<()> {
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
    config.criteria.check()?;
    check_degradation(config)?;
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
    Ok(())
}

/// Refuses options that contradict a degradation recipe, variants, or a set of HR alone.
fn check_degradation(config: &BuildConfig) -> Result<()> {
    check_lqs(config.variants)?;
    ensure!(
        config.variants > 0,
        "--variants 0 stores no LQ; for HR alone give --hr-only"
    );
    ensure!(
        config.variants == 1 || config.degrade.is_some(),
        "--variants {} needs --degrade: a filter makes the same LQ every time",
        config.variants
    );
    ensure!(
        config.variants == 1 || !config.hr_only,
        "--variants and --hr-only do not go together: training makes another LQ for every sample from a set of HR alone"
    );
    if !config.needs_hr_alone() {
        return Ok(());
    }
    let flag = if config.hr_only {
        "--hr-only"
    } else {
        "--degrade"
    };
    ensure!(
        config.folders().iter().all(|folder| folder.lq.is_none()),
        "{flag} and LQ images (--lq) do not go together: leave one of them out"
    );
    ensure!(
        config.recipe.whole() == Some(Filter::Bicubic),
        "{flag} and --lq-filter or --lq-blur do not go together: a recipe has its own filters and blurs"
    );
    Ok(())
}

/// Ends the run if an image needs too much memory and the user has not stated `--host-memory`: the
/// content of a set must not depend on the machine that makes it.
fn check_memory(config: &BuildConfig, rejected: &[Rejected]) -> Result<()> {
    let mut for_memory = rejected.iter().filter(|r| r.kind == MEMORY).peekable();
    if let Some(limit) = &config.memory_limit
        && let Some(&first) = for_memory.peek()
    {
        bail!(
            "{} image(s) need more memory than half of {limit}, among them {}: {}; give more memory, leave such images out with \
             --max-megapixels, or state --host-memory, which rejects what needs more",
            for_memory.count(),
            first.file.display(),
            first.reason
        );
    }
    Ok(())
}

/// Leaves the jobs of one part in the plan, and gives the part its own configuration hash.
fn keep_part(plan: &mut Plan, part: u32, parts: u32) {
    let jobs = std::mem::take(&mut plan.jobs);
    plan.jobs = take_part(jobs, u64::from(part), u64::from(parts));
    let manifest = &mut plan.manifest;
    manifest.extra.part = (part, parts);
    manifest.extra.whole = manifest.config;
    manifest.config = Hash64::default()
        .word(manifest.config)
        .word(part.into())
        .word(parts.into())
        .finish();
    if part > 1 {
        // only the first part counts what is rejected before decoding, so that the counts of the
        // parts add up
        plan.rejected.clear();
        plan.ignored = IgnoredFiles::default();
        plan.left_out.clear();
    }
}

/// Starts a pool of `threads` threads that convert images; 0 = one for each core.
///
/// # Errors
/// The system does not give the threads.
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

/// Version of the encoder, a part of the identity of a set. It changes only if the encoder makes
/// other bytes from the same pair, and not with the version of paragon: the encoder still makes the
/// bytes of paragon 0.1.0.
const ENCODER: &str = "0.1.0";
/// [`ENCODER`] for predicted pairs at scale 1: since this version the prediction and the blocks of
/// their LQ are chosen by size.
const ENCODER_AT_SCALE_1: &str = "0.3.0";

/// Version of the steps of degradation recipes, a part of the identity of a set that stores what they
/// make. It changes only if the steps make other pixels of the same recipe and draws.
const STEPS: &str = "0.3.0";

/// The version of the encoder that makes the bytes of a set.
fn encoder(config: &BuildConfig) -> &'static str {
    match (config.scale, config.codec) {
        (RESTORATION_SCALE, Codec::Predict) => ENCODER_AT_SCALE_1,
        _ => ENCODER,
    }
}

/// Makes the manifest of the set from the configuration and the inputs, without shards.
fn manifest(config: &BuildConfig, jobs: &[Job], paired: bool) -> Manifest {
    let mut inputs = Hash64::default();
    for job in jobs {
        inputs
            .bytes(job.source.name.as_bytes())
            .word(job.file_bytes)
            .word(u64::from(job.source.lq.is_some()));
    }
    let (recipe, recipe_name) = recipe_of(config, paired);
    let mut manifest = Manifest {
        paragon: env!("CARGO_PKG_VERSION").to_string(),
        scale: config.scale,
        lq_size: config.lq_size,
        stride: config.stride,
        recipe,
        recipe_name,
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
    hash.word(u64::from(MAJOR))
        .bytes(encoder(config).as_bytes());
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
    if manifest.recipe == RECIPE_DEGRADED {
        hash.bytes(STEPS.as_bytes());
    }
    for (name, value) in &manifest.extra.options {
        hash.bytes(name.as_bytes()).bytes(value.as_bytes());
    }
    manifest.config = hash.finish();
    manifest
}

/// How the LQ is made, as a number and in words that hold everything but the text of a degradation
/// recipe, for which its hash stands.
fn recipe_of(config: &BuildConfig, paired: bool) -> (u8, String) {
    let degraded = config
        .degrade
        .as_ref()
        .map(|recipe| format!("{} ({})", one_line(recipe.name()), recipe_mark(recipe)));
    match degraded {
        None if config.hr_only => (RECIPE_HR_ONLY, "none, HR alone".to_string()),
        Some(name) if config.hr_only => {
            let text = format!("none, HR alone; in training {name}");
            (RECIPE_HR_ONLY, text)
        }
        Some(name) => {
            let variants = match config.variants {
                1 => String::new(),
                several => format!("{several} variants, "),
            };
            let text = format!("{name}, {variants}seed {}", config.recipe.seed);
            (RECIPE_DEGRADED, text)
        }
        None if paired => (RECIPE_GIVEN, "given".to_string()),
        None => (config.recipe.id(), config.recipe.to_string()),
    }
}

/// The options that decide the bytes but have no field of their own in the manifest. Options at
/// their default are left out.
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
    for (name, value) in config.criteria.options() {
        note(&name, Some(value));
    }
    note(
        "keep-duplicates",
        config.keep_duplicates.then(|| "yes".to_string()),
    );
    note("val", config.val.map(|val| val.to_string()));
    // the seed of a random recipe is part of the recipe's name already
    let draws = config.val.is_some() || (config.degrade.is_some() && !config.hr_only);
    note("seed", draws.then(|| config.recipe.seed.to_string()));
    note(
        DEGRADE,
        config
            .degrade
            .as_ref()
            .map(|recipe| recipe.canonical().to_string()),
    );
    note(
        VARIANTS,
        (config.variants > 1).then(|| config.variants.to_string()),
    );
    note(HR_ONLY, config.hr_only.then(|| "yes".to_string()));
    out
}
