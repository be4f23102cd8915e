//! An image of arena occupancy: live bytes by class over the operations of a step, stacked, with
//! the peak marked. Depends on `drawing`, `files` and plotters. The file is written whole or not at
//! all.

use super::drawing::{
    Canvas, INK, SMALL_TEXT, frame, palette, style_axes, svg_document, text_style,
};
use crate::support::files::write_output;
use crate::support::text::bytes_text;
use anyhow::{Result, anyhow};
use plotters::chart::ChartContext;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::io::Write;
use std::path::Path;

const SIZE: (u32, u32) = (1080, 560);
/// Width of the legend, which has its place to the right of the axes, in SVG units.
const LEGEND_WIDTH: u32 = 250;
/// Colours of the classes, with greys for those that are constant over a step.
const COLOURS: [RGBColor; 11] = [
    palette::grey(90),
    palette::grey(120),
    palette::grey(150),
    palette::grey(180),
    palette::grey(205),
    palette::SKY_BLUE,
    palette::grey(60),
    palette::BLUE,
    palette::VERMILLION,
    palette::GREEN,
    palette::ORANGE,
];
const MIB: f64 = (1u64 << 20) as f64;

/// The data of the chart.
pub struct Occupancy<'a> {
    /// The title.
    pub title: String,
    /// Classes from the bottom up: name, colour number, bytes at each operation.
    pub classes: Vec<(&'a str, usize, Vec<u64>)>,
    /// Size of the arena, bytes.
    pub arena_bytes: u64,
    /// Number and label of the operation at the peak.
    pub peak: (usize, &'a str),
}

/// Writes the image to `path` as SVG.
///
/// # Errors
/// When it cannot be drawn or written.
pub fn occupancy_chart(data: &Occupancy<'_>, path: &Path) -> Result<()> {
    let svg = draw(data).map_err(|e| anyhow!("cannot draw {}: {e}", path.display()))?;
    write_output(path, |out| Ok(out.write_all(svg.as_bytes())?))
}

/// A chart of MiB over the operations of a step.
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw(data: &Occupancy<'_>) -> Result<String> {
    let operations = data
        .classes
        .iter()
        .map(|c| c.2.len())
        .max()
        .unwrap_or(0)
        .max(1);
    let top = data.arena_bytes.max(1) as f64 / MIB * 1.12;
    svg_document(SIZE, |canvas| {
        let mut chart = frame(canvas, &data.title, 20)
            .margin_right(LEGEND_WIDTH)
            .build_cartesian_2d(0.0..operations as f64, 0.0..top)?;
        style_axes(
            &mut chart.configure_mesh(),
            "operation of the step",
            "live MiB",
        )
        .disable_x_mesh()
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
        let live = draw_classes(&mut chart, data, operations)?;
        draw_marks(&mut chart, data, &live)?;
        draw_legend(canvas, data)
    })
}

/// Draws the classes on top of each other; returns the live bytes of all classes at each operation.
fn draw_classes(
    chart: &mut Chart<'_, '_>,
    data: &Occupancy<'_>,
    operations: usize,
) -> Result<Vec<u64>> {
    let mut below = vec![0u64; operations];
    for (_, colour, bytes) in &data.classes {
        let mut start = 0;
        while start < bytes.len() {
            // Neighbouring operations of the same height become one rectangle.
            let same = |at: &usize| bytes[*at] == bytes[start] && below[*at] == below[start];
            let end = (start..bytes.len())
                .take_while(same)
                .last()
                .unwrap_or(start)
                + 1;
            let low = below[start] as f64 / MIB;
            let high = (below[start] + bytes[start]) as f64 / MIB;
            if high > low {
                let corners = [(start as f64, low), (end as f64, high)];
                let fill = class_colour(*colour).filled();
                chart.draw_series(std::iter::once(Rectangle::new(corners, fill)))?;
            }
            start = end;
        }
        below
            .iter_mut()
            .zip(bytes)
            .for_each(|(b, &more)| *b += more);
    }
    Ok(below)
}

fn class_colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// Draws a line at the size of the arena and a triangle at the peak.
fn draw_marks(chart: &mut Chart<'_, '_>, data: &Occupancy<'_>, live: &[u64]) -> Result<()> {
    let arena = data.arena_bytes as f64 / MIB;
    let line = [(0.0, arena), (live.len() as f64, arena)];
    chart.draw_series(std::iter::once(PathElement::new(line, INK.stroke_width(1))))?;
    let (operation, _) = data.peak;
    let bytes = live.get(operation).copied().unwrap_or(0);
    let peak = (operation as f64 + 0.5, bytes as f64 / MIB);
    chart.draw_series(std::iter::once(TriangleMarker::new(peak, 7, INK.filled())))?;
    Ok(())
}

/// Draws the legend beside the axes: the classes from the top down with their largest size, then
/// the arena and the peak.
fn draw_legend(canvas: &Canvas<'_>, data: &Occupancy<'_>) -> Result<()> {
    let (left, right) = (SIZE.0 as i32 - 236, SIZE.0 as i32 - 216);
    let write = |text: String, x: i32, y: i32| {
        canvas.draw(&Text::new(text, (x, y), text_style(SMALL_TEXT)))
    };
    for (i, (name, colour, bytes)) in data.classes.iter().rev().enumerate() {
        let y = 64 + 24 * i as i32;
        canvas.draw(&Rectangle::new(
            [(left, y), (left + 13, y + 13)],
            class_colour(*colour).filled(),
        ))?;
        let most = bytes_text(bytes.iter().max().copied().unwrap_or(0));
        write(format!("{name}, {most}"), right, y)?;
    }
    let y = 64 + 24 * data.classes.len() as i32 + 12;
    let (operation, label) = data.peak;
    write(
        format!("line: the arena, {}", bytes_text(data.arena_bytes)),
        left,
        y,
    )?;
    write(
        format!("mark: the peak, operation {operation},"),
        left,
        y + 22,
    )?;
    write(label.to_string(), left, y + 40)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_shows_every_class_and_the_peak() {
        let classes = vec![
            ("activations", 7, vec![1 << 20, 3 << 20, 2 << 20]),
            ("workspace", 10, vec![0, 1 << 20, 0]),
        ];
        let svg = draw(&Occupancy {
            title: "a step".into(),
            classes,
            arena_bytes: 4 << 20,
            peak: (1, "conv"),
        })
        .unwrap();
        for words in [
            "a step",
            "activations, 3.0 MiB",
            "workspace, 1.0 MiB",
            "operation 1",
            "conv",
            "the arena, 4.0 MiB",
        ] {
            assert!(svg.contains(words), "{words}");
        }
        assert!(svg.matches("<rect").count() >= 4 && svg.ends_with("</svg>\n"));
    }
}
