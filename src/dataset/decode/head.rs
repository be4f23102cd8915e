//! What stands in an image file beside its pixels: orientation and colours, of every format, read
//! here and not by the decoders, which would inflate or copy them without a bound that matters.
//! Depends on `colour` for what colours can be told. Promises that no more than [`MAX_PROFILE`] +
//! [`MAX_EXIF`] bytes are kept of any file, and that a profile that is there is never dropped
//! without a word.

use super::super::colour::ColourTag;
use super::jpeg::JpegHead;
use super::limits::Limits;
use super::{png, tiff};
use anyhow::Result;
use image::ImageFormat;
use image::metadata::Orientation;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// The largest colour profile that is used, bytes. Those of scanners, with tables, have one or two
/// million.
pub(super) const MAX_PROFILE: usize = 8 << 20;
/// The largest EXIF data that an orientation is looked for in, bytes. A JPEG has 64 KiB at most.
pub(super) const MAX_EXIF: usize = 1 << 20;
/// Copies of a profile at one time: as stored, inflated, read into tables of floats.
const PROFILE_COPIES: u64 = 4;

/// What stands beside the pixels.
pub(in super::super) struct Metadata {
    /// How the stored image is to be turned; damaged EXIF data are no reason to refuse it.
    pub orientation: Orientation,
    /// What the file says about its colours.
    pub colours: ColourTag,
    /// Memory that all this takes while the image is decoded, the decoder's own copies included,
    /// bytes.
    pub bytes: u64,
    /// What the decoder is to see in place of the first `skipped` bytes.
    pub(super) replaced: Vec<u8>,
    pub(super) skipped: u64,
    /// Of a JPEG alone: all up to the header of its first scan.
    pub(super) jpeg: Option<JpegHead>,
}

impl Metadata {
    pub fn new() -> Metadata {
        let (orientation, colours) = (Orientation::NoTransforms, ColourTag::Nothing);
        Metadata {
            orientation,
            colours,
            bytes: 0,
            replaced: Vec::new(),
            skipped: 0,
            jpeg: None,
        }
    }

    /// Reads what stands beside the pixels. Fails where the container is damaged or the header is
    /// beyond the limits.
    pub fn read(
        file: &mut (impl BufRead + Seek),
        format: ImageFormat,
        limits: &Limits,
    ) -> Result<Metadata> {
        file.seek(SeekFrom::Start(0))?;
        match format {
            ImageFormat::Png => png::read(file),
            ImageFormat::Jpeg => {
                let jpeg = JpegHead::read(file)?;
                jpeg.check(limits)?;
                Ok(jpeg.into_metadata())
            }
            ImageFormat::Tiff => tiff::read(file),
            ImageFormat::WebP => webp(file),
            _ => bmp(file),
        }
    }

    /// Takes the orientation from EXIF data, those of a JPEG with their name in front.
    pub fn set_exif(&mut self, exif: &[u8]) {
        self.bytes += exif.len() as u64;
        self.orientation = Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms);
    }

    /// Takes a colour profile.
    pub fn set_profile(&mut self, profile: Vec<u8>) {
        self.bytes += PROFILE_COPIES * profile.len() as u64;
        self.colours = ColourTag::Profile(profile);
    }
}

/// Why a profile is not used.
pub(super) fn too_large(bytes: u64) -> ColourTag {
    ColourTag::Unusable(format!(
        "its colour profile has {bytes} bytes, more than the {} million that are read",
        MAX_PROFILE / 1_000_000
    ))
}

/// Reads `length` bytes, or tells that the file ends before. Errors of the system go on.
pub(super) fn take(file: &mut impl Read, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    Read::by_ref(file)
        .take(length as u64)
        .read_to_end(&mut data)?;
    Ok((data.len() == length).then_some(data))
}

