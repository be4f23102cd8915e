//! Finds the pictures of a data set and pairs each HR picture with its LQ. Looks at names only and opens no picture, so it
//! depends on nothing but the file system. Promises the same order on every machine, and that every picture file it saw
//! is either paired or listed with the reason why not.

mod listing;

pub use listing::{ENDINGS, LeftOut, Listing, Picture, Reason, Reject, is_picture_name, pictures};

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Words in a folder's name, or at the end of a file's, that say which side it holds.
const HR_WORDS: [&str; 5] = ["hr", "gt", "hires", "highres", "groundtruth"];
const LQ_WORDS: [&str; 4] = ["lq", "lr", "lores", "lowres"];

/// One HR picture, with its LQ partner where the data set has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Path below the HR folder without its extension, with `/` between folders.
    pub name: String,
    /// The HR file.
    pub hr: PathBuf,
    /// The LQ file, or nothing where it is to be made.
    pub lq: Option<PathBuf>,
}

/// What was found. Every picture file is in exactly one place: `hr_files + lq_files` is the number of files named in
/// `sources` (one or two each) plus `rejected.len()`.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Sorted by name, byte by byte; never empty.
    pub sources: Vec<Source>,
    /// Sorted by path.
    pub rejected: Vec<Reject>,
    /// The folder the HR pictures are in.
    pub hr_root: PathBuf,
    /// The folder the LQ pictures are in, or nothing where they are to be made.
    pub lq_root: Option<PathBuf>,
    /// Picture files seen below `hr_root` (of the HR side, where both sides share a folder).
    pub hr_files: usize,
    /// Picture files seen below `lq_root`, likewise.
    pub lq_files: usize,
    /// Files without a picture's extension: left out and not listed. Hidden files are not counted at all.
    pub ignored: usize,
}

/// What to look for.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// HR side / LQ side; folders named for another scale are passed over.
    pub scale: u32,
    /// The HR folder, where it is not to be found by name. A path that does not exist is tried below the data set's root.
    pub hr: Option<PathBuf>,
    /// The LQ folder, likewise.
    pub lq: Option<PathBuf>,
}

/// Finds the pictures below `root` and pairs them.
///
/// A folder is taken by its name, in any case: `hr`, `gt`, `HR_x2`, `DIV2K_train_HR` beside `lq`, `lr_x2_bicubic`,
/// `DIV2K_train_LR_bicubic/X2` ... A `root` without such folders is itself the HR folder, and the LQ is to be made. Partners
/// have the same relative path without extension; the LQ's may end in the scale (`0001x2`). Both sides may also lie in one
/// folder, told apart by the end of their names (`img_001_SRF_2_HR.png`, `img_001_SRF_2_LR.png`). Fails where a folder is missing,
/// more than one folder could be meant, or no picture is left.
pub fn scan(root: &Path, options: &ScanOptions) -> Result<Scan> {
    ensure!(root.exists(), "{} does not exist: expected a folder of pictures", root.display());
    ensure!(root.is_dir(), "{} is a file: expected a folder of pictures", root.display());
    let (hr_root, lq_root) = choose_folders(root, options)?;
    let hr = walk(&hr_root, lq_root.as_deref())?;
    let lq = lq_root.as_deref().map(|folder| walk(folder, Some(&hr_root))).transpose()?;
    let (hr, lq, lq_root) = match lq {
        Some(lq) => (hr, Some(lq), lq_root),
        None if options.hr.is_some() => (hr, None, None),
        None => {
            check_no_pairs_below(&hr_root, &hr)?;
            match split_by_ending(hr, options.scale) {
                (hr, Some(lq)) => (hr, Some(lq), Some(hr_root.clone())),
                (hr, None) => (hr, None, None),
            }
        }
    };
    let (hr_files, lq_files) = (hr.files(), lq.as_ref().map_or(0, Walk::files));
    let ignored = hr.ignored + lq.as_ref().map_or(0, |w| w.ignored);
    let hint = format!("looked for {} in it and its folders", ENDINGS.join(", "));
    ensure!(hr_files > 0, "no pictures in {} ({hint}; {} other files)", hr_root.display(), hr.ignored);
    if let (Some(folder), 0) = (&lq_root, lq_files) {
        bail!("no pictures in {} ({hint}); remove the folder to have the LQ made from the HR", folder.display());
    }
    let (sources, mut rejected) = pair(hr, lq, options.scale);
    rejected.sort_by(|a, b| a.path.cmp(&b.path));
    if sources.is_empty() {
        let shown: Vec<String> = rejected.iter().take(4).map(|r| format!("{}: {}", r.path.display(), r.reason)).collect();
        bail!("no picture of {} can be used; {} were rejected, among them\n  {}", root.display(), rejected.len(), shown.join("\n  "));
    }
    Ok(Scan { sources, rejected, hr_root, lq_root, hr_files, lq_files, ignored })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Hr,
    Lq,
}

