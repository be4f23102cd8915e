//! Cutting an image into overlapping tiles, running a network on each, and joining the valid parts.
//! Depends on the networks and the backends. Promises the same bits for every tile size, unless the
//! network looks at the whole image and approximate tiles are asked for.

use super::spans::{Span, spans, tile_side};
use super::stages::Features;
use crate::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use crate::model::{InferenceSpec, Network, StageSpec, Stages, Tiling, inference_plan, stage_plan};
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

/// Default of the largest tile side in LQ pixels where a network is computed in stages: of Pro's
/// tiles, a sixth is overlap, and the arena takes about 130 MiB.
const STAGE_TILE: usize = 384;

/// The largest tile side on a device, in LQ pixels: it fills any card, and the overlap of most networks
/// is a twentieth of it. The result of a tile passes through host memory, 12 bytes for each HR pixel.
const DEVICE_TILE: usize = 1024;

/// The inference plan of one tile of (height, width) LQ pixels of 8 bits.
pub(super) fn tile_plan(net: &Network, lq: (usize, usize), sizing: &dyn Sizing) -> Result<Plan> {
    tile_plan_of(
        net,
        TileKind {
            shape: lq,
            deep: false,
            stage: None,
        },
        sizing,
    )
}

/// The inference plan of one tile.
pub(super) fn tile_plan_of(net: &Network, tile: TileKind, sizing: &dyn Sizing) -> Result<Plan> {
    let (lq, float_input) = (tile.shape, tile.deep);
    match tile.stage {
        Some(number) => {
            let spec = StageSpec {
                number,
                lq,
                float_input,
            };
            stage_plan(net, &spec, sizing)
        }
        None => {
            let spec = InferenceSpec {
                batch: 1,
                lq,
                float_input,
            };
            inference_plan(net, &spec, sizing)
        }
    }
}

/// What the plan of a tile depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TileKind {
    /// (height, width) in LQ pixels.
    pub shape: (usize, usize),
    /// Whether its pixels have 16 bits; the network gets them as floats.
    pub deep: bool,
    /// The stage of the network; `None`: the whole network.
    pub stage: Option<usize>,
}

/// Lends a backend that is loaded with the plan of one kind of tile.
pub(super) trait TileBackend {
    /// Calls `work`, which runs one tile, with the backend. Nothing else uses the backend meanwhile,
    /// and what it holds between two calls is not defined, except for the parameters.
    ///
    /// # Errors
    /// Those of `work`, and of making the backend ready.
    fn with(&mut self, work: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()>;
}

/// A backend that nobody else uses.
pub(super) struct OwnTile<'a>(pub &'a mut dyn Backend);

impl TileBackend for OwnTile<'_> {
    fn with(&mut self, work: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        work(self.0)
    }
}

/// The (height, width) in LQ pixels of all tiles that images of (width, height) LQ pixels are cut
/// into, each once, the largest first. An image without pixels has none.
fn tile_shapes(net: &Network, tile: usize, images: &[(u32, u32)]) -> Result<Vec<(usize, usize)>> {
    let tiler = Tiler::new(net.clone(), tile)?;
    let images = images.iter().filter(|size| size.0 > 0 && size.1 > 0);
    let shapes = images.map(|&size| Ok(tiler.grid(size)?.shape));
    let mut shapes = shapes.collect::<Result<Vec<_>>>()?;
    shapes.sort_unstable_by_key(|&(h, w)| std::cmp::Reverse((h * w, h)));
    shapes.dedup();
    Ok(shapes)
}

/// What upscaling a set of images between steps needs in a training step's arena.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastRoom {
    /// Bytes that must be free.
    pub bytes: u64,
    /// (height, width) in LQ pixels of the tile that needs them.
    pub tile: (usize, usize),
}

