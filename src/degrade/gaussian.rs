//! The Gaussian of sharpening. What a wide one leaves changes slowly, so its sums are computed at
//! every second or fourth pixel of both axes only, and the values between are interpolated from eight
//! of them by Lagrange's polynomial. Depends on `blur` and `table`.
//!
//! Products for a value and 51 taps: 102 for a column times a row; here `51/4 + 51/16` for the sums and
//! `6.25/4 + 6.25` for the values between them, together 24.
//!
//! Of a wave of frequency `f` (radians for each pixel) a Gaussian of deviation `s` leaves
//! `exp(-(f s)^2 / 2)`. Between eight places at distance `d` it is interpolated with an error of at
//! most `35 / 2^15 (f d)^8`. The product of both is largest where `(f s)^2` is 8: `0.08 (d / s)^8`,
//! which for `d = s / 2` is 3e-4 of the wave.

use super::area::Area;
use super::blur::FilteredRows;
use super::canvas::reflect;
use super::kernel::DrawnKernel;
use super::table::{ROWS, Table};

/// Places that a value is interpolated from.
const PLACES: usize = 8;
/// Those of them that lie before the value, besides the nearest one.
const BEFORE: usize = 3;

/// A Gaussian for planes of one size, with mirrored borders.
pub(super) struct Gaussian {
    row: Vec<f32>,
    size: (usize, usize),
    /// Tables for x and y; `None` for a narrow Gaussian, which is computed at every pixel.
    axes: Option<[Axis; 2]>,
}

/// Buffers of a canvas whose bound counts the taps.
pub(super) struct Scratch<'a> {
    pub padded: &'a mut [f32],
    pub lines: &'a mut [[f32; ROWS]],
}

impl Gaussian {
    /// A Gaussian of so many taps for planes of this width and height.
    pub fn new(taps: u32, sigma: f64, size: (usize, usize)) -> Gaussian {
        let row = gaussian_row(taps, sigma);
        let distance = distance(sigma);
        let axis = |n| Axis::new(&row, n, distance);
        let axes = (distance > 1).then(|| [axis(size.0), axis(size.1)]);
        Gaussian { row, size, axes }
    }

    /// Writes what it makes of `plane` to `out`.
    pub fn filter(&self, plane: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        self.begin(plane, scratch);
        self.end(out, scratch);
    }

    /// Filters a plane in its place.
    pub fn filter_in_place(&self, plane: &mut [f32], scratch: &mut Scratch) {
        self.begin(plane, scratch);
        self.end(plane, scratch);
    }

    /// Everything that reads the plane; the result is in the scratch.
    fn begin(&self, plane: &[f32], scratch: &mut Scratch) {
        let Some([x, y]) = &self.axes else {
            return FilteredRows::new(scratch.padded, self.size, self.row.len() / 2).fill(
                plane,
                &self.row,
                scratch.lines,
            );
        };
        let w = self.size.0;
        let (across, down) = (x.sums.len(), y.sums.len());
        let (columns, sums) = scratch.padded[..down * (w + across)].split_at_mut(down * w);
        y.sums.columns(plane, columns, w);
        x.sums.rows(columns, sums, w, scratch.lines);
        x.between.rows(sums, columns, across, scratch.lines);
    }

    fn end(&self, out: &mut [f32], scratch: &mut Scratch) {
        match &self.axes {
            None => FilteredRows::new(scratch.padded, self.size, self.row.len() / 2)
                .filter(&self.row, out),
            Some([_, y]) => y.between.columns(scratch.padded, out, self.size.0),
        }
    }
}

/// The part of an image of size `whole` that decides `area` of what a Gaussian makes of it. It begins
/// where the whole image has a sum.
pub(super) fn input(taps: u32, sigma: f64, whole: (usize, usize), area: Area) -> Area {
    let distance = distance(sigma);
    let between = if distance > 1 {
        (PLACES - BEFORE) * distance
    } else {
        0
    };
    let reach = taps as usize / 2 + between;
    area.grown(reach, whole)
        .aligned((distance, distance), whole)
}

/// The sums along an axis, and the values between them.
struct Axis {
    sums: Table,
    between: Table,
}

