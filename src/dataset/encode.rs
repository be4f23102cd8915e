//! Writes images as PNG, JPEG, WebP, TIFF or BMP from rows that are read as they are needed.
//! Depends on the encoders and on `rows`. Promises to hold only a few rows of the image, except for
//! WebP, whose encoder needs all of it. The memory, and whether a format can hold the size, are
//! known before the work begins.

use super::buffers::zeroed;
use super::encode_jpeg::{JPEG_ROWS, jpeg};
use super::rows::PixelRows;
use anyhow::{Context, Result, anyhow, ensure};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, RgbImage};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use tiff::encoder::{TiffEncoder, TiffKind, TiffValue, colortype};

/// A larger TIFF is written in the 64-bit form (BigTIFF), since offsets of the usual form end at 4
/// GiB.
const LARGEST_TIFF: u64 = u32::MAX as u64 - (64 << 20);
/// Bytes of the headers of a BMP.
const BMP_HEADERS: u32 = 14 + 40;

/// A format that images can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Format {
    /// Without loss, in strips
    Png,
    /// Quality 95
    #[cfg_attr(feature = "cli", value(alias = "jpeg"))]
    Jpg,
    /// Without loss
    Webp,
    /// Not compressed, in strips
    #[cfg_attr(feature = "cli", value(alias = "tif"))]
    Tiff,
    /// Not compressed
    Bmp,
}

impl Format {
    /// Endings of files that can be written, for messages.
    pub const ENDINGS: &str = "png, jpg, jpeg, webp, bmp, tif, tiff";

    /// The format that the ending of a path names.
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "png" => Some(Format::Png),
            "jpg" | "jpeg" | "jpe" | "jfif" => Some(Format::Jpg),
            "webp" => Some(Format::Webp),
            "tif" | "tiff" => Some(Format::Tiff),
            "bmp" => Some(Format::Bmp),
            _ => None,
        }
    }

    /// The ending of its files, with the dot.
    pub fn ending(self) -> &'static str {
        match self {
            Format::Png => ".png",
            Format::Jpg => ".jpg",
            Format::Webp => ".webp",
            Format::Tiff => ".tiff",
            Format::Bmp => ".bmp",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Png => "PNG",
            Format::Jpg => "JPEG",
            Format::Webp => "WebP",
            Format::Tiff => "TIFF",
            Format::Bmp => "BMP",
        }
    }

    /// Whether an alpha channel is kept.
    pub fn holds_alpha(self) -> bool {
        matches!(self, Format::Png | Format::Webp | Format::Tiff)
    }

    /// Whether 16 bits per channel are kept.
    pub fn holds_deep(self) -> bool {
        matches!(self, Format::Png | Format::Tiff)
    }

    /// Whether the writer seeks backwards, which a device or a FIFO cannot do.
    pub fn goes_back(self) -> bool {
        matches!(self, Format::Tiff | Format::Bmp)
    }

    /// Checks that the format can hold an image of a size in pixels.
    ///
    /// # Errors
    /// The size is too large; the error says the limit, and which format to use.
    pub fn check(self, (width, height): (u32, u32)) -> Result<()> {
        let side = match self {
            Format::Png | Format::Tiff => i32::MAX as u32,
            Format::Jpg => u16::MAX.into(),
            Format::Webp => 16_383,
            Format::Bmp => i32::MAX as u32,
        };
        ensure!(
            width <= side && height <= side,
            "the result has {width}x{height} pixels and {} holds at most {side} a side; write it as png or tiff, or cut the image into parts",
            self.name()
        );
        let bytes = (u64::from(width) * 3).next_multiple_of(4) * u64::from(height);
        ensure!(
            self != Format::Bmp || bytes <= u64::from(u32::MAX - BMP_HEADERS),
            "the result has {width}x{height} pixels and BMP holds at most 4 GiB; write it as png or tiff, or cut the image into parts"
        );
        Ok(())
    }

    /// Largest memory of writing an image, bytes, without that of reading the rows. A pixel has
    /// `pixel` bytes.
    pub fn bytes(self, (width, height): (u32, u32), pixel: usize) -> u64 {
        let row = u64::from(width) * pixel as u64;
        match self {
            // the rows that are filtered, and the compression
            Format::Png => 6 * row + (1 << 20),
            Format::Jpg => (JPEG_ROWS as u64 + 1) * row,
            // the image, the encoder's RGBA, and the file, whose buffer doubles as it grows
            Format::Webp => (row + 12 * u64::from(width)) * u64::from(height),
            // a strip, and the places and lengths of all of them
            Format::Tiff => 2 * row.max(1 << 20) + 32 * u64::from(height),
            Format::Bmp => 2 * row,
        }
    }

    /// Writes a whole image.
    ///
    /// # Errors
    /// The format cannot hold the image; errors of reading the rows and of writing.
    pub fn write<W: Write + Seek>(
        self,
        out: &mut BufWriter<W>,
        rows: &mut dyn PixelRows,
    ) -> Result<()> {
        self.check(rows.size())?;
        ensure!(
            rows.channels() == 3 || self.holds_alpha(),
            "{} holds no alpha channel",
            self.name()
        );
        ensure!(
            rows.sample_bytes() == 1 || self.holds_deep(),
            "{} holds 8 bits per channel",
            self.name()
        );
        match self {
            Format::Png => png(out, rows),
            Format::Jpg => jpeg(out, rows),
            Format::Webp => webp(out, rows),
            Format::Tiff => {
                let (w, h) = rows.size();
                let pixel = rows.channels() * rows.sample_bytes();
                let bytes = u64::from(w) * u64::from(h) * pixel as u64;
                if bytes > LARGEST_TIFF {
                    tiff(TiffEncoder::new_big(out)?, rows)
                } else {
                    tiff(TiffEncoder::new(out)?, rows)
                }
            }
            Format::Bmp => bmp(out, rows),
        }
    }
}

