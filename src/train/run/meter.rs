//! Speed, waiting and memory of this process: the numbers of a run that are neither configuration
//! nor state. Depends on the clock and the system alone. Promises that time spent in validation is
//! not counted as training.

use crate::sys;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Shortest time that a rate is computed over, seconds, so that nothing is divided by 0.
const SHORTEST: f64 = 1e-9;
/// The displayed speed, from which the time left follows, is a mean over this many seconds: the
/// speed of a single log line jumps with every checkpoint.
const WINDOW: f64 = 60.0;
/// Shortest time between two marks of the window, seconds.
const MARK_INTERVAL: f64 = 0.5;

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
    /// Iterations of this process.
    iterations: u64,
    /// Seconds of training and iterations at earlier moments, the oldest about a window ago.
    marks: VecDeque<(f64, u64)>,
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
            iterations: 0,
            marks: VecDeque::from([(0.0, 0)]),
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

    /// Seconds since the last log line.
    pub fn line_seconds(&self) -> f64 {
        self.line_started.elapsed().as_secs_f64().max(SHORTEST)
    }

    /// Counts an iteration.
    pub fn count_iteration(&mut self) {
        self.line_iterations += 1;
        self.iterations += 1;
    }

    /// Iterations of this process.
    pub fn iterations(&self) -> u64 {
        self.iterations
    }

    /// Remembers the moment for [`Meter::rate`].
    pub fn mark(&mut self) {
        self.mark_at(self.seconds());
    }

    fn mark_at(&mut self, now: f64) {
        if self
            .marks
            .back()
            .is_some_and(|last| now - last.0 < MARK_INTERVAL)
        {
            return;
        }
        self.marks.push_back((now, self.iterations));
        // The oldest mark that stays is the last one before the window begins.
        while self
            .marks
            .get(1)
            .is_some_and(|second| now - second.0 >= WINDOW)
        {
            self.marks.pop_front();
        }
    }

    /// Iterations per second over the last minute of training, or since the process began.
    pub fn rate(&self) -> f64 {
        self.rate_at(self.seconds())
    }

    fn rate_at(&self, now: f64) -> f64 {
        let (then, before) = self.marks.front().copied().unwrap_or((0.0, 0));
        (self.iterations - before) as f64 / (now - then).max(SHORTEST)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_displayed_speed_is_a_mean_over_a_minute() {
        let mut meter = Meter::new();
        // 100 s at 10 iterations per second, then 30 s at 1 per second.
        for second in 1..=130 {
            let count = if second <= 100 { 10 } else { 1 };
            (0..count).for_each(|_| meter.count_iteration());
            meter.mark_at(f64::from(second));
        }
        let expected = (30.0 * 10.0 + 30.0) / 60.0;
        assert!(
            (meter.rate_at(130.0) - expected).abs() < 0.2,
            "{}",
            meter.rate_at(130.0)
        );
        assert!(meter.marks.len() < 130);
        assert_eq!(meter.iterations(), 1030);
    }
}
