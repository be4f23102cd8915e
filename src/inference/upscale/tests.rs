use super::spans::{spans, tile_side};
use super::tiles::to_u8;
use super::*;
use crate::dataset::degrade::Resampler;
use crate::dataset::rows::{PixelRows, RereadRows};
use crate::model::Tiling;
use crate::support::rng::key;
use image::GrayImage;

fn tiling(halo: usize, align: usize) -> Tiling {
    Tiling {
        halo,
        align,
        wraps: false,
        whole_image: false,
    }
}

#[test]
fn spans_cover_every_pixel_once_and_keep_their_halo() {
    for (most, halo, align) in [(32, 8, 1), (32, 8, 4), (47, 8, 4), (33, 4, 8)] {
        let tiling = tiling(halo, align);
        for len in 1..200 {
            let tile = tile_side(len, most, tiling);
            let list = spans(len, tile, tiling);
            let mut next = 0;
            for s in &list {
                assert_eq!(s.valid.0, next);
                let [(start, end), (_, wrapped)] = s.pieces;
                assert!(end == start + tile.min(len) && wrapped == end);
                assert!(end <= len && s.valid.0 >= start && s.valid.1 <= end);
                assert!(start % align == 0, "{len}: {list:?}");
                assert!(start == 0 || s.valid.0 >= start + halo, "{len}: {list:?}");
                assert!(end == len || s.valid.1 + halo <= end, "{len}: {list:?}");
                next = s.valid.1;
            }
            assert_eq!(next, len);
        }
    }
}

#[test]
fn tiles_overlap_no_more_than_their_number_takes() {
    assert_eq!(tile_side(288, 288, tiling(9, 1)), 288);
    assert_eq!(tile_side(512, 288, tiling(9, 1)), 272); // two
    assert_eq!(spans(512, 272, tiling(9, 1)).len(), 2);
    for len in 33..400 {
        let side = tile_side(len, 32, tiling(8, 1));
        let count = |tile| spans(len, tile, tiling(8, 1)).len();
        assert!(side <= 32 && count(side) == count(32), "{len}: {side}");
    }
}

#[test]
fn values_round_as_the_processor_does() {
    for i in 0..=255 * 64 + 200 {
        let value = (i as f32 - 100.0) / (255.0 * 64.0);
        assert_eq!(
            to_u8(value),
            (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8,
            "{value}"
        );
    }
    assert_eq!(
        [
            to_u8(f32::NAN),
            to_u8(f32::INFINITY),
            to_u8(f32::NEG_INFINITY)
        ],
        [0, 255, 0]
    );
}

pub(super) fn noise(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        image::Rgb(std::array::from_fn(|c| {
            key(&[u64::from(x), u64::from(y), c as u64]) as u8
        }))
    })
}

#[test]
fn the_result_does_not_depend_on_the_tile_size_or_the_threads() {
    for scale in [2, 3] {
        let mut net = Network::new("nano", scale).unwrap();
        net.set("layer_scale", 0.5).unwrap(); // so that the blocks matter
        net.set("detail_gain", 1.0).unwrap();
        let params = net.params().start_values(3);
        let lq = noise(77, 53);
        let run = |tile: usize, threads: usize| {
            Upscaler::new(net.clone(), params.clone(), CpuOptions::new(threads), tile)
                .unwrap()
                .upscale(&lq)
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

/// The rows of an image with or without alpha, and the number of the next pixel.
pub(super) struct Rows<'a>(pub &'a RgbImage, pub Option<&'a GrayImage>, pub usize);

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

impl RereadRows for Rows<'_> {
    fn restart(&mut self) -> Result<()> {
        self.2 = 0;
        Ok(())
    }
}

#[test]
fn rows_give_the_bits_of_the_image_in_memory() {
    for (scale, (w, h)) in [(2, (47, 93)), (3, (9, 61))] {
        let net = Network::new("nano", scale).unwrap();
        let (lq, params) = (noise(w, h), net.params().start_values(3));
        let alpha = GrayImage::from_fn(w, h, |x, y| {
            image::Luma([key(&[7, u64::from(x), u64::from(y)]) as u8])
        });
        let large_alpha = Resampler::new()
            .upscale_plane(&alpha, scale as u32)
            .unwrap();
        let mut upscaler = Upscaler::new(net, params, CpuOptions::new(2), 40).unwrap();
        let whole = upscaler.upscale(&lq).unwrap();
        for (alpha, rows_at_once) in [(None, 17), (Some(&alpha), 1), (Some(&alpha), 64)] {
            let mut rows = Rows(&lq, alpha, 0);
            let mut upscaled = upscaler
                .upscale_rows(&mut rows, &Progress::hidden())
                .unwrap();
            assert_eq!(upscaled.size(), whole.dimensions());
            let channels = upscaled.channels();
            let mut found = vec![0; whole.len() / 3 * channels];
            found
                .chunks_mut(rows_at_once * whole.width() as usize * channels)
                .for_each(|part| upscaled.read(part).unwrap());
            assert!(upscaled.read(&mut [0; 12]).is_err());
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
