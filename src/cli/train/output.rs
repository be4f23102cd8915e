//! What `train` prints while it runs: more with -v, less with -q, and all of it into the run's
//! folder.

use crate::cli::flags;
use paragon::support::progress::Progress;
use paragon::train::{Level, Transcript};
use std::path::Path;
use std::sync::Arc;

/// Prints what the user wants to see, and keeps everything for the run's folder.
pub(super) struct Output {
    verbose: bool,
    quiet: bool,
    transcript: Arc<Transcript>,
}

impl Output {
    pub fn new(verbose: bool, quiet: bool) -> Output {
        let transcript = Arc::new(Transcript::new(&crate::cli::words().join(" ")));
        let kept = transcript.clone();
        flags::copy_lines_to(move |text| kept.line(text));
        Output {
            verbose,
            quiet,
            transcript,
        }
    }

    /// Shows a line on stderr, or keeps it only.
    pub fn report(&self, level: Level, text: &str) {
        let shown = match level {
            Level::Detail => self.verbose,
            Level::Info => !self.quiet,
            Level::Warning => true,
        };
        if shown && !flags::is_silent() {
            flags::tell(text);
        } else {
            self.transcript.line(text);
        }
    }

    pub fn info(&self, text: impl std::fmt::Display) {
        self.report(Level::Info, &text.to_string());
    }

    /// The display of the iterations; from now on the folder belongs to the run.
    pub fn progress(&self, total: u64, out: &Path) -> Progress {
        if flags::is_silent() {
            return Progress::hidden();
        }
        if let Err(error) = self.transcript.open(out) {
            let file = out.join("train.log");
            let text = format!("warning: cannot write {}: {error}", file.display());
            self.report(Level::Warning, &text);
        }
        let progress = if self.quiet {
            Progress::warnings_only()
        } else {
            Progress::bar_only("train", total, "it")
        };
        let transcript = self.transcript.clone();
        progress.copied_to(move |text| transcript.line(text))
    }
}
