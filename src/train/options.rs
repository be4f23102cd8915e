//! The options of a run besides its configuration, and the summary it ends with. Depends on the
//! configuration and the types of loader and plan. Promises plain data: nothing here acts.

use super::{DeviceChoice, Prefetch, TrainConfig};
use crate::loader::OnCorrupt;
use crate::model::Recompute;
use crate::plan::Precision;
use crate::shard::reader::Io;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Makes the text of the configuration file that is kept with a run, from the configuration with
/// the split of iterations that was chosen.
#[derive(Clone)]
pub struct ConfigFile(pub Arc<dyn Fn(&TrainConfig) -> String + Send + Sync>);

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigFile")
    }
}

/// How much a line matters to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A detail, for users who ask for more.
    Detail,
    /// What usual output shows.
    Info,
    /// Something is not as the user may expect; shown always.
    Warning,
}

/// Shows a line of a run to the user.
pub type Report<'a> = dyn Fn(Level, &str) + 'a;

/// Where and how a run computes, what it keeps and what it reports. These options do not change the
/// trained weights, with three exceptions: `device`, `precision`, and a stated `host_memory` or
/// `vram`, for which `fit` may split an iteration (sums are then rounded in another order).
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder of the run.
    pub out: PathBuf,
    /// Threads that compute; 0 for all cores.
    pub threads: usize,
    /// Threads and slots of the loader.
    pub prefetch: Prefetch,
    /// How shards are read.
    pub io: Io,
    /// What happens if a record is damaged.
    pub on_corrupt: OnCorrupt,
    /// Iterations between checkpoints.
    pub checkpoint_every: u64,
    /// Number of states that are kept.
    pub keep_states: usize,
    /// Number of checkpoints whose networks are kept.
    pub keep_models: usize,
    /// The networks of iterations that are multiples of this number are kept permanently.
    pub keep_every: Option<u64>,
    /// Iterations between log lines.
    pub log_every: u64,
    /// Folder of images or set of shards to validate on; `None` for no validation.
    pub validation: Option<PathBuf>,
    /// HR pixels that the metrics leave out at each edge; `None` for as many as the scale.
    pub crop_border: Option<u32>,
    /// Iterations between validations.
    pub validate_every: u64,
    /// Largest amount of host memory, bytes; `None` for what the machine and its control group
    /// leave.
    pub host_memory: Option<u64>,
    /// What is kept between forward and backward; `None` for the cheapest level that fits.
    pub recompute: Option<Recompute>,
    /// Whether a run that does not fit may be split into smaller micro-batches and take fewer
    /// slots.
    pub fit: bool,
    /// Start from the beginning, and remove an earlier run in the same folder.
    pub restart: bool,
    /// Continue an earlier run in the same folder although the recipe has changed.
    pub continue_changed: bool,
    /// Network file with start values for a run that begins, and whether all tensors must fit.
    pub pretrained: Option<(PathBuf, bool)>,
    /// The key and the option file that gave the milestones of the schedule, for a note about them;
    /// `None`: not a file.
    pub milestones_from: Option<String>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Type of activations, or, on the CPU, of the products of dense convolutions; `None` for f32 on
    /// the CPU and the best one of a CUDA device.
    pub precision: Option<Precision>,
    /// Largest amount of device memory, bytes; `None` for what is free.
    pub vram: Option<u64>,
    /// Makes the configuration file that is kept with the run.
    pub settings: Option<ConfigFile>,
    /// Set from outside to stop within one micro-batch or validation image; the last complete
    /// iteration is saved.
    pub stop: Arc<AtomicBool>,
}

/// The best network of a run.
#[derive(Clone, Debug, Serialize)]
pub struct BestScore {
    /// Iteration after which it was measured.
    pub iteration: u64,
    /// Its PSNR on Y, dB.
    pub psnr_y: f64,
    /// Its file.
    #[serde(serialize_with = "as_text")]
    pub model: PathBuf,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// True if all iterations are done; false if the run was stopped from outside.
    pub finished: bool,
    /// Iterations done.
    pub iteration: u64,
    /// Loss of the last log line.
    pub loss: f64,
    /// Iterations per second of this process, validations left out.
    pub it_per_s: f64,
    /// Iterations that this process has done; 0 if the run was finished before.
    pub iterations_here: u64,
    /// Share of the training time of this process that was spent waiting for data.
    pub data_wait: f64,
    /// Loader threads.
    pub loader_threads: usize,
    /// Share of their time that the loader threads waited for a free slot.
    pub loader_wait: f64,
    /// Samples of this process whose damaged record was replaced.
    pub substituted: u64,
    /// Updates skipped in the whole run because the loss or the gradient norm was not finite.
    pub skipped: u64,
    /// Peak anonymous memory seen, bytes.
    pub peak_anonymous: u64,
    /// Host memory computed before the start, bytes.
    pub planned: u64,
    /// The best network by PSNR-Y; `None` without validation.
    pub best: Option<BestScore>,
    /// PSNR on Y of the newest network, dB; `None` if it was not validated.
    pub newest_psnr_y: Option<f64>,
    /// PSNR on Y of the bicubic upscaling of the same images, dB.
    pub bicubic_psnr_y: Option<f64>,
    /// The newest trained network (EMA).
    #[serde(serialize_with = "as_text")]
    pub model: PathBuf,
    /// The run's folder.
    #[serde(serialize_with = "as_text")]
    pub run: PathBuf,
}

/// Writes a path as text. A path that is not UTF-8 must not turn a finished run into an error.
fn as_text<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}
