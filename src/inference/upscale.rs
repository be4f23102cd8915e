//! Applying a trained network to images of any size: tiles that overlap by the receptive field,
//! so that the result is the same bits for every tile size, in an arena sized for one tile or in
//! the part of a training step's arena that is free between steps. An image may come and go in
//! rows, so that only one row of tiles is in memory. Depends on the networks, the backends and the
//! dataset's resampling. Promises that what it allocates is what it computes beforehand.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use crate::dataset::degrade::Resampler;
use crate::dataset::rows::PixelRows;
use crate::model::{InferenceSpec, Network, inference_plan};
use crate::plan::{Plan, Sizing};
use crate::support::failure::no_memory;
use crate::support::text::bytes_text;
use anyhow::{Context, Result, ensure};
use image::{GrayImage, RgbImage};
use std::ops::Range;

/// Default for the largest tile side in LQ pixels, overlap included.
pub const DEFAULT_TILE: usize = 288;

/// Side of the smallest tile that a training step's arena makes room for, where a run validates:
/// smaller ones would mostly compute their overlap.
pub const LEAST_LENT_TILE: usize = 64;

/// Makes images larger.
pub trait Upscale {
    /// HR pixels per LQ pixel along one side.
    fn scale(&self) -> usize;
    /// The image at `scale` times its size, clamped to [0, 1] and rounded to u8.
    ///
    /// # Errors
    /// When the image is empty or memory is short.
    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage>;
}

/// A network ready to be applied, in an arena of its own.
pub struct Upscaler {
    tiles: Tiles,
    params: Vec<f32>,
    options: CpuOptions,
    /// The backend for the last tile shape (height, width); images smaller than a tile need one
    /// of their own.
    loaded: Option<((usize, usize), CpuBackend)>,
}

/// A network applied in the free part of a training step's arena, between steps.
pub struct LentUpscaler<'a> {
    /// Tiles of the largest size that fits, see [`largest_tile`].
    pub tiles: &'a mut Tiles,
    /// Whose arena.
    pub host: &'a mut dyn Backend,
    /// What inference needs on that backend, in f32.
    pub sizing: &'a dyn Sizing,
    /// In the order of the network's table.
    pub params: &'a [f32],
}

/// Cuts images into tiles and puts the results together; holds one tile in and out.
pub struct Tiles {
    net: Network,
    tile: usize,
    lq: Vec<u8>,
    output: Vec<f32>,
}

fn tile_plan(net: &Network, (h, w): (usize, usize), sizing: &dyn Sizing) -> Result<Plan> {
    inference_plan(
        net,
        &InferenceSpec {
            batch: 1,
            lq: (h, w),
            float_input: false,
        },
        sizing,
    )
}

/// Bytes a training step's arena must have free between steps, so that validation finds room.
///
/// # Errors
/// Only on a bug in the plan.
pub fn least_room(net: &Network, sizing: &dyn Sizing) -> Result<u64> {
    Ok(tile_plan(net, (LEAST_LENT_TILE, LEAST_LENT_TILE), sizing)?.arena_bytes)
}

/// The side of the largest tile, up to the default one, that works in so many bytes.
///
/// # Errors
/// When there is not room for the smallest.
pub fn largest_tile(net: &Network, sizing: &dyn Sizing, room: u64) -> Result<usize> {
    for tile in (LEAST_LENT_TILE..=DEFAULT_TILE).rev().step_by(16) {
        if tile_plan(net, (tile, tile), sizing)?.arena_bytes <= room {
            return Ok(tile);
        }
    }
    anyhow::bail!(
        "{} are too little for a tile of {LEAST_LENT_TILE} pixels",
        bytes_text(room)
    )
}

/// The nearest of 256 levels, ties to even, of a value in 0..=1; values outside go to the ends, and
/// what is no number to 0.
fn level(value: f32) -> u8 {
    // added, it leaves the whole number in the lowest bits; quicker than a call for each value
    const MAGIC: f32 = 8_388_608.0;
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 1.0 { value } else { 1.0 };
    (value * 255.0 + MAGIC).to_bits() as u8
}

