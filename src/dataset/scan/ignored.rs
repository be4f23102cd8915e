//! Counts the files of a data set that are ignored, by their endings, so that a user sees which
//! photographs need converting. Depends on nothing.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Endings of images that are not read.
const FOREIGN_ENDINGS: [&str; 34] = [
    "heic", "heif", "hif", "avif", "gif", "jxl", "jp2", "j2k", "jpx", "cr2", "cr3", "crw", "nef",
    "nrw", "arw", "dng", "raf", "orf", "rw2", "pef", "srw", "x3f", "psd", "svg", "tga", "exr",
    "hdr", "pfm", "ppm", "pgm", "pnm", "dds", "ico", "xcf",
];
/// Most different endings that are counted apart.
const MOST_ENDINGS: usize = 1000;

/// Files that are ignored, since they do not have the ending of an image that is read: their number
/// by ending, in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct IgnoredFiles(BTreeMap<String, u64>);

impl IgnoredFiles {
    pub(super) fn add(&mut self, name: &str) {
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        let mut ending = ending.to_lowercase();
        if self.0.len() >= MOST_ENDINGS && !self.0.contains_key(&ending) {
            ending.clear();
        }
        *self.0.entry(ending).or_default() += 1;
    }

    /// Adds the counts of other folders.
    pub fn merge(&mut self, others: &IgnoredFiles) {
        for (ending, count) in &others.0 {
            *self.0.entry(ending.clone()).or_default() += count;
        }
    }

    /// Number of files.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The numbers by kind: `3 .gif, 1 .heic (convert to PNG or JPEG), 3 that are no images`.
    pub fn kinds(&self) -> String {
        let is_image = |ending: &str| FOREIGN_ENDINGS.contains(&ending);
        let mut images: Vec<(&str, u64)> = self
            .0
            .iter()
            .filter(|(ending, _)| is_image(ending))
            .map(|(ending, count)| (ending.as_str(), *count))
            .collect();
        images.sort_by_key(|&(ending, count)| (std::cmp::Reverse(count), ending));
        let others = self.count() - images.iter().map(|(_, count)| count).sum::<u64>();
        let images: Vec<String> = images
            .into_iter()
            .map(|(ending, count)| format!("{count} .{ending}"))
            .collect();
        let named = format!("{} (convert to PNG or JPEG)", images.join(", "));
        match (images.is_empty(), others) {
            (false, 0) => named,
            (false, 1) => format!("{named}, 1 that is no image"),
            (false, n) => format!("{named}, {n} that are no images"),
            (true, 1) => "1 file that is no image".to_string(),
            (true, n) => format!("{n} files that are no images"),
        }
    }
}

/// `ignored: ` and [`IgnoredFiles::kinds`].
impl fmt::Display for IgnoredFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ignored: {}", self.kinds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_of_images_are_named_and_others_are_counted() {
        let of = |names: &[&str]| {
            let mut files = IgnoredFiles::default();
            names.iter().for_each(|name| files.add(name));
            files.to_string()
        };
        assert_eq!(
            of(&["a.HEIC", "b.gif", "c.gif", "d.txt", "noending", "e.mp4"]),
            "ignored: 2 .gif, 1 .heic (convert to PNG or JPEG), 3 that are no images"
        );
        assert_eq!(of(&["a.txt"]), "ignored: 1 file that is no image");
        assert_eq!(of(&["a.avif"]), "ignored: 1 .avif (convert to PNG or JPEG)");
    }

    #[test]
    fn the_number_of_endings_is_bounded() {
        let mut files = IgnoredFiles::default();
        (0..5000).for_each(|i| files.add(&format!("a.x{i}")));
        assert_eq!((files.count(), files.0.len()), (5000, MOST_ENDINGS + 1));
    }
}
