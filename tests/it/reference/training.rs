//! The reference training step: AdamW, clipping, learning rate, EMA and accumulation as PyTorch
//! does them, in f64. Depends on the reference networks only; promises the documented order (mean
//! over micro-batches, norm, clip, decay, moments, update, EMA) and nothing about non-finite
//! values.

use super::{Gradients, Parameters, Reference, trainable};
use std::{collections::BTreeMap, f64::consts::PI};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// Times `gamma` from iteration m + 1 on, for every milestone m.
    MultiStep { milestones: Vec<usize>, gamma: f64 },
    /// From the base rate at iteration 1 to `floor` at iteration `period` + 1, in closed form.
    Cosine { period: usize, floor: f64 },
}

/// The numbers of a training run.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub lr: f64,
    pub betas: (f64, f64),
    pub eps: f64,
    pub weight_decay: f64,
    /// Iterations of linear warm-up.
    pub warmup: usize,
    pub schedule: Schedule,
    /// Largest global L2 norm of the gradient.
    pub clip: Option<f64>,
    pub ema_decay: f64,
    pub ema_power: f64,
}

impl Recipe {
    /// The learning rate of iteration `i`, counted from 1.
    pub fn lr_at(&self, i: usize) -> f64 {
        if i <= self.warmup {
            return self.lr * i as f64 / self.warmup as f64;
        }
        match &self.schedule {
            Schedule::MultiStep { milestones, gamma } => {
                let passed = milestones.iter().filter(|m| i > **m).count();
                self.lr * gamma.powi(passed as i32)
            }
            Schedule::Cosine { period, floor } => {
                let t = (i - 1).min(*period) as f64 / *period as f64;
                floor + (self.lr - floor) * 0.5 * (1.0 + (PI * t).cos())
            }
        }
    }

    /// The EMA's weight on its own past at update `k`, counted from 1: 0 (a copy) at first.
    pub fn ema_at(&self, k: usize) -> f64 {
        if k <= 1 {
            0.0
        } else {
            self.ema_decay.min(1.0 - (k as f64).powf(-self.ema_power))
        }
    }
}

/// From an output to its loss and the gradient with respect to the output.
pub type LossFunction<'a> = dyn Fn(&[f64]) -> (f64, Vec<f64>) + 'a;

/// A network that [`Training`] can train.
pub trait Trainee {
    fn params(&self) -> &Parameters;

    fn params_mut(&mut self) -> &mut Parameters;

    /// Forward and backward of `loss`. `input` is `[n, h, w, 3]` with `size` = `[n, h, w]`, the
    /// output `[n, h * scale, w * scale, 3]`.
    fn gradients_of(&self, input: &[f64], size: [usize; 3], loss: &LossFunction) -> Gradients;
}

impl Trainee for Reference {
    fn params(&self) -> &Parameters {
        &self.params
    }

    fn params_mut(&mut self) -> &mut Parameters {
        &mut self.params
    }

    fn gradients_of(&self, input: &[f64], [n, h, w]: [usize; 3], loss: &LossFunction) -> Gradients {
        self.gradients_with(input, n, h, w, loss)
    }
}

/// A run: the network, its moments, its average and the number of iterations done.
pub struct Training<N = Reference> {
    pub recipe: Recipe,
    pub network: N,
    /// EMA of every parameter, the frozen ones included.
    pub ema: BTreeMap<String, Vec<f64>>,
    pub iteration: usize,
    first: BTreeMap<String, Vec<f64>>,
    second: BTreeMap<String, Vec<f64>>,
}

/// What one iteration reports: the mean loss of its micro-batches and the norm of the gradient
/// before clipping.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub loss: f64,
    pub grad_norm: f64,
    pub lr: f64,
}

/// One micro-batch: input [n, h, w, 3] and target [n, h*scale, w*scale, 3] in 0..1.
pub struct Batch {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub input: Vec<f64>,
    pub target: Vec<f64>,
}

impl<N: Trainee> Training<N> {
    pub fn new(network: N, recipe: Recipe) -> Training<N> {
        let zeros = || -> BTreeMap<String, Vec<f64>> {
            let moved = network.params().iter().filter(|(name, _)| trainable(name));
            moved
                .map(|(name, (_, v))| (name.clone(), vec![0.0; v.len()]))
                .collect()
        };
        let ema = network
            .params()
            .iter()
            .map(|(name, (_, values))| (name.clone(), values.clone()))
            .collect();
        Training {
            ema,
            first: zeros(),
            second: zeros(),
            iteration: 0,
            recipe,
            network,
        }
    }

    /// One iteration on any loss of (output, target), which returns its value and its gradient.
    /// `batches.len()` is `accum_iter`.
    pub fn step_with(
        &mut self,
        batches: &[Batch],
        loss: impl Fn(&[f64], &[f64]) -> (f64, Vec<f64>),
    ) -> Report {
        let share = 1.0 / batches.len() as f64;
        let mut mean_loss = 0.0;
        let mut grads: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for b in batches {
            let Gradients { loss, params, .. } =
                self.network
                    .gradients_of(&b.input, [b.n, b.h, b.w], &|output| loss(output, &b.target));
            mean_loss += share * loss;
            for (name, grad) in params {
                let sum = grads.entry(name).or_insert_with(|| vec![0.0; grad.len()]);
                sum.iter_mut().zip(&grad).for_each(|(s, g)| *s += share * g);
            }
        }
        let grad_norm = grads.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        if let Some(max) = self.recipe.clip {
            let factor = (max / (grad_norm + 1e-6)).min(1.0);
            grads.values_mut().flatten().for_each(|g| *g *= factor);
        }
        self.iteration += 1;
        let lr = self.recipe.lr_at(self.iteration);
        self.adamw(&grads, lr);
        let d = self.recipe.ema_at(self.iteration);
        for (name, average) in &mut self.ema {
            for (e, p) in average.iter_mut().zip(&self.network.params()[name].1) {
                *e = d * *e + (1.0 - d) * p;
            }
        }
        Report {
            loss: mean_loss,
            grad_norm,
            lr,
        }
    }

    /// Loshchilov & Hutter's AdamW, as in PyTorch: decay first, then the bias-corrected step.
    fn adamw(&mut self, grads: &BTreeMap<String, Vec<f64>>, lr: f64) {
        let Recipe {
            betas: (b1, b2),
            eps,
            weight_decay,
            ..
        } = self.recipe;
        let (c1, c2) = (
            1.0 - b1.powi(self.iteration as i32),
            1.0 - b2.powi(self.iteration as i32),
        );
        for (name, grad) in grads {
            let values = &mut self
                .network
                .params_mut()
                .get_mut(name)
                .expect("a gradient has a parameter")
                .1;
            let (m, v) = (
                self.first.get_mut(name).unwrap(),
                self.second.get_mut(name).unwrap(),
            );
            for j in 0..grad.len() {
                values[j] *= 1.0 - lr * weight_decay;
                m[j] = b1 * m[j] + (1.0 - b1) * grad[j];
                v[j] = b2 * v[j] + (1.0 - b2) * grad[j] * grad[j];
                values[j] -= lr / c1 * m[j] / ((v[j] / c2).sqrt() + eps);
            }
        }
    }
}
