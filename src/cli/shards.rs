//! `paragon shards`: look into a finished set, check all of it, extract pairs as images, merge parts,
//! remove a set. Depends on `shard` alone.

use super::flags::{MAX_COMPUTE_THREADS, count, print, print_json};
use super::layout::{columns, folded};
use anyhow::{Result, bail};
use clap::ValueEnum;
use paragon::dataset::recipe::Recipe;
use paragon::degrade;
use paragon::shard::images::{self, ListedImage};
use paragon::shard::manifest::{self, DEGRADE, Manifest};
use paragon::shard::merge::merge;
use paragon::shard::plan::pool;
use paragon::shard::reader::ShardSet;
use paragon::shard::tools::{self, Damage, DegradeInfo, Verified};
use paragon::support::progress::Progress;
use paragon::support::text::{bytes_text, one_line};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Look into a set of shards, check it, extract pairs, merge parts, or remove it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// What the set holds: pairs, sizes, codecs, how it was made
    Info(SetArgs),
    /// The images that the pairs were cut from: name, HR size, number of patches, whether held out
    List(SetArgs),
    /// Read and decode every record, held-out set included; damage, and what the disk does not
    /// deliver, is listed with shard, record and image, and the exit code is 1
    Verify(Verify),
    /// Write pairs as PNG files NUMBER_lq.png and NUMBER_hr.png, further variants of the LQ as
    /// NUMBER_lq_v1.png and so on
    Extract(Extract),
    /// Draw a contact sheet of pairs, LQ beside HR
    Sheet(Sheet),
    /// Merge the parts that `paragon shard --part I/N` made; the result has the same bytes as that
    /// of one undivided run. Does nothing if the merged set exists already
    Merge(Merge),
    /// Delete a set, its held-out part included; or say how to make it without one image
    Remove(Remove),
}

#[derive(clap::Args)]
struct SetArgs {
    /// Folder of the set
    #[arg(default_value = "shards")]
    dir: PathBuf,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Verify {
    #[command(flatten)]
    place: SetArgs,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = count(MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
}

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true)))]
struct Extract {
    /// Folder of the set
    #[arg(default_value = "shards")]
    dir: PathBuf,
    /// Number of the pair in the set, from 0; may be given again for more
    #[arg(long, value_name = "N", group = "which")]
    record: Vec<u64>,
    /// All pairs of this image: its path below the folder of the images, as `list`, `verify` and
    /// errors show it, with or without extension
    #[arg(long, value_name = "NAME", group = "which")]
    source: Option<String>,
    /// Folder for the images
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
}

