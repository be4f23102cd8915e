//! Names of the files in a run's folder. Depends on nothing. Promises that whoever writes a file of
//! a run and whoever reads or removes it agree on its name.

use std::path::{Path, PathBuf};

/// The newest EMA network of a run.
pub(super) fn model_path(run: &Path) -> PathBuf {
    run.join("model.safetensors")
}

/// The folder with the networks of checkpoints.
pub(super) fn models_folder(run: &Path) -> PathBuf {
    run.join("models")
}

/// File names of a checkpoint's networks within [`models_folder`]: parameters and EMA.
pub(super) fn model_names(iteration: u64) -> [String; 2] {
    ["net_g", "net_g_ema"].map(|name| format!("{name}_{iteration}.safetensors"))
}

/// The best network of a run, and the file with its scores.
pub(super) fn best_paths(run: &Path) -> [PathBuf; 2] {
    ["best_net_g_ema.safetensors", "best.json"].map(|name| models_folder(run).join(name))
}

/// The folder with the states of a run.
pub(super) fn states_folder(run: &Path) -> PathBuf {
    run.join("states")
}

/// The state after an iteration.
pub fn state_path(run: &Path, iteration: u64) -> PathBuf {
    states_folder(run).join(format!("state_{iteration:09}.safetensors"))
}

/// The text of everything that the run has printed.
pub(super) fn transcript_path(run: &Path) -> PathBuf {
    run.join("train.log")
}

/// The curves that a run draws at its end: loss and validation.
pub(super) fn curve_paths(run: &Path) -> [PathBuf; 2] {
    ["loss.svg", "validation.svg"].map(|name| run.join(name))
}

/// Bytes of the files directly in a folder; 0 if it cannot be listed.
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