impl Axis {
    /// For a line of `n` pixels.
    fn new(row: &[f32], n: usize, distance: usize) -> Axis {
        let count = (n - 1) / distance + PLACES;
        let mut sums = Table::with_capacity(count);
        let mut weights = Vec::new();
        for place in 0..count {
            let middle = (place * distance) as isize - (BEFORE * distance) as isize;
            let first_tap = middle - (row.len() / 2) as isize;
            let pixel = |tap: usize| reflect(first_tap + tap as isize, n);
            let pixels = (0..row.len()).map(pixel);
            let (first, last) = pixels
                .clone()
                .fold((n, 0), |(a, b), p| (a.min(p), b.max(p)));
            weights.clear();
            weights.resize(last + 1 - first, 0.0);
            for (pixel, weight) in pixels.zip(row) {
                weights[pixel - first] += f64::from(*weight);
            }
            sums.push(first, &weights);
        }
        let mut between = Table::with_capacity(n);
        for pixel in 0..n {
            match (pixel / distance, pixel % distance) {
                (nearest, 0) => between.push(nearest + BEFORE, &[1.0]),
                (nearest, rest) => between.push(nearest, &lagrange(rest as f64 / distance as f64)),
            }
        }
        Axis { sums, between }
    }
}

/// Distance of the pixels at which a Gaussian is computed: about half a deviation at most.
fn distance(sigma: f64) -> usize {
    let narrow = |distance: &usize| sigma > 1.99 * *distance as f64;
    [4, 2].into_iter().find(narrow).unwrap_or(1)
}

/// Weights of eight places for a value between the fourth (`at` 0) and the fifth (1).
fn lagrange(at: f64) -> [f64; PLACES] {
    let place = |i: usize| i as f64 - BEFORE as f64;
    std::array::from_fn(|i| {
        let others = (0..PLACES).filter(|other| *other != i);
        others
            .map(|other| (at - place(other)) / (place(i) - place(other)))
            .product()
    })
}

/// One axis of a Gaussian.
fn gaussian_row(taps: u32, sigma: f64) -> Vec<f32> {
    let n = taps as usize;
    let weights = DrawnKernel::gaussian(taps, sigma).weights();
    let sums = (0..n).map(|x| (0..n).map(|y| weights[y * n + x]).sum::<f64>() as f32);
    sums.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::bound::Bound;
    use crate::degrade::canvas::{Canvas, Layout};
    use crate::support::rng::Rng;

    /// Noise, edges, and waves of every length, in planes down to a single pixel, against a column
    /// times a row at every pixel.
    #[test]
    fn values_between_the_sums_are_those_of_the_whole_filter() {
        let mut rng = Rng::new(&[1]);
        for (taps, sigma) in [(51, 8.0), (49, 8.0), (35, 5.3), (25, 4.1), (25, 3.0)] {
            for (w, h) in [(1, 1), (2, 5), (7, 64), (61, 3), (90, 77)] {
                let random: Vec<f32> = (0..w * h).map(|_| rng.unit() as f32).collect();
                for kind in 0..4 {
                    let value = |i: usize| match (kind, (i % w) as f32, (i / w) as f32) {
                        (0, ..) => random[i],
                        (1, x, y) => f32::from(u8::from(x * 3.0 + y * 2.0 > 120.0)),
                        (2, x, y) => 0.5 + 0.5 * (x * x / 200.0 + y * 0.1).sin(),
                        (_, x, y) => 0.5 + 0.5 * (x * 0.25 + y * 0.25).sin(),
                    };
                    let plane: Vec<f32> = (0..w * h).map(value).collect();
                    let mut bound = Bound::of(&[], 1);
                    bound.radius = f64::from(taps - 1);
                    let mut canvas = Canvas::new(&Layout::new(&bound, w, h));
                    let mut filtered = |gaussian: &Gaussian| {
                        let mut out = vec![0.0; w * h];
                        let mut scratch = Scratch {
                            padded: &mut canvas.padded,
                            lines: &mut canvas.lines,
                        };
                        gaussian.filter(&plane, &mut out, &mut scratch);
                        let mut again = plane.clone();
                        gaussian.filter_in_place(&mut again, &mut scratch);
                        assert!(again == out);
                        out
                    };
                    let mut gaussian = Gaussian::new(taps, sigma, (w, h));
                    assert_eq!(gaussian.axes.is_some(), sigma > 3.98);
                    let found = filtered(&gaussian);
                    gaussian.axes = None;
                    let expected = filtered(&gaussian);
                    let error = found.iter().zip(&expected);
                    let error = error.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    // a quarter of a level of 8 bits
                    assert!(error < 1e-3, "{taps} taps, {w}x{h}, kind {kind}: {error}");
                }
            }
        }
    }
}
