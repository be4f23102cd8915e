//! An image of arena occupancy: live bytes by class over the operations of a step, stacked, with
//! the peak marked. Depends on `files` and plotters. The file is written whole or not at all.

use super::chart::{FONT, INK};
use crate::support::files::write_output;
use crate::support::text::bytes_text;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::io::Write;
use std::path::Path;

const SIZE: (u32, u32) = (1080, 560);
/// Colours that can be distinguished in print and with red-green blindness (Okabe & Ito, 2008), and
/// greys for classes that are constant over a step.
const COLOURS: [RGBColor; 11] = [
    RGBColor(90, 90, 90),
    RGBColor(120, 120, 120),
    RGBColor(150, 150, 150),
    RGBColor(180, 180, 180),
    RGBColor(205, 205, 205),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
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

fn draw(data: &Occupancy<'_>) -> Result<String> {
    let operations = data
        .classes
        .iter()
        .map(|c| c.2.len())
        .max()
        .unwrap_or(0)
        .max(1);
    let top = data.arena_bytes.max(1) as f64 / MIB * 1.12;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&data.title, (FONT, 20).into_font().color(&INK))
            .margin(16)
            .margin_right(250) // the legend stands beside the image
            .x_label_area_size(48)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..operations as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc("operation of the step")
            .y_desc("live MiB")
            .disable_x_mesh()
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 227, 230))
            .axis_style(RGBColor(120, 124, 130))
            .label_style((FONT, 14).into_font().color(&INK))
            .axis_desc_style((FONT, 15).into_font().color(&INK))
            .draw()?;
        let mut below = vec![0u64; operations];
        for (_, colour, bytes) in &data.classes {
            let mut start = 0;
            while start < bytes.len() {
                // one rectangle for operations that look alike
                let same = |at: &usize| bytes[*at] == bytes[start] && below[*at] == below[start];
                let end = (start..bytes.len())
                    .take_while(same)
                    .last()
                    .unwrap_or(start)
                    + 1;
                let (low, high) = (
                    below[start] as f64 / MIB,
                    (below[start] + bytes[start]) as f64 / MIB,
                );
                if high > low {
                    let corners = [(start as f64, low), (end as f64, high)];
                    chart.draw_series(std::iter::once(Rectangle::new(
                        corners,
                        COLOURS[colour % COLOURS.len()].filled(),
                    )))?;
                }
                start = end;
            }
            below
                .iter_mut()
                .zip(bytes)
                .for_each(|(b, &more)| *b += more);
        }
        let arena = data.arena_bytes as f64 / MIB;
        let line = PathElement::new(
            [(0.0, arena), (operations as f64, arena)],
            INK.stroke_width(1),
        );
        chart.draw_series(std::iter::once(line))?;
        let small = || (FONT, 14).into_font().color(&INK);
        let at = data.peak.0 as f64 + 0.5;
        let peak = below.get(data.peak.0).copied().unwrap_or(0) as f64 / MIB;
        chart.draw_series(std::iter::once(TriangleMarker::new(
            (at, peak),
            7,
            INK.filled(),
        )))?;
        let (left, right) = (SIZE.0 as i32 - 236, SIZE.0 as i32 - 216);
        let text = |words: String, x: i32, y: i32| Text::new(words, (x, y), small());
        for (i, (name, colour, bytes)) in data.classes.iter().rev().enumerate() {
            let y = 64 + 24 * i as i32;
            root.draw(&Rectangle::new(
                [(left, y), (left + 13, y + 13)],
                COLOURS[colour % COLOURS.len()].filled(),
            ))?;
            root.draw(&text(
                format!(
                    "{name}, {}",
                    bytes_text(bytes.iter().max().copied().unwrap_or(0))
                ),
                right,
                y,
            ))?;
        }
        let y = 64 + 24 * data.classes.len() as i32 + 12;
        root.draw(&text(
            format!("line: the arena, {}", bytes_text(data.arena_bytes)),
            left,
            y,
        ))?;
        root.draw(&text(
            format!("mark: the peak, operation {},", data.peak.0),
            left,
            y + 22,
        ))?;
        root.draw(&text(data.peak.1.to_string(), left, y + 40))?;
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_and_the_peak_are_in_the_picture() {
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
