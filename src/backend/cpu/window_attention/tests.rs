//! Window attention against a plain f64 loop, which finite differences confirm; the promises about
//! bits; and the power of 2.

use super::super::CpuOptions;
use super::super::operation::CpuOperation;
use super::super::simd::{Kernel, LANES, Simd};
use super::super::tests_common::*;
use super::HEAD;
use super::tiles::power_of_2;
use crate::plan::{BufferId, Extent, WindowAttention, WindowAttentionBack};
use crate::support::isa::Isa;

/// Images to test with.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Images, rows, columns.
    pub extent: (usize, usize, usize),
    /// Heads of 16 channels.
    pub heads: usize,
    /// Side of a window.
    pub window: usize,
    /// Pixels by which windows are shifted.
    pub shift: usize,
    /// q, k and v are noise times this.
    pub size: f32,
    /// Applied to all inputs.
    pub round: fn(&[f32]) -> Vec<f32>,
}

/// One head, q, k and v of moderate size.
pub fn case(extent: (usize, usize, usize), window: usize, shift: usize) -> Case {
    Case {
        extent,
        heads: 1,
        window,
        shift,
        size: 1.5,
        round: |values| values.to_vec(),
    }
}

/// What both passes give.
pub struct Results<T> {
    /// The output.
    pub output: Vec<T>,
    /// The gradient of q, k and v.
    pub d_qkv: Vec<T>,
}

impl Case {
    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.heads * HEAD
    }

    fn extent(&self) -> Extent {
        let (n, h, w) = self.extent;
        Extent { n, h, w }
    }

    fn padded(&self) -> Extent {
        let (n, h, w) = self.extent;
        Extent {
            n,
            h: h.next_multiple_of(self.window),
            w: w.next_multiple_of(self.window),
        }
    }

    /// Also the pixels of the padding have values.
    pub fn qkv(&self) -> Vec<f32> {
        let mut values = noise(self.padded().pixels() * 3 * self.channels(), 1);
        values.iter_mut().for_each(|v| *v *= self.size);
        (self.round)(&values)
    }

    /// The gradient of the output.
    pub fn d_output(&self) -> Vec<f32> {
        (self.round)(&noise(self.extent().pixels() * self.channels(), 2))
    }

    fn operation(&self, qkv: BufferId, output: BufferId) -> WindowAttention {
        WindowAttention {
            extent: self.extent(),
            padded: self.padded(),
            channels: self.channels(),
            heads: self.heads,
            window: self.window,
            shift: self.shift,
            qkv,
            output,
            workspace: None,
        }
    }

    /// Both passes.
    pub fn run(&self, options: &CpuOptions) -> Results<f32> {
        let mut ops = Operations::new(options);
        let qkv = ops.floats(self.qkv());
        let d_output = ops.floats(self.d_output());
        let output = ops.output(self.d_output().len());
        let d_qkv = ops.output(self.qkv().len());
        let forward = self.operation(qkv, output);
        ops.push(forward.clone());
        ops.push(WindowAttentionBack {
            forward,
            d_output,
            d_qkv,
            workspace: None,
        });
        let mut loaded = ops.run();
        Results {
            output: loaded.read(output),
            d_qkv: loaded.read(d_qkv),
        }
    }

    /// The pixels of each window: in the padded images, and in the images if they are in them.
    fn windows(&self) -> Vec<Vec<(usize, Option<usize>)>> {
        let (Extent { n, h, w }, extent) = (self.padded(), self.extent());
        let mut windows = vec![];
        for (image, row, column) in (0..n)
            .flat_map(|i| (0..h / self.window).map(move |y| (i, y)))
            .flat_map(|(i, y)| (0..w / self.window).map(move |x| (i, y, x)))
        {
            let pixel = |i: usize| {
                let at = |first: usize, i: usize| first * self.window + i + self.shift;
                let y = at(row, i / self.window) % h;
                let x = at(column, i % self.window) % w;
                let inside = y < extent.h && x < extent.w;
                let pixel = (image * extent.h + y) * extent.w + x;
                ((image * h + y) * w + x, inside.then_some(pixel))
            };
            windows.push((0..self.window * self.window).map(pixel).collect());
        }
        windows
    }

    /// The outputs and gradients of `qkv` in f64.
    pub fn expected(&self, qkv: &[f64]) -> Results<f64> {
        let c = self.channels();
        let d_output = self.d_output();
        let mut output = vec![f64::NAN; d_output.len()];
        let mut d_qkv = vec![0.0; qkv.len()];
        let root = (HEAD as f64).sqrt();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (window, head) in self
            .windows()
            .iter()
            .flat_map(|w| (0..self.heads).map(move |head| (w, head)))
        {
            let at = |part: usize, pixel: usize| (3 * pixel + part) * c + head * HEAD;
            let part = |part: usize, pixel: usize| &qkv[at(part, pixel)..][..HEAD];
            for &(query, inside) in window {
                let Some(pixel) = inside else { continue };
                let q = part(0, query);
                let score = |key: usize| dot(q, part(1, key)) / root;
                let scores: Vec<f64> = window.iter().map(|&(key, _)| score(key)).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let mut weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
                let result: Vec<f64> = (0..HEAD)
                    .map(|i| {
                        let values = window.iter().map(|&(key, _)| part(2, key)[i]);
                        weights.iter().zip(values).map(|(w, v)| w * v).sum()
                    })
                    .collect();
                let first = pixel * c + head * HEAD;
                let d: Vec<f64> = d_output[first..][..HEAD]
                    .iter()
                    .map(|&d| d.into())
                    .collect();
                let product = dot(&d, &result);
                output[first..][..HEAD].copy_from_slice(&result);
                for (&(key, _), weight) in window.iter().zip(&weights) {
                    let d_score = weight * (dot(&d, part(2, key)) - product) / root;
                    for i in 0..HEAD {
                        d_qkv[at(0, query) + i] += d_score * part(1, key)[i];
                        d_qkv[at(1, key) + i] += d_score * q[i];
                        d_qkv[at(2, key) + i] += weight * d[i];
                    }
                }
            }
        }
        Results { output, d_qkv }
    }

    /// q, k and v in f64.
    pub fn wide(&self) -> Vec<f64> {
        self.qkv().into_iter().map(f64::from).collect()
    }

    fn check(&self, tolerance: f64) {
        let expected = self.expected(&self.wide());
        for options in every_isa(2) {
            let what = |part: &str| format!("{}, {self:?}: {part}", options.isa());
            let got = self.run(&options);
            assert_close(&what("output"), &got.output, &expected.output, tolerance);
            assert_close(&what("d_qkv"), &got.d_qkv, &expected.d_qkv, 2.0 * tolerance);
        }
    }
}

