//! Finds folders that hold the same images at different sizes although their names do not say so:
//! taken for HR, the small ones would be trained on as originals. Depends on `names` and on the
//! headers of a few images. Promises that folders whose images have other sizes than those of a
//! pair (classes, days, cameras) pass.

use super::listing::{Listing, Picture};
use super::names::{composed, telling_end};
use crate::dataset::decode::{Limits, probe};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Levels of folders that are compared. Sets of images are not deeper, and the cost grows with
/// it.
const MOST_LEVELS: usize = 8;
/// Each folder is compared with so many that follow it. Of three sizes of a set at least two are
/// neighbours.
const NEIGHBOURS: usize = 4;
/// Images that are looked at in two folders, spread over those of one name.
const EXAMPLES: usize = 5;
/// How much larger the one image of a pair is at least, along each side.
const LEAST_RATIO: f64 = 1.2;

/// Images by what tells them apart within their group.
type Group<'a> = HashMap<String, &'a Picture>;

/// Refuses a tree in which two folders hold the same names (but for the words of sides and scales
/// at their ends), one always with the larger image of the same shape.
///
/// # Errors
/// Two such folders, with what to type.
pub(super) fn check_sizes(root: &Path, listing: &Listing) -> Result<()> {
    let all: Vec<&Picture> = listing.pictures.iter().collect();
    Sizes {
        root,
        known: HashMap::new(),
    }
    .compare_below(&all, 0, 0)
}

struct Sizes<'a> {
    root: &'a Path,
    /// Width and height by path, pixels; nothing where the header cannot be read.
    known: HashMap<&'a Path, Option<(u32, u32)>>,
}

impl<'a> Sizes<'a> {
    /// Compares what is in the folders of one folder; the names of `pictures` agree up to `offset`.
    fn compare_below(
        &mut self,
        pictures: &[&'a Picture],
        offset: usize,
        level: usize,
    ) -> Result<()> {
        let mut folders: BTreeMap<&str, Vec<&Picture>> = BTreeMap::new();
        // files of the folder itself, apart by the scale in their names: `a.png` and `a_x2.png` may
        // be a pair too
        let mut own: BTreeMap<Option<u32>, Vec<&Picture>> = BTreeMap::new();
        for picture in pictures {
            match picture.name[offset..].split_once('/') {
                Some((folder, _)) => folders.entry(folder).or_default().push(picture),
                None => own
                    .entry(telling_end(&picture.name).scale)
                    .or_default()
                    .push(picture),
            }
        }
        if folders.len() + own.len() > 1 {
            let groups: Vec<Group> = own
                .values()
                .map(|of| group(of, offset))
                .chain(
                    folders
                        .iter()
                        .map(|(folder, of)| group(of, offset + folder.len() + 1)),
                )
                .collect();
            for (i, a) in groups.iter().enumerate() {
                for b in groups.iter().skip(i + 1).take(NEIGHBOURS) {
                    self.compare(a, b)?;
                }
            }
        }
        if level + 1 < MOST_LEVELS {
            for (folder, of) in &folders {
                self.compare_below(of, offset + folder.len() + 1, level + 1)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, a: &Group<'a>, b: &Group<'a>) -> Result<()> {
        let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
        let mut shared: Vec<(&'a Picture, &'a Picture)> = few
            .iter()
            .filter_map(|(key, p)| Some((*p, *many.get(key)?)))
            .collect();
        if shared.is_empty() || shared.len() * 10 < few.len() * 9 {
            return Ok(());
        }
        shared.sort();
        let step = shared.len().div_ceil(EXAMPLES);
        let mut seen: Option<(f64, &Picture, &Picture)> = None;
        for (a, b) in shared.into_iter().step_by(step) {
            let (Some(size_a), Some(size_b)) = (self.size(a), self.size(b)) else {
                continue;
            };
            let Some(ratio) = ratio_of_pair(size_a, size_b) else {
                return Ok(());
            };
            if seen.is_some_and(|(before, ..)| (before > 1.0) != (ratio > 1.0)) {
                return Ok(());
            }
            seen.get_or_insert((ratio, a, b));
        }
        let Some((_, a, b)) = seen else { return Ok(()) };
        let told = |p: &Picture, size: Option<(u32, u32)>| {
            let (w, h) = size.unwrap_or_default();
            format!("{} ({w}x{h})", p.path.display())
        };
        let (size_a, size_b) = (self.size(a), self.size(b));
        bail!(
            "{root} holds images of the same names at different sizes, such as {} and {}: if they are the two sides of pairs, name the \
             folder of each side with --hr and --lq; if only one folder is meant, give that folder; to take every image as HR give --hr {root}",
            told(a, size_a),
            told(b, size_b),
            root = self.root.display()
        )
    }

    fn size(&mut self, picture: &'a Picture) -> Option<(u32, u32)> {
        *self
            .known
            .entry(&picture.path)
            .or_insert_with(|| probe(&picture.path, &Limits::default()).ok())
    }
}

/// The images by their names behind `offset`, composed and without the words of sides and scales.
fn group<'a>(pictures: &[&'a Picture], offset: usize) -> Group<'a> {
    let mut group = HashMap::with_capacity(pictures.len());
    let mut twice = HashSet::new();
    for picture in pictures {
        let key = telling_end(&picture.name).key;
        let key = composed(key.get(offset..).unwrap_or_default()).into_owned();
        if group.insert(key.clone(), *picture).is_some() {
            twice.insert(key);
        }
    }
    group.retain(|key, _| !twice.contains(key));
    group
}

/// How much larger `a` is than `b`, where both have one shape and their sizes differ as those of a
/// pair do.
fn ratio_of_pair(a: (u32, u32), b: (u32, u32)) -> Option<f64> {
    let (a, b) = (
        (f64::from(a.0), f64::from(a.1)),
        (f64::from(b.0), f64::from(b.1)),
    );
    let ratio = a.0 / b.0;
    let larger = ratio.max(1.0 / ratio);
    // an HR is cut to a multiple of its scale, or of 12
    let room = (larger + 1.0).max(0.03 * a.1.max(b.1));
    let fits = if ratio > 1.0 {
        (a.1 - ratio * b.1).abs() <= room
    } else {
        (b.1 - a.1 / ratio).abs() <= room
    };
    (larger >= LEAST_RATIO && fits).then_some(ratio)
}
