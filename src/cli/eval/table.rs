//! The tables of `paragon eval`: one network image by image, several networks side by side, and the
//! comparison of pairs of networks.

use crate::cli::flags::print;
use crate::cli::layout::{columns, folded, middle_cut};
use anyhow::Result;
use paragon::inference::compare::Comparison;
use paragon::inference::eval::{ImageResult, MOST_PSNR, Scores};

/// Most images of a set of shards that the table has a row for; `--json` has all.
pub const MOST_ROWS: usize = 200;
/// A difference is called significant where a fair coin would be as one-sided less often.
const SIGNIFICANT: f64 = 0.05;

/// The table: PSNR in dB, SSIM, network and bicubic side by side.
pub fn print_table(results: &[ImageResult], network: &Scores, bicubic: &Scores) -> Result<()> {
    print_table_against(BICUBIC, results, network, bicubic)
}

fn decibels(psnr: f64) -> String {
    if psnr >= MOST_PSNR {
        format!(">={MOST_PSNR:.0}")
    } else {
        format!("{psnr:.2}")
    }
}

/// The columns of a row: on Y, and where there is room on RGB too.
fn row(s: &Scores, rgb: bool) -> String {
    let on_y = format!("{:>6}  {:.4}", decibels(s.psnr_y), s.ssim_y);
    if rgb {
        format!("{on_y}  {:>6}  {:.4}", decibels(s.psnr), s.ssim)
    } else {
        on_y
    }
}

/// The head of [`row`].
fn head(rgb: bool) -> &'static str {
    if rgb {
        "PSNR-Y  SSIM-Y    PSNR    SSIM"
    } else {
        "PSNR-Y  SSIM-Y"
    }
}

/// Spaces between a name and its scores, and between the scores of two networks.
const GAP: usize = 3;
/// The least that is shown of a name.
const LEAST_NAME: usize = 12;

/// How a table with `count` groups of scores fits: whether it has columns for RGB, and the width of
/// its names, of which the longest has `longest` characters.
fn fit(longest: usize, count: usize, columns: Option<usize>) -> (bool, usize) {
    let Some(columns) = columns else {
        return (true, longest);
    };
    let scores = |rgb: bool| count * (GAP + head(rgb).len());
    let rgb = scores(true) + longest.min(LEAST_NAME) <= columns;
    let room = columns.saturating_sub(scores(rgb)).max(LEAST_NAME);
    (rgb, longest.min(room))
}

/// Name of the baseline above scale 1.
pub const BICUBIC: &str = "bicubic";

/// [`print_table`] with the name of what the network is compared with.
pub fn print_table_against(
    baseline: &str,
    results: &[ImageResult],
    network: &Scores,
    bicubic: &Scores,
) -> Result<()> {
    let longest = results.iter().map(|r| r.name.chars().count()).max();
    let (rgb, width) = fit(longest.unwrap_or(0).max(7), 2, columns());
    let group = head(rgb).len();
    print(format_args!(
        "{:width$}   {:^group$}   {:^group$}",
        "", "network", baseline
    ))?;
    print(format_args!("{:width$}   {}   {1}", "image", head(rgb)))?;
    if results.len() > MOST_ROWS {
        print(format_args!(
            "{:width$}   ({} rows: --json has them)",
            "...",
            results.len()
        ))?;
    }
    let rows = if results.len() > MOST_ROWS {
        &[]
    } else {
        results
    };
    for r in rows {
        print(format_args!(
            "{:width$}   {}   {}",
            middle_cut(&r.name, width),
            row(&r.network, rgb),
            row(&r.bicubic, rgb)
        ))?;
    }
    print(format_args!(
        "{:width$}   {}   {}",
        "mean",
        row(network, rgb),
        row(bicubic, rgb)
    ))?;
    print(format_args!(
        "{:width$}   {:+6.2} dB PSNR-Y against {baseline}",
        "",
        network.psnr_y - bicubic.psnr_y
    ))
}

/// Networks side by side: the means of each, and of the baseline.
pub fn print_models(baseline: &str, models: &[(String, Scores)], base: &Scores) -> Result<()> {
    let names = models.iter().map(|(name, _)| name.chars().count());
    let longest = names.max().unwrap_or(0).max(baseline.len());
    let (rgb, width) = fit(longest, 1, columns());
    print(format_args!("{:width$}   {}", "mean", head(rgb)))?;
    for (name, scores) in models {
        let name = middle_cut(name, width);
        print(format_args!("{name:width$}   {}", row(scores, rgb)))?;
    }
    print(format_args!("{baseline:width$}   {}", row(base, rgb)))
}

/// A network against the first one, as a sentence.
pub fn print_comparison(first: &str, second: &str, c: &Comparison) -> Result<()> {
    let verdict = if c.p_value >= SIGNIFICANT {
        "no clear difference"
    } else if c.better > c.worse {
        "better"
    } else {
        "worse"
    };
    let text = format!(
        "{second} against {first}: {:+.3} dB PSNR-Y, {:+.4} SSIM-Y; better on {} of {} images, worse on {} \
         (sign test p = {:.2}): {verdict}",
        c.psnr_y, c.ssim_y, c.better, c.images, c.worse, c.p_value
    );
    print(folded(&text, 2, columns()))
}
