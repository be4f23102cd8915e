//! Presets: named groups of values that `--preset` sets. Depends on the table of keys and on the
//! networks' recipes for short runs. A preset wins over a file, and `--set` and flags win over it.

use super::network::{as_value, setting_path};
use super::{Settings, Value};
use crate::model::{KnownNetwork, Setting, known_networks};
use crate::train::LossTerm;
use std::fmt::Write;

/// A named group of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Preset {
    /// LQ 128, batch 16: the published Nano recipe, the default
    Lq128,
    /// LQ 96, 2 x 8 patches, no rotation: what trainers that run out of memory are told to use
    MemorySafe,
    /// For runs of minutes to some hours: start values that let the network learn from the first
    /// iteration, a higher rate with cosine decay, one loss. `paragon config explain quick` lists
    /// the values for each network
    Quick,
}

/// Most iterations of warm-up of `quick`, and the share of the run that it is in shorter ones.
const WARMUP: (u64, u64) = (500, 20);
/// `quick`: the EMA averages over this share of the run, between these numbers of iterations. The
/// published decay of 0.999 averages over 1,000 iterations, which is half of a run of 2,000.
const AVERAGED: (u64, u64, u64) = (20, 10, 1000);

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 3] = [Preset::Lq128, Preset::MemorySafe, Preset::Quick];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Lq128 => "lq128",
            Preset::MemorySafe => "memory-safe",
            Preset::Quick => "quick",
        }
    }

    /// The preset of a name.
    pub fn from_name(name: &str) -> Option<Preset> {
        Preset::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// What it sets, by key, for a run of this network over so many iterations.
    pub fn values(self, network: &KnownNetwork, total_iter: u64) -> Vec<(String, Value)> {
        match self {
            Preset::Lq128 => patches(128, 16, 1, true),
            Preset::MemorySafe => patches(96, 8, 2, false),
            Preset::Quick => quick(network, total_iter),
        }
    }

    /// Sets its values in `settings`. Network and length of the run are those of `last`: the
    /// settings that count in the end.
    pub fn apply(self, settings: &mut Settings, last: &Settings) {
        // an unknown network is refused later, by name
        let Some(network) = last.known_network() else {
            return;
        };
        let total_iter = last.whole("train.total_iter").unwrap_or_default();
        for (path, value) in self.values(&network, total_iter) {
            settings.put(&path, value);
        }
    }

    /// What it sets, in words: one block for the networks that it sets the same for.
    pub fn explain(self) -> String {
        let mut out = format!("--preset {}\n", self.name());
        let mut blocks: Vec<(String, Vec<&str>)> = Vec::new();
        for network in known_networks() {
            let values = self.values(&network, 1).into_iter();
            let lines = values.map(|(path, value)| {
                let text = match (self, path.as_str()) {
                    (Preset::Quick, WARMUP_KEY) => warmup_text(),
                    (Preset::Quick, DECAY_KEY) => decay_text(),
                    _ => value.yaml(),
                };
                format!("  {path:28}  {text}\n")
            });
            let text: String = lines.collect();
            match blocks.iter_mut().find(|(other, _)| *other == text) {
                Some((_, networks)) => networks.push(network.name),
                None => blocks.push((text, vec![network.name])),
            }
        }
        for (text, networks) in &blocks {
            if blocks.len() > 1 {
                let _ = writeln!(out, "{}", networks.join(", "));
            }
            out += text;
        }
        out
    }
}

const WARMUP_KEY: &str = "train.warmup_iter";
const DECAY_KEY: &str = "train.ema_decay";

fn warmup_text() -> String {
    let (most, share) = WARMUP;
    format!("train.total_iter / {share}, at most {most}")
}

fn decay_text() -> String {
    let (share, least, most) = AVERAGED;
    format!("1 - 1 / n, n = train.total_iter / {share} but from {least} to {most}")
}

fn patches(lq_size: u64, batch: u64, accum: u64, rotate: bool) -> Vec<(String, Value)> {
    // One micro-batch, or as many as there are ranks.
    let accumulation = if accum == 1 {
        Value::Null
    } else {
        Value::Whole(accum)
    };
    vec![
        ("data.lq_size".into(), Value::Whole(lq_size)),
        ("data.batch_size_per_gpu".into(), Value::Whole(batch)),
        ("data.accum_iter".into(), accumulation),
        ("data.use_rot".into(), Value::Bool(rotate)),
    ]
}

fn quick(network: &KnownNetwork, total_iter: u64) -> Vec<(String, Value)> {
    let recipe = network.quick;
    let settings = recipe.settings.iter().map(|&(name, value)| {
        let value = as_value(&Setting::Number(value));
        (setting_path(name), value)
    });
    let (most, share) = WARMUP;
    let warmup = (total_iter / share).min(most);
    let (share, least, limit) = AVERAGED;
    let averaged = (total_iter / share).clamp(least, limit);
    let loss = LossTerm {
        kind: recipe.loss,
        weight: 1.0,
    };
    let text = |text: &str| Value::Text(text.into());
    let mut values: Vec<(String, Value)> = settings.collect();
    values.extend([
        ("train.optim_g.lr".into(), Value::Number(recipe.lr)),
        ("train.scheduler.type".into(), text("CosineAnnealingLR")),
        (WARMUP_KEY.into(), Value::Whole(warmup)),
        (DECAY_KEY.into(), Value::Number(1.0 - 1.0 / averaged as f64)),
        ("train.losses".into(), Value::List(vec![Value::Loss(loss)])),
    ]);
    values
}
