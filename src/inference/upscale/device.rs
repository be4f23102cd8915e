//! A CUDA device that computes tiles: one arena, which the plans of tiles of different shapes use in
//! turns, and which the threads that decode and encode images share, one tile at a time. Depends on
//! the CUDA backend and the tiles. Promises that the arena is never larger than the room it was given.

use super::tiles::{OwnTile, TileBackend, TileKind, Tiler, device_tiles, tile_plan_of};
use super::{TilePlace, Upscaler, set_parameters};
use crate::backend::cuda::{CudaArena, CudaBackend, Device, lower};
use crate::backend::{Backend, CudaSizing, Error};
use crate::model::Network;
use crate::plan::{Plan, Precision};
use crate::support::text::bytes_text;
use anyhow::{Context, Result, ensure};
use std::sync::{Arc, Mutex, PoisonError};

/// An image to be upscaled, as far as the choice of tiles depends on it.
#[derive(Clone, Copy, Debug)]
pub struct ImageKind {
    /// (width, height) in LQ pixels.
    pub size: (u32, u32),
    /// Whether its samples have 16 bits.
    pub deep: bool,
}

/// The tiles that images are cut into on a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceFit {
    /// (height, width) in LQ pixels of the largest tile.
    pub tile: (usize, usize),
    /// Bytes of the arena on the device.
    pub bytes: u64,
}

/// Shapes of tiles that are planned to find the largest arena: those with the most pixels. (A shape
/// with fewer pixels can need a little more, because sides are rounded up to whole windows; the arena
/// then grows.)
const MOST_PLANNED: usize = 8;

/// Shapes of tiles that are kept loaded. Their launches take host memory, and the images of a folder
/// may all have different sizes.
const MOST_LOADED: usize = 16;

/// A CUDA device that computes the tiles of one network, for one thread or several.
pub struct DeviceTiles {
    device: Arc<Device>,
    sizing: CudaSizing,
    /// Most bytes of the arena.
    room: u64,
    state: Mutex<State>,
}

/// What is on the device.
#[derive(Default)]
struct State {
    /// Bytes that the arena will need, as far as that is known.
    expected: u64,
    arena: Option<CudaArena>,
    loaded: Vec<(TileKind, CudaBackend)>,
    /// The one of `loaded` whose parameters are in the arena.
    current: Option<usize>,
}

impl DeviceTiles {
    /// Nothing is allocated yet. `room`: most bytes that the arena may take on the device, see
    /// [`Device::room`].
    pub fn new(device: Arc<Device>, precision: Precision, room: u64) -> DeviceTiles {
        DeviceTiles {
            device,
            sizing: CudaSizing { precision },
            room,
            state: Mutex::default(),
        }
    }

    /// The device and its type of activations, for the user.
    pub fn description(&self) -> String {
        let Device {
            name, capability, ..
        } = self.device.as_ref();
        format!("{name} (sm_{capability}), {}", self.sizing.precision)
    }

    /// Type of activations.
    pub fn precision(&self) -> Precision {
        self.sizing.precision
    }

    /// Most bytes of the arena.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Bytes of the arena that are allocated now.
    pub fn allocated(&self) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.arena.as_ref().map_or(0, CudaArena::bytes)
    }

    /// The plan of a tile.
    fn plan(&self, net: &Network, kind: TileKind) -> Result<Plan> {
        tile_plan_of(net, kind, &self.sizing)
    }

    /// Bytes of the arena for a tile.
    ///
    /// # Errors
    /// When the device cannot compute the network, or not in tiles of this size.
    pub(super) fn tile_bytes(&self, net: &Network, kind: TileKind) -> Result<u64> {
        let plan = self.plan(net, kind)?;
        lower(&plan, self.device.choices())?;
        Ok(plan.arena_bytes)
    }

    /// Checks that an arena of `bytes` bytes may be allocated.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with both numbers and `advice`.
    pub(super) fn check(&self, bytes: u64, advice: &str) -> Result<()> {
        ensure!(
            bytes <= self.room,
            Error::OutOfMemory(format!(
                "it takes {} of the memory of {}, where {} may be used; {advice}",
                bytes_text(bytes),
                self.device.name,
                bytes_text(self.room)
            ))
        );
        Ok(())
    }

    /// The arena is allocated with the first tile. It then has at least `bytes` bytes, so that it need
    /// not grow.
    fn expect(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expected = bytes;
    }

    /// The arena, with at least `bytes` bytes.
    fn arena<'a>(&self, state: &'a mut State, bytes: u64) -> Result<&'a CudaArena> {
        if state.arena.as_ref().is_some_and(|a| a.bytes() < bytes) {
            // frees the smaller arena before the larger one is allocated
            *state = State::default();
        }
        let arena = match state.arena.take() {
            Some(arena) => arena,
            None => {
                self.check(bytes, "give a smaller --tile, or allow more with --vram")?;
                CudaArena::new(&self.device, bytes.max(state.expected))?
            }
        };
        Ok(state.arena.insert(arena))
    }

    /// Makes the parameters and the plan for a kind of tile ready in the arena.
    fn load<'a>(
        &self,
        state: &'a mut State,
        (net, params): (&Network, &[f32]),
        kind: TileKind,
    ) -> Result<&'a mut CudaBackend> {
        let found = state.loaded.iter().position(|(loaded, _)| *loaded == kind);
        let index = match found {
            Some(index) => index,
            None => {
                let plan = self.plan(net, kind)?;
                let backend = self.arena(state, plan.arena_bytes)?.load(plan)?;
                if state.loaded.len() == MOST_LOADED {
                    state.loaded.clear();
                    state.current = None;
                }
                state.loaded.push((kind, backend));
                state.loaded.len() - 1
            }
        };
        let backend = &mut state.loaded[index].1;
        if state.current != Some(index) {
            state.current = None;
            set_parameters(backend, params)?;
            state.current = Some(index);
        }
        Ok(backend)
    }
}

