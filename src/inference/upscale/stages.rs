//! Networks that look at the whole image, computed stage by stage: in every stage the image is cut
//! into tiles, and between two stages the features of the whole image are in a temporary file, from
//! which their means are taken. Depends on the tiles and on the system's files. Promises the bits of
//! one pass over the whole image in memory for one tile and one row of features.

use super::spans::Span;
use super::tiles::{TileGrid, try_resize};
use crate::backend::cpu::ChannelMeans;
use crate::backend::{Backend, read_floats, write_floats};
use crate::dataset::rows::{PixelRows, RereadRows};
use crate::model::Stages;
use crate::plan::{BufferId, CHANNEL_GROUP};
use crate::sys;
use anyhow::{Context, Result};
use image::RgbImage;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the features of one LQ pixel.
fn pixel_bytes(stages: Stages) -> u64 {
    (stages.channels.next_multiple_of(CHANNEL_GROUP) * size_of::<f32>()) as u64
}

/// Bytes of the temporary files for an image of (width, height) LQ pixels: the features that a stage
/// reads and those that it writes.
pub(super) fn file_bytes(stages: Stages, (w, h): (u32, u32)) -> u64 {
    2 * u64::from(w) * u64::from(h) * pixel_bytes(stages)
}

/// Most bytes of memory that stages need besides what upscaling by rows needs: the features of one
/// tile, or a row of them.
pub(super) fn memory_bytes(stages: Stages, grid: &TileGrid) -> u64 {
    let (th, tw) = grid.shape;
    pixel_bytes(stages) * ((th * tw).max(grid.width)) as u64
}

/// The features `[h, w, C]` of an image, f32, in a file that has no name any more.
struct FeatureFile {
    file: File,
    width: usize,
    /// f32 values of a pixel.
    stride: usize,
}

impl FeatureFile {
    /// An empty file in a folder.
    fn create(folder: &Path, width: usize, stride: usize) -> Result<FeatureFile> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".paragon-features-{}-{number}", std::process::id());
        let path = folder.join(name);
        let advice = "a folder for temporary files can be given with --scratch";
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create {}; {advice}", path.display()))?;
        // without a name, the file is gone when the process ends in any way
        std::fs::remove_file(&path)
            .with_context(|| format!("cannot remove {}; {advice}", path.display()))?;
        Ok(FeatureFile {
            file,
            width,
            stride,
        })
    }

    /// Position of a pixel in the file.
    fn at(&self, y: usize, x: usize) -> u64 {
        ((y * self.width + x) * self.stride * size_of::<f32>()) as u64
    }

    fn read(&self, (y, x): (usize, usize), values: &mut [f32]) -> Result<()> {
        let bytes = bytemuck::cast_slice_mut(values);
        sys::read_exact_at(&self.file, bytes, self.at(y, x))
            .context("the temporary file of the features cannot be read")
    }

    /// Reads a tile, `[tile height, tile width, C]`.
    fn read_tile(&self, row: Span, column: Span, values: &mut [f32]) -> Result<()> {
        let mut rest = values;
        for y in row.pieces.into_iter().flat_map(|(from, to)| from..to) {
            for (from, to) in column.pieces {
                let (line, later) = rest.split_at_mut((to - from) * self.stride);
                self.read((y, from), line)?;
                rest = later;
            }
        }
        Ok(())
    }

    /// Writes the valid part of a tile.
    fn write_tile(&mut self, row: Span, column: Span, tile: usize, values: &[f32]) -> Result<()> {
        let (first, width) = (column.valid_at(), column.valid_len());
        for (i, y) in (row.valid.0..row.valid.1).enumerate() {
            let from = ((row.valid_at() + i) * tile + first) * self.stride;
            let line = &values[from..from + width * self.stride];
            let at = SeekFrom::Start(self.at(y, column.valid.0));
            let written = self.file.seek(at);
            written
                .and_then(|_| self.file.write_all(bytemuck::cast_slice(line)))
                .context(
                    "the temporary file of the features cannot be written; name a folder with more \
                     room (--scratch)",
                )?;
        }
        Ok(())
    }
}

