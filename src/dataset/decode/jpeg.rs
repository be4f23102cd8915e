//! Reads JPEG files: the segments before the data, and the pixels. Depends on zune-jpeg and
//! `entropy`. Promises that an image with a missing block is refused, whatever marker its data end
//! with.

use super::NotSupported;
use super::entropy;
use super::head::{MAX_PROFILE, Metadata, too_large};
use super::limits::{CMYK, Limits, MAX_JPEG_HEADER, check_size};
use crate::dataset::colour::ColourTag;
use crate::support::failure;
use anyhow::{Context, Result, ensure};
use image::error::{DecodingError, ImageFormatHint, UnsupportedError, UnsupportedErrorKind};
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageResult};
use std::io::{self, BufRead, Read};
use zune_core::bytestream::{ZByteIoError, ZByteReaderTrait, ZCursor, ZSeekFrom};
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::errors::DecodeErrors;

/// A JPEG file up to the header of its first scan.
pub(super) struct JpegHead {
    pub bytes: Vec<u8>,
    width: u16,
    height: u16,
    components: u8,
    /// Whether the decoder itself can find out if every block is there; see [`PoisonedJpeg`].
    simple: bool,
    /// Whether in one of the tables a code of zeros means a coefficient and not the end of a block.
    zeros_count: bool,
    /// EXIF data, from their own header on.
    exif: Vec<u8>,
    /// Parts of a colour profile: number, count, data.
    profile: Vec<(u8, u8, Vec<u8>)>,
}

impl JpegHead {
    /// Reads the marker segments (ITU T.81, annex B) from the start of `file`.
    ///
    /// # Errors
    /// A damaged header, one that is too long, an error of the system.
    pub fn read(file: &mut impl BufRead) -> Result<JpegHead> {
        const SHORT: &str = "the JPEG header is cut short; fetch the file again";
        let mut file = file.take(MAX_JPEG_HEADER);
        let mut head = JpegHead {
            bytes: vec![0; 2],
            width: 0,
            height: 0,
            components: 0,
            simple: true,
            zeros_count: false,
            exif: Vec::new(),
            profile: Vec::new(),
        };
        file.read_exact(&mut head.bytes).context(SHORT)?;
        loop {
            // like decoders, skip fill bytes and stray bytes before a marker
            let mut marker = [0u8];
            loop {
                let last = marker[0];
                file.read_exact(&mut marker).context(SHORT)?;
                head.bytes.push(marker[0]);
                if last == 0xFF && marker[0] != 0 && marker[0] != 0xFF {
                    break;
                }
            }
            if matches!(marker[0], 0x01 | 0xD0..=0xD8) {
                continue; // these markers have no segment
            }
            ensure!(marker[0] != 0xD9, "the JPEG ends before any image data");
            let mut length = [0u8; 2];
            file.read_exact(&mut length).context(SHORT)?;
            head.bytes.extend_from_slice(&length);
            let length = u64::from(u16::from_be_bytes(length));
            ensure!(
                length >= 2,
                "the JPEG header is damaged: a segment of length {length}"
            );
            let start = head.bytes.len();
            let found = (&mut file).take(length - 2).read_to_end(&mut head.bytes)?;
            ensure!(found as u64 == length - 2, SHORT);
            head.segment(marker[0], start)?;
            if marker[0] == 0xDA {
                return Ok(head);
            }
        }
    }

