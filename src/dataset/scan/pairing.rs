//! Pairs HR with LQ by their names, in two folders or in one. Depends on `names` and `listing`.
//! Promises that every image it is given comes out in a pair, rejected with a reason, or counted
//! as left out, and that no image is paired where two could be meant.

use super::Source;
use super::listing::{LeftOuts, Listing, Picture, Reason, Reject};
use super::names::{
    Side, composed, endings, is_extracted, scale_within, telling_end, without_glued_scale,
};
use anyhow::{Result, bail};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// The two sides of one folder.
pub(super) struct Sides {
    pub hr: Listing,
    /// Nothing where all images are HR.
    pub lq: Option<Listing>,
}

/// What the names of one folder's images say together.
struct Census<'a> {
    /// Of each image, whether its name says LQ, and its composed name without the words of a
    /// side.
    read: Vec<(bool, Cow<'a, str>)>,
    /// Keys of pairs, and whether `paragon shards extract` names files so.
    pairs: HashMap<Cow<'a, str>, bool>,
    /// Images that have nothing to do with a pair.
    strangers: usize,
}

impl<'a> Census<'a> {
    fn of(pictures: &'a [Picture]) -> Census<'a> {
        let read = |p: &'a Picture| {
            let (side, key) = side_of(&p.name);
            (side == Some(Side::Lq), composed(key))
        };
        let read: Vec<_> = pictures.iter().map(read).collect();
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
            return Census {
                read,
                pairs,
                strangers: pictures.len(),
            };
        }
        for (picture, (_, key)) in pictures.iter().zip(&read) {
            if let Some(extracted) = pairs.get_mut(key) {
                *extracted &= is_extracted(&picture.name);
            }
        }
        let strangers = pictures
            .iter()
            .zip(&read)
            .filter(|(p, (_, key))| !is_of_family(&composed(&p.name), key, &pairs))
            .count();
        Census {
            read,
            pairs,
            strangers,
        }
    }
}

/// The side that the end of a name says, and the name without it.
fn side_of(name: &str) -> (Option<Side>, &str) {
    let end = telling_end(name);
    if end.side.is_some() {
        (end.side, end.key)
    } else {
        (None, name)
    }
}

/// Whether an image belongs to a pair, or is a further one of the same motif
/// (`img_001_SRF_2_bicubic` beside `img_001_SRF_2_HR`).
fn is_of_family(name: &str, key: &str, pairs: &HashMap<Cow<str>, bool>) -> bool {
    let first = name.rfind('/').map_or(0, |at| at + 1);
    let ends = name[first..]
        .match_indices(|c: char| !c.is_alphanumeric())
        .map(|(at, _)| first + at);
    pairs.contains_key(key) || ends.into_iter().any(|end| pairs.contains_key(&name[..end]))
}

