//! `paragon shard`: flags to a build configuration, one library call, the report. Depends on
//! `shard` alone.

use super::flags::{print, print_json, tell};
use anyhow::{Context, Result};
use paragon::config::parse_size;
use paragon::dataset::decode::Limits;
use paragon::dataset::recipe::{LqFilter, Recipe};
use paragon::dataset::scan::LeftOut;
use paragon::shard::codec::Codec;
use paragon::shard::estimate::{Estimate, estimate};
use paragon::shard::forecast;
use paragon::shard::plan::{BuildConfig, HeldOut, Plan, Rejected, plan};
use paragon::shard::writer::build;
use paragon::support::progress::Progress;
use paragon::support::text::bytes_text;
use paragon::support::text::one_line;
use paragon::sys;
use std::fmt::Write;
use std::path::PathBuf;

/// Cut a folder of photographs into a set of LQ/HR patch pairs, stored without loss and ready for
/// training.
///
/// Finds HR and LQ images that belong together, or makes the LQ from the HR. Files that cannot be
/// used are listed with the reason. An interrupted run resumes when the same command is
/// given again.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the images: HR alone, or with HR and LQ below it (hr/lq, HR/LR_bicubic/X2,
    /// GTmod12/LRbicx2 ...)
    dataset: PathBuf,
    /// Folder for the set
    #[arg(long, default_value = "shards", value_name = "DIR")]
    out: PathBuf,
    /// HR side over LQ side; 1 for restoration: pairs of equal size, whose LQ must be given
    #[arg(long, default_value_t = 2)]
    scale: u32,
    /// Side of the LQ patches in pixels; the HR patches are `scale` times that
    #[arg(long, default_value_t = 128, value_name = "PIXELS")]
    lq_size: u32,
    /// Store patches this many LQ pixels larger than --lq-size: training takes crops of --lq-size
    /// at any place in them
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    margin: u32,
    /// Distance of neighbouring patches in LQ pixels [default: the stored patch, so that they do
    /// not overlap but at the border]
    #[arg(long, value_name = "PIXELS")]
    stride: Option<u32>,
    /// The HR folder, if its name is not one that is recognised
    #[arg(long, value_name = "DIR")]
    hr: Option<PathBuf>,
    /// The LQ folder, if its name is not one that is recognised
    #[arg(long, value_name = "DIR")]
    lq: Option<PathBuf>,
    /// How the LQ is made where there is none (at scale 1 none is made)
    #[arg(
        long,
        alias = "filter",
        value_enum,
        default_value = "bicubic",
        value_name = "FILTER"
    )]
    lq_filter: LqFilter,
    /// Blur the HR before the LQ is made from it: each patch by a deviation of its own, from 0 up
    /// to this many HR pixels
    #[arg(long, default_value_t = 0.0, value_parser = super::flags::not_negative, value_name = "MAX_SIGMA")]
    lq_blur: f64,
    /// Leave out patches that show less than this: the mean over the HR of the differences in luma
    /// (0 to 255) to the left and to the upper neighbour, added; 0 keeps all, 2 drops clear sky and
    /// blank walls
    #[arg(long, default_value_t = 0.0, value_parser = super::flags::not_negative, value_name = "X")]
    min_detail: f64,
    /// Keep duplicate pairs; without this only the first one, in the order of the names, is stored
    #[arg(long)]
    keep_duplicates: bool,
    /// Hold out whole images for validation in a separate set, DIR/val: a number (50) or about a
    /// share (0.02, 2%) of them; tiles of one photograph (NAME_s001, NAME_s002 ...) stay together
    #[arg(long, value_parser = parse_val, value_name = "N|SHARE")]
    val: Option<HeldOut>,
    /// Do part I of N of the work, for N machines at once; `paragon shards merge` merges the parts
    #[arg(long, value_parser = parse_part, value_name = "I/N", conflicts_with = "append")]
    part: Option<(u32, u32)>,
    /// Add the images that a finished set does not hold yet: its shards stay, new ones follow
    #[arg(long, conflicts_with = "overwrite")]
    append: bool,
    /// Seed of the random choices: filters, blurs, and which images are held out
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// How pairs are stored
    #[arg(long, value_enum, default_value = "predict")]
    codec: Codec,
    /// Threads that convert [default: one for each core]; the set is the same for any number
    #[arg(long, value_name = "N", value_parser = super::flags::count(super::flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
    /// Size at which a new shard file is started, MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    shard_size: u64,
    /// Most memory for the images in progress (512M, 2G); an image that needs more is rejected
    /// [default: 2G, or half of the memory that this process may take where that is less; an image
    /// that needs more then stops the run before it starts]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    host_memory: Option<u64>,
    /// Largest image that is read, in megapixels
    #[arg(long, value_name = "MP")]
    max_megapixels: Option<u64>,
    /// Report what would be done, with expected size and time from a few images converted in
    /// memory, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Remove a set that is already in the output folder. The same command, given again after an
    /// interruption, resumes the new set and does not start over
    #[arg(long)]
    overwrite: bool,
}

