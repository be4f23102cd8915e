//! Pairs HR images with LQ images by their names, in two folders or in one. Depends on `names` and
//! `listing`. Promises that every image ends in a pair, is rejected with a reason, or is counted as
//! left out, and that no image is paired if it could belong to two others.

use super::listing::{ImageFile, LeftOuts, Listing, Reason, Reject};
use super::names::{
    Side, composed, endings, is_extracted, scale_within, side_or_scale_end, without_glued_scale,
};
use super::{RESTORATION_SCALE, Source};
use anyhow::{Result, bail};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// The images of the two sides.
pub(super) struct Sides {
    pub hr: Listing,
    /// `None` if all images are HR.
    pub lq: Option<Listing>,
}

/// The pairs that the names in one folder form.
struct NamedPairs<'a> {
    /// For each image: whether its name ends in a word for LQ, and its composed name without the
    /// words of a side.
    read: Vec<(bool, Cow<'a, str>)>,
    /// Keys of pairs, and whether `paragon shards extract` has named both files.
    pairs: HashMap<Cow<'a, str>, bool>,
    /// Number of images that do not belong to a pair.
    strangers: usize,
}

impl<'a> NamedPairs<'a> {
    fn of(images: &'a [ImageFile]) -> NamedPairs<'a> {
        let read = |p: &'a ImageFile| {
            let (side, key) = side_of(&p.name);
            (side == Some(Side::Lq), composed(key))
        };
        let read: Vec<_> = images.iter().map(read).collect();
        let mut pairs: HashMap<Cow<str>, bool> = read
            .iter()
            .filter(|(is_lq, _)| *is_lq)
            .map(|(_, key)| (key.clone(), true))
            .collect();
        let partners: HashSet<&str> = read
            .iter()
            .filter(|(is_lq, key)| !is_lq && pairs.contains_key(key))
            .map(|(_, key)| &**key)
            .collect();
        pairs.retain(|key, _| partners.contains(&**key));
        if pairs.is_empty() {
            return NamedPairs {
                read,
                pairs,
                strangers: images.len(),
            };
        }
        for (image, (_, key)) in images.iter().zip(&read) {
            if let Some(extracted) = pairs.get_mut(key) {
                *extracted &= is_extracted(&image.name);
            }
        }
        let strangers = images
            .iter()
            .zip(&read)
            .filter(|(p, (_, key))| !is_of_family(&composed(&p.name), key, &pairs))
            .count();
        NamedPairs {
            read,
            pairs,
            strangers,
        }
    }
}

/// A folder with fewer than one pair for this many other images is taken as a folder of HR images.
const FEW_PAIRS: usize = 4;

/// The side that the end of a name says, and the name without that end.
fn side_of(name: &str) -> (Option<Side>, &str) {
    let end = side_or_scale_end(name);
    if end.side.is_some() {
        (end.side, end.key)
    } else {
        (None, name)
    }
}

/// Whether an image belongs to a pair, or is another version of the same image
/// (`img_001_SRF_2_bicubic` beside `img_001_SRF_2_HR`).
fn is_of_family(name: &str, key: &str, pairs: &HashMap<Cow<str>, bool>) -> bool {
    let first = name.rfind('/').map_or(0, |at| at + 1);
    let ends = name[first..]
        .match_indices(|c: char| !c.is_alphanumeric())
        .map(|(at, _)| first + at);
    pairs.contains_key(key) || ends.into_iter().any(|end| pairs.contains_key(&name[..end]))
}

