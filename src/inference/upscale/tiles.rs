//! Cutting an image into overlapping tiles, running a network on each, and joining the valid parts.
//! Depends on the networks and the backends. Promises the same bits for every tile size.

use crate::backend::{Backend, BatchView, Scalars, read_floats};
use crate::model::{InferenceSpec, Network, Tiling, inference_plan};
use crate::plan::{Plan, Sizing};
use crate::support::failure::no_memory;
use crate::support::text::bytes_text;
use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;

/// Default of the largest tile side in LQ pixels, overlap included, for networks that do not see
/// far; see [`default_tile`].
pub const DEFAULT_TILE: usize = 288;

/// Side in LQ pixels of the smallest tile for which a training step's arena reserves bytes if the
/// run validates: a smaller tile would consist mostly of overlap.
pub const LEAST_LENT_TILE: usize = 64;

/// The inference plan of one tile of (height, width) LQ pixels.
pub(super) fn tile_plan(net: &Network, lq: (usize, usize), sizing: &dyn Sizing) -> Result<Plan> {
    let spec = InferenceSpec {
        batch: 1,
        lq,
        float_input: false,
    };
    inference_plan(net, &spec, sizing)
}

/// Bytes that must be free between steps in a training step's arena, so that validation can run
/// there.
///
/// # Errors
/// Only on a bug in the plan.
pub fn least_room(net: &Network, sizing: &dyn Sizing) -> Result<u64> {
    let side = least_lent_tile(net);
    Ok(tile_plan(net, (side, side), sizing)?.arena_bytes)
}

/// The side in LQ pixels of the largest tile, up to [`default_tile`], whose plan fits into `room`
/// bytes.
///
/// # Errors
/// When not even the smallest tile fits.
pub fn largest_tile(net: &Network, sizing: &dyn Sizing, room: u64) -> Result<usize> {
    let least = least_lent_tile(net);
    for tile in (least..=default_tile(net)).rev().step_by(16) {
        if tile_plan(net, (tile, tile), sizing)?.arena_bytes <= room {
            return Ok(tile);
        }
    }
    bail!(
        "{} are too little for a tile of {least} pixels",
        bytes_text(room)
    )
}

/// A value in 0..=1 as u8: times 255, rounded to nearest with ties to even. Values outside are
/// clamped, and NaN becomes 0.
pub(super) fn to_u8(value: f32) -> u8 {
    // 2^23: a sum with it has no fraction bits, so its lowest bits are the rounded value; faster
    // than calling a rounding function for each value
    const ROUND: f32 = 8_388_608.0;
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 1.0 { value } else { 1.0 };
    (value * 255.0 + ROUND).to_bits() as u8
}

/// One tile along one side of an image, in LQ pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    /// First pixel of the tile.
    pub start: usize,
    /// The pixels (from, to) of the image whose result is taken from this tile.
    pub valid: (usize, usize),
}

impl Span {
    /// Pixels whose result is taken from this tile.
    fn valid_len(&self) -> usize {
        self.valid.1 - self.valid.0
    }
}

/// Side of the tiles for a side of `len` pixels. There are as few tiles as tiles of `most` pixels
/// would give, and they are no larger than this number needs, because overlap is computed twice. If
/// there are several, the side is a multiple of 8, so that images of similar size share an arena;
/// if tiles must be aligned, it is that much and the remainder of `len`, so that the last tile is
/// aligned too.
pub(super) fn tile_side(len: usize, most: usize, tiling: Tiling) -> usize {
    if len <= most || tiling.whole_image {
        return len;
    }
    let Tiling { halo, align, .. } = tiling;
    let (inner, overlap) = (len - 2 * halo, 2 * halo + (align - 1));
    let rest = len % align;
    let most = most - (most + align - rest) % align;
    let count = inner.div_ceil(most - overlap);
    let side = (inner.div_ceil(count) + overlap).next_multiple_of(8);
    (side + rest).min(most)
}

