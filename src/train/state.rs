//! The state of a run between iterations: everything a resumed run needs to give the same bits as
//! an unbroken one. One safetensors file, written atomically, with a checksum, so that a damaged
//! one is noticed and an older one can be taken. Depends on `files`, `failure` and safetensors.
//! Promises that a state which is read can be trained on, that no more is read than the state of
//! its network takes, and that an error of the system is never taken for a damaged state.

use super::{LossScale, TrainConfig};
use crate::model::Network;
use crate::support::failure::{no_memory, retry, system_cause};
use crate::support::files;
use crate::sys::{self, ErrorClass};
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Key of the metadata that a state alone has.
use crate::model::STATE_METADATA_KEY as METADATA_KEY;
/// Raised when a state file changes its meaning.
const VERSION: u32 = 2;
/// The vectors of a state, in the order of [`State::vectors`].
const NAMES: [&str; 4] = ["parameters", "moment1", "moment2", "ema"];

/// Where the safetensors header begins: behind its length.
const HEADER_AT: usize = 8;
/// Most bytes of a safetensors header: a state's takes about one thousand.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// What stands before the checksum, at the end of the head's text.
const CHECKSUM_MARK: &str = ",\"crc32\":";
/// Most iterations a run may have, so that the number of a sample fits into 64 bits.
const MAX_ITERATIONS: u64 = 1 << 48;

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
    /// Losses of the iterations since the last log line, so that the next line is that of an
    /// unbroken run.
    pub open_line: OpenLine,
    /// The configuration of the run.
    pub config: TrainConfig,
    /// fp16: the factor on the loss.
    #[serde(default)]
    pub loss_scale: LossScale,
    /// Updates skipped up to this iteration without one that was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_in_a_row: u64,
    /// Where the log line of this very iteration is still to be written, since its validation comes
    /// after the state: what the line needs beside [`StateHead::open_line`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_line: Option<PendingLine>,
    /// Must stay the last field: see [`seal`].
    crc32: u32,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The last update's part of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingLine {
    /// Gradient norm before clipping; not a number where it was not finite.
    #[serde(deserialize_with = "super::log::number_or_null")]
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
}

/// A log line that is not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenLine {
    /// Sum of the losses.
    pub loss: f64,
    /// How many they are: iterations less the skipped ones.
    pub count: u64,
}

/// The checksum over the vectors and the text of the head, which has a 0 in the place of the
/// checksum. It is taken of the text as it is written and not of the fields: a program with more
/// fields still reads the states of one with fewer.
fn checksum(text_before: &str, vectors: &[Vec<f32>; 4]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    vectors
        .iter()
        .for_each(|v| hasher.update(bytemuck::cast_slice(v)));
    hasher.update(text_before.as_bytes());
    hasher.update(b"0}");
    hasher.finalize()
}

/// The head's text with its checksum.
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

/// The head's text up to its checksum, and the checksum.
fn unseal(text: &str) -> Option<(&str, u32)> {
    let inside = text.strip_suffix('}')?;
    let (before, digits) = inside.split_at(inside.rfind(CHECKSUM_MARK)? + CHECKSUM_MARK.len());
    Some((before, digits.parse().ok()?))
}

/// The text of a state's head within the safetensors header. The other entries of the header are
/// left to safetensors.
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
    // only networks that there are: the table of another scale might be of any size
    Network::new(&network.arch, network.scale).ok()?;
    let table = network.params();
    Some(8 * (table.len() as u64 + table.trainable() as u64))
}

/// The bytes of a state file. The header says how many there must be; a file of another length is
/// not read.
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
    /// A state; the checksum is computed when it is written.
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
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
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
        let bytes = safetensors::serialize(views, Some(metadata))?;
        files::write_atomic(path, |out| Ok(out.write_all(&bytes)?))
    }

    /// Reads and checks a state.
    ///
    /// # Errors
    /// When the file is damaged, of another version, or no regular file. Errors of the system are
    /// tried again, and say then that nothing is known about the state.
    pub fn read(path: &Path) -> Result<State> {
        let bytes = match retry(|| read_bytes(path)).map_err(anyhow::Error::from) {
            Err(error) if system_cause(&error).is_some() => {
                return Err(error.context(format!("cannot read {}", path.display())));
            }
            bytes => bytes,
        };
        bytes
            .and_then(|bytes| Self::from_bytes(&bytes))
            .with_context(|| format!("{} is damaged or no state of a run", path.display()))
    }

    /// A state out of the bytes of its file.
    ///
    /// # Errors
    /// When they are damaged, of another version, or hold what no training leaves behind.
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

    /// Refuses numbers that training never leaves behind and that it would only notice iterations
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
            // the second moment is a mean of squares, and its root is taken
            let least = if *name == "moment2" { 0.0 } else { f32::MIN };
            if let Some(at) = values.iter().position(|v| !(v.is_finite() && *v >= least)) {
                bail!(
                    "{name} holds {} at place {at}, which no training leaves behind",
                    values[at]
                );
            }
        }
        Ok(())
    }
}