    /// Reads the last segment so far, which begins at `start`.
    fn segment(&mut self, marker: u8, start: usize) -> Result<()> {
        let segment = &self.bytes[start..];
        match marker {
            0xC4 => {
                let (ones, zeros) = codes_at_the_ends(segment);
                self.simple &= !ones;
                self.zeros_count |= zeros;
            }
            0xC8 | 0xCC => {}
            // SOF0 to SOF15: precision, height, width, components
            0xC0..=0xCF => {
                ensure!(segment.len() >= 6, "the JPEG frame header is damaged");
                self.height = u16::from_be_bytes([segment[1], segment[2]]);
                self.width = u16::from_be_bytes([segment[3], segment[4]]);
                self.components = segment[5];
                self.simple &= matches!(marker, 0xC0 | 0xC1);
            }
            0xDA => self.simple &= segment.first() == Some(&self.components),
            0xDD => self.simple &= matches!(segment, [0, 0]),
            0xE1 if segment.len() > 6 && segment.starts_with(b"Exif\0\0") => {
                self.exif = segment[6..].to_vec()
            }
            0xE2 if segment.len() > 14 && segment.starts_with(b"ICC_PROFILE\0") => {
                self.profile
                    .push((segment[12], segment[13], segment[14..].to_vec()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the header.
    ///
    /// # Errors
    /// No frame header, a size beyond the limits, CMYK.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        ensure!(
            self.components != 0,
            "the JPEG has no frame header before its data"
        );
        check_size(self.width.into(), self.height.into(), limits)?;
        ensure!(self.components != 4, NotSupported(CMYK.into()));
        Ok(())
    }

    /// Returns the metadata. Their size counts twice, since the decoder keeps copies of its own.
    pub fn into_metadata(mut self) -> Metadata {
        let mut head = Metadata::new();
        head.bytes = 2 * self.bytes.len() as u64;
        head.set_exif(&std::mem::take(&mut self.exif));
        let parts = std::mem::take(&mut self.profile);
        if !parts.is_empty() {
            let total: usize = parts.iter().map(|p| p.2.len()).sum();
            match joined(parts) {
                _ if total > MAX_PROFILE => head.colours = too_large(total as u64),
                Some(profile) => head.set_profile(profile),
                None => {
                    head.colours =
                        ColourTag::Unusable("parts of its colour profile are missing".into())
                }
            }
        }
        head.jpeg = Some(self);
        head
    }
}

/// Joins the parts of a profile, given in any order. `None` if one is missing or occurs twice.
fn joined(mut parts: Vec<(u8, u8, Vec<u8>)>) -> Option<Vec<u8>> {
    parts.sort_by_key(|p| p.0);
    let count = parts.len();
    let whole = parts
        .iter()
        .enumerate()
        .all(|(i, p)| usize::from(p.0) == i + 1 && usize::from(p.1) == count);
    whole.then(|| parts.into_iter().flat_map(|p| p.2).collect())
}

/// Whether one of the tables assigns a code of only ones, which T.81 (C.2) forbids; and whether in
/// one of the tables for AC coefficients the code of only zeros means a coefficient. That code is
/// the shortest, and its symbol comes first.
fn codes_at_the_ends(mut segment: &[u8]) -> (bool, bool) {
    let (mut ones, mut zeros) = (false, false);
    while segment.len() >= 18 {
        let counts = &segment[1..17];
        let used: u32 = counts
            .iter()
            .zip(0..)
            .map(|(&n, i)| u32::from(n) << (15 - i))
            .sum();
        ones |= used > 0xFFFF;
        zeros |= segment[0] >= 0x10 && segment[17] & 15 != 0;
        let symbols: usize = counts.iter().map(|&n| usize::from(n)).sum();
        segment = segment.get(17 + symbols..).unwrap_or_default();
    }
    (ones, zeros)
}

/// A decoder that fails if a part of the image is missing.
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    size: (u32, u32),
    grey: bool,
    /// Offset of the data of the first scan.
    scan: usize,
    simple: bool,
    zeros_count: bool,
}

impl<'a> Decoder<'a> {
    /// Makes a decoder for the file that `head` was read from.
    pub fn new(bytes: &'a [u8], head: &JpegHead) -> Self {
        let size = (u32::from(head.width), u32::from(head.height));
        Decoder {
            bytes,
            size,
            grey: head.components == 1,
            scan: head.bytes.len(),
            simple: head.simple,
            zeros_count: head.zeros_count,
        }
    }

    /// Checks the header; `bytes` may end after it.
    ///
    /// # Errors
    /// The decoder does not read this kind of JPEG.
    pub fn check_header(&self) -> ImageResult<()> {
        self.decoder(ZCursor::new(self.bytes), false)
            .decode_headers()
            .map_err(|error| match error {
                DecodeErrors::Unsupported(_) => failed(error),
                other => unsupported(format!(
                    "a header that is unusual or damaged: {}",
                    words(&other)
                )),
            })
    }

    /// Makes a zune-jpeg decoder for the file, or for a modified view of it.
    fn decoder<T: ZByteReaderTrait>(&self, from: T, strict: bool) -> zune_jpeg::JpegDecoder<T> {
        let colours = if self.grey {
            ColorSpace::Luma
        } else {
            ColorSpace::RGB
        };
        let options = DecoderOptions::default()
            .jpeg_set_out_colorspace(colours)
            .set_strict_mode(strict);
        zune_jpeg::JpegDecoder::new_with_options(
            from,
            options.set_max_width(usize::MAX).set_max_height(usize::MAX),
        )
    }

    /// Whether the data contain a hole, a part that was never written: its zeros may by chance
    /// decode to as many blocks as were there.
    fn has_hole(&self) -> bool {
        let data = self
            .bytes
            .get(self.scan..end_of_data(self.bytes, self.scan))
            .unwrap_or_default();
        let half = HOLE / 2; // a run of `HOLE` zeros contains an aligned chunk of half its length
        (0..data.len() / half).any(|i| {
            let zeros = |from: usize, to: usize| {
                data.get(from..to)
                    .is_some_and(|d| d.iter().all(|&b| b == 0))
            };
            let at = i * half;
            zeros(at, at + half)
                && (0..=half).any(|back| at >= back && zeros(at - back, at - back + HOLE))
        })
    }

    /// Decodes with ones after the data, so that decoding fails if a block is missing. It also
    /// fails for some harmless files.
    fn decode_poisoned(&self, out: &mut [u8]) -> bool {
        let mut last = 0;
        let from = PoisonedJpeg::new(self.bytes, self.scan, &mut last);
        let end = from.end;
        let decoded = self.decoder(from, true).decode_into(out).is_ok();
        decoded && end <= last + TOLERANCE
    }
}

/// Converts an error of the decoder to one of the image crate.
fn failed(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::Unsupported(what) => unsupported(format!("{what:?}")),
        other => ImageError::Decoding(DecodingError::new(
            ImageFormatHint::Exact(ImageFormat::Jpeg),
            words(&other),
        )),
    }
}

fn unsupported(what: String) -> ImageError {
    let kind = UnsupportedErrorKind::GenericFeature(what);
    ImageError::Unsupported(UnsupportedError::from_format_and_kind(
        ImageFormat::Jpeg.into(),
        kind,
    ))
}

/// The message of the decoder, without the quotes and line ends around it.
fn words(error: &DecodeErrors) -> String {
    format!("{error:?}")
        .trim_matches(|c: char| c == '"' || c.is_whitespace())
        .to_string()
}

impl ImageDecoder for Decoder<'_> {
    fn dimensions(&self) -> (u32, u32) {
        self.size
    }

