//! `paragon train`: flags to a training configuration and run options, one library call, a summary.

use super::data::{DataArgs, Window};
use super::flags::{MAX_BATCH, MAX_SIDE, MAX_THREADS, count, not_negative, positive, print, share, single, tell};
use super::shard::parse_size;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use paragon::loader::Sources;
use paragon::model::Network;
use paragon::plan::LossKind;
use paragon::shard::reader::Io;
use paragon::train::{Decay, LossTerm, RunOptions, Schedule, Summary, TrainConfig, duration_text, newest_state, train};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// LQ patch side of the published recipe, used where the stored patches are at least that large.
const DEFAULT_LQ_SIZE: usize = 128;

/// Train a network on a set of shards.
///
/// With nothing given but the shards, this is the author's Nano recipe. Every byte of memory is printed before the first
/// step. Ctrl-C saves and stops; the same command goes on from the newest checkpoint, to the same bits as a run that was
/// never interrupted.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Folder of the run: checkpoints, log, curves [default: runs/NETWORK_xSCALE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Network: nano (paragonsr2_realtime)
    #[arg(long, default_value = "nano", help_heading = "Network")]
    network: String,
    /// Strength of the base upsampler's sharpening [default: the network's, 0.3 for Nano]
    #[arg(long, value_name = "ALPHA", value_parser = single, allow_negative_numbers = true, help_heading = "Network")]
    alpha: Option<f32>,
    /// Start value of the gain on the learned detail [default: the network's, 0.05 for Nano]
    #[arg(long, value_name = "GAIN", value_parser = single, allow_negative_numbers = true, help_heading = "Network")]
    detail_gain: Option<f32>,
    /// Start value of LayerScale; larger ones (0.1) let the blocks contribute sooner
    #[arg(long, default_value_t = 1e-5, value_name = "VALUE", value_parser = single, allow_negative_numbers = true, help_heading = "Network")]
    layer_scale: f32,
    /// Start from the parameters of a safetensors file of ours or of PyTorch's
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pretrain: Option<PathBuf>,
    /// Take of --pretrain what fits, and list what does not
    #[arg(long, requires = "pretrain", help_heading = "Network")]
    lenient: bool,
    /// Iterations in all
    #[arg(long, default_value_t = 40_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Recipe")]
    iterations: u64,
    /// Side of the LQ patch in pixels [default: 128, or the stored size where that is smaller]
    #[arg(long, value_name = "PIXELS", value_parser = count(MAX_SIDE), help_heading = "Recipe")]
    lq_size: Option<usize>,
    /// Patches in a micro-batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count(MAX_BATCH), help_heading = "Recipe")]
    batch_size: usize,
    /// Micro-batches in an iteration: the same training as a batch so many times larger, in less memory
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count(MAX_BATCH), help_heading = "Recipe")]
    accum_iter: usize,
    /// A loss and its weight, may be repeated: l1, charbonnier, mse, ssim, mssim
    #[arg(long = "loss", default_values = ["l1:1.0", "ssim:0.05"], value_name = "KIND:WEIGHT", value_parser = parse_loss, help_heading = "Recipe")]
    losses: Vec<LossTerm>,
    /// Learning rate after warm-up
    #[arg(long, default_value_t = 2e-4, value_parser = positive, allow_negative_numbers = true, help_heading = "Recipe")]
    lr: f64,
    /// How the learning rate falls
    #[arg(long, value_enum, default_value = "multistep", help_heading = "Recipe")]
    schedule: ScheduleKind,
    /// Iterations of linear warm-up
    #[arg(long, default_value_t = 1000, value_name = "N", help_heading = "Recipe")]
    warmup: u64,
    /// multistep: iterations after which the learning rate falls
    #[arg(long, value_delimiter = ',', default_values_t = [30_000, 35_000], value_name = "N,N", help_heading = "Recipe")]
    milestones: Vec<u64>,
    /// multistep: factor at each milestone
    #[arg(long, default_value_t = 0.5, value_parser = positive, allow_negative_numbers = true, help_heading = "Recipe")]
    gamma: f64,
    /// cosine: learning rate at the end
    #[arg(long, default_value_t = 1e-7, value_name = "LR", value_parser = not_negative, allow_negative_numbers = true, help_heading = "Recipe")]
    eta_min: f64,
    /// AdamW's betas
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [0.9, 0.99], value_name = "B1,B2", value_parser = share, allow_negative_numbers = true, help_heading = "Recipe")]
    betas: Vec<f64>,
    /// AdamW's decoupled weight decay
    #[arg(long, default_value_t = 1e-4, value_parser = not_negative, allow_negative_numbers = true, help_heading = "Recipe")]
    weight_decay: f64,
    /// Largest gradient norm; 0 for no clipping
    #[arg(long, default_value_t = 1.0, value_name = "NORM", value_parser = not_negative, allow_negative_numbers = true, help_heading = "Recipe")]
    grad_clip: f64,
    /// Weight of the old average in the EMA
    #[arg(long, default_value_t = 0.999, value_parser = share, allow_negative_numbers = true, help_heading = "Recipe")]
    ema_decay: f64,
    /// Power of the EMA's warm-up
    #[arg(long, default_value_t = 0.75, value_parser = positive, allow_negative_numbers = true, help_heading = "Recipe")]
    ema_power: f64,
    /// No random horizontal flips
    #[arg(long, help_heading = "Recipe")]
    no_hflip: bool,
    /// No random vertical flips and quarter turns
    #[arg(long, help_heading = "Recipe")]
    no_rot: bool,
    /// Seed of start values, order, crops and flips
    #[arg(long, default_value_t = 1024, help_heading = "Recipe")]
    seed: u64,
    /// Where to train
    #[arg(long, value_enum, default_value = "auto", help_heading = "Machine")]
    device: Device,
    /// Threads that compute [default: one for each core]; the result is the same bits for any number
    #[arg(long, value_name = "N", value_parser = count(MAX_THREADS), help_heading = "Machine")]
    threads: Option<usize>,
    /// Threads that read and decode shards
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count(paragon::loader::MAX_THREADS as u64), help_heading = "Machine")]
    loader_threads: usize,
    /// Batches that exist at once in the prefetch ring
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = count(paragon::loader::MAX_SLOTS as u64), help_heading = "Machine")]
    slots: usize,
    /// Most memory the run may take (2G); more is refused before the start [default: what is free]
    #[arg(long, value_parser = parse_size, value_name = "SIZE", help_heading = "Machine")]
    host_memory: Option<u64>,
    /// Iterations between checkpoints
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Output")]
    checkpoint_every: u64,
    /// State files to keep; network files are all kept
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = count(MAX_BATCH), help_heading = "Output")]
    keep_states: usize,
    /// Iterations between log lines
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Output")]
    log_every: u64,
    /// Folder of pictures (pairs, or HR alone) to measure PSNR and SSIM on
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    val: Option<PathBuf>,
    /// Iterations between validations
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Output")]
    val_every: u64,
    /// Begin again, dropping the states of an earlier run in the same folder
    #[arg(long, help_heading = "Output")]
    restart: bool,
    /// Print the summary as JSON on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScheduleKind {
    Multistep,
    Cosine,
    Constant,
}