/// Where one tile lies along one side: start, and the part of it whose result is valid.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: usize,
    valid: (usize, usize),
}

/// Side of the tiles that a side of `len` pixels is cut into: no more of them than tiles of `most`
/// pixels would be, and no larger than that takes, since what overlaps is computed twice. A
/// multiple of 8 where there are several, so that images of nearly the same size share an arena.
fn tile_side(len: usize, most: usize, halo: usize) -> usize {
    if len <= most {
        return len;
    }
    let (inner, overlap) = (len - 2 * halo, 2 * halo);
    let count = inner.div_ceil(most - overlap);
    (inner.div_ceil(count) + overlap)
        .next_multiple_of(8)
        .min(most)
}

/// Cuts a side of `len` pixels into equal tiles of `tile` (or one of `len`), valid parts touching
/// without gap or overlap.
fn spans(len: usize, tile: usize, halo: usize) -> Vec<Span> {
    if len <= tile {
        return vec![Span {
            start: 0,
            valid: (0, len),
        }];
    }
    let mut list = Vec::new();
    let mut done = 0;
    while done < len {
        let start = if done == 0 {
            0
        } else {
            (done - halo).min(len - tile)
        };
        let end = if start + tile == len {
            len
        } else {
            start + tile - halo
        };
        list.push(Span {
            start,
            valid: (done, end),
        });
        done = end;
    }
    list
}

impl Tiles {
    /// `tile` in LQ pixels (0: the default).
    ///
    /// # Errors
    /// When the tile is too small for the network's receptive field.
    pub fn new(net: Network, tile: usize) -> Result<Tiles> {
        let tile = if tile == 0 { DEFAULT_TILE } else { tile };
        let least = 2 * net.receptive_field() + 1;
        ensure!(
            tile >= least,
            "a tile of {tile} pixels is smaller than {least}, twice what one output pixel sees; use a larger --tile"
        );
        Ok(Tiles {
            net,
            tile,
            lq: Vec::new(),
            output: Vec::new(),
        })
    }

    /// Bytes beside the arena, at most: one tile in u8, its result in f32, and the parameters.
    pub fn bytes(&self) -> u64 {
        let lq = self.tile * self.tile * 3;
        (lq + lq * self.net.scale * self.net.scale * 4 + self.net.params().len() * 4) as u64
    }

    /// How an image of (width, height) pixels is cut into tiles.
    fn cut(&self, (w, h): (u32, u32)) -> Result<Cut> {
        let (w, h) = (w as usize, h as usize);
        ensure!(w > 0 && h > 0, "the image has no pixels");
        let halo = self.net.receptive_field();
        let (th, tw) = (tile_side(h, self.tile, halo), tile_side(w, self.tile, halo));
        Ok(Cut {
            width: w,
            shape: (th, tw),
            rows: spans(h, th, halo),
            columns: spans(w, tw, halo),
        })
    }

    /// The most bytes that [`Bands`] take for an image beside the arena: the tiles, the LQ rows
    /// that one row of tiles sees, and the HR rows that come out of it.
    fn band_bytes(&self, cut: &Cut, alpha: bool) -> u64 {
        let (scale, (th, tw)) = (self.net.scale, cut.shape);
        let hr = cut.tallest() * scale * cut.width * scale;
        let tile = th * tw * 3 * (1 + 4 * scale * scale);
        let colours = th * cut.width * 3 + hr * 3;
        // the window, its rows that are enlarged, along x and along y, and what is put together
        let alpha = if alpha {
            2 * th * cut.width + th * scale * cut.width + th * scale * cut.width * scale + 2 * hr
        } else {
            0
        };
        (tile + colours + alpha) as u64
    }