    fn color_type(&self) -> ColorType {
        if self.grey {
            ColorType::L8
        } else {
            ColorType::Rgb8
        }
    }

    fn read_image(self, out: &mut [u8]) -> ImageResult<()> {
        if self.simple && self.zeros_count && self.has_hole() {
            let why = format!("{HOLE} zeros in a row, which stand for no image");
            return Err(ImageError::Decoding(DecodingError::new(
                ImageFormatHint::Exact(ImageFormat::Jpeg),
                why,
            )));
        }
        if self.simple && self.decode_poisoned(out) {
            return Ok(());
        }
        self.check_header()?;
        if let Err(error) = entropy::check(self.bytes) {
            return Err(match failure::system_cause(&error) {
                Some(cause) => ImageError::IoError(io::Error::new(cause.kind(), cause.to_string())),
                None => ImageError::Decoding(DecodingError::new(
                    ImageFormatHint::Exact(ImageFormat::Jpeg),
                    format!("{error:#}"),
                )),
            });
        }
        self.decoder(ZCursor::new(self.bytes), false)
            .decode_into(out)
            .map_err(failed)
    }

    fn read_image_boxed(self: Box<Self>, out: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(out)
    }
}

/// Ones that are inserted after the data: a decoder that needs more data finds a code that is in no
/// table.
const ONES: [u8; 64] = {
    let mut ones = [0; 64];
    let mut i = 0;
    while i < 64 {
        ones[i] = 0xFF; // followed by a stuffed zero
        i += 2;
    }
    ones
};
/// This many zero bytes in a row are a hole: as data they would mean hundreds of equal coefficients
/// in sequence.
const HOLE: usize = 64;

/// Offset of the first marker after the data that begin at `scan`.
fn end_of_data(bytes: &[u8], scan: usize) -> usize {
    let mut at = scan;
    loop {
        let Some(found) = memchr::memchr(0xFF, bytes.get(at..).unwrap_or_default()) else {
            return bytes.len();
        };
        at += found;
        match bytes.get(at + 1) {
            Some(0) => at += 2,
            _ => return at,
        }
    }
}