/// What a folder's name says.
#[derive(Debug, PartialEq, Eq)]
struct Label {
    side: Option<Side>,
    scale: Option<u32>,
    /// The words before the side's: "div2k train" in DIV2K_train_LR_bicubic.
    prefix: String,
}

/// `x2`, `2x`, `X04` as a scale.
fn scale_word(word: &str) -> Option<u32> {
    let digits = word.strip_prefix('x').or_else(|| word.strip_suffix('x'))?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { digits.parse().ok() }
}

/// Reads a folder's name as words, without regard to case.
fn label(name: &str) -> Label {
    let name = name.to_lowercase();
    let mut label = Label { side: None, scale: None, prefix: String::new() };
    for word in name.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        // "lrx2" is "lr" and "x2"
        let strip = |words: &[&str]| words.iter().find_map(|w| word.strip_prefix(w)).filter(|r| r.is_empty() || scale_word(r).is_some());
        let side = strip(&HR_WORDS).map(|rest| (Side::Hr, rest)).or_else(|| strip(&LQ_WORDS).map(|rest| (Side::Lq, rest)));
        match side {
            Some((side, rest)) if label.side.is_none() => {
                label.side = Some(side);
                label.scale = label.scale.or_else(|| scale_word(rest));
            }
            _ => {
                label.scale = label.scale.or_else(|| scale_word(word));
                if label.side.is_none() {
                    label.prefix.push_str(word);
                    label.prefix.push(' ');
                }
            }
        }
    }
    label
}

/// A folder that may be meant.
struct Candidate {
    path: PathBuf,
    label: Label,
}

