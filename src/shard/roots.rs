//! The images of one or several folders, as one list. Depends on `dataset::scan`. Promises that an
//! image has a name of its own: with several folders, names begin with that of the folder, which
//! does not depend on where the folders are.

use super::config::BuildConfig;
use crate::dataset::scan::{self, IgnoredFiles, LeftOut, Reject, Scan, ScanOptions, Source};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Component, Path, PathBuf};

/// What is found in all folders.
pub(super) struct Scanned {
    /// Sorted by name.
    pub sources: Vec<Source>,
    pub rejected: Vec<Reject>,
    /// Whether the LQ images are given.
    pub paired: bool,
    pub ignored: IgnoredFiles,
    pub left_out: Vec<LeftOut>,
}

/// Scans every folder of the configuration.
///
/// # Errors
/// Those of [`scan::scan`]; folders that are given twice or lie in one another; folders of which
/// only some have LQ images.
pub(super) fn scan_all(config: &BuildConfig) -> Result<Scanned> {
    let folders = config.folders();
    let scan_one = |i: usize| -> Result<Scan> {
        let folder = &folders[i];
        let options = ScanOptions {
            scale: config.scale,
            hr: folder.hr.clone(),
            lq: folder.lq.clone(),
            out: Some(config.out.clone()),
        };
        if config.needs_hr_alone() {
            scan::scan_for_hr(&folder.dataset, &options)
        } else {
            scan::scan(&folder.dataset, &options)
        }
    };
    let names = if folders.len() > 1 {
        let paths: Vec<&Path> = folders.iter().map(|folder| &*folder.dataset).collect();
        names_of(&paths)?
    } else {
        vec![String::new()]
    };
    let mut all: Option<Scanned> = None;
    for (i, name) in names.iter().enumerate() {
        let scan = scan_one(i)?;
        let prefix = if name.is_empty() {
            String::new()
        } else {
            format!("{name}/")
        };
        let paired = scan.lq_root.is_some();
        let one = all.get_or_insert_with(|| Scanned {
            sources: Vec::new(),
            rejected: Vec::new(),
            paired,
            ignored: IgnoredFiles::default(),
            left_out: Vec::new(),
        });
        ensure!(
            one.paired == paired,
            "{} has {} images and {} has {}: make a set of each, and train on both (--shards is given twice then)",
            folders[0].dataset.display(),
            side(one.paired),
            folders[i].dataset.display(),
            side(paired)
        );
        one.sources
            .extend(scan.sources.into_iter().map(|source| Source {
                name: format!("{prefix}{}", source.name),
                ..source
            }));
        one.rejected.extend(scan.rejected);
        one.ignored.merge(&scan.ignored_files);
        one.left_out.extend(scan.left_out);
    }
    let mut all = all.context("no folder of images is given")?;
    all.sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn side(paired: bool) -> &'static str {
    if paired { "HR and LQ" } else { "HR" }
}

/// Names that tell the folders apart: as many last parts of their paths as are needed.
fn names_of(folders: &[&Path]) -> Result<Vec<String>> {
    let absolute = |folder: &&Path| -> Result<PathBuf> {
        folder
            .canonicalize()
            .with_context(|| format!("{}: expected a folder of images", folder.display()))
    };
    let paths: Vec<PathBuf> = folders.iter().map(absolute).collect::<Result<_>>()?;
    for (i, a) in paths.iter().enumerate() {
        for (j, b) in paths.iter().enumerate().skip(i + 1) {
            let (a_given, b_given) = (folders[i].display(), folders[j].display());
            ensure!(a != b, "{b_given} is given twice");
            ensure!(
                !a.starts_with(b) && !b.starts_with(a),
                "{a_given} and {b_given} lie in one another, so that images would count twice; give the outer one alone"
            );
        }
    }
    let parts = |path: &Path| -> Result<Vec<String>> {
        let named = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        named
            .map(|name| match name.to_str() {
                Some(name) => Ok(name.to_string()),
                None => bail!("{}: its name is not UTF-8; rename it", path.display()),
            })
            .collect()
    };
    let parts: Vec<Vec<String>> = paths
        .iter()
        .map(|path| parts(path))
        .collect::<Result<_>>()?;
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    for count in 1..=longest {
        let mut names: Vec<String> = parts
            .iter()
            .map(|parts| parts[parts.len().saturating_sub(count)..].join("/"))
            .collect();
        let given = names.clone();
        names.sort();
        if names.windows(2).all(|two| two[0] != two[1]) {
            return Ok(given);
        }
    }
    bail!("the folders of images have no different names; rename one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let (a, b, c) = (make("one/train"), make("two/train"), make("two/val"));
        let names = |list: &[&Path]| names_of(list).map_err(|e| e.to_string());
        assert_eq!(names(&[&a, &c]).unwrap(), ["train", "val"]);
        assert_eq!(names(&[&a, &b]).unwrap(), ["one/train", "two/train"]);
        let twice = names(&[&a, &dir.path().join("two/../one/train")]).unwrap_err();
        assert!(twice.contains("given twice"), "{twice}");
        let inside = names(&[&a, dir.path()]).unwrap_err();
        assert!(inside.contains("lie in one another"), "{inside}");
        let missing = names(&[&a, &dir.path().join("x")]).unwrap_err();
        assert!(missing.contains("expected a folder"), "{missing}");
    }
}
