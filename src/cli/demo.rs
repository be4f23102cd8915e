//! `paragon demo`: every step without a data set. Draws images, shards them, trains, evaluates on
//! images that the network never saw, and leaves everything in one folder. Uses the library
//! functions of the other commands only.

use super::flags::{self, print, tell};
use super::synth;
use anyhow::{Context, Result, ensure};
use image::{RgbImage, imageops};
use paragon::backend::cpu::CpuOptions;
use paragon::inference::eval::{Evaluation, ImageResult, Scores, evaluate, find_pairs, mean};
use paragon::inference::upscale::Upscaler;
use paragon::loader::OnCorrupt;
use paragon::model::Network;
use paragon::model::{ModelHints, read_model};
use paragon::plan::{LossKind, OptimizerKind};
use paragon::report::sheet::{Panel, comparison};
use paragon::shard::plan::{BuildConfig, plan};
use paragon::shard::reader::{Io, ShardSet};
use paragon::shard::writer::build;
use paragon::support::progress::Progress;
use paragon::support::text::bytes_text;
use paragon::train::{
    Decay, DeviceChoice, Level, LossTerm, Prefetch, RunOptions, RunSummary, Schedule, TrainConfig,
    duration_text, train,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Run every step on drawn images: shard, train Nano x2, evaluate, compare.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for the output; the files of an earlier demo in it are replaced
    #[arg(long, default_value = "demo", value_name = "DIR")]
    out: PathBuf,
    /// Training iterations
    #[arg(long, default_value_t = 1200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: u64,
    /// Images to train on
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pictures: u64,
    /// Seed of images and training
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = flags::count(flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
}

const SCALE: usize = 2;
/// Side of a training image, a held-out image, and of the LQ patches, pixels.
const TRAINING_IMAGE: u32 = 384;
const HELD_OUT: u32 = 256;
const PATCH: u32 = 64;
/// LQ side of a training sample: a random crop of the stored patch.
const CROP: usize = 48;
/// Held-out images, and how many of them are shown.
const TEST_IMAGES: u64 = 8;
const SHOWN: usize = 3;
/// Side of a panel of the comparison, HR pixels, and the factor by which it is enlarged.
const PANEL: u32 = 112;
const ENLARGE: u32 = 2;

/// Marks a folder as the demo's, so that a later one may replace what is in it.
const MARK: &str = ".paragon-demo";

/// Accepts a folder that is new, empty or an earlier demo's. Another folder may contain the user's
/// own `pictures` folder, which the demo would delete.
fn claim(out: &Path) -> Result<()> {
    paragon::support::files::create_folder(out)?;
    let mark = out.join(MARK);
    let mut entries =
        std::fs::read_dir(out).with_context(|| format!("cannot list {}", out.display()))?;
    ensure!(
        mark.exists() || entries.next().is_none(),
        "{} holds files that are not an earlier demo's; give a new or empty folder with --out",
        out.display()
    );
    std::fs::write(&mark, "").with_context(|| format!("cannot write {}", mark.display()))
}

/// The folders of the demo.
struct Folders {
    images: PathBuf,
    held_out: PathBuf,
    shards: PathBuf,
    run: PathBuf,
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    claim(&args.out)?;
    let folders = Folders {
        images: args.out.join("pictures"),
        held_out: args.out.join("held_out"),
        shards: args.out.join("shards"),
        run: args.out.join("run"),
    };
    draw_images(args, &folders)?;
    make_shards(args, &folders)?;
    let summary = train_network(args, &folders)?;
    tell("4/4 measuring on the held-out images");
    let (results, shown) = measure(args, &folders.held_out, &summary.model)?;
    let comparison_path = args.out.join("comparison.png");
    write_comparison(&shown, &comparison_path)?;
    let (network, bicubic) = (
        mean(results.iter().map(|r| r.network)),
        mean(results.iter().map(|r| r.bicubic)),
    );
    print("")?;
    super::eval::print_table(&results, &network, &bicubic)?;
    print("")?;
    print(format_args!(
        "training     {} iterations, {:.1} it/s, waited {:.1}% for data",
        summary.iteration,
        summary.it_per_s,
        100.0 * summary.data_wait
    ))?;
    print(format_args!(
        "memory       {} used at most; {} were planned",
        bytes_text(summary.peak_anonymous),
        bytes_text(summary.planned)
    ))?;
    print(format_args!("comparison   {}", comparison_path.display()))?;
    print(format_args!(
        "loss curve   {}",
        folders.run.join("loss.svg").display()
    ))?;
    print(format_args!("network      {}", summary.model.display()))?;
    print(format_args!(
        "time         {}",
        duration_text(started.elapsed().as_secs_f64())
    ))?;
    print(
        "\nWith images of your own:\n  paragon shard ./images --out ./shards\n  \
         paragon train --shards ./shards",
    )
}

/// Draws the training images and the held-out images, in place of those of an earlier demo.
fn draw_images(args: &Args, folders: &Folders) -> Result<()> {
    for folder in [&folders.images, &folders.held_out, &folders.run] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)
                .with_context(|| format!("cannot clear {}", folder.display()))?;
        }
    }
    tell(format_args!(
        "1/4 drawing {} images to train on and {TEST_IMAGES} held out",
        args.pictures
    ));
    let draw = |folder: &Path, count, side, seed| {
        synth::draw(&synth::Args::squares(
            folder.to_path_buf(),
            count,
            side,
            seed,
            args.threads,
        ))
    };
    draw(&folders.images, args.pictures, TRAINING_IMAGE, args.seed)?;
    // another seed, so that the network has never seen these
    draw(&folders.held_out, TEST_IMAGES, HELD_OUT, args.seed ^ 0x5EED)?;
    Ok(())
}

