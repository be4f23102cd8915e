//! Speed, waiting and memory of this process: the numbers of a run that are neither configuration
//! nor state. Depends on the clock and the system alone. Promises that time spent in validation is
//! not counted as training.

use crate::sys;
use std::time::{Duration, Instant};

/// Shortest time that a rate is computed over, seconds, so that nothing is divided by 0.
const SHORTEST: f64 = 1e-9;

/// The clocks and counters of one process.
pub(super) struct Meter {
    /// Start of training, moved forward by the time of validations.
    started: Instant,
    /// Start of training; the loader's threads also wait during validations.
    begun: Instant,
    /// End of the last log line, moved forward by the time of validations.
    line_started: Instant,
    /// Iterations since the last log line.
    line_iterations: u64,
    /// Seconds spent waiting for data since the last log line.
    line_waited: f64,
    /// Seconds spent waiting for data.
    waited: f64,
    /// Peak anonymous memory seen, bytes; 0 if the system does not report it.
    peak: u64,
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
            line_waited: 0.0,
            waited: 0.0,
            peak: 0,
        }
    }

    /// Seconds of training in this process.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64().max(SHORTEST)
    }

    /// Seconds since training began, validations included.
    pub fn seconds_with_validation(&self) -> f64 {
        self.begun.elapsed().as_secs_f64().max(SHORTEST)
    }

    fn line_seconds(&self) -> f64 {
        self.line_started.elapsed().as_secs_f64().max(SHORTEST)
    }

    /// Counts an iteration.
    pub fn count_iteration(&mut self) {
        self.line_iterations += 1;
    }

    /// Iterations since the last log line.
    pub fn line_iterations(&self) -> u64 {
        self.line_iterations
    }

    /// Iterations per second since the last log line.
    pub fn line_rate(&self) -> f64 {
        self.line_iterations as f64 / self.line_seconds()
    }

    /// Adds time spent waiting for data.
    pub fn add_wait(&mut self, waited: Duration) {
        self.waited += waited.as_secs_f64();
        self.line_waited += waited.as_secs_f64();
    }

    /// Share of the time since the last log line that was spent waiting for data.
    pub fn line_wait_share(&self) -> f64 {
        self.line_waited / self.line_seconds()
    }

    /// Share of the training time of this process that was spent waiting for data.
    pub fn wait_share(&self) -> f64 {
        self.waited / self.seconds()
    }

    /// Starts a new log line.
    pub fn start_line(&mut self) {
        self.line_started = Instant::now();
        (self.line_iterations, self.line_waited) = (0, 0.0);
    }

    /// Leaves the time of a validation out of the training time.
    pub fn leave_out(&mut self, validation: Duration) {
        self.line_started += validation;
        self.started += validation;
    }

    /// Measures the memory of the process now.
    pub fn measure_memory(&mut self) {
        self.add_peak(sys::anonymous_memory().unwrap_or(0));
    }

    /// Adds a peak of anonymous memory that was measured elsewhere, bytes.
    pub fn add_peak(&mut self, bytes: u64) {
        self.peak = self.peak.max(bytes);
    }

    /// Peak anonymous memory seen, bytes; 0 if the system does not report it.
    pub fn peak(&self) -> u64 {
        self.peak
    }
}