/// Most bytes of data that may follow the decoder's last read of four bytes. The decoded bits come
/// from before the end of that read or, if one of the four bytes is FF and they are read one by
/// one, from up to four more bytes; then there are up to seven bits of padding.
const TOLERANCE: usize = 5;

/// A view of a JPEG with ones inserted after the data of its first scan. The decoder replaces
/// missing data by zeros, which are valid codes, and reports success. Ones are not a valid code, so
/// decoding must fail if data are missing. This costs nothing, while `entropy::check` takes a third
/// of the decoder's time. That check decides if a table has a code of ones, if the data have
/// several parts, or if decoding fails.
struct PoisonedJpeg<'a> {
    bytes: &'a [u8],
    /// Offset of the first marker after the data.
    end: usize,
    at: usize,
    /// End of the last read of four bytes. The decoder reads only scan data in this way, in its
    /// inner loop.
    last: &'a mut usize,
}

impl<'a> PoisonedJpeg<'a> {
    fn new(bytes: &'a [u8], scan: usize, last: &'a mut usize) -> Self {
        let end = end_of_data(bytes, scan);
        PoisonedJpeg {
            bytes,
            end,
            at: 0,
            last,
        }
    }

    fn length(&self) -> usize {
        self.bytes.len() + ONES.len()
    }

    fn byte(&self, at: usize) -> Option<u8> {
        match at.checked_sub(self.end) {
            None => self.bytes.get(at).copied(),
            Some(behind) => ONES
                .get(behind)
                .copied()
                .or_else(|| self.bytes.get(at - ONES.len()).copied()),
        }
    }
}

impl ZByteReaderTrait for PoisonedJpeg<'_> {
    #[inline(always)]
    fn read_byte_no_error(&mut self) -> u8 {
        let byte = self.byte(self.at);
        self.at += usize::from(byte.is_some());
        byte.unwrap_or(0)
    }

    #[inline(always)]
    fn read_exact_bytes(&mut self, out: &mut [u8]) -> Result<(), ZByteIoError> {
        let length = out.len();
        self.peek_exact_bytes(out)?;
        self.at += length;
        if length == 4 {
            *self.last = self.at;
        }
        Ok(())
    }

    fn read_bytes(&mut self, out: &mut [u8]) -> Result<usize, ZByteIoError> {
        let length = self.peek_bytes(out)?;
        self.at += length;
        Ok(length)
    }

    fn peek_bytes(&mut self, out: &mut [u8]) -> Result<usize, ZByteIoError> {
        let length = out.len().min(self.length().saturating_sub(self.at));
        self.peek_exact_bytes(&mut out[..length])?;
        Ok(length)
    }

    #[inline(always)]
    fn peek_exact_bytes(&mut self, out: &mut [u8]) -> Result<(), ZByteIoError> {
        let until = self.at.saturating_add(out.len());
        if until <= self.end {
            out.copy_from_slice(&self.bytes[self.at..until]);
            return Ok(());
        }
        if until > self.length() {
            return Err(ZByteIoError::NotEnoughBytes(
                self.length().saturating_sub(self.at),
                out.len(),
            ));
        }
        for (place, to) in out.iter_mut().enumerate() {
            *to = self.byte(self.at + place).unwrap_or(0);
        }
        Ok(())
    }

    fn z_seek(&mut self, from: ZSeekFrom) -> Result<u64, ZByteIoError> {
        let at = match from {
            ZSeekFrom::Start(at) => i64::try_from(at).ok(),
            ZSeekFrom::End(by) => (self.length() as i64).checked_add(by),
            ZSeekFrom::Current(by) => (self.at as i64).checked_add(by),
        };
        self.at = at
            .and_then(|at| usize::try_from(at).ok())
            .ok_or(ZByteIoError::SeekError("a place before the start"))?;
        Ok(self.at as u64)
    }

    fn is_eof(&mut self) -> Result<bool, ZByteIoError> {
        Ok(self.at >= self.length())
    }

    fn z_position(&mut self) -> Result<u64, ZByteIoError> {
        Ok(self.at as u64)
    }

    fn read_remaining(&mut self, sink: &mut Vec<u8>) -> Result<usize, ZByteIoError> {
        let before = sink.len();
        while let Some(byte) = self.byte(self.at) {
            sink.push(byte);
            self.at += 1;
        }
        Ok(sink.len() - before)
    }
}
