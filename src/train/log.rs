//! The log of a run: one JSON object a line, appended as training goes, cut back on resume to the iteration the state was
//! taken at, so that the log is that of an unbroken run. Also the same figures for TensorBoard, and the loss curve.

use crate::report::chart::{Series, line_chart};
use crate::report::tensorboard::EventFile;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Iteration.
    pub iteration: u64,
    /// Mean weighted loss since the last line; not a number (null) where every update was skipped.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Gradient norm before clipping, of this iteration; null where it was not finite.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Learning rate of this iteration.
    pub lr: f64,
    /// Iterations a second since the last line.
    pub it_per_s: f64,
    /// Share of the time spent waiting for data since the last line, 0 to 1.
    pub data_wait: f64,
    /// Seconds of training so far, this process and those before.
    pub seconds: f64,
    /// Updates skipped so far because loss or gradient was not finite.
    pub skipped: u64,
    /// Peak anonymous memory of the process so far, bytes; absent where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<u64>,
    /// Validation PSNR over R, G and B, dB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_psnr: Option<f64>,
    /// Validation SSIM, mean over R, G and B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_ssim: Option<f64>,
    /// Validation PSNR on Y, dB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_psnr_y: Option<f64>,
    /// Validation SSIM on Y.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_ssim_y: Option<f64>,
}

/// JSON has no NaN and writes null; without this a resumed run would drop the line.
fn number_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The open log.
pub struct Log {
    path: PathBuf,
    file: File,
    lines: Vec<LogLine>,
    /// Begun with the first line: a run that has nothing to say leaves no file.
    events: Option<EventFile>,
    start: u64,
}

fn parse(path: &Path) -> Vec<LogLine> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    // a line cut by a crash is dropped; the state is what counts
    BufReader::new(file).lines().map_while(|l| l.ok()).filter_map(|l| serde_json::from_str(&l).ok()).collect()
}

/// The log of a run folder, line by line; empty where there is none.
pub fn read_log(run: &Path) -> Vec<LogLine> {
    parse(&run.join("log.jsonl"))
}

impl Log {
    /// Opens the log of a run that continues after `iteration`; later lines are cut off.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(run: &Path, iteration: u64) -> Result<Log> {
        let path = run.join("log.jsonl");
        let mut lines = parse(&path);
        lines.retain(|l| l.iteration <= iteration);
        crate::files::write_atomic(&path, |out| {
            for line in &lines {
                writeln!(out, "{}", serde_json::to_string(line)?)?;
            }
            Ok(())
        })?;
        let file = OpenOptions::new().append(true).open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Log { path, file, lines, events: None, start: iteration })
    }

    /// Seconds of training up to the last line.
    pub fn seconds(&self) -> f64 {
        self.lines.last().map_or(0.0, |l| l.seconds)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn append(&mut self, line: LogLine) -> Result<()> {
        writeln!(self.file, "{}", serde_json::to_string(&line)?).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.tell_tensorboard(&line)?;
        self.lines.push(line);
        Ok(())
    }

    fn tell_tensorboard(&mut self, line: &LogLine) -> Result<()> {
        if self.events.is_none() {
            let folder = self.path.with_file_name("tensorboard");
            self.events = Some(EventFile::create(&folder, self.start)?);
        }
        let Some(events) = &mut self.events else { return Ok(()) };
        let mut values = vec![
            ("train/loss", line.loss),
            ("train/grad_norm", line.grad_norm),
            ("train/lr", line.lr),
            ("speed/it_per_s", line.it_per_s),
            ("speed/data_wait", line.data_wait),
        ];
        values.extend(line.val_psnr.map(|v| ("val/psnr", v)));
        values.extend(line.val_ssim.map(|v| ("val/ssim", v)));
        values.extend(line.val_psnr_y.map(|v| ("val/psnr_y", v)));
        values.extend(line.val_ssim_y.map(|v| ("val/ssim_y", v)));
        events.scalars(line.iteration, &values)
    }

    /// All lines.
    pub fn lines(&self) -> &[LogLine] {
        &self.lines
    }

    /// Draws the loss curve, and the validation curve where there is one, beside the log.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn draw(&self, run: &Path) -> Result<()> {
        let series = |name: &str, value: &dyn Fn(&LogLine) -> Option<f64>| Series {
            name: name.to_string(),
            points: self.lines.iter().filter_map(|l| Some((l.iteration as f64, value(l)?))).filter(|p| p.1.is_finite()).collect(),
        };
        let loss = series("loss", &|l| Some(l.loss));
        if loss.points.len() > 1 {
            line_chart("Training loss", "iteration", "loss", &[loss], true, &run.join("loss.svg"))?;
        }
        let psnr = series("PSNR-Y", &|l| l.val_psnr_y);
        if psnr.points.len() > 1 {
            line_chart("Validation", "iteration", "PSNR-Y, dB", &[psnr], false, &run.join("validation.svg"))?;
        }
        Ok(())
    }
}