    /// Upscales one row of tiles. `window` holds the LQ rows from `row.start` on, as many as a tile
    /// is high; `out` takes the valid HR rows.
    fn band(
        &mut self,
        backend: &mut dyn Backend,
        cut: &Cut,
        row: Span,
        window: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let (scale, w, (th, tw)) = (self.net.scale, cut.width, cut.shape);
        fill_up(&mut self.lq, th * tw * 3, "a tile")?;
        fill_up(
            &mut self.output,
            th * tw * 3 * scale * scale,
            "a tile's result",
        )?;
        let scalars = Scalars {
            lr: 0.0,
            step: 1,
            clip: f64::INFINITY,
            ema_decay: 0.0,
            micro_scale: 1.0,
            loss_scale: 1.0,
            accumulate: false,
        };
        let Some(port) = backend.plan().ports.output else {
            anyhow::bail!("the inference plan has no output")
        };
        for column in &cut.columns {
            for (y, line) in self.lq.chunks_exact_mut(tw * 3).enumerate() {
                let at = (y * w + column.start) * 3;
                line.copy_from_slice(&window[at..at + tw * 3]);
            }
            // the tile's memory is filled again only after the result is read
            let copied = backend.stage(BatchView {
                lq: &self.lq,
                hr: &[],
                augment: &[],
            })?;
            backend.micro_step(&scalars)?;
            drop(copied);
            read_floats(backend, port, &mut self.output)?;
            let width = (column.valid.1 - column.valid.0) * scale * 3;
            for (i, line) in out.chunks_exact_mut(w * scale * 3).enumerate() {
                let y = (row.valid.0 - row.start) * scale + i;
                let from = (y * tw * scale + (column.valid.0 - column.start) * scale) * 3;
                let line = &mut line[column.valid.0 * scale * 3..][..width];
                line.iter_mut()
                    .zip(&self.output[from..from + width])
                    .for_each(|(o, &v)| *o = level(v));
            }
        }
        Ok(())
    }

    /// Upscales an image that is in memory.
    fn run(&mut self, lq: &RgbImage, backend: &mut dyn Backend) -> Result<RgbImage> {
        let (cut, scale) = (self.cut(lq.dimensions())?, self.net.scale);
        let (width, height) = (cut.width * scale, lq.height() as usize * scale);
        let mut out = Vec::new();
        fill_up(&mut out, width * height * 3, "the enlarged image")?; // at most 200 million pixels times 64
        let mut left = out.as_mut_slice();
        for &row in &cut.rows {
            let (band, rest) = left.split_at_mut((row.valid.1 - row.valid.0) * scale * width * 3);
            left = rest;
            let window = &lq.as_raw()[row.start * cut.width * 3..][..cut.shape.0 * cut.width * 3];
            self.band(backend, &cut, row, window, band)?;
        }
        RgbImage::from_raw(width as u32, height as u32, out)
            .context("the enlarged image has a wrong length")
    }
}

/// Makes a vector `len` long, or says that there is no memory for `what`.
fn fill_up<T: Copy + Default>(data: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    if len > data.len() {
        data.try_reserve_exact(len - data.len())
            .map_err(|_| no_memory(len * size_of::<T>(), what))?;
    }
    data.resize(len, T::default());
    Ok(())
}

/// How one image is cut.
struct Cut {
    /// LQ pixels.
    width: usize,
    /// (height, width) of a tile.
    shape: (usize, usize),
    rows: Vec<Span>,
    columns: Vec<Span>,
}

impl Cut {
    /// LQ rows that the tallest row of tiles results in.
    fn tallest(&self) -> usize {
        self.rows
            .iter()
            .map(|row| row.valid.1 - row.valid.0)
            .max()
            .unwrap_or(0)
    }
}

/// LQ rows on each side of an LQ row that its enlargement by the bicubic filter depends on.
const ALPHA_REACH: usize = 3;