/// Converts an error of an encoder; an error of the system in it stays one.
fn of_png(error: png::EncodingError) -> anyhow::Error {
    match error {
        png::EncodingError::IoError(e) => e.into(),
        other => anyhow!("the PNG encoder gave up ({other})"),
    }
}

pub(super) fn of_image(error: image::ImageError) -> anyhow::Error {
    match error {
        image::ImageError::IoError(e) => e.into(),
        other => anyhow!("the encoder gave up ({other})"),
    }
}

fn png<W: Write>(out: &mut BufWriter<W>, rows: &mut dyn PixelRows) -> Result<()> {
    let ((width, height), channels) = (rows.size(), rows.channels());
    let mut encoder = png::Encoder::new(out, width, height);
    encoder.set_color(if channels == 4 {
        png::ColorType::Rgba
    } else {
        png::ColorType::Rgb
    });
    let deep = rows.sample_bytes() == 2;
    encoder.set_depth(if deep {
        png::BitDepth::Sixteen
    } else {
        png::BitDepth::Eight
    });
    encoder.set_compression(png::Compression::Fast);
    encoder.set_filter(png::Filter::Adaptive);
    let mut writer = encoder.write_header().map_err(of_png)?;
    let mut stream = writer.stream_writer_with_size(1 << 18).map_err(of_png)?;
    let mut row = zeroed(width as usize * channels * rows.sample_bytes(), "a row")?;
    for _ in 0..height {
        rows.read(&mut row)?;
        if deep {
            // PNG is big-endian
            let (samples, _) = row.as_chunks_mut::<2>();
            samples
                .iter_mut()
                .for_each(|s| *s = u16::from_ne_bytes(*s).to_be_bytes());
        }
        stream.write_all(&row)?;
    }
    stream.finish().map_err(of_png)?;
    writer.finish().map_err(of_png)
}

fn webp<W: Write>(out: &mut BufWriter<W>, rows: &mut dyn PixelRows) -> Result<()> {
    let ((width, height), channels) = (rows.size(), rows.channels());
    let mut image = zeroed(
        width as usize * height as usize * channels,
        "the enlarged image",
    )?;
    rows.read(&mut image)?;
    let colour = if channels == 4 {
        ExtendedColorType::Rgba8
    } else {
        ExtendedColorType::Rgb8
    };
    WebPEncoder::new_lossless(out)
        .encode(&image, width, height, colour)
        .map_err(of_image)
}

fn of_tiff(error: tiff::TiffError) -> anyhow::Error {
    match error {
        tiff::TiffError::IoError(e) => e.into(),
        other => anyhow!("the TIFF encoder gave up ({other})"),
    }
}