/// The chunks of a WebP file (RIFF) with a profile and EXIF data. Everything else is left to the
/// decoder.
fn webp(file: &mut (impl BufRead + Seek)) -> Result<Metadata> {
    let mut head = Metadata::new();
    file.seek(SeekFrom::Start(12))?;
    if take(file, 4)?.is_none_or(|kind| kind != b"VP8X") {
        return Ok(head); // the simple form has nothing but pixels
    }
    file.seek(SeekFrom::Start(12))?;
    while let Some(start) = take(file, 8)? {
        let length = u32::from_le_bytes([start[4], start[5], start[6], start[7]]);
        let (size, padded) = (length as usize, i64::from(length) + i64::from(length % 2));
        let wanted = match &start[..4] {
            b"ICCP" if matches!(head.colours, ColourTag::Nothing) => {
                if size > MAX_PROFILE {
                    head.colours = too_large(length.into());
                }
                size <= MAX_PROFILE
            }
            b"EXIF" => size <= MAX_EXIF,
            _ => false,
        };
        if !wanted {
            file.seek_relative(padded)?;
            continue;
        }
        let data = take(file, size)?;
        file.seek_relative(padded - size as i64)?;
        match data {
            Some(data) if &start[..4] == b"ICCP" => head.set_profile(data),
            Some(data) if head.orientation == Orientation::NoTransforms => head.set_exif(&data),
            Some(_) => {}
            None if &start[..4] == b"ICCP" => {
                head.colours = ColourTag::Unusable("its colour profile is cut short".into())
            }
            None => {}
        }
    }
    Ok(head)
}

/// The colours of a BMP, which stand in headers of version 4 and 5.
fn bmp(file: &mut (impl BufRead + Seek)) -> Result<Metadata> {
    const FILE_HEADER: u64 = 14;
    let mut head = Metadata::new();
    file.seek(SeekFrom::Start(FILE_HEADER))?;
    let mut header = Vec::new();
    Read::by_ref(file).take(124).read_to_end(&mut header)?;
    let word = |at: usize| {
        header
            .get(at..at + 4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let Some(size @ 108..) = word(0) else {
        return Ok(head);
    };
    let kind = word(56).map(u32::to_be_bytes).unwrap_or_default();
    match &kind {
        b"MBED" if size >= 124 => {
            let (at, length) = (word(112).unwrap_or(0), word(116).unwrap_or(0) as usize);
            if length > MAX_PROFILE {
                head.colours = too_large(length as u64);
                return Ok(head);
            }
            file.seek(SeekFrom::Start(FILE_HEADER + u64::from(at)))?;
            match take(file, length)? {
                Some(profile) => head.set_profile(profile),
                None => {
                    head.colours = ColourTag::Unusable("its colour profile is cut short".into())
                }
            }
        }
        b"LINK" => {
            head.colours = ColourTag::Unusable("its colour profile is in another file".into())
        }
        [0, 0, 0, 0] => {
            // primaries as XYZ in 2.30 bits, exponents in 16.16
            let values: Vec<f64> = (0..9)
                .map(|i| f64::from(word(60 + 4 * i).unwrap_or(0)) / f64::from(1u32 << 30))
                .collect();
            let gamma = f64::from(word(96).unwrap_or(0)) / 65536.0;
            let plane = |c: &[f64]| [c[0] / (c[0] + c[1] + c[2]), c[1] / (c[0] + c[1] + c[2])];
            let given: Vec<f64> = values.chunks_exact(3).flat_map(plane).collect();
            let usual = [0.64, 0.33, 0.3, 0.6, 0.15, 0.06];
            let empty = values.iter().all(|&v| v == 0.0);
            let near = empty || given.iter().zip(usual).all(|(a, b)| (a - b).abs() < 0.01);
            if !near
                || !(gamma == 0.0 || (0.44..0.46).contains(&gamma) || (2.1..2.5).contains(&gamma))
            {
                head.colours = ColourTag::Unusable("its header gives primaries and an exponent of its own, which are not converted".into());
            }
        }
        _ => {} // sRGB, or whatever the system's is
    }
    Ok(head)
}
