//! `paragon shard --dry-run`: what a run would make, with size and time from a few images. Depends on
//! `shard` and `shard_select`.

use super::flags::{print, print_json};
use super::shard_select::{SelectArgs, survey_text};
use anyhow::Result;
use paragon::dataset::scan::{IgnoredFiles, LeftOut};
use paragon::shard::estimate::{Estimate, estimate};
use paragon::shard::forecast;
use paragon::shard::plan::{BuildConfig, Plan, Rejected};
use paragon::shard::survey::Survey;
use paragon::support::text::bytes_text;
use std::fmt::Write;

/// What `--dry-run` prints.
#[derive(serde::Serialize)]
struct Forecast<'a> {
    images: u64,
    used: u64,
    rejected: &'a [Rejected],
    ignored: u64,
    ignored_endings: &'a IgnoredFiles,
    left_out: &'a [LeftOut],
    pairs: u64,
    scale: u32,
    lq_size: u32,
    lq_recipe: &'a str,
    held_out_images: u64,
    bytes_in: u64,
    bytes_raw: u64,
    estimate: Option<Estimate>,
    selection: Option<Survey>,
    there: String,
}

/// Prints what a run would do.
pub fn dry_run(config: &BuildConfig, plan: &Plan, select: &SelectArgs, json: bool) -> Result<()> {
    let selection = select.survey(config, plan)?;
    let found = Forecast {
        images: plan.images,
        used: plan.jobs.len() as u64,
        rejected: &plan.rejected,
        ignored: plan.ignored.count(),
        ignored_endings: &plan.ignored,
        left_out: &plan.left_out,
        pairs: plan.pairs(),
        scale: plan.geometry.scale,
        lq_size: plan.geometry.lq_size,
        lq_recipe: &plan.manifest.recipe_name,
        held_out_images: plan.jobs.iter().filter(|j| j.held_out).count() as u64,
        bytes_in: plan.jobs.iter().map(|j| j.file_bytes).sum(),
        bytes_raw: plan.raw_bytes(),
        estimate: estimate(config, plan)?,
        selection,
        there: forecast(config, plan),
    };
    if json {
        return print_json(&found);
    }
    let mut out = String::new();
    writeln!(out, "dry run: nothing is written")?;
    writeln!(
        out,
        "  images     {} found = {} to use + {} rejected",
        found.images,
        found.used,
        found.rejected.len()
    )?;
    if found.ignored > 0 {
        writeln!(out, "             {}", found.ignored_endings)?;
    }
    for left in found.left_out {
        writeln!(out, "             {left}")?;
    }
    if found.held_out_images > 0 {
        writeln!(
            out,
            "             {} of these held out",
            found.held_out_images
        )?;
    }
    writeln!(
        out,
        "  patches    {} of LQ {} at scale {}, LQ {}",
        found.pairs, found.lq_size, found.scale, found.lq_recipe
    )?;
    writeln!(
        out,
        "  size       {} read, {} of pixels",
        bytes_text(found.bytes_in),
        bytes_text(found.bytes_raw)
    )?;
    match &found.estimate {
        Some(e) => {
            writeln!(
                out,
                "  estimate   {} pairs, {} of shards, {:.1} s",
                e.pairs,
                bytes_text(e.bytes),
                e.seconds
            )?;
            writeln!(
                out,
                "             from {} images converted just now; the disk and duplicates may change it",
                e.sampled_images
            )?;
        }
        None => writeln!(
            out,
            "  estimate   none: no image that was tried can be used"
        )?,
    }
    if let Some(survey) = &found.selection {
        out += &survey_text(survey)?;
    }
    if let Some(path) = select.sheet() {
        writeln!(out, "  sheet      {}", path.display())?;
    }
    writeln!(out, "  folder     {}", found.there)?;
    print(out.trim_end())
}
