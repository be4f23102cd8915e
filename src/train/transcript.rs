//! The text of everything that a run prints, kept in its folder for later: a terminal forgets, and
//! progress goes to stderr, which few people redirect. Depends on `files` and `text`. Promises that
//! nothing is written before the folder belongs to the run, and that a file that cannot be written
//! never stops a training.

use super::folder::transcript_path;
use crate::support::files;
use crate::support::text::plain;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// The lines of one process, kept in memory until the file is opened.
#[derive(Default)]
pub struct Transcript {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting: String,
    file: Option<File>,
    failed: bool,
}

impl Transcript {
    /// A transcript whose first line is the command, with the time.
    pub fn new(command: &str) -> Transcript {
        let transcript = Transcript::default();
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        transcript.line(&format!(
            "=== {}, paragon {}: {command}",
            date_text(seconds),
            env!("CARGO_PKG_VERSION")
        ));
        transcript
    }

    /// Adds a line, which may have several rows.
    pub fn line(&self, text: &str) {
        let Ok(mut inner) = self.inner.lock() else {
            return;
        };
        if inner.failed {
            return;
        }
        inner.waiting += &plain(text);
        inner.waiting.push('\n');
        // An error later on, as of a full disk, is reported by the checkpoints, which matter.
        let _ = inner.flush();
    }

    /// Opens the file in the folder of a run, which begins or continues now, and writes the lines
    /// so far. Later lines are written at once.
    ///
    /// # Errors
    /// The file cannot be opened or written; later lines are then dropped.
    pub fn open(&self, run: &Path) -> io::Result<()> {
        let Ok(mut inner) = self.inner.lock() else {
            return Ok(());
        };
        let opened = files::open_own(&transcript_path(run)).and_then(|mut file| {
            file.seek(SeekFrom::End(0))?;
            inner.file = Some(file);
            inner.flush()
        });
        if opened.is_err() {
            inner.failed = true;
            inner.waiting = String::new();
        }
        opened
    }
}

impl Inner {
    fn flush(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let text = std::mem::take(&mut self.waiting);
        file.write_all(text.as_bytes())
    }
}

/// Seconds since 1970 as `2026-11-29 13:05:12 UTC`. The date is computed from the number of days in
/// the Gregorian calendar, whose years are counted from March here, so that the leap day is last.
fn date_text(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(date_text(seconds), text);
        }
    }

    #[test]
    fn lines_wait_for_the_folder_and_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.log");
        for name in ["first", "second"] {
            let transcript = Transcript::new(name);
            transcript.line("before");
            assert_eq!(path.exists(), name == "second");
            transcript.open(dir.path()).unwrap();
            transcript.line("after\x1b[31m");
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("===")).collect();
        assert_eq!(
            kept,
            ["before", "after\\u{1b}[31m", "before", "after\\u{1b}[31m"]
        );
        assert_eq!(text.matches(": second").count(), 1);
        // A folder that is gone is an error once, and later lines do no harm.
        let lost = Transcript::new("x");
        assert!(lost.open(&dir.path().join("none")).is_err());
        lost.line("dropped");
    }
}