/// Separates HR from LQ by the ends of the names, if most images of the folder have such names or
/// the user asks for it (`forced`). The words are removed from the names. Images for another scale
/// are rejected. Pairs that `paragon shards extract` wrote among other images are left out.
///
/// # Errors
/// It is not clear whether the folder holds pairs; the error says what to do.
pub(super) fn split_by_ending(
    root: &Path,
    mut listing: Listing,
    scale: u32,
    forced: bool,
    left_out: &mut LeftOuts,
) -> Result<Sides> {
    let place = root.display();
    let found = NamedPairs::of(&listing.images);
    let extracted = found.pairs.values().filter(|e| **e).count();
    let (named, strangers) = (found.pairs.len() - extracted, found.strangers);
    if found.pairs.is_empty() && forced {
        bail!(
            "--hr and --lq are the same folder, and no two names in {place} are a pair (0001_HR.png and 0001_LR.png, for example)"
        );
    }
    if found.pairs.is_empty() {
        return Ok(Sides {
            hr: listing,
            lq: None,
        });
    }
    if forced || named + strangers == 0 {
        return Ok(split(listing, scale));
    }
    let advice = format!(
        "move the pairs into a folder of their own, give --hr {place} --lq {place} to use the pairs alone, or --hr {place} to take every \
         image as HR"
    );
    if extracted > named + strangers {
        bail!(
            "{place} holds {extracted} pairs named as `paragon shards extract` does, and {} other images: {advice}",
            named + strangers
        );
    }
    let paired = named > strangers;
    if !paired && named * FEW_PAIRS > strangers {
        bail!(
            "{place} holds {named} pairs by the ends of their names, and {strangers} other images: {advice}"
        );
    }
    // extracted pairs are no part of the data set; of a few other pairs among photographs, only the
    // HR is used, since the LQ is not an original
    let of_pair = |key: &str| {
        (
            found.pairs.contains_key(key),
            found.pairs.get(key).copied().unwrap_or(false),
        )
    };
    let read: Vec<_> = found
        .read
        .iter()
        .map(|(is_lq, key)| (*is_lq, of_pair(key)))
        .collect();
    for (image, (is_lq, (in_pair, ours))) in
        std::mem::take(&mut listing.images).into_iter().zip(read)
    {
        if ours {
            left_out.add(Reason::OwnOutput, 1, 0, &image.path);
        } else if !paired && in_pair && is_lq {
            let reason = format!(
                "its name says that it is the LQ of a pair, and most images of {place} are HR alone; {advice}"
            );
            listing.rejected.push(Reject {
                path: image.path,
                reason,
            });
        } else {
            listing.images.push(image);
        }
    }
    Ok(if paired {
        split(listing, scale)
    } else {
        Sides {
            hr: listing,
            lq: None,
        }
    })
}

/// Separates the sides and removes the words of a side from the names.
fn split(listing: Listing, scale: u32) -> Sides {
    let mut hr = Listing {
        images: Vec::new(),
        ..listing
    };
    let mut lq = Listing::default();
    for image in listing.images {
        let (side, key) = side_of(&image.name);
        let said = side_or_scale_end(&image.name)
            .scale
            .or_else(|| scale_within(&image.name));
        let of = if side == Some(Side::Lq) {
            &mut lq
        } else {
            &mut hr
        };
        match said.filter(|s| *s != scale) {
            Some(other) => {
                of.rejected.push(Reject {
                    path: image.path,
                    reason: format!("its name says scale {other}, not {scale}"),
                });
            }
            None => of.images.push(ImageFile {
                name: key.to_string(),
                path: image.path,
            }),
        }
    }
    Sides { hr, lq: Some(lq) }
}

/// The sources for HR images whose LQ is made. Of files with the same stem (`a.png` and `a.jpg`)
/// the first in the order of [`super::ENDINGS`] is used: they are most likely the same image, and a
/// lossless file is better.
pub(super) fn hr_alone(hr: Listing) -> (Vec<Source>, Vec<Reject>) {
    let mut rejected = hr.rejected;
    let mut sources: Vec<Source> = Vec::with_capacity(hr.images.len());
    let mut images = hr.images.into_iter().peekable();
    while let Some(image) = images.next() {
        let mut of_one_name = vec![image];
        while let Some(next) = images.next_if(|p| p.name == of_one_name[0].name) {
            of_one_name.push(next);
        }
        let rank = |p: &ImageFile| {
            let ending = p
                .path
                .extension()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase();
            super::ENDINGS.iter().position(|e| *e == ending)
        };
        of_one_name.sort_by_key(rank); // stable: files with the same ending keep their order
        let mut of_one_name = of_one_name.into_iter();
        let Some(ImageFile { name, path }) = of_one_name.next() else {
            continue;
        };
        let taken = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        rejected.extend(of_one_name.map(|p| Reject {
            path: p.path,
            reason: format!("{taken}, which has the same name, is used; rename one of them if they are two images"),
        }));
        sources.push(Source {
            name,
            hr: path,
            lq: None,
        });
    }
    (sources, rejected)
}

