//! Interprets names: which side (HR or LQ) and scale a folder is named for, and which words at the
//! end of a file's stem only name side, scale or method. One grammar serves folders, files in two
//! folders and files in one folder. Depends on nothing. Promises that a word counts only if all of
//! it is understood (`lrbicx2`, `gtmod12`), so that ordinary words (`hrvatska`, `lrigby`) do not.

use std::borrow::Cow;
use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Words for the HR side. A word comes before any shorter word that it begins with.
const HR_WORDS: [&str; 8] = [
    "groundtruth",
    "highresolution",
    "highquality",
    "highres",
    "hires",
    "hr",
    "gt",
    "hq",
];
/// Words for the LQ side, in the same order.
const LQ_WORDS: [&str; 6] = ["lowresolution", "lowquality", "lowres", "lores", "lr", "lq"];
/// Weaker words for the HR side: a data set may have such a folder beside its HR folder, which is
/// cropped for a scale. They count only if there is an LQ folder and no other HR folder.
const WEAK_HR_WORDS: [&str; 3] = ["original", "originals", "orig"];
/// How an HR image was cut: `GTmod12`.
const CUTS: [&str; 4] = ["cropped", "crop", "mod", "sub"];
/// How an LQ image was made: `LR_bicubic`, `bicLRx2`, `LRBI`.
const METHODS: [&str; 14] = [
    "bicubic",
    "bilinear",
    "nearest",
    "lanczos",
    "unknown",
    "difficult",
    "noise",
    "mild",
    "wild",
    "blur",
    "area",
    "bic",
    "bi",
    "bd",
];
/// Words of two parts that may be written apart: `low_res`, `ground truth`.
const TWO_PARTS: [(&str, &str); 8] = [
    ("high", "res"),
    ("low", "res"),
    ("high", "resolution"),
    ("low", "resolution"),
    ("high", "quality"),
    ("low", "quality"),
    ("hi", "res"),
    ("ground", "truth"),
];
/// Longer words, in bytes, are not read.
const LONGEST_WORD: usize = 32;
/// Largest number of words that are read at the end of a stem: `_LR_bicubic_mild_x2`.
const MAX_WORDS: usize = 4;

/// Characters between the words at the end of a stem.
const SEPARATORS: [char; 6] = ['_', '-', '.', ' ', '+', '~'];

/// One of the two sides of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Hr,
    Lq,
}

/// The meaning of one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word {
    side: Option<Side>,
    scale: Option<u32>,
    /// Whether it names a way in which LQ images are made.
    method: bool,
}

/// Returns a name in the form in which names are compared: composed Unicode. Files that were copied
/// by macOS have decomposed names.
pub(super) fn composed(name: &str) -> Cow<'_, str> {
    match is_nfc_quick(name.chars()) {
        IsNormalized::Yes => Cow::Borrowed(name),
        _ => Cow::Owned(name.nfc().collect()),
    }
}

/// Reads `x2`, `2x` or `x04` as a scale.
fn scale_word(word: &str) -> Option<u32> {
    let digits = word.strip_prefix('x').or_else(|| word.strip_suffix('x'))?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        None
    } else {
        digits.parse().ok()
    }
}

