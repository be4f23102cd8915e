//! What a run of `paragon shard` will do, known before any picture is decoded: which images take part, how many pairs each
//! gives, what is rejected and why. Depends on `dataset`. Promises that every image found is either in `jobs` or in
//! `rejected`.

use super::codec::Codec;
use super::format::{Geometry, Hash64, MAJOR};
use super::manifest::Manifest;
use crate::dataset::decode::{self, Limits};
use crate::dataset::degrade::Filter;
use crate::dataset::recipe::{LqFilter, RECIPE_GIVEN, Recipe};
use crate::dataset::scan::{self, ScanOptions, Source};
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Bytes of memory counted for one pixel of a picture being converted: decoded at worst as 16-bit RGBA (8), turned and
/// converted (3 + 3), and the rest for what decoders keep beside.
const BYTES_PER_PIXEL: u64 = 16;

/// Everything `paragon shard` is told.
#[derive(Clone, Debug)]
pub struct BuildConfig {
    /// Folder of the images.
    pub dataset: PathBuf,
    /// Folder for the set.
    pub out: PathBuf,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side, pixels.
    pub lq_size: u32,
    /// Distance of neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// The HR folder, where it is not to be found by name.
    pub hr: Option<PathBuf>,
    /// The LQ folder, where it is not to be found by name.
    pub lq: Option<PathBuf>,
    /// How the LQ is made where there is none.
    pub recipe: Recipe,
    /// How pairs are stored.
    pub codec: Codec,
    /// Threads that convert; 0 = one for each core.
    pub threads: usize,
    /// A new shard is begun at this size, bytes.
    pub shard_bytes: u64,
    /// Bound on the memory of images under way, bytes.
    pub host_memory: u64,
    /// Whether a different set in `out` is removed first.
    pub overwrite: bool,
    /// Bounds on single image files.
    pub limits: Limits,
}

impl BuildConfig {
    /// What the command line takes where it is told nothing else.
    pub fn new(dataset: impl Into<PathBuf>, out: impl Into<PathBuf>, scale: u32, lq_size: u32) -> Self {
        BuildConfig {
            dataset: dataset.into(),
            out: out.into(),
            scale,
            lq_size,
            stride: lq_size,
            hr: None,
            lq: None,
            recipe: Recipe::fixed(Filter::Bicubic),
            codec: Codec::Predict,
            threads: 0,
            shard_bytes: 512 << 20,
            host_memory: 2 << 30,
            overwrite: false,
            limits: Limits::default(),
        }
    }
}

/// A file that gives no pairs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rejected {
    /// The file.
    pub file: PathBuf,
    /// The kind of reason, for counting.
    pub kind: &'static str,
    /// The reason in words.
    pub reason: String,
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
    /// Pairs it gives.
    pub pairs: u64,
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
    /// Files without a picture's extension.
    pub ignored: u64,
    /// The manifest of the set to be, without shards.
    pub manifest: Manifest,
}

impl Plan {
    /// Pairs of all jobs.
    pub fn pairs(&self) -> u64 {
        self.jobs.iter().map(|j| j.pairs).sum()
    }

    /// Bytes of all pairs before any coding.
    pub fn raw_bytes(&self) -> u64 {
        self.pairs() * (self.geometry.lq_bytes() + self.geometry.hr_bytes()) as u64
    }
}

/// Left (or top) edges of patches of `size` that cover a side of `length` at `stride`: the last one ends at the border.
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

