//! Converts decoded samples to 8-bit sRGB: drops alpha, repeats grey, and converts the colours if
//! the file has other ones (an ICC profile, or the cICP, gAMA and cHRM chunks of a PNG). Depends on
//! moxcms. Promises that samples in sRGB (or without a usable profile) keep their values, apart
//! from rounding 16 to 8 bits.

use super::buffers::zeroed;
use super::note::Note;
use super::thumbnail::Thumbnail;
use anyhow::{Result, bail};
use moxcms::{
    Chromaticity, CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, DataColorSpace,
    Layout, MatrixCoefficients,
};
use moxcms::{
    ProfileText, ToneReprCurve, TransferCharacteristics, TransformExecutor, TransformOptions, XyY,
};
use std::cell::RefCell;
use std::sync::Arc;

/// A profile that changes no colour by more than this (8-bit values) counts as sRGB: programs round
/// the curve and the primaries of sRGB in many ways, and converting would only add rounding errors.
const SRGB_TOLERANCE: u8 = 2;
/// Grid points along a side of the colour cube on which a profile is compared with sRGB.
const GRID: u32 = 9;
/// Pixels that are converted at a time, to keep the second buffer small.
const CHUNK: usize = 1 << 16;

/// Interleaved samples from the decoder.
pub(super) enum Samples {
    /// 8 bits a channel.
    Plain(Vec<u8>),
    /// 16 bits a channel, native byte order.
    Deep(Vec<u16>),
}

/// What a file says about its colours. In a PNG with several chunks, cICP takes precedence over
/// iCCP, then sRGB, then gAMA and cHRM.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ColourTag {
    /// Nothing, or that they are sRGB.
    Nothing,
    /// An ICC profile.
    Profile(Vec<u8>),
    /// Numbers of ITU-T H.273.
    Cicp { primaries: u8, transfer: u8 },
    /// PNG's gAMA (the exponent of the file) and cHRM (x and y of white, red, green and blue), all
    /// x 100,000.
    Gamma {
        gamma: Option<u32>,
        primaries: Option<[u32; 8]>,
    },
    /// Something that cannot be used, and why.
    Unusable(String),
}

/// 8-bit sRGB samples, a note if the colours were converted or a profile was ignored, and, if they
/// were converted, a thumbnail of the unconverted colours.
pub(super) type SrgbSamples = (Vec<u8>, Option<Note>, Option<Thumbnail>);

/// Converts the samples of an image of `size` (`[height, width, channels]`; 1 grey, 2 grey and
/// alpha, 3 RGB, 4 RGBA) to 8-bit sRGB (`[height, width, 3]`).
///
/// # Errors
/// HDR colours.
pub(super) fn to_srgb(
    samples: Samples,
    channels: usize,
    size: (u32, u32),
    tagged: &ColourTag,
) -> Result<SrgbSamples> {
    let grey = channels <= 2;
    let failed = || {
        Some(Note::ProfileIgnored(
            "converting from its colour profile failed".into(),
        ))
    };
    let short = |data: &[u8]| Thumbnail::new(data, if grey { 1 } else { 3 }, size.0 as usize);
    Ok(match samples {
        Samples::Plain(data) => {
            let data = without_alpha(data, channels);
            match lookup(tagged, grey, false) {
                ColourConversion::Plain(transform, name) => match apply(&*transform, &data, grey) {
                    Some(converted) => (converted, Some(Note::Profile(name)), Some(short(&data))),
                    None => (repeat_grey(data, grey), failed(), None),
                },
                ColourConversion::Refused(why) => bail!(why),
                ColourConversion::Unusable(why) => (
                    repeat_grey(data, grey),
                    Some(Note::ProfileIgnored(why)),
                    None,
                ),
                _ => (repeat_grey(data, grey), None, None),
            }
        }
        Samples::Deep(data) => {
            let data = without_alpha(data, channels);
            match lookup(tagged, grey, true) {
                ColourConversion::Deep(transform, name) => match apply(&*transform, &data, grey) {
                    Some(converted) => (
                        round(&converted),
                        Some(Note::Profile(name)),
                        Some(short(&round(&data))),
                    ),
                    None => (repeat_grey(round(&data), grey), failed(), None),
                },
                ColourConversion::Refused(why) => bail!(why),
                ColourConversion::Unusable(why) => (
                    repeat_grey(round(&data), grey),
                    Some(Note::ProfileIgnored(why)),
                    None,
                ),
                _ => (repeat_grey(round(&data), grey), None, None),
            }
        }
    })
}