/// Reads a word in lower case. `None` if a part of it is not understood. `before` is the meaning of
/// the part that is read already.
fn read_word(word: &str, before: Word) -> Option<Word> {
    if word.is_empty() {
        return Some(before);
    }
    if word.len() > LONGEST_WORD {
        return None;
    }
    if before.scale.is_none() {
        // all digits belong to the scale: "lrx2", "lr2x", "x2lr"
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let length = match word.strip_prefix('x') {
            Some(rest) => 1 + digits(rest),
            None => digits(word) + usize::from(word[digits(word)..].starts_with('x')),
        };
        if let Some(scale) = word.get(..length).and_then(scale_word)
            && let Some(found) = read_word(
                &word[length..],
                Word {
                    scale: Some(scale),
                    ..before
                },
            )
        {
            return Some(found);
        }
    }
    let token = |words: &[&str], now: Word| {
        words
            .iter()
            .find_map(|w| read_word(word.strip_prefix(w)?, now))
    };
    if before.side.is_none() {
        let sides = token(
            &HR_WORDS,
            Word {
                side: Some(Side::Hr),
                ..before
            },
        )
        .filter(|w| !w.method);
        if let Some(found) = sides.or_else(|| {
            token(
                &LQ_WORDS,
                Word {
                    side: Some(Side::Lq),
                    ..before
                },
            )
        }) {
            return Some(found);
        }
    }
    // a cut may have a number: "mod12"
    let cut = CUTS.iter().find_map(|w| {
        read_word(
            word.strip_prefix(w)?
                .trim_start_matches(|c: char| c.is_ascii_digit()),
            before,
        )
    });
    cut.or_else(|| {
        token(
            &METHODS,
            Word {
                method: true,
                ..before
            },
        )
    })
}

/// Splits a name into words in lower case: runs of letters and digits, split also where a capital
/// follows a small letter (`trainHR`).
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut small_before = false;
    // in decomposed Unicode an accent is a character of its own; it belongs to the letter before it
    for c in name.chars().filter(|c| !is_combining_mark(*c)) {
        if !c.is_alphanumeric() || (small_before && c.is_uppercase()) {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        small_before = c.is_lowercase();
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// The meaning of a folder's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Label {
    /// The side it is named for.
    pub side: Option<Side>,
    /// Whether the side counts only beside a folder of LQ images: `original`.
    pub weak: bool,
    /// The scale it is named for.
    pub scale: Option<u32>,
    /// The words before that of the side: "div2k train " in DIV2K_train_LR_bicubic.
    pub prefix: String,
}

/// Interprets a folder's name.
pub(super) fn label(name: &str) -> Label {
    let words = words(name);
    let mut label = Label::default();
    let mut i = 0;
    while i < words.len() {
        let (word, next) = (&words[i], words.get(i + 1).map(String::as_str));
        let joined = next
            .filter(|next| TWO_PARTS.contains(&(word.as_str(), next)))
            .map(|next| format!("{word}{next}"));
        let said =
            read_word(joined.as_deref().unwrap_or(word), Word::default()).unwrap_or_default();
        let number = next
            .filter(|_| matches!(word.as_str(), "srf" | "scale"))
            .and_then(|n| n.parse().ok());
        let weak = said.side.is_none() && WEAK_HR_WORDS.contains(&word.as_str());
        label.scale = label.scale.or(said.scale).or(number);
        if label.side.is_none() || (label.weak && said.side.is_some()) {
            match said.side.or(weak.then_some(Side::Hr)) {
                Some(side) => (label.side, label.weak) = (Some(side), weak),
                None => label.prefix.extend([word.as_str(), " "]),
            }
        }
        i += if joined.is_some() || number.is_some() {
            2
        } else {
            1
        };
    }
    label
}

/// The meaning of the words at the end of a stem, and the stem without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending<'a> {
    /// The name up to these words, with its folders.
    pub key: &'a str,
    /// The side they name.
    pub side: Option<Side>,
    /// The scale they name.
    pub scale: Option<u32>,
}

/// Returns every way to read the end of a name (a path below the listed folder, without the file's
/// ending), from no word to all words that are understood. For `0001_LR_x2` the keys are
/// `0001_LR_x2`, `0001_LR` and `0001`; the shortest key comes last.
pub(super) fn endings(name: &str) -> Vec<Ending<'_>> {
    let mut found = vec![Ending {
        key: name,
        side: None,
        scale: None,
    }];
    let first = name.rfind('/').map_or(0, |at| at + 1);
    while found.len() <= MAX_WORDS {
        let Some(&last) = found.last() else { break };
        let Some((key, word)) = strip_word(last.key, first) else {
            break;
        };
        // a second side or scale belongs to the image's own name
        if (last.side.is_some() && word.side.is_some())
            || (last.scale.is_some() && word.scale.is_some())
        {
            break;
        }
        found.push(Ending {
            key,
            side: last.side.or(word.side),
            scale: last.scale.or(word.scale),
        });
    }
    found
}

