//! `paragon report`: run folders as one page. Depends on `train` (log, state, previews) and
//! `report`.

mod charts;
mod compare;
mod facts;
mod previews;

use super::flags::{print, print_json, tell};
use anyhow::Result;
use facts::RunFacts;
use paragon::report::page::{Headings, Page, Table, Tile};
use paragon::support::files::write_output;
use paragon::support::text::bytes_text;
use paragon::train::{LogDigest, LogLine};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the page in the folder of a run.
const PAGE: &str = "report.html";
/// Name of the page that compares runs, in the working folder.
const COMPARISON: &str = "comparison.html";

/// Make one page of a run (figures, curves, previews before and after, settings), or of several:
/// their scores, the settings that differ, curves over each other, the same crops side by side.
///
/// The page holds everything it shows: it opens without a network and can be sent to somebody.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run; several are compared
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File for the page [default: report.html in the run's folder; comparison.html for several]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print only warnings and errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Print the figures as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Writes the page.
pub fn run(args: &Args) -> Result<()> {
    let runs: Vec<RunFacts> = args
        .runs
        .iter()
        .map(|run| RunFacts::read(run))
        .collect::<Result<_>>()?;
    runs.iter()
        .flat_map(|run| &run.warnings)
        .for_each(|text| tell(format_args!("warning: {text}")));
    let (page, place, what) = match runs.as_slice() {
        [one] => {
            let page = page(one)?;
            let what = format!(
                "{} log lines, {} previews",
                one.log.count,
                page.previews.len()
            );
            (page, one.folder.join(PAGE), what)
        }
        several => (
            compare::page(several)?,
            PathBuf::from(COMPARISON),
            format!("{} runs", several.len()),
        ),
    };
    let out = args.out.clone().unwrap_or(place);
    let html = page.html();
    write_output(&out, |file| Ok(file.write_all(html.as_bytes())?))?;
    if args.json {
        let figures: Vec<_> = runs.iter().map(RunFacts::figures).collect();
        return print_json(&figures);
    }
    if args.quiet {
        return Ok(());
    }
    print(format_args!(
        "{}: {what}, {}",
        out.display(),
        bytes_text(html.len() as u64)
    ))
}

/// Makes the page of a run again if it has one, so that a run that goes on does not keep an old
/// page. A failure is a warning.
pub fn renew(run: &Path) {
    let place = run.join(PAGE);
    if !place.is_file() {
        return;
    }
    let renewed = RunFacts::read(run)
        .and_then(|facts| page(&facts))
        .and_then(|page| write_output(&place, |file| Ok(file.write_all(page.html().as_bytes())?)));
    if let Err(error) = renewed {
        tell(format_args!(
            "warning: {} is of an earlier moment of the run: {error:#}",
            place.display()
        ));
    }
}

/// The page of one run.
fn page(run: &RunFacts) -> Result<Page> {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mut rows = vec![row("folder", run.folder.display().to_string())];
    rows.extend(
        run.data
            .iter()
            .map(|(name, value)| row(name, value.clone())),
    );
    if let Some(best) = &run.best {
        let place = best.model.display();
        let text = format!(
            "PSNR-Y {:.3} dB at iteration {}: {place}",
            best.psnr_y, best.iteration
        );
        rows.push(row("best network", text));
    }
    rows.push(row("newest network", run.newest.display().to_string()));
    let settings = run
        .settings
        .iter()
        .map(|(flag, value)| row(flag, value.clone()))
        .collect();
    Ok(Page {
        title: run.name.clone(),
        subtitle: run.subtitle(),
        tiles: run
            .log
            .last
            .as_ref()
            .map_or_else(Vec::new, |last| tiles(&run.log, last, run.baseline)),
        notes: Vec::new(),
        summary: Some(Table {
            title: String::new(),
            head: Vec::new(),
            rows,
        }),
        headings: Headings::default(),
        charts: charts::of_run(&run.log, run.baseline)?,
        previews: previews::of_run(&run.folder, run.reached, run.baseline),
        strips: Vec::new(),
        settings: Some(Table {
            title: "Settings".to_string(),
            head: Vec::new(),
            rows: settings,
        }),
    })
}

fn tiles(log: &LogDigest, last: &LogLine, baseline: &str) -> Vec<Tile> {
    let tile = |name: &str, value: String| Tile {
        name: name.to_string(),
        value,
    };
    let mut out = vec![
        tile("iterations", last.iteration.to_string()),
        tile("loss", format!("{:.5}", last.loss)),
    ];
    if let Some((psnr, iteration)) = log
        .best
        .as_ref()
        .and_then(|l| Some((l.val_psnr_y?, l.iteration)))
    {
        out.push(tile(
            &format!("best PSNR-Y, iteration {iteration}"),
            format!("{psnr:.3} dB"),
        ));
    }
    if let Some(psnr) = log.validated.last().and_then(|l| l.val_bicubic_psnr_y) {
        out.push(tile(
            &format!("PSNR-Y of {baseline}"),
            format!("{psnr:.3} dB"),
        ));
    }
    if let Some(ssim) = log.best_ssim_y {
        out.push(tile("best SSIM-Y", format!("{ssim:.4}")));
    }
    out.push(tile("speed, mean", format!("{:.2} it/s", log.it_per_s)));
    out.push(tile(
        "waiting for data, mean",
        format!("{:.1} %", 100.0 * log.data_wait),
    ));
    if let Some(ranks) = last.ranks {
        out.push(tile("ranks", ranks.count.to_string()));
        out.push(tile(
            &format!("waiting for data, rank {}", ranks.data_wait_rank),
            format!("{:.1} %", 100.0 * ranks.data_wait),
        ));
        out.push(tile(
            &format!("waiting for gradients, rank {}", ranks.gradient_wait_rank),
            format!("{:.1} %", 100.0 * ranks.gradient_wait),
        ));
    }
    if let Some(peak) = log.anonymous {
        out.push(tile("memory used at most", bytes_text(peak)));
    }
    out.push(tile("updates skipped", last.skipped.to_string()));
    out
}