#[derive(Clone, Copy, ValueEnum)]
enum Device {
    Auto,
    Cpu,
    Cuda,
}

fn parse_loss(text: &str) -> Result<LossTerm, String> {
    let (kind, weight) = text.split_once(':').unwrap_or((text, "1"));
    let kind = LossKind::from_str(kind, true).map_err(|_| format!("unknown loss '{kind}'; known are l1, charbonnier, mse, ssim, mssim"))?;
    let weight: f32 = weight.parse().map_err(|_| format!("'{weight}' is no weight; write it as l1:1.0"))?;
    if !weight.is_finite() || weight < 0.0 {
        return Err(format!("a weight of {weight} makes no sense"));
    }
    Ok(LossTerm { kind, weight })
}

impl Args {
    fn config(&self, sources: &Sources, out: &Path) -> Result<TrainConfig> {
        let mut network = Network::new(&self.network, sources.scale() as usize)?;
        network.upsampler_alpha = self.alpha.unwrap_or(network.upsampler_alpha);
        network.detail_gain = self.detail_gain.unwrap_or(network.detail_gain);
        network.layer_scale = self.layer_scale;
        let &[beta1, beta2] = self.betas.as_slice() else { bail!("--betas takes two numbers, as in 0.9,0.99") };
        let decay = match self.schedule {
            ScheduleKind::Multistep => Decay::MultiStep { milestones: self.milestones.clone(), gamma: self.gamma },
            ScheduleKind::Cosine => Decay::Cosine { total: self.iterations, eta_min: self.eta_min },
            ScheduleKind::Constant => Decay::Constant,
        };
        Ok(TrainConfig {
            network,
            lq_size: self.lq_size.unwrap_or(DEFAULT_LQ_SIZE.min(sources.lq_size() as usize)),
            batch_size: self.batch_size,
            accum_iter: self.accum_iter,
            use_hflip: !self.no_hflip,
            use_rot: !self.no_rot,
            losses: self.losses.clone(),
            betas: (beta1, beta2),
            epsilon: 1e-8,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
            schedule: Schedule { base_lr: self.lr, warmup: self.warmup, decay },
            total_iter: self.iterations,
            ema_decay: self.ema_decay,
            ema_power: self.ema_power,
            seed: self.seed,
            window: self.window(sources, out),
        })
    }
}

