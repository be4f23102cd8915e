//! Brings decoded samples to 8-bit sRGB: alpha dropped, grey repeated, an embedded ICC profile applied where it says
//! something else than sRGB. Depends on moxcms. Promises that samples in sRGB (or without a usable profile) keep their
//! values, but for the rounding from 16 to 8 bits.

use super::decode::{Note, zeroed};
use anyhow::Result;
use moxcms::{ColorProfile, DataColorSpace, Layout, ProfileText, TransformExecutor, TransformOptions};
use std::cell::RefCell;
use std::sync::Arc;

/// A profile that moves no colour by more than this many 8-bit levels is taken for sRGB: makers round its curve and its
/// primaries in many ways, and converting would only add rounding.
const SRGB_TOLERANCE: u8 = 2;
/// Grid points a side of the colour cube on which a profile is compared with sRGB.
const GRID: u32 = 9;
/// Pixels converted at once, to keep the second buffer small.
const CHUNK: usize = 1 << 16;

/// Interleaved samples as they come from the decoder.
pub(super) enum Samples {
    /// 8 bits a channel.
    Plain(Vec<u8>),
    /// 16 bits a channel, native byte order.
    Deep(Vec<u16>),
}

/// 8-bit sRGB from `channels` (1 grey, 2 grey and alpha, 3 RGB, 4 RGBA) interleaved samples, and what was done about the
/// profile.
pub(super) fn to_srgb(samples: Samples, channels: usize, profile: Option<&[u8]>) -> (Vec<u8>, Option<Note>) {
    let grey = channels <= 2;
    let failed = || Some(Note::ProfileIgnored("converting from its colour profile failed".into()));
    match samples {
        Samples::Plain(data) => {
            let data = without_alpha(data, channels);
            match lookup(profile, grey, false) {
                Verdict::Plain(transform, name) => match apply(&*transform, &data, grey) {
                    Some(converted) => (converted, Some(Note::Profile(name))),
                    None => (repeat_grey(data, grey), failed()),
                },
                Verdict::Unusable(why) => (repeat_grey(data, grey), Some(Note::ProfileIgnored(why))),
                _ => (repeat_grey(data, grey), None),
            }
        }
        Samples::Deep(data) => {
            let data = without_alpha(data, channels);
            match lookup(profile, grey, true) {
                Verdict::Deep(transform, name) => match apply(&*transform, &data, grey) {
                    Some(converted) => (round(&converted), Some(Note::Profile(name))),
                    None => (repeat_grey(round(&data), grey), failed()),
                },
                Verdict::Unusable(why) => (repeat_grey(round(&data), grey), Some(Note::ProfileIgnored(why))),
                _ => (repeat_grey(round(&data), grey), None),
            }
        }
    }
}

/// The last of two or four channels as 8 bits, or nothing where there is no alpha.
pub(super) fn alpha_of(samples: &Samples, channels: usize) -> Result<Option<Vec<u8>>> {
    if !channels.is_multiple_of(2) {
        return Ok(None);
    }
    let pixels = match samples {
        Samples::Plain(data) => data.len() / channels,
        Samples::Deep(data) => data.len() / channels,
    };
    let mut alpha = zeroed::<u8>(pixels)?;
    match samples {
        Samples::Plain(data) => alpha.iter_mut().zip(data.chunks_exact(channels)).for_each(|(to, from)| *to = from[channels - 1]),
        Samples::Deep(data) => alpha.iter_mut().zip(data.chunks_exact(channels)).for_each(|(to, from)| *to = to_eight(from[channels - 1])),
    }
    Ok(Some(alpha))
}

/// x * 255 / 65535, rounded to the nearest.
fn to_eight(x: u16) -> u8 {
    ((u32::from(x) + 128) / 257) as u8
}

fn round(data: &[u16]) -> Vec<u8> {
    data.iter().map(|&x| to_eight(x)).collect()
}

/// Drops the last of two or four channels, in place.
fn without_alpha<T: Copy>(mut data: Vec<T>, channels: usize) -> Vec<T> {
    if channels.is_multiple_of(2) {
        let kept = channels - 1;
        let pixels = data.len() / channels;
        for i in 0..pixels {
            for c in 0..kept {
                data[i * kept + c] = data[i * channels + c];
            }
        }
        data.truncate(pixels * kept);
    }
    data
}

fn repeat_grey(data: Vec<u8>, grey: bool) -> Vec<u8> {
    if grey { data.iter().flat_map(|&v| [v, v, v]).collect() } else { data }
}

