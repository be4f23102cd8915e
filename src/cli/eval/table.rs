//! The tables of `paragon eval`: one network image by image, several networks side by side, and the
//! comparison of pairs of networks.

use crate::cli::flags::print;
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

/// The four columns of a row.
fn row(s: &Scores) -> String {
    format!(
        "{:>6}  {:.4}  {:>6}  {:.4}",
        decibels(s.psnr_y),
        s.ssim_y,
        decibels(s.psnr),
        s.ssim
    )
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
    let width = results
        .iter()
        .map(|r| r.name.len())
        .max()
        .unwrap_or(0)
        .max(7);
    print(format_args!(
        "{:width$}   {:^31}   {:^31}",
        "", "network", baseline
    ))?;
    print(format_args!(
        "{:width$}   PSNR-Y  SSIM-Y    PSNR    SSIM   PSNR-Y  SSIM-Y    PSNR    SSIM",
        "image"
    ))?;
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
            r.name,
            row(&r.network),
            row(&r.bicubic)
        ))?;
    }
    print(format_args!(
        "{:width$}   {}   {}",
        "mean",
        row(network),
        row(bicubic)
    ))?;
    print(format_args!(
        "{:width$}   {:+6.2} dB PSNR-Y against {baseline}",
        "",
        network.psnr_y - bicubic.psnr_y
    ))
}

/// Networks side by side: the means of each, and of the baseline.
pub fn print_models(baseline: &str, models: &[(String, Scores)], base: &Scores) -> Result<()> {
    let names = models.iter().map(|(name, _)| name.len());
    let width = names.max().unwrap_or(0).max(baseline.len());
    print(format_args!(
        "{:width$}   PSNR-Y  SSIM-Y    PSNR    SSIM",
        "mean"
    ))?;
    for (name, scores) in models {
        print(format_args!("{name:width$}   {}", row(scores)))?;
    }
    print(format_args!("{baseline:width$}   {}", row(base)))
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
    print(format_args!(
        "{second} against {first}: {:+.3} dB PSNR-Y, {:+.4} SSIM-Y; better on {} of {} images, worse on {} \
         (sign test p = {:.2}): {verdict}",
        c.psnr_y, c.ssim_y, c.better, c.images, c.worse, c.p_value
    ))
}
