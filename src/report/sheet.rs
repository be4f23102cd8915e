//! Side-by-side images with labels, for visual comparison. Depends on `files` and an 8x8 bitmap
//! font. Pixels are never resampled, only enlarged by whole factors. A PNG is written whole or not
//! at all.

use crate::support::files::write_output;
use anyhow::{Result, ensure};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};
use std::path::Path;

/// Lengths in pixels.
const MARGIN: u32 = 20;
const GAP: u32 = 14;
const ROW_GAP: u32 = 26;
const TEXT_GAP: u32 = 7;
/// Panels narrower than this are enlarged by a whole factor, up to `MAX_ZOOM`.
const COMFORTABLE: u32 = 200;
const MAX_ZOOM: u32 = 4;
/// A larger sheet is refused: many viewers cannot open it.
const MAX_PIXELS: u64 = 400_000_000;

const PAPER: Rgb<u8> = Rgb([250, 250, 248]);
const INK: Rgb<u8> = Rgb([24, 26, 30]);
const FAINT: Rgb<u8> = Rgb([96, 100, 108]);
const FRAME: Rgb<u8> = Rgb([200, 202, 206]);

/// One image of a comparison.
pub struct Panel<'a> {
    /// The pixels.
    pub image: &'a RgbImage,
    /// Text above the image; ASCII.
    pub title: String,
    /// Text below the image, of one or more lines; ASCII, may be empty.
    pub note: String,
}

/// Writes rows of panels to `path` as one PNG. Panels should have one size; smaller ones are
/// centred.
///
/// # Errors
/// When there is no panel, the sheet would be too large, or the file cannot be written.
pub fn comparison(rows: &[Vec<Panel>], path: &Path) -> Result<()> {
    let sheet = draw(rows)?;
    write_output(path, |out| {
        let (width, height) = sheet.dimensions();
        Ok(PngEncoder::new(out).write_image(
            sheet.as_raw(),
            width,
            height,
            ExtendedColorType::Rgb8,
        )?)
    })
}

/// The layout of a sheet, computed before anything is drawn.
struct Layout {
    zoom: u32,
    /// Side of a pixel of the font, in pixels of the sheet.
    pen: u32,
    columns: Vec<u32>,
    rows: Vec<u32>,
    has_title: bool,
    /// Lines of the longest note.
    note_lines: u32,
}

