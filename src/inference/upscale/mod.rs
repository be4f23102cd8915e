//! Applies a trained network to images of any size, in tiles that overlap by the network's
//! receptive field, so that the result has the same bits for every tile size. The tiles run in an
//! arena of their own, in the memory of the CPU or of a CUDA device, or in the part of a training
//! step's arena that is free between steps; an image may be read and written row by row. Depends on the networks, the backends and the
//! dataset's resampling. Promises that it allocates what it computes beforehand.

mod device;
#[cfg(test)]
mod ring_tests;
mod rows;
mod spans;
mod stages;
#[cfg(test)]
mod stages_tests;
#[cfg(test)]
mod tests;
mod tiles;

pub use device::{DeviceFit, DeviceTiles, ImageKind};
pub use rows::UpscaledRows;
pub use tiles::{
    DEFAULT_TILE, LEAST_LENT_TILE, LeastRoom, Tiler, default_tile, largest_tile, least_room,
};

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, write_floats};
use crate::dataset::rows::PixelRows;
use crate::dataset::rows::RereadRows;
use crate::model::{Error, Network, Stages};
use crate::plan::Sizing;
use crate::support::progress::Progress;
use crate::support::text::bytes_text;
use anyhow::{Context, Result, bail, ensure};
use device::{SharedTile, TileRunner};
use image::RgbImage;
use rows::LqRows;
use stages::{Features, ImageRows};
use std::path::PathBuf;
use std::sync::Arc;
use tiles::{OwnTile, SCALARS, TileGrid, TileKind, tile_plan, tile_plan_of, try_resize};

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

/// Where the tiles of a network are computed.
#[derive(Clone)]
pub enum TilePlace {
    /// On the CPU.
    Cpu(CpuOptions),
    /// On a CUDA device.
    Device(Arc<DeviceTiles>),
}

impl From<CpuOptions> for TilePlace {
    fn from(options: CpuOptions) -> TilePlace {
        TilePlace::Cpu(options)
    }
}

/// A network with parameters and an arena of its own.
pub struct Upscaler {
    tiler: Tiler,
    params: Arc<Vec<f32>>,
    place: TilePlace,
    /// How images are computed in stages, if they are.
    in_stages: Option<InStages>,
    /// On the CPU, the backend for the last kind of tile; an image smaller than a tile needs another
    /// one.
    loaded: Option<(TileKind, CpuBackend)>,
}