/// The folders of `folder` with what their names say, sorted; hidden ones left out, links followed.
fn subfolders(folder: &Path) -> Result<Vec<Candidate>> {
    let cannot = || format!("cannot list the folder {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else { continue };
        if path.is_dir() {
            found.push(Candidate { label: label(name), path });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The HR folder and the LQ folder, from the options or by name.
fn choose_folders(root: &Path, options: &ScanOptions) -> Result<(PathBuf, Option<PathBuf>)> {
    let given = |flag: &str, path: &Option<PathBuf>| -> Result<Option<PathBuf>> {
        let Some(path) = path else { return Ok(None) };
        let found = [path.clone(), root.join(path)].into_iter().find(|p| p.is_dir());
        found.map(Some).with_context(|| format!("--{flag} {}: there is no such folder, here or in {}", path.display(), root.display()))
    };
    let (hr, lq) = (given("hr", &options.hr)?, given("lq", &options.lq)?);
    if let (Some(hr), Some(lq)) = (&hr, &lq) {
        ensure!(!same_folder(hr, lq), "--hr and --lq are the same folder: {}", hr.display());
        return Ok((hr.clone(), Some(lq.clone())));
    }
    let folders = subfolders(root)?;
    let hr_root = match hr {
        Some(path) => Some(path),
        None => pick(by_side(&folders, Side::Hr)?, options.scale, "--hr", None)?,
    };
    let lq_root = match lq {
        Some(path) => Some(path),
        None => {
            let beside = by_side(&folders, Side::Lq)?.into_iter().filter(|c| hr_root.as_ref().is_none_or(|hr| !same_folder(hr, &c.path)));
            pick(beside.collect(), options.scale, "--lq", hr_root.as_deref())?
        }
    };
    match (hr_root, lq_root) {
        (Some(hr), lq) => Ok((hr, lq)),
        (None, Some(lq)) if options.lq.is_none() => {
            bail!("{} has the LQ folder {} but no HR folder beside it (hr, HR, gt ...); name it with --hr", root.display(), lq.display())
        }
        (None, lq) => Ok((root.to_path_buf(), lq)),
    }
}

/// The folders of one side. One that has folders named for scales (`LR_bicubic/X2`) stands for those.
fn by_side(folders: &[Candidate], side: Side) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for folder in folders.iter().filter(|f| f.label.side == Some(side)) {
        let copy = |path: &Path, scale| {
            let label = Label { side: Some(side), scale, prefix: folder.label.prefix.clone() };
            Candidate { path: path.to_path_buf(), label }
        };
        let inner = subfolders(&folder.path)?;
        let scales: Vec<_> = inner.iter().filter(|f| f.label.side.is_none() && f.label.scale.is_some()).collect();
        if folder.label.scale.is_none() && !scales.is_empty() {
            found.extend(scales.iter().map(|f| copy(&f.path, f.label.scale)));
        } else {
            found.push(copy(&folder.path, folder.label.scale));
        }
    }
    Ok(found)
}

/// The one folder that is meant: for this scale, then with the HR folder's prefix, then named for this scale.
fn pick(candidates: Vec<Candidate>, scale: u32, flag: &str, beside: Option<&Path>) -> Result<Option<PathBuf>> {
    let list = |folders: &[Candidate]| folders.iter().map(|c| c.path.display().to_string()).collect::<Vec<_>>().join(", ");
    if candidates.is_empty() {
        return Ok(None);
    }
    let all = list(&candidates);
    let mut left: Vec<Candidate> = candidates.into_iter().filter(|c| c.label.scale.is_none_or(|s| s == scale)).collect();
    ensure!(!left.is_empty(), "no folder is named for scale {scale}: found {all}; give another --scale, or name the folder with {flag}");
    let prefix = beside.and_then(|p| p.file_name()).map(|n| label(&n.to_string_lossy()).prefix);
    let mut narrow = |keep: &dyn Fn(&Candidate) -> bool| {
        if left.len() > 1 && left.iter().any(keep) {
            left.retain(keep);
        }
    };
    if let Some(prefix) = &prefix {
        narrow(&|c| c.label.prefix == *prefix);
    }
    narrow(&|c| c.label.scale == Some(scale));
    ensure!(left.len() == 1, "more than one folder could be meant: {}; name one with {flag}", list(&left));
    Ok(left.pop().map(|c| c.path))
}

fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(x), Ok(y)) if x == y)
}

/// Every picture below one folder.
#[derive(Default)]
struct Walk {
    /// Relative stem and path, sorted.
    found: Vec<(String, PathBuf)>,
    rejected: Vec<Reject>,
    ignored: usize,
}

impl Walk {
    fn files(&self) -> usize {
        self.found.len() + self.rejected.len()
    }
}

/// Lists the pictures below `folder`, but for those below `except`. Each real folder is entered once, so links that lead
/// back up do no harm.
fn walk(folder: &Path, except: Option<&Path>) -> Result<Walk> {
    let mut walk = Walk::default();
    let top = folder.canonicalize().with_context(|| format!("cannot open the folder {}", folder.display()))?;
    let except = except.and_then(|p| p.canonicalize().ok());
    // Where `folder` lies inside `except`, leaving that out would leave nothing.
    let mut entered: HashSet<PathBuf> = except.into_iter().filter(|p| !top.starts_with(p)).collect();
    enter(folder, "", &mut entered, &mut walk);
    if let [only] = walk.rejected.as_slice()
        && only.path == folder
    {
        bail!("{}: {}", folder.display(), only.reason);
    }
    walk.found.sort();
    Ok(walk)
}