fn tiff<W: Write + Seek, K: TiffKind>(
    encoder: TiffEncoder<W, K>,
    rows: &mut dyn PixelRows,
) -> Result<()> {
    match (rows.channels(), rows.sample_bytes()) {
        (4, 2) => strips::<colortype::RGBA16, W, K>(encoder, rows),
        (_, 2) => strips::<colortype::RGB16, W, K>(encoder, rows),
        (4, _) => strips::<colortype::RGBA8, W, K>(encoder, rows),
        _ => strips::<colortype::RGB8, W, K>(encoder, rows),
    }
}

fn strips<C: colortype::ColorType, W: Write + Seek, K: TiffKind>(
    mut encoder: TiffEncoder<W, K>,
    rows: &mut dyn PixelRows,
) -> Result<()>
where
    C::Inner: bytemuck::Pod,
    [C::Inner]: TiffValue,
{
    let (width, height) = rows.size();
    let mut image = encoder.new_image::<C>(width, height).map_err(of_tiff)?;
    let mut strip: Vec<C::Inner> = Vec::new();
    loop {
        let samples = usize::try_from(image.next_strip_sample_count())
            .context("a strip is larger than memory can be")?;
        if samples == 0 {
            return image.finish().map_err(of_tiff);
        }
        if strip.len() < samples {
            strip = zeroed(samples, "a strip")?;
        }
        rows.read(bytemuck::cast_slice_mut(&mut strip[..samples]))?;
        image.write_strip(&strip[..samples]).map_err(of_tiff)?;
    }
}

/// Writes a BMP: rows from the bottom up, in blue, green, red, each padded to four bytes.
fn bmp<W: Write + Seek>(out: &mut BufWriter<W>, rows: &mut dyn PixelRows) -> Result<()> {
    let (width, height) = rows.size();
    let padded = (u64::from(width) * 3).next_multiple_of(4);
    let bytes =
        u32::try_from(padded * u64::from(height)).context("the image is too large for BMP")?;
    let mut header = Vec::with_capacity(BMP_HEADERS as usize);
    header.extend(b"BM");
    for number in [bytes + BMP_HEADERS, 0, BMP_HEADERS, 40, width, height] {
        header.extend(number.to_le_bytes());
    }
    header.extend([1, 0, 24, 0]); // one plane of 24 bits
    for number in [0, bytes, 0, 0, 0, 0] {
        header.extend(number.to_le_bytes());
    }
    let start = out.stream_position()?;
    out.write_all(&header)?;
    let mut line = zeroed(padded as usize, "a row")?;
    for y in 0..height {
        let row = &mut line[..width as usize * 3];
        rows.read(row)?;
        row.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
        out.seek(SeekFrom::Start(
            start + u64::from(BMP_HEADERS) + padded * u64::from(height - 1 - y),
        ))?;
        out.write_all(&line)?;
    }
    out.seek(SeekFrom::Start(
        start + u64::from(BMP_HEADERS) + u64::from(bytes),
    ))?;
    Ok(())
}

/// An image in memory, read as rows.
pub struct InMemory<'a> {
    image: &'a RgbImage,
    /// Bytes that were read.
    done: usize,
}

impl<'a> InMemory<'a> {
    /// From the first row on.
    pub fn new(image: &'a RgbImage) -> InMemory<'a> {
        InMemory { image, done: 0 }
    }
}

impl PixelRows for InMemory<'_> {
    fn size(&self) -> (u32, u32) {
        self.image.dimensions()
    }

    fn channels(&self) -> usize {
        3
    }

