//! How long work is shown: a bar on a terminal, plain lines every few seconds elsewhere. Library
//! code takes a [`Progress`] and never prints by itself. Depends on indicatif and `text`. Promises
//! that no string within a line controls the terminal.

use crate::support::text::{for_terminal, one_line};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two plain lines where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// One piece of long work with a known number of steps. Shared by reference between threads.
pub struct Progress {
    label: String,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    plain: bool,
    /// Plain lines come from the caller alone.
    silent: bool,
    started: Instant,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Shows `label` and `total` steps of `unit` (images, pairs, iterations) on stderr.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            let template = format!(
                "{{prefix:10}} [{{bar:32}}] {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}} < {{eta}}"
            );
            let style = ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(label.to_string());
            bar
        });
        // a terminal that cannot move its cursor (TERM=dumb) hides the bar: plain lines take its
        // place
        let bar = bar.filter(|bar| !bar.is_hidden());
        let now = Instant::now();
        Progress {
            label: label.to_string(),
            total,
            done: AtomicU64::new(0),
            plain: bar.is_none(),
            bar,
            silent: false,
            started: now,
            last_line: Mutex::new(now),
        }
    }

    /// As [`Progress::new`], but silent where there is no terminal, for work that prints better
    /// lines of its own.
    pub fn bar_only(label: &str, total: u64, unit: &str) -> Self {
        let mut progress = Self::new(label, total, unit);
        progress.silent = true;
        progress
    }

    /// Shows nothing: for tests and for callers with `--quiet`.
    pub fn hidden() -> Self {
        let now = Instant::now();
        Progress {
            label: String::new(),
            total: 0,
            done: AtomicU64::new(0),
            bar: None,
            plain: false,
            silent: false,
            started: now,
            last_line: Mutex::new(now),
        }
    }

    /// Whether a live bar is drawn (a terminal), as against plain lines.
    pub fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    /// Sets the text behind the bar.
    pub fn message(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(one_line(text.into()));
        }
    }

    /// `steps` more are done.
    pub fn advance(&self, steps: u64) {
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.plain && !self.silent {
            let Ok(mut last) = self.last_line.try_lock() else {
                return;
            };
            if last.elapsed() >= PLAIN_INTERVAL {
                *last = Instant::now();
                let share = 100.0 * done as f64 / self.total.max(1) as f64;
                let _ = writeln!(
                    std::io::stderr(),
                    "{}: {done}/{} ({share:.0}%), {:.0} s",
                    self.label,
                    self.total,
                    self.started.elapsed().as_secs_f64()
                );
            }
        }
    }

    /// Prints a line above the bar (or a plain line); lost only where progress is hidden.
    pub fn line(&self, text: &str) {
        let text = for_terminal(text);
        match &self.bar {
            Some(bar) => bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            }),
            None if self.plain => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            None => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
