//! The folders of images that an option file of another trainer names, for `paragon shard
//! --config`: `datasets.train.dataroot_gt` and `dataroot_lq`, a path or a list of paths each, with
//! scale and patch size where they are there. Depends on the YAML tree.

use super::scalar::whole;
use super::theirs::AS_A_RECIPE;
use super::yaml::{Data, Node, parse};
use super::{import, in_another_language, text_of};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// The section of the training images.
const TRAIN: &str = "datasets.train";
/// Keys of the HR and of the LQ folders in their files.
const GT: &str = "dataroot_gt";
const LQ: &str = "dataroot_lq";

/// What an option file says about its training images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFolders {
    /// Folders of HR images, each with its folder of LQ images where there is one.
    pub folders: Vec<(PathBuf, Option<PathBuf>)>,
    /// HR side over LQ side.
    pub scale: Option<u32>,
    /// LQ patch side, from lq_size or gt_size, pixels.
    pub lq_size: Option<u32>,
    /// What the user should know about the file.
    pub notes: Vec<String>,
}

/// Reads the folders out of the content of an option file.
///
/// # Errors
/// Content that is no YAML; no folder; lists of different length; an LMDB or a list of names, which
/// paragon does not read.
pub fn image_folders(content: &[u8]) -> Result<ImageFolders> {
    let text = text_of(content)?;
    let root = parse(text).map_err(|error| in_another_language(text, error))?;
    let train = root.get("datasets").and_then(|node| node.get("train"));
    let Some(train) = train else {
        bail!(
            "it has no {TRAIN}: expected an option file of traiNNer-redux, BasicSR or neosr with {TRAIN}.{GT}; \
             otherwise give the folders themselves: `paragon shard FOLDER`"
        )
    };
    let (gt, lq) = (paths(train, GT)?, paths(train, LQ)?);
    ensure!(
        !gt.is_empty(),
        "it has no {TRAIN}.{GT}, the folder of the HR images"
    );
    ensure!(
        lq.is_empty() || lq.len() == gt.len(),
        "{TRAIN}.{GT} has {} folders and {TRAIN}.{LQ} has {}; each HR folder needs its LQ folder",
        gt.len(),
        lq.len()
    );
    let mut out = ImageFolders {
        scale: number(&root, "scale")?,
        ..ImageFolders::default()
    };
    out.lq_size = match (number(train, "lq_size")?, number(train, "gt_size")?) {
        (Some(lq), _) => Some(lq),
        (None, Some(gt)) => out.scale.filter(|scale| *scale > 0).map(|scale| gt / scale),
        (None, None) => None,
    };
    if lq.is_empty() && import::degrades_on_the_fly(&root) {
        out.notes.push(format!(
            "the file's recipe degrades on the fly; {AS_A_RECIPE}"
        ));
    }
    let mut lq = lq.into_iter();
    out.folders = gt.into_iter().map(|gt| (gt, lq.next())).collect();
    Ok(out)
}

/// The paths of a key: one or a list; none where the key is missing or has no value.
fn paths(section: &Node, key: &str) -> Result<Vec<PathBuf>> {
    let Some(node) = section.get(key) else {
        return Ok(Vec::new());
    };
    let one = |node: &Node| -> Result<PathBuf> {
        let Data::Scalar(text) = &node.data else {
            bail!(
                "line {}: {TRAIN}.{key}: expected a path or a list of paths",
                node.line
            )
        };
        let path = Path::new(text);
        let ending = path.extension().unwrap_or_default();
        let line = node.line;
        ensure!(
            !ending.eq_ignore_ascii_case("lmdb"),
            "line {line}: {TRAIN}.{key}: {text} is an LMDB; give the folder of images that it was made from"
        );
        ensure!(
            !ending.eq_ignore_ascii_case("txt"),
            "line {line}: {TRAIN}.{key}: {text} is a list of names; give the folder of the images"
        );
        Ok(path.to_path_buf())
    };
    match &node.data {
        Data::Null => Ok(Vec::new()),
        Data::List(list) => list.iter().map(one).collect(),
        _ => Ok(vec![one(node)?]),
    }
}

fn number(section: &Node, key: &str) -> Result<Option<u32>> {
    let Some(node) = section.get(key).filter(|node| node.data != Data::Null) else {
        return Ok(None);
    };
    let read = match &node.data {
        Data::Scalar(text) => whole(text).and_then(|value| u32::try_from(value).ok()),
        _ => None,
    };
    read.map(Some)
        .with_context(|| format!("line {}: {key}: expected a whole number", node.line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_scale_and_patch_are_read() {
        let read = |text: &str| image_folders(text.as_bytes()).map_err(|e| format!("{e:#}"));
        let one = read("scale: 4\ndatasets: {train: {dataroot_gt: a/b, gt_size: 256}}").unwrap();
        assert_eq!(one.folders, [(PathBuf::from("a/b"), None)]);
        assert_eq!((one.scale, one.lq_size), (Some(4), Some(64)));
        let pairs =
            read("datasets: {train: {dataroot_gt: [a, b], dataroot_lq: [c, d], lq_size: 48}}");
        let pairs = pairs.unwrap();
        assert_eq!(pairs.folders[1], ("b".into(), Some("d".into())));
        assert_eq!((pairs.scale, pairs.lq_size), (None, Some(48)));
        assert!(pairs.notes.is_empty());
        let otf = read("datasets: {train: {type: RealESRGANDataset, dataroot_gt: a}}").unwrap();
        assert!(otf.notes[0].contains("degrades on the fly"), "{otf:?}");
        for (text, words) in [
            ("a: 1", "no datasets.train"),
            ("datasets: {train: {name: x}}", "dataroot_gt"),
            (
                "datasets: {train: {dataroot_gt: [a, b], dataroot_lq: c}}",
                "2 folders and datasets.train.dataroot_lq has 1",
            ),
            ("datasets: {train: {dataroot_gt: x.lmdb}}", "LMDB"),
            (
                "datasets: {train: {dataroot_gt: {a: b}}}",
                "a list of paths",
            ),
            (
                "scale: x\ndatasets: {train: {dataroot_gt: a}}",
                "line 1: scale",
            ),
            ("[datasets.train]\ndataroot_gt = \"a\"", "TOML"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
