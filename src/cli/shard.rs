//! `paragon shard`: flags to a build configuration, one library call, the report. Depends on
//! `shard`, and on `config` for the folders of an option file.

use super::data::tell_side;
use super::flags::{print, print_json, tell};
use super::layout::{columns, folded};
use super::recipe::content_of;
use super::shard_dry_run::dry_run;
use super::shard_part::{PartFlag, auto_part, parse_part};
use super::shard_select::SelectArgs;
use super::train::STOPPED;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use paragon::config::{ImageFolders, image_folders, parse_size};
use paragon::dataset::decode::Limits;
use paragon::dataset::degrade::Filter;
use paragon::dataset::recipe::{LqFilter, Recipe};
use paragon::degrade;
use paragon::shard::codec::Codec;
use paragon::shard::criteria::Criteria;
use paragon::shard::format::MAX_LQS;
use paragon::shard::manifest::{self, Manifest};
use paragon::shard::plan::{BuildConfig, DatasetFolder, HeldOut, Plan, plan};
use paragon::shard::size_hint;
use paragon::shard::writer::{Stopped, build};
use paragon::support::progress::Progress;
use paragon::support::text::bytes_text;
use paragon::support::text::one_line;
use paragon::sys;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Cut a folder of photographs into a set of LQ/HR patch pairs, stored without loss and ready for
/// training.
///
/// Finds HR and LQ images that belong together, or makes the LQ from the HR by a filter or by a
/// degradation recipe. Files that cannot be used are listed with the reason. An interrupted run
/// resumes when the same command is given again.
#[derive(clap::Args)]
pub struct Args {
    /// Folders of the images: HR alone, or with HR and LQ below it (hr/lq, HR/LR_bicubic/X2,
    /// GTmod12/LRbicx2 ...). With more than one folder, names of images begin with that of their
    /// folder
    #[arg(required_unless_present = "config")]
    dataset: Vec<PathBuf>,
    /// Take the folders from an option file of traiNNer-redux, BasicSR or neosr (dataroot_gt and
    /// dataroot_lq), with scale and patch size where it has them; flags win over it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dataset", "hr", "lq"])]
    config: Option<PathBuf>,
    /// Folder for the set
    #[arg(long, default_value = "shards", value_name = "DIR")]
    out: PathBuf,
    /// HR side over LQ side; 1 for restoration: pairs of equal size, whose LQ is given or made by
    /// --degrade [default: 2]
    #[arg(long, value_name = "N")]
    scale: Option<u32>,
    /// Side of the LQ patches in pixels; the HR patches are `scale` times that [default: 128]
    #[arg(long, value_name = "PIXELS")]
    lq_size: Option<u32>,
    /// Store patches this many LQ pixels larger than --lq-size: training takes crops of --lq-size
    /// at any place in them [default: 0, and half of --lq-size with --hr-only]
    #[arg(long, value_name = "PIXELS")]
    margin: Option<u32>,
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
    /// How the LQ is made where there is none (at scale 1 none is made) [default: bicubic]
    #[arg(long, alias = "filter", value_enum, value_name = "FILTER")]
    lq_filter: Option<LqFilter>,
    /// Blur the HR before the LQ is made from it: each patch by a deviation of its own, from 0 up
    /// to this many HR pixels [default: 0]
    #[arg(long, value_parser = super::flags::not_negative, value_name = "MAX_SIGMA")]
    lq_blur: Option<f64>,
    /// Make the LQ by a degradation recipe (blur, noise, resizing, compression ...): the name of a
    /// preset, or a YAML file; `paragon degrade --list` names the presets
    #[arg(long, value_name = "RECIPE", conflicts_with_all = ["lq", "lq_filter", "lq_blur"])]
    degrade: Option<String>,
    /// Store this many different LQ patches of every HR patch, drawn from --degrade [default: 1]
    #[arg(long, value_name = "K", conflicts_with = "hr_only", value_parser = super::flags::count(MAX_LQS as usize))]
    variants: Option<usize>,
    /// Store HR alone: training makes another LQ for every sample by a degradation recipe, by
    /// default the one given here with --degrade
    #[arg(long, conflicts_with_all = ["lq", "lq_filter", "lq_blur"])]
    hr_only: bool,
    /// Leave out patches that show less than this: the mean over the HR of the differences in luma
    /// (0 to 255) to the left and to the upper neighbour, added; 0 keeps all, 2 drops clear sky and
    /// blank walls [default: 0]
    #[arg(long, value_parser = super::flags::not_negative, value_name = "X")]
    min_detail: Option<f64>,
    #[command(flatten)]
    select: SelectArgs,
    /// Keep duplicate pairs; without this only the first one, in the order of the names, is stored
    #[arg(long)]
    keep_duplicates: bool,
    /// Hold out whole images for validation in a separate set, DIR/val: a number (50) or about a
    /// share (0.02, 2%) of them; tiles of one photograph (NAME_s001, NAME_s002 ...) stay together
    #[arg(long, value_parser = parse_val, value_name = "N|SHARE")]
    val: Option<HeldOut>,
    /// Do part I of N of the work, for N machines at once; `paragon shards merge` merges the parts.
    /// `auto` takes I and N from the variables of an array job (Slurm, PBS, LSF, Grid Engine, AWS
    /// Batch, Kubernetes) or of an MPI launcher; where there is no N, `auto/N` states it
    #[arg(long, value_parser = parse_part, value_name = "I/N|auto", conflicts_with = "append")]
    part: Option<PartFlag>,
    /// Add the images that a finished set does not hold yet: its shards stay, new ones follow.
    /// Options that are not given are those of the set
    #[arg(long, conflicts_with = "overwrite")]
    append: bool,
    /// Seed of the random choices: filters, blurs, degradations, and which images are held out
    /// [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How pairs are stored [default: predict]
    #[arg(long, value_enum)]
    codec: Option<Codec>,
    /// Threads that convert [default: one for each core]; the set is the same for any number
    #[arg(long, value_name = "N", value_parser = super::flags::count(super::flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
    /// Size at which a new shard file is started, MiB [default: 512]
    #[arg(long, value_name = "MIB")]
    shard_size: Option<u64>,
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

/// Default of the most memory for images in progress, bytes.
const USUAL_HOST_MEMORY: u64 = 2 << 30;

/// The options that decide the content of a set, from the flags, the option file, the set that is
/// added to and the defaults, in this order.
fn content(args: &Args) -> Result<BuildConfig> {
    let file = match &args.config {
        Some(path) => {
            let found = image_folders(&content_of(path)?);
            let found = found.with_context(|| path.display().to_string())?;
            for note in &found.notes {
                tell(format_args!("note: {note}"));
            }
            found
        }
        None => ImageFolders::default(),
    };
    let mut folders = folders(args, &file).into_iter();
    let first = folders.next().context("no folder of images is given")?;
    let known = if args.append {
        Known::of(&args.out)?
    } else {
        Known {
            variants: 1,
            ..Known::default()
        }
    };
    let or = |given: Option<u32>, file: Option<u32>, known: Option<u32>| given.or(file).or(known);
    let scale = or(args.scale, file.scale, known.scale).unwrap_or(2);
    let lq_size = or(args.lq_size, file.lq_size, known.lq_size).unwrap_or(128);
    let hr_only = args.hr_only || known.hr_only;
    let usual_margin = if hr_only { lq_size / 2 } else { 0 };
    let margin = args.margin.or(known.margin).unwrap_or(usual_margin);
    let stored = lq_size
        .checked_add(margin)
        .context("--margin is out of range")?;
    let recipe = known.recipe.unwrap_or(Recipe::fixed(Filter::Bicubic));
    let seed = args.seed.or(known.seed).unwrap_or(recipe.seed);
    let shard_bytes = match args.shard_size {
        Some(size) => size
            .checked_mul(1 << 20)
            .context("--shard-size is out of range")?,
        None => known.shard_bytes.unwrap_or(USUAL_SHARD_BYTES),
    };
    Ok(BuildConfig {
        more: folders.collect(),
        hr: first.hr,
        lq: first.lq,
        margin,
        stride: args.stride.or(known.stride).unwrap_or(stored),
        min_detail: args.min_detail.or(known.min_detail).unwrap_or(0.0),
        criteria: args.select.criteria().or(known.criteria),
        keep_duplicates: args.keep_duplicates || known.keep_duplicates,
        val: args.val.or(known.val),
        recipe: Recipe {
            filter: args.lq_filter.unwrap_or(recipe.filter),
            blur: args.lq_blur.unwrap_or(recipe.blur),
            seed,
        },
        degrade: match &args.degrade {
            Some(recipe) => Some(Arc::new(degrade::Recipe::load(recipe)?)),
            None => known.degrade.map(Arc::new),
        },
        variants: args.variants.map_or(known.variants, |n| n as u16),
        hr_only,
        codec: args.codec.or(known.codec).unwrap_or(Codec::Predict),
        shard_bytes,
        ..BuildConfig::new(first.dataset, &args.out, scale, stored)
    })
}

/// The folders of images, of the option file or of the command line.
fn folders(args: &Args, file: &ImageFolders) -> Vec<DatasetFolder> {
    let of_file = file.folders.iter().map(|(hr, lq)| DatasetFolder {
        dataset: hr.clone(),
        hr: lq.is_some().then(|| hr.clone()),
        lq: lq.clone(),
    });
    let given = args.dataset.iter().map(|dataset| DatasetFolder {
        dataset: dataset.clone(),
        hr: args.hr.clone(),
        lq: args.lq.clone(),
    });
    of_file.chain(given).collect()
}

/// The options of a set that images are added to, as far as its manifest says them.
#[derive(Default)]
struct Known {
    scale: Option<u32>,
    lq_size: Option<u32>,
    margin: Option<u32>,
    stride: Option<u32>,
    recipe: Option<Recipe>,
    degrade: Option<degrade::Recipe>,
    /// 1 where there is no set.
    variants: u16,
    hr_only: bool,
    seed: Option<u64>,
    min_detail: Option<f64>,
    criteria: Criteria,
    keep_duplicates: bool,
    val: Option<HeldOut>,
    codec: Option<Codec>,
    shard_bytes: Option<u64>,
}

impl Known {
    /// Of the set in a folder; nothing where there is none.
    fn of(folder: &Path) -> Result<Known> {
        if !manifest::is_in(folder)? {
            return Ok(Known {
                variants: 1,
                ..Known::default()
            });
        }
        let manifest = Manifest::read(folder).map_err(|error| {
            paragon::shard::unusable(error.into(), folder, "holds a damaged set")
        })?;
        let option = |name: &str| manifest.option(name);
        let lqs = manifest.lqs()?;
        let degrade = manifest.degrade().with_context(|| {
            format!(
                "{}: its recipe cannot be used to add images",
                folder.display()
            )
        })?;
        Ok(Known {
            scale: Some(manifest.scale),
            lq_size: Some(manifest.crop()),
            margin: Some(manifest.lq_size - manifest.crop()),
            stride: Some(manifest.stride),
            recipe: manifest.recipe_name.parse().ok(),
            degrade,
            variants: lqs.max(1),
            hr_only: lqs == 0,
            seed: option("seed").and_then(|value| value.parse().ok()),
            min_detail: option("min-detail").and_then(|value| value.parse().ok()),
            criteria: Criteria::from_options(&manifest.extra.options),
            keep_duplicates: option("keep-duplicates").is_some(),
            val: option("val").and_then(|value| parse_val(value).ok()),
            codec: Codec::from_str(&manifest.codec, true).ok(),
            shard_bytes: Some(manifest.shard_bytes),
        })
    }
}

/// Default size of a shard file, bytes.
const USUAL_SHARD_BYTES: u64 = 512 << 20;

fn configuration(args: &Args) -> Result<BuildConfig> {
    ensure!(
        args.dataset.len() < 2 || (args.hr.is_none() && args.lq.is_none()),
        "--hr and --lq name the sides of one folder, and {} folders are given; give one folder, or a file with lists of \
         folders (--config)",
        args.dataset.len()
    );
    let defaults = Limits::default();
    // what a set holds never depends on the machine that makes it: a default that is smaller here
    // stops a run and rejects nothing
    let limit = sys::memory_limit();
    let half = limit.as_ref().map_or(u64::MAX, |limit| limit.bytes / 2);
    let smaller = limit.filter(|_| args.host_memory.is_none() && half < USUAL_HOST_MEMORY);
    Ok(BuildConfig {
        part: part(args.part)?,
        append: args.append,
        threads: args.threads.unwrap_or(0),
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
        ..content(args)?
    })
}

/// The part of the work; says where `--part auto` takes it from.
fn part(flag: Option<PartFlag>) -> Result<Option<(u32, u32)>> {
    Ok(match flag {
        None => None,
        Some(PartFlag::Given(part, parts)) => Some((part, parts)),
        Some(PartFlag::Auto(parts)) => {
            let value = |name: &str| {
                std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
            };
            let found = auto_part(parts, &value)?;
            tell(format_args!("--part auto: {}", found.origin));
            Some(found.part)
        }
    })
}

/// Makes the set, or says what would be made.
pub fn run(args: &Args) -> Result<()> {
    let mut config = configuration(args)?;
    if let Some(limit) = &config.memory_limit {
        tell(format_args!(
            "images under way take at most {} of memory: half of {limit}",
            bytes_text(config.host_memory)
        ));
    }
    tell_side("hr", &config.dataset, args.hr.as_ref());
    tell_side("lq", &config.dataset, args.lq.as_ref());
    let plan = plan(&config)?;
    if args.dry_run {
        list(&config, &plan);
        return dry_run(&config, &plan, &args.select, args.json);
    }
    // a rejected file is named at once, here and while converting: if the run fails later, the
    // reasons have been said
    list(&config, &plan);
    // from here on Ctrl-C keeps what is done; before, nothing is
    config.stop = sys::stop_flag(STOPPED, Duration::ZERO)?;
    let progress = Progress::new("shard", plan.jobs.len() as u64, "images");
    let report = build(&config, plan, &progress);
    progress.finish();
    let report = match report {
        Err(error) if error.is::<Stopped>() => {
            tell(error);
            std::process::exit(STOPPED);
        }
        report => report?,
    };
    if let (Some(HeldOut::Share(share)), None) = (config.val, &report.held_out)
        && share > 0.0
    {
        tell(format_args!(
            "note: a share of {share} of these images holds out none of them; give a number instead, such as --val 5"
        ));
    }
    if args.json {
        print_json(&report)
    } else {
        print(folded(report.to_string().trim_end(), 13, columns()))
    }
}

fn list(config: &BuildConfig, plan: &Plan) {
    for r in &plan.rejected {
        tell(format_args!(
            "rejected {}: {}",
            one_line(r.file.display()),
            r.reason
        ));
    }
    // without an image to use, the error itself says it
    let hint = size_hint(config, plan.images, &plan.rejected);
    if let Some(hint) = hint.filter(|_| !plan.jobs.is_empty()) {
        tell(format_args!("note: {hint}"));
    }
    for left in plan.left_out.iter().filter(|l| l.may_surprise()) {
        tell(format_args!("note: {left}"));
    }
}

#[cfg(test)]
mod tests {
    use super::{HeldOut, parse_size, parse_val};

    #[test]
    fn shares_are_read() {
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
