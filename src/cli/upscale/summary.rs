//! What `paragon upscale` says at the end: a line, or JSON.

use super::{Args, Outcome, tell};
use crate::cli::device::{Workers, fit_json};
use anyhow::{Result, ensure};
use paragon::inference::upscale::{DeviceFit, Upscale, Upscaler};
use paragon::support::budget::Budget;
use paragon::support::text::bytes_text;
use std::time::Instant;

/// What `--json` prints.
pub fn json(
    args: &Args,
    (upscaler, fit): (&Upscaler, Option<DeviceFit>),
    outcome: &Outcome,
    left_out: &[String],
    (workers, budget): (&Workers, &Budget),
) -> Result<serde_json::Value> {
    let failed: Vec<_> = outcome
        .failed
        .iter()
        .map(|f| serde_json::json!({ "input": f.input.to_string_lossy(), "reason": f.reason }))
        .collect();
    let mut value = serde_json::json!({
        "model": args.model.to_string_lossy(),
        "scale": upscaler.scale(),
        "pictures": outcome.done,
        "failed": failed,
        "existing": outcome.existing,
        "left_out": left_out,
        "not_tried": outcome.stopped.as_ref().map_or(0, |(_, count)| *count),
        "memory_planned": workers.memory,
        "memory_limit": budget.limit,
    });
    if let (Some(device), Some(fit)) = (upscaler.device(), fit) {
        value["device"] = fit_json(device, fit, workers.threads);
    }
    Ok(value)
}

/// Prints the last line, with the memory that was computed and the time since the command began;
/// returns the error that ends the command.
pub fn conclude(
    args: &Args,
    is_folder: bool,
    outcome: Outcome,
    total: usize,
    (memory, started): (u64, Instant),
) -> Result<()> {
    let Outcome {
        done,
        failed,
        existing,
        stopped,
    } = outcome;
    let replaced = done.iter().filter(|done| done.replaced).count();
    let seconds = started.elapsed().as_secs_f64();
    let memory = bytes_text(memory);
    if let Some((error, left)) = stopped {
        return Err(error.context(format!(
            "stopped after {} of {total} images, {left} were not tried (--skip-existing goes on from here)",
            done.len()
        )));
    }
    if !is_folder {
        let say = |text: String| (!args.quiet).then(|| tell(text));
        for d in &done {
            let replaced = if d.replaced {
                ", which was replaced"
            } else {
                ""
            };
            say(format!(
                "{}x{} pixels, {seconds:.1} s, to {}{replaced} ({memory} of memory at most)",
                d.width, d.height, d.output
            ));
        }
        if existing > 0 {
            say(format!("{} exists already", args.output.display()));
        }
        return Ok(());
    }
    let mut more = String::new();
    for (count, what) in [
        (replaced, "earlier results replaced"),
        (existing, "left alone, since their results exist"),
        (failed.len(), "skipped"),
    ] {
        if count > 0 {
            more += &format!("; {count} {what}");
        }
    }
    if !args.quiet {
        tell(format_args!(
            "{} image{}, {seconds:.1} s, to {} ({memory} of memory at most){more}",
            done.len(),
            if done.len() == 1 { "" } else { "s" },
            args.output.display()
        ));
    }
    ensure!(
        failed.is_empty(),
        "{} of {total} images could not be upscaled, see above",
        failed.len()
    );
    Ok(())
}
