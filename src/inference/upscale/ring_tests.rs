//! Tiles of networks whose windows join opposite borders of the image, on networks of hashes: two
//! values are equal only if they depend on the same pixels in the same way.

use super::device::TileRunner;
use super::rows::UpscaledRows;
use super::spans::{spans, tile_side};
use super::tests::{Rows, noise};
use super::tiles::{OwnTile, Tiler, least_tile, tile_plan};
use crate::backend::cpu::CpuOptions;
use crate::backend::{Backend, BatchView, Scalars, StepMetrics};
use crate::dataset::degrade::Resampler;
use crate::dataset::rows::PixelRows;
use crate::model::{Network, Tiling};
use crate::plan::{BufferId, Plan};
use crate::support::rng::key;
use crate::sys::host_memory::Fence;
use anyhow::Result;
use image::GrayImage;

/// A network of windows along one side of an image. Its values are hashes of all that they depend
/// on, so that two are equal only if they have the bits of one pass over the image.
struct WindowsOfHashes {
    window: usize,
    blocks: usize,
}

impl WindowsOfHashes {
    /// A convolution of `2 * reach + 1` taps with zero padding; in blocks of `block` pixels, each of
    /// which depends on all inputs of its block.
    fn conv(values: &[u64], reach: usize, block: usize) -> Vec<u64> {
        let at = |i: usize| i.checked_sub(reach).and_then(|i| values.get(i)).copied();
        (0..values.len())
            .map(|i| {
                let first = i - i % block;
                let mut parts = vec![(i - first) as u64];
                parts.extend((first..first + block + 2 * reach).map(|i| at(i).unwrap_or(0)));
                key(&parts)
            })
            .collect()
    }

    fn attention(&self, values: &[u64], shift: usize) -> Vec<u64> {
        let len = values.len();
        let padded = len.next_multiple_of(self.window);
        (0..len)
            .map(|i| {
                let rolled = (i + padded - shift) % padded;
                let first = rolled - rolled % self.window;
                let pixels = (first..first + self.window).map(|at| (at + shift) % padded);
                let mut parts = vec![(rolled - first) as u64];
                parts.extend(pixels.map(|at| values.get(at).copied().unwrap_or(0)));
                key(&parts)
            })
            .collect()
    }

    fn run(&self, image: &[u64]) -> Vec<u64> {
        let mut values = Self::conv(image, 1, 1);
        for block in 0..self.blocks {
            values = Self::conv(&values, 1, 1);
            values = self.attention(&values, if block % 2 == 1 { self.window / 2 } else { 0 });
        }
        let block = |pixels: usize| {
            if self.window.is_multiple_of(pixels) {
                pixels
            } else {
                1
            }
        };
        values = Self::conv(&values, 1, block(4));
        Self::conv(&values, 2, block(2))
    }
}

#[test]
fn tiles_of_a_network_that_wraps_give_the_bits_of_the_image() {
    for (window, blocks) in [(2, 3), (3, 2), (4, 5), (6, 4), (16, 1)] {
        let tiling = Tiling::in_windows(window, blocks);
        assert!(tiling.halo.is_multiple_of(window) && tiling.align == window);
        let net = WindowsOfHashes { window, blocks };
        let least = least_tile(tiling);
        let mut several = 0;
        for most in [least, least + 3 * window, 2 * least] {
            for len in [1, most - 1, most, most + 1, most + window, 2 * most + 5]
                .into_iter()
                .chain((3 * most..3 * most + window).step_by(3))
            {
                let image: Vec<u64> = (1..=len as u64).collect();
                let whole = net.run(&image);
                let tile = tile_side(len, most, tiling);
                assert!(tile <= most.min(len) && tile % window == len % window || tile == len);
                let list = spans(len, tile, tiling);
                let mut next = 0;
                for span in &list {
                    let [first, second] = span.pieces.map(|(from, to)| &image[from..to]);
                    let input = [first, second].concat();
                    assert_eq!((input.len(), span.valid.0), (tile, next), "{span:?}");
                    let (found, at) = (net.run(&input), span.valid_at());
                    let valid = span.valid.0..span.valid.1;
                    let same = found[at..at + valid.len()] == whole[valid];
                    assert!(same, "window {window}, {len} in tiles of {tile}: {span:?}");
                    next = span.valid.1;
                }
                assert_eq!(next, len);
                several += usize::from(list.len() > 3);
            }
        }
        assert!(several > 0);
    }
}

/// With a halo of one window less, some tile has other values.
#[test]
fn the_halo_of_windows_is_not_larger_than_it_must_be() {
    for (window, blocks) in [(4, 2), (6, 4), (8, 3)] {
        let tiling = Tiling::in_windows(window, blocks);
        let small = Tiling {
            halo: tiling.halo - window,
            ..tiling
        };
        let net = WindowsOfHashes { window, blocks };
        let len = 3 * least_tile(tiling);
        let image: Vec<u64> = (1..=len as u64).collect();
        let whole = net.run(&image);
        let tile = tile_side(len, least_tile(tiling), small);
        let differs = spans(len, tile, small).iter().any(|span| {
            let [first, second] = span.pieces.map(|(from, to)| &image[from..to]);
            let (found, at) = (net.run(&[first, second].concat()), span.valid_at());
            let valid = span.valid.0..span.valid.1;
            found[at..at + valid.len()] != whole[valid]
        });
        assert!(differs, "window {window}");
    }
    // sixteen blocks of half a window each, and the convolutions around them
    assert_eq!(Network::new("photo", 2).unwrap().tiling().halo, 144);
}

