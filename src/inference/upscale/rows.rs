//! Upscaling an image row by row, so that memory holds one row of tiles and never the image.
//! Depends on the tiles and on the dataset's resampling. An image whose first rows depend on its
//! last ones is read twice.

use super::device::TileRunner;
use super::spans::Span;
use super::stages::Features;
use super::tiles::{RowPieces, TileGrid, Tiler, try_resize};
use crate::dataset::degrade::Resampler;
use crate::dataset::rows::{PixelRows, RereadRows};
use anyhow::{Context, Result};
use image::GrayImage;
use std::ops::Range;

/// LQ rows on each side of an LQ row that the bicubic enlargement of that row depends on.
const ALPHA_REACH: usize = 3;

/// The LQ rows that a row of tiles needs.
pub(super) struct LqRows<'a> {
    source: &'a mut dyn RereadRows,
    /// The rows of the image that `window` holds.
    held: Range<usize>,
    /// `[tile height, width, 3]`, of which the first rows are used: the piece of the row of tiles
    /// that has the valid rows.
    window: Vec<u8>,
    /// Alpha of the same rows `[tile height, width]`; empty without alpha.
    alpha: Vec<u8>,
    /// The first rows of the image, if the last rows of tiles need them once more.
    first_rows: Vec<u8>,
    /// The last rows of the image, if the first rows of tiles need them.
    last_rows: Vec<u8>,
    /// One row of the source.
    raw: Vec<u8>,
}

impl<'a> LqRows<'a> {
    pub fn new(source: &'a mut dyn RereadRows) -> LqRows<'a> {
        LqRows {
            source,
            held: 0..0,
            window: Vec::new(),
            alpha: Vec::new(),
            first_rows: Vec::new(),
            last_rows: Vec::new(),
            raw: Vec::new(),
        }
    }

    fn has_alpha(&self) -> bool {
        self.source.channels() == 4
    }

    /// Bytes of a sample.
    pub fn bytes(&self) -> usize {
        self.source.sample_bytes()
    }

    /// Reads the image's last rows, and goes back to its first.
    fn read_last_rows(&mut self, grid: &TileGrid) -> Result<()> {
        let (w, (from, to)) = (grid.width, grid.last_rows());
        if from == to {
            return Ok(());
        }
        let bytes = self.bytes();
        let (all, pixel) = (self.source.channels() * bytes, 3 * bytes);
        try_resize(&mut self.raw, w * all, "a row of the image")?;
        let count = (to - from) * w * pixel;
        try_resize(&mut self.last_rows, count, "the last rows of the image")?;
        for _ in 0..from {
            self.source.read(&mut self.raw)?;
        }
        for line in self.last_rows.chunks_exact_mut(w * pixel) {
            self.source.read(&mut self.raw)?;
            for (to, from) in line.chunks_exact_mut(pixel).zip(self.raw.chunks_exact(all)) {
                to.copy_from_slice(&from[..pixel]);
            }
        }
        self.source.restart()
    }

    /// Reads the LQ rows `wanted` into the window; rows that the previous row of tiles also needed
    /// are moved, not read again.
    fn fill_window(&mut self, grid: &TileGrid, wanted: Range<usize>) -> Result<()> {
        let w = grid.width;
        let bytes = self.bytes();
        let (alpha, most) = (self.has_alpha(), grid.shape.0 * w * bytes);
        try_resize(&mut self.window, most * 3, "rows of the image")?;
        if alpha {
            try_resize(&mut self.alpha, most, "rows of the alpha channel")?;
        }
        let w = w * bytes; // bytes of one channel of a row
        // rows are read without a gap, so the held ones begin at or before the first wanted one
        let kept = self.held.end.saturating_sub(wanted.start);
        let moved = wanted.start - self.held.start.min(wanted.start);
        self.window
            .copy_within(moved * w * 3..(moved + kept) * w * 3, 0);
        if alpha {
            self.alpha.copy_within(moved * w..(moved + kept) * w, 0);
            self.read_rgba_rows(grid.width, kept..wanted.len())?;
        } else {
            let new = kept * w * 3..wanted.len() * w * 3;
            self.source.read(&mut self.window[new])?;
        }
        self.held = wanted;
        Ok(())
    }

    /// Reads RGBA rows into rows `rows` of `window` and `alpha`.
    fn read_rgba_rows(&mut self, w: usize, rows: Range<usize>) -> Result<()> {
        let n = self.bytes();
        try_resize(&mut self.raw, w * 4 * n, "a row of the image")?;
        for y in rows {
            self.source.read(&mut self.raw)?;
            for (x, pixel) in self.raw.chunks_exact(4 * n).enumerate() {
                let (rgb, alpha) = pixel.split_at(3 * n);
                self.window[(y * w + x) * 3 * n..][..3 * n].copy_from_slice(rgb);
                self.alpha[(y * w + x) * n..][..n].copy_from_slice(alpha);
            }
        }
        Ok(())
    }

    /// Reads the LQ rows of a row of tiles.
    pub fn read(&mut self, grid: &TileGrid, row: Span) -> Result<()> {
        let is_first = self.held.is_empty();
        if is_first {
            self.read_last_rows(grid)?;
        }
        let (from, to) = row.pieces[row.valid_piece()];
        self.fill_window(grid, from..to)?;
        if is_first {
            let count = grid.first_rows() * grid.width * 3 * self.bytes();
            try_resize(&mut self.first_rows, count, "the first rows of the image")?;
            self.first_rows.copy_from_slice(&self.window[..count]);
        }
        Ok(())
    }

    /// The pieces of a row of tiles, whose rows were read.
    pub fn pieces(&self, grid: &TileGrid, row: Span) -> RowPieces<'_> {
        let line = grid.width * 3 * self.bytes();
        let window = &self.window[..self.held.len() * line];
        if row.valid_piece() == 1 {
            return [&self.first_rows[..row.pieces[0].1 * line], window];
        }
        let (from, to) = row.pieces[1];
        if from == to {
            return [window, &[]];
        }
        let last_rows = &self.last_rows[(from - grid.last_rows().0) * line..];
        [window, last_rows]
    }
}