/// Cuts a side of `len` pixels into tiles of `tile` pixels (or into one of `len`). The valid parts
/// cover the side without gap or overlap, and each is the halo away from the tile's inner borders.
pub(super) fn spans(len: usize, tile: usize, tiling: Tiling) -> Vec<Span> {
    if len <= tile {
        return vec![Span {
            start: 0,
            valid: (0, len),
        }];
    }
    let Tiling { halo, align, .. } = tiling;
    let mut list = Vec::new();
    let mut done: usize = 0;
    while done < len {
        let before = done.saturating_sub(halo);
        let start = (before - before % align).min(len - tile);
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

/// The fewest pixels of a tile's side: it needs a valid part beside the halos.
fn least_tile(tiling: Tiling) -> usize {
    2 * tiling.halo + 2 * (tiling.align - 1) + 1
}

/// Default of the largest tile side for a network, in LQ pixels, overlap included: [`DEFAULT_TILE`],
/// or more for networks that see far, so that most of a tile is no overlap. Up to a side of 512, an
/// eighth of it may be overlap; beyond that a quarter, as activations take memory.
pub fn default_tile(net: &Network) -> usize {
    let halo = net.tiling().halo;
    let side = (16 * halo).clamp(DEFAULT_TILE, 512).max(8 * halo);
    side.next_multiple_of(32)
}

/// The smallest tile side for which a training step's arena reserves bytes if the run validates.
fn least_lent_tile(net: &Network) -> usize {
    let least = least_tile(net.tiling());
    if least <= LEAST_LENT_TILE {
        LEAST_LENT_TILE
    } else {
        (2 * least).next_multiple_of(16)
    }
}

/// How one image is cut into tiles.
pub(super) struct TileGrid {
    /// Width of the image in LQ pixels.
    pub width: usize,
    /// (height, width) of a tile in LQ pixels.
    pub shape: (usize, usize),
    pub rows: Vec<Span>,
    pub columns: Vec<Span>,
}

impl TileGrid {
    /// The most LQ rows whose result is taken from one row of tiles.
    fn tallest(&self) -> usize {
        self.rows.iter().map(Span::valid_len).max().unwrap_or(0)
    }
}

/// Cuts images into tiles and joins the results. Holds the pixels of one tile and of its result.
pub struct Tiler {
    pub(super) net: Network,
    /// Side of the largest tile in LQ pixels.
    pub(super) tile: usize,
    /// One tile `[h, w, 3]`, u8.
    lq: Vec<u8>,
    /// Its result `[H, W, 3]`, f32.
    output: Vec<f32>,
}

impl Tiler {
    /// `tile`: largest side of a tile in LQ pixels (0: [`default_tile`]).
    ///
    /// # Errors
    /// When [`Network::check`] refuses the network, or the tile is too small for its receptive
    /// field.
    pub fn new(net: Network, tile: usize) -> Result<Tiler> {
        net.check()?;
        let tile = if tile == 0 { default_tile(&net) } else { tile };
        let least = least_tile(net.tiling());
        ensure!(
            tile >= least,
            "a tile of {tile} pixels is smaller than {least}, twice what one output pixel sees; use a larger --tile"
        );
        Ok(Tiler {
            net,
            tile,
            lq: Vec::new(),
            output: Vec::new(),
        })
    }

    /// Most bytes besides the arena: one tile in u8, its result in f32, and the parameters.
    pub fn bytes(&self) -> u64 {
        let lq = self.tile * self.tile * 3;
        (lq + lq * self.net.scale * self.net.scale * 4 + self.net.params().len() * 4) as u64
    }

    /// How an image of (width, height) LQ pixels is cut.
    ///
    /// # Errors
    /// When the image is empty.
    pub(super) fn grid(&self, (w, h): (u32, u32)) -> Result<TileGrid> {
        let (w, h) = (w as usize, h as usize);
        ensure!(w > 0 && h > 0, "the image has no pixels");
        let tiling = self.net.tiling();
        let (th, tw) = (
            tile_side(h, self.tile, tiling),
            tile_side(w, self.tile, tiling),
        );
        Ok(TileGrid {
            width: w,
            shape: (th, tw),
            rows: spans(h, th, tiling),
            columns: spans(w, tw, tiling),
        })
    }

    /// Most bytes that [`UpscaledRows`](super::UpscaledRows) use for an image besides the arena:
    /// one tile and its result, the LQ rows of one row of tiles, and the HR rows of its result.
    pub(super) fn row_bytes(&self, grid: &TileGrid, alpha: bool) -> u64 {
        let (scale, (th, tw), w) = (self.net.scale, grid.shape, grid.width);
        let hr = grid.tallest() * scale * w * scale;
        let tile = th * tw * 3 * (1 + 4 * scale * scale);
        let colours = th * w * 3 + hr * 3;
        // the LQ rows, the copy that is enlarged, its enlargement along y and then along x, and the
        // HR rows with alpha
        let alpha = if alpha {
            2 * th * w + th * scale * w + th * scale * w * scale + 2 * hr
        } else {
            0
        };
        (tile + colours + alpha) as u64
    }

    /// Upscales one row of tiles. `window` holds the LQ rows `[tile height, width, 3]` from
    /// `row.start` on; `out` receives the valid HR rows.
    pub(super) fn upscale_row(
        &mut self,
        backend: &mut dyn Backend,
        grid: &TileGrid,
        row: Span,
        window: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let (scale, w, (th, tw)) = (self.net.scale, grid.width, grid.shape);
        let values = th * tw * 3;
        try_resize(&mut self.lq, values, "a tile")?;
        try_resize(&mut self.output, values * scale * scale, "a tile's result")?;
        for column in &grid.columns {
            for (y, line) in self.lq.chunks_exact_mut(tw * 3).enumerate() {
                let at = (y * w + column.start) * 3;
                line.copy_from_slice(&window[at..at + tw * 3]);
            }
            self.run_tile(backend)?;
            let width = column.valid_len() * scale * 3;
            for (i, line) in out.chunks_exact_mut(w * scale * 3).enumerate() {
                let y = (row.valid.0 - row.start) * scale + i;
                let from = (y * tw * scale + (column.valid.0 - column.start) * scale) * 3;
                let line = &mut line[column.valid.0 * scale * 3..][..width];
                line.iter_mut()
                    .zip(&self.output[from..from + width])
                    .for_each(|(o, &v)| *o = to_u8(v));
            }
        }
        Ok(())
    }

    /// Runs the network on the tile in `lq`; the result is in `output`.
    fn run_tile(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let scalars = Scalars {
            lr: 0.0,
            step: 1,
            clip: f64::INFINITY,
            ema_decay: 0.0,
            micro_scale: 1.0,
            loss_scale: 1.0,
            accumulate: false,
        };
        let port = backend.plan().ports.output;
        let port = port.context("the inference plan has no output")?;
        let copied = backend.stage(BatchView {
            lq: &self.lq,
            hr: &[],
            augment: &[],
        })?;
        backend.micro_step(&scalars)?;
        // waits: the next tile overwrites `lq`
        drop(copied);
        read_floats(backend, port, &mut self.output)
    }

    /// Upscales an image that is in memory.
    pub(super) fn upscale(&mut self, lq: &RgbImage, backend: &mut dyn Backend) -> Result<RgbImage> {
        let (grid, scale) = (self.grid(lq.dimensions())?, self.net.scale);
        let (width, height) = (grid.width * scale, lq.height() as usize * scale);
        let mut out = Vec::new();
        // fits usize: an image has at most 200 million pixels, and scale^2 is at most 64
        try_resize(&mut out, width * height * 3, "the enlarged image")?;
        let mut left = out.as_mut_slice();
        for &row in &grid.rows {
            let (rows, rest) = left.split_at_mut(row.valid_len() * scale * width * 3);
            left = rest;
            let window =
                &lq.as_raw()[row.start * grid.width * 3..][..grid.shape.0 * grid.width * 3];
            self.upscale_row(backend, &grid, row, window, rows)?;
        }
        RgbImage::from_raw(width as u32, height as u32, out)
            .context("the enlarged image has a wrong length")
    }
}

/// Sets the length of a vector.
///
/// # Errors
/// When the system has no memory for it: an [`std::io::Error`] that names `what`.
pub(super) fn try_resize<T: Copy + Default>(
    data: &mut Vec<T>,
    len: usize,
    what: &str,
) -> Result<()> {
    if len > data.len() {
        data.try_reserve_exact(len - data.len())
            .map_err(|_| no_memory(len * size_of::<T>(), what))?;
    }
    data.resize(len, T::default());
    Ok(())
}
