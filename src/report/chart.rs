//! Line charts.

use anyhow::{Result, bail};
use std::path::Path;

/// One line of a chart.
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// (x, y), in the order they are joined.
    pub points: Vec<(f64, f64)>,
}

/// Writes a line chart as SVG.
pub fn line_chart(title: &str, x_label: &str, y_label: &str, series: &[Series], log_y: bool, path: &Path) -> Result<()> {
    let _ = (title, x_label, y_label, series, log_y);
    bail!("{}: not written yet", path.display())
}