/// Reads `50`, `0.02` or `2%`.
fn parse_val(text: &str) -> Result<HeldOut, String> {
    let wrong =
        || format!("`{text}` is neither a number of images (50) nor a share below 1 (0.02, 2%)");
    let share = |text: &str, of: f64| {
        text.trim()
            .parse()
            .ok()
            .map(|n: f64| n / of)
            .filter(|s| (0.0..1.0).contains(s))
    };
    if let Some(percent) = text.trim().strip_suffix('%') {
        return share(percent, 100.0).map(HeldOut::Share).ok_or_else(wrong);
    }
    match text.trim().parse() {
        Ok(count) => Ok(HeldOut::Count(count)),
        Err(_) => share(text, 1.0).map(HeldOut::Share).ok_or_else(wrong),
    }
}

/// Reads `3/8`.
fn parse_part(text: &str) -> Result<(u32, u32), String> {
    let numbers = text
        .split_once('/')
        .and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
    let fits = |(i, n): &(u32, u32)| (1..=*n).contains(i) && *n <= MAX_PARTS;
    numbers.filter(fits).ok_or_else(|| {
        format!("`{text}` is no part; write 1/8 to 8/8 for eight parts (at most {MAX_PARTS})")
    })
}

/// Default of the most memory for images in progress, bytes.
const USUAL_HOST_MEMORY: u64 = 2 << 30;

/// Most parts of one set.
const MAX_PARTS: u32 = 100_000;

/// Makes the set, or says what would be made.
pub fn run(args: &Args) -> Result<()> {
    let defaults = Limits::default();
    let stored = args
        .lq_size
        .checked_add(args.margin)
        .context("--margin is out of range")?;
    // what a set holds never depends on the machine that makes it: a default that is smaller here
    // stops a run and rejects nothing
    let limit = sys::memory_limit();
    let half = limit.as_ref().map_or(u64::MAX, |limit| limit.bytes / 2);
    let smaller = limit.filter(|_| args.host_memory.is_none() && half < USUAL_HOST_MEMORY);
    let config = BuildConfig {
        margin: args.margin,
        stride: args.stride.unwrap_or(stored),
        min_detail: args.min_detail,
        keep_duplicates: args.keep_duplicates,
        val: args.val,
        part: args.part,
        append: args.append,
        hr: args.hr.clone(),
        lq: args.lq.clone(),
        recipe: Recipe {
            filter: args.lq_filter,
            blur: args.lq_blur,
            seed: args.seed,
        },
        codec: args.codec,
        threads: args.threads.unwrap_or(0),
        shard_bytes: args
            .shard_size
            .checked_mul(1 << 20)
            .context("--shard-size is out of range")?,
        host_memory: args.host_memory.unwrap_or(if smaller.is_some() {
            half
        } else {
            USUAL_HOST_MEMORY
        }),
        memory_limit: smaller.map(|limit| limit.limit),
        overwrite: args.overwrite,
        limits: Limits {
            max_pixels: args
                .max_megapixels
                .map_or(defaults.max_pixels, |mp| mp.saturating_mul(1_000_000)),
        },
        ..BuildConfig::new(&args.dataset, &args.out, args.scale, stored)
    };
    if let Some(limit) = &config.memory_limit {
        tell(format_args!(
            "images under way take at most {} of memory: half of {limit}",
            bytes_text(config.host_memory)
        ));
    }
    let plan = plan(&config)?;
    if args.dry_run {
        return dry_run(&config, &plan, args.json);
    }
    // a rejected file is named at once, here and while converting: if the run fails later, the
    // reasons have been said
    list(&plan);
    let progress = Progress::new("shard", plan.jobs.len() as u64, "images");
    let report = build(&config, plan, &progress);
    progress.finish();
    let report = report?;
    if args.json {
        print_json(&report)
    } else {
        print(report.to_string().trim_end())
    }
}