#[test]
fn windows_of_any_size_shift_and_padding() {
    for (extent, window, shift) in [
        ((1, 1, 1), 2, 0),
        ((2, 5, 4), 2, 1),
        ((1, 7, 4), 3, 2),
        ((1, 4, 6), 5, 1),
        ((3, 13, 19), 8, 4),
        ((1, 17, 16), 8, 0),
        ((1, 1, 1), 16, 8),
        ((1, 13, 19), 16, 0),
        ((1, 17, 16), 16, 8),
        ((1, 3, 33), 32, 16),
    ] {
        case(extent, window, shift).check(1e-6);
    }
    for (window, extent, heads) in [(8, (1, 13, 9), 3), (16, (2, 9, 16), 4)] {
        Case {
            heads,
            ..case(extent, window, window / 2)
        }
        .check(1e-6);
    }
}

/// Scores of a hundred and more: most weights vanish.
#[test]
fn large_scores() {
    Case {
        size: 10.0,
        ..case((1, 13, 16), 8, 4)
    }
    .check(1e-5);
}

#[test]
fn scores_of_any_size_give_means() {
    for size in [1e4, 1e15] {
        let case = Case {
            size,
            ..case((1, 8, 8), 8, 4)
        };
        for options in every_isa(1) {
            let results = case.run(&options);
            let all = |values: &[f32], limit: f32| values.iter().all(|v| v.abs() <= limit);
            assert!(all(&results.output, 1.001 * size), "{}", options.isa());
            assert!(all(&results.d_qkv, f32::MAX), "{}", options.isa());
        }
    }
}

#[test]
fn the_plain_loop_has_the_gradients_of_finite_differences() {
    const STEP: f64 = 1e-5;
    let case = case((1, 3, 4), 2, 1);
    let (mut qkv, d_output) = (case.wide(), case.d_output());
    let expected = case.expected(&qkv);
    for i in 0..qkv.len() {
        let at = qkv[i];
        let [above, below] = [at + STEP, at - STEP].map(|value| {
            qkv[i] = value;
            let output = case.expected(&qkv).output;
            let products = output.iter().zip(&d_output);
            products.map(|(o, &d)| o * f64::from(d)).sum::<f64>()
        });
        qkv[i] = at;
        let slope = (above - below) / (2.0 * STEP);
        let error = (slope - expected.d_qkv[i]).abs();
        assert!(error < 1e-8, "value {i}: {slope}, {}", expected.d_qkv[i]);
    }
}

