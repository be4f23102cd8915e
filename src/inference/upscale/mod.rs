//! Applies a trained network to images of any size, in tiles that overlap by the network's
//! receptive field, so that the result has the same bits for every tile size. The tiles run in an
//! arena of their own, or in the part of a training step's arena that is free between steps; an
//! image may be read and written row by row. Depends on the networks, the backends and the
//! dataset's resampling. Promises that it allocates what it computes beforehand.

#[cfg(test)]
mod ring_tests;
mod rows;
mod spans;
#[cfg(test)]
mod tests;
mod tiles;

pub use rows::UpscaledRows;
pub use tiles::{
    DEFAULT_TILE, LEAST_LENT_TILE, LeastRoom, Tiler, default_tile, largest_tile, least_room,
};

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, write_floats};
use crate::dataset::rows::RereadRows;
use crate::model::{Error, Network};
use crate::plan::Sizing;
use crate::support::text::bytes_text;
use anyhow::{Context, Result, ensure};
use image::RgbImage;
use tiles::{TileKind, tile_plan, tile_plan_of};

/// Enlarges images by a network.
pub trait Upscale {
    /// HR pixels per LQ pixel along one side.
    fn scale(&self) -> usize;
    /// The image at `scale` times its size, clamped to [0, 1] and rounded to u8.
    ///
    /// # Errors
    /// When the image is empty or memory is short.
    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage>;
}

/// A network with parameters and an arena of its own, on the CPU.
pub struct Upscaler {
    tiler: Tiler,
    params: Vec<f32>,
    options: CpuOptions,
    /// The backend for the last kind of tile; an image smaller than a tile needs another one.
    loaded: Option<(TileKind, CpuBackend)>,
}

/// A network that runs in the free part of a training step's arena, between steps.
pub struct LentUpscaler<'a> {
    /// Cuts into tiles of the largest size that fits, see [`largest_tile`].
    pub tiler: &'a mut Tiler,
    /// The backend whose arena is used.
    pub host: &'a mut dyn Backend,
    /// What inference in f32 needs on that backend.
    pub sizing: &'a dyn Sizing,
    /// Parameters in table order.
    pub params: &'a [f32],
}

/// Writes the parameters, in table order, to a backend.
fn set_parameters(backend: &mut dyn Backend, params: &[f32]) -> Result<()> {
    let port = backend.plan().ports.parameters;
    let port = port.context("the inference plan has no parameters")?;
    write_floats(backend, port, params)
}

impl Upscaler {
    /// `params` in table order; `tile`: largest side of a tile in LQ pixels (0: [`default_tile`]).
    ///
    /// # Errors
    /// When [`Network::check`] refuses the network, the tile is too small for its receptive field,
    /// or the number of parameters is not the network's.
    pub fn new(
        net: Network,
        params: Vec<f32>,
        options: CpuOptions,
        tile: usize,
    ) -> Result<Upscaler> {
        Upscaler::with_tiler(Tiler::new(net, tile)?, params, options)
    }

    /// As [`Upscaler::new`], but a network that looks at the whole image is applied to tiles too,
    /// which gives another result; see [`Tiler::approximate`].
    ///
    /// # Errors
    /// Those of [`Upscaler::new`].
    pub fn approximate(
        net: Network,
        params: Vec<f32>,
        options: CpuOptions,
        tile: usize,
    ) -> Result<Upscaler> {
        Upscaler::with_tiler(Tiler::approximate(net, tile)?, params, options)
    }

    fn with_tiler(tiler: Tiler, params: Vec<f32>, options: CpuOptions) -> Result<Upscaler> {
        let (given, expected) = (params.len(), tiler.net.params().len());
        ensure!(given == expected, Error::ParameterCount { given, expected });
        Ok(Upscaler {
            tiler,
            params,
            options,
            loaded: None,
        })
    }

    /// Whether an image is always one tile, because the network looks at the whole image.
    pub fn takes_whole_images(&self) -> bool {
        self.tiler.takes_whole_images()
    }

    /// Bytes of the arena for an image of at least one tile, and of the buffers besides it.
    ///
    /// # Errors
    /// Only on a bug in the plan.
    pub fn bytes(&self) -> Result<u64> {
        let shape = (self.tiler.tile, self.tiler.tile);
        let plan = tile_plan(&self.tiler.net, shape, &self.options)?;
        Ok(plan.arena_bytes + self.tiler.bytes())
    }

