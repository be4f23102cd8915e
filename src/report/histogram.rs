//! Histograms as SVG. Depends on `drawing` and plotters.

use super::drawing::{frame, palette, style_axes, svg_document};
use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;

/// Size of the image in SVG units, that of the line charts.
const SIZE: (u32, u32) = (560, 350);

/// A histogram.
pub struct Histogram {
    /// Heading.
    pub title: String,
    /// Label of the x axis.
    pub x_label: String,
    /// Label of the y axis.
    pub y_label: String,
    /// The lower end of each bar, ascending, and the number of values in it. All have the width of the
    /// first one.
    pub bars: Vec<(f64, u64)>,
    /// Where a vertical line is drawn.
    pub threshold: Option<f64>,
}

/// Draws a histogram as an SVG document.
///
/// # Errors
/// There is no bar.
pub fn histogram_svg(histogram: &Histogram) -> Result<String> {
    draw(histogram).map_err(|e| anyhow!("{e}"))
}

fn draw(histogram: &Histogram) -> Result<String> {
    let bars = &histogram.bars;
    ensure!(!bars.is_empty(), "there is no bar to draw");
    let low = bars[0].0;
    let width = bars.get(1).map_or(1.0, |second| second.0 - low);
    let end = bars[bars.len() - 1].0 + width;
    let high = histogram.threshold.unwrap_or(low).max(end);
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(0).max(1) as f64;
    svg_document(SIZE, |canvas| {
        let mut chart = frame(canvas, &histogram.title, 19).build_cartesian_2d(
            low.min(histogram.threshold.unwrap_or(low))..high,
            0.0..most * 1.05,
        )?;
        style_axes(
            &mut chart.configure_mesh(),
            &histogram.x_label,
            &histogram.y_label,
        )
        .disable_x_mesh()
        .x_label_formatter(&|x| format!("{}", (x * 1000.0).round() / 1000.0))
        .y_label_formatter(&whole)
        .draw()?;
        for &(start, count) in bars {
            let corners = [(start, 0.0), (start + width * 0.92, count as f64)];
            let bar = Rectangle::new(corners, palette::BLUE.filled());
            chart.draw_series(std::iter::once(bar))?;
        }
        if let Some(threshold) = histogram.threshold {
            let line = [(threshold, 0.0), (threshold, most * 1.05)];
            let style = palette::VERMILLION.stroke_width(2);
            chart.draw_series(std::iter::once(PathElement::new(line, style)))?;
        }
        Ok(())
    })
}

/// A number of values; nothing between two whole numbers.
fn whole(y: &f64) -> String {
    if (y - y.round()).abs() < 1e-6 {
        format!("{y:.0}")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_the_threshold_are_drawn() {
        let mut histogram = Histogram {
            title: "noise of images".into(),
            x_label: "sigma".into(),
            y_label: "images".into(),
            bars: vec![(0.0, 3), (0.5, 7), (1.0, 0), (1.5, 1)],
            threshold: Some(5.0),
        };
        let svg = histogram_svg(&histogram).unwrap();
        let bars = svg.matches("fill=\"#0072B2\"").count();
        assert_eq!(bars, 4, "{svg}");
        assert!(svg.contains("#D55E00") && svg.contains("noise of images"));
        histogram.bars = vec![(2.0, 5)];
        histogram.threshold = None;
        assert!(!histogram_svg(&histogram).unwrap().contains("#D55E00"));
        histogram.bars.clear();
        assert!(histogram_svg(&histogram).is_err());
    }
}
