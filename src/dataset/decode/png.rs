//! Reads the chunks of a PNG before its pixels. Colours and orientation are read here; the decoder
//! sees only the chunks that it needs for the pixels. Depends on fdeflate. Promises that a
//! compressed profile is not inflated beyond [`MAX_PROFILE`].

use super::super::colour::{ColourTag, hdr};
use super::NotSupported;
use super::head::{MAX_EXIF, MAX_PROFILE, Metadata, take, too_large};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, Seek};

/// Bytes of a PNG signature.
const SIGNATURE: usize = 8;
/// Chunks that the decoder needs have at most 768 bytes (a palette). Longer ones are left to the
/// decoder, which refuses them.
const MAX_NEEDED: usize = 4096;

/// Colour chunks; each takes precedence over those after it (PNG, third edition).
#[derive(Default)]
struct Colours {
    cicp: Option<ColourTag>,
    icc: Option<ColourTag>,
    srgb: bool,
    gamma: Option<u32>,
    primaries: Option<[u32; 8]>,
}

/// Reads the chunks up to the first one with pixels.
pub(super) fn read(file: &mut (impl BufRead + Seek)) -> Result<Metadata> {
    const SHORT: &str = "the PNG data are cut short; fetch the file again";
    let mut head = Metadata::new();
    let mut colours = Colours::default();
    head.replaced = take(file, SIGNATURE)?.context(SHORT)?;
    head.skipped = SIGNATURE as u64;
    loop {
        let start = take(file, 8)?.context(SHORT)?;
        let length = u32::from_be_bytes([start[0], start[1], start[2], start[3]]);
        let size = length as usize;
        let kind = [start[4], start[5], start[6], start[7]];
        let needed = matches!(&kind, b"IHDR" | b"PLTE" | b"tRNS") && size <= MAX_NEEDED;
        if !needed && (kind[0].is_ascii_uppercase() || !kind.iter().all(u8::is_ascii_alphabetic)) {
            break; // pixels, the end, or what the decoder will refuse
        }
        let bound = match &kind {
            b"iCCP" => MAX_PROFILE,
            b"eXIf" => MAX_EXIF,
            b"cICP" | b"sRGB" | b"gAMA" | b"cHRM" => 64,
            _ if needed => MAX_NEEDED,
            _ => 0,
        };
        head.skipped += 12 + u64::from(length);
        if bound == 0 || size > bound {
            if kind == *b"iCCP" && colours.icc.is_none() {
                colours.icc = Some(too_large(length.into()));
            }
            file.seek_relative(i64::from(length) + 4)?;
            continue;
        }
        let data = take(file, size)?.context(SHORT)?;
        let sum = take(file, 4)?.context(SHORT)?;
        if needed {
            head.replaced.extend([start, data, sum].concat());
            continue;
        }
        let whole = crc32fast::hash(&[&kind, data.as_slice()].concat()).to_be_bytes() == sum[..];
        match &kind {
            b"eXIf" if whole => head.set_exif(&data),
            b"iCCP" if colours.icc.is_none() => {
                colours.icc = Some(if whole {
                    profile(&data)
                } else {
                    unusable("its colour profile is damaged (checksum)")
                });
                head.bytes += size as u64;
            }
            b"cICP" if whole && colours.cicp.is_none() => colours.cicp = Some(cicp(&data)?),
            b"sRGB" if whole => colours.srgb = true,
            b"gAMA" if whole && size == 4 => colours.gamma = Some(number(&data, 0)),
            b"cHRM" if whole && size == 32 => {
                colours.primaries = Some(std::array::from_fn(|i| number(&data, i)))
            }
            _ => {}
        }
    }
    match colours.cicp.or(colours.icc) {
        Some(ColourTag::Profile(profile)) => head.set_profile(profile),
        Some(other) => head.colours = other,
        None if colours.srgb => {}
        None if colours.gamma.is_some() || colours.primaries.is_some() => {
            head.colours = ColourTag::Gamma {
                gamma: colours.gamma,
                primaries: colours.primaries,
            };
        }
        None => {}
    }
    Ok(head)
}

fn number(data: &[u8], index: usize) -> u32 {
    data.get(4 * index..4 * index + 4)
        .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn unusable(why: &str) -> ColourTag {
    ColourTag::Unusable(why.into())
}

/// The profile of an iCCP chunk: a name, 0, the method (0), and zlib data.
fn profile(data: &[u8]) -> ColourTag {
    let Some(name) = data.iter().position(|&b| b == 0) else {
        return unusable("its colour profile has no name");
    };
    if data.get(name + 1) != Some(&0) {
        return unusable("its colour profile is compressed in an unknown way");
    }
    match fdeflate::decompress_to_vec_bounded(&data[name + 2..], MAX_PROFILE) {
        Ok(profile) => ColourTag::Profile(profile),
        Err(fdeflate::BoundedDecompressionError::OutputTooLarge { .. }) => {
            ColourTag::Unusable(format!(
                "its colour profile is larger than the {} million bytes that are read",
                MAX_PROFILE / 1_000_000
            ))
        }
        Err(fdeflate::BoundedDecompressionError::DecompressionError { inner }) => {
            ColourTag::Unusable(format!("its colour profile cannot be unpacked ({inner:?})"))
        }
    }
}

/// Reads a cICP chunk (ITU-T H.273).
///
/// # Errors
/// An HDR image: its brightness does not fit 8 bits.
fn cicp(data: &[u8]) -> Result<ColourTag> {
    let &[primaries, transfer, matrix, full_range] = data else {
        return Ok(unusable("its cICP chunk is damaged"));
    };
    match transfer {
        16 => bail!(NotSupported(hdr("PQ"))),
        18 => bail!(NotSupported(hdr("HLG"))),
        _ => {}
    }
    if matrix != 0 || full_range != 1 {
        return Ok(unusable(
            "its cICP chunk says that the numbers are no full-range RGB",
        ));
    }
    Ok(ColourTag::Cicp {
        primaries,
        transfer,
    })
}
