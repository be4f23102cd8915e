//! Says in words what a run would find in its output folder, for `paragon shard --dry-run`. Depends
//! on `output_folder` and `journal`. Promises to change nothing.

use super::journal;
use super::output_folder::{ADVICE, finished};
use super::plan::{BuildConfig, Plan};
use super::resume::begun_with_overwrite;
use super::same_files::unchanged;
use anyhow::Result;

/// Says what a run would do with what is in its output folder.
pub fn forecast(config: &BuildConfig, plan: &Plan) -> String {
    let out = config.out.display();
    let base = match finished(&config.out) {
        Ok(base) => base,
        Err(e) => {
            return format!("{out} holds a set that cannot be read ({e:#}); a run would stop");
        }
    };
    if config.overwrite && !begun_with_overwrite(&config.out, plan).unwrap_or(false) {
        return format!("what is in {out} would be replaced");
    }
    match (&base[0], config.append) {
        (None, true) => format!("{out} holds no finished set to add to; a run would stop"),
        (Some(main), true) => {
            let differences = main.differences(&plan.manifest);
            if differences.is_empty() {
                format!(
                    "images that {out} does not hold yet would be added; its {} shards stay as they are",
                    main.shards.len()
                )
            } else {
                format!(
                    "{out} was made with other options ({}); a run would stop",
                    differences.join("; ")
                )
            }
        }
        (Some(main), false) if main.config == plan.manifest.config => {
            format!("{out} holds this very set; nothing would be done")
        }
        (Some(main), false) => {
            let mut differences = main.differences(&plan.manifest);
            if differences.is_empty() {
                differences.push("the images are not the same".to_string());
            }
            format!(
                "{out} holds another set ({}); a run would stop: {ADVICE}",
                differences.join("; ")
            )
        }
        (None, false) => forecast_unfinished(config, plan),
    }
}

/// Says what a run would do in a folder without a finished set.
fn forecast_unfinished(config: &BuildConfig, plan: &Plan) -> String {
    let out = config.out.display();
    let Ok(Some((head, mut reader))) = journal::Reader::open(&config.out) else {
        return "nothing is there to go on from; all of it would be made".to_string();
    };
    if !head.wanted.asks_for(&plan.manifest) {
        return format!(
            "{out} is an unfinished set with other options or images; a run would stop: {ADVICE}"
        );
    }
    let mut left = plan.jobs.iter();
    let mut matches = || -> Result<bool> {
        let (Some(entry), Some(job)) = (reader.next()?, left.next()) else {
            return Ok(false);
        };
        unchanged(job, &entry)
    };
    let mut matching = 0;
    loop {
        match matches() {
            Ok(true) => matching += 1,
            Ok(false) => break,
            Err(e) => return format!("{out} holds an unfinished set, and a run would stop: {e:#}"),
        }
    }
    let all = plan.jobs.len();
    format!(
        "an interrupted run has done {matching} of {all} images; the same command goes on there"
    )
}
