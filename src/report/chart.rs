//! Line charts as SVG: loss and quality over time. Depends on `drawing`, `files` and plotters. Axes
//! are legible for any finite data, and a file is written whole or not at all.

use super::drawing::{SMALL_TEXT, frame, palette, style_axes, svg_document, text_style};
use crate::support::files::write_output;
use anyhow::{Context, Result, anyhow, ensure};
use plotters::chart::ChartContext;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::io::Write;
use std::path::Path;

/// Size of the image in SVG units: small, so that the text of the axes can be read where a page shows
/// two charts side by side.
const SIZE: (u32, u32) = (560, 350);
/// Colours of the lines, in the order of the series.
const COLOURS: [RGBColor; 7] = [
    palette::BLUE,
    palette::VERMILLION,
    palette::GREEN,
    palette::PURPLE,
    palette::ORANGE,
    palette::SKY_BLUE,
    palette::grey(40),
];

/// One line of a chart.
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// (x, y), in the order in which they are joined.
    pub points: Vec<(f64, f64)>,
}

/// Writes a line chart to `path` as SVG. With `log_y` the y axis is logarithmic. Points that cannot
/// be drawn (not finite, or not positive on a logarithmic axis) are left out.
///
/// # Errors
/// When no point is left or the file cannot be written.
pub fn line_chart(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
    log_y: bool,
    path: &Path,
) -> Result<()> {
    let svg = line_chart_svg(title, x_label, y_label, series, log_y)
        .with_context(|| format!("cannot draw {}", path.display()))?;
    write_output(path, |out| Ok(out.write_all(svg.as_bytes())?))
}

/// The chart of [`line_chart`] as an SVG document.
pub fn line_chart_svg(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
    log_y: bool,
) -> Result<String> {
    draw(title, x_label, y_label, series, log_y).map_err(|e| anyhow!("{e}"))
}

/// The smallest and the largest value.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    })
}

/// Both ends of an axis that exceeds its data by `share` of their span on either side, or by a
/// little if the span is zero.
fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let room = (high - low) * share;
    let room = if room > 0.0 {
        room
    } else {
        low.abs().max(1.0) * 0.05
    };
    (low - room, high + room)
}

/// A line in the coordinates of the axes: on a logarithmic axis, y is an exponent of ten.
struct Line<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// The lines of the points that can be drawn.
fn drawable_lines(series: &[Series], log_y: bool) -> Vec<Line<'_>> {
    let drawable = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && (!log_y || y > 0.0);
    let on_axes = |(x, y): (f64, f64)| (x, if log_y { y.log10() } else { y });
    series
        .iter()
        .map(|s| Line {
            name: &s.name,
            points: s
                .points
                .iter()
                .copied()
                .filter(drawable)
                .map(on_axes)
                .collect(),
        })
        .collect()
}

fn draw(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
    log_y: bool,
) -> Result<String> {
    let lines = drawable_lines(series, log_y);
    let points = || lines.iter().flat_map(|line| &line.points);
    ensure!(points().next().is_some(), "there is no point to draw");
    let (x_low, x_high) = span(points().map(|p| p.0));
    let x = if x_low < x_high {
        (x_low, x_high)
    } else {
        padded((x_low, x_high), 0.0)
    };
    let y = padded(span(points().map(|p| p.1)), 0.05);
    let y_axis = YAxis {
        low: y.0,
        high: y.1,
        log: log_y,
    };
    svg_document(SIZE, |canvas| {
        let mut chart = frame(canvas, title, 19).build_cartesian_2d(x.0..x.1, y_axis)?;
        style_axes(&mut chart.configure_mesh(), x_label, y_label)
            .x_labels(6)
            .y_labels(7)
            .x_label_formatter(&|v| number(*v))
            .draw()?;
        draw_lines(&mut chart, &lines)?;
        chart
            .configure_series_labels()
            .position(emptiest_corner(&lines, x, y))
            .legend_area_size(30)
            .margin(10)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 202, 206))
            .label_font(text_style(SMALL_TEXT))
            .draw()?;
        Ok(())
    })
}

