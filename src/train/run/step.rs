//! One iteration: micro-batches, the update, and its metrics. Depends on the loader and the
//! backend. Promises that an iteration either is complete, with its update, or leaves no trace.

use super::{Run, Share};
use crate::backend::{Backend, BatchView, Scalars};
use crate::loader::{Batch, Loader};
use crate::train::ema_decay;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Updates that may be skipped in a row before a run gives up.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

impl Run<'_> {
    /// One iteration; returns false if the run was stopped before the update. The gradients
    /// accumulated so far are then dropped, and the next process does the whole iteration again.
    ///
    /// The metrics of the previous iteration are read after the first micro-batch was launched, so
    /// that a device is never idle meanwhile. They are read before it if the backend would overwrite
    /// them, and with loss scaling, because the scale depends on them.
    pub(super) fn step(&mut self, backend: &mut dyn Backend, loader: &mut Loader) -> Result<bool> {
        let complete = match self.share.take() {
            Some(mut share) => {
                let complete = self.shared_micro_batches(&mut share, backend, loader);
                self.share = Some(share);
                complete?
            }
            None => self.own_micro_batches(backend, loader)?,
        };
        if !complete {
            return Ok(false);
        }
        let scalars = self.scalars(self.updates + 1);
        backend.update(&scalars)?;
        (self.lr, self.pending, self.metrics_unread) = (scalars.lr, None, true);
        self.iteration += 1;
        self.meter.count_iteration();
        Ok(true)
    }

    /// All micro-batches of an iteration; false if the run was stopped.
    fn own_micro_batches(
        &mut self,
        backend: &mut dyn Backend,
        loader: &mut Loader,
    ) -> Result<bool> {
        let stop = || self.options.stop.load(Ordering::Relaxed);
        let metrics = backend.plan().ports.metrics;
        let metrics = metrics.context("the plan has no metrics, so it cannot train")?;
        // A backend adds each term of a loss to those of the micro-batches before. Here whole losses
        // are added, as ranks do, where that makes no device wait.
        let adds_losses = self.config.accum_iter > 1 && !backend.metrics_survive_next_step();
        let mut sum = None;
        for micro in 0..self.config.accum_iter {
            let asked = Instant::now();
            let Some(batch) = loader.next_until(stop)? else {
                return Ok(false);
            };
            self.meter.add_wait(asked.elapsed());
            if adds_losses && micro > 0 {
                backend.write(metrics, 0, &0f64.to_ne_bytes())?;
            }
            self.micro_batch(backend, batch, micro > 0)?;
            if adds_losses {
                let mut loss = [0; 8];
                backend.read(metrics, 0, &mut loss)?;
                let loss = f64::from_ne_bytes(loss);
                sum = Some(sum.map_or(loss, |sum: f64| sum + loss));
            }
        }
        if let Some(sum) = sum {
            backend.write(metrics, 0, &sum.to_ne_bytes())?;
        }
        Ok(true)
    }

    /// The micro-batches of this rank, with the gradients of all ranks summed; false if any rank was
    /// stopped. Every rank adds whole gradients in the order of the micro-batches, as the kernels do
    /// in a process that is alone.
    fn shared_micro_batches(
        &mut self,
        share: &mut Share<'_>,
        backend: &mut dyn Backend,
        loader: &mut Loader,
    ) -> Result<bool> {
        let exchange = share.exchange;
        let options = self.options;
        let is_alone = exchange.ranks() == 1;
        let rounds = self.config.accum_iter / exchange.ranks();
        for round in 0..rounds {
            let asked = Instant::now();
            // Ranks agree on a stop below: none may end the iteration before the others.
            let stop = || is_alone && options.stop.load(Ordering::Relaxed);
            let batch = loop {
                match loader.next_until(|| exchange.is_troubled() || stop())? {
                    Some(batch) => break batch,
                    None if stop() => return Ok(false),
                    None => exchange.check()?,
                }
            };
            let waited = asked.elapsed();
            self.meter.add_wait(waited);
            self.micro_batch(backend, batch, false)?;
            let stop = self.options.stop.load(Ordering::Relaxed);
            let substituted = loader.stats().substituted;
            let said = (stop, substituted);
            let ends = (round == 0, round + 1 == rounds);
            if share.round(backend, ends, waited.as_secs_f64(), said)? {
                self.options.stop.store(true, Ordering::Relaxed);
                return Ok(false);
            }
        }
        share.finish(backend)?;
        Ok(true)
    }

    /// Launches a micro-batch.
    fn micro_batch(
        &mut self,
        backend: &mut dyn Backend,
        batch: Batch,
        accumulate: bool,
    ) -> Result<()> {
        let read_first = !backend.metrics_survive_next_step() || self.loss_scale.is_some();
        if let Some(fence) = backend.stage(BatchView {
            lq: batch.lq(),
            hr: batch.hr(),
            augment: batch.augment(),
        })? {
            batch.return_after(fence);
        }
        if read_first {
            self.read_metrics(backend)?;
        }
        // While the previous update is unread it is assumed not to be skipped. Only the number of
        // the next update depends on that, and the metrics are read right after.
        backend.micro_step(&Scalars {
            accumulate,
            ..self.scalars(self.updates + 1 + u64::from(self.metrics_unread))
        })?;
        self.read_metrics(backend)
    }

    /// The scalars of the next iteration, for the update with number `update` (from 1).
    fn scalars(&self, update: u64) -> Scalars {
        Scalars {
            lr: self.config.schedule.lr(self.scheduled_iteration()),
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

    /// The iteration that the schedule is evaluated at for the next iteration. With loss scaling,
    /// where skipped updates are normal, skipped iterations are not counted.
    fn scheduled_iteration(&self) -> u64 {
        if self.loss_scale.is_some() {
            self.updates + 1
        } else {
            self.iteration + 1
        }
    }

    /// Reads the metrics of the last iteration, unless that was done already.
    pub(super) fn read_metrics(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if !std::mem::take(&mut self.metrics_unread) {
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
}