fn enter(folder: &Path, below: &str, entered: &mut HashSet<PathBuf>, walk: &mut Walk) {
    let listed = folder.canonicalize().and_then(|real| {
        if !entered.insert(real) {
            return Ok(Vec::new());
        }
        fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()
    });
    let mut entries = match listed {
        Ok(entries) => entries,
        Err(e) => return walk.rejected.push(Reject { path: folder.to_path_buf(), reason: format!("the folder cannot be listed: {e}") }),
    };
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let link = entry.file_type().is_ok_and(|t| t.is_symlink());
        let kind = if link { fs::metadata(&path).map(|m| m.file_type()) } else { entry.file_type() };
        if kind.as_ref().is_ok_and(|k| k.is_dir()) {
            enter(&path, &format!("{below}{name}/"), entered, walk);
            continue;
        }
        let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
        if !ENDINGS.iter().any(|e| e.eq_ignore_ascii_case(extension)) {
            walk.ignored += 1;
            continue;
        }
        match kind {
            Ok(kind) if !kind.is_file() => walk.rejected.push(Reject { path, reason: "not a regular file".into() }),
            Err(e) => walk.rejected.push(Reject { path, reason: format!("cannot be looked up: {e}") }),
            Ok(_) if entry.file_name().to_str().is_none() => {
                walk.rejected.push(Reject { path, reason: "its name is not UTF-8; rename it".into() });
            }
            // below the data set's folder alone: what leads there takes no part in names
            Ok(_) if below.contains(char::REPLACEMENT_CHARACTER) => {
                walk.rejected.push(Reject { path, reason: "the name of a folder it lies in is not UTF-8; rename that folder".into() });
            }
            Ok(_) => walk.found.push((format!("{below}{stem}"), path)),
        }
    }
}

/// Refuses to take a tree for HR pictures when folders further down are named as the two sides of pairs: the LQ would be
/// trained on as HR.
fn check_no_pairs_below(root: &Path, hr: &Walk) -> Result<()> {
    let mut sides: BTreeMap<&str, Side> = BTreeMap::new();
    for (name, _) in &hr.found {
        for (end, _) in name.match_indices('/') {
            let folder = &name[..end];
            if let Some(side) = label(folder.rsplit('/').next().unwrap_or(folder)).side {
                sides.insert(folder, side);
            }
        }
    }
    let first = |wanted| sides.iter().find(|(_, side)| **side == wanted).map(|(folder, _)| *folder);
    if let (Some(h), Some(l)) = (first(Side::Hr), first(Side::Lq)) {
        let parent = root.join(h).parent().map(|p| p.display().to_string()).unwrap_or_default();
        bail!(
            "{} holds pairs further down ({h} and {l}): give the folder right above them, such as {parent}, or name both with --hr and --lq",
            root.display()
        );
    }
    Ok(())
}

/// Tells HR from LQ by the last word of each name, where at least one pair in the folder is named so. The names lose that
/// word. What was made for another scale (`SRF_4` in the name) is rejected.
fn split_by_ending(walk: Walk, scale: u32) -> (Walk, Option<Walk>) {
    fn side(stem: &str) -> Option<(Side, &str)> {
        let (key, word) = stem.rsplit_once(['_', '-'])?;
        let is = |words: &[&str]| words.iter().any(|w| w.eq_ignore_ascii_case(word));
        if is(&HR_WORDS) { Some((Side::Hr, key)) } else { is(&LQ_WORDS).then_some((Side::Lq, key)) }
    }
    let keys = |wanted| -> HashSet<&str> {
        walk.found.iter().filter_map(|(stem, _)| side(stem)).filter(|(s, _)| *s == wanted).map(|(_, key)| key).collect()
    };
    if keys(Side::Hr).is_disjoint(&keys(Side::Lq)) {
        return (walk, None);
    }
    let mut hr = Walk { found: Vec::new(), rejected: walk.rejected, ignored: walk.ignored };
    let mut lq = Walk::default();
    for (stem, path) in walk.found {
        let (side, key) = side(&stem).unwrap_or((Side::Hr, &stem));
        let made_for = key.to_ascii_lowercase().split_once("srf_").and_then(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().ok()
        });
        let walk = if side == Side::Hr { &mut hr } else { &mut lq };
        match made_for.filter(|s| *s != scale) {
            Some(other) => walk.rejected.push(Reject { path, reason: format!("its name says scale {other}, not {scale}") }),
            None => walk.found.push((key.to_string(), path)),
        }
    }
    (hr, Some(lq))
}

