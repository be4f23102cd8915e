//! One iteration of training: micro-batches, the update, and its metrics. Depends on the loader and
//! a backend. It promises that the numbers of an iteration depend on the configuration and the
//! state alone, never on how fast data or devices are.

use super::meter::Meter;
use super::{
    Best, Log, LossScale, MeasuredOn, OpenLine, PendingLine, RunOptions, TrainConfig, ema_decay,
};
use crate::backend::{Backend, BatchView, Scalars};
use crate::loader::Loader;
use crate::plan::BufferId;
use crate::support::lock::FolderLock;
use anyhow::{Result, ensure};
use std::time::Instant;

/// Updates that may be skipped in a row before a run gives up.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// The state of a run in memory.
pub(super) struct Run<'a> {
    pub config: TrainConfig,
    pub options: &'a RunOptions,
    /// Fingerprint of the sets of shards.
    pub data: u64,
    pub loader_threads: usize,
    pub lock: FolderLock,
    pub log: Log,
    pub iteration: u64,
    pub updates: u64,
    pub open_line: OpenLine,
    /// Set while the log line of this iteration is due and not written: the values of the last
    /// update that the line needs.
    pub pending: Option<PendingLine>,
    /// Learning rate of the last iteration.
    pub lr: f64,
    /// Updates skipped one after another up to this iteration.
    pub skipped_in_a_row: u64,
    /// Training time of the processes before this one, seconds.
    pub seconds_before: f64,
    /// Buffers of parameters, first moment, second moment and EMA.
    pub vectors: Vec<BufferId>,
    /// Elements of each of `vectors`.
    pub sizes: [usize; 4],
    pub meter: Meter,
    /// Iteration of the newest state on disk.
    pub saved: Option<u64>,
    /// Present with fp16 alone.
    pub loss_scale: Option<LossScale>,
    /// Whether the last iteration's metrics were not read yet: a device still computes it while the
    /// next batch is copied.
    pub unread: bool,
    /// The best validation so far.
    pub best: Option<Best>,
    /// The images that scores are measured on.
    pub measured_on: Option<MeasuredOn>,
    /// The network of `best` until the next checkpoint writes it.
    pub best_network: Option<Vec<f32>>,
}

impl Run<'_> {
    /// Runs one iteration: its micro-batches, then the update. Returns `false` if the run was
    /// stopped before the update; the gradients summed so far are then dropped, and the next process
    /// repeats the iteration. A batch is staged while the device still computes the previous one.
    /// The previous iteration's metrics are read after the first micro-step was launched, so that
    /// the device is never idle; with loss scaling they are read before it, because the loss scale
    /// depends on them.
    pub fn step(&mut self, backend: &mut dyn Backend, loader: &mut Loader) -> Result<bool> {
        let early = !backend.metrics_survive_next_step() || self.loss_scale.is_some();
        for micro in 0..self.config.accum_iter {
            let asked = Instant::now();
            let Some(batch) = loader.next_unless(&self.options.stop)? else {
                return Ok(false);
            };
            self.meter.waited += asked.elapsed().as_secs_f64();
            self.meter.line_wait += asked.elapsed().as_secs_f64();
            if let Some(fence) = backend.stage(BatchView {
                lq: batch.lq(),
                hr: batch.hr(),
                augment: batch.augment(),
            })? {
                batch.return_after(fence);
            }
            if early {
                self.read_metrics(backend)?;
            }
            // Assume that the previous update was not skipped: only Adam's step count depends on it,
            // and it is checked right after.
            backend.micro_step(&Scalars {
                accumulate: micro > 0,
                ..self.scalars(self.updates + 1 + u64::from(self.unread))
            })?;
            self.read_metrics(backend)?;
        }
        let scalars = self.scalars(self.updates + 1);
        backend.update(&scalars)?;
        (self.lr, self.pending, self.unread) = (scalars.lr, None, true);
        self.iteration += 1;
        self.meter.line_iterations += 1;
        Ok(true)
    }

    /// The scalars of the next iteration; `update` is the number that its update would have,
    /// from 1.
    fn scalars(&self, update: u64) -> Scalars {
        Scalars {
            lr: self.config.schedule.lr(self.scheduled()),
            step: update,
            clip: if self.config.grad_clip > 0.0 {
                self.config.grad_clip
            } else {
                f64::INFINITY
            },
            ema_decay: ema_decay(update, self.config.ema_decay, self.config.ema_power),
            micro_scale: 1.0 / self.config.accum_iter as f32,
            loss_scale: self.loss_scale.map_or(1.0, |scale| scale.factor),
            accumulate: false,
        }
    }

    /// The number by which the learning-rate schedule counts the next iteration. With loss scaling
    /// skipped updates are normal, and only updates that were applied count.
    fn scheduled(&self) -> u64 {
        if self.loss_scale.is_some() {
            self.updates + 1
        } else {
            self.iteration + 1
        }
    }

    /// Reads the metrics of the last iteration, unless that was done already.
    ///
    /// # Errors
    /// The backend's; ten skipped updates in a row.
    pub fn read_metrics(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if !std::mem::take(&mut self.unread) {
            return Ok(());
        }
        let metrics = backend.metrics()?;
        let overflow = metrics.skipped && self.loss_scale.is_some_and(|scale| scale.can_fall());
        if let Some(scale) = &mut self.loss_scale {
            scale.after(metrics.skipped);
        }
        if metrics.skipped && !overflow {
            self.skipped_in_a_row += 1;
            let what = if metrics.loss.is_finite() {
                "the gradient norm"
            } else {
                "the loss"
            };
            ensure!(
                self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW,
                "{what} was not finite {MAX_SKIPPED_IN_A_ROW} times in a row (last learning rate {:.3e}); lower --lr or look at the data",
                self.lr
            );
        }
        if !metrics.skipped {
            self.skipped_in_a_row = 0;
            self.updates += 1;
            self.open_line.loss += metrics.loss;
            self.open_line.count += 1;
        }
        Ok(())
    }

    /// Updates skipped since the run began.
    pub fn skipped(&self) -> u64 {
        self.iteration - self.updates
    }
}
