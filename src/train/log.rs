//! The log of a run: one JSON object a line, appended as training goes, cut back on resume to the
//! iteration the state was taken at, so that the log is that of an unbroken run. Also the same
//! figures for TensorBoard, and the curves. Depends on `files` and `report`. Promises memory that
//! does not grow with the log: neither while it is written nor when it is read.

use crate::report::chart::{Series, line_chart};
use crate::report::tensorboard::EventFile;
use crate::support::failure::retry;
use crate::support::files;
use crate::sys;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

/// Name of the log within a run's folder.
const NAME: &str = "log.jsonl";
/// Most bytes of a line; ours take about 400. A longer one is no line of ours.
const MAX_LINE_BYTES: usize = 16 << 10;
/// Lines that a [`Thinned`] list keeps at least, where there are so many; it never keeps more than
/// twice as many.
const KEPT_LINES: usize = 2000;

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
pub(super) fn number_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// Calls `each` with every line of a log, in order. What is no line (cut by a crash, of another
/// program, too long) is left out: the state is what counts. A log that is not there has no lines.
fn for_each_line(path: &Path, mut each: impl FnMut(LogLine) -> Result<()>) -> Result<()> {
    let file = match retry(|| files::open_regular(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut input = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut length = 0;
        loop {
            let found = input
                .fill_buf()
                .with_context(|| format!("cannot read {}", path.display()))?;
            let end = found.iter().position(|&b| b == b'\n');
            let taken = &found[..end.unwrap_or(found.len())];
            length += taken.len();
            line.extend_from_slice(
                &taken[..taken.len().min(MAX_LINE_BYTES.saturating_sub(line.len()))],
            );
            let (used, last) = (
                taken.len() + usize::from(end.is_some()),
                end.is_some() || found.is_empty(),
            );
            let at_end = found.is_empty();
            input.consume(used);
            if at_end && length == 0 {
                return Ok(());
            }
            if last {
                break;
            }
        }
        if length <= MAX_LINE_BYTES
            && let Ok(line) = serde_json::from_slice(&line)
        {
            each(line)?;
        }
    }
}

/// A list of bounded length whose items stand for all that were added: every one, then every other
/// one, every fourth, and always the last.
struct Thinned {
    items: Vec<LogLine>,
    last: Option<LogLine>,
    every: u64,
    seen: u64,
}

impl Thinned {
    fn new() -> Thinned {
        Thinned {
            items: Vec::new(),
            last: None,
            every: 1,
            seen: 0,
        }
    }

    fn push(&mut self, item: LogLine) {
        // the one before stood for nothing but the end
        self.last = None;
        if self.seen.is_multiple_of(self.every) {
            self.items.push(item);
        } else {
            self.last = Some(item);
        }
        self.seen += 1;
        if self.items.len() == 2 * KEPT_LINES {
            self.last = self.items.last().cloned();
            let mut odd = true;
            self.items.retain(|_| {
                odd = !odd;
                !odd
            });
            self.every *= 2;
        }
    }

    fn into_items(mut self) -> Vec<LogLine> {
        self.items.extend(self.last);
        self.items
    }
}

/// What a log says, in memory that does not grow with it.
#[derive(Clone, Debug, Default)]
pub struct LogDigest {
    /// Lines there are.
    pub count: u64,
    /// The first line.
    pub first: Option<LogLine>,
    /// The last line.
    pub last: Option<LogLine>,
    /// The line with the highest PSNR-Y of a validation.
    pub best: Option<LogLine>,
    /// The highest SSIM on Y of a validation.
    pub best_ssim_y: Option<f64>,
    /// Iterations a second, mean over lines.
    pub it_per_s: f64,
    /// Share of the time spent waiting for data, mean over lines.
    pub data_wait: f64,
    /// The most anonymous memory, bytes.
    pub anonymous: Option<u64>,
    /// Lines for curves: all of them, or of a long log some thousands, evenly spread, with the
    /// first and the last.
    pub lines: Vec<LogLine>,
    /// The same of the lines with a validation.
    pub validated: Vec<LogLine>,
}

impl LogDigest {
    fn of(path: &Path) -> Result<LogDigest> {
        let mut digest = LogDigest::default();
        let (mut lines, mut validated) = (Thinned::new(), Thinned::new());
        for_each_line(path, |line| {
            digest.count += 1;
            digest.it_per_s += line.it_per_s;
            digest.data_wait += line.data_wait;
            digest.anonymous = digest.anonymous.max(line.anonymous);
            digest.first.get_or_insert_with(|| line.clone());
            digest.last = Some(line.clone());
            if let Some(psnr) = line.val_psnr_y {
                if digest
                    .best
                    .as_ref()
                    .and_then(|best| best.val_psnr_y)
                    .is_none_or(|best| psnr > best)
                {
                    digest.best = Some(line.clone());
                }
                validated.push(line.clone());
            }
            digest.best_ssim_y = line
                .val_ssim_y
                .into_iter()
                .chain(digest.best_ssim_y)
                .max_by(f64::total_cmp);
            lines.push(line);
            Ok(())
        })?;
        digest.it_per_s /= digest.count.max(1) as f64;
        digest.data_wait /= digest.count.max(1) as f64;
        (digest.lines, digest.validated) = (lines.into_items(), validated.into_items());
        Ok(digest)
    }
}

/// The log of a run folder; nothing where there is no log, and a digest of no lines where it is
/// empty.
///
/// # Errors
/// When the log is there and cannot be read, or is no regular file.
pub fn read_log(run: &Path) -> Result<Option<LogDigest>> {
    let path = run.join(NAME);
    if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        return Ok(None);
    }
    LogDigest::of(&path).map(Some)
}

