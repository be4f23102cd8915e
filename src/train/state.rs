//! The state of a run between iterations: everything that a resumed run needs to give the same bits
//! as an unbroken one. It is one safetensors file, written atomically, with a checksum, so that
//! damage is noticed and an older state can be taken. Depends on `files`, `failure` and
//! safetensors. Promises that a state which was read can be trained on, and that no more bytes are
//! read than a state of its network has.

use super::log_line::number_or_null;
use super::{LossScale, TrainConfig};
use crate::model::Network;
// The metadata entry that only a state has.
use crate::model::STATE_METADATA_KEY as METADATA_KEY;
use crate::support::failure::{no_memory, retry, system_cause};
use crate::support::files;
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;

/// Version of the format; raised when the meaning of a field changes.
const VERSION: u32 = 2;
/// Tensor names, in the order of [`State::vectors`].
const NAMES: [&str; 4] = ["parameters", "moment1", "moment2", "ema"];

/// Offset of the safetensors header, bytes: its length comes first.
const HEADER_AT: usize = 8;
/// Largest safetensors header that is read, bytes; that of a state has about one thousand.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// The text before the checksum, which is the last field of the head.
const CHECKSUM_MARK: &str = ",\"crc32\":";
/// Largest number of iterations of a run, so that the number of a sample fits into 64 bits.
const MAX_ITERATIONS: u64 = 1 << 48;

/// A run after some iterations.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Everything but the vectors.
    pub head: StateHead,
    /// Parameters, first moment, second moment, EMA: f32, in the order of the network's parameter
    /// table.
    pub vectors: [Vec<f32>; 4],
}

/// The part of a state that is stored as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateHead {
    version: u32,
    /// Iterations done.
    pub iteration: u64,
    /// Updates applied: iterations minus the skipped ones.
    pub updates: u64,
    /// Fingerprint of the sets of shards, which the order of the samples depends on.
    pub data: u64,
    /// Losses since the last log line, so that the next line is the same as in an unbroken run.
    pub open_line: OpenLine,
    /// The configuration of the run.
    pub config: TrainConfig,
    /// The loss scale; used with fp16 only.
    #[serde(default)]
    pub loss_scale: LossScale,
    /// Updates skipped in a row, up to this iteration.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_in_a_row: u64,
    /// Present if the log line of this iteration is not written yet, because its validation comes
    /// after the state: what the line needs besides [`StateHead::open_line`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_line: Option<PendingLine>,
    /// Checksum. It must stay the last field, see [`seal`].
    crc32: u32,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The values of the last update that its log line needs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingLine {
    /// Gradient norm before clipping; NaN if it was not finite.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Losses for the next log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenLine {
    /// Sum of the losses.
    pub loss: f64,
    /// Number of losses: iterations minus the skipped ones.
    pub count: u64,
}

/// The checksum over the vectors and the text of the head, in which the checksum itself is 0. It
/// covers the text as it is in the file and not the fields, so that a program with more fields can
/// still read states with fewer.
fn checksum(text_before: &str, vectors: &[Vec<f32>; 4]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    vectors
        .iter()
        .for_each(|v| hasher.update(bytemuck::cast_slice(v)));
    hasher.update(text_before.as_bytes());
    hasher.update(b"0}");
    hasher.finalize()
}

/// The text of a head with its checksum.
fn seal(head: &StateHead, vectors: &[Vec<f32>; 4]) -> Result<String> {
    let text = serde_json::to_string(&StateHead {
        crc32: 0,
        ..head.clone()
    })?;
    let before = text
        .strip_suffix("0}")
        .filter(|before| before.ends_with(CHECKSUM_MARK))
        .context("the checksum is not the last field")?;
    Ok(format!("{before}{}}}", checksum(before, vectors)))
}

/// Splits the text of a head into the text before the checksum, and the checksum.
fn unseal(text: &str) -> Option<(&str, u32)> {
    let inside = text.strip_suffix('}')?;
    let (before, digits) = inside.split_at(inside.rfind(CHECKSUM_MARK)? + CHECKSUM_MARK.len());
    Some((before, digits.parse().ok()?))
}

/// The text of a state's head within the safetensors header, whose other entries are read by
/// safetensors later.
fn head_text(header: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__")]
        metadata: HashMap<String, String>,
    }
    serde_json::from_slice::<Header>(header)
        .ok()?
        .metadata
        .remove(METADATA_KEY)
}

/// Bytes of the four vectors of a state with this head.
fn vector_bytes(head: &StateHead) -> Option<u64> {
    let network = &head.config.network;
    // Known networks only: the table of an arbitrary scale could have any size.
    Network::new(&network.arch, network.scale).ok()?;
    let table = network.params();
    Some(8 * (table.len() as u64 + table.trainable() as u64))
}

