//! What a run keeps on the disk: which network files stay, the best one, and whether there is room for all that will be kept. Depends
//! on the network files and on what the system says of the disk. It promises to remove only files that training itself has named.

use super::{RunOptions, TrainConfig, write_model};
use crate::files;
use crate::model::Network;
use crate::plan::bytes_text;
use crate::system;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Names and shapes of a network file beside its numbers, and a state's head: generous for both.
const HEADER_BYTES: u64 = 16 << 10;
/// Beside checkpoints: log, previews, curves.
const OTHER_BYTES: u64 = 8 << 20;

/// The best network so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Iteration it is of.
    pub iteration: u64,
    /// Its PSNR on Y, dB.
    pub psnr_y: f64,
}

/// The best network of a run, and where its figures are.
pub fn best_paths(run: &Path) -> [PathBuf; 2] {
    ["best_net_g_ema.safetensors", "best.json"].map(|name| run.join("models").join(name))
}

impl Best {
    /// What an earlier process of the run has kept, up to the iteration it goes on from: what is later belongs to iterations that are
    /// done again, perhaps with other settings.
    pub fn read(run: &Path, iteration: u64) -> Option<Best> {
        let text = std::fs::read(&best_paths(run)[1]).ok()?;
        serde_json::from_slice(&text).ok().filter(|best: &Best| best.iteration <= iteration)
    }

    /// Writes the network, then its figures.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, run: &Path, net: &Network, values: &[f32]) -> Result<()> {
        let [network, figures] = best_paths(run);
        write_model(&network, net, values, Some(self.iteration))?;
        files::write_atomic(&figures, |out| Ok(writeln!(out, "{}", serde_json::to_string(self)?)?))
    }
}

/// Iterations whose network files are too many: neither among the newest nor kept for good.
pub fn surplus(iterations: &[u64], keep: usize, every: Option<u64>) -> Vec<u64> {
    let mut list = iterations.to_vec();
    list.sort_unstable_by(|a, b| b.cmp(a));
    list.dedup();
    let for_good = |i: u64| every.is_some_and(|every| i.is_multiple_of(every.max(1)));
    list.into_iter().skip(keep.max(1)).filter(|&i| !for_good(i)).collect()
}

/// Names of a checkpoint's network files: parameters and EMA.
pub fn model_names(iteration: u64) -> [String; 2] {
    ["net_g", "net_g_ema"].map(|name| format!("{name}_{iteration}.safetensors"))
}

/// Removes network files that are too many, up to the iteration of the newest checkpoint.
pub fn drop_surplus(run: &Path, newest: u64, keep: usize, every: Option<u64>) {
    let folder = run.join("models");
    let Ok(entries) = std::fs::read_dir(&folder) else { return };
    let number = |name: String| name.strip_prefix("net_g_")?.trim_start_matches("ema_").strip_suffix(".safetensors")?.parse().ok();
    let iterations: Vec<u64> =
        entries.flatten().filter_map(|e| number(e.file_name().into_string().ok()?)).filter(|i| *i <= newest).collect();
    for name in surplus(&iterations, keep, every).into_iter().flat_map(model_names) {
        let _ = std::fs::remove_file(folder.join(name)); // an old network too many does no harm
    }
}

/// Bytes that the checkpoints of a run take at most at once, from an iteration on.
pub fn checkpoint_bytes(config: &TrainConfig, options: &RunOptions, from: u64) -> u64 {
    let network = config.network.params().len() as u64 * 4 + HEADER_BYTES;
    let state = config.network.params().len() as u64 * 16 + HEADER_BYTES;
    let every = options.checkpoint_every.max(1);
    let ahead = (config.total_iter / every).saturating_sub(from / every).saturating_add(1);
    let for_good = options.keep_every.map_or(0, |keep| {
        // an iteration is kept for good where it is a checkpoint too
        let common = keep.max(1) / gcd(keep.max(1), every);
        let period = common.saturating_mul(every);
        (config.total_iter / period).saturating_sub(from / period)
    });
    let pairs = for_good.saturating_add(options.keep_models as u64).min(ahead);
    // model.safetensors and the best one; of states one more while it is written
    let networks = pairs.saturating_mul(2).saturating_add(2);
    let states = (options.keep_states as u64).min(ahead).saturating_add(1);
    networks.saturating_mul(network).saturating_add(states.saturating_mul(state)).saturating_add(OTHER_BYTES)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// Refuses a run whose checkpoints the disk has not room for. What the run has on it already makes room for what replaces it.
///
/// # Errors
/// Names what is needed, what is free, and what takes less.
pub fn check_space(config: &TrainConfig, options: &RunOptions, from: u64) -> Result<()> {
    let Some(free) = system::free_space(&options.out) else { return Ok(()) };
    let needed = checkpoint_bytes(config, options, from);
    let own = ["models", "states"].map(|folder| bytes_in(&options.out.join(folder))).iter().sum::<u64>();
    ensure!(
        needed <= free.saturating_add(own),
        "the disk of {} has {} free and the checkpoints of this run will take {}; make room, choose another --out, or keep fewer \
         (--checkpoint-every, --keep-models, --keep-every, --keep-states)",
        options.out.display(),
        bytes_text(free),
        bytes_text(needed)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_every_so_many_stay() {
        let all: Vec<u64> = (1..=20).map(|i| i * 5).collect();
        let gone = surplus(&all, 3, Some(25));
        let kept: Vec<u64> = all.iter().copied().filter(|i| !gone.contains(i)).collect();
        assert_eq!(kept, [25, 50, 75, 90, 95, 100]);
        assert_eq!(surplus(&all, 2, None).len(), 18);
        assert!(surplus(&all, 100, None).is_empty() && surplus(&[], 1, None).is_empty());
        // both files of a checkpoint count once
        assert_eq!(surplus(&[1, 1, 2, 2, 3, 3], 2, None), [1]);
    }

    #[test]
    fn only_network_files_of_the_run_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models");
        std::fs::create_dir(&models).unwrap();
        let others = ["net_g_x.safetensors", "net_g_7.pth", "best_net_g_ema.safetensors", "mine.safetensors", "net_g_90.safetensors"];
        for name in others.iter().map(ToString::to_string).chain((1..=8).flat_map(model_names)) {
            std::fs::write(models.join(name), "").unwrap();
        }
        drop_surplus(dir.path(), 8, 2, Some(4));
        let left = |name: &str| models.join(name).exists();
        assert!(others.iter().all(|name| left(name)));
        for i in 1..=8 {
            assert!(model_names(i).iter().all(|name| left(name) == [4, 7, 8].contains(&i)), "{i}");
        }
    }
}
