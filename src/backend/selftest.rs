//! A device against the CPU: every operation of a training step on the same inputs, then a short
//! training, for every type of activations the device has. Images are compared whole and row by
//! row, column by column and in their corners, since kernels go wrong at edges, which are a small
//! share of an image. Depends on the networks and the backends. Promises that a difference beyond
//! rounding is reported.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, BatchView, CudaSizing, Scalars, read_floats, write_floats};
use crate::model::{Network, Recompute, StepSpec, training_plan};
use crate::plan::OptimizerKind::{self, Adam, AdamW};
use crate::plan::{BufferId, Extent, LossKind, Op, Plan, Precision};
use crate::support::rng::mix;
use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// Loads a plan on the device under test.
pub type Load<'a> = &'a dyn Fn(Plan) -> Result<Box<dyn Backend>>;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Type of activations.
    pub precision: Precision,
    /// The shape and losses.
    pub case: String,
    /// What was compared.
    pub what: String,
    /// `|device - CPU| / |CPU|` in the L2 norm, the worst of all buffers, times and, in a
    /// comparison of edges, parts of an image.
    pub error: f64,
    /// The most that rounding explains.
    pub tolerance: f64,
}

impl Check {
    /// Whether it holds; an error that is no number does not.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Scale, batch, LQ side, losses, level, optimizer.
type Case = (
    usize,
    usize,
    usize,
    &'static [(LossKind, f32)],
    Recompute,
    OptimizerKind,
);

const CASES: [Case; 7] = [
    (2, 2, 9, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    (
        2,
        3,
        37,
        &[
            (LossKind::L1, 0.7),
            (LossKind::Charbonnier, 0.2),
            (LossKind::Mse, 0.5),
        ],
        Recompute::Block,
        Adam,
    ),
    (
        2,
        2,
        64,
        &[
            (LossKind::L1, 1.0),
            (LossKind::Ssim, 0.3),
            (LossKind::MsSsim, 0.2),
        ],
        Recompute::Block,
        AdamW,
    ),
    (3, 1, 20, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    (
        4,
        3,
        100,
        &[(LossKind::L1, 1.0), (LossKind::Ssim, 0.05)],
        Recompute::Full,
        AdamW,
    ),
    // more tiles than blocks that add up
    (2, 5, 121, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    // slices of eight images and of one
    (8, 9, 16, &[(LossKind::L1, 1.0)], Recompute::Full, Adam),
];
/// Of [`CASES`], those of a quick run.
const QUICK: usize = 2;

/// How much larger than the tolerance of a whole image that of its rows, columns and corners is:
/// they hold few values, so that rounding does not even out (measured: up to 1.9 times the error of
/// the whole). A kernel that is wrong there is wrong by a tenth of the values and more.
const EDGES: f64 = 2.0;

/// Tolerances of (one operation, the loss of a short training, its parameters).
fn tolerances(precision: Precision) -> (f64, f64, f64) {
    match precision {
        Precision::F32 => (5e-6, 2e-5, 3e-4),
        Precision::Bf16 => (1.6e-2, 2e-2, 5e-2),
        Precision::Fp16 => (2e-3, 2e-2, 5e-2),
    }
}

/// A buffer of an operation that the CPU's plan and the device's both have.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// In the CPU's plan.
    pub cpu: BufferId,
    /// In the device's.
    pub device: BufferId,
    /// Whether the operation reads it.
    pub read: bool,
    /// Whether it writes it.
    pub write: bool,
}

/// The buffers of operation `at`, but what a backend keeps for itself: sums and workspace.
///
/// # Panics
/// When the plans are not of the same step.
pub fn shared_buffers(cpu: &Plan, device: &Plan, at: usize) -> Vec<Shared> {
    let list = |plan: &Plan| -> Vec<_> {
        let op = &plan.ops[at];
        let folded = if let Op::Reconstruct(head) = op {
            head.folded.map(|c| c.buffer)
        } else {
            None
        };
        let own: Vec<BufferId> = op.sums().chain(folded).collect();
        op.accesses().filter(|a| !own.contains(&a.buffer)).collect()
    };
    let (a, b) = (list(cpu), list(device));
    assert_eq!(a.len(), b.len(), "the plans are not of the same step");
    a.iter()
        .zip(&b)
        .map(|(a, b)| Shared {
            cpu: a.buffer,
            device: b.buffer,
            read: a.read,
            write: a.write,
        })
        .collect()
}

/// Whether the device keeps as halves what the CPU has in f32.
pub fn halves(cpu: &Plan, a: BufferId, device: &Plan, b: BufferId) -> bool {
    cpu.buffer(a).bytes == 2 * device.buffer(b).bytes
}

/// The extent of an image that an operation writes; nothing for what is none (parameters,
/// gradients, metrics).
fn picture(op: &Op, buffer: BufferId) -> Option<Extent> {
    let (extent, written) = match op {
        Op::Unpack(o) => (
            Extent {
                n: o.batch.count,
                h: o.batch.lq.0,
                w: o.batch.lq.1,
            },
            [Some(o.output), None],
        ),
        Op::Conv(o) => (o.extent, [Some(o.output), None]),
        Op::ConvBack(o) => (o.forward.extent, [o.d_input, None]),
        Op::NanoBlock(o) => (o.extent, [Some(o.output), None]),
        Op::NanoBlockBack(o) => (o.forward.extent, [Some(o.d_input), None]),
        Op::Reconstruct(o) => (o.extent.scaled(o.scale), [Some(o.output), None]),
        Op::ReconstructBack(o) => (o.forward.extent, [Some(o.d_features), o.d_input]),
        Op::PixelLoss(o) => (o.extent, [Some(o.d_prediction), None]),
        Op::StructuralLoss(o) => (o.extent, [Some(o.d_prediction), None]),
        Op::Update(_) => return None,
    };
    written.contains(&Some(buffer)).then_some(extent)
}

/// The larger of two errors; what is no number is the worst of all, and stays.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

/// The worst error of a row, a column, a corner and the inside of images `[n, h, w, channels]`,
/// each over all images: the root mean square of its differences against that of its values or,
/// where these are small, of all values.
fn at_edges(got: &[f64], expected: &[f64], extent: Extent) -> f64 {
    let Extent { h, w, .. } = extent;
    let channels = (expected.len() / extent.pixels().max(1)).max(1);
    // squares of differences and of values, and how many: rows, columns, corners, the inside
    let mut parts = vec![(0.0, 0.0, 0usize); h + w + 5];
    let mut all = 0.0;
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let pixel = i / channels;
        let (x, y) = (pixel % w, pixel / w % h);
        let (left, right, top, bottom) = (x == 0, x == w - 1, y == 0, y == h - 1);
        let corner = [top && left, top && right, bottom && left, bottom && right]
            .iter()
            .position(|c| *c);
        let inside = (!(left || right || top || bottom)).then_some(4);
        all += e * e;
        for part in [Some(y), Some(h + x), corner.or(inside).map(|c| h + w + c)]
            .into_iter()
            .flatten()
        {
            let (difference, size, count) = &mut parts[part];
            *difference += (g - e) * (g - e);
            *size += e * e;
            *count += 1;
        }
    }
    let level = all / expected.len().max(1) as f64;
    let error = |(difference, size, count): (f64, f64, usize)| {
        let count = count.max(1) as f64;
        (difference / count / (size / count).max(level).max(f64::MIN_POSITIVE)).sqrt()
    };
    parts.into_iter().map(error).fold(0.0, worse)
}

fn relative(got: impl Iterator<Item = f64>, expected: impl Iterator<Item = f64>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    got.zip(expected).for_each(|(g, e)| {
        difference += (g - e) * (g - e);
        size += e * e;
    });
    (difference / size.max(f64::MIN_POSITIVE)).sqrt()
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    (0..count)
        .map(|i| mix(seed << 32 | i as u64) as u8)
        .collect()
}

struct Batch {
    lq: Vec<u8>,
    hr: Vec<u8>,
    codes: Vec<u8>,
}

impl Batch {
    fn new(net: &Network, spec: &StepSpec, seed: u64) -> Batch {
        let lq = spec.batch * spec.lq.0 * spec.lq.1 * 3;
        let codes = bytes(spec.batch, 3 * seed + 2)
            .iter()
            .map(|c| c % 8)
            .collect();
        Batch {
            lq: bytes(lq, 3 * seed),
            hr: bytes(lq * net.scale * net.scale, 3 * seed + 1),
            codes,
        }
    }

    fn view(&self) -> BatchView<'_> {
        BatchView {
            lq: &self.lq,
            hr: &self.hr,
            augment: &self.codes,
        }
    }
}

/// Runs all checks for a type of activations; `tell` is told each as it is done.
///
/// # Errors
/// When the device fails; a difference is no error but a check that does not hold.
pub fn run(
    precision: Precision,
    load: Load<'_>,
    quick: bool,
    tell: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for &(scale, batch, lq, losses, recompute, optimizer) in
        &CASES[..if quick { QUICK } else { CASES.len() }]
    {
        let mut net = Network::new("nano", scale)?;
        // so that every layer matters
        (net.layer_scale, net.detail_gain) = (0.5, 0.5);
        let spec = StepSpec {
            optimizer,
            weight_decay: 1e-2,
            recompute,
            ..StepSpec::new(batch, (lq, lq), losses.to_vec())
        };
        let case =
            format!("x{scale}, {batch} x {lq} x {lq}, {losses:?}, {recompute}, {optimizer:?}");
        let pair = BackendPair::new(&net, &spec, precision, load).with_context(|| case.clone())?;
        let found = pair
            .run(&net, &spec, precision)
            .with_context(|| case.clone())?;
        for (what, error, tolerance) in found {
            let check = Check {
                precision,
                case: case.clone(),
                what,
                error,
                tolerance,
            };
            tell(&check);
            checks.push(check);
        }
    }
    Ok(checks)
}

/// The same step on both.
struct BackendPair {
    cpu: CpuBackend,
    device: Box<dyn Backend>,
    params: Vec<f32>,
}

type Found = Vec<(String, f64, f64)>;

/// The worst errors of one kind of operation.
struct Worst {
    label: &'static str,
    /// Of whole buffers.
    whole: f64,
    /// Of the edges of images, where it writes any.
    edges: Option<f64>,
}

impl BackendPair {
    fn new(
        net: &Network,
        spec: &StepSpec,
        precision: Precision,
        load: Load<'_>,
    ) -> Result<BackendPair> {
        let options = CpuOptions::new(0);
        // the device has the operations one by one, in their direct form
        let direct = StepSpec {
            without_winograd: true,
            ..spec.clone()
        };
        let cpu = CpuBackend::new(training_plan(net, &direct, &options)?, options)?;
        let plan = training_plan(net, spec, &CudaSizing { precision })?;
        let planned = plan.arena_bytes;
        let device = load(plan)?;
        ensure!(
            device.allocated() == planned,
            "{} bytes are allocated and {planned} were planned",
            device.allocated()
        );
        Ok(BackendPair {
            cpu,
            device,
            params: net.params().start_values(7),
        })
    }

