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

/// Points that a chart keeps for each line: a screen cannot show more.
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
    // A resumed run makes the previews of later iterations again.
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

/// A value of a log line; `None` if the line does not have it.
type LineValue = fn(&LogLine) -> Option<f64>;

/// A chart of values over iterations.
struct Chart {
    title: &'static str,
    /// Label of the y axis.
    unit: &'static str,
    log_y: bool,
    /// Whether the points are the validations; otherwise they are all lines of the log.
    of_validations: bool,
    /// Name and value of each line of the chart.
    lines: &'static [(&'static str, LineValue)],
}

/// The charts of the page, in order.
const CHARTS: [Chart; 8] = [
    Chart {
        title: "Training loss",
        unit: "loss",
        log_y: true,
        of_validations: false,
        lines: &[("loss", |l| Some(l.loss))],
    },
    Chart {
        title: "PSNR of the validation",
        unit: "dB",
        log_y: false,
        of_validations: true,
        lines: &[("Y", |l| l.val_psnr_y), ("RGB", |l| l.val_psnr)],
    },
    Chart {
        title: "SSIM of the validation",
        unit: "SSIM",
        log_y: false,
        of_validations: true,
        lines: &[("Y", |l| l.val_ssim_y), ("RGB", |l| l.val_ssim)],
    },
    Chart {
        title: "Learning rate",
        unit: "learning rate",
        log_y: false,
        of_validations: false,
        lines: &[("learning rate", |l| Some(l.lr))],
    },
    Chart {
        title: "Gradient norm",
        unit: "norm before clipping",
        log_y: true,
        of_validations: false,
        lines: &[("gradient norm", |l| Some(l.grad_norm))],
    },
    Chart {
        title: "Speed",
        unit: "iterations/s",
        log_y: false,
        of_validations: false,
        lines: &[("it/s", |l| Some(l.it_per_s))],
    },
    Chart {
        title: "Waiting for data",
        unit: "% of the time",
        log_y: false,
        of_validations: false,
        lines: &[("data-wait", |l| Some(100.0 * l.data_wait))],
    },
    Chart {
        title: "Anonymous memory, peak",
        unit: "MiB",
        log_y: false,
        of_validations: false,
        lines: &[("memory", |l| Some(l.anonymous? as f64 / f64::from(1 << 20)))],
    },
];

impl Chart {
    /// The lines of the chart with their points.
    fn series(&self, log: &LogDigest) -> Vec<Series> {
        let points = if self.of_validations {
            &log.validated
        } else {
            &log.lines
        };
        let series = self
            .lines
            .iter()
            .map(|(name, value)| series_of(points, name, value));
        // Old logs have no RGB values: the second line is then left out.
        series
            .enumerate()
            .filter(|(i, line)| *i == 0 || !line.points.is_empty())
            .map(|(_, line)| line)
            .collect()
    }

    /// Whether every line has two points that the axes can show.
    fn can_show(&self, series: &[Series]) -> bool {
        series
            .iter()
            .all(|s| s.points.iter().filter(|p| !self.log_y || p.1 > 0.0).count() > 1)
    }
}

/// The charts of the page as SVG; those without a line to show are left out.
fn charts(log: &LogDigest) -> Result<Vec<String>> {
    CHARTS
        .iter()
        .map(|chart| (chart, chart.series(log)))
        .filter(|(chart, series)| chart.can_show(series))
        .map(|(chart, series)| {
            line_chart_svg(chart.title, "iteration", chart.unit, &series, chart.log_y)
        })
        .collect()
}

fn series_of(lines: &[LogLine], name: &str, value: &LineValue) -> Series {
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

/// At most `MAX_POINTS` evenly chosen points, and the last one.
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
    let (kept, left_out) = kept_previews(run);
    left_out.into_iter().for_each(warn);
    let mut out = Vec::new();
    for image in kept {
        let mut versions = vec![(baseline.to_string(), image.bicubic)];
        let known = image
            .network
            .into_iter()
            .filter(|(i, _)| reached.is_none_or(|reached| *i <= reached));
        let read = |(iteration, path): &(u64, PathBuf)| match read_preview(path) {
            Ok((png, size)) if size == image.size => Some((format!("iteration {iteration}"), png)),
            Ok((_, size)) => {
                let (w, h) = image.size;
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
        // After bicubic comes the newest version, so that the page opens with these two; the first,
        // the middle and the HR follow as choices.
        let mut network: Vec<(u64, PathBuf)> = known.collect();
        let newest = std::iter::from_fn(|| network.pop()).find_map(|version| read(&version));
        versions.extend(newest);
        let middle = network.len() / 2;
        let early = network
            .iter()
            .enumerate()
            .filter(|(i, _)| *i == 0 || *i == middle);
        versions.extend(early.filter_map(|(_, version)| read(version)));
        versions.push(("HR".to_string(), image.hr));
        let caption = "left and right of the line: choose what is compared".to_string();
        out.push(Preview {
            name: format!("{}:", one_line(image.name)),
            caption,
            versions,
            size: image.size,
        });
    }
    out
}

/// Appends every value of a JSON object with its path, `a.b.c`.
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

/// Makes the page of a run again if it has one: a run that goes on must not leave an old page.
pub fn renew(_run: &Path) {}
