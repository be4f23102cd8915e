//! Makes a folder that of the run which is about to begin. Depends on `prepare`, `keeping` and the
//! previews. It promises to be the first to remove anything of an earlier run.

use super::keeping::MeasuredOn;
use super::prepare::Prepared;
use super::{Best, RunOptions, keeping, previews};
use crate::support::files;
use anyhow::Result;
use std::io::Write;
use std::path::Path;

/// Makes the folder that of this run: forgets an earlier run after `--restart`, removes previews of
/// later iterations, and writes `config.yml`. Called only when nothing can be refused any more: a
/// command that is refused must not cost anybody a run. Returns the best network so far.
pub(super) fn claim_folder(
    ready: &Prepared,
    options: &RunOptions,
    report: &dyn Fn(&str),
) -> Result<Option<Best>> {
    let iteration = ready.state.head.iteration;
    if ready.fresh {
        keeping::forget(&options.out, options.restart)?;
    }
    previews::cut_back(&options.out, iteration);
    if let Some(file) = &options.settings {
        let text = (file.0)(&ready.config);
        files::write_atomic(&options.out.join("config.yml"), |out| {
            Ok(out.write_all(text.as_bytes())?)
        })?;
    }
    if ready.fresh {
        return Ok(None);
    }
    Ok(earlier_best(
        &options.out,
        iteration,
        ready.measured_on.as_ref(),
        report,
    ))
}

/// The best network of earlier processes of this run, if its score was measured on the images that
/// are used now.
fn earlier_best(
    run: &Path,
    iteration: u64,
    measured_on: Option<&MeasuredOn>,
    report: &dyn Fn(&str),
) -> Option<Best> {
    let best = Best::read(run, iteration)?;
    match (&best.measured_on, measured_on) {
        (Some(before), Some(now)) if !before.same(now) => {
            report(&format!(
                "the best network so far (iteration {}, PSNR-Y {:.3} dB) was measured on other images or with another border than now: {} \
                 images of {} with {} pixels left out at each edge; the best one is looked for anew, and takes its place",
                best.iteration, best.psnr_y, before.pairs, before.place, before.crop_border
            ));
            None
        }
        _ => Some(best),
    }
}
