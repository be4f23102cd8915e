//! The lines of a run's log: one JSON object each. Depends on `files`. Promises that reading takes
//! memory that does not grow with the log, and that anything which is no line is skipped.

use crate::support::failure::retry;
use crate::support::files;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// Name of the log within a run's folder.
pub(super) const NAME: &str = "log.jsonl";
/// Longest line that is read, bytes; training writes about 600. A longer line is skipped.
pub(super) const MAX_LINE_BYTES: usize = 16 << 10;

/// One line of the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Iteration.
    pub iteration: u64,
    /// Mean weighted loss since the last line; NaN (null in JSON) if every update was skipped.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Gradient norm of this iteration before clipping; NaN (null in JSON) if it was not finite.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Learning rate of this iteration.
    pub lr: f64,
    /// Iterations per second since the last line.
    pub it_per_s: f64,
    /// Share of the time spent waiting for data since the last line, 0 to 1.
    pub data_wait: f64,
    /// Seconds of training so far, over all processes of the run.
    pub seconds: f64,
    /// Updates skipped so far because the loss or the gradient norm was not finite.
    pub skipped: u64,
    /// Peak anonymous memory of the process so far, bytes; absent if the system does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<u64>,
    /// How ranks went together since the last line; absent for a process that is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<RanksLine>,
    /// Validation PSNR over R, G and B, dB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_psnr: Option<f64>,
    /// Validation SSIM, mean over R, G and B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_ssim: Option<f64>,
    /// Validation PSNR on Y, dB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_psnr_y: Option<f64>,
    /// Validation SSIM on Y.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_ssim_y: Option<f64>,
    /// PSNR over R, G and B of the bicubic upscaling of the same images, dB; at scale 1 of the LQ
    /// itself. Absent in logs of versions before 0.3.0, like the next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bicubic_psnr: Option<f64>,
    /// SSIM of the bicubic upscaling, mean over R, G and B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bicubic_ssim: Option<f64>,
    /// PSNR on Y of the bicubic upscaling, dB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bicubic_psnr_y: Option<f64>,
    /// SSIM on Y of the bicubic upscaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bicubic_ssim_y: Option<f64>,
}

/// How the ranks of a run went together since the last log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RanksLine {
    /// Number of ranks.
    pub count: usize,
    /// Share of the time that the slowest loader's rank waited for data, 0 to 1.
    pub data_wait: f64,
    /// That rank.
    pub data_wait_rank: usize,
    /// Share of the time that a rank waited for the gradients of slower ones, 0 to 1: the largest
    /// over all ranks.
    pub gradient_wait: f64,
    /// That rank.
    pub gradient_wait_rank: usize,
    /// Milliseconds of an iteration for the messages themselves: the least over all ranks, which is
    /// that of the rank that came last.
    pub exchange_ms: f64,
    /// Milliseconds of an iteration in which rank 0 copied and added gradients.
    pub packing_ms: f64,
}

/// Reads null as NaN: JSON has no NaN, and serde_json writes null for it. Without this a resumed
/// run would drop the line.
pub(super) fn number_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

/// Calls `each` with every line of a log, in order. Anything that is no line (cut by a crash,
/// written by another program, too long) is skipped: resuming depends on the state, not on the log.
/// A missing log has no lines.
pub(super) fn for_each_line(
    path: &Path,
    mut each: impl FnMut(LogLine) -> Result<()>,
) -> Result<()> {
    let file = match retry(|| files::open_regular(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut input = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut length = 0;
        loop {
            let found = input
                .fill_buf()
                .with_context(|| format!("cannot read {}", path.display()))?;
            let end = found.iter().position(|&b| b == b'\n');
            let taken = &found[..end.unwrap_or(found.len())];
            length += taken.len();
            line.extend_from_slice(
                &taken[..taken.len().min(MAX_LINE_BYTES.saturating_sub(line.len()))],
            );
            let (used, last) = (
                taken.len() + usize::from(end.is_some()),
                end.is_some() || found.is_empty(),
            );
            let at_end = found.is_empty();
            input.consume(used);
            if at_end && length == 0 {
                return Ok(());
            }
            if last {
                break;
            }
        }
        if length <= MAX_LINE_BYTES
            && let Ok(line) = serde_json::from_slice(&line)
        {
            each(line)?;
        }
    }
}