#[test]
fn threads_change_no_bit() {
    for case in [
        case((3, 13, 19), 8, 4),
        case((1, 9, 33), 16, 8),
        case((2, 5, 7), 2, 1),
    ] {
        let case = Case { heads: 2, ..case };
        for options in every_isa(1) {
            let one = case.run(&options);
            for threads in [2, 5] {
                let other = case.run(&CpuOptions::new(threads).with_isa(options.isa()));
                assert_same_bits("output", &one.output, &other.output);
                assert_same_bits("d_qkv", &one.d_qkv, &other.d_qkv);
            }
        }
    }
}

/// An image of four equal quarters of one window has the output and the gradients of a quarter.
#[test]
fn the_position_of_a_window_changes_no_bit() {
    let (window, c) = (8, HEAD);
    let quarter = case((1, window, window), window, 0);
    let image = case((1, 2 * window, 2 * window), window, 0);
    for options in every_isa(2) {
        let of = |case: &Case, from: &[f32], d: &[f32]| {
            let mut ops = Operations::new(&options);
            let (side, channels) = (case.extent.1, from.len() / window / window);
            let tiled = |values: &[f32], c: usize| -> Vec<f32> {
                (0..side * side)
                    .flat_map(|i| {
                        let pixel = i / side % window * window + i % side % window;
                        values[pixel * c..][..c].to_vec()
                    })
                    .collect()
            };
            let qkv = ops.floats(tiled(from, channels));
            let d_output = ops.floats(tiled(d, c));
            let output = ops.output(side * side * c);
            let d_qkv = ops.output(side * side * 3 * c);
            let forward = case.operation(qkv, output);
            ops.push(forward.clone());
            ops.push(WindowAttentionBack {
                forward,
                d_output,
                d_qkv,
                workspace: None,
            });
            let mut loaded = ops.run();
            (loaded.read(output), loaded.read(d_qkv))
        };
        let (qkv, d) = (quarter.qkv(), quarter.d_output());
        let (output, d_qkv) = of(&quarter, &qkv, &d);
        let (outputs, d_qkvs) = of(&image, &qkv, &d);
        for (c, one, four) in [(c, &output, &outputs), (3 * c, &d_qkv, &d_qkvs)] {
            for (i, pixel) in four.chunks(c).enumerate() {
                let (y, x) = (i / (2 * window) % window, i % window);
                assert_same_bits("pixel", pixel, &one[(y * window + x) * c..][..c]);
            }
        }
    }
}

#[test]
fn what_no_kernel_is_written_for_is_refused() {
    let id = BufferId(0);
    let good = case((1, 13, 19), 8, 4).operation(id, id);
    good.check().unwrap();
    type Change = fn(&mut WindowAttention);
    let changes: [Change; 8] = [
        |op| op.channels = 32,
        |op| op.heads = 0,
        |op| op.shift = 8,
        |op| op.window = 1,
        |op| op.padded.h = 24,
        |op| op.padded.w = 16,
        |op| op.padded.n = 2,
        |op| op.extent.h = 0,
    ];
    for change in changes {
        let mut op = good.clone();
        change(&mut op);
        assert!(op.check().is_err(), "{op:?}");
    }
}

struct Powers<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Powers<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        for i in (0..self.0.len()).step_by(LANES) {
            // SAFETY: `Isa::run` chose S for this processor, and both slices have the same length,
            // a multiple of a vector
            unsafe {
                let power = power_of_2::<S>(S::load(self.0.as_ptr().add(i)));
                S::store(self.1.as_mut_ptr().add(i), power);
            }
        }
    }
}

#[test]
fn powers_of_2_have_the_stated_error_on_every_instruction_set() {
    let mut x: Vec<f32> = (0..64_000).map(|i| -(i as f32) / 1_000.0).collect();
    x[63_999] = f32::NEG_INFINITY;
    x[63_998] = -1e30;
    for isa in Isa::available() {
        let mut powers = vec![0.0; x.len()];
        isa.run(Powers(&x, &mut powers));
        for (&x, &power) in x.iter().zip(&powers) {
            let expected = f64::from(x.max(-63.0)).exp2();
            let error = (f64::from(power) / expected - 1.0).abs();
            assert!(error < 2e-7, "{isa}: 2^{x} is {power} for {expected}");
        }
        assert_eq!(powers[0], 1.0);
        let mut invalid = [0.0; LANES];
        isa.run(Powers(&[f32::NAN; LANES], &mut invalid));
        assert!(invalid.iter().all(|v| v.is_nan()), "{isa}");
    }
}
