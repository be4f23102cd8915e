//! The time of a training step on this machine from a few steps, and what follows for a whole run:
//! for `plan --time`, `bench step` and `bench loader`. Depends on the backends.

use super::bench_step::{median, step_timer};
use super::recipe::Machine;
use anyhow::{Context, Result};
use paragon::backend::cpu::{CpuBackend, CpuOptions};
use paragon::backend::cuda::CudaBackend;
use paragon::backend::{Backend, write_floats};
use paragon::model::{Network, Recompute, StepSpec, training_plan};
use paragon::plan::{LossKind, Precision};
use paragon::support::budget::Budget;
use paragon::train::{DeviceChoice, FitChoice, OpenedDevice, TrainConfig};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Measuring ends after this time or after [`MOST_STEPS`], whichever comes first.
const LONGEST: Duration = Duration::from_secs(2);
const MOST_STEPS: usize = 20;

/// The step that is measured.
pub struct StepOf<'a> {
    pub network: &'a Network,
    pub lq_size: usize,
    pub batch_size: usize,
    pub losses: Vec<(LossKind, f32)>,
    pub recompute: Recompute,
    pub device: DeviceChoice,
    pub precision: Option<Precision>,
    /// Threads that compute on the CPU; 0 for all.
    pub threads: usize,
}

/// A measured step.
#[derive(Clone, Debug, Serialize)]
pub struct StepTime {
    /// Median seconds of a micro-step with its update, the batch brought from the host.
    pub seconds: f64,
    /// Steps measured.
    pub steps: usize,
    /// The device, in words.
    pub device: String,
}

impl StepTime {
    /// Measures one step after another for about two seconds, after one that is not counted.
    ///
    /// # Errors
    /// The device cannot be opened; the step does not fit into memory.
    pub fn measure(of: &StepOf<'_>) -> Result<StepTime> {
        let side = (of.lq_size, of.lq_size);
        let spec = StepSpec {
            recompute: of.recompute,
            ..StepSpec::new(of.batch_size, side, of.losses.clone())
        };
        let cpu = CpuOptions::new(of.threads);
        let (opened, _) = OpenedDevice::new(of.device, of.precision, cpu, false)?;
        let plan = training_plan(of.network, &spec, opened.place.sizing())?;
        let mut backend: Box<dyn Backend> = match opened.device() {
            Some(device) => Box::new(CudaBackend::new(device, plan)?),
            None => {
                // the program's own memory is taken already
                Budget::new(None).check(plan.arena_bytes, "give a smaller batch or patch")?;
                Box::new(CpuBackend::new(plan, opened.cpu())?)
            }
        };
        if let Some(port) = backend.plan().ports.parameters {
            write_floats(&mut *backend, port, &of.network.params().start_values(1))?;
        }
        let device = backend.description();
        let mut step = step_timer(&mut *backend)?;
        step(1, true)?;
        let started = Instant::now();
        let mut times = Vec::new();
        while times.len() < MOST_STEPS && (times.is_empty() || started.elapsed() < LONGEST) {
            times.push(step(1, true)?);
        }
        Ok(StepTime {
            steps: times.len(),
            seconds: median(times),
            device,
        })
    }
}

/// With `--time`: how long the run would take on this machine.
#[derive(Serialize)]
pub struct RunTime {
    iterations: u64,
    step: StepTime,
    /// Without validations and checkpoints.
    run_seconds: f64,
}

impl RunTime {
    /// Measures the micro-batches that the plan has chosen.
    pub fn measure(config: &TrainConfig, choice: FitChoice, machine: &Machine) -> Result<RunTime> {
        let step = StepTime::measure(&StepOf {
            network: &config.network,
            lq_size: config.lq_size,
            batch_size: choice.batch_size,
            losses: config.losses.iter().map(|l| (l.kind, l.weight)).collect(),
            recompute: choice.recompute,
            device: machine.device,
            precision: machine.precision,
            threads: machine.threads,
        });
        let step = step.context("--time measures on this machine, and that is not possible")?;
        Ok(RunTime {
            iterations: config.total_iter,
            run_seconds: config.total_iter as f64 * choice.accum_iter as f64 * step.seconds,
            step,
        })
    }

    /// One line.
    pub fn text(&self) -> String {
        let each = self.run_seconds / self.iterations as f64;
        format!(
            "{} ({:.1} ms an iteration, from {} steps on {}; validations not counted)",
            run_text(self.iterations, each),
            1e3 * each,
            self.step.steps,
            self.step.device
        )
    }
}

/// The time of a whole run: `40,000 iterations: about 1:00 h here`.
pub fn run_text(iterations: u64, seconds_each: f64) -> String {
    format!(
        "{} iterations: about {} here",
        grouped(iterations),
        about(iterations as f64 * seconds_each)
    )
}

/// A time in the one or two units that matter: `45 s`, `12 min`, `1:00 h`, `3.2 days`.
fn about(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round().min(1e15) as u64;
    match seconds {
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 59.5 * 60.0 => format!("{minutes} min"),
        s if s < 48.0 * 3600.0 => format!("{}:{:02} h", minutes / 60, minutes % 60),
        s => format!("{:.1} days", s / 86400.0),
    }
}

/// A whole number with a comma between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_runs_are_in_the_units_that_matter() {
        assert_eq!(
            run_text(40_000, 0.09),
            "40,000 iterations: about 1:00 h here"
        );
        for (seconds, text) in [
            (0.4, "0 s"),
            (99.0, "99 s"),
            (120.0, "2 min"),
            (3599.0, "1:00 h"),
            (86_400.0, "24:00 h"),
            (400_000.0, "4.6 days"),
        ] {
            assert_eq!(about(seconds), text);
        }
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
