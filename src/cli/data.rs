//! The data options that all loading commands share: the sets, their weights, how they are read and
//! shuffled.

use super::flags::tell;
use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use paragon::config::{NO_RECIPE, Settings, Value};
use paragon::degrade::Recipe;
use paragon::loader::{IoChoice, OnCorrupt, Sources, choose_io, choose_window};
use paragon::shard::reader::{Io, ShardSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Says which folder `--hr` or `--lq` names, where there is one below the data set and another one
/// here.
pub fn tell_side(flag: &str, dataset: &Path, side: Option<&PathBuf>) {
    let Some(side) = side.filter(|side| side.is_relative()) else {
        return;
    };
    let below = dataset.join(side);
    let folder = |path: &Path| path.canonicalize().ok().filter(|path| path.is_dir());
    if let (Some(inside), Some(here)) = (folder(&below), folder(side))
        && inside != here
    {
        tell(format_args!(
            "note: --{flag} {0}: {1} is taken; write ./{0} for the folder here",
            side.display(),
            below.display()
        ));
    }
}

/// Where patches come from.
pub struct DataArgs {
    /// Folders of the sets.
    pub shards: Vec<PathBuf>,
    weights: Vec<f64>,
    io: IoChoice,
    /// The range within which records are shuffled.
    pub window: Window,
    /// What happens at a damaged record.
    pub on_corrupt: OnCorrupt,
    /// The degradation recipe that is asked for.
    degrade: Option<Arc<Recipe>>,
    /// Whether no recipe is wanted, not even the one that a set names.
    keeps_lq: bool,
}

/// The range within which records are shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Chosen by the size of the shards.
    Auto,
    /// Everything.
    Off,
    /// Within so many bytes.
    Bytes(u64),
}

impl DataArgs {
    /// Reads the data options of a run's settings.
    pub fn new(settings: &Settings) -> Result<DataArgs> {
        let name = |path: &str| settings.text(path).unwrap_or_default().to_string();
        let wrong = |path: &str| anyhow!("{path}: unknown '{}'", name(path));
        Ok(DataArgs {
            shards: settings.paths("data.shards"),
            weights: settings.numbers("data.weights"),
            io: IoChoice::from_str(&name("data.io"), true).map_err(|_| wrong("data.io"))?,
            window: match settings.value("data.window") {
                Value::Whole(bytes) => Window::Bytes(*bytes),
                Value::Text(text) if text == "off" => Window::Off,
                _ => Window::Auto,
            },
            on_corrupt: OnCorrupt::from_str(&name("data.on_corrupt"), true)
                .map_err(|_| wrong("data.on_corrupt"))?,
            degrade: settings.degrade()?.map(Arc::new),
            keeps_lq: settings.text("data.degrade") == Some(NO_RECIPE),
        })
    }

    /// Opens the sets, and says how several are mixed.
    pub fn open(&self) -> Result<Arc<Sources>> {
        let sources = Sources::open(&self.shards, &self.weights)?;
        if self.shards.len() > 1 {
            tell(mixture(&self.shards, &sources));
        }
        Ok(Arc::new(sources))
    }

    /// The recipe that makes the LQ while it is loaded: the one asked for, or for sets of HR alone
    /// the one that they name. `None`: the LQ is stored.
    pub fn degrade(&self, sources: &Sources) -> Result<Option<Arc<Recipe>>> {
        if self.degrade.is_some() || self.keeps_lq {
            return Ok(self.degrade.clone());
        }
        let mut chosen: Option<(Recipe, &Path)> = None;
        for set in sources.sets().filter(|set| set.lqs() == 0) {
            let folder = set.folder();
            let own = set.manifest().degrade();
            let Some(own) =
                own.with_context(|| format!("{}; --degrade names another one", folder.display()))?
            else {
                continue;
            };
            if let Some((first, there)) = &chosen {
                ensure!(
                    first.hash() == own.hash(),
                    "{} names another degradation recipe than {}; choose one with --degrade",
                    folder.display(),
                    there.display()
                );
            }
            chosen = Some((own, folder));
        }
        Ok(chosen.map(|(recipe, _)| Arc::new(recipe)))
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

/// One line for each set: `photos 75 %: 532 pairs, each 2.3 times an epoch`.
fn mixture(folders: &[PathBuf], sources: &Sources) -> String {
    let quotas = sources.quotas();
    let all: u64 = quotas.iter().sum();
    let line = |((folder, set), quota): ((&PathBuf, &Arc<ShardSet>), &u64)| {
        format!(
            "{} {:.0} %: {} pairs, each {:.2} times an epoch",
            folder.display(),
            100.0 * *quota as f64 / all.max(1) as f64,
            set.len(),
            *quota as f64 / set.len().max(1) as f64
        )
    };
    let sets = folders.iter().zip(sources.sets()).zip(&quotas);
    sets.map(line).collect::<Vec<_>>().join("\n")
}
