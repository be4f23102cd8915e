//! The Nano network as a CPU backend with a loaded plan and as the f64 reference, with the same
//! parameters; images and comparisons for both. Depends on the crate under test and on `reference`.

use crate::reference::{Gradients, Loss, Reference, golden::relative_error};
use paragon::backend::cpu::{CpuBackend, CpuOptions, Isa};
use paragon::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use paragon::model::{InferenceSpec, Network, ParamTable, StepSpec, inference_plan, training_plan};
use paragon::plan::{BufferId, LossKind, Ports};
use paragon::support::rng::Rng;
use std::collections::BTreeMap;

/// Both networks.
pub struct Twin {
    pub net: Network,
    pub table: ParamTable,
    /// In the order of the table.
    pub params: Vec<f32>,
    pub reference: Reference,
}

impl Twin {
    /// Nano with random parameters that are large enough to give every gradient an effect.
    pub fn new(scale: usize, seed: u64) -> Twin {
        let net = Network::new("nano", scale).unwrap();
        let reference =
            Reference::sized(scale, 16, 3, f64::from(net.number("upsampler_alpha")), seed);
        let table = net.params();
        let params = table
            .params
            .iter()
            .flat_map(|p| reference.param(&p.name).to_vec())
            .map(|v| v as f32)
            .collect();
        Twin {
            net,
            table,
            params,
            reference,
        }
    }

    /// The output [n, h*scale, w*scale, 3] of an inference plan.
    pub fn infer(
        &self,
        input: &[f32],
        (n, h, w): (usize, usize, usize),
        options: CpuOptions,
    ) -> Vec<f32> {
        let plan = inference_plan(
            &self.net,
            &InferenceSpec {
                batch: n,
                lq: (h, w),
                float_input: true,
            },
            &options,
        )
        .unwrap();
        let ports = plan.ports;
        let mut backend = CpuBackend::new(plan, options).unwrap();
        write_floats(&mut backend, ports.parameters.unwrap(), &self.params).unwrap();
        write_floats(&mut backend, ports.input.unwrap(), input).unwrap();
        backend.micro_step(&scalars()).unwrap();
        floats(
            &mut backend,
            ports.output,
            n * h * w * 3 * self.net.scale.pow(2),
        )
    }

    /// A training plan whose parameters and EMA are loaded.
    pub fn load(&self, spec: &StepSpec, options: CpuOptions) -> Step {
        let plan = training_plan(&self.net, spec, &options).unwrap();
        let ports = plan.ports;
        let mut backend = CpuBackend::new(plan, options).unwrap();
        write_floats(&mut backend, ports.parameters.unwrap(), &self.params).unwrap();
        write_floats(&mut backend, ports.ema.unwrap(), &self.params).unwrap();
        Step {
            backend,
            ports,
            sizes: (self.table.len(), self.table.trainable()),
            pixels: spec.batch * spec.lq.0 * spec.lq.1,
        }
    }

    /// The largest relative error of a trainable parameter's values, and its name.
    pub fn worst<'a>(&self, values: &[f32], expected: impl Fn(&str) -> &'a [f64]) -> (f64, String) {
        let mut worst = (0.0, String::new());
        for p in self.table.params.iter().filter(|p| p.trainable) {
            let error = relative_error(
                &wide(&values[p.range.offset..][..p.range.len]),
                expected(&p.name),
            );
            if error.is_nan() || error > worst.0 {
                worst = (error, p.name.clone());
            }
        }
        worst
    }
}

/// A training plan on the CPU.
pub struct Step {
    pub backend: CpuBackend,
    pub ports: Ports,
    sizes: (usize, usize),
    pixels: usize,
}

impl Step {
    /// One micro-batch of floats from given images.
    pub fn floats(&mut self, input: &[f32], target: &[f32], scalars: &Scalars) {
        write_floats(&mut self.backend, self.ports.input.unwrap(), input).unwrap();
        write_floats(&mut self.backend, self.ports.target.unwrap(), target).unwrap();
        self.backend.micro_step(scalars).unwrap();
    }