/// Returns the images by their composed names. Files that share a name (`a.png` and `a.jpg`) are
/// rejected, since it is not clear which of them belongs to the pair.
fn without_twins(
    side: &str,
    listing: Listing,
    rejected: &mut Vec<Reject>,
) -> BTreeMap<String, ImageFile> {
    rejected.extend(listing.rejected);
    let mut by_name: BTreeMap<String, Vec<ImageFile>> = BTreeMap::new();
    for image in listing.images {
        by_name
            .entry(composed(&image.name).into_owned())
            .or_default()
            .push(image);
    }
    let mut single = BTreeMap::new();
    for (name, mut images) in by_name {
        if images.len() == 1 {
            single.extend(images.pop().map(|image| (name, image)));
            continue;
        }
        let names: Vec<_> = images
            .iter()
            .filter_map(|p| p.path.file_name())
            .map(|n| n.to_string_lossy().into_owned())
            .collect();
        let forms = if images.windows(2).any(|two| two[0].name != two[1].name) {
            " in two forms of Unicode"
        } else {
            ""
        };
        let reason = format!(
            "{} {side} files share one name{forms} ({}); keep one of them",
            images.len(),
            names.join(", ")
        );
        rejected.extend(images.into_iter().map(|p| Reject {
            path: p.path,
            reason: reason.clone(),
        }));
    }
    single
}

/// The keys under which an image may find its partner, the whole name first. If the name has
/// another scale than `scale`, that scale is returned too.
fn keys(name: &str, side: Side, scale: u32) -> (Vec<&str>, Option<u32>) {
    let mut found = Vec::new();
    for ending in endings(name) {
        if let Some(other) = ending.scale.filter(|s| *s != scale) {
            return (found, Some(other));
        }
        found.push(ending.key);
    }
    if found.len() == 1 && side == Side::Lq {
        found.extend(without_glued_scale(name, scale));
    }
    (found, None)
}

/// HR images by all their keys, with the number of words that were removed for the key.
type ByKey<'a> = HashMap<&'a str, Vec<(usize, &'a str)>>;

/// An LQ image that may be the partner of an HR image. Matches for which fewer words were removed
/// from the two names are better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Match<'a> {
    /// Number of words removed from both names.
    words: usize,
    hr: &'a str,
    lq: &'a str,
}

/// Returns all matches of LQ images with HR images, the best first.
fn matches<'a>(
    hr: &BTreeMap<String, ImageFile>,
    by_key: &ByKey<'a>,
    lq: &'a BTreeMap<String, ImageFile>,
    scale: u32,
) -> Vec<Match<'a>> {
    let mut matches = Vec::new();
    for name in lq.keys() {
        for (words, key) in keys(name, Side::Lq, scale).0.into_iter().enumerate() {
            let found = by_key.get(key).into_iter().flatten();
            matches.extend(found.map(|(more, hr)| Match {
                words: words + more,
                hr,
                lq: name.as_str(),
            }));
            // an HR image with exactly this name is the one that is meant, even if it has another
            // partner
            if hr.contains_key(key) {
                break;
            }
        }
    }
    matches.sort();
    matches
}

/// The pairs that were formed from the matches.
#[derive(Default)]
struct Partners<'a> {
    /// The LQ image of an HR image.
    partner: HashMap<&'a str, &'a str>,
    /// LQ images that have a partner.
    used: HashSet<&'a str>,
    /// For images without a partner that have several matches: the reason.
    unclear_hr: HashMap<&'a str, String>,
    unclear_lq: HashMap<&'a str, String>,
}

