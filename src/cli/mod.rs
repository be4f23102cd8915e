//! The command line: one file per command turns flags into plain configuration and calls the
//! library.

mod bench;
mod bench_step;
mod bench_upscale;
mod config;
mod data;
mod degrade;
mod demo;
mod eval;
mod examples;
mod export;
mod flags;
mod networks;
mod pages;
mod plan;
mod plan_max;
mod recipe;
mod report;
mod selftest;
mod shard;
mod shard_dry_run;
mod shards;
mod step_time;
mod synth;
mod train;
mod upscale;
mod usage;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use paragon::backend::cpu::{Bf16Unit, CpuOptions, Isa};
use paragon::inference::upscale::Upscaler;
use paragon::model::{LoadedModel, ModelHints, Purpose, Setting, load_model, locate};
use paragon::support::budget::Budget;
use std::path::Path;
use std::process::ExitCode;

/// Train super-resolution networks from a folder of photographs, with every byte of memory known
/// before the first step.
#[derive(Parser)]
#[command(name = "paragon", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Synth(synth::Args),
    Shard(shard::Args),
    Shards(shards::Args),
    Degrade(degrade::Args),
    Plan(Box<plan::Args>),
    Train(Box<train::Args>),
    Config(config::Args),
    Networks(networks::Args),
    Bench(bench::Args),
    Selftest(selftest::Args),
    Report(report::Args),
    Eval(eval::Args),
    Export(Box<export::Args>),
    Upscale(upscale::Args),
    Completions(pages::CompletionsArgs),
    Man(pages::ManArgs),
}

/// How to apply a network.
#[derive(clap::Args)]
struct ModelArgs {
    /// The network's name, for files that do not contain it; `paragon networks` lists them
    #[arg(long, value_name = "NAME", alias = "arch")]
    network: Option<String>,
    /// The scale, for files that do not contain it
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<usize>,
    /// upsampler_alpha, for files that do not contain it
    #[arg(long, value_parser = flags::single, allow_negative_numbers = true)]
    alpha: Option<f32>,
    #[command(flatten)]
    set: recipe::NetworkSet,
    /// Side of a tile in LQ pixels; the result does not depend on it [default: 288, more for
    /// networks that see far]
    #[arg(long, value_name = "PIXELS", value_parser = flags::count(flags::MAX_SIDE))]
    tile: Option<usize>,
    /// Cut images into tiles also for a network that looks at the whole image (Pro), which takes
    /// less memory; the result then differs from that of the whole image
    #[arg(long)]
    approximate_tiles: bool,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = flags::count(flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
    /// Most memory to use (512M, 2G); work that needs more is refused before it starts [default:
    /// what the machine and its control group leave]
    #[arg(long, value_name = "SIZE", value_parser = paragon::config::parse_size)]
    host_memory: Option<u64>,
}

impl ModelArgs {
    fn budget(&self) -> Budget {
        Budget::new(self.host_memory)
    }

    /// Reads the network of a file or of a run's folder, and says which one was taken if there was a
    /// choice.
    fn upscaler(&self, model: &Path) -> Result<Upscaler> {
        let set = self.set.settings();
        let set = set.map(|(name, setting)| (name.to_string(), setting.clone()));
        let alpha = self
            .alpha
            .map(|alpha| ("upsampler_alpha".to_string(), Setting::Number(alpha)));
        let hints = ModelHints {
            arch: self.network.clone(),
            scale: self.scale,
            settings: set.chain(alpha).collect(),
        };
        let located = locate(model, Purpose::Model)?;
        located.note.iter().for_each(flags::tell);
        let LoadedModel {
            net,
            values: params,
            taken,
            ..
        } = load_model(&located.path, &hints)?;
        if let Some(taken) = taken {
            flags::tell(format_args!(
                "{}: its entry {taken} is taken",
                model.display()
            ));
        }
        let looks_at_all = net.tiling().whole_image;
        let arch = &net.arch;
        match (self.approximate_tiles, looks_at_all) {
            (true, true) => flags::tell(format_args!(
                "approximate tiles: {arch} weighs its features by means over the whole image, which \
                 are taken over each tile here, so the result differs from that of the whole image"
            )),
            (true, false) => flags::tell(format_args!(
                "note: --approximate-tiles has no effect: {arch} gives the result of the whole image \
                 in tiles"
            )),
            (false, true) if self.tile.is_some() => flags::tell(format_args!(
                "note: --tile has no effect without --approximate-tiles: {arch} looks at the whole \
                 image"
            )),
            (false, _) => {}
        }
        let (options, tile) = (
            CpuOptions::new(self.threads.unwrap_or(0)),
            self.tile.unwrap_or(0),
        );
        if self.approximate_tiles {
            Upscaler::approximate(net, params, options, tile)
        } else {
            Upscaler::new(net, params, options, tile)
        }
    }

    /// How an image could take less memory by its tiles.
    fn smaller_tiles(upscaler: &Upscaler) -> &'static str {
        if upscaler.takes_whole_images() {
            "give --approximate-tiles (the network looks at the whole image; in tiles its result differs)"
        } else {
            "give a smaller --tile"
        }
    }
}

/// The command line with the examples under its help.
fn command() -> clap::Command {
    examples::with_examples(Cli::command())
}

fn parse() -> Cli {
    let parsed = command()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        let words: Vec<String> = std::env::args_os()
            .skip(1)
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        usage::with_answer(error, &command(), &words).exit()
    })
}

/// Parses, runs and reports: 0 ok, 1 the work failed (the error chain goes to stderr), 2 wrong
/// usage.
pub fn main() -> ExitCode {
    let cli = parse();
    paragon::dataset::decode::silence_decoder_panics();
    let asked = Isa::asked().and_then(|isa| Bf16Unit::asked(isa.unwrap_or_else(Isa::detect)));
    if let Err(error) = asked {
        flags::tell(format_args!("error: {error:#}"));
        return ExitCode::from(2);
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.chain().any(|cause| cause.is::<flags::StdoutClosed>()) => closed(),
        Err(error) => {
            flags::tell(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Shard(args) => shard::run(&args),
        Command::Shards(args) => shards::run(&args),
        Command::Degrade(args) => degrade::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Networks(args) => networks::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Selftest(args) => selftest::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Upscale(args) => upscale::run(&args),
        Command::Completions(args) => pages::completions(&args, self::command()),
        Command::Man(args) => pages::man(&args, self::command()),
    }
}

/// Ends as other programs do whose output is cut by `head`: without a word.
fn closed() -> ExitCode {
    paragon::sys::end_by_closed_pipe();
    ExitCode::FAILURE
}
