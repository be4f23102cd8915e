//! The command line: one file per command turns flags into plain configuration and calls the
//! library.

mod bench;
mod bench_step;
mod bench_upscale;
mod config;
mod cuda_details;
mod data;
mod degrade;
mod demo;
mod device;
mod eval;
mod examples;
mod export;
mod flags;
mod layout;
mod networks;
mod pages;
mod plan;
mod plan_max;
mod recipe;
mod report;
mod selftest;
mod shard;
mod shard_dry_run;
mod shard_part;
mod shard_select;
mod shard_sheet;
mod shards;
mod step_time;
mod synth;
mod train;
mod upscale;
mod usage;

use anyhow::{Result, ensure};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use device::InferencePlace;
use paragon::backend::cpu::{Bf16Unit, CpuOptions, Isa};
use paragon::inference::upscale::{DeviceFit, ImageKind, Upscaler};
use paragon::model::{LoadedModel, Purpose, load_model, locate};
use paragon::support::budget::Budget;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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
    #[command(flatten)]
    hints: recipe::HintFlags,
    #[command(flatten)]
    device: device::DeviceArgs,
    /// Side of a tile in LQ pixels; the result does not depend on it [default: 288, more for
    /// networks that see far; one that looks at the whole image (Pro) is given all of it, or if
    /// memory is short tiles of 384, with temporary files; on a GPU the largest up to 1024 that fit]
    #[arg(long, value_name = "PIXELS", value_parser = flags::count(flags::MAX_SIDE))]
    tile: Option<usize>,
    /// Take each tile for the whole image, for a network that looks at the whole image (Pro): this is
    /// faster than exact tiles and takes no temporary files, but the result differs
    #[arg(long)]
    approximate_tiles: bool,
    /// Folder for the temporary files of a network that looks at the whole image (Pro) and is given
    /// tiles: 512 bytes for each LQ pixel [default: the folder of the result; for eval that of the
    /// system]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Threads that compute, or with a GPU those that decode and encode images [default: one for each
    /// core]
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

    /// Opens the device.
    fn place(&self) -> Result<InferencePlace> {
        self.device.open(CpuOptions::new(self.threads.unwrap_or(0)))
    }

    /// Reads the network of a file or of a run's folder, and says which one was taken if there was a
    /// choice. Temporary files are in --scratch, or else in the folder `scratch`.
    fn upscaler(&self, place: &InferencePlace, model: &Path, scratch: &Path) -> Result<Upscaler> {
        let scratch = self.scratch.clone().unwrap_or_else(|| scratch.into());
        let located = locate(model, Purpose::Model)?;
        located.note.iter().for_each(flags::tell);
        let LoadedModel {
            net,
            values: params,
            taken,
            ..
        } = load_model(&located.path, &self.hints.hints())?;
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
            (false, _) => {}
        }
        let (tiles, tile) = (place.tiles(), self.tile.unwrap_or(0));
        let approximate = self.approximate_tiles;
        let mut upscaler = match approximate {
            true => Upscaler::approximate(net, params, tiles, tile)?,
            false => Upscaler::new(net, params, tiles, tile)?,
        };
        let in_stages = looks_at_all && self.tile.is_some() && !approximate;
        let usable = upscaler.check_device().and_then(|()| {
            ensure!(
                upscaler.device().is_none() || !in_stages,
                "--tile computes a network that looks at the whole image in stages, and these run on the \
                 CPU only; leave it out, or give --device cpu, or --approximate-tiles (the result then \
                 differs)"
            );
            Ok(())
        });
        if let Err(error) = usable {
            upscaler.use_cpu(place.cpu_instead(error)?, tile)?;
        }
        if in_stages && upscaler.has_stages() {
            upscaler.use_stages(scratch, tile)?;
        }
        Ok(upscaler)
    }

    /// Chooses the tiles of images on the GPU, or the CPU if the images do not fit there and the GPU
    /// was not named, and says what was chosen. On the CPU it does nothing.
    fn fit(
        &self,
        upscaler: &mut Upscaler,
        place: &InferencePlace,
        images: &[ImageKind],
    ) -> Result<Option<DeviceFit>> {
        let mut images = images.to_vec();
        let mut too_large = None;
        if upscaler.device().is_some() && upscaler.takes_whole_images() {
            images.retain(|&image| match upscaler.check_on_device(image) {
                Ok(()) => true,
                Err(error) => {
                    too_large.get_or_insert(error);
                    false
                }
            });
        }
        let fit = match too_large {
            // with a named GPU, the others are done and these are reported one by one
            Some(error) if place.may_use_cpu() => Err(error),
            _ => upscaler.fit_device(&images, self.tile.is_some()),
        };
        fit.or_else(|error| {
            upscaler.use_cpu(place.cpu_instead(error)?, self.tile.unwrap_or(0))?;
            Ok(None)
        })
    }

    /// How an image could take less memory by its tiles.
    fn smaller_tiles(upscaler: &Upscaler) -> &'static str {
        if upscaler.takes_whole_images() && upscaler.device().is_none() {
            "give --tile 384 (the network looks at the whole image; in tiles it takes temporary \
             files, and the result is the same)"
        } else {
            "give a smaller --tile"
        }
    }
}

/// The command line with the examples under its help.
fn command() -> clap::Command {
    examples::with_examples(Cli::command())
}

/// The words of the command line, without the program; set once by [`main`]. The arguments of the
/// process are not used: those of the command in a Python wheel begin with the interpreter.
static WORDS: OnceLock<Vec<String>> = OnceLock::new();

/// The words of the command line, without the program.
fn words() -> &'static [String] {
    WORDS.get().map_or(&[], Vec::as_slice)
}

fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let parsed = command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| usage::with_answer(error, &command(), words()))
}

/// Ends a command with wrong usage, of which `show` prints the error. A rank of a training says the
/// `text` of it to the others first.
fn wrong_usage(text: &str, show: impl FnOnce()) -> u8 {
    if words().first().is_some_and(|word| word == "train") {
        train::refuse(text, show);
    } else {
        show();
    }
    WRONG_USAGE
}

/// The exit code of a command that failed.
const FAILED: u8 = 1;
/// The exit code for wrong usage.
const WRONG_USAGE: u8 = 2;

/// Parses, runs and reports. `arguments` begin with the name of the program. Returns the exit code:
/// 0 ok, 1 the work failed (the error chain goes to stderr), 2 wrong usage.
pub(crate) fn main(arguments: Vec<OsString>) -> u8 {
    WORDS.get_or_init(|| {
        let words = arguments.iter().skip(1);
        words
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    });
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        // a closed stderr leaves nowhere to say it
        Err(error) if error.use_stderr() => {
            return wrong_usage(&error.to_string(), || drop(error.print()));
        }
        Err(help) => help.exit(),
    };
    paragon::dataset::decode::silence_decoder_panics();
    let asked = Isa::asked().and_then(|isa| Bf16Unit::asked(isa.unwrap_or_else(Isa::detect)));
    if let Err(error) = asked {
        let text = format!("error: {error:#}");
        return wrong_usage(&text, || flags::tell(&text));
    }
    match run(cli.command) {
        Ok(()) => 0,
        Err(error) if error.chain().any(|cause| cause.is::<flags::StdoutClosed>()) => closed(),
        Err(error) => {
            flags::tell(format_args!("error: {error:#}"));
            FAILED
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
fn closed() -> u8 {
    paragon::sys::end_by_closed_pipe();
    FAILED
}
