//! What a run of training is told, and what it tells in the end. Depends on the configuration and
//! on what loads and computes. Promises plain data: nothing here acts.

use super::{DeviceChoice, Prefetch, TrainConfig};
use crate::loader::OnCorrupt;
use crate::model::Recompute;
use crate::plan::Precision;
use crate::shard::reader::Io;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The text of a configuration file, from the configuration that was chosen in the end: with the
/// split of its iterations.
#[derive(Clone)]
pub struct ConfigFile(pub Arc<dyn Fn(&TrainConfig) -> String + Send + Sync>);

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigFile")
    }
}

/// Where and how a run computes, what it keeps and what it says. None of it changes the network
/// that is trained, but for a stated `host_memory` or `vram`, for which `fit` may split an
/// iteration (sums are then rounded in another order), `device` and `precision`.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder of the run.
    pub out: PathBuf,
    /// Threads that compute; 0 for all.
    pub threads: usize,
    /// Threads that load, and batches in the ring.
    pub prefetch: Prefetch,
    /// How shards are read.
    pub io: Io,
    /// What happens when a record is damaged.
    pub on_corrupt: OnCorrupt,
    /// Iterations between checkpoints.
    pub checkpoint_every: u64,
    /// State files kept.
    pub keep_states: usize,
    /// Newest checkpoints whose network files are kept.
    pub keep_models: usize,
    /// Network files of every so many iterations are kept for good.
    pub keep_every: Option<u64>,
    /// Iterations between log lines.
    pub log_every: u64,
    /// Folder of images or set of shards to validate on.
    pub validation: Option<PathBuf>,
    /// HR pixels at each edge that the metrics leave out; nothing for the scale.
    pub crop_border: Option<u32>,
    /// Iterations between validations.
    pub validate_every: u64,
    /// Most host memory, bytes; nothing for what the machine and its control group leave.
    pub host_memory: Option<u64>,
    /// What is kept between forward and backward; nothing for the cheapest level that fits.
    pub recompute: Option<Recompute>,
    /// Split an iteration into smaller micro-batches, and take fewer slots, where it does not fit
    /// otherwise.
    pub fit: bool,
    /// Start again from nothing, over an earlier run in the same folder.
    pub restart: bool,
    /// File to take start values from, for a run that begins, and whether all of it must fit.
    pub pretrained: Option<(PathBuf, bool)>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Type of activations; the device's best where not given.
    pub precision: Option<Precision>,
    /// Most device memory the run may take, bytes; `None` for what is free.
    pub vram: Option<u64>,
    /// Makes the configuration file that is kept beside the run.
    pub settings: Option<ConfigFile>,
    /// Set from outside to save the last whole iteration and stop, within a micro-batch or a
    /// validation image.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// Whether all iterations are done, or the run was stopped from outside.
    pub finished: bool,
    /// Iterations done.
    pub iteration: u64,
    /// Loss of the last log line.
    pub loss: f64,
    /// Iterations a second of this process.
    pub it_per_s: f64,
    /// Share of this process's time spent waiting for data.
    pub data_wait: f64,
    /// Threads that loaded.
    pub loader_threads: usize,
    /// Share of their time that they waited for a free batch.
    pub loader_wait: f64,
    /// Samples of this process that stood in for damaged records.
    pub substituted: u64,
    /// Updates skipped because loss or gradient was not finite.
    pub skipped: u64,
    /// Peak anonymous memory seen, bytes.
    pub peak_anonymous: u64,
    /// What was computed before the start, bytes.
    pub planned: u64,
    /// The trained network (EMA).
    #[serde(serialize_with = "as_text")]
    pub model: PathBuf,
    /// The run's folder.
    #[serde(serialize_with = "as_text")]
    pub run: PathBuf,
}

/// A path whose bytes are no UTF-8 must not turn a finished run into an error.
fn as_text<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}