fn make_shards(args: &Args, folders: &Folders) -> Result<()> {
    tell("2/4 sharding");
    let config = BuildConfig {
        threads: args.threads.unwrap_or(0),
        host_memory: 1 << 30,
        overwrite: true,
        ..BuildConfig::new(&folders.images, &folders.shards, SCALE as u32, PATCH)
    };
    let job = plan(&config)?;
    let progress = Progress::new("shard", job.jobs.len() as u64, "images");
    let report = build(&config, job, &progress);
    progress.finish();
    tell(report?.to_string().trim_end());
    Ok(())
}

fn train_network(args: &Args, folders: &Folders) -> Result<RunSummary> {
    tell(format_args!(
        "3/4 training Nano x{SCALE} on the CPU; Ctrl-C stops it early"
    ));
    let set = Arc::new(ShardSet::open(&folders.shards)?);
    let stop = paragon::sys::stop_flag(super::train::STOPPED, Duration::ZERO)?;
    let options = RunOptions {
        out: folders.run.clone(),
        threads: args.threads.unwrap_or(0),
        prefetch: Prefetch::default(),
        io: Io::Mmap,
        on_corrupt: OnCorrupt::Stop,
        checkpoint_every: args.iterations.div_ceil(4),
        keep_states: 1,
        keep_models: 1,
        keep_every: None,
        log_every: (args.iterations / 60).clamp(1, 100),
        validation: None,
        validate_every: 0,
        crop_border: None,
        host_memory: None,
        recompute: None,
        fit: true,
        restart: true,
        continue_changed: false,
        pretrained: None,
        milestones_from: None,
        device: DeviceChoice::Cpu,
        precision: None,
        vram: None,
        settings: None,
        stop: stop.clone(),
    };
    let summary = train(
        Arc::new(set.into()),
        &recipe(args)?,
        &options,
        &|level, text| {
            if level != Level::Detail {
                tell(text);
            }
        },
        &|total| Progress::bar_only("train", total, "it"),
    )?;
    if stop.load(Ordering::Relaxed) {
        tell("stopped early; measuring what there is");
    }
    Ok(summary)
}

