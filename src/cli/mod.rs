//! The command line: one file per command turns flags into plain configuration and calls the library.

mod shard;
mod shards;
mod synth;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Train super-resolution networks from a folder of photographs, with every byte of memory known before the first step.
#[derive(Parser)]
#[command(name = "paragon", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Synth(synth::Args),
    Shard(shard::Args),
    Shards(shards::Args),
}

/// Parses, runs and reports: 0 ok, 1 the work failed (the error chain goes to stderr), 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: anyhow::Result<()> = match cli.command {
        Command::Synth(args) => synth::run(&args),
        Command::Shard(args) => shard::run(&args),
        Command::Shards(args) => shards::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
