//! Packs the weights of a dense convolution as bf16 tiles. Depends on the layout of parameters.

use super::super::super::arena::SharedPtr;
use super::super::super::bf16::{STEP, TILE};
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{Context, Task};
use super::super::layout::weight_index;
use super::RowProduct;
use crate::plan::{Conv, Precision};

/// Packs one row of taps of 16 output channels a task.
pub struct Pack<'a> {
    pub op: &'a Conv,
    pub product: RowProduct,
    pub weight: SharedPtr<f32>,
    /// `[16 channels of the output][ky][step][16 pairs][16][2]`
    pub out: SharedPtr<u16>,
    /// Whether the product is from output channels to input channels, with the taps turned by 180
    /// degrees: a pixel's gradient comes from the outputs on the opposite side.
    pub backward: bool,
}

impl Pack<'_> {
    /// Packs all weights.
    pub fn run(self, ctx: &Context<'_>) {
        let tasks = self.product.to / LANES * self.product.kernel;
        ctx.parallel(tasks, &self);
    }
}

impl Task for Pack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let (c, k, depth) = (self.op, self.product.kernel, self.product.from);
        let (group, ky) = (task / k, task % k);
        let row = self.product.steps() * TILE;
        // SAFETY: each task has a row of taps of its own, and `weight` is the parameter
        let (out, weight) = unsafe {
            (
                self.out.slice(task * row, row),
                self.weight.view(0, c.weight.len),
            )
        };
        for (pair, out) in out.chunks_exact_mut(2 * LANES).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let (at, to) = (2 * pair + i % 2, group * LANES + i / 2);
                let (kx, from) = (at / depth, at % depth);
                let index = if kx >= k {
                    None // fills the last step
                } else if self.backward {
                    weight_index(c, from, to, k - 1 - ky, k - 1 - kx)
                } else {
                    weight_index(c, to, from, ky, kx)
                };
                *out = index.map_or(0, |index| Precision::Bf16.narrow(weight[index]));
            }
        }
        const { assert!(TILE == STEP * LANES) };
    }
}
