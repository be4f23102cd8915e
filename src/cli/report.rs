//! `paragon report`: a run folder as one page. Depends on `train` (log, state, previews) and
//! `report`.

use super::flags::{print, tell};
use anyhow::{Context, Result, ensure};
use paragon::report::chart::{Series, line_chart_svg};
use paragon::report::page::{Page, Preview, Tile};
use paragon::support::files::write_output;
use paragon::support::text::bytes_text;
use paragon::support::text::one_line;
use paragon::train::{
    LogDigest, LogLine, duration_text, kept_previews, newest_state, read_log, read_preview,
};
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
    ensure!(
        args.run.is_dir(),
        "{} is no folder of a run; give the --out of a training",
        args.run.display()
    );
    let log = read_log(&args.run)?.with_context(|| {
        format!(
            "{} holds no log of a training (log.jsonl)",
            args.run.display()
        )
    })?;
    let page = page(&args.run, &log)?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| args.run.join("report.html"));
    let html = page.html();
    write_output(&out, |file| Ok(file.write_all(html.as_bytes())?))?;
    print(format_args!(
        "{}: {} log lines, {} previews, {}",
        out.display(),
        log.count,
        page.previews.len(),
        bytes_text(html.len() as u64)
    ))
}

fn page(run: &Path, log: &LogDigest) -> Result<Page> {
    let (state, damaged) = newest_state(run)?;
    damaged
        .iter()
        .for_each(|text| tell(format_args!("warning: {text}")));
    let name = run.canonicalize().unwrap_or_else(|_| run.to_path_buf());
    let mut settings = Vec::new();
    if let Some(state) = &state {
        flatten(
            "",
            &serde_json::to_value(&state.head.config)?,
            &mut settings,
        );
    }
    let network = state.as_ref().map_or(String::new(), |s| {
        format!(
            "{} x{}, ",
            s.head.config.network.arch, s.head.config.network.scale
        )
    });
    // at scale 1 the bicubic upscaling of the LQ is the LQ
    let baseline = match &state {
        Some(state) if state.head.config.network.scale == 1 => "LQ",
        _ => "bicubic",
    };
    let lines = match (&log.first, &log.last) {
        (Some(first), Some(last)) => {
            format!(
                "iterations {} to {}, {} of training",
                first.iteration,
                last.iteration,
                duration_text(last.seconds)
            )
        }
        _ => "killed or stopped before its first log line".to_string(),
    };
    // what lies behind is done again when the run goes on
    let reached = log
        .last
        .as_ref()
        .map(|l| l.iteration)
        .max(state.as_ref().map(|s| s.head.iteration));
    Ok(Page {
        title: name
            .file_name()
            .map_or_else(|| "run".into(), |n| one_line(n.to_string_lossy())),
        subtitle: format!("{network}{lines}"),
        tiles: log
            .last
            .as_ref()
            .map_or_else(Vec::new, |last| tiles(log, last)),
        charts: charts(log)?,
        previews: previews(run, reached, baseline),
        settings,
    })
}

fn tiles(log: &LogDigest, last: &LogLine) -> Vec<Tile> {
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
    if let Some(ssim) = log.best_ssim_y {
        out.push(tile("best SSIM-Y", format!("{ssim:.4}")));
    }
    out.push(tile("speed, mean", format!("{:.2} it/s", log.it_per_s)));
    out.push(tile(
        "waiting for data, mean",
        format!("{:.1} %", 100.0 * log.data_wait),
    ));
    if let Some(peak) = log.anonymous {
        out.push(tile("peak anonymous memory", bytes_text(peak)));
    }
    out.push(tile("updates skipped", last.skipped.to_string()));
    out
}