    fn run(mut self, net: &Network, spec: &StepSpec, precision: Precision) -> Result<Found> {
        let (operation, loss, parameters) = tolerances(precision);
        let mut found = Found::new();
        for Worst {
            label,
            whole,
            edges,
        } in self.operations(net, spec, precision)?
        {
            found.push((label.to_string(), whole, operation));
            found.extend(
                edges.map(|edges| (format!("{label}: rows, columns"), edges, EDGES * operation)),
            );
        }
        let [losses, params] = self.training(net, spec, precision)?;
        found.push(("loss of a short training".to_string(), losses, loss));
        found.push(("parameters after it".to_string(), params, parameters));
        Ok(found)
    }

    fn start(&mut self) -> Result<()> {
        for backend in [&mut self.cpu as &mut dyn Backend, self.device.as_mut()] {
            let ports = backend.plan().ports;
            for id in [ports.parameters, ports.ema].into_iter().flatten() {
                write_floats(backend, id, &self.params)?;
            }
            for id in [ports.moment1, ports.moment2].into_iter().flatten() {
                let zeros = vec![0; backend.plan().buffer(id).bytes as usize];
                backend.write(id, 0, &zeros)?;
            }
        }
        Ok(())
    }

    /// Every operation on the same inputs; the worst error of each kind.
    fn operations(
        &mut self,
        net: &Network,
        spec: &StepSpec,
        precision: Precision,
    ) -> Result<Vec<Worst>> {
        self.start()?;
        let batch = Batch::new(net, spec, 1);
        drop(self.cpu.stage(batch.view())?);
        drop(self.device.stage(batch.view())?);
        // gradients of a mean are so small that fp16 would hold few of their bits: training scales
        // them, and so does this
        let micro_scale = if precision == Precision::Fp16 {
            512.0
        } else {
            0.5
        };
        let scalars = Scalars {
            lr: 1e-3,
            step: 3,
            clip: 0.5,
            ema_decay: 0.9,
            micro_scale,
            loss_scale: 1.0,
            accumulate: false,
        };
        let mut worst: Vec<Worst> = Vec::new();
        for at in 0..self.cpu.plan().ops.len() {
            let op = self.cpu.plan().ops[at].clone();
            let label = op.label();
            let shared = shared_buffers(self.cpu.plan(), self.device.plan(), at);
            for &Shared {
                cpu: a,
                device: b,
                read,
                ..
            } in &shared
            {
                // the batch was staged, to whichever place the device took
                if read && self.cpu.plan().batch.is_none_or(|batch| batch.buffer != a) {
                    let values = self.rounded(a, b, precision)?;
                    self.put(a, b, &values, precision)?;
                }
            }
            self.cpu.run_operation(at, &scalars)?;
            self.device.run_operation(at, &scalars)?;
            let (mut whole, mut edges): (f64, Option<f64>) = (0.0, None);
            for Shared {
                cpu: a,
                device: b,
                write,
                ..
            } in shared
            {
                if write {
                    let (expected, got) = (self.read_cpu(a)?, self.read_device(a, b, precision)?);
                    if let Some(extent) = picture(&op, a) {
                        edges = Some(worse(
                            edges.unwrap_or(0.0),
                            at_edges(&got, &expected, extent),
                        ));
                    }
                    whole = worse(whole, relative(got.into_iter(), expected.into_iter()));
                }
            }
            match worst.iter_mut().find(|known| known.label == label) {
                Some(known) => {
                    known.whole = worse(known.whole, whole);
                    known.edges = known.edges.into_iter().chain(edges).reduce(worse);
                }
                None => worst.push(Worst {
                    label,
                    whole,
                    edges,
                }),
            }
        }
        Ok(worst)
    }

