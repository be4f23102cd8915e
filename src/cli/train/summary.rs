//! The last lines of `train`: how the run went, and which networks it has made.

use crate::cli::flags::print;
use anyhow::Result;
use paragon::support::text::bytes_text;
use paragon::train::{RunSummary, TrainConfig, duration_text};

/// Share of the time waiting for data from which on the loader is called too slow.
const SLOW_LOADER: f64 = 0.05;
/// Iterations of a process from which on its waiting says something about the loader; the first
/// ones wait for the first batches.
const ENOUGH_ITERATIONS: u64 = 50;

/// The result of a run on stdout.
/// `quiet` leaves out what is no result.
pub(super) fn print_summary(
    s: &RunSummary,
    config: &TrainConfig,
    seconds: f64,
    quiet: bool,
) -> Result<()> {
    if s.iteration == 0 {
        return print("stopped before the first iteration was done; nothing is saved");
    }
    // A run that was finished before has only its networks to show.
    if s.iterations_here > 0 {
        print_process(s, seconds)?;
        if !quiet {
            print_resources(s)?;
        }
    }
    if s.skipped > 0 {
        print(format_args!(
            "{} updates were skipped because loss or gradient was not finite",
            s.skipped
        ))?;
    }
    print_networks(s, config.baseline())
}

/// How this process went. The loss is that of the last log line, so it is left out where there is
/// none.
fn print_process(s: &RunSummary, seconds: f64) -> Result<()> {
    let state = if s.finished { "done" } else { "stopped" };
    let loss = if s.loss.is_finite() {
        format!("loss {:.5}, ", s.loss)
    } else {
        String::new()
    };
    print(format_args!(
        "{state} at iteration {} after {}: {loss}{:.2} it/s",
        s.iteration,
        duration_text(seconds),
        s.it_per_s
    ))
}

/// Whether the loader and the memory were enough.
fn print_resources(s: &RunSummary) -> Result<()> {
    let waited = format!("training waited {:.1}% for data", 100.0 * s.data_wait);
    if s.data_wait <= SLOW_LOADER {
        print(format_args!("the loader is fast enough: {waited}"))?;
    } else if s.iterations_here < ENOUGH_ITERATIONS || s.loader_wait > 0.5 {
        print(format_args!("{waited}, mostly at the start"))?;
    } else {
        print(format_args!(
            "the loader is the bottleneck: {waited}; more --loader-threads than {} would help, or shards made with --codec raw",
            s.loader_threads
        ))?;
    }
    if s.substituted > 0 {
        print(format_args!(
            "{} samples stood in for damaged records; `paragon shards verify` lists them",
            s.substituted
        ))?;
    }
    if s.peak_anonymous == 0 {
        return Ok(()); // the system does not report it
    }
    print(format_args!(
        "memory: {} used at most; {} were planned",
        bytes_text(s.peak_anonymous),
        bytes_text(s.planned)
    ))
}

/// The networks to use, the best one first, with their scores.
fn print_networks(s: &RunSummary, baseline: &str) -> Result<()> {
    let compared = s
        .bicubic_psnr_y
        .map_or_else(String::new, |psnr| format!(" ({baseline} {psnr:.3})"));
    if let Some(best) = &s.best {
        print(format_args!(
            "best:   PSNR-Y {:.3} dB at iteration {}{compared}  {}",
            best.psnr_y,
            best.iteration,
            best.model.display()
        ))?;
    }
    let score = match s.newest_psnr_y {
        Some(psnr) => format!("PSNR-Y {psnr:.3} dB at iteration {}", s.iteration),
        None => format!("iteration {}, not validated", s.iteration),
    };
    print(format_args!("newest: {score}  {}", s.model.display()))
}
