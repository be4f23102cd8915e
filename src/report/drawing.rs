//! What the SVG charts share: font, colours, frame and axes. Depends on plotters only. Charts that
//! are drawn with it look alike.

use anyhow::Result;
use plotters::chart::{ChartBuilder, MeshStyle};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

/// Colours that can be distinguished in print and with red-green blindness (Okabe & Ito, 2008).
pub(super) mod palette {
    use plotters::style::RGBColor;

    pub const BLUE: RGBColor = RGBColor(0, 114, 178);
    pub const VERMILLION: RGBColor = RGBColor(213, 94, 0);
    pub const GREEN: RGBColor = RGBColor(0, 158, 115);
    pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
    pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
    pub const SKY_BLUE: RGBColor = RGBColor(86, 180, 233);

    pub const fn grey(level: u8) -> RGBColor {
        RGBColor(level, level, level)
    }
}

/// Colour of text and of marks.
pub(super) const INK: RGBColor = RGBColor(30, 32, 36);
/// Size of the text at ticks and in legends, in SVG units.
pub(super) const SMALL_TEXT: u32 = 14;

/// The area that a chart is drawn into.
pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Text of `size` SVG units.
pub(super) fn text_style(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// An SVG document of `size` units with what `draw` draws on a white background.
pub(super) fn svg_document(
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<()>,
) -> Result<String> {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        canvas.fill(&WHITE)?;
        draw(&canvas)?;
        canvas.present()?;
    }
    Ok(svg)
}

/// A chart with its title (`title_size` in SVG units), margins, and room for the labels of both
/// axes.
pub(super) fn frame<'a, 'b>(
    canvas: &'a Canvas<'b>,
    title: &str,
    title_size: u32,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(canvas);
    chart
        .caption(title, text_style(title_size))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(76);
    chart
}

/// Sets the labels and the style of axes and grid lines; the caller draws them.
pub(super) fn style_axes<'m, 'a, 'b, 'c, X, Y>(
    mesh: &'m mut MeshStyle<'a, 'b, X, Y, SVGBackend<'c>>,
    x_label: &str,
    y_label: &str,
) -> &'m mut MeshStyle<'a, 'b, X, Y, SVGBackend<'c>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    mesh.x_desc(x_label)
        .y_desc(y_label)
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 227, 230))
        .axis_style(RGBColor(120, 124, 130))
        .label_style(text_style(SMALL_TEXT))
        .axis_desc_style(text_style(15))
}