impl<'a> Partners<'a> {
    fn of(matches: &[Match<'a>]) -> Partners<'a> {
        let mut partners = Partners::default();
        for round in matches.chunk_by(|a, b| a.words == b.words) {
            partners.add_unique(round);
        }
        partners
    }

    /// Pairs the images that have exactly one match of this rank.
    fn add_unique(&mut self, round: &[Match<'a>]) {
        let is_open = |m: &&Match| {
            !self.partner.contains_key(m.hr)
                && !self.used.contains(m.lq)
                && !self.unclear_hr.contains_key(m.hr)
        };
        let open: Vec<&Match> = round.iter().filter(is_open).collect();
        let (mut of_hr, mut of_lq): (HashMap<&str, Vec<&str>>, HashMap<&str, usize>) =
            (HashMap::new(), HashMap::new());
        for m in &open {
            of_hr.entry(m.hr).or_default().push(m.lq);
            *of_lq.entry(m.lq).or_default() += 1;
        }
        for m in open {
            let (rivals, others) = (&of_hr[m.hr], of_lq[m.lq]);
            if rivals.len() == 1 && others == 1 {
                self.partner.insert(m.hr, m.lq);
                self.used.insert(m.lq);
                continue;
            }
            let reason = if rivals.len() > 1 {
                format!(
                    "{} LQ images could belong to the HR image {} ({}); keep one of them",
                    rivals.len(),
                    m.hr,
                    rivals.join(", ")
                )
            } else {
                format!(
                    "the LQ image {} could belong to {others} HR images; rename it after the one that is meant",
                    m.lq
                )
            };
            self.unclear_hr
                .entry(m.hr)
                .or_insert_with(|| reason.clone());
            self.unclear_lq.entry(m.lq).or_insert(reason);
        }
    }
}

/// Returns the pairs of two sides, sorted by name, and the rejected files.
pub(super) fn pair(hr: Listing, lq: Listing, scale: u32) -> (Vec<Source>, Vec<Reject>) {
    let mut rejected = Vec::new();
    let hr = without_twins("HR", hr, &mut rejected);
    let lq = without_twins("LQ", lq, &mut rejected);
    let mut by_key = ByKey::new();
    for name in hr.keys() {
        for (words, key) in keys(name, Side::Hr, scale).0.into_iter().enumerate() {
            by_key.entry(key).or_default().push((words, name));
        }
    }
    let partners = Partners::of(&matches(&hr, &by_key, &lq, scale));
    for (name, image) in lq
        .iter()
        .filter(|(name, _)| !partners.used.contains(name.as_str()))
    {
        let (found, other) = keys(name, Side::Lq, scale);
        let taken = found
            .iter()
            .filter_map(|key| by_key.get(key))
            .flatten()
            .find(|(_, hr)| partners.partner.contains_key(hr));
        let reason = match (partners.unclear_lq.get(name.as_str()), taken, other) {
            (Some(reason), ..) => reason.clone(),
            (None, Some((_, hr)), _) => {
                format!("the HR image {hr} has another LQ image already")
            }
            (None, None, Some(other)) => format!("its name says scale {other}, not {scale}"),
            (None, None, None) => format!("no HR image is named {name}"),
        };
        rejected.push(Reject {
            path: image.path.clone(),
            reason,
        });
    }
    let mut sources = Vec::with_capacity(partners.partner.len());
    for (name, image) in &hr {
        if let Some(partner) = partners
            .partner
            .get(name.as_str())
            .and_then(|name| lq.get(*name))
        {
            sources.push(Source {
                name: image.name.clone(),
                hr: image.path.clone(),
                lq: Some(partner.path.clone()),
            });
        } else {
            let reason = partners.unclear_hr.get(name.as_str()).cloned();
            let with_scale = if scale == RESTORATION_SCALE {
                String::new()
            } else {
                format!(" or {name}x{scale}")
            };
            let reason =
                reason.unwrap_or_else(|| format!("no LQ image is named {name}{with_scale}"));
            rejected.push(Reject {
                path: image.path.clone(),
                reason,
            });
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    (sources, rejected)
}
