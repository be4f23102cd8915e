//! Reads an image from top to bottom, a few rows at a time, as 8-bit sRGB with its alpha channel,
//! so that a large image need not be in memory as a whole. Depends on `decode`, `colour` and the
//! PNG decoder. Promises the pixels that `decode` gives; PNG files that are neither interlaced nor
//! turned are read in strips, and every other image is decoded whole, with its memory known
//! beforehand.

use super::colour::{self, Samples, Tagged};
use super::decode::{Head, Limits, Note, check_size, decode_with_alpha, guarded, look};
use crate::support::failure;
use anyhow::{Result, anyhow, ensure};
use image::ImageFormat;
use image::metadata::Orientation;
use png::{BitDepth, ColorType, DecodingError, Transformations};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes that the PNG decoder may take for what stands before the pixels. A file that asks for more
/// is decoded whole, where the limits of `decode` hold.
const PNG_METADATA_BYTES: usize = 16 << 20;
/// Room of the PNG decoder beside its rows: input buffer, window of the compression, colour
/// conversion.
const PNG_DECODER_BYTES: u64 = 1 << 20;
/// Samples that are converted at once.
const STRIP_SAMPLES: usize = 1 << 18;

/// An image of interleaved 8-bit samples that is read from top to bottom.
pub trait PixelRows {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    /// Samples of a pixel: 3 for RGB, 4 for RGB and alpha.
    fn channels(&self) -> usize;
    /// Fills `rows`, whose length is that of whole rows, with the next ones.
    ///
    /// # Errors
    /// When the image is damaged or cannot be read, or has fewer rows left.
    fn read(&mut self, rows: &mut [u8]) -> Result<()>;
}

/// What reading an image takes, known from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Width and height in pixels, after EXIF orientation.
    pub size: (u32, u32),
    /// Whether it has an alpha channel.
    pub alpha: bool,
    /// Most bytes until the first row is there.
    pub opening: u64,
    /// Most bytes from then on, until the last row is read.
    pub reading: u64,
}

/// An image file that is read from top to bottom.
pub struct FileRows {
    path: PathBuf,
    source: Source,
    size: (u32, u32),
    channels: usize,
    notes: Vec<Note>,
    done: u32,
}

enum Source {
    Png(Box<PngStrips>),
    Whole {
        rgb: Vec<u8>,
        alpha: Option<Vec<u8>>,
    },
}

/// What reading the image at `path` will take.
///
/// # Errors
/// As `decode`, but for damage behind the header.
pub fn need(path: &Path, limits: &Limits) -> Result<Need> {
    if let Some(strips) = PngStrips::open(path, limits)? {
        let bytes = strips.bytes();
        return Ok(Need {
            size: strips.size,
            alpha: strips.has_alpha(),
            opening: bytes,
            reading: bytes,
        });
    }
    let header = look(path, limits)?;
    let pixels = u64::from(header.size.0) * u64::from(header.size.1);
    let file = failure::retry(|| std::fs::metadata(path)).map_or(0, |about| about.len());
    let (rgb, plane) = (3 * pixels, if header.alpha { pixels } else { 0 });
    let opening = file + header.metadata_bytes + header.pixel_bytes * pixels + 2 * plane;
    Ok(Need {
        size: header.size,
        alpha: header.alpha,
        opening,
        reading: rgb + plane,
    })
}

impl FileRows {
    /// Opens an image; one that is not read in strips is decoded here. Without `alpha` an alpha
    /// channel is dropped.
    ///
    /// # Errors
    /// As `decode`.
    pub fn open(path: &Path, limits: &Limits, alpha: bool) -> Result<FileRows> {
        let file = |source, size, alpha, notes| FileRows {
            path: path.to_path_buf(),
            source,
            size,
            channels: if alpha { 4 } else { 3 },
            notes,
            done: 0,
        };
        if let Some(strips) = PngStrips::open(path, limits)? {
            let (size, has_alpha, notes) = (
                strips.size,
                strips.has_alpha(),
                guarded(path, || strips.notes())?,
            );
            return Ok(file(
                Source::Png(Box::new(strips)),
                size,
                alpha && has_alpha,
                notes,
            ));
        }
        let (decoded, plane) = decode_with_alpha(path, limits)?;
        let (size, plane) = (decoded.image.dimensions(), plane.filter(|_| alpha));
        let has_alpha = plane.is_some();
        let source = Source::Whole {
            rgb: decoded.image.into_raw(),
            alpha: plane.map(image::GrayImage::into_raw),
        };
        Ok(file(source, size, has_alpha, decoded.notes))
    }