impl Args {
    /// The shuffle window: a run that goes on keeps its order whatever memory is free today.
    fn window(&self, sources: &Sources, out: &Path) -> Option<u64> {
        let going_on = if self.restart || self.data.window != Window::Auto { None } else { newest_state(out).0 };
        going_on.map_or_else(|| self.data.window(sources), |state| state.head.config.window)
    }
}

/// A flag that the first Ctrl-C (or SIGTERM) raises; the second one ends the process at once.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone()).context("cannot watch for Ctrl-C")?;
        signal_hook::flag::register(signal, stop.clone()).context("cannot watch for Ctrl-C")?;
    }
    Ok(stop)
}

/// Trains; exit code 130 when stopped from outside after saving.
pub fn run(args: &Args) -> Result<()> {
    if matches!(args.device, Device::Cuda) {
        bail!("this version trains on the CPU only; give --device cpu, or leave --device away");
    }
    let sources = args.data.open()?;
    let arch = Network::new(&args.network, sources.scale() as usize)?.arch;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(format!("{arch}_x{}", sources.scale())));
    let config = args.config(&sources, &out)?;
    let net = &config.network;
    let (io, why) = args.data.io(&sources);
    tell(format_args!("reading shards by {} ({why})", if io == Io::Mmap { "map" } else { "calls" }));
    let stop = stop_flag()?;
    let options = RunOptions {
        out,
        threads: args.threads.unwrap_or(0),
        loader_threads: args.loader_threads,
        slots: args.slots,
        io,
        on_corrupt: args.data.on_corrupt,
        checkpoint_every: args.checkpoint_every,
        keep_states: args.keep_states,
        log_every: args.log_every,
        validation: args.val.clone(),
        validate_every: args.val_every,
        host_memory: args.host_memory,
        restart: args.restart,
        pretrained: args.pretrain.clone().map(|path| (path, !args.lenient)),
        stop: stop.clone(),
    };
    tell(format_args!(
        "{} x{}, {} iterations of {} x {} pairs",
        net.arch, net.scale, config.total_iter, config.accum_iter, config.batch_size
    ));
    let started = std::time::Instant::now();
    let summary = train(sources, &config, &options, &|text| tell(text))?;
    if args.json {
        print(serde_json::to_string_pretty(&summary)?)?;
    } else {
        print_summary(&summary, started.elapsed().as_secs_f64())?;
    }
    if !summary.finished && stop.load(Ordering::Relaxed) {
        std::process::exit(130);
    }
    Ok(())
}

fn print_summary(s: &Summary, seconds: f64) -> Result<()> {
    let state = if s.finished { "done" } else { "stopped" };
    print(format_args!(
        "{state} at iteration {} after {}: loss {:.5}, {:.2} it/s",
        s.iteration,
        duration_text(seconds),
        s.loss,
        s.it_per_s
    ))?;
    let verdict = if s.data_wait > 0.05 { "loader-bound: give --loader-threads more" } else { "compute-bound" };
    print(format_args!("data-wait {:.1}%, loader threads waited {:.1}% ({verdict})", 100.0 * s.data_wait, 100.0 * s.loader_wait))?;
    if s.substituted > 0 {
        print(format_args!("{} samples stood in for damaged records; `paragon shards verify` lists them", s.substituted))?;
    }
    print(format_args!(
        "memory: {} anonymous at most, {} computed before the start",
        paragon::plan::bytes_text(s.peak_anonymous),
        paragon::plan::bytes_text(s.planned)
    ))?;
    if s.skipped > 0 {
        print(format_args!("{} updates were skipped because loss or gradient was not finite", s.skipped))?;
    }
    print(format_args!("network (EMA): {}", s.model.display()))?;
    print(format_args!("run folder:    {}", s.run.display()))
}