/// The room for images of (width, height) LQ pixels in the smallest tiles that a run uses, so that
/// validation can run between steps. Networks that look at the whole image need room for the
/// largest image.
///
/// # Errors
/// Only on a bug in the plan.
pub fn least_room(net: &Network, sizing: &dyn Sizing, images: &[(u32, u32)]) -> Result<LeastRoom> {
    let mut least = LeastRoom::default();
    for tile in tile_shapes(net, least_lent_tile(net), images)? {
        let bytes = tile_plan(net, tile, sizing)?.arena_bytes;
        if bytes > least.bytes {
            least = LeastRoom { bytes, tile };
        }
    }
    Ok(least)
}

/// The side in LQ pixels of the largest tile, up to [`default_tile`], with which images of (width,
/// height) LQ pixels can be upscaled in `room` bytes.
///
/// # Errors
/// When not even the smallest tile fits, which [`least_room`] bytes hold.
pub fn largest_tile(
    net: &Network,
    sizing: &dyn Sizing,
    images: &[(u32, u32)],
    room: u64,
) -> Result<usize> {
    let least = least_lent_tile(net);
    let fits = |tile: usize| {
        for shape in tile_shapes(net, tile, images)? {
            if tile_plan(net, shape, sizing)?.arena_bytes > room {
                return Ok::<bool, anyhow::Error>(false);
            }
        }
        Ok(true)
    };
    for tile in (least..=default_tile(net)).rev().step_by(16) {
        if fits(tile)? {
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

/// A value in 0..=1 as u16, likewise.
fn to_u16(value: f32) -> u16 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 1.0 { value } else { 1.0 };
    (value * 65_535.0).round_ties_even() as u16
}

/// The fewest pixels of a tile's side: it needs a valid part beside the halos.
pub(super) fn least_tile(tiling: Tiling) -> usize {
    2 * tiling.halo + 2 * (tiling.align - 1) + 1
}

/// Default of the largest tile side for a network, in LQ pixels, overlap included: [`DEFAULT_TILE`],
/// or more for networks that see far, so that most of a tile is no overlap. Up to a side of 512, an
/// eighth of it may be overlap; beyond that a quarter, as activations take memory. Exact tiles of
/// networks with windows see farthest and need most memory a pixel (Photo: 510 MiB for 640 x 640),
/// so their valid part is only a little longer than the overlap.
pub fn default_tile(net: &Network) -> usize {
    let Tiling {
        halo,
        wraps,
        whole_image,
        ..
    } = net.tiling();
    if wraps && !whole_image {
        return DEFAULT_TILE.max(least_lent_tile(net));
    }
    let side = (16 * halo).clamp(DEFAULT_TILE, 512).max(8 * halo);
    side.next_multiple_of(32)
}

/// The sides in LQ pixels of the tiles that inference on a device chooses from, the largest first:
/// each is a fifth smaller than the one before.
pub(super) fn device_tiles(net: &Network) -> Vec<usize> {
    let least = least_lent_tile(net);
    let mut sides = vec![DEVICE_TILE.max(default_tile(net))];
    while let Some(&last) = sides.last()
        && last > least
    {
        sides.push((last * 4 / 5).next_multiple_of(16).min(last - 1).max(least));
    }
    sides
}

/// The smallest tile side for which a training step's arena reserves bytes if the run validates on
/// images that are at least as large.
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

    /// The first LQ rows of the image that later rows of tiles need once more.
    pub fn first_rows(&self) -> usize {
        let again = self.rows.iter().filter(|row| row.valid_piece() == 1);
        again.map(|row| row.pieces[0].1).max().unwrap_or(0)
    }

    /// The last LQ rows of the image (from, to), if the first row of tiles needs them.
    pub fn last_rows(&self) -> (usize, usize) {
        let first = self.rows.first().filter(|row| row.valid_piece() == 0);
        first.map_or((0, 0), |row| row.pieces[1])
    }
}

/// The scalars of inference, which reads none of them.
pub(super) const SCALARS: Scalars = Scalars {
    lr: 0.0,
    step: 1,
    clip: f64::INFINITY,
    ema_decay: 0.0,
    micro_scale: 1.0,
    loss_scale: 1.0,
    accumulate: false,
};

/// The LQ rows `[rows, width, 3]` of a row of tiles, as two pieces; of 16 bits in the machine's byte
/// order.
pub(super) type RowPieces<'a> = [&'a [u8]; 2];

