//! The state of a run between iterations: everything a resumed run needs to give the same bits as an unbroken one. One
//! safetensors file, written atomically, with a checksum, so that a damaged one is noticed and an older one can be taken.

use super::TrainConfig;
use crate::files;
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const METADATA_KEY: &str = "paragon_state";
/// Raised when a state file changes its meaning.
const VERSION: u32 = 1;
/// The vectors of a state, in the order of [`State::vectors`].
const NAMES: [&str; 4] = ["parameters", "moment1", "moment2", "ema"];

/// A run after `iteration` iterations.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Everything but the vectors.
    pub head: StateHead,
    /// parameters, first moment, second moment, EMA; f32, in table order.
    pub vectors: [Vec<f32>; 4],
}

/// The small part of a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateHead {
    version: u32,
    /// Iterations done.
    pub iteration: u64,
    /// Updates applied: iterations less the skipped ones.
    pub updates: u64,
    /// Fingerprint of the shard set the order belongs to.
    pub data: u64,
    /// The configuration of the run.
    pub config: TrainConfig,
    crc32: u32,
}

fn checksum(vectors: &[Vec<f32>; 4]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    vectors.iter().for_each(|v| hasher.update(bytemuck::cast_slice(v)));
    hasher.finalize()
}

impl State {
    /// A state; the checksum is computed here.
    pub fn new(iteration: u64, updates: u64, data: u64, config: TrainConfig, vectors: [Vec<f32>; 4]) -> State {
        let crc32 = checksum(&vectors);
        State { head: StateHead { version: VERSION, iteration, updates, data, config, crc32 }, vectors }
    }

    /// Writes the state atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let metadata = HashMap::from([(METADATA_KEY.to_string(), serde_json::to_string(&self.head)?)]);
        let views = NAMES
            .iter()
            .zip(&self.vectors)
            .map(|(name, v)| Ok((*name, TensorView::new(Dtype::F32, vec![v.len()], bytemuck::cast_slice(v))?)))
            .collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(views, Some(metadata))?;
        files::write_atomic(path, |out| Ok(out.write_all(&bytes)?))
    }

    /// Reads and checks a state.
    ///
    /// # Errors
    /// When the file is damaged or of another version.
    pub fn read(path: &Path) -> Result<State> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_bytes(&bytes).with_context(|| format!("{} is damaged or no state of a run", path.display()))
    }

    fn from_bytes(bytes: &[u8]) -> Result<State> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let Some(text) = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)) else { bail!("its metadata has no {METADATA_KEY}") };
        let head: StateHead = serde_json::from_str(text)?;
        ensure!(head.version == VERSION, "it has version {}, this program knows {VERSION}", head.version);
        let file = SafeTensors::deserialize(bytes)?;
        let mut vectors: [Vec<f32>; 4] = Default::default();
        for (name, out) in NAMES.iter().zip(&mut vectors) {
            let view = file.tensor(name)?;
            ensure!(view.dtype() == Dtype::F32, "{name} is not f32");
            *out = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        }
        let sum = checksum(&vectors);
        ensure!(sum == head.crc32, "its checksum is {sum:08x}, expected {:08x}", head.crc32);
        Ok(State { head, vectors })
    }
}

/// Name of the state after an iteration.
pub fn state_path(run: &Path, iteration: u64) -> PathBuf {
    run.join("states").join(format!("state_{iteration:09}.safetensors"))
}

/// State files of a run, newest first.
pub fn list_states(run: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(run.join("states")) else { return Vec::new() };
    let mut list: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let number = name.strip_prefix("state_")?.strip_suffix(".safetensors")?;
            Some((number.parse().ok()?, e.path()))
        })
        .collect();
    list.sort_by_key(|(iteration, _)| std::cmp::Reverse(*iteration));
    list
}

/// The newest whole state of a run, and what was wrong with any newer one.
pub fn newest_state(run: &Path) -> (Option<State>, Vec<String>) {
    let mut damaged = Vec::new();
    for (_, path) in list_states(run) {
        match State::read(&path) {
            Ok(state) => return (Some(state), damaged),
            Err(error) => damaged.push(format!("{error:#}")),
        }
    }
    (None, damaged)
}
