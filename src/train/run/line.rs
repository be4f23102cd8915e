//! What a run shows and logs: the text beside the progress bar, log lines, and the validation that
//! belongs to a line. Depends on the log and on validation. Promises that a line holds the numbers
//! of its own iterations, also when a process ends before the line is written.

use super::{EMA, Run};
use crate::backend::{Backend, read_floats};
use crate::support::progress::{Field, Progress};
use crate::support::text::bytes_text;
use crate::train::keeping::BestNetwork;
use crate::train::validation::{Validation, ValidationOutcome, ValidationScores};
use crate::train::{LogLine, OpenLine, duration_text};
use anyhow::Result;
use std::time::Instant;

fn field(text: String, importance: u8) -> Field {
    Field { text, importance }
}

impl Run<'_> {
    /// Mean loss since the last log line.
    fn line_loss(&self) -> f64 {
        self.open_line.loss / self.open_line.count as f64
    }

    /// Updates skipped since the run began.
    pub(super) fn skipped(&self) -> u64 {
        self.iteration - self.updates
    }

    /// What is shown beside the progress bar and in a line of the log. Where there is no room, the
    /// speed in pairs goes first, then memory, the rate, the waiting.
    pub(super) fn fields(&self) -> Vec<Field> {
        let rate = self.meter.rate();
        let pairs = rate * (self.config.batch_size * self.config.accum_iter) as f64;
        let wait = 100.0 * self.meter.line_wait_share();
        let mut fields = vec![
            field(format!("loss {:.5}", self.line_loss()), 7),
            field(format!("lr {:.2e}", self.lr), 3),
            field(format!("{rate:.2} it/s"), 5),
            field(format!("{pairs:.0} pairs/s"), 1),
            field(format!("data-wait {wait:.1}%"), 4),
        ];
        if self.meter.peak() > 0 {
            fields.push(field(format!("mem {}", bytes_text(self.meter.peak())), 2));
        }
        fields.push(field(self.time_text(rate), 6));
        fields
    }

    /// Time so far in this process and time left: `0:10, 0:21 left`.
    fn time_text(&self, rate: f64) -> String {
        let left = self.config.total_iter.saturating_sub(self.iteration) as f64;
        let so_far = duration_text(self.meter.seconds_with_validation());
        if left == 0.0 || rate == 0.0 {
            return so_far;
        }
        format!("{so_far}, {} left", duration_text(left / rate))
    }

    /// Writes the pending log line, with the scores of a validation if there was one.
    pub(super) fn write_line(
        &mut self,
        scores: Option<ValidationScores>,
        progress: &Progress,
    ) -> Result<()> {
        let Some(update) = self.pending else {
            return Ok(());
        };
        self.folder.check()?;
        self.show_line(scores, progress);
        let (network, bicubic) = scores.map(|s| (s.network, s.bicubic)).unzip();
        let (seconds, iterations) = (self.meter.line_seconds(), self.meter.line_iterations());
        let ranks = self
            .share
            .as_mut()
            .and_then(|share| share.line(seconds, iterations));
        let line = LogLine {
            iteration: self.iteration,
            loss: self.line_loss(),
            grad_norm: update.grad_norm,
            lr: update.lr,
            it_per_s: self.meter.line_rate(),
            data_wait: self.meter.line_wait_share(),
            seconds: self.seconds_before + self.meter.seconds(),
            skipped: self.skipped(),
            anonymous: Some(self.meter.peak()).filter(|&p| p > 0),
            val_psnr: network.map(|s| s.psnr),
            val_ssim: network.map(|s| s.ssim),
            val_psnr_y: network.map(|s| s.psnr_y),
            val_ssim_y: network.map(|s| s.ssim_y),
            val_bicubic_psnr: bicubic.map(|s| s.psnr),
            val_bicubic_ssim: bicubic.map(|s| s.ssim),
            val_bicubic_psnr_y: bicubic.map(|s| s.psnr_y),
            val_bicubic_ssim_y: bicubic.map(|s| s.ssim_y),
            ranks,
        };
        let warning = match &mut self.log {
            Some(log) => log.append(line)?,
            None => None,
        };
        if let Some(warning) = warning {
            progress.warn(&format!("warning: {warning}"));
        }
        self.pending = None;
        self.meter.start_line();
        self.open_line = OpenLine::default();
        Ok(())
    }

    /// Shows the line that goes into the log, and the scores on a line of their own.
    fn show_line(&self, scores: Option<ValidationScores>, progress: &Progress) {
        let position = format!("iter {}/{}", self.iteration, self.config.total_iter);
        progress.field_line(&position, &self.fields());
        let Some(ValidationScores { network, bicubic }) = scores else {
            return;
        };
        let is_best = self
            .best
            .as_ref()
            .is_some_and(|best| best.iteration == self.iteration);
        let score = format!(
            "val PSNR-Y {:.3} dB ({} {:.3})",
            network.psnr_y,
            self.config.baseline(),
            bicubic.psnr_y
        );
        let mut fields = vec![
            field(score, 3),
            field(format!("SSIM-Y {:.4}", network.ssim_y), 1),
        ];
        if is_best {
            fields.push(field("best".to_string(), 2));
        }
        progress.field_line(&position, &fields);
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
            |text: String| progress.warn(&format!("warning: iteration {}: {text}", self.iteration));
        let outcome = validation.measure(backend, &ema, self.options, self.iteration, &mut warn);
        self.meter.add_peak(validation.peak);
        if let ValidationOutcome::Scores(ValidationScores { network: mean, .. }) = &outcome
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
