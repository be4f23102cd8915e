//! What every command that loads patches is told in the same way: the sets, their weights, how they are read and shuffled.

use super::flags::positive;
use super::shard::parse_size;
use anyhow::Result;
use paragon::loader::{IoChoice, OnCorrupt, Sources, choose_io, choose_window};
use paragon::shard::reader::Io;
use std::path::PathBuf;
use std::sync::Arc;

/// Where patches come from.
#[derive(clap::Args)]
pub struct DataArgs {
    /// Folder of the shards made by `paragon shard`; may be repeated to mix several sets
    #[arg(long, default_value = "shards", value_name = "DIR")]
    pub shards: Vec<PathBuf>,
    /// Shares of the sets in an epoch, one number each (3,1) [default: every record once]
    #[arg(long, value_delimiter = ',', value_name = "W,W", value_parser = positive, help_heading = "Data")]
    pub weights: Vec<f64>,
    /// How records are read; auto maps shards that lie on a local disk and fit into free memory
    #[arg(long, value_enum, default_value = "auto", help_heading = "Data")]
    pub io: IoChoice,
    /// Shuffle everything (off), or only within so many bytes of shards at a time, for sets larger than memory; auto decides by
    /// the free memory, and a resumed run keeps what it had
    #[arg(long, default_value = "auto", value_name = "auto|off|SIZE", value_parser = window, help_heading = "Data")]
    pub window: Window,
    /// A damaged record: stop with an error that names it, or train on another in its place, reported and counted
    #[arg(long, value_enum, default_value = "stop", help_heading = "Data")]
    pub on_corrupt: OnCorrupt,
}

/// How far to shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// By the memory that is free.
    Auto,
    /// Everything.
    Off,
    /// Within so many bytes.
    Bytes(u64),
}

fn window(text: &str) -> Result<Window, String> {
    match text {
        "auto" => Ok(Window::Auto),
        "off" => Ok(Window::Off),
        size => match parse_size(size)? {
            0 => Err("a window of 0 bytes holds no record; use off to shuffle everything".into()),
            bytes => Ok(Window::Bytes(bytes)),
        },
    }
}

impl DataArgs {
    /// Opens the sets.
    pub fn open(&self) -> Result<Arc<Sources>> {
        Ok(Arc::new(Sources::open(&self.shards, &self.weights)?))
    }

    /// How they are read, and why.
    pub fn io(&self, sources: &Sources) -> (Io, &'static str) {
        choose_io(sources, self.io)
    }

    /// The window in bytes, where there is one.
    pub fn window(&self, sources: &Sources) -> Option<u64> {
        match self.window {
            Window::Auto => choose_window(sources),
            Window::Off => None,
            Window::Bytes(bytes) => Some(bytes),
        }
    }
}
