//! The clocks of a run and what it counts beside them. Depends on the standard library alone. It
//! promises that validations do not count as training time.

use std::time::{Duration, Instant};

/// Times and counts of this process, for the log and the summary.
pub(super) struct Meter {
    /// When training began, moved forward by the time of each validation.
    pub started: Instant,
    /// When training began; validations count, because the loader's threads wait during them too.
    pub begun: Instant,
    /// When the last log line was written, moved forward like `started`.
    pub line_started: Instant,
    /// Iterations since the last log line.
    pub line_iterations: u64,
    /// Seconds waited for data since the last log line.
    pub line_wait: f64,
    /// Seconds waited for data in this process.
    pub waited: f64,
    /// Largest anonymous memory seen, bytes.
    pub peak: u64,
    /// When a plain line was shown last.
    pub last_plain: Option<Instant>,
}

impl Meter {
    /// Starts all clocks.
    pub fn new() -> Meter {
        let now = Instant::now();
        Meter {
            started: now,
            begun: now,
            line_started: now,
            line_iterations: 0,
            line_wait: 0.0,
            waited: 0.0,
            peak: 0,
            last_plain: None,
        }
    }

    /// Seconds of training in this process, without validations.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Takes a span out of the training time, such as a validation.
    pub fn leave_out(&mut self, spent: Duration) {
        self.line_started += spent;
        self.started += spent;
    }
}

/// Seconds as `1:02:03` or `4:05`.
pub fn duration_text(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e8) as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}