/// A backend that runs [`WindowsOfHashes`] along rows and then along columns, and returns bytes of
/// the hashes as the enlarged image.
struct HashBackend {
    plan: Plan,
    net: WindowsOfHashes,
    size: (usize, usize),
    scale: usize,
    output: Vec<f32>,
}

impl HashBackend {
    /// For tiles of Photo with small windows.
    fn new(net: &Network, (h, w): (usize, usize)) -> HashBackend {
        let window = net.whole("window_size");
        HashBackend {
            plan: tile_plan(net, (h, w), &CpuOptions::new(1)).unwrap(),
            net: WindowsOfHashes { window, blocks: 16 },
            size: (h, w),
            scale: net.scale,
            output: Vec::new(),
        }
    }
}

impl Backend for HashBackend {
    fn description(&self) -> String {
        "hashes".to_string()
    }
    fn plan(&self) -> &Plan {
        &self.plan
    }
    fn allocated(&self) -> u64 {
        0
    }
    fn write(&mut self, _: BufferId, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn read(&mut self, _: BufferId, _: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(bytemuck::cast_slice(&self.output));
        Ok(())
    }
    fn lend(&mut self, _: Plan) -> Result<Box<dyn Backend + '_>> {
        anyhow::bail!("nothing is lent")
    }
    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>> {
        let (h, w) = self.size;
        let pixels = batch
            .lq
            .chunks_exact(3)
            .map(|p| key(&[p[0].into(), p[1].into(), p[2].into()]));
        let pixels: Vec<u64> = pixels.collect();
        assert_eq!(pixels.len(), h * w);
        let rows: Vec<Vec<u64>> = pixels
            .chunks_exact(w)
            .map(|row| self.net.run(row))
            .collect();
        let columns: Vec<Vec<u64>> = (0..w)
            .map(|x| {
                self.net
                    .run(&rows.iter().map(|row| row[x]).collect::<Vec<_>>())
            })
            .collect();
        let (s, line) = (self.scale, w * self.scale * 3);
        self.output = (0..h * s * line)
            .map(|i| {
                let (y, x, c) = (i / line, i % line / 3, i % 3);
                let place = (y % s * s + x % s) as u64;
                let hash = key(&[columns[x / s][y / s], place, c as u64]);
                f32::from(hash as u8) / 255.0
            })
            .collect();
        Ok(None)
    }
    fn micro_step(&mut self, _: &Scalars) -> Result<()> {
        Ok(())
    }
    fn run_operation(&mut self, _: usize, _: &Scalars) -> Result<()> {
        Ok(())
    }
    fn update(&mut self, _: &Scalars) -> Result<()> {
        Ok(())
    }
    fn metrics(&mut self) -> Result<StepMetrics> {
        anyhow::bail!("no training")
    }
}

#[test]
fn rows_of_tiles_with_two_pieces_give_the_bits_of_the_image() {
    let mut net = Network::new("photo", 2).unwrap();
    net.set("window_size", 2).unwrap();
    let (w, h) = (61, 95);
    let lq = noise(w, h);
    let alpha = GrayImage::from_fn(w, h, |x, y| {
        image::Luma([key(&[7, u64::from(x), u64::from(y)]) as u8])
    });
    let large_alpha = Resampler::new().upscale_plane(&alpha, 2).unwrap();
    let mut whole = Tiler::new(net.clone(), 200).unwrap();
    let mut backend = HashBackend::new(&net, (h as usize, w as usize));
    let whole = whole.upscale(&lq, &mut OwnTile(&mut backend)).unwrap();
    for tile in [58, 70] {
        let mut tiler = Tiler::new(net.clone(), tile).unwrap();
        let grid = tiler.grid((w, h)).unwrap();
        assert!(grid.rows.len() > 2 && grid.shape.0 <= tile, "{tile}");
        let mut backend = HashBackend::new(&net, grid.shape);
        assert!(
            tiler.upscale(&lq, &mut OwnTile(&mut backend)).unwrap() == whole,
            "{tile}"
        );
        for alpha in [None, Some(&alpha)] {
            let mut source = Rows(&lq, alpha, 0);
            let grid = tiler.grid((w, h)).unwrap();
            let mut rows = {
                let runner = TileRunner::Own(OwnTile(&mut backend));
                UpscaledRows::new(&mut tiler, runner, &mut source, (grid, None))
            };
            let channels = rows.channels();
            let mut found = vec![0; whole.len() / 3 * channels];
            let each = 7 * 2 * w as usize * channels;
            found
                .chunks_mut(each)
                .for_each(|part| rows.read(part).unwrap());
            for (i, pixel) in found.chunks_exact(channels).enumerate() {
                assert_eq!(pixel[..3], whole.as_raw()[3 * i..3 * i + 3], "{tile}: {i}");
                assert!(
                    channels == 3 || pixel[3] == large_alpha.as_raw()[i],
                    "{tile}: {i}"
                );
            }
        }
    }
}
