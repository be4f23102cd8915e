//! What a run keeps on the disk: which network files stay, the best one, what of an earlier run in
//! the same folder has to go, and whether there is room for all that will be kept. Depends on the
//! network files, the previews, the log and on what the system says of the disk. It promises to
//! remove only files that training itself has named.

use super::{RunOptions, TrainConfig, list_states, log, model_path, previews};
use crate::model::Network;
use crate::model::write_model;
use crate::report::tensorboard;
use crate::support::files;
use crate::support::text::bytes_text;
use crate::sys;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Names and shapes of a network file beside its numbers, and a state's head: generous for both.
const HEADER_BYTES: u64 = 16 << 10;
/// Beside checkpoints, previews and the log: curves, the page of the run.
const OTHER_BYTES: u64 = 8 << 20;
/// A line of the log and the same figures for TensorBoard.
const LINE_BYTES: u64 = 1 << 10;
/// Most bytes of `best.json` that are read.
const MAX_BEST_BYTES: u64 = 64 << 10;

/// What a network was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// Folder or set, as an absolute path; for people, since it may have been moved.
    pub place: String,
    /// How many pairs.
    pub pairs: u64,
    /// HR pixels left out at each edge.
    pub crop_border: u32,
    /// CRC-32 of the sizes and pixels of all pairs, in order.
    pub checksum: u32,
}

impl MeasuredOn {
    /// Whether scores on both can be compared.
    pub fn same(&self, other: &MeasuredOn) -> bool {
        (self.pairs, self.crop_border, self.checksum)
            == (other.pairs, other.crop_border, other.checksum)
    }
}

/// The best network so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestNetwork {
    /// Iteration it is of.
    pub iteration: u64,
    /// Its PSNR on Y, dB.
    pub psnr_y: f64,
    /// What it was measured on; version 0.1.0 did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<MeasuredOn>,
}

/// The best network of a run, and where its figures are.
pub fn best_paths(run: &Path) -> [PathBuf; 2] {
    ["best_net_g_ema.safetensors", "best.json"].map(|name| run.join("models").join(name))
}

impl BestNetwork {
    /// What an earlier process of the run has kept, up to the iteration it goes on from: what is
    /// later belongs to iterations that are done again, perhaps with other settings.
    pub fn read(run: &Path, iteration: u64) -> Option<BestNetwork> {
        let mut text = Vec::new();
        files::open_regular(&best_paths(run)[1])
            .ok()?
            .take(MAX_BEST_BYTES)
            .read_to_end(&mut text)
            .ok()?;
        serde_json::from_slice(&text)
            .ok()
            .filter(|best: &BestNetwork| best.iteration <= iteration)
    }

    /// Writes the network, then its figures.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, run: &Path, net: &Network, values: &[f32]) -> Result<()> {
        let [network, figures] = best_paths(run);
        write_model(&network, net, values, Some(self.iteration))?;
        files::write_atomic(&figures, |out| {
            Ok(writeln!(out, "{}", serde_json::to_string(self)?)?)
        })
    }
}

/// Iterations whose network files are too many: neither among the newest nor kept for good.
pub fn surplus(iterations: &[u64], keep: usize, every: Option<u64>) -> Vec<u64> {
    let mut list = iterations.to_vec();
    list.sort_unstable_by(|a, b| b.cmp(a));
    list.dedup();
    let for_good = |i: u64| every.is_some_and(|every| i.is_multiple_of(every.max(1)));
    list.into_iter()
        .skip(keep.max(1))
        .filter(|&i| !for_good(i))
        .collect()
}

/// Names of a checkpoint's network files: parameters and EMA.
pub fn model_names(iteration: u64) -> [String; 2] {
    ["net_g", "net_g_ema"].map(|name| format!("{name}_{iteration}.safetensors"))
}

/// Iterations of the network files of a run's checkpoints.
fn model_iterations(run: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(run.join("models")) else {
        return Vec::new();
    };
    let number = |name: String| {
        name.strip_prefix("net_g_")?
            .trim_start_matches("ema_")
            .strip_suffix(".safetensors")?
            .parse()
            .ok()
    };
    entries
        .flatten()
        .filter_map(|e| number(e.file_name().into_string().ok()?))
        .collect()
}

/// Removes what an earlier run has left in the folder of one that begins, so that nobody takes it
/// for this one's: what was drawn and written about it. With `networks` its states and networks go
/// as well.
///
/// # Errors
/// When a file cannot be removed.
pub fn forget(run: &Path, networks: bool) -> Result<()> {
    previews::clear(run);
    let [best_network, best_figures] = best_paths(run);
    let mut gone = vec![best_figures];
    gone.extend(log::curves(run));
    gone.extend(tensorboard::own_files(&run.join("tensorboard")));
    if networks {
        let folder = run.join("models");
        gone.extend([best_network, model_path(run)]);
        gone.extend(
            model_iterations(run)
                .into_iter()
                .flat_map(model_names)
                .map(|name| folder.join(name)),
        );
        // the states last: as long as one is left the folder says by itself that it holds a run
        gone.extend(list_states(run)?.into_iter().map(|(_, path)| path));
    }
    for path in gone {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome
                .with_context(|| format!("cannot remove {} of the earlier run", path.display()))?,
        }
    }
    Ok(())
}

