//! Applying a trained network to pictures of any size: tiles that overlap by the receptive field, so that the result is the
//! same bits for every tile size, in an arena sized for one tile or in the part of a training step's arena that is free between
//! steps. Depends on the networks and the backends.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use crate::model::{InferenceSpec, Network, inference_plan};
use crate::plan::{Plan, Sizing, bytes_text};
use crate::system;
use anyhow::{Result, ensure};
use image::RgbImage;

/// Default for the largest tile side in LQ pixels, overlap included.
pub const DEFAULT_TILE: usize = 288;

/// Side of the smallest tile that a training step's arena makes room for, where a run validates: smaller ones would mostly compute
/// their overlap.
pub const LEAST_LENT_TILE: usize = 64;

/// Makes pictures larger.
pub trait Upscale {
    /// HR pixels per LQ pixel along one side.
    fn scale(&self) -> usize;
    /// The picture at `scale` times its size, clamped to [0, 1] and rounded to u8.
    ///
    /// # Errors
    /// When the picture is empty or memory is short.
    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage>;
}

/// A network ready to be applied, in an arena of its own.
pub struct Upscaler {
    tiles: Tiles,
    params: Vec<f32>,
    options: CpuOptions,
    /// The backend for the last tile shape (height, width); pictures smaller than a tile need one of their own.
    loaded: Option<((usize, usize), CpuBackend)>,
}

/// A network applied in the free part of a training step's arena, between steps.
pub struct Guest<'a> {
    /// Tiles of the largest size that fits, see [`largest_tile`].
    pub tiles: &'a mut Tiles,
    /// Whose arena.
    pub host: &'a mut dyn Backend,
    /// What inference needs on that backend, in f32.
    pub sizing: &'a dyn Sizing,
    /// In the order of the network's table.
    pub params: &'a [f32],
}

/// Cuts pictures into tiles and puts the results together; holds one tile in and out.
pub struct Tiles {
    net: Network,
    tile: usize,
    lq: Vec<u8>,
    output: Vec<f32>,
}

fn tile_plan(net: &Network, (h, w): (usize, usize), sizing: &dyn Sizing) -> Result<Plan> {
    inference_plan(net, &InferenceSpec { batch: 1, lq: (h, w), float_input: false }, sizing)
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
    anyhow::bail!("{} are too little for a tile of {LEAST_LENT_TILE} pixels", bytes_text(room))
}

/// The nearest of 256 levels, ties to even, of a value in 0..=1; values outside go to the ends, and what is no number to 0.
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

/// Side of the tiles that a side of `len` pixels is cut into: no more of them than tiles of `most` pixels would be, and no larger than
/// that takes, since what overlaps is computed twice. A multiple of 8 where there are several, so that pictures of nearly the same size
/// share an arena.
fn tile_side(len: usize, most: usize, halo: usize) -> usize {
    if len <= most {
        return len;
    }
    let (inner, overlap) = (len - 2 * halo, 2 * halo);
    let count = inner.div_ceil(most - overlap);
    (inner.div_ceil(count) + overlap).next_multiple_of(8).min(most)
}

/// Cuts a side of `len` pixels into equal tiles of `tile` (or one of `len`), valid parts touching without gap or overlap.
fn spans(len: usize, tile: usize, halo: usize) -> Vec<Span> {
    if len <= tile {
        return vec![Span { start: 0, valid: (0, len) }];
    }
    let mut list = Vec::new();
    let mut done = 0;
    while done < len {
        let start = if done == 0 { 0 } else { (done - halo).min(len - tile) };
        let end = if start + tile == len { len } else { start + tile - halo };
        list.push(Span { start, valid: (done, end) });
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
        ensure!(tile >= least, "a tile of {tile} pixels is smaller than {least}, twice what one output pixel sees; use a larger --tile");
        Ok(Tiles { net, tile, lq: Vec::new(), output: Vec::new() })
    }

    /// Bytes beside the arena, at most: one tile in u8, its result in f32, and the parameters.
    pub fn bytes(&self) -> u64 {
        let lq = self.tile * self.tile * 3;
        (lq + lq * self.net.scale * self.net.scale * 4 + self.net.params().len() * 4) as u64
    }

    /// (height, width) of the tiles that a picture is cut into.
    fn shape(&self, lq: &RgbImage) -> Result<(usize, usize)> {
        let (w, h) = (lq.width() as usize, lq.height() as usize);
        ensure!(w > 0 && h > 0, "the picture has no pixels");
        let side = |len: usize| tile_side(len, self.tile, self.net.receptive_field());
        Ok((side(h), side(w)))
    }

    /// Runs every tile on a backend loaded with the plan of the picture's tile shape.
    fn run(&mut self, lq: &RgbImage, backend: &mut dyn Backend) -> Result<RgbImage> {
        let (w, h) = (lq.width() as usize, lq.height() as usize);
        let (th, tw) = self.shape(lq)?;
        let (scale, halo) = (self.net.scale, self.net.receptive_field());
        let bytes = (w * scale * h * scale * 3) as u64; // at most 200 million pixels times 64
        if let Some(free) = system::available_memory() {
            ensure!(
                bytes <= free,
                "{w}x{h} pixels at x{scale} take {} as a picture and this machine has {} free; cut the picture into parts",
                bytes_text(bytes),
                bytes_text(free)
            );
        }
        let mut out = RgbImage::new((w * scale) as u32, (h * scale) as u32);
        let (columns, rows) = (spans(w, tw, halo), spans(h, th, halo));
        self.lq.resize(th * tw * 3, 0);
        self.output.resize(th * tw * 3 * scale * scale, 0.0);
        let scalars =
            Scalars { lr: 0.0, step: 1, clip: f64::INFINITY, ema_decay: 0.0, micro_scale: 1.0, loss_scale: 1.0, accumulate: false };
        let Some(port) = backend.plan().ports.output else { anyhow::bail!("the inference plan has no output") };
        for row in &rows {
            for column in &columns {
                for (y, line) in self.lq.chunks_exact_mut(tw * 3).enumerate() {
                    let at = ((row.start + y) * w + column.start) * 3;
                    line.copy_from_slice(&lq.as_raw()[at..at + tw * 3]);
                }
                // the tile's memory is filled again only after the result is read
                let copied = backend.stage(BatchView { lq: &self.lq, hr: &[], augment: &[] })?;
                backend.micro_step(&scalars)?;
                drop(copied);
                read_floats(backend, port, &mut self.output)?;
                let width = (column.valid.1 - column.valid.0) * scale * 3;
                for y in row.valid.0 * scale..row.valid.1 * scale {
                    let from = ((y - row.start * scale) * tw * scale + (column.valid.0 - column.start) * scale) * 3;
                    let to = (y * w * scale + column.valid.0 * scale) * 3;
                    let line = &mut out.as_mut()[to..to + width];
                    line.iter_mut().zip(&self.output[from..from + width]).for_each(|(o, &v)| *o = level(v));
                }
            }
        }
        Ok(out)
    }
}