fn charts(log: &LogDigest) -> Result<Vec<String>> {
    let series =
        |name: &str, value: &dyn Fn(&LogLine) -> Option<f64>| series_of(&log.lines, name, value);
    let validated = |name: &str, value: &dyn Fn(&LogLine) -> Option<f64>| {
        series_of(&log.validated, name, value)
    };
    let wanted = [
        (
            "Training loss",
            "loss",
            true,
            vec![series("loss", &|l| Some(l.loss))],
        ),
        (
            "PSNR of the validation",
            "dB",
            false,
            vec![
                validated("Y", &|l| l.val_psnr_y),
                validated("RGB", &|l| l.val_psnr),
            ],
        ),
        (
            "SSIM of the validation",
            "SSIM",
            false,
            vec![
                validated("Y", &|l| l.val_ssim_y),
                validated("RGB", &|l| l.val_ssim),
            ],
        ),
        (
            "Learning rate",
            "learning rate",
            false,
            vec![series("learning rate", &|l| Some(l.lr))],
        ),
        (
            "Gradient norm",
            "norm before clipping",
            true,
            vec![series("gradient norm", &|l| Some(l.grad_norm))],
        ),
        (
            "Speed",
            "iterations/s",
            false,
            vec![series("it/s", &|l| Some(l.it_per_s))],
        ),
        (
            "Waiting for data",
            "% of the time",
            false,
            vec![series("data-wait", &|l| Some(100.0 * l.data_wait))],
        ),
        (
            "Anonymous memory, peak",
            "MiB",
            false,
            vec![series("memory", &|l| {
                Some(l.anonymous? as f64 / f64::from(1 << 20))
            })],
        ),
    ];
    let drawable = |log_y: bool, lines: &[Series]| {
        lines
            .iter()
            .all(|s| s.points.iter().filter(|p| !log_y || p.1 > 0.0).count() > 1)
    };
    // logs from before RGB was measured have one line of two
    let wanted = wanted.map(|(title, unit, log_y, lines)| {
        let lines: Vec<Series> = lines
            .into_iter()
            .enumerate()
            .filter(|(i, line)| *i == 0 || !line.points.is_empty())
            .map(|(_, line)| line)
            .collect();
        (title, unit, log_y, lines)
    });
    wanted
        .iter()
        .filter(|(.., log_y, lines)| drawable(*log_y, lines))
        .map(|(title, unit, log_y, lines)| line_chart_svg(title, "iteration", unit, lines, *log_y))
        .collect()
}

fn series_of(lines: &[LogLine], name: &str, value: &dyn Fn(&LogLine) -> Option<f64>) -> Series {
    let points = lines
        .iter()
        .filter_map(|l| Some((l.iteration as f64, value(l)?)))
        .filter(|p| p.1.is_finite())
        .collect();
    Series {
        name: name.to_string(),
        points: thin(points),
    }
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

/// The previews up to an iteration; one that cannot be shown is left out with a warning. `baseline`
/// names the image beside the network's results.
fn previews(run: &Path, reached: Option<u64>, baseline: &str) -> Vec<Preview> {
    let warn = |text: String| tell(format_args!("warning: {text}; it is left out"));
    let (pictures, left_out) = kept_previews(run);
    left_out.into_iter().for_each(warn);
    let mut out = Vec::new();
    for picture in pictures {
        let mut versions = vec![(baseline.to_string(), picture.bicubic)];
        let known = picture
            .network
            .into_iter()
            .filter(|(i, _)| reached.is_none_or(|reached| *i <= reached));
        let read = |(iteration, path): &(u64, PathBuf)| match read_preview(path) {
            Ok((png, size)) if size == picture.size => {
                Some((format!("iteration {iteration}"), png))
            }
            Ok((_, size)) => {
                let (w, h) = picture.size;
                warn(format!(
                    "the preview {} has {}x{} pixels and its HR {w}x{h}",
                    path.display(),
                    size.0,
                    size.1
                ));
                None
            }
            Err(error) => {
                warn(format!("{error:#}"));
                None
            }
        };
        // the newest first, and beside it the first, the middle and the HR to choose from
        let mut network: Vec<(u64, PathBuf)> = known.collect();
        let newest = std::iter::from_fn(|| network.pop()).find_map(|version| read(&version));
        versions.extend(newest);
        let middle = network.len() / 2;
        let early = network
            .iter()
            .enumerate()
            .filter(|(i, _)| *i == 0 || *i == middle);
        versions.extend(early.filter_map(|(_, version)| read(version)));
        versions.push(("HR".to_string(), picture.hr));
        let caption = "left and right of the line: choose what is compared".to_string();
        out.push(Preview {
            name: format!("{}:", one_line(picture.name)),
            caption,
            versions,
            size: picture.size,
        });
    }
    out
}

/// `a.b.c` and the value, for every value of a JSON object.
fn flatten(path: &str, value: &serde_json::Value, out: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                flatten(
                    &if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    },
                    value,
                    out,
                );
            }
        }
        value => out.push((path.to_string(), value.to_string())),
    }
}
