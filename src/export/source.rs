//! What is exported: a network file, or the best network of a run's folder. Depends on network
//! files. Promises to read only.

use crate::model::{Located, ModelHints, ModelMeta, Network, Purpose, locate, read_model};
use crate::support::text::one_line;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A network that is exported.
pub struct Source {
    /// The network.
    pub net: Network,
    /// Its parameters in table order, those that follow from others included.
    pub parameters: Vec<f32>,
    /// Metadata of the file, if it has any.
    pub meta: Option<ModelMeta>,
    /// The file that was read.
    pub file: PathBuf,
    /// Which network of a run was taken; `None` if the path was that of a file.
    pub note: Option<String>,
    /// The folder of the run that it belongs to.
    pub run: Option<PathBuf>,
    /// What the network is called unless the user names it: the run's folder, or the file.
    pub name: String,
}

/// The file that every run's folder has.
const CONFIG: &str = "config.yml";

/// The network of a file or of a run's folder.
///
/// # Errors
/// Those of [`locate`] and of [`read_model`].
pub fn source(path: &Path, hints: &ModelHints) -> Result<Source> {
    let Located { path: file, note } = locate(path, Purpose::Model)?;
    let (net, parameters, meta) = read_model(&file, hints)?;
    let run = run_of(&file);
    let name = match &run {
        Some(run) => name_of_folder(run),
        None => file.file_stem().map(|s| s.to_string_lossy().into_owned()),
    };
    Ok(Source {
        net,
        parameters,
        meta,
        name: name.unwrap_or_else(|| "network".to_string()),
        file,
        note,
        run,
    })
}

/// The run's folder that a network file lies in, directly or in `models`.
fn run_of(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    let above = folder.ends_with("models").then(|| folder.parent());
    let folders = [Some(folder), above.flatten()];
    let mut folders = folders.into_iter().flatten();
    let found = folders.find(|folder| folder.join(CONFIG).is_file());
    found.map(Path::to_path_buf)
}

/// The last part of a folder's path, also of `.`.
fn name_of_folder(folder: &Path) -> Option<String> {
    let whole = folder
        .canonicalize()
        .unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map(|s| s.to_string_lossy().into_owned())
}

/// A name as part of a file name: letters, digits, `-`, `_` and `.`; the scale comes first, as the
/// community writes it (`2x_nomos`).
///
/// # Errors
/// A name without any letter or digit.
pub fn file_stem(name: &str, scale: usize) -> Result<String> {
    let kept = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let plain: String = name
        .chars()
        .map(|c| if kept(c) { c } else { '_' })
        .collect();
    let plain = plain.trim_matches(|c: char| !c.is_alphanumeric());
    let prefix = format!("{scale}x");
    let rest = plain.strip_prefix(&prefix).unwrap_or(plain);
    let rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
    let named = rest.chars().next().with_context(|| {
        format!(
            "the name '{}' has no letter and no digit; give another one (--name)",
            one_line(name)
        )
    });
    named?;
    Ok(format!("{prefix}_{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_begin_with_the_scale_once() {
        for (name, expected) in [
            ("nomos", "2x_nomos"),
            ("2x_nomos", "2x_nomos"),
            ("2xNomos", "2x_Nomos"),
            ("2x-Nomos v1", "2x_Nomos_v1"),
            ("../a/b", "2x_a_b"),
            ("4xother", "2x_4xother"),
            ("ü", "2x_ü"),
        ] {
            assert_eq!(file_stem(name, 2).unwrap(), expected);
        }
        assert!(file_stem("2x", 2).is_err() && file_stem("..", 2).is_err());
    }
}