    fn is_metrics(&self, a: BufferId) -> bool {
        self.cpu.plan().ports.metrics == Some(a)
    }

    fn narrow(&self, a: BufferId, b: BufferId) -> bool {
        halves(self.cpu.plan(), a, self.device.plan(), b)
    }

    fn read_cpu(&mut self, a: BufferId) -> Result<Vec<f64>> {
        let mut bytes = vec![0; self.cpu.plan().buffer(a).bytes as usize];
        self.cpu.read(a, 0, &mut bytes)?;
        Ok(if self.is_metrics(a) {
            metrics(&bytes)
        } else {
            wide(&bytes)
        })
    }

    fn read_device(&mut self, a: BufferId, b: BufferId, precision: Precision) -> Result<Vec<f64>> {
        let mut bytes = vec![0; self.device.plan().buffer(b).bytes as usize];
        self.device.read(b, 0, &mut bytes)?;
        Ok(if self.is_metrics(a) {
            metrics(&bytes)
        } else if self.narrow(a, b) {
            bytes
                .chunks_exact(2)
                .map(|h| f64::from(precision.widen(u16::from_le_bytes([h[0], h[1]]))))
                .collect()
        } else {
            wide(&bytes)
        })
    }

    /// The CPU's bytes of a buffer, as a half holds its values where the device keeps halves.
    fn rounded(&mut self, a: BufferId, b: BufferId, precision: Precision) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cpu.plan().buffer(a).bytes as usize];
        self.cpu.read(a, 0, &mut bytes)?;
        if self.narrow(a, b) {
            for value in bytes.chunks_exact_mut(4) {
                let v = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                value.copy_from_slice(&precision.widen(precision.narrow(v)).to_le_bytes());
            }
        }
        Ok(bytes)
    }

    fn put(&mut self, a: BufferId, b: BufferId, bytes: &[u8], precision: Precision) -> Result<()> {
        self.cpu.write(a, 0, bytes)?;
        if self.narrow(a, b) {
            let halves = bytes.chunks_exact(4).flat_map(|v| {
                precision
                    .narrow(f32::from_le_bytes([v[0], v[1], v[2], v[3]]))
                    .to_le_bytes()
            });
            return self.device.write(b, 0, &halves.collect::<Vec<u8>>());
        }
        self.device.write(b, 0, bytes)
    }

    /// Six iterations of two micro-batches: errors of the losses and of the parameters.
    fn training(
        &mut self,
        net: &Network,
        spec: &StepSpec,
        precision: Precision,
    ) -> Result<[f64; 2]> {
        self.start()?;
        let count = self.params.len();
        let mut curves = Vec::new();
        let mut ends = Vec::new();
        for on_device in [false, true] {
            let backend: &mut dyn Backend = if on_device {
                self.device.as_mut()
            } else {
                &mut self.cpu
            };
            let loss_scale = if on_device && precision == Precision::Fp16 {
                1024.0
            } else {
                1.0
            };
            let mut losses = Vec::new();
            for iteration in 0..6u64 {
                let mut scalars = Scalars {
                    lr: 1e-3,
                    step: iteration + 1,
                    clip: 1.0,
                    ema_decay: 0.5,
                    micro_scale: 0.5,
                    loss_scale,
                    accumulate: false,
                };
                for micro in 0..2 {
                    scalars.accumulate = micro > 0;
                    let batch = Batch::new(net, spec, 10 + 2 * iteration + micro);
                    let copied = backend.stage(batch.view())?;
                    backend.micro_step(&scalars)?;
                    drop(copied);
                }
                backend.update(&scalars)?;
                let metrics = backend.metrics()?;
                ensure!(
                    !metrics.skipped,
                    "the update of iteration {iteration} was skipped: loss {}, norm {}",
                    metrics.loss,
                    metrics.grad_norm
                );
                losses.push(metrics.loss);
            }
            let mut values = vec![0.0; count];
            let port = backend
                .plan()
                .ports
                .parameters
                .context("a training plan has parameters")?;
            read_floats(backend, port, &mut values)?;
            curves.push(losses);
            // what training changed, not what it started from
            ends.push(
                values
                    .iter()
                    .zip(&self.params)
                    .map(|(v, s)| f64::from(*v) - f64::from(*s))
                    .collect::<Vec<_>>(),
            );
        }
        Ok([
            relative(curves[1].iter().copied(), curves[0].iter().copied()),
            relative(ends[1].iter().copied(), ends[0].iter().copied()),
        ])
    }
}

