//! Which network file a path means: a file is meant itself, the folder of a run its best network.
//! Depends on the names that `train` gives to its files. It is the one place that decides this, for
//! `upscale`, `eval` and `--pretrain`.

use super::container::refused;
use crate::model::{Error, Purpose};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Networks of a run, by their paths in its folder, the one that is taken first at the front. The
/// second one is the first if the path leads to the folder `models`.
const NETWORKS: [(&str, &str); 3] = [
    ("models/best_net_g_ema.safetensors", "best"),
    ("best_net_g_ema.safetensors", "best"),
    ("model.safetensors", "newest"),
];
/// Largest `best.json` that is read, bytes.
const MAX_SCORES: u64 = 64 << 10;

/// A network file, and what to tell the user about the choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The file.
    pub path: PathBuf,
    /// Which network of a run it is; `None` if the path was that of a file.
    pub note: Option<String>,
}

/// The score of a run's best network, as `train` writes it.
#[derive(Deserialize)]
struct Best {
    iteration: u64,
    psnr_y: f64,
}

/// The network file that a path means: a file itself; of a run's folder its best network
/// (`models/best_net_g_ema.safetensors`), or the newest one (`model.safetensors`) if the run was not
/// validated.
///
/// # Errors
/// [`Error::NoNetwork`] for a folder without a network.
pub fn locate(path: &Path, purpose: Purpose) -> Result<Located, Error> {
    if !path.is_dir() {
        return Ok(Located {
            path: path.to_path_buf(),
            note: None,
        });
    }
    for (name, which) in NETWORKS {
        let file = path.join(name);
        if file.is_file() {
            let score = score(&file.with_file_name("best.json")).filter(|_| which == "best");
            let score = score.map_or(String::new(), |s| {
                format!(", PSNR-Y {:.3} dB at iteration {}", s.psnr_y, s.iteration)
            });
            return Ok(Located {
                note: Some(format!(
                    "{} is a folder: taking its {which} network, {}{score}",
                    path.display(),
                    file.display()
                )),
                path: file,
            });
        }
    }
    Err(refused(path, purpose)(Error::NoNetwork))
}

fn score(path: &Path) -> Option<Best> {
    let about = std::fs::metadata(path).ok()?;
    if !about.is_file() || about.len() > MAX_SCORES {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
