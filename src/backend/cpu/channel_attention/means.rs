//! The means of an image's channels from its rows, one after another: for images that are in a file,
//! of which memory holds a few rows. Promises the bits of the operation that has the whole image.

use super::super::tasks::Bands;
use super::GROUP;
use crate::plan::{CHANNEL_GROUP, Extent};

/// Takes the rows of an image `[h, w, C]`, C rounded up to whole groups, and computes the mean of
/// each channel.
pub struct ChannelMeans {
    stride: usize,
    bands: Bands,
    extent: Extent,
    /// Number of the next row.
    row: usize,
    /// f32 sums of the current group of pixels.
    group: Vec<f32>,
    /// Pixels of the current group so far.
    grouped: usize,
    /// Sums of the current band.
    band: Vec<f64>,
    /// Sums of the bands before it.
    total: Vec<f64>,
}

impl ChannelMeans {
    /// For an image of `h` x `w` pixels with `channels` channels.
    pub fn new((h, w): (usize, usize), channels: usize) -> ChannelMeans {
        let stride = channels.next_multiple_of(CHANNEL_GROUP);
        let extent = Extent { n: 1, h, w };
        ChannelMeans {
            stride,
            bands: Bands::new(extent),
            extent,
            row: 0,
            group: vec![0.0; stride],
            grouped: 0,
            band: vec![0.0; stride],
            total: vec![0.0; stride],
        }
    }

    /// Adds the next rows of the image, `[rows, w, C]`.
    pub fn add_rows(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.extent.w * self.stride) {
            for pixel in row.chunks_exact(self.stride) {
                let sums = self.group.iter_mut().zip(pixel);
                sums.for_each(|(sum, value)| *sum += value);
                self.grouped += 1;
                if self.grouped == GROUP {
                    self.end_group();
                }
            }
            self.row += 1;
            if self.row.is_multiple_of(self.bands.rows()) || self.row == self.extent.h {
                self.end_group();
                let sums = self.total.iter_mut().zip(&mut self.band);
                sums.for_each(|(total, sum)| *total += std::mem::take(sum));
            }
        }
    }

    /// Adds the sums of the current group to those of its band.
    fn end_group(&mut self) {
        let sums = self.band.iter_mut().zip(&mut self.group);
        sums.for_each(|(sum, group)| *sum += f64::from(std::mem::take(group)));
        self.grouped = 0;
    }

    /// The means, one for each channel of a buffer. All rows of the image were added.
    pub fn finish(self) -> Vec<f64> {
        debug_assert_eq!(self.row, self.extent.h);
        let pixels = (self.extent.h * self.extent.w) as f64;
        self.total.iter().map(|total| total / pixels).collect()
    }
}