    /// Bytes for upscaling an image of (width, height) LQ pixels row by row: arena, parameters, and
    /// the buffers of [`UpscaledRows`]. `deep`: its samples have 16 bits.
    ///
    /// # Errors
    /// When the image is empty or too large to be addressed.
    pub fn bytes_in_rows(&self, size: (u32, u32), alpha: bool, deep: bool) -> Result<u64> {
        let grid = self.tiler.grid(size)?;
        let shape = grid.shape;
        let arena = self.arena_bytes(TileKind { shape, deep })?;
        Ok(arena + self.tiler.row_bytes(&grid, alpha, deep))
    }

    /// Bytes for upscaling an image of (width, height) LQ pixels that is in memory, without the
    /// image and its result.
    ///
    /// # Errors
    /// When the image is empty.
    pub fn bytes_in_memory(&self, size: (u32, u32)) -> Result<u64> {
        let (th, tw) = self.tiler.grid(size)?.shape;
        let tile = th * tw * 3 * (1 + 4 * self.tiler.net.scale * self.tiler.net.scale);
        let kind = TileKind {
            shape: (th, tw),
            deep: false,
        };
        Ok(self.arena_bytes(kind)? + tile as u64)
    }

    /// Bytes of arena and parameters.
    fn arena_bytes(&self, kind: TileKind) -> Result<u64> {
        let plan = tile_plan_of(&self.tiler.net, kind, &self.options)?;
        Ok(plan.arena_bytes + 4 * self.params.len() as u64)
    }

    /// Frees the arena unless the next image, of (width, height) LQ pixels, is cut into tiles of
    /// the same shape and depth: the bytes computed for an image do not include another one's arena.
    pub fn make_room_for(&mut self, size: (u32, u32), deep: bool) {
        let kind = self.tiler.grid(size).ok();
        let kind = kind.map(|grid| TileKind {
            shape: grid.shape,
            deep,
        });
        self.loaded.take_if(|(loaded, _)| Some(*loaded) != kind);
    }

    /// Upscales an image row by row while the caller reads the result. The source is read twice if
    /// the network's first rows depend on the last ones of the image, and it has several rows of
    /// tiles.
    ///
    /// # Errors
    /// When the image is empty or memory is short.
    pub fn upscale_rows<'a>(
        &'a mut self,
        source: &'a mut dyn RereadRows,
    ) -> Result<UpscaledRows<'a>> {
        let grid = self.tiler.grid(source.size())?;
        let (tiler, backend) = self.load(TileKind {
            shape: grid.shape,
            deep: source.sample_bytes() == 2,
        })?;
        Ok(UpscaledRows::new(tiler, backend, source, grid))
    }

    /// Loads the backend for a kind of tile, unless it is loaded already.
    fn load(&mut self, kind: TileKind) -> Result<(&mut Tiler, &mut CpuBackend)> {
        // frees the old arena before the new one is allocated
        self.loaded.take_if(|(loaded, _)| *loaded != kind);
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => (kind, self.prepare(kind)?),
        };
        let (_, backend) = self.loaded.insert(loaded);
        Ok((&mut self.tiler, backend))
    }

    /// A backend with the parameters, for a kind of tile.
    fn prepare(&self, kind: TileKind) -> Result<CpuBackend> {
        let plan = tile_plan_of(&self.tiler.net, kind, &self.options)?;
        let needs = bytes_text(plan.arena_bytes);
        let smaller = if self.takes_whole_images() {
            "approximate tiles (--approximate-tiles)"
        } else {
            "a smaller --tile"
        };
        let mut backend = CpuBackend::new(plan, self.options).with_context(|| {
            format!(
                "cannot prepare {needs} and {} threads to compute with; try {smaller} or fewer --threads",
                self.options.threads()
            )
        })?;
        set_parameters(&mut backend, &self.params)?;
        Ok(backend)
    }
}

impl Upscale for Upscaler {
    fn scale(&self) -> usize {
        self.tiler.net.scale
    }

    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage> {
        let shape = self.tiler.grid(lq.dimensions())?.shape;
        let (tiler, backend) = self.load(TileKind { shape, deep: false })?;
        tiler.upscale(lq, backend)
    }
}

impl Upscale for LentUpscaler<'_> {
    fn scale(&self) -> usize {
        self.tiler.net.scale
    }

    fn upscale(&mut self, lq: &RgbImage) -> Result<RgbImage> {
        let shape = self.tiler.grid(lq.dimensions())?.shape;
        let plan = tile_plan(&self.tiler.net, shape, self.sizing)?;
        let mut backend = self.host.lend(plan)?;
        set_parameters(backend.as_mut(), self.params)?;
        self.tiler.upscale(lq, backend.as_mut())
    }
}
