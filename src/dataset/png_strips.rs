//! Decodes a PNG file row by row. Depends on `decode` for the header, on `colour` and on the png
//! crate. Promises the pixels that `decode` gives, and a bound on memory that does not grow with
//! the height of the image.

use super::colour::{self, ColourTag, Samples};
use super::decode::{Limits, Metadata, check_size, guarded};
use super::note::Note;
use crate::support::failure;
use anyhow::{Result, anyhow, ensure};
use image::ImageFormat;
use image::metadata::Orientation;
use png::{BitDepth, ColorType, DecodingError, Transformations};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Memory that the PNG decoder may take for the chunks before the pixels, bytes. A file that needs
/// more is decoded as a whole, with the limits of `decode`.
const PNG_METADATA_BYTES: usize = 16 << 20;
/// Memory of the PNG decoder besides its rows: input buffer, window of the compression, colour
/// conversion.
const PNG_DECODER_BYTES: u64 = 1 << 20;
/// Number of samples that are converted at a time.
const STRIP_SAMPLES: usize = 1 << 18;

/// Interleaves RGB and alpha to RGBA.
pub(super) fn interleave<T: Copy>(out: &mut [T], rgb: &[T], alpha: &[T]) {
    for ((to, from), alpha) in out.chunks_exact_mut(4).zip(rgb.chunks_exact(3)).zip(alpha) {
        to[..3].copy_from_slice(from);
        to[3] = *alpha;
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    failure::retry(|| File::open(path))
}

/// A file whose failed reads are retried.
struct RetryingFile(File);

impl Read for RetryingFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let file = &mut self.0;
        failure::retry(|| file.read(buffer))
    }
}

impl Seek for RetryingFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

/// A PNG file that is decoded row by row.
pub(super) struct PngStrips {
    reader: png::Reader<BufReader<RetryingFile>>,
    pub size: (u32, u32),
    channels: usize,
    deep: bool,
    colours: ColourTag,
    /// Memory of the metadata, bytes.
    metadata: u64,
    /// The rows of one strip as they are in the file.
    raw: Vec<u8>,
    /// Number of rows that are not read yet.
    left: u32,
}

impl PngStrips {
    /// Opens a file. `None` if it is not a PNG file that can be read in strips; `decode` then
    /// reports what is wrong with it, if anything.
    ///
    /// # Errors
    /// A size beyond the limits, an error of the system.
    pub fn open(path: &Path, limits: &Limits) -> Result<Option<PngStrips>> {
        guarded(path, || {
            // a FIFO would block the opening
            ensure!(
                failure::retry(|| std::fs::metadata(path))?.is_file(),
                "not a regular file"
            );
            let mut file = BufReader::new(RetryingFile(open(path)?));
            let mut start = [0; 8];
            if file.read_exact(&mut start).is_err() || start != *b"\x89PNG\r\n\x1a\n" {
                return Ok(None);
            }
            let head = Metadata::read(&mut file, ImageFormat::Png, limits)?;
            if head.orientation != Orientation::NoTransforms {
                return Ok(None);
            }
            file.rewind()?;
            let mut decoder = png::Decoder::new_with_limits(
                file,
                png::Limits {
                    bytes: PNG_METADATA_BYTES,
                },
            );
            decoder.set_ignore_text_chunk(true);
            decoder.set_ignore_iccp_chunk(true);
            decoder.set_transformations(Transformations::EXPAND);
            let Ok(info) = decoder.read_header_info() else {
                return Ok(None);
            };
            check_size(info.width, info.height, limits)?;
            let Ok(reader) = decoder.read_info() else {
                return Ok(None);
            };
            let info = reader.info();
            if info.interlaced {
                return Ok(None);
            }
            let (colour, depth) = reader.output_color_type();
            let channels = match colour {
                ColorType::Grayscale => 1,
                ColorType::GrayscaleAlpha => 2,
                ColorType::Rgb => 3,
                ColorType::Rgba => 4,
                ColorType::Indexed => return Ok(None),
            };
            let (size, deep, colours, metadata) = (
                (info.width, info.height),
                depth == BitDepth::Sixteen,
                head.colours,
                head.bytes,
            );
            Ok(Some(PngStrips {
                size,
                channels,
                deep,
                colours,
                metadata,
                raw: Vec::new(),
                left: size.1,
                reader,
            }))
        })
    }

    pub fn has_alpha(&self) -> bool {
        self.channels.is_multiple_of(2)
    }

    /// Whether the file has 16 bits per channel.
    pub fn is_deep(&self) -> bool {
        self.deep
    }

    fn row_bytes(&self) -> usize {
        self.size.0 as usize * self.channels * if self.deep { 2 } else { 1 }
    }

    /// Memory while the file is read, bytes: rows of the decoder, a strip as it is in the file and
    /// converted, the metadata.
    pub fn bytes(&self) -> u64 {
        let row = self.row_bytes() as u64;
        // 16 bits that are kept: samples, RGB, its conversion and RGBA of two bytes each
        let kept = if self.deep {
            28 * (self.size.0 as u64 * self.channels as u64).max(STRIP_SAMPLES as u64)
        } else {
            0
        };
        8 * row + 6 * row.max(STRIP_SAMPLES as u64) + kept + self.metadata + PNG_DECODER_BYTES
    }

