//! Processors without a kernel for bf16 products: no [`Bf16Unit`] exists there, so nothing here is
//! ever called. The contracts are those of the functions of the same name in `x86.rs`.

use super::{Bf16Unit, BlockProduct};

const NO_UNIT: &str = "this processor has no unit for bf16 products";

pub fn begin(_: Bf16Unit) {}

pub fn end(_: Bf16Unit) {}

pub unsafe fn product<const M: usize, const N: usize>(_: Bf16Unit, _: &BlockProduct<'_>) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn round_values(_: *const f32, _: usize, _: *mut u16) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn pair_pixels(_: *const u16, _: usize, _: usize, _: *mut u16) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn transpose_pixels(_: *const u16, _: usize, _: *mut u16, _: usize) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn transpose_pairs(_: *const u16, _: usize, _: *mut u16) {
    unreachable!("{NO_UNIT}")
}
