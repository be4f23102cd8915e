//! The curves of a run, or of several over each other.

use super::facts::RunFacts;
use anyhow::Result;
use paragon::report::chart::{Series, line_chart_svg};
use paragon::train::{LogDigest, LogLine};

/// Points that a chart keeps for each line: a screen cannot show more.
const MAX_POINTS: usize = 2000;

/// Stands for the name of what validations compare the network with.
const BASELINE: &str = "baseline";

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
    /// Whether it is shown where runs are compared.
    compares: bool,
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
        compares: true,
        lines: &[("loss", |l| Some(l.loss))],
    },
    Chart {
        title: "PSNR of the validation",
        unit: "dB",
        log_y: false,
        of_validations: true,
        compares: true,
        lines: &[
            ("Y", |l| l.val_psnr_y),
            ("RGB", |l| l.val_psnr),
            (BASELINE, |l| l.val_bicubic_psnr_y),
        ],
    },
    Chart {
        title: "SSIM of the validation",
        unit: "SSIM",
        log_y: false,
        of_validations: true,
        compares: true,
        lines: &[
            ("Y", |l| l.val_ssim_y),
            ("RGB", |l| l.val_ssim),
            (BASELINE, |l| l.val_bicubic_ssim_y),
        ],
    },
    Chart {
        title: "Learning rate",
        unit: "learning rate",
        log_y: false,
        of_validations: false,
        compares: true,
        lines: &[("learning rate", |l| Some(l.lr))],
    },
    Chart {
        title: "Gradient norm",
        unit: "norm before clipping",
        log_y: true,
        of_validations: false,
        compares: false,
        lines: &[("gradient norm", |l| Some(l.grad_norm))],
    },
    Chart {
        title: "Speed",
        unit: "iterations/s",
        log_y: false,
        of_validations: false,
        compares: true,
        lines: &[("it/s", |l| Some(l.it_per_s))],
    },
    Chart {
        title: "Waiting for data",
        unit: "% of the time",
        log_y: false,
        of_validations: false,
        compares: false,
        lines: &[("data-wait", |l| Some(100.0 * l.data_wait))],
    },
    Chart {
        title: "Memory used, peak",
        unit: "MiB",
        log_y: false,
        of_validations: false,
        compares: false,
        lines: &[("memory", |l| Some(l.anonymous? as f64 / f64::from(1 << 20)))],
    },
];

impl Chart {
    /// The lines of the chart with their points.
    fn series(&self, log: &LogDigest, baseline: &str) -> Vec<Series> {
        let points = if self.of_validations {
            &log.validated
        } else {
            &log.lines
        };
        let series = self.lines.iter().map(|(name, value)| {
            let name = if *name == BASELINE { baseline } else { name };
            series_of(points, name, value)
        });
        // Old logs have no RGB values and no baseline: these lines are then left out.
        series
            .enumerate()
            .filter(|(i, line)| *i == 0 || !line.points.is_empty())
            .map(|(_, line)| line)
            .collect()
    }

    fn svg(&self, series: &[Series]) -> Result<String> {
        line_chart_svg(self.title, "iteration", self.unit, series, self.log_y)
    }

    /// Whether every line has two points that the axes can show.
    fn can_show(&self, series: &[Series]) -> bool {
        series
            .iter()
            .all(|s| s.points.iter().filter(|p| !self.log_y || p.1 > 0.0).count() > 1)
    }
}

/// The charts of a run as SVG; those without a line to show are left out. `baseline` is what
/// validations compare the network with.
pub(super) fn of_run(log: &LogDigest, baseline: &str) -> Result<Vec<String>> {
    CHARTS
        .iter()
        .map(|chart| (chart, chart.series(log, baseline)))
        .filter(|(chart, series)| chart.can_show(series))
        .map(|(chart, series)| chart.svg(&series))
        .collect()
}

/// The charts that compare runs, as SVG: the first line of each chart, for every run that has one.
/// The lines of the baseline are those of the first run that has one.
pub(super) fn of_runs(runs: &[RunFacts], names: &[String]) -> Result<Vec<String>> {
    CHARTS
        .iter()
        .filter(|chart| chart.compares)
        .map(|chart| {
            let of_run = |(run, name): (&RunFacts, &String)| {
                let mut series = chart.series(&run.log, run.baseline);
                series.truncate(1);
                let mut first = series.pop()?;
                first.name.clone_from(name);
                chart
                    .can_show(std::slice::from_ref(&first))
                    .then_some(first)
            };
            let mut series: Vec<Series> = runs.iter().zip(names).filter_map(of_run).collect();
            let baseline = runs.iter().find_map(|run| {
                let mut lines = chart.series(&run.log, run.baseline).into_iter();
                lines.find(|line| {
                    line.name == run.baseline && chart.can_show(std::slice::from_ref(line))
                })
            });
            if !series.is_empty() {
                series.extend(baseline);
            }
            (chart, series)
        })
        .filter(|(_, series)| !series.is_empty())
        .map(|(chart, series)| chart.svg(&series))
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
