//! The state of a run between iterations: everything a resumed run needs to give the same bits as an unbroken one. One
//! safetensors file, written atomically, with a checksum, so that a damaged one is noticed and an older one can be taken.

use super::{LossScale, TrainConfig};
use crate::files;
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Key of the metadata that a state alone has.
pub(super) const METADATA_KEY: &str = "paragon_state";
/// Raised when a state file changes its meaning.
const VERSION: u32 = 2;
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
    /// Losses of the iterations since the last log line, so that the next line is that of an unbroken run.
    pub open_line: OpenLine,
    /// The configuration of the run.
    pub config: TrainConfig,
    /// fp16: the factor on the loss.
    #[serde(default)]
    pub loss_scale: LossScale,
    crc32: u32,
}

/// A log line that is not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenLine {
    /// Sum of the losses.
    pub loss: f64,
    /// How many they are: iterations less the skipped ones.
    pub count: u64,
}

/// Over the vectors and the head itself (with 0 in place of the checksum).
fn checksum(head: &StateHead, vectors: &[Vec<f32>; 4]) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    vectors.iter().for_each(|v| hasher.update(bytemuck::cast_slice(v)));
    hasher.update(&serde_json::to_vec(&StateHead { crc32: 0, ..head.clone() })?);
    Ok(hasher.finalize())
}

impl State {
    /// A state; the checksum is computed when it is written.
    pub fn new(iteration: u64, updates: u64, data: u64, open_line: OpenLine, config: TrainConfig, vectors: [Vec<f32>; 4]) -> State {
        State {
            head: StateHead { version: VERSION, iteration, updates, data, open_line, config, loss_scale: LossScale::default(), crc32: 0 },
            vectors,
        }
    }

    /// Writes the state atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let head = StateHead { crc32: checksum(&self.head, &self.vectors)?, ..self.head.clone() };
        let metadata = HashMap::from([(METADATA_KEY.to_string(), serde_json::to_string(&head)?)]);
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
        let sum = checksum(&head, &vectors)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Network;
    use crate::plan::LossKind;
    use crate::train::{Decay, LossTerm, Schedule};

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let config = TrainConfig {
            network: Network::new("nano", 2).unwrap(),
            lq_size: 16,
            batch_size: 2,
            accum_iter: 1,
            use_hflip: true,
            use_rot: true,
            losses: vec![LossTerm { kind: LossKind::L1, weight: 1.0 }],
            optimizer: Default::default(),
            betas: (0.9, 0.99),
            epsilon: 1e-8,
            weight_decay: 1e-4,
            grad_clip: 1.0,
            schedule: Schedule { base_lr: 2.1e-4, warmup: 3, decay: Decay::Cosine { total: 10, eta_min: 1e-7 } },
            total_iter: 10,
            ema_decay: 0.999,
            ema_power: 0.75,
            seed: 3,
            window: None,
        };
        let vectors = [vec![0.1, 0.2], vec![0.3], vec![-0.4], vec![0.5, 6.0]];
        let state = State::new(7, 6, 99, OpenLine { loss: 0.1 + 0.2, count: 2 }, config, vectors);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.safetensors");
        state.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let same = |read: &State| read.vectors == state.vectors && StateHead { crc32: 0, ..read.head.clone() } == state.head;
        assert!(same(&State::read(&path).unwrap()));
        for length in 0..bytes.len() {
            assert!(State::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut b = bytes.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            // what JSON says in another way (1e-8 and 1E-8) is the same state
            assert!(State::from_bytes(&b).is_ok_and(|s| same(&s)) || State::from_bytes(&b).is_err(), "bit {bit}");
        }
    }
}