    /// One micro-batch of bytes.
    pub fn bytes(&mut self, lq: &[u8], hr: &[u8], augment: &[u8], scalars: &Scalars) {
        self.backend.stage(BatchView { lq, hr, augment }).unwrap();
        self.backend.micro_step(scalars).unwrap();
    }

    pub fn loss(&mut self) -> f64 {
        self.backend.metrics().unwrap().loss
    }

    pub fn gradients(&mut self) -> Vec<f32> {
        floats(&mut self.backend, self.ports.gradients, self.sizes.1)
    }

    pub fn parameters(&mut self) -> Vec<f32> {
        floats(&mut self.backend, self.ports.parameters, self.sizes.0)
    }

    pub fn ema(&mut self) -> Vec<f32> {
        floats(&mut self.backend, self.ports.ema, self.sizes.0)
    }

    /// First and second moments.
    pub fn moments(&mut self) -> [Vec<f32>; 2] {
        [self.ports.moment1, self.ports.moment2]
            .map(|port| floats(&mut self.backend, port, self.sizes.1))
    }

    /// The gradient with respect to the input, both parts added.
    pub fn input_gradient(&mut self) -> Vec<f32> {
        let [a, b] = self
            .ports
            .input_gradients
            .map(|port| floats(&mut self.backend, port, self.pixels * 3));
        a.iter().zip(&b).map(|(a, b)| a + b).collect()
    }
}

fn floats(backend: &mut CpuBackend, port: Option<BufferId>, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    read_floats(backend, port.unwrap(), &mut values).unwrap();
    values
}

pub fn spec(batch: usize, lq: (usize, usize), losses: &[(LossKind, f32)], float: bool) -> StepSpec {
    StepSpec {
        weight_decay: 1e-2,
        float_input: float,
        input_gradient: float,
        ..StepSpec::new(batch, lq, losses.to_vec())
    }
}

/// Scalars for one micro-batch with a learning rate of 0.
pub fn scalars() -> Scalars {
    Scalars {
        lr: 0.0,
        step: 1,
        clip: f64::INFINITY,
        ema_decay: 0.0,
        micro_scale: 1.0,
        loss_scale: 1.0,
        accumulate: false,
    }
}

pub fn options(isa: Isa, threads: usize) -> CpuOptions {
    CpuOptions::new(threads).with_isa(isa)
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Random values in 0..1.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(&[seed]);
    (0..count).map(|_| rng.range(0.0, 1.0) as f32).collect()
}

/// Random bytes.
pub fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(&[seed]);
    (0..count).map(|_| rng.range(0.0, 256.0) as u8).collect()
}

/// Bytes as the values that the reference expects.
pub fn unit(bytes: &[u8]) -> Vec<f64> {
    bytes.iter().map(|&b| f64::from(b) / 255.0).collect()
}

/// The reference's version of a pixel loss.
pub fn reference_loss(kind: LossKind) -> Loss {
    match kind {
        LossKind::L1 => Loss::L1,
        LossKind::Charbonnier => Loss::Charbonnier,
        LossKind::Mse => Loss::Mse,
        LossKind::Ssim | LossKind::MsSsim => panic!("{kind:?} is not a pixel loss"),
    }
}

/// Compares loss, every gradient and the gradient of the input with the expected ones. Returns the
/// largest error of a gradient.
pub fn check_gradients(what: &str, twin: &Twin, step: &mut Step, expected: &Gradients) -> f64 {
    let loss = (step.loss() - expected.loss).abs() / expected.loss;
    assert!(
        loss < 1e-6,
        "{what}: the loss is {} for {}",
        step.loss(),
        expected.loss
    );
    let (error, name) = twin.worst(&step.gradients(), |name| of(&expected.params, name));
    assert!(
        error < 1e-5,
        "{what}: the gradient of {name} differs by {error:e}"
    );
    if step.ports.input_gradients[0].is_some() {
        let input = relative_error(&wide(&step.input_gradient()), &expected.input);
        assert!(
            input < 1e-5,
            "{what}: the gradient of the input differs by {input:e}"
        );
    }
    error
}

pub fn of<'a>(values: &'a BTreeMap<String, Vec<f64>>, name: &str) -> &'a [f64] {
    &values[name]
}
