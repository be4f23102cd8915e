//! `paragon train`: flags to a training configuration and run options, one library call, a summary.

use super::data::{DataArgs, Window};
use super::flags::{MAX_BATCH, count, print, tell};
use super::recipe::{Machine, Recipe};
use anyhow::{Context, Result};
use paragon::loader::Sources;
use paragon::plan::Precision;
use paragon::shard::reader::Io;
use paragon::train::{DeviceChoice, RunOptions, Summary, duration_text, newest_state, train};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Start from the parameters of a safetensors file of ours or of PyTorch's
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pretrain: Option<PathBuf>,
    /// Take of --pretrain what fits, and list what does not
    #[arg(long, requires = "pretrain", help_heading = "Network")]
    lenient: bool,
    #[command(flatten)]
    recipe: Recipe,
    /// Where to train: auto (the first CUDA device, else the CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE", help_heading = "Machine")]
    device: DeviceChoice,
    /// Type of activations; halves on CUDA only [default: f32 on the CPU; bf16 on CUDA, fp16 on cards before sm_80]
    #[arg(long, value_enum, help_heading = "Machine")]
    precision: Option<Precision>,
    #[command(flatten)]
    machine: Machine,
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
    let sources = args.data.open()?;
    let mut config = args.recipe.config(sources.scale() as usize, sources.crop() as usize)?;
    let name = || format!("{}_x{}", config.network.arch, config.network.scale);
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(name()));
    config.window = args.window(&sources, &out);
    let net = &config.network;
    let (io, why) = args.data.io(&sources);
    tell(format_args!("reading shards by {} ({why})", if io == Io::Mmap { "map" } else { "calls" }));
    let stop = stop_flag()?;
    let options = RunOptions {
        out,
        threads: args.machine.threads.unwrap_or(0),
        loader_threads: args.machine.loader_threads,
        slots: args.machine.slots,
        io,
        on_corrupt: args.data.on_corrupt,
        checkpoint_every: args.checkpoint_every,
        keep_states: args.keep_states,
        log_every: args.log_every,
        validation: args.val.clone(),
        validate_every: args.val_every,
        host_memory: args.machine.host_memory,
        recompute: args.machine.recompute.level(),
        fit: args.machine.fit.on(),
        restart: args.restart,
        pretrained: args.pretrain.clone().map(|path| (path, !args.lenient)),
        device: args.device,
        precision: args.precision,
        vram: args.machine.vram,
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