/// An image on its way through a network: LQ rows are read as they are needed, and the enlarged
/// rows are read from it in turn. In memory are the rows of one row of tiles alone. An alpha
/// channel is enlarged by the bicubic filter.
pub struct Bands<'a> {
    tiles: &'a mut Tiles,
    backend: &'a mut dyn Backend,
    source: &'a mut dyn PixelRows,
    cut: Cut,
    /// Number of the next row of tiles.
    next: usize,
    /// LQ rows that are in the window.
    held: Range<usize>,
    window: Vec<u8>,
    /// The window's alpha; empty without.
    alpha: Vec<u8>,
    /// Rows as they are read.
    raw: Vec<u8>,
    resampler: Resampler,
    /// Enlarged RGB rows, and how many of their bytes were handed out.
    out: Vec<u8>,
    /// The same rows with alpha; empty without.
    with_alpha: Vec<u8>,
    given: usize,
}

impl Bands<'_> {
    /// Brings the LQ rows of a row of tiles into the window; those that it shares with the one
    /// before stay.
    fn fill_window(&mut self, row: Span) -> Result<()> {
        let (w, wanted) = (self.cut.width, row.start..row.start + self.cut.shape.0);
        fill_up(&mut self.window, wanted.len() * w * 3, "rows of the image")?;
        let alpha = self.source.channels() == 4;
        if alpha {
            fill_up(
                &mut self.alpha,
                wanted.len() * w,
                "rows of the alpha channel",
            )?;
        }
        // rows are read without a gap, so those held begin at or before the first that is wanted
        let kept = self.held.end.saturating_sub(wanted.start);
        let moved = wanted.start - self.held.start.min(wanted.start);
        self.window
            .copy_within(moved * w * 3..(moved + kept) * w * 3, 0);
        if alpha {
            self.alpha.copy_within(moved * w..(moved + kept) * w, 0);
        }
        if !alpha {
            self.source.read(&mut self.window[kept * w * 3..])?;
        } else {
            fill_up(&mut self.raw, w * 4, "a row of the image")?;
            for y in kept..wanted.len() {
                self.source.read(&mut self.raw)?;
                for (x, pixel) in self.raw.chunks_exact(4).enumerate() {
                    self.window[(y * w + x) * 3..][..3].copy_from_slice(&pixel[..3]);
                    self.alpha[y * w + x] = pixel[3];
                }
            }
        }
        self.held = wanted;
        Ok(())
    }

    /// Upscales the next row of tiles.
    fn advance(&mut self) -> Result<()> {
        let row = *self
            .cut
            .rows
            .get(self.next)
            .context("the enlarged image has no rows left")?;
        self.next += 1;
        self.fill_window(row)?;
        let (scale, w) = (self.tiles.net.scale, self.cut.width);
        let pixels = (row.valid.1 - row.valid.0) * scale * w * scale;
        fill_up(&mut self.out, pixels * 3, "enlarged rows")?;
        self.tiles
            .band(self.backend, &self.cut, row, &self.window, &mut self.out)?;
        self.given = 0;
        if self.source.channels() == 4 {
            self.add_alpha(row, pixels)?;
        }
        Ok(())
    }

    /// Enlarges the alpha of a row of tiles and puts it beside the colours.
    fn add_alpha(&mut self, row: Span, pixels: usize) -> Result<()> {
        let (scale, w) = (self.tiles.net.scale, self.cut.width);
        let first = row.valid.0.saturating_sub(ALPHA_REACH).max(row.start);
        let last = (row.valid.1 + ALPHA_REACH).min(row.start + self.cut.shape.0);
        let seen = &self.alpha[(first - row.start) * w..(last - row.start) * w];
        let plane = GrayImage::from_raw(w as u32, (last - first) as u32, seen.to_vec())
            .context("the alpha channel has a wrong length")?;
        let large = self.resampler.upscale_plane(&plane, scale as u32)?;
        let large = &large.as_raw()[(row.valid.0 - first) * scale * w * scale..][..pixels];
        fill_up(&mut self.with_alpha, pixels * 4, "enlarged rows")?;
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

impl PixelRows for Bands<'_> {
    fn size(&self) -> (u32, u32) {
        let ((w, h), scale) = (self.source.size(), self.tiles.net.scale as u32);
        (w * scale, h * scale)
    }

    fn channels(&self) -> usize {
        self.source.channels()
    }

    fn read(&mut self, mut rows: &mut [u8]) -> Result<()> {
        while !rows.is_empty() {
            let ready = if self.source.channels() == 4 {
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

fn set_parameters(backend: &mut dyn Backend, params: &[f32]) -> Result<()> {
    let Some(port) = backend.plan().ports.parameters else {
        anyhow::bail!("the inference plan has no parameters")
    };
    write_floats(backend, port, params)
}

impl Upscaler {
    /// `params` in the order of the network's table; `tile` in LQ pixels (0: the default).
    ///
    /// # Errors
    /// When the tile is too small for the network's receptive field.
    pub fn new(
        net: Network,
        params: Vec<f32>,
        options: CpuOptions,
        tile: usize,
    ) -> Result<Upscaler> {
        ensure!(
            params.len() == net.params().len(),
            "{} parameters where the network has {}",
            params.len(),
            net.params().len()
        );
        Ok(Upscaler {
            tiles: Tiles::new(net, tile)?,
            params,
            options,
            loaded: None,
        })
    }

    /// Bytes of the arena for an image of at least a tile, and of the buffers beside it.
    ///
    /// # Errors
    /// Only on a bug in the plan.
    pub fn bytes(&self) -> Result<u64> {
        let plan = tile_plan(
            &self.tiles.net,
            (self.tiles.tile, self.tiles.tile),
            &self.options,
        )?;
        Ok(plan.arena_bytes + self.tiles.bytes())
    }

    /// Bytes for upscaling an image of (width, height) LQ pixels in rows: arena, parameters, and
    /// what [`Bands`] hold.
    ///
    /// # Errors
    /// When the image is empty or larger than can be addressed.
    pub fn bytes_in_rows(&self, size: (u32, u32), alpha: bool) -> Result<u64> {
        let cut = self.tiles.cut(size)?;
        Ok(self.arena_bytes(cut.shape)? + self.tiles.band_bytes(&cut, alpha))
    }

    /// Bytes for upscaling an image of (width, height) LQ pixels that is in memory, the image
    /// and its result not counted.
    ///
    /// # Errors
    /// When the image is empty.
    pub fn bytes_in_memory(&self, size: (u32, u32)) -> Result<u64> {
        let (th, tw) = self.tiles.cut(size)?.shape;
        let tile = th * tw * 3 * (1 + 4 * self.tiles.net.scale * self.tiles.net.scale);
        Ok(self.arena_bytes((th, tw))? + tile as u64)
    }

    /// Arena and parameters.
    fn arena_bytes(&self, shape: (usize, usize)) -> Result<u64> {
        Ok(
            tile_plan(&self.tiles.net, shape, &self.options)?.arena_bytes
                + 4 * self.params.len() as u64,
        )
    }

    /// Gives the arena back unless the next image, of (width, height) LQ pixels, is cut into
    /// tiles of the same shape: what is computed for an image holds no other one's arena.
    pub fn make_room_for(&mut self, size: (u32, u32)) {
        let shape = self.tiles.cut(size).map(|cut| cut.shape).ok();
        self.loaded.take_if(|(loaded, _)| Some(*loaded) != shape);
    }

    /// Upscales an image as it is read; the result is read from what this returns.
    ///
    /// # Errors
    /// When the image is empty or memory is short.
    pub fn bands<'a>(&'a mut self, source: &'a mut dyn PixelRows) -> Result<Bands<'a>> {
        let cut = self.tiles.cut(source.size())?;
        self.load(cut.shape)?;
        let (tiles, Some((_, backend))) = (&mut self.tiles, &mut self.loaded) else {
            anyhow::bail!("no backend was loaded")
        };
        Ok(Bands {
            tiles,
            backend,
            source,
            cut,
            next: 0,
            held: 0..0,
            window: Vec::new(),
            alpha: Vec::new(),
            raw: Vec::new(),
            resampler: Resampler::new(),
            out: Vec::new(),
            with_alpha: Vec::new(),
            given: 0,
        })
    }

    /// Makes the backend ready for tiles of (height, width) pixels.
    fn load(&mut self, shape: (usize, usize)) -> Result<()> {
        if self
            .loaded
            .as_ref()
            .is_none_or(|(loaded, _)| *loaded != shape)
        {
            self.loaded = None; // its arena goes before the next one comes
            let plan = tile_plan(&self.tiles.net, shape, &self.options)?;
            let needs = bytes_text(plan.arena_bytes);
            let mut backend = CpuBackend::new(plan, self.options).with_context(|| {
                format!(
                    "cannot prepare {needs} and {} threads to compute with; try a smaller --tile or fewer --threads",
                    self.options.threads()
                )
            })?;
            set_parameters(&mut backend, &self.params)?;
            self.loaded = Some((shape, backend));
        }
        Ok(())
    }
}

impl Upscale for Upscaler {
    fn scale(&self) -> usize {
        self.tiles.net.scale
    }

    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage> {
        self.load(self.tiles.cut(lq.dimensions())?.shape)?;
        let Some((_, backend)) = &mut self.loaded else {
            anyhow::bail!("no backend was loaded")
        };
        self.tiles.run(lq, backend)
    }
}

impl Upscale for LentUpscaler<'_> {
    fn scale(&self) -> usize {
        self.tiles.net.scale
    }

    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage> {
        let plan = tile_plan(
            &self.tiles.net,
            self.tiles.cut(lq.dimensions())?.shape,
            self.sizing,
        )?;
        let mut upscaler = self.host.lend(plan)?;
        set_parameters(upscaler.as_mut(), self.params)?;
        self.tiles.run(lq, upscaler.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_every_pixel_once_and_keep_their_halo() {
        let (tile, halo) = (32, 8);
        for len in 1..200 {
            let list = spans(len, tile, halo);
            let mut next = 0;
            for s in &list {
                assert_eq!(s.valid.0, next);
                let end = s.start + tile.min(len);
                assert!(end <= len && s.valid.0 >= s.start && s.valid.1 <= end);
                assert!(
                    s.start == 0 || s.valid.0 >= s.start + halo,
                    "{len}: {list:?}"
                );
                assert!(end == len || s.valid.1 + halo <= end, "{len}: {list:?}");
                next = s.valid.1;
            }
            assert_eq!(next, len);
        }
    }

    #[test]
    fn tiles_overlap_no_more_than_their_number_takes() {
        assert_eq!(tile_side(288, 288, 9), 288);
        assert_eq!(tile_side(512, 288, 9), 272); // two
        assert_eq!(spans(512, 272, 9).len(), 2);
        for len in 33..400 {
            let side = tile_side(len, 32, 8);
            assert!(
                side <= 32 && spans(len, side, 8).len() == spans(len, 32, 8).len(),
                "{len}: {side}"
            );
        }
    }

    #[test]
    fn levels_round_as_the_processor_does() {
        for i in 0..=255 * 64 + 200 {
            let value = (i as f32 - 100.0) / (255.0 * 64.0);
            assert_eq!(
                level(value),
                (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8,
                "{value}"
            );
        }
        assert_eq!(
            [
                level(f32::NAN),
                level(f32::INFINITY),
                level(f32::NEG_INFINITY)
            ],
            [0, 255, 0]
        );
    }

    fn noise(w: u32, h: u32) -> RgbImage {
        RgbImage::from_fn(w, h, |x, y| {
            image::Rgb(std::array::from_fn(|c| {
                crate::support::rng::key(&[u64::from(x), u64::from(y), c as u64]) as u8
            }))
        })
    }

    #[test]
    fn the_result_does_not_depend_on_the_tile_size_or_the_threads() {
        for scale in [2, 3] {
            let mut net = Network::new("nano", scale).unwrap();
            net.layer_scale = 0.5; // so that the blocks matter
            net.detail_gain = 1.0;
            let params = net.params().start_values(3);
            let picture = noise(77, 53);
            let run = |tile: usize, threads: usize| {
                Upscaler::new(net.clone(), params.clone(), CpuOptions::new(threads), tile)
                    .unwrap()
                    .upscale(&picture)
                    .unwrap()
            };
            let whole = run(256, 1);
            for (tile, threads) in [(23, 1), (32, 2), (40, 3), (64, 1)] {
                assert!(
                    run(tile, threads) == whole,
                    "tile {tile}, {threads} threads differ"
                );
            }
        }
    }

    /// RGBA rows of an image and its alpha.
    struct Rows<'a>(&'a RgbImage, Option<&'a GrayImage>, usize);

    impl PixelRows for Rows<'_> {
        fn size(&self) -> (u32, u32) {
            self.0.dimensions()
        }
        fn channels(&self) -> usize {
            if self.1.is_some() { 4 } else { 3 }
        }
        fn read(&mut self, rows: &mut [u8]) -> Result<()> {
            for pixel in rows.chunks_exact_mut(self.channels()) {
                let (x, y) = (
                    self.2 as u32 % self.0.width(),
                    self.2 as u32 / self.0.width(),
                );
                pixel[..3].copy_from_slice(&self.0.get_pixel(x, y).0);
                if let Some(alpha) = self.1 {
                    pixel[3] = alpha.get_pixel(x, y).0[0];
                }
                self.2 += 1;
            }
            Ok(())
        }
    }

    #[test]
    fn rows_give_the_bits_of_the_picture_in_memory() {
        for (scale, (w, h)) in [(2, (47, 93)), (3, (9, 61))] {
            let net = Network::new("nano", scale).unwrap();
            let (picture, params) = (noise(w, h), net.params().start_values(3));
            let alpha = GrayImage::from_fn(w, h, |x, y| {
                image::Luma([crate::support::rng::key(&[7, u64::from(x), u64::from(y)]) as u8])
            });
            let large_alpha = Resampler::new()
                .upscale_plane(&alpha, scale as u32)
                .unwrap();
            let mut upscaler = Upscaler::new(net, params, CpuOptions::new(2), 40).unwrap();
            let whole = upscaler.upscale(&picture).unwrap();
            for (alpha, rows_at_once) in [(None, 17), (Some(&alpha), 1), (Some(&alpha), 64)] {
                let mut rows = Rows(&picture, alpha, 0);
                let mut bands = upscaler.bands(&mut rows).unwrap();
                assert_eq!(bands.size(), whole.dimensions());
                let channels = bands.channels();
                let mut found = vec![0; whole.len() / 3 * channels];
                found
                    .chunks_mut(rows_at_once * whole.width() as usize * channels)
                    .for_each(|part| bands.read(part).unwrap());
                assert!(bands.read(&mut [0; 12]).is_err());
                for (i, pixel) in found.chunks_exact(channels).enumerate() {
                    assert_eq!(pixel[..3], whole.as_raw()[3 * i..3 * i + 3], "x{scale} {i}");
                    assert!(
                        channels == 3 || pixel[3] == large_alpha.as_raw()[i],
                        "alpha of x{scale} {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn rejects_a_tile_smaller_than_the_receptive_field() {
        let net = Network::new("nano", 2).unwrap();
        let params = net.params().start_values(3);
        assert!(Upscaler::new(net, params, CpuOptions::new(1), 8).is_err());
    }
}
