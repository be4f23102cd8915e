//! Reads an image from top to bottom, a few rows at a time, as sRGB with its alpha channel, in 8 bits
//! or in the 16 bits that it has, so that a large image need not be in memory as a whole. Depends on `decode` and `png_strips`.
//! Promises the pixels that `decode` gives. PNG files that are neither interlaced nor turned are
//! read in strips; every other image is decoded as a whole. The memory is known beforehand.

use super::decode::{Limits, decode_deep, decode_with_alpha, guarded, read_header};
use super::note::Note;
use super::png_strips::{PngStrips, interleave};
use crate::support::failure;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// An image of interleaved samples that is read from top to bottom.
pub trait PixelRows {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    /// Samples per pixel: 3 for RGB, 4 for RGB and alpha.
    fn channels(&self) -> usize;
    /// Bytes of a sample: 1, or 2 in the machine's byte order.
    fn sample_bytes(&self) -> usize {
        1
    }
    /// Fills `rows` (`[count, width, channels]`) with the next rows.
    ///
    /// # Errors
    /// The image is damaged or cannot be read, or has fewer rows left.
    fn read(&mut self, rows: &mut [u8]) -> Result<()>;
}

/// An image that can be read more than once.
pub trait RereadRows: PixelRows {
    /// Goes back to the first row.
    ///
    /// # Errors
    /// The image cannot be opened again, or has changed since.
    fn restart(&mut self) -> Result<()>;
}

/// The memory that reading an image takes, known from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Width and height in pixels, after EXIF orientation.
    pub size: (u32, u32),
    /// Whether it has an alpha channel.
    pub alpha: bool,
    /// Whether it has 16 bits per channel that [`FileRows::open_deep`] keeps.
    pub deep: bool,
    /// Most bytes until the first row can be read.
    pub opening: u64,
    /// Most bytes after that, until the last row is read.
    pub reading: u64,
}

/// An image file that is read from top to bottom.
pub struct FileRows {
    path: PathBuf,
    limits: Limits,
    source: RowSource,
    size: (u32, u32),
    channels: usize,
    /// Whether the rows have 16 bits.
    deep: bool,
    notes: Vec<Note>,
    done: u32,
}

enum RowSource {
    Png(Box<PngStrips>),
    Whole {
        rgb: Vec<u8>,
        alpha: Option<Vec<u8>>,
    },
    /// 16 bits, RGB or RGBA.
    Deep(Vec<u16>),
}

/// Returns the memory that reading the image at `path` will take.
///
/// # Errors
/// Those of `decode`, except damage after the header.
pub fn need(path: &Path, limits: &Limits) -> Result<MemoryNeed> {
    if let Some(strips) = PngStrips::open(path, limits)? {
        let bytes = strips.bytes();
        return Ok(MemoryNeed {
            size: strips.size,
            alpha: strips.has_alpha(),
            deep: strips.is_deep(),
            opening: bytes,
            reading: bytes,
        });
    }
    let header = read_header(path, limits)?;
    let pixels = u64::from(header.size.0) * u64::from(header.size.1);
    let file = failure::retry(|| std::fs::metadata(path)).map_or(0, |about| about.len());
    let (rgb, plane) = (3 * pixels, if header.alpha { pixels } else { 0 });
    // 16 bits are copied, converted, interleaved with alpha and turned
    let deep = if header.deep { 24 * pixels } else { 0 };
    let opening = file + header.metadata_bytes + header.pixel_bytes * pixels + 2 * plane + deep;
    Ok(MemoryNeed {
        size: header.size,
        alpha: header.alpha,
        deep: header.deep,
        opening,
        reading: (rgb + plane) * if header.deep { 2 } else { 1 },
    })
}

