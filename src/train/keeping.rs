//! What a run keeps on the disk: which networks stay, the best one, which files of an earlier run
//! in the same folder are removed, and whether there is room for everything that will be kept.
//! Depends on the network files, the previews, the log and the free space the system reports.
//! Promises to remove only files that training itself has named.

use super::folder::{
    best_paths, bytes_in, curve_paths, model_names, model_path, models_folder, states_folder,
    transcript_path,
};
use super::state_files::list_states;
use super::{BestScore, RunOptions, TrainConfig, previews};
use crate::model::Network;
use crate::model::write_model;
use crate::report::tensorboard;
use crate::support::files;
use crate::support::text::bytes_text;
use crate::sys;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes of a network or state file apart from its values; generous for both.
const HEADER_BYTES: u64 = 16 << 10;
/// Bytes of the curves and the report of a run; generous.
const OTHER_BYTES: u64 = 8 << 20;
/// Bytes of a log line together with the same figures for TensorBoard.
const LINE_BYTES: u64 = 1 << 10;
/// Largest `best.json` that is read, bytes.
const MAX_BEST_BYTES: u64 = 64 << 10;

/// The images that a network was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// Folder of images or set of shards, as an absolute path; for messages only, since it may have
    /// been moved.
    pub place: String,
    /// Number of pairs.
    pub pairs: u64,
    /// HR pixels left out at each edge.
    pub crop_border: u32,
    /// CRC-32 of the sizes and pixels of all pairs, in order.
    pub checksum: u32,
}

impl MeasuredOn {
    /// Whether scores on both can be compared: the path may differ.
    pub fn same(&self, other: &MeasuredOn) -> bool {
        (self.pairs, self.crop_border, self.checksum)
            == (other.pairs, other.crop_border, other.checksum)
    }
}

/// The best network of a run so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestNetwork {
    /// Iteration after which it was measured.
    pub iteration: u64,
    /// Its PSNR on Y, dB.
    pub psnr_y: f64,
    /// What it was measured on; `None` in files of version 0.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<MeasuredOn>,
}

impl BestNetwork {
    /// The best network that earlier processes of the run have kept. `None` if it is of an
    /// iteration after `iteration`, from which the run continues: later iterations are done again,
    /// perhaps with other settings.
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

    /// Its score and file, for the summary of a run.
    pub fn score(&self, run: &Path) -> BestScore {
        let [model, _] = best_paths(run);
        BestScore {
            iteration: self.iteration,
            psnr_y: self.psnr_y,
            model,
        }
    }

    /// Writes the network, then its score.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, run: &Path, net: &Network, values: &[f32]) -> Result<()> {
        let [network, figures] = best_paths(run);
        write_model(&network, net, values, Some(self.iteration))?;
        files::write_atomic(&figures, |out| {
            Ok(writeln!(out, "{}", serde_json::to_string(self)?)?)
        })
    }
}

/// Iterations whose networks are not kept: they are neither among the `keep` newest nor multiples
/// of `every`.
fn surplus(iterations: &[u64], keep: usize, every: Option<u64>) -> Vec<u64> {
    let mut list = iterations.to_vec();
    list.sort_unstable_by(|a, b| b.cmp(a));
    list.dedup();
    let permanent = |i: u64| every.is_some_and(|every| i.is_multiple_of(every.max(1)));
    list.into_iter()
        .skip(keep.max(1))
        .filter(|&i| !permanent(i))
        .collect()
}

/// Iterations of which the folder holds networks; an iteration may come twice.
fn model_iterations(run: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(models_folder(run)) else {
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

/// Removes what an earlier run left in the folder of a run that begins, so that it is not mistaken
/// for a result of this run: previews, curves, event files, printed text and the best score. With `networks` its
/// states and networks are removed as well.
///
/// # Errors
/// A file cannot be removed.
pub(super) fn forget(run: &Path, networks: bool) -> Result<()> {
    previews::clear(run);
    let [best_network, best_figures] = best_paths(run);
    let mut paths = vec![best_figures, transcript_path(run)];
    paths.extend(curve_paths(run));
    paths.extend(tensorboard::own_files(&run.join("tensorboard")));
    if networks {
        let folder = models_folder(run);
        paths.extend([best_network, model_path(run)]);
        paths.extend(
            model_iterations(run)
                .into_iter()
                .flat_map(model_names)
                .map(|name| folder.join(name)),
        );
        // The states last: as long as one is left, the folder can be recognised as that of a run.
        paths.extend(list_states(run)?.into_iter().map(|(_, path)| path));
    }
    for path in paths {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome
                .with_context(|| format!("cannot remove {} of the earlier run", path.display()))?,
        }
    }
    Ok(())
}

/// Removes the networks of checkpoints that are not kept, up to iteration `newest`.
pub(super) fn drop_surplus(run: &Path, newest: u64, keep: usize, every: Option<u64>) {
    let folder = models_folder(run);
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

/// Largest number of bytes that the checkpoints, previews and log of a run take at once, from
/// iteration `from` on.
fn checkpoint_bytes(config: &TrainConfig, options: &RunOptions, from: u64) -> u64 {
    let network = config.network.params().len() as u64 * 4 + HEADER_BYTES;
    let state = config.network.params().len() as u64 * 16 + HEADER_BYTES;
    let every = options.checkpoint_every.max(1);
    let ahead = (config.total_iter / every)
        .saturating_sub(from / every)
        .saturating_add(1);
    let permanent = options.keep_every.map_or(0, |keep| {
        // Only iterations with a checkpoint can be kept permanently.
        let common = keep.max(1) / gcd(keep.max(1), every);
        let period = common.saturating_mul(every);
        (config.total_iter / period).saturating_sub(from / period)
    });
    let pairs = permanent
        .saturating_add(options.keep_models as u64)
        .min(ahead);
    // Besides: model.safetensors, the best network, and one state while it is written.
    let networks = pairs.saturating_mul(2).saturating_add(2);
    let states = (options.keep_states as u64).min(ahead).saturating_add(1);
    let checkpoints = networks
        .saturating_mul(network)
        .saturating_add(states.saturating_mul(state));
    let left = config.total_iter.saturating_sub(from);
    let validations = if options.validation.is_some() {
        (left / options.validate_every.max(1)).saturating_add(1)
    } else {
        0
    };
    // Besides: HR, bicubic, and one preview while it is written.
    let previews = if validations > 0 {
        validations.min(previews::MAX_VERSIONS) + 3
    } else {
        0
    };
    let previews = previews * previews::IMAGES as u64 * previews::FILE_BYTES;
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

/// Refuses a run if the disk has no room for its checkpoints, previews and log. Files that the run
/// already has count as free, since new ones replace them.
///
/// # Errors
/// There is not enough room; the message names what is needed, what is free, and what takes less.
pub(super) fn check_space(config: &TrainConfig, options: &RunOptions, from: u64) -> Result<()> {
    let Some(free) = sys::free_space(&options.out) else {
        return Ok(());
    };
    let needed = checkpoint_bytes(config, options, from);
    let out = &options.out;
    let own = bytes_in(&models_folder(out)) + bytes_in(&states_folder(out)) + previews::bytes(out);
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
            "train.log",
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