/// Measures the network and bicubic on the held-out images, and cuts panels out of the first ones.
fn measure(args: &Args, held_out: &Path, model: &Path) -> Result<(Vec<ImageResult>, Vec<Shown>)> {
    let (net, params, _) = read_model(model, &ModelHints::default())?;
    let mut upscaler = Upscaler::new(net, params, CpuOptions::new(args.threads.unwrap_or(0)), 0)?;
    let sources = find_pairs(held_out, None, None, SCALE)?;
    let mut shown = Vec::new();
    let Evaluation { results, left_out } = evaluate(
        &mut upscaler,
        &sources,
        SCALE as u32,
        &mut |result, ours, bicubic, pair| {
            if shown.len() < SHOWN {
                let panels = [
                    zoom(&pair.lq, PANEL / SCALE as u32),
                    zoom(bicubic, PANEL),
                    zoom(ours, PANEL),
                    zoom(&pair.hr, PANEL),
                ];
                shown.push((panels, result.bicubic, result.network));
            }
            Ok(())
        },
    )?;
    if let Some(first) = left_out.first() {
        anyhow::bail!(
            "{}; the demo's images have been changed, give --out another folder",
            first.reason
        );
    }
    Ok((results, shown))
}

/// The centre of an image, `side` pixels wide, enlarged to the size of a panel.
fn zoom(image: &RgbImage, side: u32) -> RgbImage {
    let corner = (image.width() - side) / 2;
    let crop = imageops::crop_imm(image, corner, corner, side, side).to_image();
    imageops::resize(
        &crop,
        PANEL * ENLARGE,
        PANEL * ENLARGE,
        imageops::FilterType::Nearest,
    )
}

/// A recipe for one minute of training: a high learning rate with cosine decay, and blocks that
/// contribute from the start.
fn recipe(args: &Args) -> Result<TrainConfig> {
    let mut network = Network::new("nano", SCALE)?;
    network.set("upsampler_alpha", 0.3)?;
    network.set("layer_scale", 0.1)?;
    Ok(TrainConfig {
        network,
        lq_size: CROP,
        batch_size: 16,
        accum_iter: 1,
        use_hflip: true,
        use_rot: true,
        losses: vec![LossTerm {
            kind: LossKind::L1,
            weight: 1.0,
        }],
        optimizer: OptimizerKind::AdamW,
        betas: (0.9, 0.99),
        epsilon: 1e-8,
        weight_decay: 1e-4,
        grad_clip: 1.0,
        schedule: Schedule {
            base_lr: 2e-3,
            warmup: 50.min(args.iterations / 4),
            decay: Decay::Cosine {
                total: args.iterations,
                eta_min: 1e-5,
            },
        },
        total_iter: args.iterations,
        ema_decay: 0.99,
        ema_power: 0.75,
        seed: args.seed,
        window: None,
        degrade: None,
    })
}

/// The panels of one image (LQ, bicubic, network, HR), and the scores of bicubic and the network.
type Shown = ([RgbImage; 4], Scores, Scores);

fn write_comparison(shown: &[Shown], path: &Path) -> Result<()> {
    let rows: Vec<Vec<Panel>> = shown
        .iter()
        .map(|([lq, bicubic, ours, hr], bicubic_scores, ours_scores)| {
            let psnr = |s: &Scores| format!("{:.2} dB  SSIM {:.4}", s.psnr_y, s.ssim_y);
            let panel = |image, title: &str, note: String| Panel {
                image,
                title: title.to_string(),
                note,
            };
            vec![
                panel(lq, "LQ (nearest)", String::new()),
                panel(bicubic, "bicubic", psnr(bicubic_scores)),
                panel(ours, "Nano", psnr(ours_scores)),
                panel(hr, "HR", String::new()),
            ]
        })
        .collect();
    comparison(&rows, path)
}
