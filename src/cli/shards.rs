//! `paragon shards`: look into a finished set or check all of it. Depends on `shard` alone.

use anyhow::{Result, bail};
use paragon::progress::Progress;
use paragon::shard::reader::ShardSet;
use paragon::shard::report::bytes;
use paragon::shard::tools;
use std::io::Write;
use std::path::PathBuf;

/// Look into a set of shards, or check it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// What the set holds: pairs, sizes, codecs, how it was made
    Info(Place),
    /// Read and decode every record; damage is listed with shard, record and image, and the exit code is 1
    Verify(Place),
}

#[derive(clap::Args)]
struct Place {
    /// Folder of the set
    #[arg(default_value = "shards")]
    dir: PathBuf,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Does what the subcommand says.
pub fn run(args: &Args) -> Result<()> {
    match &args.action {
        Action::Info(place) => info(place),
        Action::Verify(place) => verify(place),
    }
}

fn info(place: &Place) -> Result<()> {
    let set = ShardSet::open(&place.dir)?;
    let info = tools::info(&set)?;
    let mut out = std::io::stdout().lock();
    if place.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&info)?)?;
        return Ok(());
    }
    let hr = info.lq_size * info.scale;
    writeln!(out, "{} (fingerprint {}, written by paragon {})", place.dir.display(), info.fingerprint, info.paragon)?;
    writeln!(out, "  pairs      {} of LQ {} / HR {hr}, stride {}, LQ {}", info.pairs, info.lq_size, info.stride, info.lq_recipe)?;
    writeln!(out, "  images     {} used of {} found", info.used, info.images)?;
    let ratio = info.bytes as f64 / info.bytes_raw.max(1) as f64;
    writeln!(out, "  size       {} in {} shard(s), {ratio:.3} of {} of pixels", bytes(info.bytes), info.shards, bytes(info.bytes_raw))?;
    for (codec, (pairs, stored)) in &info.codecs {
        writeln!(out, "  {codec:10} {pairs} pairs, {}", bytes(*stored))?;
    }
    Ok(())
}

fn verify(place: &Place) -> Result<()> {
    let set = ShardSet::open(&place.dir)?;
    let progress = Progress::new("verify", set.len(), "pairs");
    let damaged = tools::verify(&set, &progress);
    progress.finish();
    let damaged = damaged?;
    let mut out = std::io::stdout().lock();
    if place.json {
        let report = serde_json::json!({ "pairs": set.len(), "damaged": damaged });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        for d in &damaged {
            writeln!(out, "damaged: {}", d.error)?;
        }
        if damaged.is_empty() {
            writeln!(out, "{}: {} pairs, all whole", place.dir.display(), set.len())?;
        }
    }
    if !damaged.is_empty() {
        bail!("{}: {} of {} pairs are damaged; make the set again or copy it back", place.dir.display(), damaged.len(), set.len());
    }
    Ok(())
}