    /// Returns the notes in the order of `decode`.
    ///
    /// # Errors
    /// HDR colours.
    pub fn notes(&self) -> Result<Vec<Note>> {
        let nothing = if self.deep {
            Samples::Deep(Vec::new())
        } else {
            Samples::Plain(Vec::new())
        };
        let (_, of_profile, _) =
            colour::to_srgb(nothing, self.channels, (self.size.0, 0), &self.colours)?;
        let changes = [
            (self.has_alpha(), Note::Alpha),
            (self.channels <= 2, Note::Grey),
            (self.deep, Note::SixteenBit),
        ];
        Ok(changes
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, note)| note)
            .chain(of_profile)
            .collect())
    }

    /// Fills `out` with the next rows, in RGB, or in RGBA with `alpha`.
    ///
    /// # Errors
    /// Damaged data, an error of the system.
    pub fn read(&mut self, out: &mut [u8], alpha: bool) -> Result<()> {
        let width = self.size.0 as usize;
        let row = width * if alpha { 4 } else { 3 };
        let rows_at_once = (STRIP_SAMPLES / (width * self.channels)).max(1);
        for strip in out.chunks_mut(rows_at_once * row) {
            let count = strip.len() / row;
            self.read_raw(count)?;
            let samples = if self.deep {
                Samples::Deep(
                    self.raw
                        .chunks_exact(2)
                        .map(|b| u16::from_be_bytes([b[0], b[1]]))
                        .collect(),
                )
            } else {
                Samples::Plain(self.raw.clone())
            };
            let plane = if alpha {
                colour::alpha_of(&samples, self.channels)?
            } else {
                None
            };
            let (rgb, _, _) = colour::to_srgb(
                samples,
                self.channels,
                (self.size.0, count as u32),
                &self.colours,
            )?;
            match plane {
                Some(plane) => interleave(strip, &rgb, &plane),
                None => strip.copy_from_slice(&rgb),
            }
        }
        Ok(())
    }

    /// Fills `out` with the next rows as [`PngStrips::read`] does, in 16 bits of the machine's byte
    /// order, for a file that has 16 bits.
    ///
    /// # Errors
    /// Those of [`PngStrips::read`].
    pub fn read_deep(&mut self, out: &mut [u8], alpha: bool) -> Result<()> {
        let (width, channels) = (self.size.0 as usize, self.channels);
        let row = width * if alpha { 8 } else { 6 };
        let rows_at_once = (STRIP_SAMPLES / (width * channels)).max(1);
        for strip in out.chunks_mut(rows_at_once * row) {
            let count = strip.len() / row;
            self.read_raw(count)?;
            let (raw, _) = self.raw.as_chunks::<2>();
            let samples: Vec<u16> = raw.iter().map(|&b| u16::from_be_bytes(b)).collect();
            let plane: Vec<u16> = if alpha {
                samples
                    .chunks_exact(channels)
                    .map(|p| p[channels - 1])
                    .collect()
            } else {
                Vec::new()
            };
            let rgb = colour::to_deep_srgb(samples, channels, &self.colours)?;
            if alpha {
                let mut all = vec![0; 4 * plane.len()];
                interleave(&mut all, &rgb, &plane);
                strip.copy_from_slice(bytemuck::cast_slice(&all));
            } else {
                strip.copy_from_slice(bytemuck::cast_slice(&rgb));
            }
        }
        Ok(())
    }

    /// Reads the samples of the next `count` rows, as they are in the file, into `raw`.
    fn read_raw(&mut self, count: usize) -> Result<()> {
        let row = self.row_bytes();
        if self.raw.len() < count * row {
            let bytes = count * row;
            self.raw
                .try_reserve_exact(bytes - self.raw.len())
                .map_err(|_| failure::no_memory(bytes, "pixels"))?;
        }
        self.raw.resize(count * row, 0);
        for line in self.raw.chunks_exact_mut(row) {
            let read = self.reader.read_row(line).map_err(explain)?;
            ensure!(
                read.is_some(),
                "the PNG data are cut short; fetch the file again"
            );
        }
        self.left = self.left.saturating_sub(count as u32);
        if self.left == 0 {
            // the decoder checks the checksums after the last row only when one more row is read
            self.reader.read_row(&mut []).map_err(explain)?;
        }
        Ok(())
    }
}

fn explain(error: DecodingError) -> anyhow::Error {
    match error {
        DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            anyhow!("the PNG data are cut short; fetch the file again")
        }
        DecodingError::IoError(e) => anyhow::Error::from(e).context("cannot read the PNG data"),
        DecodingError::LimitsExceeded => {
            anyhow!("the PNG data ask for more memory than the size limit allows")
        }
        other => anyhow!("the PNG data are damaged or cut short ({other})"),
    }
}
