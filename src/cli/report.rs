//! `paragon report`: a run folder as one page. Depends on `train` (log, state, previews) and `report`.

use super::flags::print;
use anyhow::{Context, Result, ensure};
use paragon::files::write_output;
use paragon::plan::bytes_text;
use paragon::report::chart::{Series, line_chart_svg};
use paragon::report::page::{Page, Preview, Tile};
use paragon::train::{LogLine, duration_text, kept_previews, newest_state, read_log};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Make one page of a run: figures, curves, previews before and after, settings.
///
/// The page holds everything it shows: it opens without a network and can be sent to somebody.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the run
    run: PathBuf,
    /// File for the page [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Points of a chart kept for each line: more cannot be told apart on a screen.
const MAX_POINTS: usize = 2000;

/// Writes the page.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.run.is_dir(), "{} is no folder of a run; give the --out of a training", args.run.display());
    let log = read_log(&args.run);
    ensure!(!log.is_empty(), "{} holds no log of a training (log.jsonl), or an empty one", args.run.display());
    let page = page(&args.run, &log)?;
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    let html = page.html();
    write_output(&out, |file| Ok(file.write_all(html.as_bytes())?))?;
    print(format_args!("{}: {} log lines, {} previews, {}", out.display(), log.len(), page.previews.len(), bytes_text(html.len() as u64)))
}

fn page(run: &Path, log: &[LogLine]) -> Result<Page> {
    let (Some(first), Some(last)) = (log.first(), log.last()) else { return Ok(Page::default()) };
    let state = newest_state(run).0;
    let name = run.canonicalize().unwrap_or_else(|_| run.to_path_buf());
    let mut settings = Vec::new();
    if let Some(state) = &state {
        flatten("", &serde_json::to_value(&state.head.config)?, &mut settings);
    }
    let network = state.as_ref().map_or(String::new(), |s| format!("{} x{}, ", s.head.config.network.arch, s.head.config.network.scale));
    Ok(Page {
        title: name.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned()),
        subtitle: format!("{network}iterations {} to {}, {} of training", first.iteration, last.iteration, duration_text(last.seconds)),
        tiles: tiles(log, last),
        charts: charts(log)?,
        previews: previews(run, log)?,
        settings,
    })
}

fn tiles(log: &[LogLine], last: &LogLine) -> Vec<Tile> {
    let tile = |name: &str, value: String| Tile { name: name.to_string(), value };
    let mut out = vec![tile("iterations", last.iteration.to_string()), tile("loss", format!("{:.5}", last.loss))];
    let best = log.iter().filter_map(|l| Some((l.val_psnr_y?, l.iteration))).max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((psnr, iteration)) = best {
        out.push(tile(&format!("best PSNR-Y, iteration {iteration}"), format!("{psnr:.3} dB")));
    }
    if let Some(ssim) = log.iter().filter_map(|l| l.val_ssim_y).max_by(f64::total_cmp) {
        out.push(tile("best SSIM-Y", format!("{ssim:.4}")));
    }
    let mean = |value: &dyn Fn(&LogLine) -> f64| log.iter().map(value).sum::<f64>() / log.len() as f64;
    out.push(tile("speed, mean", format!("{:.2} it/s", mean(&|l| l.it_per_s))));
    out.push(tile("waiting for data, mean", format!("{:.1} %", 100.0 * mean(&|l| l.data_wait))));
    if let Some(peak) = log.iter().filter_map(|l| l.anonymous).max() {
        out.push(tile("peak anonymous memory", bytes_text(peak)));
    }
    out.push(tile("updates skipped", last.skipped.to_string()));
    out
}

fn charts(log: &[LogLine]) -> Result<Vec<String>> {
    let series = |name: &str, value: &dyn Fn(&LogLine) -> Option<f64>| Series {
        name: name.to_string(),
        points: thin(log.iter().filter_map(|l| Some((l.iteration as f64, value(l)?))).filter(|p| p.1.is_finite()).collect()),
    };
    let wanted = [
        ("Training loss", "loss", true, vec![series("loss", &|l| Some(l.loss))]),
        ("PSNR of the validation", "dB", false, vec![series("Y", &|l| l.val_psnr_y), series("RGB", &|l| l.val_psnr)]),
        ("SSIM of the validation", "SSIM", false, vec![series("Y", &|l| l.val_ssim_y), series("RGB", &|l| l.val_ssim)]),
        ("Learning rate", "learning rate", false, vec![series("learning rate", &|l| Some(l.lr))]),
        ("Gradient norm", "norm before clipping", true, vec![series("gradient norm", &|l| Some(l.grad_norm))]),
        ("Speed", "iterations/s", false, vec![series("it/s", &|l| Some(l.it_per_s))]),
        ("Waiting for data", "% of the time", false, vec![series("data-wait", &|l| Some(100.0 * l.data_wait))]),
        ("Anonymous memory, peak", "MiB", false, vec![series("memory", &|l| Some(l.anonymous? as f64 / f64::from(1 << 20)))]),
    ];
    let drawable = |log_y: bool, lines: &[Series]| lines.iter().all(|s| s.points.iter().filter(|p| !log_y || p.1 > 0.0).count() > 1);
    // logs from before RGB was measured have one line of two
    let wanted = wanted.map(|(title, unit, log_y, lines)| {
        let lines: Vec<Series> =
            lines.into_iter().enumerate().filter(|(i, line)| *i == 0 || !line.points.is_empty()).map(|(_, line)| line).collect();
        (title, unit, log_y, lines)
    });
    wanted
        .iter()
        .filter(|(.., log_y, lines)| drawable(*log_y, lines))
        .map(|(title, unit, log_y, lines)| line_chart_svg(title, "iteration", unit, lines, *log_y))
        .collect()
}

/// Every so many points, the last one among them.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(MAX_POINTS).max(1);
    let last = points.last().copied();
    let mut out: Vec<(f64, f64)> = points.into_iter().step_by(step).collect();
    if out.last().copied() != last {
        out.extend(last);
    }
    out
}

fn previews(run: &Path, log: &[LogLine]) -> Result<Vec<Preview>> {
    let reached = log.last().map_or(0, |l| l.iteration);
    let mut out = Vec::new();
    for picture in kept_previews(run)? {
        let size = image::load_from_memory(&picture.hr).with_context(|| format!("the preview of {} is damaged", picture.name))?;
        let mut versions = vec![("bicubic".to_string(), picture.bicubic)];
        // the newest first, and beside it the first, the middle and the HR to choose from
        let mut network: Vec<(u64, Vec<u8>)> = picture.network.into_iter().filter(|(i, _)| *i <= reached).collect();
        let Some((newest, png)) = network.pop() else { continue };
        versions.push((format!("iteration {newest}"), png));
        let middle = network.len() / 2;
        let early = network.into_iter().enumerate().filter(|(i, _)| *i == 0 || *i == middle);
        versions.extend(early.map(|(_, (i, png))| (format!("iteration {i}"), png)));
        versions.push(("HR".to_string(), picture.hr));
        let caption = "left and right of the line: choose what is compared".to_string();
        out.push(Preview { name: format!("{}:", picture.name), caption, versions, size: (size.width(), size.height()) });
    }
    Ok(out)
}

/// `a.b.c` and the value, for every value of a JSON object.
fn flatten(path: &str, value: &serde_json::Value, out: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                flatten(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, out);
            }
        }
        value => out.push((path.to_string(), value.to_string())),
    }
}
