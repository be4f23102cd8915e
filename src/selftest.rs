//! A device against the CPU: every operation of a training step on the same inputs, then a short training, for every type of
//! activations the device has. Depends on the networks and the backends. Promises that a difference beyond rounding is reported.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, BatchView, CudaSizing, Scalars, read_floats, write_floats};
use crate::model::{Network, Recompute, StepSpec, training_plan};
use crate::plan::OptimizerKind::{self, Adam, AdamW};
use crate::plan::{BufferId, LossKind, Plan, Precision};
use crate::rng::mix;
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
    /// `|device - CPU| / |CPU|` in the L2 norm, the worst of all buffers and times.
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
type Case = (usize, usize, usize, &'static [(LossKind, f32)], Recompute, OptimizerKind);

const CASES: [Case; 7] = [
    (2, 2, 9, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    (2, 3, 37, &[(LossKind::L1, 0.7), (LossKind::Charbonnier, 0.2), (LossKind::Mse, 0.5)], Recompute::Block, Adam),
    (2, 2, 64, &[(LossKind::L1, 1.0), (LossKind::Ssim, 0.3), (LossKind::MsSsim, 0.2)], Recompute::Block, AdamW),
    (3, 1, 20, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    (4, 3, 100, &[(LossKind::L1, 1.0), (LossKind::Ssim, 0.05)], Recompute::Full, AdamW),
    // more tiles than blocks that add up
    (2, 5, 121, &[(LossKind::L1, 1.0)], Recompute::Block, AdamW),
    // slices of eight images and of one
    (8, 9, 16, &[(LossKind::L1, 1.0)], Recompute::Full, Adam),
];
/// Of [`CASES`], those of a quick run.
const QUICK: usize = 2;

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
        let own = |id: BufferId| ["workspace of", "sums of", "composed"].iter().any(|start| plan.buffer(id).name.starts_with(start));
        plan.ops[at].accesses().filter(|a| !own(a.buffer)).collect()
    };
    let (a, b) = (list(cpu), list(device));
    assert_eq!(a.len(), b.len(), "the plans are not of the same step");
    a.iter().zip(&b).map(|(a, b)| Shared { cpu: a.buffer, device: b.buffer, read: a.read, write: a.write }).collect()
}

/// Whether the device keeps as halves what the CPU has in f32.
pub fn halves(cpu: &Plan, a: BufferId, device: &Plan, b: BufferId) -> bool {
    cpu.buffer(a).bytes == 2 * device.buffer(b).bytes
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
    (0..count).map(|i| mix(seed << 32 | i as u64) as u8).collect()
}

struct Batch {
    lq: Vec<u8>,
    hr: Vec<u8>,
    codes: Vec<u8>,
}

impl Batch {
    fn new(net: &Network, spec: &StepSpec, seed: u64) -> Batch {
        let lq = spec.batch * spec.lq.0 * spec.lq.1 * 3;
        let codes = bytes(spec.batch, 3 * seed + 2).iter().map(|c| c % 8).collect();
        Batch { lq: bytes(lq, 3 * seed), hr: bytes(lq * net.scale * net.scale, 3 * seed + 1), codes }
    }

    fn view(&self) -> BatchView<'_> {
        BatchView { lq: &self.lq, hr: &self.hr, augment: &self.codes }
    }
}

/// Runs all checks for a type of activations; `tell` is told each as it is done.
///
/// # Errors
/// When the device fails; a difference is no error but a check that does not hold.
pub fn run(precision: Precision, load: Load<'_>, quick: bool, tell: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for &(scale, batch, lq, losses, recompute, optimizer) in &CASES[..if quick { QUICK } else { CASES.len() }] {
        let mut net = Network::new("nano", scale)?;
        // so that every layer matters
        (net.layer_scale, net.detail_gain) = (0.5, 0.5);
        let spec = StepSpec { optimizer, weight_decay: 1e-2, recompute, ..StepSpec::new(batch, (lq, lq), losses.to_vec()) };
        let case = format!("x{scale}, {batch} x {lq} x {lq}, {losses:?}, {recompute}, {optimizer:?}");
        let pair = Pair::new(&net, &spec, precision, load).with_context(|| case.clone())?;
        let found = pair.run(&net, &spec, precision).with_context(|| case.clone())?;
        for (what, error, tolerance) in found {
            let check = Check { precision, case: case.clone(), what, error, tolerance };
            tell(&check);
            checks.push(check);
        }
    }
    Ok(checks)
}

/// The same step on both.
struct Pair {
    cpu: CpuBackend,
    device: Box<dyn Backend>,
    params: Vec<f32>,
}

type Found = Vec<(String, f64, f64)>;

impl Pair {
    fn new(net: &Network, spec: &StepSpec, precision: Precision, load: Load<'_>) -> Result<Pair> {
        let options = CpuOptions::new(0);
        // the device has the operations one by one, in their direct form
        let direct = StepSpec { direct: true, ..spec.clone() };
        let cpu = CpuBackend::new(training_plan(net, &direct, &options)?, options)?;
        let plan = training_plan(net, spec, &CudaSizing { precision })?;
        let planned = plan.arena_bytes;
        let device = load(plan)?;
        ensure!(device.allocated() == planned, "{} bytes are allocated and {planned} were planned", device.allocated());
        Ok(Pair { cpu, device, params: net.params().start_values(7) })
    }

