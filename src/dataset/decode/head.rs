//! Reads the metadata of an image file: orientation and colours, for every format. The decoders do
//! not read them, since they would inflate or copy them without a useful bound. Depends on `colour`
//! for its `ColourTag`. Promises that no more than [`MAX_PROFILE`] + [`MAX_EXIF`] bytes of any file
//! are kept, and that a profile which is not used is always reported.

use super::super::colour::ColourTag;
use super::jpeg::JpegHead;
use super::limits::Limits;
use super::{png, tiff};
use anyhow::Result;
use image::ImageFormat;
use image::metadata::Orientation;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// The largest colour profile that is used, bytes. Profiles of scanners, which hold tables, have
/// one or two million.
pub(super) const MAX_PROFILE: usize = 8 << 20;
/// The largest EXIF data that are read for the orientation, bytes. A JPEG has at most 64 KiB.
pub(super) const MAX_EXIF: usize = 1 << 20;
/// Memory of a profile in multiples of its size: as stored, inflated, and as tables of floats.
const PROFILE_COPIES: u64 = 4;

/// The metadata of an image file.
pub(in super::super) struct Metadata {
    /// How the stored image must be turned. Damaged EXIF data count as no orientation.
    pub orientation: Orientation,
    /// What the file says about its colours.
    pub colours: ColourTag,
    /// Memory that the metadata take during decoding, with the decoder's own copies, bytes.
    pub bytes: u64,
    /// The bytes that the decoder sees in place of the first `skipped` bytes of the file.
    pub(super) replaced: Vec<u8>,
    pub(super) skipped: u64,
    /// For a JPEG: everything up to the header of its first scan.
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

    /// Reads the metadata of a file.
    ///
    /// # Errors
    /// A damaged container, a size beyond the limits, an error of the system.
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

    /// Sets the orientation from EXIF data.
    pub fn set_exif(&mut self, exif: &[u8]) {
        self.bytes += exif.len() as u64;
        self.orientation = Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms);
    }

    /// Sets the colour profile.
    pub fn set_profile(&mut self, profile: Vec<u8>) {
        self.bytes += PROFILE_COPIES * profile.len() as u64;
        self.colours = ColourTag::Profile(profile);
    }
}

/// Reports a profile that is too large to be used.
pub(super) fn too_large(bytes: u64) -> ColourTag {
    ColourTag::Unusable(format!(
        "its colour profile has {bytes} bytes, more than the {} million that are read",
        MAX_PROFILE / 1_000_000
    ))
}

/// Reads `length` bytes. `None` if the file ends before; errors of the system are returned.
pub(super) fn take(file: &mut impl Read, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    Read::by_ref(file)
        .take(length as u64)
        .read_to_end(&mut data)?;
    Ok((data.len() == length).then_some(data))
}

/// Reads the profile and the EXIF data from the chunks of a WebP file (RIFF). Everything else is
/// left to the decoder.
fn webp(file: &mut (impl BufRead + Seek)) -> Result<Metadata> {
    let mut head = Metadata::new();
    file.seek(SeekFrom::Start(12))?;
    if take(file, 4)?.is_none_or(|kind| kind != b"VP8X") {
        return Ok(head); // the simple form has no metadata
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

/// Reads the colours of a BMP, which only headers of version 4 and 5 have.
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
