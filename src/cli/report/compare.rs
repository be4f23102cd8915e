//! The page that compares runs.

use super::charts;
use super::facts::RunFacts;
use super::previews;
use anyhow::Result;
use paragon::report::page::{Headings, Page, Table};
use paragon::train::duration_text;

/// Where a run has no value.
const NONE: &str = "–";

/// The page of several runs.
pub(super) fn page(runs: &[RunFacts]) -> Result<Page> {
    let names = names(runs);
    let comparable = same_validation(runs);
    let mut notes = Vec::new();
    if !comparable {
        notes.push(
            "The runs were validated on different images or with different borders, so their scores cannot be compared; \
             paragon eval measures both networks on one folder."
                .to_string(),
        );
    }
    Ok(Page {
        title: names.join(" and "),
        subtitle: format!("{} runs compared", runs.len()),
        tiles: Vec::new(),
        notes,
        summary: Some(scores(runs, &names)),
        headings: Headings::default(),
        charts: charts::of_runs(runs, &names)?,
        previews: Vec::new(),
        strips: previews::side_by_side(runs, &names),
        settings: Some(differences(runs, &names)),
    })
}

/// The names of the runs: of their folders, or the whole paths where two names are the same.
fn names(runs: &[RunFacts]) -> Vec<String> {
    runs.iter()
        .map(|run| {
            if runs.iter().filter(|other| other.name == run.name).count() == 1 {
                run.name.clone()
            } else {
                run.folder.display().to_string()
            }
        })
        .collect()
}

/// Whether all scores were measured on the same images. Unknown in runs without scores and in old
/// ones, which then count as the same.
fn same_validation(runs: &[RunFacts]) -> bool {
    let known: Vec<_> = runs
        .iter()
        .filter_map(|run| run.measured_on.as_ref())
        .collect();
    known.windows(2).all(|pair| pair[0].same(pair[1]))
}

/// Scores, size and speed, a row for each run; the best PSNR-Y first.
fn scores(runs: &[RunFacts], names: &[String]) -> Table {
    let head = [
        "run",
        "network",
        "iterations",
        "best PSNR-Y, dB",
        "at",
        "newest PSNR-Y",
        "bicubic",
        "best SSIM-Y",
        "size",
        "it/s",
        "time",
        "best network",
    ];
    let decibels = |value: Option<f64>| value.map_or(NONE.into(), |v| format!("{v:.3}"));
    let mut order: Vec<usize> = (0..runs.len()).collect();
    let score = |run: &RunFacts| run.best.as_ref().map_or(f64::NEG_INFINITY, |b| b.psnr_y);
    order.sort_by(|a, b| score(&runs[*b]).total_cmp(&score(&runs[*a])));
    let rows = order
        .into_iter()
        .map(|at| {
            let run = &runs[at];
            let (best, newest) = (run.best.as_ref(), run.newest_scores());
            let number = |value: Option<u64>| value.map_or(NONE.into(), |n| n.to_string());
            vec![
                names[at].clone(),
                run.network().unwrap_or(NONE.into()),
                number(run.reached),
                decibels(best.map(|best| best.psnr_y)),
                number(best.map(|best| best.iteration)),
                decibels(newest.and_then(|line| line.val_psnr_y)),
                decibels(newest.and_then(|line| line.val_bicubic_psnr_y)),
                run.log
                    .best_ssim_y
                    .map_or(NONE.into(), |ssim| format!("{ssim:.4}")),
                run.size().unwrap_or(NONE.into()),
                format!("{:.2}", run.log.it_per_s),
                run.log
                    .last
                    .as_ref()
                    .map_or(NONE.into(), |line| duration_text(line.seconds)),
                best.map_or(&run.newest, |best| &best.model)
                    .display()
                    .to_string(),
            ]
        })
        .collect();
    Table {
        title: String::new(),
        head: head.map(str::to_string).to_vec(),
        rows,
    }
}

/// The settings in which the runs differ, a row for each flag.
fn differences(runs: &[RunFacts], names: &[String]) -> Table {
    let all = |run: &RunFacts| -> Vec<(String, String)> {
        let data = run
            .data
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()));
        data.chain(run.settings.iter().cloned()).collect()
    };
    let all: Vec<Vec<(String, String)>> = runs.iter().map(all).collect();
    // In the order of the first run, with what only others have at the end.
    let mut flags: Vec<&String> = Vec::new();
    for (flag, _) in all.iter().flatten() {
        if !flags.contains(&flag) {
            flags.push(flag);
        }
    }
    let value = |run: &Vec<(String, String)>, flag: &String| {
        run.iter()
            .find(|(name, _)| name == flag)
            .map_or_else(|| NONE.to_string(), |(_, value)| value.clone())
    };
    let mut same = 0;
    let mut rows = Vec::new();
    for flag in flags {
        let values: Vec<String> = all.iter().map(|run| value(run, flag)).collect();
        if values.windows(2).all(|pair| pair[0] == pair[1]) {
            same += 1;
            continue;
        }
        rows.push([vec![flag.clone()], values].concat());
    }
    Table {
        title: format!("Settings that differ ({same} are the same)"),
        head: [&["".to_string()], names].concat(),
        rows,
    }
}