    /// What is changed on the way to 8-bit sRGB, as `decode` says it.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

impl PixelRows for FileRows {
    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn read(&mut self, rows: &mut [u8]) -> Result<()> {
        let (width, channels) = (self.size.0 as usize, self.channels);
        let count = rows.len() / (width * channels);
        ensure!(
            count <= (self.size.1 - self.done) as usize,
            "{} has no {count} rows left",
            self.path.display()
        );
        let first = self.done as usize;
        self.done += count as u32;
        match &mut self.source {
            Source::Png(strips) => guarded(&self.path, || strips.read(rows, channels == 4)),
            Source::Whole { rgb, alpha } => {
                let pixels = first * width..(first + count) * width;
                let from = &rgb[3 * pixels.start..3 * pixels.end];
                match alpha {
                    None => rows.copy_from_slice(from),
                    Some(alpha) => interleave(rows, from, &alpha[pixels]),
                }
                Ok(())
            }
        }
    }
}

/// RGBA of RGB and alpha.
fn interleave(out: &mut [u8], rgb: &[u8], alpha: &[u8]) {
    for ((to, from), alpha) in out.chunks_exact_mut(4).zip(rgb.chunks_exact(3)).zip(alpha) {
        to[..3].copy_from_slice(from);
        to[3] = *alpha;
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    failure::retry(|| File::open(path))
}

/// A file whose failed reads are tried again.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let file = &mut self.0;
        failure::retry(|| file.read(buffer))
    }
}

