//! The options by which `paragon shard` selects images and patches, and what `--dry-run` prints of
//! their measures. Depends on `shard::criteria`, `shard::survey` and `shard_sheet`.

use super::flags::not_negative;
use super::shard_sheet::write_sheet;
use anyhow::{Result, bail, ensure};
use paragon::shard::criteria::Criteria;
use paragon::shard::plan::{BuildConfig, Plan};
use paragon::shard::survey::{Distribution, Measure, QUANTILES, Survey, survey};
use paragon::support::progress::Progress;
use std::fmt::Write;
use std::path::PathBuf;

/// The flags that select data.
#[derive(clap::Args)]
#[command(next_help_heading = "Selecting images and patches (see docs/datasets.md)")]
pub struct SelectArgs {
    /// Leave out images whose JPEG blocks are stronger than this: by how many levels of luma (0 to
    /// 255) the steps on the grid of 8x8 blocks exceed the others. No JPEG has 0 to 0.5, quality 90
    /// about 1, 75 about 2.5, 50 about 4, 30 about 6
    #[arg(long, value_parser = not_negative, value_name = "LEVELS")]
    max_blockiness: Option<f64>,
    /// Leave out images with more noise than this: its standard deviation in the flattest places,
    /// in units of 1/255. Clean photographs have 0.3 to 1.5; at 5 noise is plainly seen
    #[arg(long, value_parser = not_negative, value_name = "SIGMA")]
    max_noise: Option<f64>,
    /// Leave out images that resemble an earlier one, in the order of the names: at most this many
    /// of the 64 bits of their perceptual hashes differ. 0 to 4 finds copies that were resized or
    /// recompressed, 10 also what is only alike; unrelated images differ in about 32
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=32), value_name = "BITS")]
    near_duplicates: Option<u32>,
    /// Leave out patches whose sharpest edges are blurred by more than this, in HR pixels, up to 10.
    /// Photographs in focus have 0.2 to 0.6; blurred by a Gaussian of 1.5 pixels they have about 1, of
    /// 3 pixels about 1.8. Patches with too few edges to say are kept
    #[arg(long, value_parser = not_negative, value_name = "PIXELS")]
    max_blur: Option<f64>,
    /// Leave out patches whose luma has less entropy than this, 0 to 8 bits; photographs mostly have
    /// 5 to 7.8, clear sky and drawings less
    #[arg(long, value_parser = not_negative, value_name = "BITS")]
    min_entropy: Option<f64>,
    /// With --dry-run: measure all images, or about N of them (--measure=200), and print how the
    /// values are distributed. The options above do this by themselves
    #[arg(long, requires = "dry_run", value_name = "N", num_args = 0..=1, require_equals = true,
        default_missing_value = "all", value_parser = parse_sample)]
    measure: Option<Sample>,
    /// With --dry-run: write a sheet of what would be left out, with the values, as FILE.png or, with
    /// histograms, as FILE.html
    #[arg(long, requires = "dry_run", value_name = "FILE")]
    sheet: Option<PathBuf>,
}

/// How many images are measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sample {
    All,
    About(u64),
}

fn parse_sample(text: &str) -> Result<Sample, String> {
    match text.trim() {
        "all" => Ok(Sample::All),
        number => match number.parse() {
            Ok(count) if count > 0 => Ok(Sample::About(count)),
            _ => Err(format!(
                "`{text}` is no number of images; write --measure for all, --measure=200 for about 200"
            )),
        },
    }
}

impl SelectArgs {
    /// The thresholds that were given.
    pub fn criteria(&self) -> Criteria {
        Criteria {
            max_blockiness: self.max_blockiness,
            max_noise: self.max_noise,
            near_duplicates: self.near_duplicates,
            max_blur: self.max_blur,
            min_entropy: self.min_entropy,
        }
    }

