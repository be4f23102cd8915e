//! Upscaling an image row by row, so that memory holds one row of tiles and never the image.
//! Depends on the tiles and on the dataset's resampling.

use super::tiles::{Span, TileGrid, Tiler, try_resize};
use crate::backend::Backend;
use crate::dataset::degrade::Resampler;
use crate::dataset::rows::PixelRows;
use anyhow::{Context, Result};
use image::GrayImage;
use std::ops::Range;

/// LQ rows on each side of an LQ row that the bicubic enlargement of that row depends on.
const ALPHA_REACH: usize = 3;

/// The rows of an enlarged image. Its LQ rows are read from the source when they are needed; memory
/// holds the rows of one row of tiles only. An alpha channel is enlarged by the bicubic filter.
pub struct UpscaledRows<'a> {
    tiler: &'a mut Tiler,
    backend: &'a mut dyn Backend,
    source: &'a mut dyn PixelRows,
    grid: TileGrid,
    /// Number of the next row of tiles.
    next: usize,
    /// The LQ rows that `window` holds.
    held: Range<usize>,
    /// LQ rows `[tile height, width, 3]`.
    window: Vec<u8>,
    /// Alpha of the same rows `[tile height, width]`; empty without alpha.
    alpha: Vec<u8>,
    /// One RGBA row of the source.
    raw: Vec<u8>,
    resampler: Resampler,
    /// Enlarged RGB rows of the current row of tiles.
    out: Vec<u8>,
    /// The same rows as RGBA; empty without alpha.
    with_alpha: Vec<u8>,
    /// How many bytes of the enlarged rows the caller has read.
    given: usize,
}

impl<'a> UpscaledRows<'a> {
    /// `backend` is loaded with the plan of the grid's tiles.
    pub(super) fn new(
        tiler: &'a mut Tiler,
        backend: &'a mut dyn Backend,
        source: &'a mut dyn PixelRows,
        grid: TileGrid,
    ) -> UpscaledRows<'a> {
        UpscaledRows {
            tiler,
            backend,
            source,
            grid,
            next: 0,
            held: 0..0,
            window: Vec::new(),
            alpha: Vec::new(),
            raw: Vec::new(),
            resampler: Resampler::new(),
            out: Vec::new(),
            with_alpha: Vec::new(),
            given: 0,
        }
    }

    fn has_alpha(&self) -> bool {
        self.source.channels() == 4
    }

    /// Reads the LQ rows of a row of tiles into the window; rows that the previous row of tiles
    /// also needed are moved, not read again.
    fn fill_window(&mut self, row: Span) -> Result<()> {
        let (w, wanted) = (self.grid.width, row.start..row.start + self.grid.shape.0);
        let alpha = self.has_alpha();
        let count = wanted.len() * w;
        try_resize(&mut self.window, count * 3, "rows of the image")?;
        if alpha {
            try_resize(&mut self.alpha, count, "rows of the alpha channel")?;
        }
        // rows are read without a gap, so the held ones begin at or before the first wanted one
        let kept = self.held.end.saturating_sub(wanted.start);
        let moved = wanted.start - self.held.start.min(wanted.start);
        self.window
            .copy_within(moved * w * 3..(moved + kept) * w * 3, 0);
        if alpha {
            self.alpha.copy_within(moved * w..(moved + kept) * w, 0);
            self.read_rgba_rows(kept..wanted.len())?;
        } else {
            self.source.read(&mut self.window[kept * w * 3..])?;
        }
        self.held = wanted;
        Ok(())
    }

    /// Reads RGBA rows into rows `rows` of `window` and `alpha`.
    fn read_rgba_rows(&mut self, rows: Range<usize>) -> Result<()> {
        let w = self.grid.width;
        try_resize(&mut self.raw, w * 4, "a row of the image")?;
        for y in rows {
            self.source.read(&mut self.raw)?;
            for (x, pixel) in self.raw.chunks_exact(4).enumerate() {
                self.window[(y * w + x) * 3..][..3].copy_from_slice(&pixel[..3]);
                self.alpha[y * w + x] = pixel[3];
            }
        }
        Ok(())
    }

    /// Upscales the next row of tiles.
    fn advance(&mut self) -> Result<()> {
        let row = self.grid.rows.get(self.next);
        let row = *row.context("the enlarged image has no rows left")?;
        self.next += 1;
        self.fill_window(row)?;
        let (scale, w) = (self.tiler.net.scale, self.grid.width);
        let pixels = (row.valid.1 - row.valid.0) * scale * w * scale;
        try_resize(&mut self.out, pixels * 3, "enlarged rows")?;
        self.tiler
            .upscale_row(self.backend, &self.grid, row, &self.window, &mut self.out)?;
        self.given = 0;
        if self.has_alpha() {
            self.add_alpha(row, pixels)?;
        }
        Ok(())
    }

    /// Enlarges the alpha of a row of tiles and interleaves it with the `pixels` RGB pixels.
    fn add_alpha(&mut self, row: Span, pixels: usize) -> Result<()> {
        let (scale, w) = (self.tiler.net.scale, self.grid.width);
        let first = row.valid.0.saturating_sub(ALPHA_REACH).max(row.start);
        let last = (row.valid.1 + ALPHA_REACH).min(row.start + self.grid.shape.0);
        let seen = &self.alpha[(first - row.start) * w..(last - row.start) * w];
        let plane = GrayImage::from_raw(w as u32, (last - first) as u32, seen.to_vec())
            .context("the alpha channel has a wrong length")?;
        let large = self.resampler.upscale_plane(&plane, scale as u32)?;
        let large = &large.as_raw()[(row.valid.0 - first) * scale * w * scale..][..pixels];
        try_resize(&mut self.with_alpha, pixels * 4, "enlarged rows")?;
        for ((to, rgb), alpha) in self
            .with_alpha
            .chunks_exact_mut(4)
            .zip(self.out.chunks_exact(3))
            .zip(large)
        {
            to[..3].copy_from_slice(rgb);
            to[3] = *alpha;
        }
        Ok(())
    }
}

impl PixelRows for UpscaledRows<'_> {
    fn size(&self) -> (u32, u32) {
        let ((w, h), scale) = (self.source.size(), self.tiler.net.scale as u32);
        (w * scale, h * scale)
    }

    fn channels(&self) -> usize {
        self.source.channels()
    }

    fn read(&mut self, mut rows: &mut [u8]) -> Result<()> {
        while !rows.is_empty() {
            let ready = if self.has_alpha() {
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