/// The features of an image between its stages.
pub(super) struct Features {
    stages: Stages,
    /// (height, width) in LQ pixels.
    size: (usize, usize),
    /// Stage `n` writes file `n % 2` and reads the other one.
    files: [FeatureFile; 2],
    /// The means of what the stage before wrote.
    means: Vec<f64>,
    /// The features of one tile, or a row of them.
    values: Vec<f32>,
}

impl Features {
    /// Creates the temporary files in a folder.
    ///
    /// # Errors
    /// Those of the system, with advice.
    pub fn new(stages: Stages, folder: &Path, (w, h): (u32, u32)) -> Result<Features> {
        let (width, stride) = (w as usize, stages.channels.next_multiple_of(CHANNEL_GROUP));
        let create = || FeatureFile::create(folder, width, stride);
        Ok(Features {
            stages,
            size: (h as usize, width),
            files: [create()?, create()?],
            means: Vec::new(),
            values: Vec::new(),
        })
    }

    /// Number of the last stage.
    pub fn last(&self) -> usize {
        self.stages.count - 1
    }

    /// Writes what stage `number` begins with to the backend that is loaded with it: the features of
    /// a tile, and the means of the image.
    pub fn load(
        &mut self,
        backend: &mut dyn Backend,
        number: usize,
        (row, column): (Span, Span),
    ) -> Result<()> {
        let ports = backend.plan().ports;
        let features = ports.features.context("the stage's plan has no features")?;
        let means = ports.means.context("the stage's plan has no means")?;
        self.resize_for(backend, features)?;
        self.files[(number + 1) % 2].read_tile(row, column, &mut self.values)?;
        write_floats(backend, features, &self.values)?;
        backend.write(means, 0, bytemuck::cast_slice(&self.means))
    }

    /// Keeps the features that stage `number` computed for the valid part of a tile.
    pub fn store(
        &mut self,
        backend: &mut dyn Backend,
        number: usize,
        (row, column): (Span, Span),
        tile_width: usize,
    ) -> Result<()> {
        let output = backend.plan().ports.output;
        let output = output.context("the stage's plan has no output")?;
        self.resize_for(backend, output)?;
        read_floats(backend, output, &mut self.values)?;
        self.files[number % 2].write_tile(row, column, tile_width, &self.values)
    }

    /// Takes the means of what stage `number` has written for all tiles.
    pub fn end_stage(&mut self, number: usize) -> Result<()> {
        let (height, width) = self.size;
        let (file, channels) = (&self.files[number % 2], self.stages.channels);
        let mut means = ChannelMeans::new(self.size, channels);
        try_resize(&mut self.values, width * file.stride, "a row of features")?;
        for y in 0..height {
            file.read((y, 0), &mut self.values)?;
            means.add_rows(&self.values);
        }
        self.means = means.finish();
        Ok(())
    }

    /// Makes `values` as long as a buffer of the backend.
    fn resize_for(&mut self, backend: &dyn Backend, buffer: BufferId) -> Result<()> {
        let count = backend.plan().buffer(buffer).bytes as usize / size_of::<f32>();
        try_resize(&mut self.values, count, "the features of a tile")
    }
}

/// The rows of an image in memory.
pub(super) struct ImageRows<'a> {
    image: &'a RgbImage,
    /// Bytes that were read.
    at: usize,
}

impl<'a> ImageRows<'a> {
    pub fn new(image: &'a RgbImage) -> ImageRows<'a> {
        ImageRows { image, at: 0 }
    }
}

impl PixelRows for ImageRows<'_> {
    fn size(&self) -> (u32, u32) {
        self.image.dimensions()
    }

    fn channels(&self) -> usize {
        3
    }

    fn read(&mut self, rows: &mut [u8]) -> Result<()> {
        let end = self.at + rows.len();
        let bytes = self.image.as_raw().get(self.at..end);
        rows.copy_from_slice(bytes.context("the image has no rows left")?);
        self.at = end;
        Ok(())
    }
}

impl RereadRows for ImageRows<'_> {
    fn restart(&mut self) -> Result<()> {
        self.at = 0;
        Ok(())
    }
}