/// RGB from grey or RGB, or nothing where the transform refuses.
fn apply<T: Copy + Default>(transform: &(dyn TransformExecutor<T> + Send + Sync), data: &[T], grey: bool) -> Option<Vec<T>> {
    let channels = if grey { 1 } else { 3 };
    let mut out = vec![T::default(); data.len() / channels * 3];
    for (from, to) in data.chunks(CHUNK * channels).zip(out.chunks_mut(CHUNK * 3)) {
        transform.transform(from, to).ok()?;
    }
    Some(out)
}

/// What to do about a profile.
#[derive(Clone)]
enum Verdict {
    /// There is none, or it is sRGB.
    Keep,
    Unusable(String),
    Plain(Arc<dyn TransformExecutor<u8> + Send + Sync>, String),
    Deep(Arc<dyn TransformExecutor<u16> + Send + Sync>, String),
}

/// What a verdict depends on: the profile's bytes, grey, 16 bits.
type Key = (Vec<u8>, bool, bool);

thread_local! {
    /// The verdict on the last profile: pictures of one collection mostly share theirs, and building a transform takes as
    /// long as decoding a small picture.
    static LAST: RefCell<Option<(Key, Verdict)>> = const { RefCell::new(None) };
}

fn lookup(profile: Option<&[u8]>, grey: bool, deep: bool) -> Verdict {
    let Some(bytes) = profile else { return Verdict::Keep };
    let known = LAST.with_borrow(|last| match last {
        Some(((b, g, d), verdict)) if b == bytes && *g == grey && *d == deep => Some(verdict.clone()),
        _ => None,
    });
    known.unwrap_or_else(|| {
        let verdict = judge(bytes, grey, deep).unwrap_or_else(Verdict::Unusable);
        LAST.set(Some(((bytes.to_vec(), grey, deep), verdict.clone())));
        verdict
    })
}

fn judge(bytes: &[u8], grey: bool, deep: bool) -> std::result::Result<Verdict, String> {
    let profile = ColorProfile::new_from_slice(bytes).map_err(|e| format!("its colour profile cannot be read ({e})"))?;
    let name = profile_name(&profile);
    let layout = match (profile.color_space, grey) {
        (DataColorSpace::Rgb, false) => Layout::Rgb,
        (DataColorSpace::Gray, true) => Layout::Gray,
        // A grey picture in an RGB space: equal channels stay near equal, and the picture stays grey.
        (DataColorSpace::Rgb, true) => return Ok(Verdict::Keep),
        (space, _) => {
            let pixels = if grey { "grey" } else { "RGB" };
            return Err(format!("its colour profile \"{name}\" is for {space:?} colours, the pixels are {pixels}"));
        }
    };
    let srgb = ColorProfile::new_srgb();
    let options = TransformOptions { prefer_fixed_point: false, ..TransformOptions::default() };
    let unusable = |e| format!("its colour profile \"{name}\" cannot be converted ({e})");
    let plain = profile.create_transform_8bit(layout, &srgb, Layout::Rgb, options).map_err(unusable)?;
    if is_identity(&*plain, grey) {
        return Ok(Verdict::Keep);
    }
    if !deep {
        return Ok(Verdict::Plain(plain, name));
    }
    let transform = profile.create_transform_16bit(layout, &srgb, Layout::Rgb, options).map_err(unusable)?;
    Ok(Verdict::Deep(transform, name))
}

/// Whether a transform leaves every colour of a grid where it is, within [`SRGB_TOLERANCE`].
fn is_identity(transform: &(dyn TransformExecutor<u8> + Send + Sync), grey: bool) -> bool {
    let level = |i: u32| (i * 255 / (GRID - 1)) as u8;
    let points: Vec<u8> = if grey {
        (0..=255).collect()
    } else {
        (0..GRID.pow(3)).flat_map(|i| [level(i % GRID), level(i / GRID % GRID), level(i / GRID / GRID)]).collect()
    };
    let wanted = repeat_grey(points.clone(), grey);
    apply(transform, &points, grey).is_some_and(|moved| moved.iter().zip(&wanted).all(|(a, b)| a.abs_diff(*b) <= SRGB_TOLERANCE))
}

/// The description a profile carries, or a word for "none".
fn profile_name(profile: &ColorProfile) -> String {
    let name = match &profile.description {
        Some(ProfileText::PlainString(text)) => text.clone(),
        Some(ProfileText::Localizable(texts)) => texts.first().map(|t| t.value.clone()).unwrap_or_default(),
        Some(ProfileText::Description(text)) => text.ascii_string.clone(),
        None => String::new(),
    };
    let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    if name.trim().is_empty() { "unnamed".into() } else { name.trim().into() }
}