/// The open log.
pub struct Log {
    path: PathBuf,
    file: File,
    last: Option<LogLine>,
    /// Begun with the first line: a run that has nothing to say leaves no file.
    events: Option<EventFile>,
    /// Whether TensorBoard's file could not be written: it is then left alone.
    events_failed: bool,
    start: u64,
}

impl Log {
    /// Opens the log of a run that continues after `iteration`; later lines are cut off.
    ///
    /// # Errors
    /// When the file cannot be read or written.
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

    /// Appends a line. Returns a warning where TensorBoard could not be told, which is no reason to
    /// stop (it is not tried again), and where the log was removed under way.
    ///
    /// # Errors
    /// When the line cannot be written: the disk is full.
    pub fn append(&mut self, line: LogLine) -> Result<Option<String>> {
        if sys::is_removed(&self.file) {
            // somebody removed it under way: the lines to come need a file that can be found
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
        let told = if self.events_failed {
            Ok(())
        } else {
            self.tell_tensorboard(&line)
        };
        self.last = Some(line);
        Ok(told.err().map(|error| {
            self.events_failed = true;
            format!("{error:#}; no more is told to TensorBoard by this process, and {NAME} goes on")
        }))
    }

    /// Brings the lines written so far to the disk.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("cannot bring {} to the disk", self.path.display()))
    }

    fn tell_tensorboard(&mut self, line: &LogLine) -> Result<()> {
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
        events.scalars(line.iteration, &values)
    }

    /// Draws the loss curve, and the validation curve where there is one, beside the log.
    ///
    /// # Errors
    /// When a file cannot be written.
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
        let [loss_path, validation_path] = curves(run);
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
            line_chart(
                "Validation",
                "iteration",
                "PSNR-Y, dB",
                &[psnr],
                false,
                &validation_path,
            )?;
        }
        Ok(())
    }
}

/// The curves that a run draws at its end: loss and validation.
pub fn curves(run: &Path) -> [PathBuf; 2] {
    ["loss.svg", "validation.svg"].map(|name| run.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_kept_of_a_long_log_is_bounded_and_has_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        for count in [
            0,
            1,
            7,
            2 * KEPT_LINES - 1,
            2 * KEPT_LINES,
            2 * KEPT_LINES + 1,
            50_000,
        ] {
            let text: String = (1..=count as u64)
                .map(|i| serde_json::to_string(&line(i)).unwrap() + "\n")
                .collect();
            std::fs::write(dir.path().join(NAME), text).unwrap();
            let digest = read_log(dir.path()).unwrap().unwrap();
            assert_eq!(digest.count, count as u64);
            let ends = |lines: &[LogLine]| {
                (
                    lines.first().map(|l| l.iteration),
                    lines.last().map(|l| l.iteration),
                )
            };
            let iteration = |l: &Option<LogLine>| l.as_ref().map(|l| l.iteration);
            assert_eq!(
                ends(&digest.lines),
                (iteration(&digest.first), iteration(&digest.last))
            );
            assert!(
                digest.lines.len() <= 2 * KEPT_LINES && digest.lines.len() >= count.min(KEPT_LINES),
                "{count}"
            );
            assert!(digest.lines.is_sorted_by(|a, b| a.iteration < b.iteration));
            assert_eq!(
                digest.validated.len(),
                (count / 10).min(if count == 50_000 { 2501 } else { count }),
                "{count}"
            );
        }
    }

    #[test]
    fn what_is_no_line_is_left_out_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let one = serde_json::to_string(&line(1)).unwrap();
        let two = serde_json::to_string(&line(2)).unwrap();
        let mut bytes = one.clone().into_bytes();
        bytes.push(b'\n');
        bytes.extend([0xFF, 0xFE, b'\n', b'{', b'\n', b'\n']);
        bytes.resize(bytes.len() + 5_000_000, b'x');
        bytes.push(b'\n');
        // a line of ours with a long tail of spaces is JSON, and yet none of ours
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
        std::fs::remove_file(&path).unwrap();
        assert!(read_log(dir.path()).unwrap().is_none());
    }

    #[test]
    #[cfg(unix)]
    fn a_device_or_fifo_in_the_logs_place_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        sys::symlink_file(Path::new("/dev/zero"), &path).unwrap();
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