/// The device as one thread uses it for an image: a kind of tile of a network.
pub(super) struct SharedTile {
    pub device: Arc<DeviceTiles>,
    pub net: Network,
    /// In table order.
    pub params: Arc<Vec<f32>>,
    pub kind: TileKind,
}

impl TileBackend for SharedTile {
    fn with(&mut self, work: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        let state = &self.device.state;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self
            .device
            .load(&mut state, (&self.net, &self.params), self.kind)
            .and_then(|backend| work(backend));
        if done.is_err() {
            // after an error of the device the content of the arena is not defined
            state.loaded.clear();
            state.current = None;
        }
        done
    }
}

fn tile_text((h, w): (usize, usize)) -> String {
    format!("a tile of {w} x {h} pixels")
}

/// What computes the tiles of an image. (Not a boxed trait: the borrow of a boxed one would last
/// until it is dropped.)
pub(super) enum TileRunner<'a> {
    /// A backend that nobody else uses.
    Own(OwnTile<'a>),
    /// A device that other threads use too.
    Shared(SharedTile),
}

impl TileBackend for TileRunner<'_> {
    fn with(&mut self, work: &mut dyn FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        match self {
            TileRunner::Own(own) => own.with(work),
            TileRunner::Shared(shared) => shared.with(work),
        }
    }
}

/// The largest tile of some images, and the arena that they need.
fn most_of(tiler: &Tiler, device: &DeviceTiles, images: &[ImageKind]) -> Result<DeviceFit> {
    let kinds = images.iter().map(|image| {
        Ok(TileKind {
            shape: tiler.grid(image.size)?.shape,
            deep: image.deep,
            stage: None,
        })
    });
    let mut kinds = kinds.collect::<Result<Vec<TileKind>>>()?;
    kinds.sort_unstable_by_key(|kind| {
        let (h, w) = kind.shape;
        std::cmp::Reverse((h * w, h, kind.deep))
    });
    kinds.dedup();
    let mut most = DeviceFit::default();
    for &kind in kinds.iter().take(MOST_PLANNED) {
        let bytes = device.tile_bytes(&tiler.net, kind)?;
        if bytes > most.bytes {
            let tile = kind.shape;
            most = DeviceFit { tile, bytes };
        }
    }
    Ok(most)
}

impl ImageKind {
    fn has_pixels(&self) -> bool {
        self.size.0 > 0 && self.size.1 > 0
    }
}

impl Upscaler {
    /// Checks that the device can compute the network, in the smallest tiles at least. On the CPU this
    /// does nothing.
    ///
    /// # Errors
    /// The operation that has no kernel, or the memory that is missing. A network that looks at the
    /// whole image is only checked for its kernels.
    pub fn check_device(&self) -> Result<()> {
        let TilePlace::Device(device) = &self.place else {
            return Ok(());
        };
        let sides = device_tiles(&self.tiler.net);
        let side = sides.last().copied().unwrap_or(self.tiler.tile);
        let kind = TileKind {
            shape: (side, side),
            deep: false,
            stage: None,
        };
        let bytes = device.tile_bytes(&self.tiler.net, kind)?;
        if self.takes_whole_images() {
            return Ok(());
        }
        let advice = "allow more with --vram, close other programs, or give --device cpu";
        device
            .check(bytes, advice)
            .with_context(|| tile_text((side, side)))
    }

    /// Checks that an image fits on the device with the tiles that are set. On the CPU this does
    /// nothing.
    ///
    /// # Errors
    /// The memory that is missing, or the size that the kernels cannot count.
    pub fn check_on_device(&self, image: ImageKind) -> Result<()> {
        let TilePlace::Device(device) = &self.place else {
            return Ok(());
        };
        let fit = most_of(&self.tiler, device, &[image])?;
        device
            .check(fit.bytes, self.smaller_advice())
            .with_context(|| tile_text(fit.tile))
    }

    /// How an image could take less of the device's memory.
    fn smaller_advice(&self) -> &'static str {
        if self.takes_whole_images() {
            "the network looks at the whole image, and its stages run on the CPU only: give --device cpu, allow more with --vram, or give --approximate-tiles (the result then differs)"
        } else {
            "give a smaller --tile, allow more with --vram, or give --device cpu"
        }
    }

    /// Chooses the tiles on the device for images: the largest with which all of them fit, or those that
    /// are set already (`fixed`). `None` on the CPU and without
    /// images.
    ///
    /// # Errors
    /// When the images do not fit in the smallest tiles, or the device cannot compute the network.
    pub fn fit_device(&mut self, images: &[ImageKind], fixed: bool) -> Result<Option<DeviceFit>> {
        let TilePlace::Device(device) = self.place.clone() else {
            return Ok(None);
        };
        let images: Vec<ImageKind> = images
            .iter()
            .copied()
            .filter(ImageKind::has_pixels)
            .collect();
        if images.is_empty() {
            return Ok(None);
        }
        let sides = match fixed || self.takes_whole_images() {
            true => vec![self.tiler.tile],
            false => device_tiles(&self.tiler.net),
        };
        let mut last = None;
        for side in sides {
            let tiler = self.tiler.with_side(side)?;
            let fit = most_of(&tiler, &device, &images)?;
            if fit.bytes <= device.room() {
                device.expect(fit.bytes);
                self.tiler = tiler;
                return Ok(Some(fit));
            }
            last = Some(fit);
        }
        let DeviceFit { bytes, tile } = last.unwrap_or_default();
        device
            .check(bytes, self.smaller_advice())
            .with_context(|| tile_text(tile))?;
        Ok(None)
    }
}