    /// Measures what a dry run is asked to measure, and writes the sheet.
    ///
    /// # Errors
    /// The ending of the sheet is unknown; nothing could be measured; an error of the system.
    pub fn survey(&self, config: &BuildConfig, plan: &Plan) -> Result<Option<Survey>> {
        if let Some(path) = &self.sheet {
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("");
            ensure!(
                ["png", "html"]
                    .iter()
                    .any(|e| e.eq_ignore_ascii_case(ending)),
                "--sheet {}: a sheet is written as .png or .html",
                path.display()
            );
        }
        let with_thresholds = config.criteria != Criteria::default() || config.min_detail > 0.0;
        if self.measure.is_none() && self.sheet.is_none() && !with_thresholds {
            return Ok(None);
        }
        let sample = match self.measure {
            Some(Sample::About(count)) => Some(count),
            _ => None,
        };
        let count = sample.unwrap_or(u64::MAX).min(plan.jobs.len() as u64);
        let progress = Progress::new("measure", count, "images");
        let found = survey(config, plan, sample, &progress);
        progress.finish();
        let found = found?;
        if let Some(path) = &self.sheet {
            if found.images == 0 {
                bail!("{}: no image could be measured", path.display());
            }
            write_sheet(&found, config, plan, path)?;
        }
        Ok(Some(found))
    }

    /// The file that the sheet was written to.
    pub fn sheet(&self) -> Option<&PathBuf> {
        self.sheet.as_ref()
    }
}

/// Width of the longest bar; the text fits 60 columns.
const LONGEST_BAR: usize = 32;

/// The survey as text.
pub fn survey_text(survey: &Survey) -> Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "  measured   {} images, {} patches of the HR in {:.1} s",
        survey.images, survey.patches, survey.seconds
    )?;
    if survey.unreadable > 0 {
        writeln!(
            out,
            "             {} more cannot be used",
            survey.unreadable
        )?;
    }
    writeln!(
        out,
        "  kept       {} images, {} patches, before duplicates",
        survey.images_kept, survey.patches_kept
    )?;
    write!(out, "\n  {:10}", "quantiles")?;
    for share in QUANTILES {
        write!(out, "{:>5}%", share * 100.0)?;
    }
    writeln!(out)?;
    for found in &survey.measures {
        write!(out, "  {:10}", found.measure.name())?;
        for share in QUANTILES {
            let value = found.quantile(share);
            write!(
                out,
                "{:>6}",
                value.map_or("-".into(), |v| number(found.measure, v))
            )?;
        }
        writeln!(out)?;
    }
    for found in &survey.measures {
        histogram(&mut out, found)?;
    }
    Ok(out)
}

/// A value with as many digits as matter.
pub(super) fn number(measure: Measure, value: f64) -> String {
    if measure == Measure::Similarity {
        format!("{value:.0}")
    } else if value < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.1}")
    }
}

fn histogram(out: &mut String, found: &Distribution) -> Result<()> {
    let measure = found.measure;
    let of = measure.of();
    writeln!(out, "\n  {} of {of}: {}", measure.name(), measure.unit())?;
    let bars = found.bars();
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1).max(1);
    for (i, &(low, count)) in bars.iter().enumerate() {
        let more = if i + 1 == bars.len() { "+" } else { " " };
        let length = (count as f64 / most as f64 * LONGEST_BAR as f64).round() as usize;
        let bar = "#".repeat(length.max(usize::from(count > 0)));
        writeln!(
            out,
            "    {:>7}{more} {bar:<LONGEST_BAR$} {count}",
            number(measure, low)
        )?;
    }
    if found.without > 0 {
        writeln!(out, "    no value: {} {of}", found.without)?;
    }
    if let Some(threshold) = found.threshold {
        let all = found.count + found.without;
        writeln!(
            out,
            "    {} {threshold}: {} of {all} {of} left out",
            measure.option(),
            found.left_out
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        assert_eq!(parse_sample("all"), Ok(Sample::All));
        assert_eq!(parse_sample("200"), Ok(Sample::About(200)));
        for text in ["0", "-3", "x", "", "1.5"] {
            assert!(parse_sample(text).is_err(), "{text}");
        }
    }
}