/// Converts 16-bit samples as [`to_srgb`] does, without rounding them to 8 bits.
///
/// # Errors
/// HDR colours.
pub(super) fn to_deep_srgb(
    data: Vec<u16>,
    channels: usize,
    tagged: &ColourTag,
) -> Result<Vec<u16>> {
    let grey = channels <= 2;
    let data = without_alpha(data, channels);
    match lookup(tagged, grey, true) {
        ColourConversion::Deep(transform, _) => {
            // where the transform fails, the note of `to_srgb` says so
            Ok(apply(&*transform, &data, grey).unwrap_or_else(|| repeat_grey(data, grey)))
        }
        ColourConversion::Refused(why) => bail!(why),
        _ => Ok(repeat_grey(data, grey)),
    }
}

/// Returns the last of two or four channels as 8 bits; `None` if there is no alpha.
///
/// # Errors
/// Too little memory.
pub(super) fn alpha_of(samples: &Samples, channels: usize) -> Result<Option<Vec<u8>>> {
    if !channels.is_multiple_of(2) {
        return Ok(None);
    }
    let pixels = match samples {
        Samples::Plain(data) => data.len() / channels,
        Samples::Deep(data) => data.len() / channels,
    };
    let mut alpha = zeroed::<u8>(pixels, "pixels")?;
    match samples {
        Samples::Plain(data) => alpha
            .iter_mut()
            .zip(data.chunks_exact(channels))
            .for_each(|(to, from)| *to = from[channels - 1]),
        Samples::Deep(data) => alpha
            .iter_mut()
            .zip(data.chunks_exact(channels))
            .for_each(|(to, from)| *to = to_eight(from[channels - 1])),
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

fn repeat_grey<T: Copy>(data: Vec<T>, grey: bool) -> Vec<T> {
    if grey {
        data.iter().flat_map(|&v| [v, v, v]).collect()
    } else {
        data
    }
}

/// Transforms grey or RGB to RGB. `None` if the transform fails.
fn apply<T: Copy + Default>(
    transform: &(dyn TransformExecutor<T> + Send + Sync),
    data: &[T],
    grey: bool,
) -> Option<Vec<T>> {
    let channels = if grey { 1 } else { 3 };
    let mut out = vec![T::default(); data.len() / channels * 3];
    for (from, to) in data.chunks(CHUNK * channels).zip(out.chunks_mut(CHUNK * 3)) {
        transform.transform(from, to).ok()?;
    }
    Some(out)
}

/// How the colours are converted.
#[derive(Clone)]
enum ColourConversion {
    /// They are sRGB.
    Keep,
    Unusable(String),
    /// The image cannot be brought to 8-bit sRGB.
    Refused(String),
    Plain(Arc<dyn TransformExecutor<u8> + Send + Sync>, String),
    Deep(Arc<dyn TransformExecutor<u16> + Send + Sync>, String),
}

/// What a conversion depends on: the tag of the file, whether it is grey, whether it has 16 bits.
type Key = (ColourTag, bool, bool);

thread_local! {
    /// The last conversion: images of one collection mostly have the same profile, and building a
    /// transform takes as long as decoding a small image.
    static LAST_CONVERSION: RefCell<Option<(Key, ColourConversion)>> = const { RefCell::new(None) };
}

fn lookup(tagged: &ColourTag, grey: bool, deep: bool) -> ColourConversion {
    match tagged {
        ColourTag::Nothing => return ColourConversion::Keep,
        ColourTag::Unusable(why) => return ColourConversion::Unusable(why.clone()),
        _ => {}
    }
    let known = LAST_CONVERSION.with_borrow(|last| match last {
        Some(((t, g, d), verdict)) if t == tagged && *g == grey && *d == deep => {
            Some(verdict.clone())
        }
        _ => None,
    });
    known.unwrap_or_else(|| {
        let verdict = conversion_for(tagged, grey, deep).unwrap_or_else(ColourConversion::Unusable);
        LAST_CONVERSION.set(Some(((tagged.clone(), grey, deep), verdict.clone())));
        verdict
    })
}

fn conversion_for(
    tagged: &ColourTag,
    grey: bool,
    deep: bool,
) -> std::result::Result<ColourConversion, String> {
    let (profile, name) = match tagged {
        ColourTag::Profile(bytes) => {
            let profile = ColorProfile::new_from_slice(bytes)
                .map_err(|e| format!("its colour profile cannot be read ({e})"))?;
            let name = profile_name(&profile);
            (profile, name)
        }
        ColourTag::Cicp {
            primaries,
            transfer,
        } => {
            let name = format!("cICP {primaries}/{transfer}");
            (profile_of_cicp(*primaries, *transfer, grey)?, name)
        }
        ColourTag::Gamma { gamma, primaries } => {
            let name = match (gamma, primaries) {
                (Some(gamma), None) => format!("gAMA {:.5}", f64::from(*gamma) / 1e5),
                (Some(gamma), Some(_)) => format!("gAMA {:.5} and cHRM", f64::from(*gamma) / 1e5),
                _ => "cHRM".to_string(),
            };
            (profile_of_gamma(*gamma, *primaries, grey)?, name)
        }
        ColourTag::Nothing => return Ok(ColourConversion::Keep),
        ColourTag::Unusable(why) => return Err(why.clone()),
    };
    if let Some(cicp) = &profile.cicp {
        match cicp.transfer_characteristics {
            TransferCharacteristics::Smpte2084 => return Ok(ColourConversion::Refused(hdr("PQ"))),
            TransferCharacteristics::Hlg => return Ok(ColourConversion::Refused(hdr("HLG"))),
            _ => {}
        }
    }
    let layout = match (profile.color_space, grey) {
        (DataColorSpace::Rgb, false) => Layout::Rgb,
        (DataColorSpace::Gray, true) => Layout::Gray,
        // a grey image in an RGB space: equal channels stay almost equal, so the image stays grey
        (DataColorSpace::Rgb, true) => return Ok(ColourConversion::Keep),
        (space, _) => {
            let pixels = if grey { "grey" } else { "RGB" };
            return Err(format!(
                "its colour profile \"{name}\" is for {space:?} colours, the pixels are {pixels}"
            ));
        }
    };
    let srgb = ColorProfile::new_srgb();
    let options = TransformOptions {
        prefer_fixed_point: false,
        ..TransformOptions::default()
    };
    let unusable = |e| format!("its colour profile \"{name}\" cannot be converted ({e})");
    let plain = profile
        .create_transform_8bit(layout, &srgb, Layout::Rgb, options)
        .map_err(unusable)?;
    if is_identity(&*plain, grey) {
        return Ok(ColourConversion::Keep);
    }
    if !deep {
        return Ok(ColourConversion::Plain(plain, name));
    }
    let transform = profile
        .create_transform_16bit(layout, &srgb, Layout::Rgb, options)
        .map_err(unusable)?;
    Ok(ColourConversion::Deep(transform, name))
}

/// The error for an HDR image, whose brightness 8-bit sRGB cannot hold.
pub(super) fn hdr(curve: &str) -> String {
    format!("an HDR image (BT.2100 {curve}); convert it to sRGB first")
}

/// Makes the profile that a cICP chunk describes.
fn profile_of_cicp(
    primaries: u8,
    transfer: u8,
    grey: bool,
) -> std::result::Result<ColorProfile, String> {
    let unknown = || {
        format!("its cICP chunk names colours {primaries}/{transfer}, which cannot be converted")
    };
    let color_primaries = CicpColorPrimaries::try_from(primaries).map_err(|_| unknown())?;
    let transfer_characteristics =
        TransferCharacteristics::try_from(transfer).map_err(|_| unknown())?;
    let curve = ToneReprCurve::try_from(transfer_characteristics).map_err(|_| unknown())?;
    if grey {
        return Ok(grey_profile(Some(curve)));
    }
    let matrix_coefficients = MatrixCoefficients::Identity;
    let cicp = CicpProfile {
        color_primaries,
        transfer_characteristics,
        matrix_coefficients,
        full_range: true,
    };
    let mut profile = ColorProfile::new_srgb();
    profile.red_trc = None;
    profile.update_rgb_colorimetry_from_cicp(cicp); // its result does not say whether it worked
    if profile.red_trc.is_some() {
        Ok(profile)
    } else {
        Err(unknown())
    }
}

fn grey_profile(curve: Option<ToneReprCurve>) -> ColorProfile {
    let mut profile = ColorProfile::new_gray_with_gamma(1.0);
    profile.gray_trc = curve;
    profile
}

/// Makes the profile that gAMA and cHRM describe. An exponent near 1/2.2 counts as sRGB, since
/// programs write it for sRGB.
fn profile_of_gamma(
    gamma: Option<u32>,
    primaries: Option<[u32; 8]>,
    grey: bool,
) -> std::result::Result<ColorProfile, String> {
    let mut profile = ColorProfile::new_srgb();
    profile.cicp = None;
    let curve = match gamma {
        None | Some(45_000..=46_000) => profile.red_trc.clone(),
        Some(gamma @ 10_000..=1_000_000) => {
            Some(ToneReprCurve::Parametric(vec![1e5 / gamma as f32]))
        }
        Some(gamma) => {
            return Err(format!(
                "its gAMA chunk holds {:.5}, an exponent out of range",
                f64::from(gamma) / 1e5
            ));
        }
    };
    if grey {
        return Ok(grey_profile(curve));
    }
    if let Some(points) = primaries {
        let [white, red, green, blue] =
            [0, 2, 4, 6].map(|i| (f64::from(points[i]) / 1e5, f64::from(points[i + 1]) / 1e5));
        let inside = |&(x, y): &(f64, f64)| y > 1e-4 && x + y <= 1.0001;
        let area = (red.0 - blue.0) * (green.1 - blue.1) - (green.0 - blue.0) * (red.1 - blue.1);
        if ![white, red, green, blue].iter().all(inside) || area.abs() < 1e-3 {
            return Err("its cHRM chunk holds no possible primaries".into());
        }
        let point = |(x, y): (f64, f64)| Chromaticity {
            x: x as f32,
            y: y as f32,
        };
        let planes = ColorPrimaries {
            red: point(red),
            green: point(green),
            blue: point(blue),
        };
        profile.update_rgb_colorimetry(
            XyY {
                x: white.0,
                y: white.1,
                yb: 1.0,
            },
            planes,
        );
    }
    profile.red_trc.clone_from(&curve);
    profile.green_trc.clone_from(&curve);
    profile.blue_trc = curve;
    Ok(profile)
}

/// Whether a transform keeps every colour of a grid, within [`SRGB_TOLERANCE`].
fn is_identity(transform: &(dyn TransformExecutor<u8> + Send + Sync), grey: bool) -> bool {
    let level = |i: u32| (i * 255 / (GRID - 1)) as u8;
    let points: Vec<u8> = if grey {
        (0..=255).collect()
    } else {
        (0..GRID.pow(3))
            .flat_map(|i| {
                [
                    level(i % GRID),
                    level(i / GRID % GRID),
                    level(i / GRID / GRID),
                ]
            })
            .collect()
    };
    let wanted = repeat_grey(points.clone(), grey);
    apply(transform, &points, grey).is_some_and(|moved| {
        moved
            .iter()
            .zip(&wanted)
            .all(|(a, b)| a.abs_diff(*b) <= SRGB_TOLERANCE)
    })
}

/// The description in a profile, or "unnamed".
fn profile_name(profile: &ColorProfile) -> String {
    let name = match &profile.description {
        Some(ProfileText::PlainString(text)) => text.clone(),
        Some(ProfileText::Localizable(texts)) => {
            texts.first().map(|t| t.value.clone()).unwrap_or_default()
        }
        Some(ProfileText::Description(text)) => text.ascii_string.clone(),
        None => String::new(),
    };
    let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    if name.trim().is_empty() {
        "unnamed".into()
    } else {
        name.trim().into()
    }
}
