//! Shows the progress of long work: a bar on a terminal, plain lines every few seconds elsewhere.
//! Library code takes a [`Progress`] and never prints by itself. Depends on `text`, and with the
//! feature `cli` on indicatif; without that feature every progress is plain lines. No string in a
//! line can control the terminal.

use crate::support::text::{for_terminal, one_line};
use bar::Bar;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Least time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one piece of work with a known number of steps. Threads share it by reference.
pub struct Progress {
    label: String,
    total: u64,
    done: AtomicU64,
    bar: Option<Bar>,
    /// Print plain lines, because there is no bar.
    plain: bool,
    /// Print no plain lines except those that the caller passes to [`Progress::line`].
    silent: bool,
    started: Instant,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Shows `label` and `total` steps of `unit` (images, pairs, iterations) on stderr.
    ///
    /// A terminal that cannot move its cursor (TERM=dumb) gets plain lines.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let bar = Bar::new(label, total, unit);
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

    /// Like [`Progress::new`], but prints no plain lines: for work that prints better lines itself.
    pub fn bar_only(label: &str, total: u64, unit: &str) -> Self {
        let mut progress = Self::new(label, total, unit);
        progress.silent = true;
        progress
    }

    /// Shows nothing: for tests, and for commands that run with `--quiet`.
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

    /// Whether a live bar is drawn, rather than plain lines.
    pub fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    /// Sets the text to the right of the bar.
    pub fn message(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.message(one_line(text.into()));
        }
    }

    /// Adds `steps` to the steps that are done.
    pub fn advance(&self, steps: u64) {
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        if let Some(bar) = &self.bar {
            bar.position(done);
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

    /// Prints a line above the bar, or a plain line. A hidden progress prints nothing.
    pub fn line(&self, text: &str) {
        let text = for_terminal(text);
        match &self.bar {
            Some(bar) => bar.line(&text),
            None if self.plain => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            None => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.clear();
        }
    }
}

/// The bar on a terminal.
#[cfg(feature = "cli")]
mod bar {
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
    use std::io::{IsTerminal, Write};

    pub struct Bar(ProgressBar);

    impl Bar {
        /// `None` where stderr is no terminal, or one that cannot show a bar.
        pub fn new(label: &str, total: u64, unit: &str) -> Option<Bar> {
            if !std::io::stderr().is_terminal() {
                return None;
            }
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            let template = format!(
                "{{prefix:10}} [{{bar:32}}] {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}} < {{eta}}"
            );
            let style = ProgressStyle::with_template(&template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(label.to_string());
            (!bar.is_hidden()).then_some(Bar(bar))
        }

        pub fn message(&self, text: String) {
            self.0.set_message(text);
        }

        pub fn position(&self, done: u64) {
            self.0.set_position(done);
        }

        pub fn line(&self, text: &str) {
            self.0.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            });
        }

        pub fn clear(&self) {
            self.0.finish_and_clear();
        }
    }
}

/// Without indicatif there is no bar.
#[cfg(not(feature = "cli"))]
mod bar {
    pub enum Bar {}

    impl Bar {
        pub fn new(_label: &str, _total: u64, _unit: &str) -> Option<Bar> {
            None
        }

        pub fn message(&self, _text: String) {
            match *self {}
        }

        pub fn position(&self, _done: u64) {
            match *self {}
        }

        pub fn line(&self, _text: &str) {
            match *self {}
        }

        pub fn clear(&self) {
            match *self {}
        }
    }
}
