//! Compares the time of `paragon shard` with that of decoding its input: a whole build from HR and
//! LQ tiles in PNG against decoding the tiles with the same crate and threads, in interleaved
//! rounds. `cargo bench --bench shard [-- FOLDER [ROUNDS]]`: the folder has HR tiles in `hr` and LQ
//! tiles in `lr_x2`; without it, 200 synthetic tiles of 512 x 512 are used.

use anyhow::{Context, Result};
use image::RgbImage;
use paragon::dataset::degrade::{Filter, downscale};
use paragon::dataset::synth::synthetic_image;
use paragon::shard::plan::{BuildConfig, plan, pool};
use paragon::shard::writer::build;
use paragon::support::progress::Progress;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::time::Instant;

const TILES: u64 = 200;
const TILE: u32 = 512;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let rounds: usize = arguments
        .get(1)
        .map_or(Ok(7), |n| n.parse())
        .context("the number of rounds is not a number")?;
    let room = std::env::temp_dir().join(format!("paragon-bench-{}", std::process::id()));
    let data = match arguments.first() {
        Some(folder) => PathBuf::from(folder),
        None => draw(&room.join("tiles"))?,
    };
    let outcome = [1, 2]
        .into_iter()
        .try_for_each(|threads| compare(&data, &room.join("set"), threads, rounds));
    let _ = std::fs::remove_dir_all(&room);
    outcome
}

fn draw(folder: &Path) -> Result<PathBuf> {
    for side in ["hr", "lr_x2"] {
        std::fs::create_dir_all(folder.join(side))?;
    }
    (0..TILES).into_par_iter().try_for_each(|i| -> Result<()> {
        let hr: RgbImage = synthetic_image(7, i, TILE, TILE);
        downscale(&hr, 2, Filter::Bicubic)?.save(folder.join(format!("lr_x2/{i:04}.png")))?;
        Ok(hr.save(folder.join(format!("hr/{i:04}.png")))?)
    })?;
    Ok(folder.to_path_buf())
}

fn compare(data: &Path, out: &Path, threads: usize, rounds: usize) -> Result<()> {
    let config = BuildConfig {
        threads,
        overwrite: true,
        ..BuildConfig::new(data, out, 2, 128)
    };
    let jobs = plan(&config)?.jobs;
    let files: Vec<PathBuf> = jobs
        .iter()
        .flat_map(|j| std::iter::once(j.source.hr.clone()).chain(j.source.lq.clone()))
        .collect();
    let decode = || -> Result<f64> {
        let started = Instant::now();
        let read = |path: &PathBuf| -> Result<()> {
            let image = image::ImageReader::open(path)?
                .with_guessed_format()?
                .decode()?;
            std::hint::black_box(image);
            Ok(())
        };
        pool(threads)?.install(|| files.par_iter().try_for_each(read))?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut pairs = 0;
    let mut whole = || -> Result<f64> {
        let started = Instant::now();
        let report = build(&config, plan(&config)?, &Progress::hidden())?;
        pairs = report.pairs;
        Ok(started.elapsed().as_secs_f64())
    };
    decode()?;
    whole()?;
    let (mut ratios, mut decodes, mut builds) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (d, b) = (decode()?, whole()?);
        ratios.push(b / d);
        decodes.push(d);
        builds.push(b);
    }
    let median = |list: &mut Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    };
    let (low, high) = (
        ratios.iter().copied().fold(f64::MAX, f64::min),
        ratios.iter().copied().fold(0.0, f64::max),
    );
    let (d, b, ratio) = (
        median(&mut decodes),
        median(&mut builds),
        median(&mut ratios),
    );
    println!(
        "{threads} thread(s), {} files, {pairs} pairs: decode {d:.3} s, build {b:.3} s ({:.0} pairs/s), ratio {ratio:.2} ({low:.2} to {high:.2})",
        files.len(),
        pairs as f64 / b
    );
    Ok(())
}
