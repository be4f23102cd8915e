//! What a run shows and logs: the text beside the progress bar, log lines, and the validation that
//! belongs to a line. Depends on the log and on validation. Promises that a line holds the numbers
//! of its own iterations, also when a process ends before the line is written.

use super::{EMA, Run};
use crate::backend::{Backend, read_floats};
use crate::inference::eval::Scores;
use crate::support::progress::Progress;
use crate::support::text::bytes_text;
use crate::train::keeping::BestNetwork;
use crate::train::validation::{Validation, ValidationOutcome};
use crate::train::{LogLine, OpenLine, duration_text};
use anyhow::Result;
use std::time::{Duration, Instant};

/// Shortest time between two plain lines where there is no terminal: a log line every few
/// milliseconds is for the file, not for people.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// Mean loss since the last log line.
    fn line_loss(&self) -> f64 {
        self.open_line.loss / self.open_line.count as f64
    }

    /// Updates skipped since the run began.
    pub(super) fn skipped(&self) -> u64 {
        self.iteration - self.updates
    }

    /// The text beside the progress bar.
    pub(super) fn live_text(&self) -> String {
        let lr = self.lr;
        let rate = self.meter.line_rate();
        let pairs = rate * (self.config.batch_size * self.config.accum_iter) as f64;
        let wait = 100.0 * self.meter.line_wait_share();
        let memory = bytes_text(self.meter.peak());
        format!(
            "loss {:.5}  lr {lr:.2e}  {rate:.2} it/s  {pairs:.0} pairs/s  data-wait {wait:.1}%  mem {memory}",
            self.line_loss()
        )
    }

    /// Writes the pending log line, with the scores of a validation if there was one.
    pub(super) fn write_line(&mut self, scores: Option<Scores>, progress: &Progress) -> Result<()> {
        let Some(update) = self.pending else {
            return Ok(());
        };
        self.lock.check()?;
        self.show_plain_line(scores, progress);
        let warning = self.log.append(LogLine {
            iteration: self.iteration,
            loss: self.line_loss(),
            grad_norm: update.grad_norm,
            lr: update.lr,
            it_per_s: self.meter.line_rate(),
            data_wait: self.meter.line_wait_share(),
            seconds: self.seconds_before + self.meter.seconds(),
            skipped: self.skipped(),
            anonymous: Some(self.meter.peak()).filter(|&p| p > 0),
            val_psnr: scores.map(|s| s.psnr),
            val_ssim: scores.map(|s| s.ssim),
            val_psnr_y: scores.map(|s| s.psnr_y),
            val_ssim_y: scores.map(|s| s.ssim_y),
        })?;
        if let Some(warning) = warning {
            progress.line(&format!("warning: {warning}"));
        }
        self.pending = None;
        self.meter.start_line();
        self.open_line = OpenLine::default();
        Ok(())
    }

    /// Shows a line with scores always, and other lines every few seconds where there is no bar.
    fn show_plain_line(&mut self, scores: Option<Scores>, progress: &Progress) {
        let due = self.is_last_iteration()
            || self
                .last_plain_line
                .is_none_or(|shown| shown.elapsed() >= PLAIN_INTERVAL);
        if scores.is_none() && (progress.is_live() || !due) {
            return;
        }
        self.last_plain_line = Some(Instant::now());
        let validated = scores
            .map(|s| format!("  val PSNR-Y {:.3} dB  SSIM-Y {:.4}", s.psnr_y, s.ssim_y))
            .unwrap_or_default();
        let left = self.config.total_iter.saturating_sub(self.iteration) as f64;
        progress.line(&format!(
            "iter {}/{}  {}  ETA {}{validated}",
            self.iteration,
            self.config.total_iter,
            self.live_text(),
            duration_text(left / self.meter.line_rate().max(1e-9))
        ));
    }

    /// Measures the EMA network, and remembers it if it is the best so far.
    pub(super) fn validate(
        &mut self,
        backend: &mut dyn Backend,
        validation: &mut Validation,
        progress: &Progress,
    ) -> Result<ValidationOutcome> {
        let started = Instant::now();
        let mut ema = vec![0.0; self.vectors.sizes[EMA]];
        read_floats(backend, self.vectors.buffers[EMA], &mut ema)?;
        let mut warn =
            |text: String| progress.line(&format!("warning: iteration {}: {text}", self.iteration));
        let outcome = validation.measure(backend, &ema, self.options, self.iteration, &mut warn);
        self.meter.add_peak(validation.peak);
        if let ValidationOutcome::Scores(mean) = &outcome
            && mean.psnr_y.is_finite()
            && self
                .best
                .as_ref()
                .is_none_or(|best| mean.psnr_y > best.psnr_y)
        {
            self.best = Some(BestNetwork {
                iteration: self.iteration,
                psnr_y: mean.psnr_y,
                measured_on: self.measured_on.clone(),
            });
            self.best_unsaved = Some(ema);
        }
        self.meter.leave_out(started.elapsed());
        Ok(outcome)
    }
}