    fn run(mut self, net: &Network, spec: &StepSpec, precision: Precision) -> Result<Found> {
        let (operation, loss, parameters) = tolerances(precision);
        let mut found = self.operations(net, spec, precision)?.into_iter().map(|(w, e)| (w, e, operation)).collect::<Found>();
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
    fn operations(&mut self, net: &Network, spec: &StepSpec, precision: Precision) -> Result<Vec<(String, f64)>> {
        self.start()?;
        let batch = Batch::new(net, spec, 1);
        drop(self.cpu.stage(batch.view())?);
        drop(self.device.stage(batch.view())?);
        // gradients of a mean are so small that fp16 would hold few of their bits: training scales them, and so does this
        let micro_scale = if precision == Precision::Fp16 { 512.0 } else { 0.5 };
        let scalars = Scalars { lr: 1e-3, step: 3, clip: 0.5, ema_decay: 0.9, micro_scale, loss_scale: 1.0, accumulate: false };
        let mut worst: Vec<(String, f64)> = Vec::new();
        for at in 0..self.cpu.plan().ops.len() {
            let label = self.cpu.plan().ops[at].label();
            let shared = shared_buffers(self.cpu.plan(), self.device.plan(), at);
            for &Shared { cpu: a, device: b, read, .. } in &shared {
                // the batch was staged, to whichever place the device took
                if read && self.cpu.plan().batch.is_none_or(|batch| batch.buffer != a) {
                    let values = self.rounded(a, b, precision)?;
                    self.put(a, b, &values, precision)?;
                }
            }
            self.cpu.run_operation(at, &scalars)?;
            self.device.run_operation(at, &scalars)?;
            let mut error: f64 = 0.0;
            for Shared { cpu: a, device: b, write, .. } in shared {
                if write {
                    let (expected, got) = (self.read_cpu(a)?, self.read_device(a, b, precision)?);
                    let e = relative(got.into_iter(), expected.into_iter());
                    error = if e.is_nan() { e } else { error.max(e) };
                }
            }
            match worst.iter_mut().find(|(known, _)| known == label) {
                Some((_, known)) => *known = if error.is_nan() { error } else { known.max(error) },
                None => worst.push((label.to_string(), error)),
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
        Ok(if self.is_metrics(a) { metrics(&bytes) } else { wide(&bytes) })
    }

    fn read_device(&mut self, a: BufferId, b: BufferId, precision: Precision) -> Result<Vec<f64>> {
        let mut bytes = vec![0; self.device.plan().buffer(b).bytes as usize];
        self.device.read(b, 0, &mut bytes)?;
        Ok(if self.is_metrics(a) {
            metrics(&bytes)
        } else if self.narrow(a, b) {
            bytes.chunks_exact(2).map(|h| f64::from(precision.widen(u16::from_le_bytes([h[0], h[1]])))).collect()
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
            let halves = bytes.chunks_exact(4).flat_map(|v| precision.narrow(f32::from_le_bytes([v[0], v[1], v[2], v[3]])).to_le_bytes());
            return self.device.write(b, 0, &halves.collect::<Vec<u8>>());
        }
        self.device.write(b, 0, bytes)
    }

    /// Six iterations of two micro-batches: errors of the losses and of the parameters.
    fn training(&mut self, net: &Network, spec: &StepSpec, precision: Precision) -> Result<[f64; 2]> {
        self.start()?;
        let count = self.params.len();
        let mut curves = Vec::new();
        let mut ends = Vec::new();
        for on_device in [false, true] {
            let backend: &mut dyn Backend = if on_device { self.device.as_mut() } else { &mut self.cpu };
            let loss_scale = if on_device && precision == Precision::Fp16 { 1024.0 } else { 1.0 };
            let mut losses = Vec::new();
            for iteration in 0..6u64 {
                let mut scalars =
                    Scalars { lr: 1e-3, step: iteration + 1, clip: 1.0, ema_decay: 0.5, micro_scale: 0.5, loss_scale, accumulate: false };
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
            let port = backend.plan().ports.parameters.context("a training plan has parameters")?;
            read_floats(backend, port, &mut values)?;
            curves.push(losses);
            // what training changed, not what it started from
            ends.push(values.iter().zip(&self.params).map(|(v, s)| f64::from(*v) - f64::from(*s)).collect::<Vec<_>>());
        }
        Ok([relative(curves[1].iter().copied(), curves[0].iter().copied()), relative(ends[1].iter().copied(), ends[0].iter().copied())])
    }
}

fn wide(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|v| f64::from(f32::from_le_bytes([v[0], v[1], v[2], v[3]]))).collect()
}

/// Loss and norm; whether the update was skipped is no number to be near to.
fn metrics(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).take(2).map(|v| f64::from_le_bytes(std::array::from_fn(|i| v[i]))).collect()
}