/// The shortest reading whose last removed word names a side or a scale: `0001` for
/// `0001_LR_bicubic_x2`, but `0001_blur` for `0001_blur_HR`, since "blur" alone names neither.
pub(super) fn side_or_scale_end(name: &str) -> Ending<'_> {
    let found = endings(name);
    let adds = |at: &usize| {
        (found[*at].side, found[*at].scale) != (found[at - 1].side, found[at - 1].scale)
    };
    let last = (1..found.len()).rev().find(adds).unwrap_or(0);
    found.get(last).copied().unwrap_or(Ending {
        key: name,
        side: None,
        scale: None,
    })
}

/// Splits the last word off a name. A word follows a separator (`_LR`), a digit (`0001x2`) or, in
/// capitals, a small letter (`babyLR`).
fn strip_word(name: &str, first: usize) -> Option<(&str, Word)> {
    let stem = &name[first..];
    let start = stem.rfind(SEPARATORS).map_or(0, |at| at + 1);
    let last = &stem[start..];
    let key_before = |at: usize| {
        Some(&name[..first + stem[..at].trim_end_matches(SEPARATORS).len()])
            .filter(|key| key.len() > first)
    };
    let read = |at: usize| {
        Some((
            key_before(at)?,
            read_word(&stem[at..].to_lowercase(), Word::default())?,
        ))
    };
    if last.is_empty() {
        return None;
    }
    if let Some(found) = read(start) {
        return Some(found);
    }
    // a word of two parts, such as "low_res", contains a separator
    let head = stem[..start].trim_end_matches(SEPARATORS);
    let head_start = head.rfind(SEPARATORS).map_or(0, |at| at + 1);
    let (head, tail) = (head[head_start..].to_lowercase(), last.to_lowercase());
    if TWO_PARTS.contains(&(head.as_str(), tail.as_str())) {
        return Some((
            key_before(head_start)?,
            read_word(&format!("{head}{tail}"), Word::default())?,
        ));
    }
    let mut before: Option<char> = None;
    for (at, c) in last.char_indices() {
        let begins = before.is_some_and(|b| {
            (b.is_ascii_digit() && c.is_alphabetic()) || (b.is_lowercase() && c.is_uppercase())
        });
        if begins && let Some(found) = read(start + at) {
            return Some(found);
        }
        before = Some(c);
    }
    None
}

/// Returns the name without a scale that follows a small letter directly (`babyx2`): the only word
/// that may do so.
pub(super) fn without_glued_scale(name: &str, scale: u32) -> Option<&str> {
    let suffix = format!("x{scale}");
    let at = name.len().checked_sub(suffix.len())?;
    let ends = name.is_char_boundary(at) && name[at..].eq_ignore_ascii_case(&suffix);
    ends.then(|| name[..at].trim_end_matches(['_', '-']))
}