/// Tells HR from LQ by the ends of the names, where most images of the folder are named so, or
/// the user says so (`forced`). Names lose these words. What was made for another scale is
/// rejected. Pairs that `paragon shards extract` wrote among other images are left out.
///
/// # Errors
/// A folder in which neither is clear, with what to do.
pub(super) fn split_by_ending(
    root: &Path,
    mut listing: Listing,
    scale: u32,
    forced: bool,
    left_out: &mut LeftOuts,
) -> Result<Sides> {
    let place = root.display();
    let census = Census::of(&listing.pictures);
    let extracted = census.pairs.values().filter(|e| **e).count();
    let (named, strangers) = (census.pairs.len() - extracted, census.strangers);
    if census.pairs.is_empty() && forced {
        bail!(
            "--hr and --lq are the same folder, and no two names in {place} are a pair (0001_HR.png and 0001_LR.png, for example)"
        );
    }
    if census.pairs.is_empty() {
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
    if !paired && named * 4 > strangers {
        bail!(
            "{place} holds {named} pairs by the ends of their names, and {strangers} other images: {advice}"
        );
    }
    // pairs that we extracted are no part of the set; of a few others among photographs, the LQ is
    // no original
    let of_pair = |key: &str| {
        (
            census.pairs.contains_key(key),
            census.pairs.get(key).copied().unwrap_or(false),
        )
    };
    let read: Vec<_> = census
        .read
        .iter()
        .map(|(is_lq, key)| (*is_lq, of_pair(key)))
        .collect();
    for (picture, (is_lq, (in_pair, ours))) in
        std::mem::take(&mut listing.pictures).into_iter().zip(read)
    {
        if ours {
            left_out.add(Reason::OwnOutput, 1, 0, &picture.path);
        } else if !paired && in_pair && is_lq {
            let reason = format!(
                "its name says that it is the LQ of a pair, and most images of {place} are HR alone; {advice}"
            );
            listing.rejected.push(Reject {
                path: picture.path,
                reason,
            });
        } else {
            listing.pictures.push(picture);
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

fn split(listing: Listing, scale: u32) -> Sides {
    let mut hr = Listing {
        pictures: Vec::new(),
        ..listing
    };
    let mut lq = Listing::default();
    for picture in listing.pictures {
        let (side, key) = side_of(&picture.name);
        let said = telling_end(&picture.name)
            .scale
            .or_else(|| scale_within(&picture.name));
        let of = if side == Some(Side::Lq) {
            &mut lq
        } else {
            &mut hr
        };
        match said.filter(|s| *s != scale) {
            Some(other) => {
                of.rejected.push(Reject {
                    path: picture.path,
                    reason: format!("its name says scale {other}, not {scale}"),
                });
            }
            None => of.pictures.push(Picture {
                name: key.to_string(),
                path: picture.path,
            }),
        }
    }
    Sides { hr, lq: Some(lq) }
}

/// HR images whose LQ is to be made. Of files with one stem (`a.png` and `a.jpg`) the first in
/// the order of [`super::ENDINGS`] is taken: most likely they are one image, and the one that
/// lost nothing is the better.
pub(super) fn hr_alone(hr: Listing) -> (Vec<Source>, Vec<Reject>) {
    let mut rejected = hr.rejected;
    let mut sources: Vec<Source> = Vec::with_capacity(hr.pictures.len());
    let mut pictures = hr.pictures.into_iter().peekable();
    while let Some(picture) = pictures.next() {
        let mut of_one_name = vec![picture];
        while let Some(next) = pictures.next_if(|p| p.name == of_one_name[0].name) {
            of_one_name.push(next);
        }
        let rank = |p: &Picture| {
            let ending = p
                .path
                .extension()
                .unwrap_or_default()
                .to_string_lossy()
                .to_lowercase();
            super::ENDINGS.iter().position(|e| *e == ending)
        };
        of_one_name.sort_by_key(rank); // a stable order: files of one ending stay in that of their names
        let mut of_one_name = of_one_name.into_iter();
        let Some(Picture { name, path }) = of_one_name.next() else {
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

/// Images by their composed names. Splits off files of one name (`a.png` and `a.jpg`), of which
/// none can be told to be the right one.
fn without_twins(
    side: &str,
    listing: Listing,
    rejected: &mut Vec<Reject>,
) -> BTreeMap<String, Picture> {
    rejected.extend(listing.rejected);
    let mut by_name: BTreeMap<String, Vec<Picture>> = BTreeMap::new();
    for picture in listing.pictures {
        by_name
            .entry(composed(&picture.name).into_owned())
            .or_default()
            .push(picture);
    }
    let mut single = BTreeMap::new();
    for (name, mut pictures) in by_name {
        if pictures.len() == 1 {
            single.extend(pictures.pop().map(|picture| (name, picture)));
            continue;
        }
        let names: Vec<_> = pictures
            .iter()
            .filter_map(|p| p.path.file_name())
            .map(|n| n.to_string_lossy().into_owned())
            .collect();
        let forms = if pictures.windows(2).any(|two| two[0].name != two[1].name) {
            " in two forms of Unicode"
        } else {
            ""
        };
        let reason = format!(
            "{} {side} files share one name{forms} ({}); keep one of them",
            pictures.len(),
            names.join(", ")
        );
        rejected.extend(pictures.into_iter().map(|p| Reject {
            path: p.path,
            reason: reason.clone(),
        }));
    }
    single
}

/// The keys under which an image may find its partner, the whole name first, and a scale in its
/// name that is not the wanted one.
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

/// HR images by every key of theirs, with the words that were taken off for it.
type ByKey<'a> = HashMap<&'a str, Vec<(usize, &'a str)>>;

/// An LQ image that may be the partner of an HR image; the fewer words are taken off both
/// names, the better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Match<'a> {
    words: usize,
    hr: &'a str,
    lq: &'a str,
}

/// Every way in which an LQ image may belong to an HR image, the best first.
fn matches<'a>(
    hr: &BTreeMap<String, Picture>,
    by_key: &ByKey<'a>,
    lq: &'a BTreeMap<String, Picture>,
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
            // an HR image of this very name is the one that is meant, whether it has another
            // partner or not
            if hr.contains_key(key) {
                break;
            }
        }
    }
    matches.sort();
    matches
}

/// Who belongs to whom.
#[derive(Default)]
struct Settled<'a> {
    /// The LQ image of an HR image.
    partner: HashMap<&'a str, &'a str>,
    /// LQ images that have a place.
    used: HashSet<&'a str>,
    /// Why images have none although there are some that could be meant.
    unclear_hr: HashMap<&'a str, String>,
    unclear_lq: HashMap<&'a str, String>,
}

impl<'a> Settled<'a> {
    fn of(matches: &[Match<'a>]) -> Settled<'a> {
        let mut settled = Settled::default();
        for round in matches.chunk_by(|a, b| a.words == b.words) {
            settled.settle(round);
        }
        settled
    }

    /// Takes the matches of one rank that leave nothing open.
    fn settle(&mut self, round: &[Match<'a>]) {
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

/// The pairs of two sides, sorted by name.
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
    let settled = Settled::of(&matches(&hr, &by_key, &lq, scale));
    for (name, picture) in lq
        .iter()
        .filter(|(name, _)| !settled.used.contains(name.as_str()))
    {
        let (found, other) = keys(name, Side::Lq, scale);
        let taken = found
            .iter()
            .filter_map(|key| by_key.get(key))
            .flatten()
            .find(|(_, hr)| settled.partner.contains_key(hr));
        let reason = match (settled.unclear_lq.get(name.as_str()), taken, other) {
            (Some(reason), ..) => reason.clone(),
            (None, Some((_, hr)), _) => {
                format!("the HR image {hr} has another LQ image already")
            }
            (None, None, Some(other)) => format!("its name says scale {other}, not {scale}"),
            (None, None, None) => format!("no HR image is named {name}"),
        };
        rejected.push(Reject {
            path: picture.path.clone(),
            reason,
        });
    }
    let mut sources = Vec::with_capacity(settled.partner.len());
    for (name, picture) in &hr {
        if let Some(partner) = settled
            .partner
            .get(name.as_str())
            .and_then(|name| lq.get(*name))
        {
            sources.push(Source {
                name: picture.name.clone(),
                hr: picture.path.clone(),
                lq: Some(partner.path.clone()),
            });
        } else {
            let reason = settled.unclear_hr.get(name.as_str()).cloned();
            let reason =
                reason.unwrap_or_else(|| format!("no LQ image is named {name} or {name}x{scale}"));
            rejected.push(Reject {
                path: picture.path.clone(),
                reason,
            });
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    (sources, rejected)
}