    fn read(&mut self, rows: &mut [u8]) -> Result<()> {
        let from = self
            .image
            .as_raw()
            .get(self.done..self.done + rows.len())
            .context("the image has no rows left")?;
        rows.copy_from_slice(from);
        self.done += rows.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::encode_jpeg::JPEG_QUALITY;
    use image::codecs::jpeg::JpegEncoder;
    use image::{ImageFormat, Rgb};
    use std::io::Cursor;

    const ALL: [(Format, ImageFormat); 5] = [
        (Format::Png, ImageFormat::Png),
        (Format::Jpg, ImageFormat::Jpeg),
        (Format::Webp, ImageFormat::WebP),
        (Format::Tiff, ImageFormat::Tiff),
        (Format::Bmp, ImageFormat::Bmp),
    ];

    fn image(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([0, 1, 2].map(|c| ((x * 3 + y * 5 + c * 70) / 2 % 256) as u8))
        })
    }

    fn written(format: Format, rows: &mut dyn PixelRows) -> Vec<u8> {
        let mut out = BufWriter::new(Cursor::new(Vec::new()));
        format.write(&mut out, rows).unwrap();
        out.into_inner().unwrap().into_inner()
    }

    /// Our writers give the same bytes as the encoders of whole images, except that a PNG may
    /// divide its data differently.
    #[test]
    fn rows_give_what_whole_images_give() {
        for (w, h) in [(1, 1), (13, 9), (640, 531), (7, 300)] {
            let image = image(w, h);
            for (format, whole) in ALL {
                let ours = written(format, &mut InMemory::new(&image));
                let mut theirs = Cursor::new(Vec::new());
                match whole {
                    ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut theirs, JPEG_QUALITY)
                        .encode_image(&image)
                        .unwrap(),
                    _ => image.write_to(&mut theirs, whole).unwrap(),
                }
                if format != Format::Png {
                    assert!(ours == theirs.into_inner(), "{format:?} {w}x{h}");
                }
                let read = image::load_from_memory_with_format(&ours, whole)
                    .unwrap()
                    .into_rgb8();
                assert!(read == image || format == Format::Jpg, "{format:?} {w}x{h}");
            }
        }
    }

    struct Transparent(u32, u32, u32);

    impl PixelRows for Transparent {
        fn size(&self) -> (u32, u32) {
            (self.0, self.1)
        }
        fn channels(&self) -> usize {
            4
        }
        fn read(&mut self, rows: &mut [u8]) -> Result<()> {
            for row in rows.chunks_exact_mut(4 * self.0 as usize) {
                for (x, pixel) in row.chunks_exact_mut(4).enumerate() {
                    pixel.copy_from_slice(&[x as u8, self.2 as u8, 7, (x as u32 + self.2) as u8]);
                }
                self.2 += 1;
            }
            Ok(())
        }
    }

    #[test]
    fn alpha_is_kept_where_the_format_holds_it() {
        for (format, whole) in ALL.into_iter().filter(|(format, _)| format.holds_alpha()) {
            let file = written(format, &mut Transparent(40, 30, 0));
            let read = image::load_from_memory_with_format(&file, whole).unwrap();
            assert!(read.color().has_alpha(), "{format:?}: {:?}", read.color());
            assert_eq!(
                read.into_rgba8().get_pixel(9, 8).0,
                [9, 8, 7, 17],
                "{format:?}"
            );
        }
        let error = Format::Bmp
            .write(
                &mut BufWriter::new(Cursor::new(Vec::new())),
                &mut Transparent(4, 3, 0),
            )
            .unwrap_err();
        assert!(error.to_string().contains("alpha"), "{error}");
    }

    #[test]
    fn sizes_that_a_format_cannot_hold_are_known_before() {
        for (format, size, fits) in [
            (Format::Webp, (16_383, 9), true),
            (Format::Webp, (9, 16_384), false),
            (Format::Jpg, (65_535, 9), true),
            (Format::Jpg, (65_536, 9), false),
            (Format::Bmp, (40_000, 36_000), false),
            (Format::Png, (400_000, 36_000), true),
        ] {
            let checked = format.check(size);
            assert_eq!(checked.is_ok(), fits, "{format:?} {size:?}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("png"), "{error}");
            }
        }
    }

    struct Broken(u32);

    impl PixelRows for Broken {
        fn size(&self) -> (u32, u32) {
            (20, 40)
        }
        fn channels(&self) -> usize {
            3
        }
        fn read(&mut self, _: &mut [u8]) -> Result<()> {
            self.0 += 1;
            ensure!(self.0 < 3, "row {} is damaged", self.0);
            Ok(())
        }
    }

    #[test]
    fn an_error_of_the_rows_comes_through_every_encoder() {
        for (format, _) in ALL {
            let mut out = BufWriter::new(Cursor::new(Vec::new()));
            // WebP and TIFF ask for all these rows at once, the second time for none
            let calls = if matches!(format, Format::Webp | Format::Tiff) {
                2
            } else {
                0
            };
            let error = format.write(&mut out, &mut Broken(calls)).unwrap_err();
            assert_eq!(error.to_string(), "row 3 is damaged", "{format:?}");
        }
    }
}
