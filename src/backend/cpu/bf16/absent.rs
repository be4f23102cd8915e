//! Processors without a kernel for bf16 products: no [`Bf16Unit`] exists there, so nothing here is
//! ever called. The contracts are those of the functions of the same name in `x86.rs`.

use super::{Bf16Unit, BlockProduct, HalfStep, Rows};

const NO_UNIT: &str = "this processor has no unit for bf16 products";

pub fn begin(_: Bf16Unit) {}

pub fn end(_: Bf16Unit) {}

pub unsafe fn product<const M: usize, const N: usize>(_: Bf16Unit, _: &BlockProduct<'_>) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn half_step(_: Bf16Unit, _: &HalfStep) {
    unreachable!("{NO_UNIT}")
}

pub fn vectors_beat_f32() -> bool {
    false
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

pub unsafe fn round_rows(_: *const f32, _: usize, _: *mut u16) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn rows_as_columns(_: *const u16, _: usize, _: *mut u16) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn round_pairs(_: *const f32, _: usize, _: *mut u16) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn transpose_scaled(_: *const f32, _: *const f32, _: (*mut u16, usize)) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn softmax(_: Rows, _: f32, _: (*mut u16, usize), _: *mut f32) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn softmax_pairs(
    _: (Rows, Rows),
    _: f32,
    _: (*mut u16, usize),
    _: (*mut f32, *mut f32),
) {
    unreachable!("{NO_UNIT}")
}

pub unsafe fn score_gradients(
    _: (Rows, Rows),
    _: *const f32,
    _: (*mut u16, usize),
    _: (*mut u16, usize),
) {
    unreachable!("{NO_UNIT}")
}
