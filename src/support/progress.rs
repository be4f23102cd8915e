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

/// One figure beside a bar or in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The figure with its name and unit.
    pub text: String,
    /// Where there is no room for all fields, those with the smallest number go first.
    pub importance: u8,
}

/// The fields, two spaces apart, of which the least important are left out until the text has at
/// most `room` characters.
fn fit(fields: &[Field], room: usize) -> String {
    let mut kept: Vec<&Field> = fields.iter().collect();
    loop {
        let texts: Vec<&str> = kept.iter().map(|field| field.text.as_str()).collect();
        let text = texts.join("  ");
        if text.chars().count() <= room {
            return text;
        }
        let least = kept.iter().map(|field| field.importance).min();
        kept.retain(|field| Some(field.importance) != least);
    }
}

/// Receives a copy of every line.
type Copy = Box<dyn Fn(&str) + Send + Sync>;

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
    /// Show warnings although nothing else is shown.
    only_warnings: bool,
    copy: Option<Copy>,
    started: Instant,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Shows `label` and `total` steps of `unit` (images, pairs, iterations) on stderr.
    ///
    /// A terminal that cannot move its cursor (TERM=dumb) gets plain lines.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        Self::with_bar(label, total, Bar::new(label, total, unit, true))
    }

    fn with_bar(label: &str, total: u64, bar: Option<Bar>) -> Self {
        let now = Instant::now();
        Progress {
            label: label.to_string(),
            total,
            done: AtomicU64::new(0),
            plain: bar.is_none(),
            bar,
            silent: false,
            only_warnings: false,
            copy: None,
            started: now,
            last_line: Mutex::new(now),
        }
    }

    /// Like [`Progress::new`], but prints no plain lines and no time: for work that prints better
    /// lines and times itself.
    pub fn bar_only(label: &str, total: u64, unit: &str) -> Self {
        let mut progress = Self::with_bar(label, total, Bar::new(label, total, unit, false));
        progress.silent = true;
        progress
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        let now = Instant::now();
        Progress {
            label: String::new(),
            total: 0,
            done: AtomicU64::new(0),
            bar: None,
            plain: false,
            silent: false,
            only_warnings: false,
            copy: None,
            started: now,
            last_line: Mutex::new(now),
        }
    }

    /// Shows warnings only: for commands that run with `--quiet`.
    pub fn warnings_only() -> Self {
        Progress {
            only_warnings: true,
            ..Self::hidden()
        }
    }

    /// Gives every line, also one that is not shown, to `copy`.
    #[must_use]
    pub fn copied_to(mut self, copy: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.copy = Some(Box::new(copy));
        self
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

    /// Sets the figures to the right of the bar; those that have no room are left out.
    pub fn fields(&self, fields: &[Field]) {
        if let Some(bar) = &self.bar {
            bar.message(one_line(fit(fields, bar.room())));
        }
    }

    /// Prints figures as a line that begins with `position`. On a terminal those that have no room
    /// are left out.
    pub fn field_line(&self, position: &str, fields: &[Field]) {
        let line = |room| format!("{position}  {}", fit(fields, room));
        self.show(&line(self.bar.as_ref().map_or(usize::MAX, |bar| {
            bar.columns().saturating_sub(position.chars().count() + 3)
        })));
        if let Some(copy) = &self.copy {
            copy(&line(usize::MAX));
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
        self.show(text);
        if let Some(copy) = &self.copy {
            copy(text);
        }
    }

    /// Prints a line like [`Progress::line`], also where only warnings are shown.
    pub fn warn(&self, text: &str) {
        if self.only_warnings {
            let _ = writeln!(std::io::stderr(), "{}", for_terminal(text));
        }
        self.line(text);
    }

    fn show(&self, text: &str) {
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
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
    use std::io::{IsTerminal, Write};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    pub struct Bar {
        bar: ProgressBar,
        /// Characters of everything but the message and the bar itself.
        around: usize,
        unit: String,
        with_time: bool,
        /// Columns of the terminal that the style was made for.
        columns: AtomicUsize,
    }

    /// Columns of the terminal that stderr writes to.
    fn columns_now() -> usize {
        let (_, columns) = console::Term::stderr().size_checked().unwrap_or((24, 80));
        usize::from(columns)
    }

    /// Columns of the bar itself on a terminal with this many.
    fn bar_columns(columns: usize) -> usize {
        (columns / 6).clamp(6, 32)
    }

    /// `0:10, 0:21 left`
    fn time_text(elapsed: Duration, left: Duration) -> String {
        let text = |time: Duration| {
            let s = time.as_secs();
            if s >= 3600 {
                format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
            } else {
                format!("{}:{:02}", s / 60, s % 60)
            }
        };
        format!("{}, {} left", text(elapsed), text(left))
    }

    fn style(columns: usize, unit: &str, with_time: bool) -> ProgressStyle {
        let time = if with_time { "  {time}" } else { "" };
        let template = format!(
            "{{prefix}} [{{bar:{}}}] {{pos}}/{{len}} {unit}  {{msg}}{time}",
            bar_columns(columns)
        );
        ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key(
                "time",
                |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                    let _ = out.write_str(&time_text(state.elapsed(), state.eta()));
                },
            )
            .progress_chars("=> ")
    }

    impl Bar {
        /// `None` where stderr is no terminal, or one that cannot show a bar. `with_time`: whether
        /// the bar shows the time; otherwise the message has it.
        pub fn new(label: &str, total: u64, unit: &str, with_time: bool) -> Option<Bar> {
            if !std::io::stderr().is_terminal() {
                return None;
            }
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            let columns = columns_now();
            bar.set_style(style(columns, unit, with_time));
            bar.set_prefix(label.to_string());
            // `LABEL [BAR] POS/LEN UNIT  MESSAGE`
            let digits = total.to_string().len();
            let around = label.chars().count() + 2 * digits + unit.chars().count() + 8;
            let columns = AtomicUsize::new(columns);
            (!bar.is_hidden()).then_some(Bar {
                bar,
                around,
                unit: unit.to_string(),
                with_time,
                columns,
            })
        }

        /// Columns of the terminal now; the bar is adapted if they have changed.
        pub fn columns(&self) -> usize {
            let now = columns_now();
            if self.columns.swap(now, Ordering::Relaxed) != now {
                self.bar.set_style(style(now, &self.unit, self.with_time));
            }
            now
        }

        /// Characters that a message can have so that the bar stays on one line.
        pub fn room(&self) -> usize {
            let columns = self.columns();
            columns.saturating_sub(self.around + bar_columns(columns) + 1)
        }

        pub fn message(&self, text: String) {
            // Room for `  1:00:00, 1:00:00 left`, so that a long name does not wrap the bar.
            let time = if self.with_time { 23 } else { 0 };
            let room = self.room().saturating_sub(time);
            self.bar
                .set_message(text.chars().take(room).collect::<String>());
        }

        pub fn position(&self, done: u64) {
            self.bar.set_position(done);
        }

        pub fn line(&self, text: &str) {
            self.bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            });
        }

        pub fn clear(&self) {
            self.bar.finish_and_clear();
        }
    }
}

