//! A summary of a run's log, for the report and the curves. Depends on `log_line`. Promises memory
//! that does not grow with the log.

use super::LogLine;
use super::log_line::{NAME, for_each_line};
use anyhow::Result;
use std::io;
use std::path::Path;

/// A [`Thinned`] list keeps at least this many lines, if there are so many, and at most twice as
/// many.
const KEPT_LINES: usize = 2000;

/// A list of bounded length that represents all lines that were added: at first it keeps every
/// line, then every second, then every fourth, and always the last one.
struct Thinned {
    items: Vec<LogLine>,
    /// The last line, if it is not in `items`.
    last: Option<LogLine>,
    /// One of so many lines is kept.
    every: u64,
    /// Lines added.
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

/// The summary of a log.
#[derive(Clone, Debug, Default)]
pub struct LogDigest {
    /// Number of lines.
    pub count: u64,
    /// The first line.
    pub first: Option<LogLine>,
    /// The last line.
    pub last: Option<LogLine>,
    /// The line with the highest validation PSNR on Y.
    pub best: Option<LogLine>,
    /// The highest validation SSIM on Y.
    pub best_ssim_y: Option<f64>,
    /// Iterations per second, mean over lines.
    pub it_per_s: f64,
    /// Share of the time spent waiting for data, mean over lines.
    pub data_wait: f64,
    /// Peak anonymous memory, bytes.
    pub anonymous: Option<u64>,
    /// Lines for curves: all of them, or a few thousand of a long log, evenly spread, with the
    /// first and the last.
    pub lines: Vec<LogLine>,
    /// The same for lines with a validation.
    pub validated: Vec<LogLine>,
}

impl LogDigest {
    /// Reads a log.
    pub(super) fn of(path: &Path) -> Result<LogDigest> {
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

/// The summary of a run's log; `None` if there is no log.
///
/// # Errors
/// The log exists and cannot be read, or is no regular file.
pub fn read_log(run: &Path) -> Result<Option<LogDigest>> {
    let path = run.join(NAME);
    if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        return Ok(None);
    }
    LogDigest::of(&path).map(Some)
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
    fn the_digest_of_a_long_log_is_bounded_and_has_both_ends() {
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
}
