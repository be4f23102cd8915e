//! The same step on the CPU and on the device, run side by side. Depends on the networks and the
//! backends.

use super::buffers::{SharedBuffer, shared_buffers, stores_halves, written_extent};
use super::errors::{edge_error, relative, worse};
use super::{EDGES, Load, tolerances};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, BatchView, CudaSizing, Scalars, read_floats, write_floats};
use crate::model::{Network, StepSpec, training_plan};
use crate::plan::Precision;
use crate::support::rng::mix;
use anyhow::{Context, Result, ensure};

/// Iterations of the short training, each of [`MICRO_BATCHES`].
const ITERATIONS: u64 = 6;
const MICRO_BATCHES: u64 = 2;

/// A batch of noise.
struct NoiseBatch {
    lq: Vec<u8>,
    hr: Vec<u8>,
    codes: Vec<u8>,
}

impl NoiseBatch {
    fn new(net: &Network, spec: &StepSpec, seed: u64) -> NoiseBatch {
        let noise = |count: usize, seed: u64| -> Vec<u8> {
            (0..count)
                .map(|i| mix(seed << 32 | i as u64) as u8)
                .collect()
        };
        let lq = spec.batch * spec.lq.0 * spec.lq.1 * 3;
        let codes = noise(spec.batch, 3 * seed + 2);
        NoiseBatch {
            lq: noise(lq, 3 * seed),
            hr: noise(lq * net.scale * net.scale, 3 * seed + 1),
            codes: codes.iter().map(|c| c % 8).collect(),
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

/// The result of one comparison.
pub(super) struct Comparison {
    /// What was compared.
    pub what: String,
    pub error: f64,
    /// The largest error that rounding explains.
    pub tolerance: f64,
}

/// The largest errors of all operations of one kind.
pub(super) struct WorstErrors {
    /// The operation's name.
    pub label: &'static str,
    /// Of whole buffers.
    pub whole: f64,
    /// Of the edges of images, if the operation writes any.
    pub edges: Option<f64>,
}

/// The same step loaded on both backends.
pub(super) struct BackendPair {
    pub cpu: CpuBackend,
    pub device: Box<dyn Backend>,
    /// Start values of the parameters.
    pub params: Vec<f32>,
    /// The device's type of activations; the CPU's is f32.
    pub precision: Precision,
}

impl BackendPair {
    pub fn new(
        net: &Network,
        spec: &StepSpec,
        precision: Precision,
        load: Load<'_>,
    ) -> Result<BackendPair> {
        let options = CpuOptions::new(0);
        // the device's kernels are direct convolutions
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
            precision,
        })
    }

    /// Compares every operation.
    pub fn run_operations(mut self, net: &Network, spec: &StepSpec) -> Result<Vec<Comparison>> {
        self.compare_operations(net, spec)
    }

    /// Compares every operation, then a short training.
    pub fn run(mut self, net: &Network, spec: &StepSpec) -> Result<Vec<Comparison>> {
        let (_, loss, parameters) = tolerances(self.precision);
        let mut comparisons = self.compare_operations(net, spec)?;
        let [loss_error, parameter_error] = self.training(net, spec)?;
        for (what, error, tolerance) in [
            ("loss of a short training", loss_error, loss),
            ("parameters after it", parameter_error, parameters),
        ] {
            let what = what.to_string();
            comparisons.push(Comparison {
                what,
                error,
                tolerance,
            });
        }
        Ok(comparisons)
    }

    fn compare_operations(&mut self, net: &Network, spec: &StepSpec) -> Result<Vec<Comparison>> {
        let tolerance = tolerances(self.precision).0;
        let mut comparisons = Vec::new();
        for worst in self.operations(net, spec)? {
            comparisons.push(Comparison {
                what: worst.label.to_string(),
                error: worst.whole,
                tolerance,
            });
            if let Some(error) = worst.edges {
                comparisons.push(Comparison {
                    what: format!("{}: rows, columns", worst.label),
                    error,
                    tolerance: EDGES * tolerance,
                });
            }
        }
        Ok(comparisons)
    }

    /// Writes the start values to both backends.
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

    /// Runs every operation on the same inputs; returns the largest errors of each kind.
    pub fn operations(&mut self, net: &Network, spec: &StepSpec) -> Result<Vec<WorstErrors>> {
        self.start()?;
        let batch = NoiseBatch::new(net, spec, 1);
        drop(self.cpu.stage(batch.view())?);
        drop(self.device.stage(batch.view())?);
        // Gradients of a mean are so small that fp16 would keep few of their bits. Training scales
        // them, and so does this.
        let micro_scale = if self.precision == Precision::Fp16 {
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
        let mut worst: Vec<WorstErrors> = Vec::new();
        for at in 0..self.cpu.plan().ops.len() {
            let WorstErrors {
                label,
                whole,
                edges,
            } = self.operation(at, &scalars)?;
            match worst.iter_mut().find(|known| known.label == label) {
                Some(known) => {
                    known.whole = worse(known.whole, whole);
                    known.edges = known.edges.into_iter().chain(edges).reduce(worse);
                }
                None => worst.push(WorstErrors {
                    label,
                    whole,
                    edges,
                }),
            }
        }
        Ok(worst)
    }

    /// Runs operation `at` on both backends, on the CPU's current values.
    fn operation(&mut self, at: usize, scalars: &Scalars) -> Result<WorstErrors> {
        let op = self.cpu.plan().ops[at].clone();
        let shared = shared_buffers(self.cpu.plan(), self.device.plan(), at)?;
        let batch = self.cpu.plan().batch.map(|batch| batch.buffer);
        for buffer in shared.iter().filter(|b| b.read) {
            // the batch was staged, and only the device knows into which of its batch buffers
            if batch != Some(buffer.cpu) {
                let values = self.rounded(buffer)?;
                self.put(buffer, &values)?;
            }
        }
        self.cpu.run_operation(at, scalars)?;
        self.device.run_operation(at, scalars)?;
        let (mut whole, mut edges): (f64, Option<f64>) = (0.0, None);
        for buffer in shared.iter().filter(|b| b.write) {
            let (expected, got) = (self.read_cpu(buffer)?, self.read_device(buffer)?);
            if let Some(extent) = written_extent(&op, buffer.cpu) {
                let error = edge_error(&got, &expected, extent);
                edges = Some(worse(edges.unwrap_or(0.0), error));
            }
            whole = worse(whole, relative(got.into_iter(), expected.into_iter()));
        }
        Ok(WorstErrors {
            label: op.label(),
            whole,
            edges,
        })
    }

    fn is_metrics(&self, buffer: &SharedBuffer) -> bool {
        self.cpu.plan().ports.metrics == Some(buffer.cpu)
    }

    fn is_narrow(&self, buffer: &SharedBuffer) -> bool {
        stores_halves(
            self.cpu.plan(),
            buffer.cpu,
            self.device.plan(),
            buffer.device,
        )
    }

    fn cpu_bytes(&mut self, buffer: &SharedBuffer) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cpu.plan().buffer(buffer.cpu).bytes as usize];
        self.cpu.read(buffer.cpu, 0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_cpu(&mut self, buffer: &SharedBuffer) -> Result<Vec<f64>> {
        let bytes = self.cpu_bytes(buffer)?;
        Ok(if self.is_metrics(buffer) {
            metrics(&bytes)
        } else {
            wide(&bytes)
        })
    }

    fn read_device(&mut self, buffer: &SharedBuffer) -> Result<Vec<f64>> {
        let mut bytes = vec![0; self.device.plan().buffer(buffer.device).bytes as usize];
        self.device.read(buffer.device, 0, &mut bytes)?;
        Ok(if self.is_metrics(buffer) {
            metrics(&bytes)
        } else if self.is_narrow(buffer) {
            let widen = |h: &[u8]| self.precision.widen(u16::from_le_bytes([h[0], h[1]]));
            bytes.chunks_exact(2).map(|h| f64::from(widen(h))).collect()
        } else {
            wide(&bytes)
        })
    }

    /// The CPU's bytes of a buffer, its values rounded to 16 bits if the device stores it so.
    fn rounded(&mut self, buffer: &SharedBuffer) -> Result<Vec<u8>> {
        let mut bytes = self.cpu_bytes(buffer)?;
        if self.is_narrow(buffer) {
            for value in bytes.chunks_exact_mut(4) {
                let rounded = self.precision.widen(self.precision.narrow(float(value)));
                value.copy_from_slice(&rounded.to_le_bytes());
            }
        }
        Ok(bytes)
    }

    /// Writes the same values to both backends; `bytes` has the CPU's type.
    fn put(&mut self, buffer: &SharedBuffer, bytes: &[u8]) -> Result<()> {
        self.cpu.write(buffer.cpu, 0, bytes)?;
        if !self.is_narrow(buffer) {
            return self.device.write(buffer.device, 0, bytes);
        }
        let halves: Vec<u8> = bytes
            .chunks_exact(4)
            .flat_map(|value| self.precision.narrow(float(value)).to_le_bytes())
            .collect();
        self.device.write(buffer.device, 0, &halves)
    }

    /// Trains both backends for [`ITERATIONS`]; returns the errors of the losses and of the changes
    /// of the parameters.
    fn training(&mut self, net: &Network, spec: &StepSpec) -> Result<[f64; 2]> {
        self.start()?;
        // the device's gradients are scaled in fp16 as in training
        let device_scale = if self.precision == Precision::Fp16 {
            1024.0
        } else {
            1.0
        };
        let (expected_losses, expected) = train(&mut self.cpu, net, spec, 1.0)?;
        let (losses, params) = train(self.device.as_mut(), net, spec, device_scale)?;
        // the start values would hide a small error of the changes
        let change = |values: Vec<f32>| -> Vec<f64> {
            let pairs = values.iter().zip(&self.params);
            pairs.map(|(v, s)| f64::from(*v) - f64::from(*s)).collect()
        };
        Ok([
            relative(losses.into_iter(), expected_losses.into_iter()),
            relative(change(params).into_iter(), change(expected).into_iter()),
        ])
    }
}

/// Trains one backend; returns the loss of every iteration and the parameters at the end.
fn train(
    backend: &mut dyn Backend,
    net: &Network,
    spec: &StepSpec,
    loss_scale: f32,
) -> Result<(Vec<f64>, Vec<f32>)> {
    let mut losses = Vec::new();
    for iteration in 0..ITERATIONS {
        let mut scalars = Scalars {
            lr: 1e-3,
            step: iteration + 1,
            clip: 1.0,
            ema_decay: 0.5,
            micro_scale: 1.0 / MICRO_BATCHES as f32,
            loss_scale,
            accumulate: false,
        };
        for micro in 0..MICRO_BATCHES {
            scalars.accumulate = micro > 0;
            let batch = NoiseBatch::new(net, spec, 10 + MICRO_BATCHES * iteration + micro);
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
    let mut params = vec![0.0; net.params().len()];
    let port = backend.plan().ports.parameters;
    let port = port.context("a training plan has parameters")?;
    read_floats(backend, port, &mut params)?;
    Ok((losses, params))
}

/// An f32 from its four bytes.
fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn wide(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(4)
        .map(|value| f64::from(float(value)))
        .collect()
}

/// Loss and gradient norm; `skipped` is no number that can be near to another.
fn metrics(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(8)
        .take(2)
        .map(|v| f64::from_le_bytes(std::array::from_fn(|i| v[i])))
        .collect()
}
