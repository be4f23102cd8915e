//! Chooses the HR and the LQ folder of a data set, from the options or by the names of the folders.
//! Depends on `names` and `listing`. Promises to choose no folder if more than one could be meant:
//! then the error says what to type.

use super::listing::{FolderId, Listing, reason_of_folder};
use super::names::{Label, Side, label};
use super::{RESTORATION_SCALE, ScanOptions};
use crate::support::failure;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folders of the two sides. If both are the same folder, names separate the sides.
pub(super) struct SideFolders {
    pub hr: PathBuf,
    /// `None` if the LQ is made from the HR.
    pub lq: Option<PathBuf>,
}

/// A folder that may be chosen.
struct Candidate {
    path: PathBuf,
    label: Label,
}

/// Lists the folders inside `folder` with their labels, sorted. Hidden folders and those of the
/// system are left out; links are followed.
fn subfolders(folder: &Path) -> Result<Vec<Candidate>> {
    let cannot = || format!("cannot list the folder {}", folder.display());
    let entries = failure::retry(|| fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>())
        .with_context(cannot)?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.path();
        let Some(name) = path
            .file_name()
            .and_then(|n| n.to_str())
            .filter(|n| reason_of_folder(n).is_none())
        else {
            continue;
        };
        if failure::retry(|| fs::metadata(&path)).is_ok_and(|about| about.is_dir()) {
            found.push(Candidate {
                label: label(name),
                path,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Chooses the HR folder and the LQ folder, from the options or by name.
///
/// # Errors
/// A folder that does not exist or cannot be listed; names that leave open which folder is meant.
pub(super) fn choose(root: &Path, options: &ScanOptions) -> Result<SideFolders> {
    let given = |flag: &str, path: &Option<PathBuf>| -> Result<Option<PathBuf>> {
        let Some(path) = path else { return Ok(None) };
        // below the data set first: a folder of the same name here is seldom meant
        let found = [root.join(path), path.clone()]
            .into_iter()
            .find(|p| p.is_dir());
        found.map(Some).with_context(|| {
            format!(
                "--{flag} {}: there is no such folder, in {} or here",
                path.display(),
                root.display()
            )
        })
    };
    let (hr, lq) = (given("hr", &options.hr)?, given("lq", &options.lq)?);
    if let (Some(hr), Some(_)) = (&hr, &lq) {
        return Ok(SideFolders { hr: hr.clone(), lq });
    }
    let by_flag = hr.is_some() || lq.is_some();
    let mut folders = subfolders(root)?;
    if !by_flag && let Some(inner) = named_for_scale(&folders, options.scale)? {
        folders = subfolders(&inner)?;
    }
    let beside: Vec<Candidate> = match &hr {
        Some(hr) => by_side(&folders, Side::Lq)?
            .into_iter()
            .filter(|c| !same_folder(hr, &c.path))
            .collect(),
        None => by_side(&folders, Side::Lq)?,
    };
    let hr_root = match hr {
        Some(path) => Some(path),
        None => {
            let (weak, strong): (Vec<_>, Vec<_>) = by_side(&folders, Side::Hr)?
                .into_iter()
                .partition(|c| c.label.weak);
            let weak_counts = strong.is_empty() && !beside.is_empty();
            pick(
                if weak_counts { weak } else { strong },
                options.scale,
                Side::Hr,
                None,
            )?
        }
    };
    let lq_root = match lq {
        Some(path) => Some(path),
        None => pick(beside, options.scale, Side::Lq, hr_root.as_deref())?,
    };
    match (hr_root, lq_root) {
        (Some(hr), lq) => Ok(SideFolders { hr, lq }),
        (None, Some(lq)) if options.lq.is_none() => {
            bail!(
                "{} has the LQ folder {} but no HR folder beside it (hr, HR, gt ...); name it with --hr",
                root.display(),
                lq.display()
            )
        }
        (None, lq) => Ok(SideFolders {
            hr: root.to_path_buf(),
            lq,
        }),
    }
}

/// Finds the folder of a scale that holds the folders of both sides (`x2/HR` and `x2/LR`). `None`
/// if one of the folders is itself named for a side.
fn named_for_scale(folders: &[Candidate], scale: u32) -> Result<Option<PathBuf>> {
    if folders
        .iter()
        .any(|f| f.label.side.is_some() && !f.label.weak)
    {
        return Ok(None);
    }
    let mut found = folders.iter().filter(|f| f.label.scale == Some(scale));
    let (Some(folder), None) = (found.next(), found.next()) else {
        return Ok(None);
    };
    let inner = subfolders(&folder.path)?;
    let has = |side| inner.iter().any(|f| f.label.side == Some(side));
    Ok((has(Side::Hr) && has(Side::Lq)).then(|| folder.path.clone()))
}

/// Selects the folders of one side. A folder with subfolders for scales (`LR_bicubic/X2`) is
/// replaced by these.
fn by_side(folders: &[Candidate], side: Side) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for folder in folders.iter().filter(|f| f.label.side == Some(side)) {
        let copy = |path: &Path, scale| Candidate {
            path: path.to_path_buf(),
            label: Label {
                scale,
                ..folder.label.clone()
            },
        };
        let inner = subfolders(&folder.path)?;
        let scales: Vec<_> = inner
            .iter()
            .filter(|f| f.label.side.is_none() && f.label.scale.is_some())
            .collect();
        if folder.label.scale.is_none() && !scales.is_empty() {
            found.extend(scales.iter().map(|f| copy(&f.path, f.label.scale)));
        } else {
            found.push(copy(&folder.path, folder.label.scale));
        }
    }
    Ok(found)
}

/// Picks the one folder that is meant. Folders for another scale are out; then folders with the
/// prefix of the HR folder are preferred, then those named for this scale.
fn pick(
    candidates: Vec<Candidate>,
    scale: u32,
    side: Side,
    beside: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let flag = if side == Side::Hr { "--hr" } else { "--lq" };
    let list = |folders: &[Candidate]| {
        folders
            .iter()
            .map(|c| c.path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if candidates.is_empty() {
        return Ok(None);
    }
    let all = list(&candidates);
    let mut left: Vec<Candidate> = candidates
        .into_iter()
        .filter(|c| c.label.scale.is_none_or(|s| s == scale))
        .collect();
    let alone = match beside {
        Some(hr) if scale != RESTORATION_SCALE => format!(
            "; or give {} itself as the data set, then the LQ is made",
            hr.display()
        ),
        _ => String::new(),
    };
    ensure!(
        !left.is_empty(),
        "no folder is named for scale {scale}: found {all}; give another --scale, or name the folder with {flag}{alone}"
    );
    let prefix = beside
        .and_then(|p| p.file_name())
        .map(|n| label(&n.to_string_lossy()).prefix);
    let mut narrow = |keep: &dyn Fn(&Candidate) -> bool| {
        if left.len() > 1 && left.iter().any(keep) {
            left.retain(keep);
        }
    };
    if let Some(prefix) = &prefix {
        narrow(&|c| c.label.prefix == *prefix);
    }
    narrow(&|c| c.label.scale == Some(scale));
    ensure!(
        left.len() == 1,
        "more than one folder could be meant: {}; name one with {flag}",
        list(&left)
    );
    Ok(left.pop().map(|c| c.path))
}

/// Whether two paths lead to the same folder.
pub(super) fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((FolderId::of(a), FolderId::of(b)), (Ok(x), Ok(y)) if x == y)
}

/// Refuses a tree of HR images in which folders further down are named for the LQ side: their
/// images would be trained on as HR.
///
/// # Errors
/// There is such a folder; the error says what to type.
pub(super) fn check_no_sides_below(root: &Path, hr: &Listing) -> Result<()> {
    let mut sides: BTreeMap<&str, Side> = BTreeMap::new();
    let mut last = "";
    for image in &hr.images {
        let folder = image.name.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder == last {
            continue;
        }
        // images are sorted, so the part of the path that is shared with the last one is done
        let shared = folder
            .bytes()
            .zip(last.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        for (end, _) in folder
            .match_indices('/')
            .chain([(folder.len(), "")])
            .filter(|(end, _)| *end >= shared)
        {
            let name = folder[..end].rsplit('/').next().unwrap_or_default();
            let said = label(name);
            if let Some(side) = said.side.filter(|_| !said.weak) {
                sides.insert(&folder[..end], side);
            }
        }
        last = folder;
    }
    let first = |wanted| {
        sides
            .iter()
            .find(|(_, side)| **side == wanted)
            .map(|(folder, _)| *folder)
    };
    let Some(lq) = first(Side::Lq) else {
        return Ok(());
    };
    let above = |folder: &str| {
        root.join(folder)
            .parent()
            .map(|p| p.display().to_string())
            .unwrap_or_default()
    };
    match first(Side::Hr) {
        Some(hr) => bail!(
            "{} holds pairs further down ({hr} and {lq}): give the folder right above them, such as {}, or name both with --hr and --lq",
            root.display(),
            above(hr)
        ),
        None => bail!(
            "{} holds a folder that is named for LQ images ({lq}): give the folder right above it and its HR folder, such as {}, name both \
             with --hr and --lq, or take every image as HR with --hr {}",
            root.display(),
            above(lq),
            root.display()
        ),
    }
}