/// The scale in the middle of a name, as in data sets for "SRF" 2 to 4: `img_001_SRF_2_HR`.
pub(super) fn scale_within(name: &str) -> Option<u32> {
    let stem = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let (_, rest) = stem.split_once("srf_")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Whether a file was named by `paragon shards extract`: `00000012_hr`, `00000012_lq`.
pub(super) fn is_extracted(name: &str) -> bool {
    let stem = name.rsplit('/').next().unwrap_or(name);
    let number = stem
        .strip_suffix("_hr")
        .or_else(|| stem.strip_suffix("_lq"));
    number.is_some_and(|n| n.len() >= 8 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Name of the photograph that a tile was cut from (`0001` for `0001_s012`); other names are
/// returned as they are. Common tools that cut images into tiles number them in this way.
pub fn photograph(name: &str) -> &str {
    let Some((photo, number)) = name.rsplit_once("_s") else {
        return name;
    };
    let is_tile = number.len() >= 3
        && number.bytes().all(|b| b.is_ascii_digit())
        && !photo.is_empty()
        && !photo.ends_with('/');
    if is_tile { photo } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compounds_are_sides_and_ordinary_words_are_none() {
        let hr = [
            "hr",
            "GT",
            "GTmod12",
            "HRx2",
            "HR_x3",
            "gt_mod24",
            "DIV2K_train_HR",
            "high_res",
            "ground truth",
            "trainHR",
            "HR-cropped",
        ];
        let lq = [
            "lr",
            "LRbicx2",
            "LRbicx4",
            "bicLRx3",
            "LRx2",
            "lr2x",
            "x2LR",
            "lr_bicubic",
            "LR_unknown",
            "low-res",
            "validLR",
            "LRBI",
        ];
        hr.iter()
            .for_each(|name| assert_eq!(label(name).side, Some(Side::Hr), "{name}"));
        lq.iter()
            .for_each(|name| assert_eq!(label(name).side, Some(Side::Lq), "{name}"));
        for name in [
            "hrvatska",
            "lrigby",
            "lrs",
            "chr",
            "gtr",
            "hrbicubic",
            "photos",
            "x2",
            "image_SRF_2",
            "lowlands",
            "high",
            "hr2020",
        ] {
            assert_eq!(label(name).side, None, "{name}");
        }
        assert!(label("original").weak && !label("original_HR").weak);
        for (name, scale) in [
            ("LRbicx2", 2),
            ("lr3x", 3),
            ("X04", 4),
            ("image_SRF_2", 2),
            ("scale_8", 8),
            ("LR_bicubic_X4", 4),
        ] {
            assert_eq!(label(name).scale, Some(scale), "{name}");
        }
        assert_eq!(label("DIV2K_valid_LR_bicubic").prefix, "div2k valid ");
        assert_eq!(label("GTmod12").scale, None);
    }

    #[test]
    fn the_end_of_a_stem_is_read_word_by_word() {
        let shortest = |name| {
            endings(name)
                .last()
                .map(|e| (e.key.to_string(), e.side, e.scale))
                .unwrap()
        };
        for (name, key, side, scale) in [
            ("0001x2", "0001", None, Some(2)),
            ("a/0001_bicLRx2", "a/0001", Some(Side::Lq), Some(2)),
            ("0001_LR", "0001", Some(Side::Lq), None),
            ("0001-HR", "0001", Some(Side::Hr), None),
            ("baby_LRBI_x4", "baby", Some(Side::Lq), Some(4)),
            ("0001_LR_bicubic_x2", "0001", Some(Side::Lq), Some(2)),
            ("babyLR", "baby", Some(Side::Lq), None),
            ("0001_low_res", "0001", Some(Side::Lq), None),
            ("hr", "hr", None, None),
            ("lr/x2", "lr/x2", None, None),
            ("zagreb_hrvatska", "zagreb_hrvatska", None, None),
            ("Zürich_東京_lq", "Zürich_東京", Some(Side::Lq), None),
            ("e\u{301}_HR", "e\u{301}", Some(Side::Hr), None),
            ("photo (1)_lr", "photo (1)", Some(Side::Lq), None),
            ("c++_x2", "c", None, Some(2)),
        ] {
            assert_eq!(shortest(name), (key.to_string(), side, scale), "{name}");
        }
    }

    #[test]
    fn words_of_the_image_itself_stay_in_its_key() {
        for (name, key) in [
            ("0001_LR_bicubic_x2", "0001"),
            ("0001_blur_HR", "0001_blur"),
            ("0001_blur", "0001_blur"),
        ] {
            assert_eq!(side_or_scale_end(name).key, key, "{name}");
        }
    }

    #[test]
    fn tiles_are_told_from_other_names() {
        assert_eq!(photograph("a/0001_s012"), "a/0001");
        for name in ["0001", "0001_s1", "x_sab1", "a/_s001", "boat_sail"] {
            assert_eq!(photograph(name), name);
        }
        assert!(
            is_extracted("x/00000000_hr")
                && is_extracted("123456789_lq")
                && !is_extracted("0001_hr")
                && !is_extracted("00000000")
        );
    }
}
