//! The log of a run: lines are appended during training, and cut back on resume to the iteration of
//! the state, so that the log is that of an unbroken run. Writes the same figures for TensorBoard,
//! and the curves. Depends on `log_line`, `log_digest` and `report`. Promises memory that does not
//! grow with the log.

use super::LogLine;
#[cfg(feature = "report")]
use super::folder::curve_paths;
#[cfg(feature = "report")]
use super::log_digest::LogDigest;
use super::log_line::{NAME, for_each_line};
#[cfg(feature = "report")]
use crate::report::chart::{Series, line_chart};
use crate::report::tensorboard::EventFile;
use crate::support::files;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

/// The log of a run, open for writing.
pub struct Log {
    path: PathBuf,
    file: File,
    last: Option<LogLine>,
    /// TensorBoard's file; created with the first line, so that a run without lines leaves no file.
    events: Option<EventFile>,
    /// True after TensorBoard's file could not be written; it is not written again.
    events_failed: bool,
    /// Iteration that this process continues from.
    start: u64,
}

impl Log {
    /// Opens the log of a run that continues after `iteration`, and removes later lines.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(run: &Path, iteration: u64) -> Result<Log> {
        let path = run.join(NAME);
        let mut last = None;
        files::write_atomic(&path, |out| {
            for_each_line(&path, |line| {
                if line.iteration <= iteration {
                    writeln!(out, "{}", serde_json::to_string(&line)?)?;
                    last = Some(line);
                }
                Ok(())
            })
        })?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Log {
            path,
            file,
            last,
            events: None,
            events_failed: false,
            start: iteration,
        })
    }

    /// The last line.
    pub fn last(&self) -> Option<&LogLine> {
        self.last.as_ref()
    }

    /// Seconds of training up to the last line.
    pub fn seconds(&self) -> f64 {
        self.last.as_ref().map_or(0.0, |l| l.seconds)
    }

    /// Appends a line. Returns a warning if TensorBoard's file could not be written, which is no
    /// reason to stop (it is not tried again), or if the log was removed during the run.
    ///
    /// # Errors
    /// The line cannot be written, as when the disk is full.
    pub fn append(&mut self, line: LogLine) -> Result<Option<String>> {
        if crate::sys::is_removed(&self.file) {
            // Somebody removed the file: a new one is created, so that later lines can be found.
            let file = files::open_own(&self.path)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
            (self.file, self.last) = (file, None);
            self.file.seek(io::SeekFrom::End(0))?;
            let lost = format!(
                "{} was removed while the run went on; it begins again with iteration {}",
                self.path.display(),
                line.iteration
            );
            let more = self
                .append(line)?
                .map_or_else(String::new, |warning| format!("; {warning}"));
            return Ok(Some(lost + &more));
        }
        let text = serde_json::to_string(&line)? + "\n";
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        let written = if self.events_failed {
            Ok(())
        } else {
            self.write_events(&line)
        };
        self.last = Some(line);
        Ok(written.err().map(|error| {
            self.events_failed = true;
            format!(
                "{error:#}; this process writes no more figures for TensorBoard, and {NAME} goes on"
            )
        }))
    }

    /// Flushes the lines written so far to the disk.
    ///
    /// # Errors
    /// The system cannot write them.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("cannot flush {} to the disk", self.path.display()))
    }

    /// Appends the figures of a line to TensorBoard's file.
    fn write_events(&mut self, line: &LogLine) -> Result<()> {
        if self.events.is_none() {
            let folder = self.path.with_file_name("tensorboard");
            self.events = Some(EventFile::create(&folder, self.start)?);
        }
        let Some(events) = &mut self.events else {
            return Ok(());
        };
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
        values.extend(line.val_bicubic_psnr_y.map(|v| ("val/bicubic_psnr_y", v)));
        values.extend(line.val_bicubic_ssim_y.map(|v| ("val/bicubic_ssim_y", v)));
        events.scalars(line.iteration, &values)
    }

    /// Without the feature `report` no curves are drawn.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "report"))]
    pub fn draw(&self, _run: &Path) -> Result<()> {
        Ok(())
    }

    /// Draws the loss curve, and the validation curve if there were validations, into the run's
    /// folder.
    ///
    /// # Errors
    /// The log cannot be read, or a file cannot be written.
    #[cfg(feature = "report")]
    pub fn draw(&self, run: &Path) -> Result<()> {
        let digest = LogDigest::of(&self.path)?;
        let series =
            |name: &str, lines: &[LogLine], value: &dyn Fn(&LogLine) -> Option<f64>| Series {
                name: name.to_string(),
                points: lines
                    .iter()
                    .filter_map(|l| Some((l.iteration as f64, value(l)?)))
                    .filter(|p| p.1.is_finite())
                    .collect(),
            };
        let [loss_path, validation_path] = curve_paths(run);
        let loss = series("loss", &digest.lines, &|l| Some(l.loss));
        if loss.points.len() > 1 {
            line_chart(
                "Training loss",
                "iteration",
                "loss",
                &[loss],
                true,
                &loss_path,
            )?;
        }
        let psnr = series("PSNR-Y", &digest.validated, &|l| l.val_psnr_y);
        if psnr.points.len() > 1 {
            let bicubic = series("bicubic", &digest.validated, &|l| l.val_bicubic_psnr_y);
            let lines = [psnr, bicubic];
            let shown = if lines[1].points.is_empty() { 1 } else { 2 };
            line_chart(
                "Validation",
                "iteration",
                "PSNR-Y, dB",
                &lines[..shown],
                false,
                &validation_path,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::log_line::MAX_LINE_BYTES;
    use crate::train::read_log;

    fn line(iteration: u64) -> LogLine {
        LogLine {
            iteration,
            loss: 1.0,
            lr: 1e-3,
            val_psnr_y: iteration.is_multiple_of(10).then_some(20.0),
            ..LogLine::default()
        }
    }

    #[test]
    fn what_is_no_line_is_skipped_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let one = serde_json::to_string(&line(1)).unwrap();
        let two = serde_json::to_string(&line(2)).unwrap();
        let mut bytes = one.clone().into_bytes();
        bytes.push(b'\n');
        bytes.extend([0xFF, 0xFE, b'\n', b'{', b'\n', b'\n']);
        bytes.resize(bytes.len() + 5_000_000, b'x');
        bytes.push(b'\n');
        // A valid line with a long tail of spaces is JSON, but too long to be a line of a run.
        bytes.extend(format!("{one}{}\n", " ".repeat(MAX_LINE_BYTES)).bytes());
        bytes.extend(two.bytes());
        bytes.extend(b"\n{\"iteration\":3,\"lo");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(
            read_log(dir.path()).unwrap().unwrap().lines,
            [line(1), line(2)]
        );
        let log = Log::open(dir.path(), 1).unwrap();
        assert_eq!(log.last(), Some(&line(1)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), one + "\n");
        drop(log); // Windows may keep the name of an open file
    }

    #[test]
    #[cfg(unix)]
    fn a_device_or_fifo_in_the_place_of_the_log_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert!(read_log(dir.path()).unwrap().is_none());
        crate::sys::symlink_file(Path::new("/dev/zero"), &path).unwrap();
        for _ in 0..2 {
            let error = format!("{:#}", read_log(dir.path()).unwrap_err());
            assert!(
                error.contains(NAME) && error.contains("no regular file"),
                "{error}"
            );
            assert!(Log::open(dir.path(), 1).is_err());
            std::fs::remove_file(&path).unwrap();
            assert!(
                std::process::Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            );
        }
    }
}