fn set_parameters(backend: &mut dyn Backend, params: &[f32]) -> Result<()> {
    let Some(port) = backend.plan().ports.parameters else { anyhow::bail!("the inference plan has no parameters") };
    write_floats(backend, port, params)
}

impl Upscaler {
    /// `params` in the order of the network's table; `tile` in LQ pixels (0: the default).
    ///
    /// # Errors
    /// When the tile is too small for the network's receptive field.
    pub fn new(net: Network, params: Vec<f32>, options: CpuOptions, tile: usize) -> Result<Upscaler> {
        ensure!(params.len() == net.params().len(), "{} parameters where the network has {}", params.len(), net.params().len());
        Ok(Upscaler { tiles: Tiles::new(net, tile)?, params, options, loaded: None })
    }

    /// Bytes of the arena for a picture of at least a tile, and of the buffers beside it.
    ///
    /// # Errors
    /// Only on a bug in the plan.
    pub fn bytes(&self) -> Result<u64> {
        let plan = tile_plan(&self.tiles.net, (self.tiles.tile, self.tiles.tile), &self.options)?;
        Ok(plan.arena_bytes + self.tiles.bytes())
    }
}

impl Upscale for Upscaler {
    fn scale(&self) -> usize {
        self.tiles.net.scale
    }

    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage> {
        let shape = self.tiles.shape(lq)?;
        if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != shape) {
            self.loaded = None; // its arena goes before the next one comes
            let mut backend = CpuBackend::new(tile_plan(&self.tiles.net, shape, &self.options)?, self.options)?;
            set_parameters(&mut backend, &self.params)?;
            self.loaded = Some((shape, backend));
        }
        let Some((_, backend)) = &mut self.loaded else { anyhow::bail!("no backend was loaded") };
        self.tiles.run(lq, backend)
    }
}

impl Upscale for Guest<'_> {
    fn scale(&self) -> usize {
        self.tiles.net.scale
    }

    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage> {
        let plan = tile_plan(&self.tiles.net, self.tiles.shape(lq)?, self.sizing)?;
        let mut guest = self.host.guest(plan)?;
        set_parameters(guest.as_mut(), self.params)?;
        self.tiles.run(lq, guest.as_mut())
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
                assert!(s.start == 0 || s.valid.0 >= s.start + halo, "{len}: {list:?}");
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
            assert!(side <= 32 && spans(len, side, 8).len() == spans(len, 32, 8).len(), "{len}: {side}");
        }
    }

    #[test]
    fn levels_round_as_the_processor_does() {
        for i in 0..=255 * 64 + 200 {
            let value = (i as f32 - 100.0) / (255.0 * 64.0);
            assert_eq!(level(value), (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8, "{value}");
        }
        assert_eq!([level(f32::NAN), level(f32::INFINITY), level(f32::NEG_INFINITY)], [0, 255, 0]);
    }

    fn noise(w: u32, h: u32) -> RgbImage {
        RgbImage::from_fn(w, h, |x, y| image::Rgb(std::array::from_fn(|c| crate::rng::key(&[u64::from(x), u64::from(y), c as u64]) as u8)))
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
                Upscaler::new(net.clone(), params.clone(), CpuOptions::new(threads), tile).unwrap().upscale(&picture).unwrap()
            };
            let whole = run(256, 1);
            for (tile, threads) in [(23, 1), (32, 2), (40, 3), (64, 1)] {
                assert!(run(tile, threads) == whole, "tile {tile}, {threads} threads differ");
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
