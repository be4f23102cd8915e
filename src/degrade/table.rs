//! Weighted sums along an axis of an image: the pixels that an output reads, and their weights, for
//! resizing. Depends on the filters of `resize`.

use super::area::Span;
use super::lanes::dispatch;
use super::resize::Filter;

/// Rows that the horizontal pass computes at a time.
pub(super) const ROWS: usize = 16;
/// Columns whose sums the vertical pass keeps in registers.
const COLUMNS: usize = 32;

/// A resize along one axis.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub filter: Filter,
    pub antialias: bool,
    /// Pixels before and after.
    pub from: usize,
    pub to: usize,
}

impl Line {
    /// The weights of an output, which need not sum to 1; returns the first pixel that it reads.
    fn window(&self, i: usize, weights: &mut Vec<f64>) -> usize {
        let (from, to) = (self.from, self.to);
        let ratio = from as f64 / to as f64;
        let middle = (i as f64 + 0.5) * ratio;
        weights.clear();
        match self.filter {
            // adaptive average pooling, as torch's "area"
            Filter::Area => {
                let (first, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
                weights.resize(end - first, 1.0);
                first
            }
            Filter::NearestExact => {
                weights.push(1.0);
                (middle as usize).min(from - 1)
            }
            Filter::Box => {
                let (low, high) = (i as f64 * ratio, (i + 1) as f64 * ratio);
                let first = low as usize;
                let end = (libm::ceil(high) as usize).min(from);
                let covered = |j: usize| (high.min((j + 1) as f64) - low.max(j as f64)).max(0.0);
                weights.extend((first..end).map(covered));
                first
            }
            filter if self.antialias => antialiased(filter, middle, ratio, from, weights),
            filter => nearest(filter, middle - 0.5, from, weights),
        }
    }

    /// The pixels that a part of the outputs reads.
    pub fn read(&self, outputs: Span) -> Span {
        let mut weights = Vec::new();
        let start = self.window(outputs.start, &mut weights);
        let end = self.window(outputs.end - 1, &mut weights) + weights.len();
        Span { start, end }
    }
}

/// A filter stretched over what an output covers; at the border what is outside is left out.
fn antialiased(
    filter: Filter,
    middle: f64,
    ratio: f64,
    from: usize,
    weights: &mut Vec<f64>,
) -> usize {
    let stretch = ratio.max(1.0);
    let reach = filter.support() * stretch;
    let first = libm::floor(middle - reach + 0.5).max(0.0) as usize;
    let end = (libm::floor(middle + reach + 0.5) as usize).min(from);
    let weight = |j: usize| filter.weight((j as f64 + 0.5 - middle) / stretch, true);
    weights.extend((first..end).map(weight));
    first
}

/// The nearest inputs alone; at the border the last input is repeated.
fn nearest(filter: Filter, place: f64, from: usize, weights: &mut Vec<f64>) -> usize {
    let (base, reach) = (libm::floor(place), filter.support() as isize);
    let clamped = |j: isize| (base as isize + j).clamp(0, from as isize - 1) as usize;
    let (first, last) = (clamped(1 - reach), clamped(reach));
    weights.resize(last - first + 1, 0.0);
    for j in 1 - reach..=reach {
        weights[clamped(j) - first] += filter.weight(place - base - j as f64, false);
    }
    first
}

/// The weights of every output along one axis.
pub(super) struct Table {
    /// First input and number of inputs of each output.
    windows: Vec<(u32, u32)>,
    /// The weights of all outputs in order, which sum to 1 for each.
    weights: Vec<f32>,
}

impl Table {
    /// Number of outputs.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// For an axis that changes from `from` to `to` pixels: the outputs of a part of it, from the pixels
    /// of a part that has all that they read.
    pub fn new(line: Line, from: Span, to: Span) -> Table {
        let mut table = Table {
            windows: Vec::with_capacity(to.len()),
            weights: Vec::new(),
        };
        let mut weights = Vec::new();
        for i in to.start..to.end {
            let first = line.window(i, &mut weights) - from.start;
            let sum: f64 = weights.iter().sum();
            table.windows.push((first as u32, weights.len() as u32));
            table
                .weights
                .extend(weights.iter().map(|w| (w / sum) as f32));
        }
        table
    }

    /// Applies the table to the columns of a plane of width `w`.
    pub fn columns(&self, from: &[f32], to: &mut [f32], w: usize) {
        resize_columns(from, to, w, &self.windows, &self.weights);
    }

    /// Applies the table to the rows of a plane of width `w`; `lines` is scratch for a row of either
    /// width.
    pub fn rows(&self, from: &[f32], to: &mut [f32], w: usize, lines: &mut [[f32; ROWS]]) {
        let widths = (w, self.len());
        resize_rows(from, to, widths, lines, &self.windows, &self.weights);
    }

    /// The sum of the weights of every output.
    #[cfg(test)]
    pub fn sums(&self) -> Vec<f32> {
        let mut weights = self.weights.iter();
        let counts = self.windows.iter().map(|(_, count)| *count as usize);
        counts.map(|n| weights.by_ref().take(n).sum()).collect()
    }
}

dispatch! {
    /// Resizes along y: every output row is a weighted sum of input rows.
    fn resize_columns(from: &[f32], to: &mut [f32], w: usize, windows: &[(u32, u32)], weights: &[f32]) {
        let mut weights = weights;
        for (row, &(first, count)) in to.chunks_exact_mut(w).zip(windows) {
            let (these, rest) = weights.split_at(count as usize);
            weights = rest;
            let from = &from[first as usize * w..];
            let mut blocks = row.chunks_exact_mut(COLUMNS);
            for (block, out) in (&mut blocks).enumerate() {
                let mut sums = [0.0f32; COLUMNS];
                for (tap, &weight) in these.iter().enumerate() {
                    let part = &from[tap * w + block * COLUMNS..][..COLUMNS];
                    for (sum, value) in sums.iter_mut().zip(part) {
                        *sum += weight * value;
                    }
                }
                out.copy_from_slice(&sums);
            }
            let out = blocks.into_remainder();
            let start = w - out.len();
            out.fill(0.0);
            for (tap, &weight) in these.iter().enumerate() {
                for (sum, value) in out.iter_mut().zip(&from[tap * w + start..]) {
                    *sum += weight * value;
                }
            }
        }
    }
}

dispatch! {
    /// Resizes along x, sixteen rows at a time, which `lines` holds pixel by pixel.
    fn resize_rows(
        from: &[f32],
        to: &mut [f32],
        widths: (usize, usize),
        lines: &mut [[f32; ROWS]],
        windows: &[(u32, u32)],
        weights: &[f32],
    ) {
        let (w, new_w) = widths;
        for (rows, out) in from.chunks(ROWS * w).zip(to.chunks_mut(ROWS * new_w)) {
            for (y, row) in rows.chunks_exact(w).enumerate() {
                for (line, value) in lines.iter_mut().zip(row) {
                    line[y] = *value;
                }
            }
            let mut weights = weights;
            for (x, &(first, count)) in windows.iter().enumerate() {
                let (these, rest) = weights.split_at(count as usize);
                weights = rest;
                let mut sums = [0.0f32; ROWS];
                for (line, &weight) in lines[first as usize..].iter().zip(these) {
                    for (sum, value) in sums.iter_mut().zip(line) {
                        *sum += weight * value;
                    }
                }
                for (row, sum) in out.chunks_exact_mut(new_w).zip(sums) {
                    row[x] = sum;
                }
            }
        }
    }
}