fn list(plan: &Plan) {
    for r in &plan.rejected {
        tell(format_args!(
            "rejected {}: {}",
            one_line(r.file.display()),
            r.reason
        ));
    }
    for left in plan.left_out.iter().filter(|l| l.may_surprise()) {
        tell(format_args!("note: {left}"));
    }
}

/// What `--dry-run` prints.
#[derive(serde::Serialize)]
struct Foretold<'a> {
    images: u64,
    used: u64,
    rejected: &'a [Rejected],
    ignored: u64,
    left_out: &'a [LeftOut],
    pairs: u64,
    scale: u32,
    lq_size: u32,
    lq_recipe: &'a str,
    held_out_images: u64,
    bytes_in: u64,
    bytes_raw: u64,
    estimate: Option<Estimate>,
    there: String,
}

fn dry_run(config: &BuildConfig, plan: &Plan, json: bool) -> Result<()> {
    let told = Foretold {
        images: plan.images,
        used: plan.jobs.len() as u64,
        rejected: &plan.rejected,
        ignored: plan.ignored,
        left_out: &plan.left_out,
        pairs: plan.pairs(),
        scale: plan.geometry.scale,
        lq_size: plan.geometry.lq_size,
        lq_recipe: &plan.manifest.recipe_name,
        held_out_images: plan.jobs.iter().filter(|j| j.held_out).count() as u64,
        bytes_in: plan.jobs.iter().map(|j| j.file_bytes).sum(),
        bytes_raw: plan.raw_bytes(),
        estimate: estimate(config, plan)?,
        there: forecast(config, plan),
    };
    list(plan);
    if json {
        return print_json(&told);
    }
    let mut out = String::new();
    writeln!(out, "dry run: nothing is written")?;
    writeln!(
        out,
        "  images     {} found = {} to use + {} rejected",
        told.images,
        told.used,
        told.rejected.len()
    )?;
    for left in told.left_out {
        writeln!(out, "             {left}")?;
    }
    if told.held_out_images > 0 {
        writeln!(
            out,
            "             {} of these held out",
            told.held_out_images
        )?;
    }
    writeln!(
        out,
        "  patches    {} of LQ {} at scale {}, LQ {}",
        told.pairs, told.lq_size, told.scale, told.lq_recipe
    )?;
    writeln!(
        out,
        "  size       {} read, {} of pixels",
        bytes_text(told.bytes_in),
        bytes_text(told.bytes_raw)
    )?;
    match &told.estimate {
        Some(e) => {
            writeln!(
                out,
                "  estimate   {} pairs, {} of shards, {:.1} s",
                e.pairs,
                bytes_text(e.bytes),
                e.seconds
            )?;
            writeln!(
                out,
                "             from {} images converted just now; the disk and duplicates may change it",
                e.sampled_images
            )?;
        }
        None => writeln!(
            out,
            "  estimate   none: no image that was tried can be used"
        )?,
    }
    writeln!(out, "  folder     {}", told.there)?;
    print(out.trim_end())
}

#[cfg(test)]
mod tests {
    use super::{HeldOut, parse_part, parse_size, parse_val};

    #[test]
    fn parts_and_shares_are_read() {
        assert_eq!(parse_part("3/8"), Ok((3, 8)));
        assert!(
            ["0/8", "9/8", "3", "/", "-1/2", "1/999999999"]
                .iter()
                .all(|t| parse_part(t).is_err())
        );
        assert_eq!(parse_val("50"), Ok(HeldOut::Count(50)));
        assert_eq!(parse_val("0.25"), Ok(HeldOut::Share(0.25)));
        assert_eq!(parse_val("25%"), Ok(HeldOut::Share(0.25)));
        assert!(
            ["1.5", "-1", "100%", "x", ""]
                .iter()
                .all(|t| parse_val(t).is_err())
        );
    }

    #[test]
    fn sizes_are_read() {
        for (text, value) in [
            ("0", 0),
            ("1500", 1500),
            ("2k", 2048),
            ("1.5M", 3 << 19),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
        for text in ["", "x", "2Q", "-1", "1e99G", "G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
