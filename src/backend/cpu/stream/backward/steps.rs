//! The steps of the backward pass, a row of a strip at a time.

use super::super::super::rows::{RowProduct, RowStart, row_outer, row_product, row_sum};
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::exceeds_cache;
use super::super::pack::{Packed, SQUARE, TAPS};
use super::super::rows::{
    Gate, InputGradient, Taps, prefetch, row_gate_back, row_input_gradient, row_taps,
    row_taps_outer,
};
use super::super::{FEATURES, GROUP, GROUPS, HIDDEN, PIECE, REACH, pieces};
use super::{REACH_DW, REACH_GATE, Rows, StripOfBand, Sums};

impl StripOfBand<'_> {
    /// Runs all steps over the rows of the strip.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose strip this is.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self) {
        let (start, end, reach) = (self.start as isize, self.end as isize, REACH as isize);
        // SAFETY: each step finds the rows that it needs in the rings: `gate_gradient` one row of p
        // on each side of its own, `projected_gradient` one row of `d_gate` on each side, and
        // `input_gradient` REACH rows of `d_dw` on each side. The rest is the caller's contract.
        unsafe {
            self.zeros
                .row(0, 0)
                .write_bytes(0, self.zeros.columns * GROUP);
            for row in start - 2 - reach..start - 2 + reach {
                self.rows.load(row);
            }
            for row in start - 2..end + 2 + 2 * reach {
                if row < end + 2 {
                    self.rows.fill::<S>(row);
                }
                if row >= start && row < end + 2 {
                    self.gate_gradient::<S>(row - 1);
                }
                if row >= start + 2 && row < end + 2 {
                    self.projected_gradient::<S>(row - 2);
                }
                let row = row - 2 - reach;
                if row >= start - reach && row >= 0 && row < self.rows.h as isize {
                    self.input_gradient::<S>(row as usize);
                }
            }
        }
    }

    /// The columns of a piece that are the strip's own: (number of columns before them, number).
    #[inline(always)]
    fn own(&self, (c, n): (usize, usize)) -> (usize, usize) {
        let strip = self.rows.strip;
        let (from, to) = (c.max(strip.start), (c + n).min(strip.end));
        (from - c, to.saturating_sub(from))
    }

    /// Computes a row of the gradient of the gate's output; zeros for a row outside the image. For a
    /// row of the band, also adds the gradients of `out` and `gate` to the partial.
    ///
    /// # Safety
    /// As [`StripOfBand::run`]; the rows of p around `row` are in the ring.
    #[inline(always)]
    unsafe fn gate_gradient<S: Simd>(&self, row: isize) {
        let Rows {
            strip, h, weights, ..
        } = self.rows;
        let (columns, partial) = (strip.columns(REACH_GATE), self.partial);
        // SAFETY: rows have room for the reach and one column more, the pieces for PIECE pixels,
        // and `backward` packed the weights; the rest is the caller's contract
        unsafe {
            if row < 0 || row >= h as isize {
                self.d_gate.clear(row, strip, columns, 1);
                return;
            }
            let in_band = row >= self.start as isize && row < self.end as isize;
            for (c, n) in pieces(columns) {
                let (before, own) = self.own((c, n));
                let at = ((self.rows.image * h + row as usize) * strip.w + c) * FEATURES;
                let d_out = self.task.d_output.at(at).cast_const();
                row_product::<S, FEATURES>(&RowProduct {
                    rows: &[d_out],
                    stride: FEATURES,
                    taps: FEATURES,
                    weights: weights.at(Packed::OUT),
                    lanes: HIDDEN,
                    start: RowStart::Bias(weights.at(Packed::ZEROS)),
                    out: self.m,
                    w: n,
                    non_temporal: false,
                });
                for group in 0..GROUPS {
                    let ahead = d_out.wrapping_add(strip.w * FEATURES);
                    prefetch::<S>(ahead, n * FEATURES, group, GROUPS);
                    let around = self.rows.p.around(row, 1, group, strip.at(c, 1));
                    let d_gate = self.d_gate.row(row, group).add(strip.at(c, 0));
                    let taps = Taps {
                        rows: around,
                        weights: weights.at(Packed::GATE + group * TAPS),
                    };
                    let gate = Gate {
                        taps,
                        bias: weights.at(Packed::GATE_BIAS + group * GROUP),
                        m: self.m.add(group * LANES),
                    };
                    row_gate_back::<S>(gate, n, d_gate);
                    if in_band && own > 0 {
                        let around = around.map(|row| row.add(before * GROUP));
                        let d_gate = d_gate.add(before * GROUP);
                        let sum = partial.at(Sums::GATE + group * TAPS);
                        row_taps_outer::<S, 1>(around, d_gate, own, sum);
                        let sum = partial.at(Sums::GATE_BIAS + group * GROUP);
                        row_sum::<S>(d_gate, GROUP, own, sum);
                    }
                }
                if in_band && own > 0 {
                    let d_out = d_out.add(before * FEATURES);
                    let (m, sum) = (self.m.add(before * HIDDEN), partial.at(Sums::PRODUCT));
                    row_outer::<S>(d_out, FEATURES, FEATURES, m, HIDDEN, own, sum);
                    row_sum::<S>(d_out, FEATURES, own, partial.at(Sums::D_OUTPUT));
                }
            }
            self.d_gate.pad(row, strip, columns, 1);
        }
    }

    /// Computes a row of the gradients of the outputs of dw1 and dw3, and adds the gradients of
    /// `proj`, `fuse`, dw1 and dw3 to the partial.
    ///
    /// # Safety
    /// As [`StripOfBand::run`]; `row` is a row of the band, and the rows of the gate's gradient
    /// around it are in the ring.
    #[inline(always)]
    unsafe fn projected_gradient<S: Simd>(&self, row: isize) {
        let Rows { strip, weights, .. } = self.rows;
        let columns = strip.columns(REACH_DW);
        // SAFETY: as in `gate_gradient`
        unsafe {
            for (c, n) in pieces(columns) {
                self.d_p_piece::<S>(row, (c, n));
                let groups: [*const f32; GROUPS] =
                    std::array::from_fn(|g| self.d_p.add(g * PIECE * GROUP).cast_const());
                let product = RowProduct {
                    rows: &groups,
                    stride: GROUP,
                    taps: GROUP,
                    weights: weights.at(Packed::PROJ_TRANSPOSED),
                    lanes: FEATURES,
                    start: RowStart::Bias(weights.at(Packed::ZEROS)),
                    out: self.d_t,
                    w: n,
                    non_temporal: false,
                };
                row_product::<S, GROUP>(&product);
                for half in [0, 1] {
                    row_product::<S, FEATURES>(&RowProduct {
                        rows: &[self.d_t.cast_const()],
                        stride: FEATURES,
                        taps: FEATURES,
                        weights: weights.at(Packed::FUSE_TRANSPOSED + half * SQUARE),
                        out: self.d_dw.row(row, half).add(strip.at(c, 0)),
                        ..product
                    });
                }
                self.add_first_layers::<S>(row, (c, n));
            }
            self.d_dw.pad(row, strip, columns, REACH);
        }
    }

    /// Computes a piece of the gradient of p, and adds the gradient of `proj` to the
    /// partial.
    ///
    /// # Safety
    /// As [`StripOfBand::projected_gradient`].
    #[inline(always)]
    unsafe fn d_p_piece<S: Simd>(&self, row: isize, (c, n): (usize, usize)) {
        let Rows { strip, weights, .. } = self.rows;
        let (before, own) = self.own((c, n));
        // SAFETY: as in `gate_gradient`
        unsafe {
            let t = self.rows.t.row(row, 0).add(strip.at(c + before, 0));
            for group in 0..GROUPS {
                let taps = Taps {
                    rows: self.d_gate.around(row, 1, group, strip.at(c, 1)),
                    weights: weights.at(Packed::GATE_FLIPPED + group * TAPS),
                };
                let d_p = self.d_p.add(group * PIECE * GROUP);
                row_taps::<S, 1>(taps, weights.at(Packed::ZEROS), n, d_p);
                if own > 0 {
                    let d_p = d_p.add(before * GROUP);
                    let sum = self.partial.at(Sums::PROJ + group * SQUARE);
                    row_outer::<S>(t, FEATURES, FEATURES, d_p, GROUP, own, sum);
                    let sum = self.partial.at(Sums::PROJ_BIAS + group * GROUP);
                    row_sum::<S>(d_p, GROUP, own, sum);
                }
            }
        }
    }

    /// Adds a piece's gradients of `fuse`, dw1 and dw3 to the partial.
    ///
    /// # Safety
    /// As [`StripOfBand::projected_gradient`]; the piece of `d_t` and its columns of `d_dw` are
    /// computed.
    #[inline(always)]
    unsafe fn add_first_layers<S: Simd>(&self, row: isize, (c, n): (usize, usize)) {
        let (strip, partial) = (self.rows.strip, self.partial);
        let (before, own) = self.own((c, n));
        if own == 0 {
            return;
        }
        // SAFETY: as in `gate_gradient`
        unsafe {
            let at = strip.at(c + before, 0);
            let d_t = self.d_t.add(before * FEATURES);
            row_sum::<S>(d_t, FEATURES, own, partial.at(Sums::FUSE_BIAS));
            for half in [0, 1] {
                let u = self.rows.u.row(row, half).add(at);
                let sum = partial.at(Sums::FUSE + half * SQUARE);
                row_outer::<S>(u, GROUP, GROUP, d_t, FEATURES, own, sum);
                let d_dw = self.d_dw.row(row, half).add(at);
                let distance = [1, REACH][half];
                let x = self.rows.x;
                let x = x.around(row, distance as isize, 0, strip.at(c + before, distance));
                let sum = partial.at(Sums::DW + half * TAPS);
                if half == 0 {
                    row_taps_outer::<S, 1>(x, d_dw, own, sum);
                } else {
                    row_taps_outer::<S, REACH>(x, d_dw, own, sum);
                }
                let sum = partial.at(Sums::DW_BIAS + half * FEATURES);
                row_sum::<S>(d_dw, GROUP, own, sum);
            }
        }
    }

    /// Writes row `y` of the input's gradient. For a row of another band, writes this band's
    /// contribution to the border.
    ///
    /// # Safety
    /// As [`StripOfBand::run`]; `y` is a row of the image at most REACH rows from the band, and the
    /// rows of `d_dw` around it that are the band's are in the ring.
    #[inline(always)]
    unsafe fn input_gradient<S: Simd>(&self, y: usize) {
        let Rows {
            strip, h, weights, ..
        } = self.rows;
        // SAFETY: as in `gate_gradient`; a pixel is F = 32 values, so pixels begin at multiples of
        // 64 bytes
        unsafe {
            for (c, n) in pieces((strip.start, strip.end)) {
                let taps = |half: usize, distance: usize| Taps {
                    rows: [0, distance, 2 * distance].map(|d| {
                        let row = (y + d) as isize - distance as isize;
                        let in_band = row >= self.start as isize && row < self.end as isize;
                        let row = if in_band {
                            self.d_dw.row(row, half)
                        } else {
                            self.zeros.row(0, 0)
                        };
                        row.add(strip.at(c, distance)).cast_const()
                    }),
                    weights: weights.at(Packed::DW_FLIPPED + half * TAPS),
                };
                let at = ((self.rows.image * h + y) * strip.w + c) * FEATURES;
                let in_band = y >= self.start && y < self.end;
                let (d_output, out) = if in_band {
                    let d_output = self.task.d_output.at(at).cast_const();
                    (Some(d_output), self.task.d_input.at(at))
                } else {
                    let row = if y < self.start {
                        y + REACH - self.start
                    } else {
                        y + REACH - self.end
                    };
                    let at = (row * strip.w + c) * FEATURES;
                    (None, self.border.add(at))
                };
                let gradient = InputGradient {
                    dw1: taps(0, 1),
                    dw3: taps(1, REACH),
                    d_output,
                    out,
                    non_temporal: in_band && exceeds_cache(self.task.op.extent, FEATURES),
                };
                row_input_gradient::<S>(gradient, n);
            }
        }
    }
}
