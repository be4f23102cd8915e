//! The log lines of a run, in the log and on the screen. Depends on the log, the meter and the
//! progress bar.

use super::iteration::Run;
use super::meter::duration_text;
use super::{LogLine, OpenLine};
use crate::inference::eval;
use crate::support::progress::Progress;
use crate::support::text::bytes_text;
use anyhow::Result;
use std::time::{Duration, Instant};

/// Shortest time between two plain lines where there is no terminal: the log may hold a line every
/// few milliseconds, which nobody could read.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// Seconds since the last log line.
    fn line_seconds(&self) -> f64 {
        self.meter.line_started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Mean loss since the last log line.
    fn line_loss(&self) -> f64 {
        self.open_line.loss / self.open_line.count as f64
    }

    /// The figures of the log line that is under way, for a progress bar or a plain line.
    pub fn live_text(&self) -> String {
        let lr = self.lr;
        let rate = self.meter.line_iterations as f64 / self.line_seconds();
        let pairs = rate * (self.config.batch_size * self.config.accum_iter) as f64;
        let wait = 100.0 * self.meter.line_wait / self.line_seconds();
        let memory = bytes_text(self.meter.peak);
        format!(
            "loss {:.5}  lr {lr:.2e}  {rate:.2} it/s  {pairs:.0} pairs/s  data-wait {wait:.1}%  mem {memory}",
            self.line_loss()
        )
    }

    /// Writes the log line that is due, if any, and shows a plain line where there is no terminal.
    ///
    /// # Errors
    /// When the log cannot be written, or the folder was taken away.
    pub fn write_line(&mut self, scores: Option<eval::Scores>, progress: &Progress) -> Result<()> {
        let Some(update) = self.pending else {
            return Ok(());
        };
        self.lock.check()?;
        let validated = scores
            .map(|s| format!("  val PSNR-Y {:.3} dB  SSIM-Y {:.4}", s.psnr_y, s.ssim_y))
            .unwrap_or_default();
        let last = self.iteration == self.config.total_iter;
        let plain_due = !progress.is_live()
            && (last
                || self
                    .meter
                    .last_plain
                    .is_none_or(|t| t.elapsed() >= PLAIN_INTERVAL));
        if plain_due || scores.is_some() {
            self.meter.last_plain = Some(Instant::now());
            let rate = self.meter.line_iterations as f64 / self.line_seconds();
            let left = (self.config.total_iter - self.iteration) as f64 / rate.max(1e-9);
            progress.line(&format!(
                "iter {}/{}  {}  ETA {}{validated}",
                self.iteration,
                self.config.total_iter,
                self.live_text(),
                duration_text(left)
            ));
        }
        let warning = self.log.append(LogLine {
            iteration: self.iteration,
            loss: self.line_loss(),
            grad_norm: update.grad_norm,
            lr: update.lr,
            it_per_s: self.meter.line_iterations as f64 / self.line_seconds(),
            data_wait: self.meter.line_wait / self.line_seconds(),
            seconds: self.seconds_before + self.meter.seconds(),
            skipped: self.skipped(),
            anonymous: Some(self.meter.peak).filter(|&p| p > 0),
            val_psnr: scores.map(|s| s.psnr),
            val_ssim: scores.map(|s| s.ssim),
            val_psnr_y: scores.map(|s| s.psnr_y),
            val_ssim_y: scores.map(|s| s.ssim_y),
        })?;
        if let Some(warning) = warning {
            progress.line(&format!("warning: {warning}"));
        }
        self.pending = None;
        (self.meter.line_started, self.meter.line_iterations) = (Instant::now(), 0);
        (self.open_line, self.meter.line_wait) = (OpenLine::default(), 0.0);
        Ok(())
    }
}