/// How images are computed in stages.
struct InStages {
    stages: Stages,
    /// The folder for the temporary files.
    folder: PathBuf,
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
        place: impl Into<TilePlace>,
        tile: usize,
    ) -> Result<Upscaler> {
        Upscaler::with_tiler(Tiler::new(net, tile)?, params, place.into())
    }

    /// As [`Upscaler::new`], but a network that looks at the whole image is applied to tiles too,
    /// which gives another result; see [`Tiler::approximate`].
    ///
    /// # Errors
    /// Those of [`Upscaler::new`].
    pub fn approximate(
        net: Network,
        params: Vec<f32>,
        place: impl Into<TilePlace>,
        tile: usize,
    ) -> Result<Upscaler> {
        Upscaler::with_tiler(Tiler::approximate(net, tile)?, params, place.into())
    }

    fn with_tiler(tiler: Tiler, params: Vec<f32>, place: TilePlace) -> Result<Upscaler> {
        let (given, expected) = (params.len(), tiler.net.params().len());
        ensure!(given == expected, Error::ParameterCount { given, expected });
        Ok(Upscaler {
            tiler,
            params: Arc::new(params),
            place,
            in_stages: None,
            loaded: None,
        })
    }

    /// An upscaler for another thread: the same network with the same tiles, and on a device in the
    /// same arena.
    ///
    /// # Errors
    /// Only on a bug: the network and its tiles were checked.
    pub fn for_another_thread(&self) -> Result<Upscaler> {
        let in_stages = self.in_stages.as_ref();
        Ok(Upscaler {
            tiler: self.tiler.with_side(self.tiler.tile)?,
            params: self.params.clone(),
            place: self.place.clone(),
            in_stages: in_stages.map(|InStages { stages, folder }| InStages {
                stages: *stages,
                folder: folder.clone(),
            }),
            loaded: None,
        })
    }

    /// The device that computes; `None` on the CPU.
    pub fn device(&self) -> Option<&DeviceTiles> {
        match &self.place {
            TilePlace::Cpu(_) => None,
            TilePlace::Device(device) => Some(device),
        }
    }

    /// From here on, the CPU computes. `tile`: as in [`Upscaler::new`].
    ///
    /// # Errors
    /// When the tile is too small for the network's receptive field.
    pub fn use_cpu(&mut self, options: CpuOptions, tile: usize) -> Result<()> {
        self.place = options.into();
        self.tiler = self.tiler.with_side(tile)?;
        Ok(())
    }

    /// Whether a network that looks at the whole image can be computed in stages, which give the
    /// bits of the whole image: [`Upscaler::use_stages`]. The stages run on the CPU only: the kernels
    /// of a device take the means of the channels from the features that they are given.
    pub fn has_stages(&self) -> bool {
        self.device().is_none() && self.tiler.net.stages().is_some()
    }

    /// From here on, images of more than one tile are computed in stages. Memory then holds one tile
    /// of the image, and temporary files in `folder` hold features of [`Upscaler::file_bytes`].
    /// `tile`: largest side of a tile in LQ pixels (0: a default).
    ///
    /// # Errors
    /// When the network has no stages, or the tile is too small for its receptive field.
    pub fn use_stages(&mut self, folder: PathBuf, tile: usize) -> Result<()> {
        ensure!(
            self.device().is_none(),
            "the stages of a network run on the CPU only"
        );
        let net = self.tiler.net.clone();
        let stages = net.stages().context("the network has no stages")?;
        self.tiler = Tiler::of_stages(net, tile, stages)?;
        self.in_stages = Some(InStages { stages, folder });
        Ok(())
    }

    /// From here on, a network that looks at the whole image is given all of it at once.
    ///
    /// # Errors
    /// Those of [`Tiler::new`].
    pub fn use_whole_images(&mut self) -> Result<()> {
        self.tiler = Tiler::new(self.tiler.net.clone(), 0)?;
        self.in_stages = None;
        Ok(())
    }

    /// Bytes of the temporary files for an image of (width, height) LQ pixels; 0 if it is not
    /// computed in stages.
    ///
    /// # Errors
    /// When the image is empty.
    pub fn file_bytes(&self, size: (u32, u32)) -> Result<u64> {
        let stages = self.stages_for(&self.tiler.grid(size)?);
        Ok(stages.map_or(0, |stages| stages::file_bytes(stages, size)))
    }

    /// Steps that [`Upscaler::upscale_rows`] reports for an image before it returns: rows of tiles,
    /// of all stages but the last. 0 if the image is not computed in stages.
    ///
    /// # Errors
    /// When the image is empty.
    pub fn steps_of_stages(&self, size: (u32, u32)) -> Result<u64> {
        let grid = self.tiler.grid(size)?;
        let stages = self.stages_for(&grid);
        Ok(stages.map_or(0, |s| ((s.count - 1) * grid.rows.len()) as u64))
    }

    /// The stages in which an image is computed: none if it is one tile.
    fn stages_for(&self, grid: &TileGrid) -> Option<Stages> {
        let stages = self.in_stages.as_ref().map(|in_stages| in_stages.stages);
        stages.filter(|_| grid.rows.len() * grid.columns.len() > 1)
    }

    /// Whether an image is always one tile, because the network looks at the whole image.
    pub fn takes_whole_images(&self) -> bool {
        self.tiler.takes_whole_images()
    }

    /// Bytes of host memory for an image of at least one tile: of the arena, if the CPU computes, and of
    /// the buffers besides it.
    ///
    /// # Errors
    /// Only on a bug in the plan.
    pub fn bytes(&self) -> Result<u64> {
        let shape = (self.tiler.tile, self.tiler.tile);
        let arena = match &self.place {
            TilePlace::Cpu(options) => tile_plan(&self.tiler.net, shape, options)?.arena_bytes,
            TilePlace::Device(_) => 0,
        };
        Ok(arena + self.tiler.bytes())
    }

    /// Bytes of host memory for upscaling an image of (width, height) LQ pixels row by row: arena, if
    /// the CPU computes, parameters, and the buffers of [`UpscaledRows`]. `deep`: its samples have 16
    /// bits.
    ///
    /// # Errors
    /// When the image is empty or too large to be addressed.
    pub fn bytes_in_rows(&self, size: (u32, u32), alpha: bool, deep: bool) -> Result<u64> {
        let grid = self.tiler.grid(size)?;
        let rows = self.tiler.row_bytes(&grid, alpha, deep);
        Ok(self.arena_bytes(&grid, deep)? + rows)
    }

    /// Bytes of host memory for upscaling an image of (width, height) LQ pixels that is in memory,
    /// without the image and its result.
    ///
    /// # Errors
    /// When the image is empty.
    pub fn bytes_in_memory(&self, size: (u32, u32)) -> Result<u64> {
        let grid = self.tiler.grid(size)?;
        let buffers = if self.stages_for(&grid).is_some() {
            self.tiler.row_bytes(&grid, false, false)
        } else {
            let ((th, tw), scale) = (grid.shape, self.tiler.net.scale);
            (th * tw * 3 * (1 + 4 * scale * scale)) as u64
        };
        Ok(self.arena_bytes(&grid, false)? + buffers)
    }

    /// Bytes of the arena, if the CPU computes, of the parameters, and of the features of stages.
    fn arena_bytes(&self, grid: &TileGrid, deep: bool) -> Result<u64> {
        let parameters = 4 * self.params.len() as u64;
        let TilePlace::Cpu(options) = &self.place else {
            return Ok(parameters);
        };
        let arena = |stage: Option<usize>| {
            let shape = grid.shape;
            let kind = TileKind { shape, deep, stage };
            Ok::<u64, anyhow::Error>(tile_plan_of(&self.tiler.net, kind, options)?.arena_bytes)
        };
        let bytes = match self.stages_for(grid) {
            // the stages between the first and the last have the same size
            Some(stages) => {
                let last = stages.count - 1;
                let arenas = [arena(Some(0))?, arena(Some(1))?, arena(Some(last))?];
                let features = stages::memory_bytes(stages, grid);
                arenas.into_iter().max().unwrap_or(0) + features
            }
            None => arena(None)?,
        };
        Ok(bytes + parameters)
    }

    /// Frees the CPU's arena unless the next image, of (width, height) LQ pixels, is cut into tiles of
    /// the same shape and depth: the bytes computed for an image do not include another one's arena.
    pub fn make_room_for(&mut self, size: (u32, u32), deep: bool) {
        let kind = self.tiler.grid(size).ok();
        let kind = kind.map(|grid| TileKind {
            shape: grid.shape,
            deep,
            stage: None,
        });
        self.loaded.take_if(|(loaded, _)| Some(*loaded) != kind);
    }

    /// Upscales an image row by row while the caller reads the result. The source is read twice if
    /// the network's first rows depend on the last ones of the image, and it has several rows of
    /// tiles, and twice more if the image is computed in stages. All stages but the last are computed
    /// before this returns; `progress` advances by [`Upscaler::steps_of_stages`].
    ///
    /// # Errors
    /// When the image is empty, memory is short, or a temporary file cannot be used.
    pub fn upscale_rows<'a>(
        &'a mut self,
        source: &'a mut dyn RereadRows,
        progress: &Progress,
    ) -> Result<UpscaledRows<'a>> {
        let grid = self.tiler.grid(source.size())?;
        let features = self.compute_stages(source, &grid, progress)?;
        let (tiler, backend) = self.tile_backend(TileKind {
            shape: grid.shape,
            deep: source.sample_bytes() == 2,
            stage: features.as_ref().map(Features::last),
        })?;
        Ok(UpscaledRows::new(tiler, backend, source, (grid, features)))
    }

    /// Computes all stages of an image but the last, if it is computed in stages, and returns to the
    /// first row of the source.
    fn compute_stages(
        &mut self,
        source: &mut dyn RereadRows,
        grid: &TileGrid,
        progress: &Progress,
    ) -> Result<Option<Features>> {
        let Some(stages) = self.stages_for(grid) else {
            return Ok(None);
        };
        let (size, bytes) = (source.size(), source.sample_bytes());
        let folder = self.in_stages.as_ref().map(|s| s.folder.clone());
        let mut features = Features::new(stages, &folder.unwrap_or_default(), size)?;
        let (shape, deep) = (grid.shape, bytes == 2);
        for number in 0..features.last() {
            let (tiler, backend) = self.load(TileKind {
                shape,
                deep: deep && number == 0,
                stage: Some(number),
            })?;
            let mut lq = LqRows::new(source);
            for &row in &grid.rows {
                if number == 0 {
                    lq.read(grid, row)?;
                    let pixels = (lq.pieces(grid, row), bytes);
                    tiler.begin_stages(backend, grid, row, pixels, &mut features)?;
                } else {
                    for &column in &grid.columns {
                        features.load(backend, number, (row, column))?;
                        backend.micro_step(&SCALARS)?;
                        features.store(backend, number, (row, column), shape.1)?;
                    }
                }
                progress.advance(1);
            }
            features.end_stage(number)?;
        }
        source.restart()?;
        Ok(Some(features))
    }

    /// The tiler, and what computes a kind of tile.
    fn tile_backend(&mut self, kind: TileKind) -> Result<(&mut Tiler, TileRunner<'_>)> {
        if let TilePlace::Device(device) = &self.place {
            let tile = SharedTile {
                device: device.clone(),
                net: self.tiler.net.clone(),
                params: self.params.clone(),
                kind,
            };
            return Ok((&mut self.tiler, TileRunner::Shared(tile)));
        }
        let (tiler, backend) = self.load(kind)?;
        Ok((tiler, TileRunner::Own(OwnTile(backend))))
    }

    /// Loads the CPU's backend for a kind of tile, unless it is loaded already.
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
        let TilePlace::Cpu(options) = self.place else {
            bail!("the stages of a network run on the CPU only");
        };
        let plan = tile_plan_of(&self.tiler.net, kind, &options)?;
        let needs = bytes_text(plan.arena_bytes);
        let smaller = if self.takes_whole_images() {
            "approximate tiles (--approximate-tiles)"
        } else {
            "a smaller --tile"
        };
        let mut backend = CpuBackend::new(plan, options).with_context(|| {
            format!(
                "cannot prepare {needs} and {} threads to compute with; try {smaller} or fewer --threads",
                options.threads()
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
        let grid = self.tiler.grid(lq.dimensions())?;
        if self.stages_for(&grid).is_some() {
            let mut source = ImageRows::new(lq);
            let mut rows = self.upscale_rows(&mut source, &Progress::hidden())?;
            let ((width, height), mut out) = (rows.size(), Vec::new());
            let bytes = width as usize * height as usize * 3;
            try_resize(&mut out, bytes, "the enlarged image")?;
            rows.read(&mut out)?;
            return RgbImage::from_raw(width, height, out)
                .context("the enlarged image has a wrong length");
        }
        let (tiler, mut backend) = self.tile_backend(TileKind {
            shape: grid.shape,
            deep: false,
            stage: None,
        })?;
        tiler.upscale(lq, &mut backend)
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
        self.tiler.upscale(lq, &mut OwnTile(backend.as_mut()))
    }
}
