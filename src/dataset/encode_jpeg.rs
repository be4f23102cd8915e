//! Writes a JPEG from rows. The encoder of the image crate asks for single pixels, so a few rows
//! are kept. Depends on `rows` and the image crate.

use super::buffers::zeroed;
use super::encode::of_image;
use super::rows::PixelRows;
use anyhow::Result;
use image::codecs::jpeg::JpegEncoder;
use image::{GenericImageView, Rgb};
use std::cell::RefCell;
use std::io::{BufWriter, Write};

/// Quality of JPEG files. The encoder's default of 75 would remove the detail that a network has
/// added.
pub(super) const JPEG_QUALITY: u8 = 95;
/// Rows that are held at a time: those of one row of JPEG blocks.
pub(super) const JPEG_ROWS: usize = 8;

/// The image as the JPEG encoder reads it: from the top, eight rows at a time, pixel by pixel.
struct JpegRows<'a> {
    size: (u32, u32),
    state: RefCell<RowGroup<'a>>,
}

struct RowGroup<'a> {
    rows: &'a mut dyn PixelRows,
    pixels: Vec<u8>,
    /// Number of the first row in `pixels`, and how many there are.
    first: u32,
    count: u32,
    /// The error of reading a row; the encoder has no way to report it.
    failed: Option<anyhow::Error>,
}

impl RowGroup<'_> {
    /// Reads the next rows.
    fn next(&mut self, (width, height): (u32, u32)) {
        self.first += self.count;
        self.count = (height - self.first).min(JPEG_ROWS as u32);
        self.pixels.fill(0);
        let pixels = &mut self.pixels[..self.count as usize * width as usize * 3];
        if self.failed.is_none()
            && let Err(error) = self.rows.read(pixels)
        {
            self.failed = Some(error);
        }
    }
}

impl GenericImageView for JpegRows<'_> {
    type Pixel = Rgb<u8>;

    fn dimensions(&self) -> (u32, u32) {
        self.size
    }

    fn get_pixel(&self, x: u32, y: u32) -> Rgb<u8> {
        let mut group = self.state.borrow_mut();
        while y >= group.first + group.count {
            group.next(self.size);
        }
        let at = ((y - group.first) as usize * self.size.0 as usize + x as usize) * 3;
        Rgb([group.pixels[at], group.pixels[at + 1], group.pixels[at + 2]])
    }
}

pub(super) fn jpeg<W: Write>(out: &mut BufWriter<W>, rows: &mut dyn PixelRows) -> Result<()> {
    let size = rows.size();
    let pixels = zeroed(size.0 as usize * 3 * JPEG_ROWS, "rows")?;
    let source = JpegRows {
        size,
        state: RefCell::new(RowGroup {
            rows,
            pixels,
            first: 0,
            count: 0,
            failed: None,
        }),
    };
    let written = JpegEncoder::new_with_quality(out, JPEG_QUALITY).encode_image(&source);
    match source.state.into_inner().failed {
        Some(error) => Err(error),
        None => written.map_err(of_image),
    }
}