/// Name of the state after an iteration.
pub fn state_path(run: &Path, iteration: u64) -> PathBuf {
    run.join("states")
        .join(format!("state_{iteration:09}.safetensors"))
}

/// State files of a run, newest first; none where the folder is not there.
///
/// # Errors
/// When the folder cannot be read: that it holds no state is then not known.
pub fn list_states(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join("states");
    let entries = match retry(|| std::fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => {
            entries.with_context(|| format!("cannot read the folder {}", folder.display()))?
        }
    };
    let mut list: Vec<(u64, PathBuf)> = entries
        .into_iter()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let number = name.strip_prefix("state_")?.strip_suffix(".safetensors")?;
            Some((number.parse().ok()?, e.path()))
        })
        .collect();
    list.sort_by_key(|(iteration, _)| std::cmp::Reverse(*iteration));
    Ok(list)
}

/// Whether the system says that a name leads to nothing that could be a state: a link to nothing or
/// in a circle, a socket.
fn is_no_file(error: &io::Error) -> bool {
    sys::is_error(error, ErrorClass::NoFile)
}

/// The newest whole state of a run, and what was wrong with any newer one.
///
/// # Errors
/// Those of the system: a state that cannot be read may be whole, and going on from an older one
/// would throw away what lies between.
pub fn newest_state(run: &Path) -> Result<(Option<State>, Vec<String>)> {
    let mut damaged = Vec::new();
    for (_, path) in list_states(run)? {
        match State::read(&path) {
            Ok(state) => return Ok((Some(state), damaged)),
            Err(error) if system_cause(&error).is_none_or(is_no_file) => {
                damaged.push(format!("{error:#}"))
            }
            Err(error) => {
                return Err(error.context("the system does not let the newest state be read, so whether it is whole is not known"));
            }
        }
    }
    Ok((None, damaged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Network;
    use crate::plan::LossKind;
    use crate::train::{Decay, LossTerm, Schedule};

    fn config() -> TrainConfig {
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
    fn numbers_that_no_training_leaves_behind_are_refused_though_the_checksum_is_right() {
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
            ("parameters holds NaN at place 1", &|s| {
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
        // a line that waits for its validation keeps a norm that JSON has no number for
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
    #[cfg(unix)] // makes a link to a device and a FIFO
    fn only_a_regular_file_of_the_right_length_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let states = dir.path().join("states");
        std::fs::create_dir(&states).unwrap();
        let net = config().network.params();
        let (all, some) = (vec![0.5; net.len()], vec![0.0; net.trainable()]);
        let state = State::new(
            3,
            3,
            9,
            OpenLine::default(),
            config(),
            [all.clone(), some.clone(), some, all],
        );
        state.write(&state_path(dir.path(), 3)).unwrap();
        // newer ones that are none: a device without an end, a pipe that nobody writes to, a
        // folder, a link to nothing, a huge hole
        sys::symlink_file(Path::new("/dev/zero"), &state_path(dir.path(), 9)).unwrap();
        assert!(
            std::process::Command::new("mkfifo")
                .arg(state_path(dir.path(), 8))
                .status()
                .unwrap()
                .success()
        );
        std::fs::create_dir(state_path(dir.path(), 7)).unwrap();
        sys::symlink_file(Path::new("nothing"), &state_path(dir.path(), 6)).unwrap();
        std::fs::copy(state_path(dir.path(), 3), state_path(dir.path(), 5)).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(state_path(dir.path(), 5))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        std::fs::write(state_path(dir.path(), 4), [0xFF; 64]).unwrap();
        let (found, damaged) = newest_state(dir.path()).unwrap();
        assert_eq!(found.unwrap().head.iteration, 3);
        assert_eq!(damaged.len(), 6, "{damaged:?}");
        assert!(
            damaged[0].contains("no regular file") && damaged[4].contains("1099511627776 bytes"),
            "{damaged:?}"
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
        // and written again it is the same file, byte for byte
        let dir = tempfile::tempdir().unwrap();
        let again = dir.path().join("s.safetensors");
        state.write(&again).unwrap();
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&path).unwrap());
    }
}