#[derive(clap::Args)]
#[command(allow_missing_positional = true)]
struct Sheet {
    /// Folder of the set
    #[arg(default_value = "shards")]
    dir: PathBuf,
    /// The image
    #[arg(value_name = "OUT.png")]
    out: PathBuf,
    /// Pairs to show; at most 1000, fewer where they are large
    #[arg(long, default_value_t = 12, value_name = "N")]
    count: u64,
    /// Seed of the choice of pairs
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

#[derive(clap::Args)]
struct Merge {
    /// Folder for the whole set
    out: PathBuf,
    /// Folders of all parts, in any order; they are only read
    #[arg(required = true, value_name = "PART")]
    parts: Vec<PathBuf>,
    /// Remove a set that is already in the output folder
    #[arg(long)]
    overwrite: bool,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Remove {
    /// Folder of the set
    #[arg(default_value = "shards")]
    dir: PathBuf,
    /// Say how to make the set without this image; nothing is removed
    #[arg(long, value_name = "NAME", conflicts_with = "yes")]
    source: Option<String>,
    /// Delete it; without this, only what would be deleted is said
    #[arg(long)]
    yes: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<()> {
    match &args.action {
        Action::Info(place) => info(place),
        Action::List(place) => list(place),
        Action::Verify(args) => verify(args),
        Action::Extract(args) => extract(args),
        Action::Sheet(args) => {
            tools::sheet(
                &ShardSet::open(&args.dir)?,
                args.count,
                args.seed,
                &args.out,
            )?;
            print(format_args!(
                "pairs of {}, LQ beside HR: {}",
                args.dir.display(),
                args.out.display()
            ))
        }
        Action::Merge(args) => put_together(args),
        Action::Remove(args) => remove(args),
    }
}

/// The folder of the held-out set, where there is one.
fn held_out(dir: &Path) -> Result<Option<PathBuf>> {
    let folder = dir.join("val");
    Ok(manifest::is_in(&folder)?.then_some(folder))
}

fn list(place: &SetArgs) -> Result<()> {
    let all = images::images(&place.dir)?;
    if place.json {
        return print_json(&all);
    }
    let mut out = String::new();
    for image in &all {
        let size = format!("{}x{}", image.width, image.height);
        let note = if image.held_out { "  held out" } else { "" };
        writeln!(
            out,
            "{:>7} patches  {size:>11}  {}{note}",
            image.patches,
            one_line(&image.name)
        )?;
    }
    let (held, train): (Vec<_>, Vec<_>) = all.iter().partition(|image| image.held_out);
    let patches = |images: &[&ListedImage]| images.iter().map(|i| i.patches).sum::<u64>();
    write!(out, "{} images, {} patches", train.len(), patches(&train))?;
    if !held.is_empty() {
        write!(
            out,
            "; held out: {} images, {} patches",
            held.len(),
            patches(&held)
        )?;
    }
    print(out)
}

fn remove(args: &Remove) -> Result<()> {
    let dir = args.dir.display();
    if let Some(name) = &args.source {
        let folder = &args.dir;
        let held_out = held_out(folder)?;
        let pairs = match images::records_of(&ShardSet::open(folder)?, name) {
            Err(error) => match held_out {
                Some(held_out) => images::records_of(&ShardSet::open(&held_out)?, name)?,
                None => return Err(error),
            },
            Ok(pairs) => pairs,
        };
        return print(format_args!(
            "{dir} holds {} pairs of {name}. The files of a set are never changed, so that its fingerprint stays true: to make it \
             without this image, move the image out of its folder and give the command that made the set with --overwrite, \
             as in:\n  {}",
            pairs.len(),
            command_of(folder)?
        ));
    }
    if !args.yes {
        let manifest = Manifest::read(&args.dir)?;
        let held_out = match held_out(&args.dir)? {
            Some(folder) => format!(" and {} held out", Manifest::read(&folder)?.records()),
            None => String::new(),
        };
        bail!(
            "{dir} holds {} pairs{held_out} of {} images; nothing is deleted without --yes",
            manifest.records(),
            manifest.used
        );
    }
    let bytes = images::remove(&args.dir)?;
    print(format_args!("removed: {dir} ({})", bytes_text(bytes)))
}

/// The command that would make a set anew, as far as its manifest shows it; the folders of the images
/// are not in it.
fn command_of(folder: &Path) -> Result<String> {
    let manifest = Manifest::read(folder)?;
    let mut out = format!(
        "paragon shard FOLDER --out {} --scale {} --lq-size {}",
        folder.display(),
        manifest.scale,
        manifest.crop()
    );
    if manifest.stride != manifest.lq_size {
        write!(out, " --stride {}", manifest.stride)?;
    }
    if let Ok(recipe) = manifest.recipe_name.parse::<Recipe>() {
        if let Some(filter) = recipe.filter.to_possible_value() {
            write!(out, " --lq-filter {}", filter.get_name())?;
        }
        if recipe.blur > 0.0 {
            write!(out, " --lq-blur {}", recipe.blur)?;
        }
        // where images are held out, the seed is among the options below
        let has_seed = manifest
            .extra
            .options
            .iter()
            .any(|(name, _)| name == "seed");
        if recipe.whole().is_none() && !has_seed {
            write!(out, " --seed {}", recipe.seed)?;
        }
    }
    if manifest.recipe_name == "given" {
        out += " --hr HR --lq LQ";
    }
    for (name, value) in &manifest.extra.options {
        match name.as_str() {
            "keep-duplicates" | "hr-only" => write!(out, " --{name}")?,
            // the text itself is shown by `paragon shards info`
            DEGRADE => out += " --degrade RECIPE.yml",

            name => write!(out, " --{name} {value}")?,
        }
    }
    Ok(out + " --overwrite")
}

fn info(place: &SetArgs) -> Result<()> {
    let set = ShardSet::open(&place.dir)?;
    let info = tools::info(&set)?;
    if place.json {
        return print_json(&info);
    }
    let hr = info.lq_size * info.scale;
    let mut out = format!(
        "{} (fingerprint {}, written by paragon {})\n",
        place.dir.display(),
        info.fingerprint,
        info.paragon
    );
    let crop = if info.crop == info.lq_size {
        String::new()
    } else {
        format!(" (for crops of {})", info.crop)
    };
    writeln!(
        out,
        "  pairs      {} of LQ {} / HR {hr}{crop}, stride {}, LQ {}",
        info.pairs, info.lq_size, info.stride, info.lq_recipe
    )?;
    match info.variants {
        0 => writeln!(out, "  LQ         none is stored; training makes it")?,
        1 => {}
        several => writeln!(out, "  variants   {several} LQ patches of every HR patch")?,
    }
    writeln!(
        out,
        "  images     {} used of {} found",
        info.used, info.images
    )?;
    for (kind, count) in &info.rejected {
        writeln!(out, "             {count} rejected: {kind}")?;
    }
    if info.dropped != (0, 0) {
        writeln!(
            out,
            "             patches left out: {} by their measures, {} as duplicates",
            info.dropped.0, info.dropped.1
        )?;
    }
    let ratio = info.bytes as f64 / info.bytes_raw.max(1) as f64;
    writeln!(
        out,
        "  size       {} in {} shard(s), {ratio:.3} of {} of pixels",
        bytes_text(info.bytes),
        info.shards,
        bytes_text(info.bytes_raw)
    )?;
    let [low, middle, high] = info.record_bytes.map(|n| bytes_text(n.into()));
    writeln!(
        out,
        "  a pair     {low} (tenth), {middle} (half), {high} (nine tenths)"
    )?;
    for (codec, stored) in &info.codecs {
        let (low, high) = (
            bytes_text(stored.range.0.into()),
            bytes_text(stored.range.1.into()),
        );
        writeln!(
            out,
            "  {codec:10} {} pairs, {}, {low} to {high} each",
            stored.pairs,
            bytes_text(stored.bytes)
        )?;
    }
    for (name, value) in &info.options {
        writeln!(out, "  option     --{name} {value}")?;
    }
    if let Some(recipe) = &info.degrade {
        out += &degrade_text(recipe)?;
    }
    if let Some((part, parts)) = info.part {
        writeln!(
            out,
            "  part       {part} of {parts}; put them together with `paragon shards merge`"
        )?;
    }
    if info.appended > 0 {
        writeln!(out, "  appended   {} time(s)", info.appended)?;
    }
    if let Some(folder) = held_out(&place.dir)? {
        let manifest = Manifest::read(&folder)?;
        writeln!(
            out,
            "  held out   {} pairs of {} images in {}",
            manifest.records(),
            manifest.used,
            folder.display()
        )?;
    }
    print(folded(out.trim_end(), 13, columns()))
}

/// The degradation recipe of a set: name, hash, seed, text.
fn degrade_text(recipe: &DegradeInfo) -> Result<String> {
    let mut out = String::new();
    match (&recipe.name, &recipe.hash, &recipe.error) {
        (Some(name), Some(hash), _) => {
            write!(out, "  degrade    {} (hash {hash}", one_line(name))?;
            match recipe.seed {
                Some(seed) => writeln!(out, ", seed {seed})")?,
                None => writeln!(out, ")")?,
            }
        }
        (.., error) => writeln!(
            out,
            "  degrade    {}",
            one_line(error.as_deref().unwrap_or_default())
        )?,
    }
    let lines: Vec<String> = match degrade::Recipe::parse(&recipe.text, "the recipe") {
        Ok(recipe) => recipe
            .step_lines()
            .iter()
            .map(|step| format!("- {step}"))
            .collect(),
        Err(_) => recipe.text.lines().map(str::to_string).collect(),
    };
    for line in lines {
        writeln!(out, "             {}", one_line(&line).trim_end())?;
    }
    Ok(out)
}

fn verify(args: &Verify) -> Result<()> {
    let dir = &args.place.dir;
    let mut found = Verified::default();
    for folder in [Some(dir.clone()), held_out(dir)?].into_iter().flatten() {
        let progress = Progress::new("verify", Manifest::read(&folder)?.records(), "pairs");
        let part = pool(args.threads.unwrap_or(0))?.install(|| tools::verify(&folder, &progress));
        progress.finish();
        let part = part?;
        found.pairs += part.pairs;
        found.damaged.extend(part.damaged);
        found.unreadable.extend(part.unreadable);
        found.unchecked += part.unchecked;
    }
    let whole = found.damaged.is_empty() && found.unreadable.is_empty();
    if args.place.json {
        print_json(&found)?;
    } else {
        for d in &found.damaged {
            print(format_args!("damaged: {}", d.error))?;
        }
        for d in &found.unreadable {
            print(format_args!("cannot be read: {}", d.error))?;
        }
        if whole {
            print(format_args!(
                "{}: {} pairs, no damage",
                dir.display(),
                found.pairs
            ))?;
        }
    }
    if whole {
        return Ok(());
    }
    let (dir, all) = (dir.display(), found.pairs);
    let counts = |list: &[Damage]| {
        let shards = list.iter().filter(|d| d.record.is_none()).count();
        format!(
            "{} of {all} pairs and the tables of {shards} shard(s)",
            list.len() - shards
        )
    };
    let mut reasons = Vec::new();
    if !found.damaged.is_empty() {
        reasons.push(format!(
            "{} are damaged; make the set again or copy it back",
            counts(&found.damaged)
        ));
    }
    if !found.unreadable.is_empty() {
        reasons.push(format!(
            "{} cannot be read because of an error of the system (the disk or network behind them), which does not say what is wrong with \
             the set itself; look into the system's log, copy the set to another disk and verify it again",
            counts(&found.unreadable)
        ));
    }
    if found.unchecked > 0 {
        reasons.push(format!(
            "{} pairs were not looked at after so many errors",
            found.unchecked
        ));
    }
    bail!("{dir}: {}", reasons.join("; "))
}

fn extract(args: &Extract) -> Result<()> {
    let set = ShardSet::open(&args.dir)?;
    let records = match &args.source {
        Some(name) => images::records_of(&set, name)?,
        None => args.record.clone(),
    };
    tools::extract(&set, &records, &args.out)?;
    print(format_args!(
        "{} pair(s) in {}",
        records.len(),
        args.out.display()
    ))
}

fn put_together(args: &Merge) -> Result<()> {
    let progress = Progress::new("merge", 0, "pairs");
    let merged = merge(&args.out, &args.parts, args.overwrite, &progress);
    progress.finish();
    let merged = merged?;
    if args.json {
        return print_json(&merged);
    }
    let start = if merged.already_complete {
        "already complete: "
    } else {
        ""
    };
    let held_out = if merged.held_out_pairs > 0 {
        format!(" and {} held out", merged.held_out_pairs)
    } else {
        String::new()
    };
    print(format_args!(
        "{start}{}: {} pairs{held_out} of {} images ({} found), {} duplicates across parts left out, {} in {} shard(s), {:.1} s (fingerprint {})",
        args.out.display(),
        merged.pairs,
        merged.used,
        merged.images,
        merged.duplicates_across_parts,
        bytes_text(merged.bytes),
        merged.shards,
        merged.seconds,
        merged.fingerprint
    ))
}