impl FileRows {
    /// Opens an image. If it cannot be read in strips, it is decoded here. Without `alpha`, an
    /// alpha channel is dropped.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn open(path: &Path, limits: &Limits, alpha: bool) -> Result<FileRows> {
        FileRows::open_as(path, limits, alpha, false)
    }

    /// As [`FileRows::open`], with 16 bits per channel if the file has them.
    ///
    /// # Errors
    /// Those of `decode`.
    pub fn open_deep(path: &Path, limits: &Limits, alpha: bool) -> Result<FileRows> {
        FileRows::open_as(path, limits, alpha, true)
    }

    fn open_as(path: &Path, limits: &Limits, alpha: bool, deep: bool) -> Result<FileRows> {
        let file = |source, size, alpha, notes| FileRows {
            path: path.to_path_buf(),
            limits: *limits,
            source,
            size,
            channels: if alpha { 4 } else { 3 },
            deep: false,
            notes,
            done: 0,
        };
        if let Some(strips) = PngStrips::open(path, limits)? {
            let (size, has_alpha, notes) = (
                strips.size,
                strips.has_alpha(),
                guarded(path, || strips.notes())?,
            );
            let deep = deep && strips.is_deep();
            let rows = file(
                RowSource::Png(Box::new(strips)),
                size,
                alpha && has_alpha,
                notes,
            );
            return Ok(FileRows { deep, ..rows });
        }
        if deep && read_header(path, limits)?.deep {
            let (image, notes) = decode_deep(path, limits)?;
            let (size, alpha) = (
                (image.width(), image.height()),
                alpha && image.color().has_alpha(),
            );
            let samples = if alpha {
                image.into_rgba16().into_raw()
            } else {
                image.into_rgb16().into_raw()
            };
            let rows = file(RowSource::Deep(samples), size, alpha, notes);
            return Ok(FileRows { deep, ..rows });
        }
        let (decoded, plane) = decode_with_alpha(path, limits)?;
        let (size, plane) = (decoded.image.dimensions(), plane.filter(|_| alpha));
        let has_alpha = plane.is_some();
        let source = RowSource::Whole {
            rgb: decoded.image.into_raw(),
            alpha: plane.map(image::GrayImage::into_raw),
        };
        Ok(file(source, size, has_alpha, decoded.notes))
    }

    /// What is changed on the way to 8-bit sRGB; the same as `decode` reports.
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

    fn sample_bytes(&self) -> usize {
        if self.deep { 2 } else { 1 }
    }

    fn read(&mut self, rows: &mut [u8]) -> Result<()> {
        let (width, channels, deep) = (self.size.0 as usize, self.channels, self.deep);
        let count = rows.len() / (width * channels * self.sample_bytes());
        ensure!(
            count <= (self.size.1 - self.done) as usize,
            "{} has no {count} rows left",
            self.path.display()
        );
        let first = self.done as usize;
        self.done += count as u32;
        match &mut self.source {
            RowSource::Png(strips) => guarded(&self.path, || {
                if deep {
                    strips.read_deep(rows, channels == 4)
                } else {
                    strips.read(rows, channels == 4)
                }
            }),
            RowSource::Deep(samples) => {
                let line = width * channels;
                let from = &samples[first * line..(first + count) * line];
                rows.copy_from_slice(bytemuck::cast_slice(from));
                Ok(())
            }
            RowSource::Whole { rgb, alpha } => {
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

impl RereadRows for FileRows {
    fn restart(&mut self) -> Result<()> {
        if let RowSource::Png(_) = self.source {
            // frees the first reader before the second one exists
            self.source = RowSource::Whole {
                rgb: Vec::new(),
                alpha: None,
            };
            let again = FileRows::open_as(&self.path, &self.limits, self.channels == 4, self.deep)?;
            ensure!(
                (again.size, again.channels, again.deep) == (self.size, self.channels, self.deep),
                "{} has changed while it was read",
                self.path.display()
            );
            self.source = again.source;
        }
        self.done = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::decode::decode;
    use crate::support::rng::key;
    use png::{BitDepth, ColorType};
    use std::fs::File;
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
    fn strips_hold_the_pixels_of_the_whole_image() {
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