/// Reads the bytes of a state file. The header says how many there must be; a file of another
/// length is refused unread.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let damage = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut file = files::open_regular(path)?;
    let length = file.metadata()?.len();
    if length < HEADER_AT as u64 {
        return Err(damage(format!("it has {length} bytes")));
    }
    let mut start = [0; HEADER_AT];
    file.read_exact(&mut start)?;
    let header = u64::from_le_bytes(start);
    if header > MAX_HEADER_BYTES.min(length - HEADER_AT as u64) {
        return Err(damage(format!("its header claims {header} bytes")));
    }
    let mut bytes = start.to_vec();
    bytes.resize(HEADER_AT + header as usize, 0);
    file.read_exact(&mut bytes[HEADER_AT..])?;
    let head = head_text(&bytes[HEADER_AT..])
        .ok_or_else(|| damage(format!("its metadata has no {METADATA_KEY}")))?;
    let head: StateHead = serde_json::from_str(&head)
        .map_err(|error| damage(format!("its head cannot be read: {error}")))?;
    let vectors = vector_bytes(&head).ok_or_else(|| {
        damage(format!(
            "its network '{}' is not known",
            head.config.network.arch
        ))
    })?;
    let expected = bytes.len() as u64 + vectors;
    if length != expected {
        return Err(damage(format!(
            "it has {length} bytes, and a state of its network {expected}"
        )));
    }
    bytes
        .try_reserve_exact(vectors as usize)
        .map_err(|_| no_memory(vectors, "state"))?;
    file.take(vectors).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl State {
    /// A state without a pending line; the checksum is computed when it is written.
    pub fn new(
        iteration: u64,
        updates: u64,
        data: u64,
        open_line: OpenLine,
        config: TrainConfig,
        vectors: [Vec<f32>; 4],
    ) -> State {
        State {
            head: StateHead {
                version: VERSION,
                iteration,
                updates,
                data,
                open_line,
                config,
                loss_scale: LossScale::default(),
                skipped_in_a_row: 0,
                pending_line: None,
                crc32: 0,
            },
            vectors,
        }
    }

    /// Writes the state atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        files::write_atomic(path, |out| Ok(out.write_all(&bytes)?))
    }

    /// The bytes of the state's file.
    ///
    /// # Errors
    /// The state cannot be encoded.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let metadata =
            HashMap::from([(METADATA_KEY.to_string(), seal(&self.head, &self.vectors)?)]);
        let views = NAMES
            .iter()
            .zip(&self.vectors)
            .map(|(name, v)| {
                Ok((
                    *name,
                    TensorView::new(Dtype::F32, vec![v.len()], bytemuck::cast_slice(v))?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// Reads and checks a state.
    ///
    /// # Errors
    /// The file is damaged, of another version, or no regular file. After a system error reading is
    /// tried again; the message then does not call the state damaged.
    pub fn read(path: &Path) -> Result<State> {
        let bytes = match retry(|| read_bytes(path)).map_err(anyhow::Error::from) {
            Err(error) if system_cause(&error).is_some() => {
                return Err(error.context(format!("cannot read {}", path.display())));
            }
            bytes => bytes,
        };
        bytes
            .and_then(|bytes| Self::from_bytes(&bytes))
            .with_context(|| format!("{} is damaged or not the state of a run", path.display()))
    }

    /// Decodes and checks a state from the bytes of its file.
    ///
    /// # Errors
    /// The bytes are damaged, of another version, or hold values that training never produces.
    pub fn from_bytes(bytes: &[u8]) -> Result<State> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let Some(text) = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)) else {
            bail!("its metadata has no {METADATA_KEY}")
        };
        let head: StateHead = serde_json::from_str(text)?;
        ensure!(
            head.version == VERSION,
            "it has version {}, this program knows {VERSION}",
            head.version
        );
        let file = SafeTensors::deserialize(bytes)?;
        let mut vectors: [Vec<f32>; 4] = Default::default();
        for (name, out) in NAMES.iter().zip(&mut vectors) {
            let view = file.tensor(name)?;
            ensure!(view.dtype() == Dtype::F32, "{name} is not f32");
            *out = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
        }
        let (before, expected) = unseal(text).context("its head does not end with a checksum")?;
        let sum = checksum(before, &vectors);
        ensure!(
            sum == expected,
            "its checksum is {sum:08x}, expected {expected:08x}"
        );
        let state = State { head, vectors };
        state.check()?;
        Ok(state)
    }

    /// Refuses values that training never produces, and that a run would only notice iterations
    /// later.
    fn check(&self) -> Result<()> {
        let head = &self.head;
        ensure!(
            head.updates <= head.iteration && head.iteration <= MAX_ITERATIONS,
            "it counts {} updates in {} iterations",
            head.updates,
            head.iteration
        );
        let factor = head.loss_scale.factor;
        ensure!(
            factor.is_finite() && factor > 0.0,
            "its loss scale is {factor}, expected a number above 0"
        );
        ensure!(
            head.config
                .batch_size
                .checked_mul(head.config.accum_iter)
                .is_some(),
            "its batch is too large"
        );
        for (name, values) in NAMES.iter().zip(&self.vectors) {
            // The second moment is a mean of squares, of which the square root is taken.
            let least = if *name == "moment2" { 0.0 } else { f32::MIN };
            if let Some(at) = values.iter().position(|v| !(v.is_finite() && *v >= least)) {
                bail!(
                    "{name} holds {} at index {at}, which no training leaves behind",
                    values[at]
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Network;
    use crate::plan::LossKind;
    use crate::train::{Decay, LossTerm, Schedule};

    pub(in crate::train) fn config() -> TrainConfig {
        TrainConfig {
            network: Network::new("nano", 2).unwrap(),
            lq_size: 16,
            batch_size: 2,
            accum_iter: 1,
            use_hflip: true,
            use_rot: true,
            losses: vec![LossTerm {
                kind: LossKind::L1,
                weight: 1.0,
            }],
            optimizer: Default::default(),
            betas: (0.9, 0.99),
            epsilon: 1e-8,
            weight_decay: 1e-4,
            grad_clip: 1.0,
            schedule: Schedule {
                base_lr: 2.1e-4,
                warmup: 3,
                decay: Decay::Cosine {
                    total: 10,
                    eta_min: 1e-7,
                },
            },
            total_iter: 10,
            ema_decay: 0.999,
            ema_power: 0.75,
            seed: 3,
            window: None,
            degrade: None,
        }
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let vectors = [vec![0.1, 0.2], vec![-0.3], vec![0.4], vec![0.5, 6.0]];
        let state = State::new(
            7,
            6,
            99,
            OpenLine {
                loss: 0.1 + 0.2,
                count: 2,
            },
            config(),
            vectors,
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.safetensors");
        state.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let same = |read: &State| {
            read.vectors == state.vectors
                && StateHead {
                    crc32: 0,
                    ..read.head.clone()
                } == state.head
        };
        assert!(same(&State::from_bytes(&bytes).unwrap()));
        for length in 0..bytes.len() {
            assert!(
                State::from_bytes(&bytes[..length]).is_err(),
                "{length} bytes"
            );
        }
        for bit in 0..bytes.len() * 8 {
            let mut b = bytes.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(State::from_bytes(&b).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn values_that_training_never_produces_are_refused_though_the_checksum_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.safetensors");
        let read = |change: &dyn Fn(&mut State)| {
            let vectors = [vec![0.1, 0.2], vec![0.3], vec![0.4], vec![0.5, 6.0]];
            let mut state = State::new(7, 6, 99, OpenLine::default(), config(), vectors);
            change(&mut state);
            state.write(&path).unwrap();
            State::from_bytes(&std::fs::read(&path).unwrap()).map_err(|error| format!("{error:#}"))
        };
        assert!(read(&|_| {}).is_ok());
        type Change<'a> = (&'a str, &'a dyn Fn(&mut State));
        let cases: [Change; 7] = [
            ("parameters holds NaN at index 1", &|s| {
                s.vectors[0][1] = f32::NAN
            }),
            ("moment1 holds -inf", &|s| {
                s.vectors[1][0] = f32::NEG_INFINITY
            }),
            ("moment2 holds -0.5", &|s| s.vectors[2][0] = -0.5),
            ("ema holds inf", &|s| s.vectors[3][0] = f32::INFINITY),
            ("8 updates in 7 iterations", &|s| s.head.updates = 8),
            ("updates in 18446744073709551615", &|s| {
                s.head.iteration = u64::MAX
            }),
            ("loss scale is 0", &|s| s.head.loss_scale.factor = 0.0),
        ];
        for (words, change) in cases {
            let error = read(change).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        // A pending line keeps a gradient norm that JSON cannot express.
        let pending = PendingLine {
            grad_norm: f64::NAN,
            lr: 1e-3,
        };
        let state =
            read(&|s| (s.head.pending_line, s.head.skipped_in_a_row) = (Some(pending), 3)).unwrap();
        assert!(
            state.head.pending_line.unwrap().grad_norm.is_nan() && state.head.skipped_in_a_row == 3
        );
    }

    #[test]
    fn a_state_of_version_0_1_0_is_still_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/0.1.0/run/states/state_000000004.safetensors");
        let state = State::read(&path).unwrap();
        assert_eq!(
            (
                state.head.iteration,
                state.head.updates,
                state.head.skipped_in_a_row
            ),
            (4, 4, 0)
        );
        // Written again it is the same file, byte for byte.
        let dir = tempfile::tempdir().unwrap();
        let again = dir.path().join("s.safetensors");
        state.write(&again).unwrap();
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&path).unwrap());
    }
}