/// Splits off files of one stem (`a.png` and `a.jpg`), of which none can be told to be the right one.
fn without_twins(side: &str, walk: Walk, rejected: &mut Vec<Reject>) -> BTreeMap<String, PathBuf> {
    rejected.extend(walk.rejected);
    let mut by_name: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (name, path) in walk.found {
        by_name.entry(name).or_default().push(path);
    }
    let mut single = BTreeMap::new();
    for (name, mut paths) in by_name {
        if paths.len() == 1 {
            single.extend(paths.pop().map(|path| (name, path)));
            continue;
        }
        let names: Vec<_> = paths.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned()).collect();
        let reason = format!("{} {side} files share one name ({}); keep one of them", paths.len(), names.join(", "));
        rejected.extend(paths.into_iter().map(|path| Reject { path, reason: reason.clone() }));
    }
    single
}

/// The stem without a scale at its end: `0001x2`, `0001_x2`, `0001-X2` for 2.
fn without_scale(stem: &str, scale: u32) -> Option<&str> {
    let suffix = format!("x{scale}");
    let at = stem.len().checked_sub(suffix.len())?;
    let ends = stem.is_char_boundary(at) && stem[at..].eq_ignore_ascii_case(&suffix);
    ends.then(|| stem[..at].trim_end_matches(['_', '-']))
}

fn pair(hr: Walk, lq: Option<Walk>, scale: u32) -> (Vec<Source>, Vec<Reject>) {
    let mut rejected = Vec::new();
    let hr = without_twins("HR", hr, &mut rejected);
    let Some(lq) = lq else {
        return (hr.into_iter().map(|(name, hr)| Source { name, hr, lq: None }).collect(), rejected);
    };
    let lq = without_twins("LQ", lq, &mut rejected);
    let mut partner: HashMap<&str, &PathBuf> = HashMap::new();
    // Exact names first, so that a stem that happens to end in "x2" is not taken from its own partner.
    for exact in [true, false] {
        for (stem, path) in &lq {
            let name = if exact { Some(stem.as_str()) } else { without_scale(stem, scale) };
            let Some((name, _)) = name.and_then(|n| hr.get_key_value(n)) else { continue };
            if exact || !hr.contains_key(stem) {
                partner.entry(name).or_insert(path);
            }
        }
    }
    let used: HashSet<&PathBuf> = partner.values().copied().collect();
    for (stem, path) in lq.iter().filter(|(_, path)| !used.contains(path)) {
        let reason = match without_scale(stem, scale) {
            Some(name) if hr.contains_key(name) => format!("the HR picture {name} has another LQ picture already"),
            _ => format!("no HR picture is named {stem}"),
        };
        rejected.push(Reject { path: path.clone(), reason });
    }
    let mut sources = Vec::new();
    for (name, path) in &hr {
        match partner.get(name.as_str()) {
            Some(&lq) => sources.push(Source { name: name.clone(), hr: path.clone(), lq: Some(lq.clone()) }),
            None => rejected.push(Reject { path: path.clone(), reason: format!("no LQ picture is named {name} or {name}x{scale}") }),
        }
    }
    (sources, rejected)
}