/// Width and height of the LQ image of a pair, or why the two sizes are of no use. Without an LQ of its own the HR is
/// cropped to a multiple of the scale.
pub fn lq_dimensions(hr: (u32, u32), lq: Option<(u32, u32)>, g: Geometry) -> Result<(u32, u32), (&'static str, String)> {
    let made = (hr.0 / g.scale, hr.1 / g.scale);
    let size = lq.unwrap_or(made);
    let wanted = (u64::from(size.0) * u64::from(g.scale), u64::from(size.1) * u64::from(g.scale));
    if lq.is_some() && wanted != (u64::from(hr.0), u64::from(hr.1)) {
        let reason = format!(
            "the HR is {}x{} and the LQ {}x{}: at scale {} the HR should be {}x{}",
            hr.0, hr.1, size.0, size.1, g.scale, wanted.0, wanted.1
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
/// Options out of range, a dataset that cannot be read. Single files only add to `rejected`.
pub fn plan(config: &BuildConfig) -> Result<Plan> {
    let geometry = Geometry::new(config.scale, config.lq_size)?;
    ensure!(config.stride > 0, "the stride is 0; it is the distance of neighbouring patches in LQ pixels");
    config.recipe.check()?;
    let options = ScanOptions { scale: config.scale, hr: config.hr.clone(), lq: config.lq.clone() };
    let scan = scan::scan(&config.dataset, &options)?;
    ensure!(
        scan.lq_root.is_none() || (config.recipe.blur == 0.0 && config.recipe.filter != LqFilter::Random),
        "{} has LQ images of its own, so none are made: leave out --lq-blur and --lq-filter random",
        config.dataset.display()
    );
    let pool = pool(config.threads)?;
    let looked: Vec<Result<Job, Rejected>> =
        pool.install(|| scan.sources.into_par_iter().map(|source| look(source, config, geometry)).collect());
    let images = (looked.len() + scan.rejected.len()) as u64;
    let mut rejected: Vec<Rejected> =
        scan.rejected.into_iter().map(|r| Rejected { file: r.path, kind: "pairing", reason: r.reason }).collect();
    let mut jobs = Vec::with_capacity(looked.len());
    for outcome in looked {
        match outcome {
            Ok(job) => jobs.push(job),
            Err(reject) => rejected.push(reject),
        }
    }
    let manifest = manifest(config, &jobs, scan.lq_root.is_some(), images);
    Ok(Plan { geometry, jobs, rejected, images, ignored: scan.ignored as u64, manifest })
}

/// A pool of `threads` threads that convert; 0 = one for each core.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("convert-{i}"));
    builder.build().context("cannot start the threads")
}

fn look(source: Source, config: &BuildConfig, g: Geometry) -> Result<Job, Rejected> {
    let reject = |file: &Path, kind, reason| Rejected { file: file.to_path_buf(), kind, reason };
    let header = |path: &Path| -> Result<((u32, u32), u64), Rejected> {
        let read = || -> Result<((u32, u32), u64)> {
            let bytes = std::fs::metadata(path).context("cannot look at the file")?.len();
            Ok((decode::probe(path, &config.limits)?, bytes))
        };
        read().map_err(|e| reject(path, "unreadable", format!("{e:#}")))
    };
    let (size, mut file_bytes) = header(&source.hr)?;
    let mut pixels = u64::from(size.0) * u64::from(size.1);
    let mut lq_size = None;
    if let Some(path) = &source.lq {
        let (size, bytes) = header(path)?;
        lq_size = Some(size);
        file_bytes += bytes;
        pixels += u64::from(size.0) * u64::from(size.1);
    }
    let lq = lq_dimensions(size, lq_size, g).map_err(|(kind, reason)| reject(&source.hr, kind, reason))?;
    let across = positions(lq.0, g.lq_size, config.stride).len() as u64;
    let pairs = across * positions(lq.1, g.lq_size, config.stride).len() as u64;
    let memory = file_bytes + pixels * BYTES_PER_PIXEL + pairs * (g.lq_bytes() + g.hr_bytes()) as u64;
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
    Ok(Job { source, size, file_bytes, pairs, memory })
}

/// The manifest of the set that a configuration and its inputs give; the shards are still to come.
fn manifest(config: &BuildConfig, jobs: &[Job], paired: bool, images: u64) -> Manifest {
    let mut inputs = Hash64::default();
    for job in jobs {
        inputs.bytes(job.source.name.as_bytes()).word(job.file_bytes).word(u64::from(job.source.lq.is_some()));
    }
    let mut manifest = Manifest {
        paragon: env!("CARGO_PKG_VERSION").to_string(),
        scale: config.scale,
        lq_size: config.lq_size,
        stride: config.stride,
        recipe: if paired { RECIPE_GIVEN } else { config.recipe.id() },
        recipe_name: if paired { "given".to_string() } else { config.recipe.to_string() },
        codec: config.codec.name().to_string(),
        shard_bytes: config.shard_bytes,
        inputs: inputs.finish(),
        config: 0,
        images,
        used: 0,
        shards: Vec::new(),
    };
    let mut hash = Hash64::default();
    hash.word(u64::from(MAJOR)).bytes(manifest.paragon.as_bytes());
    for number in [manifest.scale, manifest.lq_size, manifest.stride, u32::from(manifest.recipe)] {
        hash.word(u64::from(number));
    }
    hash.bytes(manifest.recipe_name.as_bytes()).bytes(manifest.codec.as_bytes()).word(manifest.shard_bytes).word(manifest.inputs);
    manifest.config = hash.finish();
    manifest
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
    fn sizes_are_judged_before_cropping() {
        let g = Geometry { scale: 2, lq_size: 32 };
        assert_eq!(lq_dimensions((65, 67), None, g), Ok((32, 33)));
        assert_eq!(lq_dimensions((64, 64), Some((32, 32)), g), Ok((32, 32)));
        let (kind, why) = lq_dimensions((65, 64), Some((32, 32)), g).unwrap_err();
        assert!(kind == "geometry" && why.contains("65x64") && why.contains("32x32") && why.contains("64x64"), "{why}");
        let (kind, why) = lq_dimensions((63, 640), None, g).unwrap_err();
        assert!(kind == "too small" && why.contains("63x640"), "{why}");
    }
}