impl Layout {
    fn new(rows: &[Vec<Panel>]) -> Result<Layout> {
        let panels = || rows.iter().flatten();
        ensure!(
            panels().next().is_some(),
            "a comparison needs at least one image"
        );
        ensure!(
            panels().all(|p| p.image.width() > 0 && p.image.height() > 0),
            "a comparison cannot show an empty image"
        );
        let widest = panels().map(|p| p.image.width()).max().unwrap_or(1);
        let zoom = COMFORTABLE.div_ceil(widest).clamp(1, MAX_ZOOM);
        let size = |p: &Panel| {
            (
                p.image.width().saturating_mul(zoom),
                p.image.height().saturating_mul(zoom),
            )
        };
        let count = rows.iter().map(Vec::len).max().unwrap_or(0);
        let columns: Vec<u32> = (0..count)
            .map(|c| {
                rows.iter()
                    .filter_map(|row| row.get(c))
                    .map(|p| size(p).0)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let fits = |text: &str, column: usize| text_width(text, 2) <= columns[column];
        let large = rows.iter().all(|row| {
            row.iter()
                .enumerate()
                .all(|(c, p)| fits(&p.title, c) && p.note.lines().all(|line| fits(line, c)))
        });
        Ok(Layout {
            zoom,
            pen: if large { 2 } else { 1 },
            rows: rows
                .iter()
                .map(|row| row.iter().map(|p| size(p).1).max().unwrap_or(0))
                .collect(),
            columns,
            has_title: panels().any(|p| !p.title.is_empty()),
            note_lines: panels()
                .map(|p| p.note.lines().count() as u32)
                .max()
                .unwrap_or(0),
        })
    }

    /// Height of the title with its distance from the image; 0 if there is none.
    fn title(&self) -> u32 {
        u32::from(self.has_title) * (8 * self.pen + TEXT_GAP)
    }

    /// Distance from a line of a note to the next.
    fn leading(&self) -> u32 {
        10 * self.pen
    }

    /// Height of the notes with their distance from the image; 0 if there are none.
    fn notes(&self) -> u32 {
        match self.note_lines {
            0 => 0,
            lines => 8 * self.pen + TEXT_GAP + (lines - 1) * self.leading(),
        }
    }

    fn size(&self) -> Result<(u32, u32)> {
        let sum = |lengths: &[u32]| lengths.iter().map(|&l| u64::from(l)).sum::<u64>();
        let text = u64::from(self.title() + self.notes());
        let width = u64::from(2 * MARGIN)
            + sum(&self.columns)
            + (self.columns.len() as u64 - 1) * u64::from(GAP);
        let height = u64::from(2 * MARGIN)
            + sum(&self.rows)
            + self.rows.len() as u64 * (text + u64::from(ROW_GAP))
            - u64::from(ROW_GAP);
        ensure!(
            width * height <= MAX_PIXELS,
            "the comparison would be {width}x{height} pixels; show fewer or smaller images"
        );
        Ok((width as u32, height as u32))
    }
}

fn draw(rows: &[Vec<Panel>]) -> Result<RgbImage> {
    let layout = Layout::new(rows)?;
    let (width, height) = layout.size()?;
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    let mut top = MARGIN;
    for (row, &tall) in rows.iter().zip(&layout.rows) {
        let mut left = MARGIN;
        let below_title = top + layout.title();
        for (panel, &wide) in row.iter().zip(&layout.columns) {
            let (w, h) = (
                panel.image.width() * layout.zoom,
                panel.image.height() * layout.zoom,
            );
            let (x, y) = (left + (wide - w) / 2, below_title + (tall - h) / 2);
            centred(&mut sheet, &panel.title, (left, top, wide), layout.pen, INK);
            place(&mut sheet, panel.image, (x, y), layout.zoom);
            for (i, line) in panel.note.lines().enumerate() {
                let place = below_title + tall + TEXT_GAP + i as u32 * layout.leading();
                centred(&mut sheet, line, (left, place, wide), layout.pen, FAINT);
            }
            left += wide + GAP;
        }
        top = below_title + tall + layout.notes() + ROW_GAP;
    }
    Ok(sheet)
}

/// Draws an image, enlarged `zoom` times, with a frame of one pixel around it.
fn place(sheet: &mut RgbImage, image: &RgbImage, (x, y): (u32, u32), zoom: u32) {
    let (w, h) = (image.width() * zoom, image.height() * zoom);
    for py in y - 1..=y + h {
        for px in x - 1..=x + w {
            let inside = (x..x + w).contains(&px) && (y..y + h).contains(&py);
            let colour = if inside {
                *image.get_pixel((px - x) / zoom, (py - y) / zoom)
            } else {
                FRAME
            };
            sheet.put_pixel(px, py, colour);
        }
    }
}

fn text_width(text: &str, pen: u32) -> u32 {
    (text.chars().count() as u32).saturating_mul(8 * pen)
}

/// Writes a line of text in the middle of (left, top, width), shortened to fit.
fn centred(
    sheet: &mut RgbImage,
    text: &str,
    (left, top, width): (u32, u32, u32),
    pen: u32,
    ink: Rgb<u8>,
) {
    let room = (width / (8 * pen)) as usize;
    let mut text = text.to_string();
    if text.chars().count() > room {
        text = text
            .chars()
            .take(room.saturating_sub(2))
            .chain("..".chars())
            .take(room)
            .collect();
    }
    let start = left + (width - text_width(&text, pen)) / 2;
    for (i, c) in text.chars().enumerate() {
        let glyph = font8x8::legacy::BASIC_LEGACY
            .get(c as usize)
            .unwrap_or(&font8x8::legacy::BASIC_LEGACY['?' as usize]);
        for (row, bits) in glyph.iter().enumerate() {
            for column in (0..8u32).filter(|column| bits >> column & 1 == 1) {
                let (x, y) = (
                    start + (i as u32 * 8 + column) * pen,
                    top + row as u32 * pen,
                );
                imageops::replace(
                    sheet,
                    &RgbImage::from_pixel(pen, pen, ink),
                    x.into(),
                    y.into(),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel<'a>(image: &'a RgbImage, title: &str, note: &str) -> Panel<'a> {
        Panel {
            image,
            title: title.into(),
            note: note.into(),
        }
    }

    #[test]
    fn panels_keep_their_pixels_and_do_not_overlap() {
        let (a, b) = (
            RgbImage::from_pixel(300, 200, Rgb([255, 0, 0])),
            RgbImage::from_pixel(300, 200, Rgb([0, 255, 0])),
        );
        let sheet = draw(&[
            vec![
                panel(&a, "left", "20.00 dB"),
                panel(&b, "right", "30.00 dB"),
            ],
            vec![panel(&b, "below", "")],
        ])
        .unwrap();
        let count = |colour: [u8; 3]| sheet.pixels().filter(|p| p.0 == colour).count();
        assert_eq!((count([255, 0, 0]), count([0, 255, 0])), (60_000, 120_000));
        assert_eq!(sheet.width(), 2 * MARGIN + 600 + GAP);
        assert!(
            count(INK.0) > 500 && count(FAINT.0) > 500,
            "labels are missing"
        );
    }

    #[test]
    fn small_panels_are_enlarged_and_long_titles_cut() {
        let image = RgbImage::from_fn(60, 50, |x, y| Rgb([x as u8, y as u8, 7]));
        let sheet = draw(&[vec![panel(
            &image,
            &"a long title ".repeat(20),
            "caf\u{e9}",
        )]])
        .unwrap();
        assert_eq!(sheet.width(), 2 * MARGIN + 240);
        assert_eq!(sheet.pixels().filter(|p| p.0 == [9, 9, 7]).count(), 16);
    }

    #[test]
    fn rejects_an_empty_sheet_and_a_huge_one() {
        assert!(draw(&[]).is_err());
        assert!(draw(&[vec![panel(&RgbImage::new(0, 5), "", "")]]).is_err());
        let large = RgbImage::new(4000, 4000);
        let rows: Vec<_> = (0..6)
            .map(|_| (0..6).map(|_| panel(&large, "", "")).collect())
            .collect();
        assert!(draw(&rows).unwrap_err().to_string().contains("fewer"));
    }

    #[test]
    fn the_file_is_a_png_and_an_error_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let image = RgbImage::new(8, 8);
        comparison(
            &[vec![panel(&image, "t", "n")]],
            &dir.path().join("sheet.png"),
        )
        .unwrap();
        assert!(
            std::fs::read(dir.path().join("sheet.png"))
                .unwrap()
                .starts_with(b"\x89PNG")
        );
        let error = comparison(
            &[vec![panel(&image, "t", "n")]],
            &dir.path().join("missing/sheet.png"),
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("sheet.png"));
    }
}
