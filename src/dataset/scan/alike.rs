//! Finds folders that hold the same images at different sizes although their names do not say so.
//! As HR images, the small copies would be trained on as originals. Depends on `names` and on the
//! headers of a few images. Promises that folders whose images are not related like the two sides
//! of a pair (classes, days, cameras) are accepted.

use super::listing::{ImageFile, Listing};
use super::names::{composed, side_or_scale_end};
use crate::dataset::decode::{Limits, probe};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Levels of folders that are compared. Data sets are not deeper, and the cost grows with every
/// level.
const MAX_LEVELS: usize = 8;
/// Each folder is compared with this many that follow it in order. If a set has three sizes, at
/// least two of their folders are that close.
const NEIGHBOURS: usize = 4;
/// Pairs of images with one name whose headers are read, for each two folders.
const EXAMPLES: usize = 5;
/// Two folders are compared if at least this share of the names in the smaller one (nine of ten) is
/// in both.
const SHARED_NAMES: (usize, usize) = (9, 10);
/// Smallest ratio of the side lengths of HR and LQ.
const MIN_RATIO: f64 = 1.2;
/// Largest difference of the two ratios (along x and along y), as a share of the longer height: an
/// HR may be cut to a multiple of 12.
const MAX_CUT: f64 = 0.03;

/// Images of one folder by name, without the path of the folder.
type ImagesByName<'a> = HashMap<String, &'a ImageFile>;

/// Refuses a tree in which two folders hold images of the same names (apart from words of sides and
/// scales at their ends), and one folder always has the larger image of the same shape.
///
/// # Errors
/// There are two such folders; the error says what to type.
pub(super) fn check_sizes(root: &Path, listing: &Listing) -> Result<()> {
    let all: Vec<&ImageFile> = listing.images.iter().collect();
    SizeComparison {
        root,
        sizes: HashMap::new(),
    }
    .compare_below(&all, 0, 0)
}

/// Compares folders and remembers the sizes that were read.
struct SizeComparison<'a> {
    root: &'a Path,
    /// Width and height by path, pixels; `None` if the header cannot be read.
    sizes: HashMap<&'a Path, Option<(u32, u32)>>,
}

impl<'a> SizeComparison<'a> {
    /// Compares the subfolders of one folder, then those of each subfolder. The names of `images`
    /// begin with the path of the folder, which is `offset` bytes long.
    fn compare_below(
        &mut self,
        images: &[&'a ImageFile],
        offset: usize,
        level: usize,
    ) -> Result<()> {
        let mut folders: BTreeMap<&str, Vec<&ImageFile>> = BTreeMap::new();
        // the files of the folder itself, by the scale in their names: `a.png` and `a_x2.png` may
        // be a pair too
        let mut own: BTreeMap<Option<u32>, Vec<&ImageFile>> = BTreeMap::new();
        for image in images {
            match image.name[offset..].split_once('/') {
                Some((folder, _)) => folders.entry(folder).or_default().push(image),
                None => own
                    .entry(side_or_scale_end(&image.name).scale)
                    .or_default()
                    .push(image),
            }
        }
        if folders.len() + own.len() > 1 {
            let groups: Vec<ImagesByName> = own
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
        if level + 1 < MAX_LEVELS {
            for (folder, of) in &folders {
                self.compare_below(of, offset + folder.len() + 1, level + 1)?;
            }
        }
        Ok(())
    }

    /// Compares two folders by a few images that have the same names.
    fn compare(&mut self, a: &ImagesByName<'a>, b: &ImagesByName<'a>) -> Result<()> {
        let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
        let mut shared: Vec<(&'a ImageFile, &'a ImageFile)> = few
            .iter()
            .filter_map(|(key, p)| Some((*p, *many.get(key)?)))
            .collect();
        let (part, whole) = SHARED_NAMES;
        if shared.is_empty() || shared.len() * whole < few.len() * part {
            return Ok(());
        }
        shared.sort();
        let step = shared.len().div_ceil(EXAMPLES);
        let mut seen: Option<(f64, &ImageFile, &ImageFile)> = None;
        for (a, b) in shared.into_iter().step_by(step) {
            let (Some(size_a), Some(size_b)) = (self.size(a), self.size(b)) else {
                continue;
            };
            let Some(ratio) = ratio_of_pair(size_a, size_b) else {
                return Ok(());
            };
            if seen.is_some_and(|(first, ..)| (first > 1.0) != (ratio > 1.0)) {
                return Ok(());
            }
            seen.get_or_insert((ratio, a, b));
        }
        let Some((_, a, b)) = seen else { return Ok(()) };
        let described = |p: &ImageFile, size: Option<(u32, u32)>| {
            let (w, h) = size.unwrap_or_default();
            format!("{} ({w}x{h})", p.path.display())
        };
        let (size_a, size_b) = (self.size(a), self.size(b));
        bail!(
            "{root} holds images of the same names at different sizes, such as {} and {}: if they are the two sides of pairs, name the \
             folder of each side with --hr and --lq; if only one folder is meant, give that folder; to take every image as HR give --hr {root}",
            described(a, size_a),
            described(b, size_b),
            root = self.root.display()
        )
    }

    /// Width and height of an image; `None` if its header cannot be read.
    fn size(&mut self, image: &'a ImageFile) -> Option<(u32, u32)> {
        *self
            .sizes
            .entry(&image.path)
            .or_insert_with(|| probe(&image.path, &Limits::default()).ok())
    }
}

/// Collects images by their names after `offset`, in composed Unicode and without the words of
/// sides and scales. Names that occur twice are left out.
fn group<'a>(images: &[&'a ImageFile], offset: usize) -> ImagesByName<'a> {
    let mut group = HashMap::with_capacity(images.len());
    let mut twice = HashSet::new();
    for image in images {
        let key = side_or_scale_end(&image.name).key;
        let key = composed(key.get(offset..).unwrap_or_default()).into_owned();
        if group.insert(key.clone(), *image).is_some() {
            twice.insert(key);
        }
    }
    group.retain(|key, _| !twice.contains(key));
    group
}

/// Returns the ratio of the sides of `a` and `b` if both have the same shape and their sizes differ
/// like those of a pair.
fn ratio_of_pair(a: (u32, u32), b: (u32, u32)) -> Option<f64> {
    let (a, b) = (
        (f64::from(a.0), f64::from(a.1)),
        (f64::from(b.0), f64::from(b.1)),
    );
    let ratio = a.0 / b.0;
    let larger = ratio.max(1.0 / ratio);
    // an HR is cut to a multiple of its scale, or of 12
    let tolerance = (larger + 1.0).max(MAX_CUT * a.1.max(b.1));
    let fits = if ratio > 1.0 {
        (a.1 - ratio * b.1).abs() <= tolerance
    } else {
        (b.1 - a.1 / ratio).abs() <= tolerance
    };
    (larger >= MIN_RATIO && fits).then_some(ratio)
}