/// Cuts images into tiles and joins the results. Holds the pixels of one tile and of its result.
pub struct Tiler {
    pub(super) net: Network,
    /// How images may be cut.
    tiling: Tiling,
    /// Side of the largest tile in LQ pixels.
    pub(super) tile: usize,
    /// One tile `[h, w, 3]`, of 8 or 16 bits.
    lq: Vec<u8>,
    /// The same tile as floats, if it has 16 bits.
    floats: Vec<f32>,
    /// Its result `[H, W, 3]`, f32.
    pub(super) output: Vec<f32>,
}

impl Tiler {
    /// Tiles that give the result of the whole image. `tile`: largest side of a tile in LQ pixels
    /// (0: [`default_tile`]); networks that look at the whole image have one tile.
    ///
    /// # Errors
    /// When [`Network::check`] refuses the network, or the tile is too small for its receptive
    /// field.
    pub fn new(net: Network, tile: usize) -> Result<Tiler> {
        let tiling = net.tiling();
        Tiler::with_tiling(net, tile, tiling)
    }

    /// As [`Tiler::new`], but networks that look at the whole image are applied to tiles too, which
    /// gives another result.
    ///
    /// # Errors
    /// Those of [`Tiler::new`].
    pub fn approximate(net: Network, tile: usize) -> Result<Tiler> {
        let tiling = net.tiling().approximate();
        Tiler::with_tiling(net, tile, tiling)
    }

    /// The same cutting with other tiles; `tile`: as in [`Tiler::new`].
    pub(super) fn with_side(&self, tile: usize) -> Result<Tiler> {
        Tiler::with_tiling(self.net.clone(), tile, self.tiling)
    }

    fn with_tiling(net: Network, tile: usize, tiling: Tiling) -> Result<Tiler> {
        net.check()?;
        let tile = if tile == 0 { default_tile(&net) } else { tile };
        let least = least_tile(tiling);
        ensure!(
            tile >= least || tiling.whole_image,
            "a tile of {tile} pixels is smaller than {least}, twice what one output pixel sees; use a larger --tile"
        );
        Ok(Tiler {
            net,
            tiling,
            tile,
            lq: Vec::new(),
            floats: Vec::new(),
            output: Vec::new(),
        })
    }

    /// Tiles for the stages of a network that looks at the whole image.
    ///
    /// # Errors
    /// Those of [`Tiler::new`].
    pub(super) fn of_stages(net: Network, tile: usize, stages: Stages) -> Result<Tiler> {
        let tile = if tile == 0 { STAGE_TILE } else { tile };
        Tiler::with_tiling(net, tile, stages.tiling)
    }

    /// Whether an image is always one tile, because the network looks at the whole image.
    pub fn takes_whole_images(&self) -> bool {
        self.tiling.whole_image
    }

    /// Most bytes besides the arena: one tile in u8, its result in f32, and the parameters.
    pub fn bytes(&self) -> u64 {
        self.bytes_of_tiles(self.tile * self.tile)
    }

    /// Most bytes besides the arena for images of (width, height) LQ pixels in tiles of this size or
    /// smaller ones.
    pub fn bytes_for(&self, images: &[(u32, u32)]) -> u64 {
        let most = if self.tiling.whole_image {
            usize::MAX
        } else {
            self.tile
        };
        let pixels = images.iter().map(|&(w, h)| {
            let (w, h) = (most.min(w as usize), most.min(h as usize));
            w.saturating_mul(h)
        });
        self.bytes_of_tiles(pixels.max().unwrap_or(0))
    }