/// Removes network files that are too many, up to the iteration of the newest checkpoint.
pub fn drop_surplus(run: &Path, newest: u64, keep: usize, every: Option<u64>) {
    let folder = run.join("models");
    let iterations: Vec<u64> = model_iterations(run)
        .into_iter()
        .filter(|i| *i <= newest)
        .collect();
    for name in surplus(&iterations, keep, every)
        .into_iter()
        .flat_map(model_names)
    {
        let _ = std::fs::remove_file(folder.join(name)); // an old network too many does no harm
    }
}

/// Bytes that the checkpoints, previews and log of a run take at most at once, from an iteration
/// on.
pub fn checkpoint_bytes(config: &TrainConfig, options: &RunOptions, from: u64) -> u64 {
    let network = config.network.params().len() as u64 * 4 + HEADER_BYTES;
    let state = config.network.params().len() as u64 * 16 + HEADER_BYTES;
    let every = options.checkpoint_every.max(1);
    let ahead = (config.total_iter / every)
        .saturating_sub(from / every)
        .saturating_add(1);
    let for_good = options.keep_every.map_or(0, |keep| {
        // an iteration is kept for good where it is a checkpoint too
        let common = keep.max(1) / gcd(keep.max(1), every);
        let period = common.saturating_mul(every);
        (config.total_iter / period).saturating_sub(from / period)
    });
    let pairs = for_good
        .saturating_add(options.keep_models as u64)
        .min(ahead);
    // model.safetensors and the best one; of states one more while it is written
    let networks = pairs.saturating_mul(2).saturating_add(2);
    let states = (options.keep_states as u64).min(ahead).saturating_add(1);
    let checkpoints = networks
        .saturating_mul(network)
        .saturating_add(states.saturating_mul(state));
    let left = config.total_iter.saturating_sub(from);
    let validations = if options.validation.is_some() {
        left / options.validate_every.max(1) + 1
    } else {
        0
    };
    // HR, bicubic, and one more while it is written
    let previews = if validations > 0 {
        validations.min(previews::MOST_VERSIONS) + 3
    } else {
        0
    };
    let previews = previews * previews::PICTURES as u64 * previews::FILE_BYTES;
    let lines = (left / options.log_every.max(1))
        .saturating_add(validations)
        .saturating_mul(LINE_BYTES);
    checkpoints
        .saturating_add(previews)
        .saturating_add(lines)
        .saturating_add(OTHER_BYTES)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub(super) fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|e| e.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

/// Refuses a run whose checkpoints the disk has not room for. What the run has on it already makes
/// room for what replaces it.
///
/// # Errors
/// Names what is needed, what is free, and what takes less.
pub fn check_space(config: &TrainConfig, options: &RunOptions, from: u64) -> Result<()> {
    let Some(free) = sys::free_space(&options.out) else {
        return Ok(());
    };
    let needed = checkpoint_bytes(config, options, from);
    let own = ["models", "states"]
        .map(|folder| bytes_in(&options.out.join(folder)))
        .iter()
        .sum::<u64>()
        + previews::bytes(&options.out);
    ensure!(
        needed <= free.saturating_add(own),
        "the disk of {} has {} free and the checkpoints, previews and log of this run will take {}; make room, choose another --out, or keep \
         fewer (--checkpoint-every, --keep-models, --keep-every, --keep-states, --log-every)",
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
        let others = [
            "net_g_x.safetensors",
            "net_g_7.pth",
            "best_net_g_ema.safetensors",
            "mine.safetensors",
            "net_g_90.safetensors",
        ];
        for name in others
            .iter()
            .map(ToString::to_string)
            .chain((1..=8).flat_map(model_names))
        {
            std::fs::write(models.join(name), "").unwrap();
        }
        drop_surplus(dir.path(), 8, 2, Some(4));
        let left = |name: &str| models.join(name).exists();
        assert!(others.iter().all(|name| left(name)));
        for i in 1..=8 {
            assert!(
                model_names(i)
                    .iter()
                    .all(|name| left(name) == [4, 7, 8].contains(&i)),
                "{i}"
            );
        }
    }

    #[test]
    fn an_earlier_run_is_forgotten_and_what_is_not_its_own_stays() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let derived = [
            "models/best.json",
            "loss.svg",
            "tensorboard/events.out.tfevents.1700000000.7.paragon",
            "previews/0_a/hr.png",
        ];
        let derived = derived.into_iter().chain([
            "previews/0_a/00000020.png",
            "previews/0_a/.hr.png.7.partial",
        ]);
        let networks = [
            "models/best_net_g_ema.safetensors",
            "models/net_g_20.safetensors",
            "models/net_g_ema_20.safetensors",
        ];
        let networks = networks
            .into_iter()
            .chain(["model.safetensors", "states/state_000000020.safetensors"]);
        let others = [
            "models/mine.safetensors",
            "previews/0_b/note.txt",
            "tensorboard/events.out.tfevents.1700000000.host",
            "notes.md",
        ];
        let all: Vec<&str> = derived
            .clone()
            .chain(networks.clone())
            .chain(others)
            .collect();
        for path in &all {
            std::fs::create_dir_all(run.join(path).parent().unwrap()).unwrap();
            std::fs::write(run.join(path), "").unwrap();
        }
        let left = || -> Vec<&str> {
            all.iter()
                .copied()
                .filter(|path| run.join(path).exists())
                .collect()
        };
        forget(run, false).unwrap();
        assert_eq!(left(), networks.chain(others).collect::<Vec<_>>());
        forget(run, true).unwrap();
        assert_eq!(left(), others);
        assert!(!run.join("previews/0_a").exists() && run.join("previews/0_b").exists());
    }
}
