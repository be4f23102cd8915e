//! Plans of a few operations over buffers with given values, for the tests of single operations.
//! Depends on the plan's builder and the CPU backend.

use super::{CpuBackend, CpuOptions};
use crate::backend::{Backend, Scalars, read_floats, write_floats};
use crate::plan::{BufferId, Builder, Class, Op, Ports, Slice};
use crate::support::isa::Isa;
use crate::support::rng::Rng;
use std::ops::Range;

/// A plan while it is made, with the values of its buffers.
pub struct Operations<'a> {
    /// The builder, for buffers and operations without a method here.
    pub builder: Builder<'a>,
    options: &'a CpuOptions,
    values: Vec<(BufferId, Vec<f32>)>,
}

impl<'a> Operations<'a> {
    /// An empty plan.
    pub fn new(options: &'a CpuOptions) -> Operations<'a> {
        Operations {
            builder: Builder::new(options),
            options,
            values: Vec::new(),
        }
    }

    /// A buffer that holds `values` before the first operation. It can be read after the last.
    pub fn floats(&mut self, values: Vec<f32>) -> BufferId {
        // buffers of a persistent class are alive all the time
        let name = format!("buffer {}", self.values.len());
        let id = self.builder.floats(name, Class::Parameters, values.len());
        self.values.push((id, values));
        id
    }

    /// A buffer of `count` values that operations write: NaN before that.
    pub fn output(&mut self, count: usize) -> BufferId {
        self.floats(vec![f32::NAN; count])
    }

    /// Appends an operation.
    pub fn push(&mut self, op: impl Into<Op>) {
        self.builder.push(op.into());
    }

    /// Appends the operations that `make` makes for each of these parts of `of` images; each gets
    /// its part, and its sums continue those of the part before.
    pub fn push_slices(
        &mut self,
        of: usize,
        parts: &[Range<usize>],
        mut make: impl FnMut(&mut Operations<'a>, Range<usize>, Slice) -> Op,
    ) {
        let mut carry = None;
        for (i, part) in parts.iter().enumerate() {
            let slice = Slice {
                of,
                first: i == 0,
                last: i + 1 == parts.len(),
                carry: None,
            };
            let mut op = make(self, part.clone(), slice);
            if i == 0 && parts.len() > 1 {
                carry = self.builder.carry(&op);
            }
            op.set_carry(carry);
            self.builder.push(op);
        }
    }

    /// Loads the plan, with NaN in all workspaces.
    pub fn load(self) -> Loaded {
        let all = 0..self.builder.position();
        let end = all.end..all.end;
        let plan = self.builder.finish(all, end, None, Ports::default());
        let plan = plan.expect("the plan is valid");
        let workspaces: Vec<(BufferId, usize)> = (0..)
            .map(BufferId)
            .zip(&plan.buffers)
            .filter(|(_, buffer)| !buffer.class.persistent())
            .map(|(id, buffer)| (id, buffer.bytes as usize))
            .collect();
        let mut backend = CpuBackend::new(plan, *self.options).expect("the backend loads the plan");
        for (id, bytes) in workspaces {
            backend.write(id, 0, &vec![0xff; bytes]).unwrap();
        }
        for (id, values) in &self.values {
            write_floats(&mut backend, *id, values).unwrap();
        }
        let sizes = self
            .values
            .into_iter()
            .map(|(id, v)| (id, v.len()))
            .collect();
        Loaded { backend, sizes }
    }

    /// Loads the plan and runs all operations once.
    pub fn run(self) -> Loaded {
        let mut loaded = self.load();
        loaded.backend.micro_step(&scalars(false)).unwrap();
        loaded
    }
}

/// A plan in memory.
pub struct Loaded {
    /// The backend.
    pub backend: CpuBackend,
    sizes: Vec<(BufferId, usize)>,
}

impl Loaded {
    /// The values of a buffer from [`Operations::floats`] or [`Operations::output`].
    pub fn read(&mut self, id: BufferId) -> Vec<f32> {
        let size = self.sizes.iter().find(|(known, _)| *known == id);
        let mut values = vec![0.0; size.expect("a buffer with values").1];
        read_floats(&mut self.backend, id, &mut values).unwrap();
        values
    }
}

/// The scalars of a step without learning.
pub fn scalars(accumulate: bool) -> Scalars {
    Scalars {
        lr: 0.0,
        step: 1,
        clip: f64::INFINITY,
        ema_decay: 0.0,
        micro_scale: 1.0,
        loss_scale: 1.0,
        accumulate,
    }
}

/// Options for every instruction set of this processor, with `threads` threads.
pub fn every_isa(threads: usize) -> impl Iterator<Item = CpuOptions> {
    let all = Isa::available().into_iter();
    all.map(move |isa| CpuOptions::new(threads).with_isa(isa))
}

/// Noise from -1 to 1.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(&[seed]);
    (0..count).map(|_| rng.range(-1.0, 1.0) as f32).collect()
}

/// Noise of an activation `[pixels][stride]`, with 0 in the channels from `channels` on.
pub fn activation(pixels: usize, channels: usize, stride: usize, seed: u64) -> Vec<f32> {
    let mut values = noise(pixels * stride, seed);
    for pixel in values.chunks_exact_mut(stride) {
        pixel[channels..].fill(0.0);
    }
    values
}

/// Asserts that values are those of f64 within `tolerance` of the largest one.
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        // a NaN must fail
        assert!(
            error <= tolerance * largest,
            "{what}: value {i} is {got} for {expected}, the largest being {largest}"
        );
    }
}

/// Asserts that values have the same bits.
pub fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: number of values");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}: value {i}: {a} and {b}");
    }
}

#[test]
fn a_plan_of_one_operation_runs() {
    let options = CpuOptions::new(1);
    let mut ops = Operations::new(&options);
    let extent = crate::plan::Extent { n: 2, h: 3, w: 5 };
    let range = |offset, len| crate::plan::ParamRange { offset, len };
    let parameters = ops.floats(noise(9 * 3 * 16 + 16, 1));
    let input = ops.floats(noise(extent.pixels() * 3, 2));
    let output = ops.output(extent.pixels() * 16);
    ops.push(crate::plan::Conv {
        extent,
        cin: 3,
        cout: 16,
        input_stride: 3,
        output_stride: 16,
        kernel: 3,
        dilation: 1,
        groups: 1,
        activation: None,
        tile_invariant: true,
        tile_alignment: 1,
        weight: range(0, 9 * 3 * 16),
        bias: range(9 * 3 * 16, 16),
        parameters,
        slopes: parameters,
        input,
        output,
        workspace: None,
    });
    let mut loaded = ops.run();
    assert!(loaded.read(output).iter().all(|v| v.is_finite()));
}