impl Seek for Patient {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

/// A PNG file that is decoded row by row.
struct PngStrips {
    reader: png::Reader<BufReader<Patient>>,
    size: (u32, u32),
    channels: usize,
    deep: bool,
    colours: Tagged,
    /// Bytes of what stands beside the pixels.
    metadata: u64,
    /// The rows of one strip as they are in the file.
    raw: Vec<u8>,
    /// Rows that are still to come.
    left: u32,
}

impl PngStrips {
    /// Opens a file, or nothing where it is no PNG file that can be read in strips: what is wrong
    /// with it is for `decode` to say.
    fn open(path: &Path, limits: &Limits) -> Result<Option<PngStrips>> {
        guarded(path, || {
            // a FIFO would block the opening
            ensure!(
                failure::retry(|| std::fs::metadata(path))?.is_file(),
                "not a regular file"
            );
            let mut file = BufReader::new(Patient(open(path)?));
            let mut start = [0; 8];
            if file.read_exact(&mut start).is_err() || start != *b"\x89PNG\r\n\x1a\n" {
                return Ok(None);
            }
            let head = Head::read(&mut file, ImageFormat::Png, limits)?;
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

    fn has_alpha(&self) -> bool {
        self.channels.is_multiple_of(2)
    }

    fn row_bytes(&self) -> usize {
        self.size.0 as usize * self.channels * if self.deep { 2 } else { 1 }
    }

    /// Bytes while it is read: rows of the decoder, a strip as it is in the file and converted,
    /// what stands beside the pixels.
    fn bytes(&self) -> u64 {
        let row = self.row_bytes() as u64;
        8 * row + 6 * row.max(STRIP_SAMPLES as u64) + self.metadata + PNG_DECODER_BYTES
    }

    /// In the order in which `decode` gives them. Fails for colours that are refused.
    fn notes(&self) -> Result<Vec<Note>> {
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
    fn read(&mut self, out: &mut [u8], alpha: bool) -> Result<()> {
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

    /// The samples of the next `count` rows, as they are in the file, into `raw`.
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
            // the checksums behind the last row are looked at when one more is asked for
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::decode::decode;
    use crate::support::rng::key;
    use std::io::BufWriter;

    /// A PNG of noise, written as `how` says.
    fn write(
        path: &Path,
        (w, h): (u32, u32),
        colour: ColorType,
        depth: BitDepth,
        how: impl FnOnce(&mut png::Info),
    ) {
        let mut info = png::Info::with_size(w, h);
        (info.color_type, info.bit_depth) = (colour, depth);
        how(&mut info);
        let row = info.raw_row_length() - 1;
        let encoder =
            png::Encoder::with_info(BufWriter::new(File::create(path).unwrap()), info).unwrap();
        let pixels: Vec<u8> = (0..row * h as usize)
            .map(|i| {
                key(&[i as u64]) as u8
                    & if depth == BitDepth::Two {
                        0b0101_0101
                    } else {
                        255
                    }
            })
            .collect();
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&pixels)
            .unwrap();
    }

    /// All rows, a few at a time.
    fn all(rows: &mut FileRows) -> Vec<u8> {
        let row = rows.size().0 as usize * rows.channels();
        let mut data = vec![0; row * rows.size().1 as usize];
        data.chunks_mut(7 * row)
            .for_each(|part| rows.read(part).unwrap());
        assert!(rows.read(&mut vec![0; row]).is_err(), "a row too many");
        data
    }

    #[test]
    fn strips_hold_the_pixels_of_the_whole_picture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let p3 = moxcms::ColorProfile::new_display_p3().encode().unwrap();
        let profile = |info: &mut png::Info| info.icc_profile = Some(p3.clone().into());
        type How<'a> = &'a dyn Fn(&mut png::Info);
        let plain: How = &|_| ();
        let profile: How = &profile;
        let palette: How = &|info| {
            info.palette = Some((0..12).map(|i| i * 20).collect::<Vec<u8>>().into());
            info.trns = Some(vec![0, 90, 200].into());
        };
        let cases = [
            (ColorType::Rgb, BitDepth::Eight, plain, true),
            (ColorType::Rgba, BitDepth::Eight, plain, true),
            (ColorType::Grayscale, BitDepth::Eight, plain, true),
            (ColorType::GrayscaleAlpha, BitDepth::Sixteen, plain, true),
            (ColorType::Rgba, BitDepth::Sixteen, plain, true),
            (ColorType::Indexed, BitDepth::Two, palette, true),
            (ColorType::Rgb, BitDepth::Eight, profile, true),
            (ColorType::Rgba, BitDepth::Sixteen, profile, true),
            (
                ColorType::Rgb,
                BitDepth::Eight,
                &|info: &mut png::Info| info.source_gamma = Some(png::ScaledFloat::new(1.0)),
                true,
            ),
        ];
        for (colour, depth, how, in_strips) in cases {
            for size in [(61, 47), (1, 90), (700, 451)] {
                write(&path, size, colour, depth, how);
                assert_eq!(
                    PngStrips::open(&path, &Limits::default())
                        .unwrap()
                        .is_some(),
                    in_strips
                );
                let (decoded, alpha) = decode_with_alpha(&path, &Limits::default()).unwrap();
                let needs = need(&path, &Limits::default()).unwrap();
                assert_eq!(
                    (needs.size, needs.alpha),
                    (size, alpha.is_some()),
                    "{colour:?} {depth:?}"
                );
                for with_alpha in [true, false] {
                    let mut rows = FileRows::open(&path, &Limits::default(), with_alpha).unwrap();
                    assert_eq!(rows.notes(), decoded.notes, "{colour:?} {depth:?}");
                    let found = all(&mut rows);
                    match &alpha {
                        Some(alpha) if with_alpha => {
                            let mut wanted = vec![0; found.len()];
                            interleave(&mut wanted, decoded.image.as_raw(), alpha.as_raw());
                            assert!(found == wanted, "{colour:?} {depth:?} {size:?}");
                        }
                        _ => assert!(
                            &found == decoded.image.as_raw(),
                            "{colour:?} {depth:?} {size:?}"
                        ),
                    }
                }
            }
        }
    }

    #[test]
    fn damage_is_named_where_it_is_met() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.png");
        write(&path, (300, 200), ColorType::Rgb, BitDepth::Eight, |_| ());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let mut rows = FileRows::open(&path, &Limits::default(), true).unwrap();
        let mut data = vec![0; 300 * 3 * 200];
        let error = rows.read(&mut data).unwrap_err();
        assert!(
            format!("{error:#}").contains("cut.png") && format!("{error:#}").contains("cut short"),
            "{error:#}"
        );
        assert!(
            failure::system_cause(&error).is_none() && decode(&path, &Limits::default()).is_err()
        );
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        let error = FileRows::open(&path, &Limits::default(), true)
            .and_then(|mut rows| rows.read(&mut data))
            .unwrap_err();
        assert!(format!("{error:#}").contains("damaged"), "{error:#}");
        assert!(
            FileRows::open(dir.path(), &Limits::default(), true).is_err()
                && need(&dir.path().join("none"), &Limits::default()).is_err()
        );
    }
}