fn wide(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(4)
        .map(|v| f64::from(f32::from_le_bytes([v[0], v[1], v[2], v[3]])))
        .collect()
}

/// Loss and norm; whether the update was skipped is no number to be near to.
fn metrics(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(8)
        .take(2)
        .map(|v| f64::from_le_bytes(std::array::from_fn(|i| v[i])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::StepMetrics;

    /// The CPU as a device that writes one part of an image wrongly.
    struct Tampered {
        cpu: CpuBackend,
        /// The operation, and whether a pixel (row, column, height, width) is wrong.
        label: &'static str,
        wrong: fn(usize, usize, usize, usize) -> bool,
    }

    impl Backend for Tampered {
        fn description(&self) -> String {
            self.cpu.description()
        }
        fn plan(&self) -> &Plan {
            self.cpu.plan()
        }
        fn allocated(&self) -> u64 {
            self.cpu.allocated()
        }
        fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
            self.cpu.write(buffer, offset, bytes)
        }
        fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
            self.cpu.read(buffer, offset, bytes)
        }
        fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>> {
            self.cpu.lend(plan)
        }
        fn stage(
            &mut self,
            batch: BatchView<'_>,
        ) -> Result<Option<Box<dyn crate::sys::host_memory::Fence>>> {
            self.cpu.stage(batch)
        }
        fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
            self.cpu.micro_step(scalars)
        }
        fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()> {
            self.cpu.run_operation(at, scalars)?;
            let op = self.cpu.plan().ops[at].clone();
            for access in op
                .accesses()
                .filter(|a| a.write && op.label() == self.label)
            {
                let Some(extent) = picture(&op, access.buffer) else {
                    continue;
                };
                let mut values =
                    vec![0f32; self.cpu.plan().buffer(access.buffer).bytes as usize / 4];
                read_floats(&mut self.cpu, access.buffer, &mut values)?;
                let channels = values.len() / extent.pixels();
                for (i, v) in values.iter_mut().enumerate() {
                    let (x, y) = (i / channels % extent.w, i / channels / extent.w % extent.h);
                    // what a tap that is left out does
                    *v *= if (self.wrong)(y, x, extent.h, extent.w) {
                        0.8
                    } else {
                        1.0
                    };
                }
                write_floats(&mut self.cpu, access.buffer, &values)?;
            }
            Ok(())
        }
        fn update(&mut self, scalars: &Scalars) -> Result<()> {
            self.cpu.update(scalars)
        }
        fn metrics(&mut self) -> Result<StepMetrics> {
            self.cpu.metrics()
        }
    }

    /// The kinds of operation that are found wrong, by (whole buffers, edges), with the limits of
    /// bf16.
    fn found(
        label: &'static str,
        wrong: fn(usize, usize, usize, usize) -> bool,
    ) -> Vec<(&'static str, bool, bool)> {
        let (mut net, side) = (Network::new("nano", 2).unwrap(), 32);
        (net.layer_scale, net.detail_gain) = (0.5, 0.5);
        let spec = StepSpec {
            without_winograd: true,
            recompute: Recompute::Block,
            ..StepSpec::new(1, (side, side), vec![(LossKind::L1, 1.0)])
        };
        let load = || {
            let options = CpuOptions::new(2);
            CpuBackend::new(training_plan(&net, &spec, &options).unwrap(), options).unwrap()
        };
        let device = Box::new(Tampered {
            cpu: load(),
            label,
            wrong,
        });
        let mut pair = BackendPair {
            cpu: load(),
            device,
            params: net.params().start_values(7),
        };
        let limit = tolerances(Precision::Bf16).0;
        let worst = pair.operations(&net, &spec, Precision::F32).unwrap();
        let worst = worst.into_iter().map(|w| {
            (
                w.label,
                w.whole > limit,
                w.edges.is_some_and(|e| e > EDGES * limit),
            )
        });
        worst.filter(|(_, whole, edges)| *whole || *edges).collect()
    }

    #[test]
    fn a_wrong_edge_is_found_where_it_is_a_small_share_of_the_picture() {
        assert_eq!(found("conv 3x3", |_, _, _, _| false), []);
        // a corner is too small a share for the whole buffer's error to show
        for label in [
            "conv 3x3",
            "nano block",
            "nano block, backward",
            "reconstruct",
            "reconstruct, backward",
            "pixel loss",
        ] {
            assert_eq!(
                found(label, |y, x, h, w| y == h - 1 && x == w - 1),
                [(label, false, true)]
            );
        }
        for wrong in [
            (|_, x, _, w| x == w - 1) as fn(usize, usize, usize, usize) -> bool,
            |y, _, _, _| y == 0,
            // the seam of tiles
            |_, x, _, _| x == 16,
        ] {
            let found = found("conv 3x3", wrong);
            assert!(found.len() == 1 && found[0].2, "{found:?}");
        }
    }

    #[test]
    fn errors_that_are_no_number_are_the_worst() {
        let extent = Extent { n: 1, h: 3, w: 3 };
        let good = vec![1.0; 9];
        let mut bad = good.clone();
        bad[4] = f64::NAN;
        assert_eq!(at_edges(&good, &good, extent), 0.0);
        assert!(at_edges(&bad, &good, extent).is_nan() && worse(1.0, f64::NAN).is_nan());
        assert_eq!(at_edges(&[0.0; 9], &[0.0; 9], extent), 0.0);
    }
}