/// The rows of an enlarged image. Its LQ rows are read from the source when they are needed; memory
/// holds the rows of one row of tiles only. An alpha channel is enlarged by the bicubic filter.
pub struct UpscaledRows<'a> {
    tiler: &'a mut Tiler,
    backend: TileRunner<'a>,
    grid: TileGrid,
    lq: LqRows<'a>,
    /// What the last stage begins with, if the network is computed in stages.
    features: Option<Features>,
    /// Number of the next row of tiles.
    next: usize,
    resampler: Resampler,
    /// Enlarged RGB rows of the current row of tiles.
    out: Vec<u8>,
    /// The same rows as RGBA; empty without alpha.
    with_alpha: Vec<u8>,
    /// How many bytes of the enlarged rows the caller has read.
    given: usize,
}

impl<'a> UpscaledRows<'a> {
    /// `backend` is loaded with the plan of the grid's tiles, or of the last stage if there are
    /// `features`.
    pub(super) fn new(
        tiler: &'a mut Tiler,
        backend: TileRunner<'a>,
        source: &'a mut dyn RereadRows,
        (grid, features): (TileGrid, Option<Features>),
    ) -> UpscaledRows<'a> {
        UpscaledRows {
            tiler,
            backend,
            grid,
            lq: LqRows::new(source),
            features,
            next: 0,
            resampler: Resampler::new(),
            out: Vec::new(),
            with_alpha: Vec::new(),
            given: 0,
        }
    }

    /// Upscales the next row of tiles.
    fn advance(&mut self) -> Result<()> {
        let row = self.grid.rows.get(self.next);
        let row = *row.context("the enlarged image has no rows left")?;
        self.next += 1;
        self.lq.read(&self.grid, row)?;
        let (scale, w) = (self.tiler.net.scale, self.grid.width);
        let pixels = (row.valid.1 - row.valid.0) * scale * w * scale;
        let bytes = self.lq.bytes();
        try_resize(&mut self.out, pixels * 3 * bytes, "enlarged rows")?;
        let pieces = self.lq.pieces(&self.grid, row);
        let result = (self.out.as_mut_slice(), self.features.as_mut());
        self.tiler
            .upscale_row(&mut self.backend, &self.grid, row, pieces, result)?;
        self.given = 0;
        if self.lq.has_alpha() {
            self.add_alpha(row, pixels)?;
        }
        Ok(())
    }

    /// Enlarges the alpha of a row of tiles and interleaves it with the `pixels` RGB pixels.
    fn add_alpha(&mut self, row: Span, pixels: usize) -> Result<()> {
        let (scale, w, n) = (self.tiler.net.scale, self.grid.width, self.lq.bytes());
        let held = &self.lq.held;
        let first = row.valid.0.saturating_sub(ALPHA_REACH).max(held.start);
        let last = (row.valid.1 + ALPHA_REACH).min(held.end);
        let seen = &self.lq.alpha[(first - held.start) * w * n..(last - held.start) * w * n];
        let size = (w as u32, (last - first) as u32);
        let large = if n == 2 {
            let (seen, _) = seen.as_chunks::<2>();
            let plane: Vec<u16> = seen.iter().map(|&b| u16::from_ne_bytes(b)).collect();
            let large = self
                .resampler
                .upscale_deep_plane(&plane, size, scale as u32)?;
            bytemuck::cast_slice(&large).to_vec()
        } else {
            let plane = GrayImage::from_raw(size.0, size.1, seen.to_vec())
                .context("the alpha channel has a wrong length")?;
            let large = self.resampler.upscale_plane(&plane, scale as u32)?;
            large.into_raw()
        };
        let large = &large[(row.valid.0 - first) * scale * w * scale * n..][..pixels * n];
        try_resize(&mut self.with_alpha, pixels * 4 * n, "enlarged rows")?;
        let colours = self.out.chunks_exact(3 * n).zip(large.chunks_exact(n));
        for (to, (rgb, alpha)) in self.with_alpha.chunks_exact_mut(4 * n).zip(colours) {
            to[..3 * n].copy_from_slice(rgb);
            to[3 * n..].copy_from_slice(alpha);
        }
        Ok(())
    }
}

impl PixelRows for UpscaledRows<'_> {
    fn size(&self) -> (u32, u32) {
        let ((w, h), scale) = (self.lq.source.size(), self.tiler.net.scale as u32);
        (w * scale, h * scale)
    }

    fn channels(&self) -> usize {
        self.lq.source.channels()
    }

    fn sample_bytes(&self) -> usize {
        self.lq.bytes()
    }

    fn read(&mut self, mut rows: &mut [u8]) -> Result<()> {
        while !rows.is_empty() {
            let ready = if self.lq.has_alpha() {
                &self.with_alpha
            } else {
                &self.out
            };
            if self.given == ready.len() {
                self.advance()?;
                continue;
            }
            let count = rows.len().min(ready.len() - self.given);
            let (now, later) = rows.split_at_mut(count);
            now.copy_from_slice(&ready[self.given..self.given + count]);
            self.given += count;
            rows = later;
        }
        Ok(())
    }
}