    /// Bytes of [`Tiler::bytes`] for tiles of a number of LQ pixels.
    fn bytes_of_tiles(&self, pixels: usize) -> u64 {
        let (lq, scale) = (pixels as u64 * 3, self.net.scale as u64);
        lq + lq * scale * scale * 4 + self.net.params().len() as u64 * 4
    }

    /// How an image of (width, height) LQ pixels is cut.
    ///
    /// # Errors
    /// When the image is empty.
    pub(super) fn grid(&self, (w, h): (u32, u32)) -> Result<TileGrid> {
        let (w, h) = (w as usize, h as usize);
        ensure!(w > 0 && h > 0, "the image has no pixels");
        let tiling = self.tiling;
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
    /// one tile and its result, the LQ rows of one row of tiles and those kept for other ones, and
    /// the HR rows of its result. With `deep` samples have 16 bits.
    pub(super) fn row_bytes(&self, grid: &TileGrid, alpha: bool, deep: bool) -> u64 {
        let (scale, (th, tw), w) = (self.net.scale, grid.shape, grid.width);
        let hr = grid.tallest() * scale * w * scale;
        let sample = if deep { 2 } else { 1 };
        let floats = if deep { 4 } else { 0 };
        let tile = th * tw * 3 * (sample + floats + 4 * scale * scale);
        let (from, to) = grid.last_rows();
        let colours = (th + grid.first_rows() + (to - from)) * w * 3 + hr * 3;
        // the LQ rows, the copy that is enlarged, its enlargement along y and then along x, and the
        // HR rows with alpha
        let alpha = if alpha {
            2 * th * w + th * scale * w + th * scale * w * scale + 2 * hr
        } else {
            0
        };
        // the enlarged alpha of 16 bits is copied once more
        let copies = if deep { 3 } else { 1 };
        (tile + sample * colours + copies * alpha) as u64
    }

    /// Copies the pixels of a tile, those of 16 bits also as floats. `pieces` are the LQ rows of its row of tiles, with samples of
    /// `bytes` bytes.
    fn take_tile(
        &mut self,
        grid: &TileGrid,
        column: Span,
        pieces: RowPieces<'_>,
        bytes: usize,
    ) -> Result<()> {
        let (w, (th, tw), pixel) = (grid.width, grid.shape, 3 * bytes);
        try_resize(&mut self.lq, th * tw * pixel, "a tile")?;
        let rows = pieces
            .into_iter()
            .flat_map(|rows| rows.chunks_exact(w * pixel));
        for (line, from) in self.lq.chunks_exact_mut(tw * pixel).zip(rows) {
            let [first, second] = column.pieces.map(|(a, b)| &from[a * pixel..b * pixel]);
            let (left, right) = line.split_at_mut(first.len());
            left.copy_from_slice(first);
            right.copy_from_slice(second);
        }
        if bytes == 2 {
            let (samples, _) = self.lq.as_chunks::<2>();
            try_resize(&mut self.floats, samples.len(), "a tile")?;
            let pairs = self.floats.iter_mut().zip(samples);
            pairs.for_each(|(f, &s)| *f = f32::from(u16::from_ne_bytes(s)) / 65_535.0);
        }
        Ok(())
    }

    /// Computes the first stage of one row of tiles. `pieces` are the LQ rows of the pieces of `row`,
    /// with samples of `bytes` bytes.
    pub(super) fn begin_stages(
        &mut self,
        backend: &mut dyn Backend,
        grid: &TileGrid,
        row: Span,
        (pieces, bytes): (RowPieces<'_>, usize),
        features: &mut Features,
    ) -> Result<()> {
        for &column in &grid.columns {
            self.take_tile(grid, column, pieces, bytes)?;
            self.run_on_pixels(backend, bytes == 2)?;
            features.store(backend, 0, (row, column), grid.shape.1)?;
        }
        Ok(())
    }

    /// Upscales one row of tiles. `pieces` are the LQ rows of the pieces of `row`; `out` receives the
    /// valid HR rows. Whether samples have 16 bits is decided by the length of `out`. `features`:
    /// what the last stage begins with, if the network is computed in stages.
    pub(super) fn upscale_row(
        &mut self,
        backend: &mut dyn TileBackend,
        grid: &TileGrid,
        row: Span,
        pieces: RowPieces<'_>,
        (out, mut features): (&mut [u8], Option<&mut Features>),
    ) -> Result<()> {
        let (scale, w, (th, tw)) = (self.net.scale, grid.width, grid.shape);
        let bytes = out.len() / (row.valid_len() * scale * scale * w * 3); // of a sample
        let pixel = 3 * bytes;
        let values = th * tw * 3 * scale * scale;
        try_resize(&mut self.output, values, "a tile's result")?;
        for &column in &grid.columns {
            self.take_tile(grid, column, pieces, bytes)?;
            backend.with(&mut |backend| {
                if let Some(features) = &mut features {
                    features.load(backend, features.last(), (row, column))?;
                }
                self.run_tile(backend, bytes == 2)
            })?;
            let width = column.valid_len() * scale * 3;
            for (i, line) in out.chunks_exact_mut(w * scale * pixel).enumerate() {
                let y = row.valid_at() * scale + i;
                let from = (y * tw * scale + column.valid_at() * scale) * 3;
                let line = &mut line[column.valid.0 * scale * pixel..][..width * bytes];
                let values = &self.output[from..from + width];
                if bytes == 2 {
                    let (line, _) = line.as_chunks_mut::<2>();
                    let pairs = line.iter_mut().zip(values);
                    pairs.for_each(|(o, &v)| *o = to_u16(v).to_ne_bytes());
                } else {
                    let pairs = line.iter_mut().zip(values);
                    pairs.for_each(|(o, &v)| *o = to_u8(v));
                }
            }
        }
        Ok(())
    }

    /// Runs the network on the tile in `lq`, whose samples have 8 bits, or 16 with `deep`; the result
    /// is in `output`.
    fn run_tile(&mut self, backend: &mut dyn Backend, deep: bool) -> Result<()> {
        self.run_on_pixels(backend, deep)?;
        let port = backend.plan().ports.output;
        let port = port.context("the inference plan has no output")?;
        read_floats(backend, port, &mut self.output)
    }

    /// Runs the backend's plan on the tile in `lq`, or with `deep` on the one in `floats`.
    fn run_on_pixels(&mut self, backend: &mut dyn Backend, deep: bool) -> Result<()> {
        if deep {
            let input = backend.plan().ports.input;
            let input = input.context("the inference plan has no input")?;
            write_floats(backend, input, &self.floats)?;
            return backend.micro_step(&SCALARS);
        }
        let copied = backend.stage(BatchView {
            lq: &self.lq,
            hr: &[],
            augment: &[],
        })?;
        backend.micro_step(&SCALARS)?;
        // waits: the next tile overwrites `lq`
        drop(copied);
        Ok(())
    }

    /// Upscales an image that is in memory.
    pub(super) fn upscale(
        &mut self,
        lq: &RgbImage,
        backend: &mut dyn TileBackend,
    ) -> Result<RgbImage> {
        let (grid, scale) = (self.grid(lq.dimensions())?, self.net.scale);
        let (width, height) = (grid.width * scale, lq.height() as usize * scale);
        let mut out = Vec::new();
        // fits usize: an image has at most 200 million pixels, and scale^2 is at most 64
        try_resize(&mut out, width * height * 3, "the enlarged image")?;
        let mut left = out.as_mut_slice();
        for &row in &grid.rows {
            let (rows, rest) = left.split_at_mut(row.valid_len() * scale * width * 3);
            left = rest;
            let line = grid.width * 3;
            let pieces = row
                .pieces
                .map(|(from, to)| &lq.as_raw()[from * line..to * line]);
            self.upscale_row(backend, &grid, row, pieces, (rows, None))?;
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