/// Draws the lines; a line of a single point is drawn as a dot.
fn draw_lines(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<RangedCoordf64, YAxis>>,
    lines: &[Line<'_>],
) -> Result<()> {
    for (i, line) in lines.iter().enumerate() {
        let style = COLOURS[i % COLOURS.len()].stroke_width(2);
        if let [only] = line.points.as_slice() {
            chart.draw_series(std::iter::once(Circle::new(*only, 4, style.color.filled())))?;
        }
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    Ok(())
}

/// The corner whose surroundings the lines cross least, for the legend.
fn emptiest_corner(lines: &[Line<'_>], x: (f64, f64), y: (f64, f64)) -> SeriesLabelPosition {
    use SeriesLabelPosition::{LowerLeft, LowerRight, UpperLeft, UpperRight};
    /// Steps from one point of a line to the next at which the line's position is checked.
    const STEPS: usize = 32;
    let mut crossed = [0usize; 4]; // upper right, lower right, upper left, lower left
    let share = |v: f64, (low, high): (f64, f64)| (v - low) / (high - low);
    for ends in lines.iter().flat_map(|line| line.points.windows(2)) {
        for i in 0..=STEPS {
            let t = i as f64 / STEPS as f64;
            let across = share(ends[0].0 + (ends[1].0 - ends[0].0) * t, x);
            let up = share(ends[0].1 + (ends[1].1 - ends[0].1) * t, y);
            let corner = usize::from(up < 0.5) + 2 * usize::from(across < 0.5);
            crossed[corner] += usize::from((up - 0.5).abs() > 0.25 && (across - 0.5).abs() > 0.25);
        }
    }
    let least = (0..4).min_by_key(|&corner| crossed[corner]).unwrap_or(0);
    [UpperRight, LowerRight, UpperLeft, LowerLeft][least].clone()
}

/// The y axis: values, or exponents of ten that are shown as values. (The logarithmic axis of
/// plotters has no ticks within a decade.)
#[derive(Clone)]
struct YAxis {
    low: f64,
    high: f64,
    log: bool,
}

impl Ranged for YAxis {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: plotters::coord::ranged1d::KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if self.log {
            let values = log_ticks(self.low, self.high, hint.max_num_points());
            return values.into_iter().map(f64::log10).collect();
        }
        ticks(self.low, self.high, hint.max_num_points())
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for YAxis {
    fn format_ext(&self, value: &f64) -> String {
        number(if self.log { 10f64.powf(*value) } else { *value })
    }
}

/// Round values (1, 2 or 5 times a power of ten apart) within a range: at most `most + 1` of them,
/// or 3 if `most` is below 2.
fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let rough = (high - low) / most.max(2) as f64;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * decade)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * decade);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).take(1000).map(|i| i as f64 * step).collect()
}

/// Values for an axis of exponents: powers of ten, with more between them while there is room, and
/// plain round values where the range is less than a decade.
fn log_ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    if high - low < 1.0 {
        return ticks(10f64.powf(low), 10f64.powf(high), most);
    }
    let decades: Vec<i32> = (low.floor() as i32..=high.ceil() as i32).collect();
    let within = |steps: &[f64]| -> Vec<f64> {
        let values = decades
            .iter()
            .flat_map(|&d| steps.iter().map(move |s| s * 10f64.powi(d)));
        values
            .filter(|v| (low..=high).contains(&v.log10()))
            .collect()
    };
    let choices = [
        &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0][..],
        &[1.0, 2.0, 5.0][..],
        &[1.0, 3.0][..],
        &[1.0][..],
    ]
    .map(within);
    let few = choices
        .iter()
        .find(|values| values.len() <= most)
        .unwrap_or(&choices[3]);
    few.iter()
        .step_by(few.len().div_ceil(most.max(1)).max(1))
        .copied()
        .collect()
}

/// A number with up to four significant digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e7).contains(&size) {
        return format!("{value:.3e}")
            .replace(".000e", "e")
            .replace("00e", "e");
    }
    let text = format!("{value:.*}", if size >= 1000.0 { 0 } else { 5 });
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series {
            name: name.into(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn charts_of_ordinary_and_odd_data() {
        let falling: Vec<_> = (1..200)
            .map(|i| (f64::from(i) * 10.0, 0.5 / f64::from(i) + 0.01))
            .collect();
        let odd = [
            (1.0, f64::NAN),
            (2.0, 0.0),
            (3.0, -1.0),
            (4.0, 0.3),
            (f64::INFINITY, 1.0),
        ];
        for log in [false, true] {
            for lines in [
                vec![series("loss", &falling), series("smooth & <fast>", &odd)],
                vec![series("one point", &[(5.0, 3.0)])],
                vec![
                    series("level", &[(0.0, 2.0), (9.0, 2.0)]),
                    series("empty", &[]),
                ],
                vec![series("wide", &[(0.0, 1e-12), (1e9, 1e12)])],
            ] {
                let svg = draw("Loss", "iteration", "L1", &lines, log).unwrap();
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
                assert!(
                    svg.contains("iteration") && !svg.contains("NaN") && !svg.contains("<fast>"),
                    "{svg}"
                );
            }
        }
    }

    #[test]
    fn rejects_a_chart_without_points_and_names_the_file() {
        let path = Path::new("loss.svg");
        let error =
            line_chart("t", "x", "y", &[series("none", &[(0.0, -1.0)])], true, path).unwrap_err();
        assert!(error.to_string().contains("loss.svg"));
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.0, 10.0, 6), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(log_ticks(-2.0, 0.5, 9).len(), 8); // 0.01 0.02 0.05 ... 1 2
        let close = log_ticks(0.02f64.log10(), 0.08f64.log10(), 9);
        assert!(close.len() >= 4 && close.len() <= 9, "{close:?}");
        for most in 1..12 {
            assert!(log_ticks(-30.0, 30.0, most).len() <= most.max(1));
        }
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.30000000000000004, "0.3"),
            (10000.0, "10000"),
            (31.5, "31.5"),
            (1e-5, "1e-5"),
            (2.5e8, "2.5e8"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