/// Without indicatif there is no bar.
#[cfg(not(feature = "cli"))]
mod bar {
    pub enum Bar {}

    impl Bar {
        pub fn new(_label: &str, _total: u64, _unit: &str, _with_time: bool) -> Option<Bar> {
            None
        }

        pub fn columns(&self) -> usize {
            match *self {}
        }

        pub fn room(&self) -> usize {
            match *self {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn fields() -> Vec<Field> {
        [
            ("loss 0.04450", 7),
            ("lr 2.00e-4", 3),
            ("9.52 it/s", 5),
            ("152 pairs/s", 1),
            ("mem 137.4 MiB", 2),
        ]
        .map(|(text, importance)| Field {
            text: text.to_string(),
            importance,
        })
        .to_vec()
    }

    #[test]
    fn fields_that_have_no_room_go_the_least_important_first() {
        let shown = |room| fit(&fields(), room);
        assert_eq!(
            shown(usize::MAX),
            "loss 0.04450  lr 2.00e-4  9.52 it/s  152 pairs/s  mem 137.4 MiB"
        );
        assert_eq!(
            shown(60),
            "loss 0.04450  lr 2.00e-4  9.52 it/s  mem 137.4 MiB"
        );
        assert_eq!(shown(40), "loss 0.04450  lr 2.00e-4  9.52 it/s");
        assert_eq!(shown(30), "loss 0.04450  9.52 it/s");
        assert_eq!(shown(12), "loss 0.04450");
        assert_eq!(shown(5), "");
    }

    #[test]
    fn a_copy_has_every_line_whole() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        let progress =
            Progress::hidden().copied_to(move |text| kept.lock().unwrap().push(text.to_string()));
        progress.line("one");
        progress.field_line("iter 1/2", &fields());
        progress.warn("two");
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("iter 1/2  loss") && lines[1].ends_with("137.4 MiB"));
    }
}
