//! A golden training trajectory: its batches, its expected values, and a function that runs it on
//! any backend.

use super::{relative_error, tensor, wide};
use paragon::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use paragon::model::{Init, Network, Param, ParamTable, StepSpec};
use paragon::plan::{BufferId, LossKind};
use paragon::train::{Decay, Schedule, ema_decay};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

/// One file of the golden set.
pub struct Trajectory {
    bytes: Vec<u8>,
    config: serde_json::Value,
    pub net: Network,
    table: ParamTable,
}

impl Trajectory {
    pub fn read(path: &Path) -> Trajectory {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let config = serde_json::from_str(&header.metadata().as_ref().unwrap()["config"]).unwrap();
        let net = network(&config);
        let table = net.params();
        Trajectory {
            bytes,
            config,
            net,
            table,
        }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap()
    }

    pub fn steps(&self) -> u64 {
        self.number("steps") as u64
    }

    pub fn spec(&self) -> StepSpec {
        let losses: BTreeMap<LossKind, f32> =
            serde_json::from_value(self.config["losses"].clone()).unwrap();
        let lq = self.number("lq_size") as usize;
        let betas = (
            self.config["betas"][0].as_f64().unwrap(),
            self.config["betas"][1].as_f64().unwrap(),
        );
        let published = StepSpec::new(
            self.number("batch") as usize,
            (lq, lq),
            losses.into_iter().collect(),
        );
        StepSpec {
            betas,
            weight_decay: self.number("weight_decay"),
            ..published
        }
    }

    /// Runs the first `most` iterations from the start values: worst relative errors of loss,
    /// gradient norm and learning rate.
    pub fn run(&self, backend: &mut dyn Backend, most: u64) -> [f64; 3] {
        let (file, accum) = (self.file(), self.number("accum_iter") as usize);
        let start: Vec<f32> = self
            .table
            .params
            .iter()
            .flat_map(|p| or_zeros(&file, &format!("param_init.{}", p.name), p))
            .map(|v| v as f32)
            .collect();
        let ports = backend.plan().ports;
        for port in [ports.parameters, ports.ema] {
            write_floats(backend, port.unwrap(), &start).unwrap();
        }
        let schedule = Schedule {
            base_lr: self.number("lr"),
            warmup: self.number("warmup_iter") as u64,
            decay: Decay::MultiStep {
                milestones: self.config["milestones"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|m| m.as_u64().unwrap())
                    .collect(),
                gamma: self.number("gamma"),
            },
        };
        let expected = [
            tensor(&file, "loss"),
            tensor(&file, "grad_norm"),
            tensor(&file, "lr"),
        ];
        let mut worst = [0f64; 3];
        for step in 1..=self.steps().min(most) {
            let lr = schedule.lr(step);
            let mut scalars = Scalars {
                lr,
                step,
                clip: self.config["grad_clip_max_norm"]
                    .as_f64()
                    .unwrap_or(f64::INFINITY),
                ema_decay: ema_decay(step, self.number("ema_decay"), self.number("ema_power")),
                micro_scale: 1.0 / accum as f32,
                loss_scale: 1.0,
                accumulate: false,
            };
            for micro in 0..accum {
                let i = (step as usize - 1) * accum + micro;
                let (lq, hr) = (
                    file.tensor(&format!("lq.{i}")).unwrap(),
                    file.tensor(&format!("hr.{i}")).unwrap(),
                );
                scalars.accumulate = micro > 0;
                let copied = backend
                    .stage(BatchView {
                        lq: lq.data(),
                        hr: hr.data(),
                        augment: &[],
                    })
                    .unwrap();
                backend.micro_step(&scalars).unwrap();
                drop(copied);
            }
            backend.update(&scalars).unwrap();
            let metrics = backend.metrics().unwrap();
            for (k, value) in [metrics.loss, metrics.grad_norm, lr]
                .into_iter()
                .enumerate()
            {
                let reference = expected[k][step as usize - 1];
                worst[k] = worse(worst[k], (value - reference).abs() / reference.abs());
            }
        }
        worst
    }

    /// Whether the file has the final parameters; a file that was cut to its first iterations does
    /// not.
    pub fn has_end(&self) -> bool {
        self.file()
            .names()
            .iter()
            .any(|name| name.starts_with("param_final."))
    }

    /// The worst relative error of a tensor of `prefix` (`param_final.`) after the whole
    /// trajectory.
    pub fn final_error(
        &self,
        backend: &mut dyn Backend,
        prefix: &str,
        port: Option<BufferId>,
    ) -> f64 {
        let file = self.file();
        let mut values = vec![0.0; self.table.len()];
        read_floats(backend, port.unwrap(), &mut values).unwrap();
        let stored = |p: &&Param| p.init != Init::Derived;
        let errors = self.table.params.iter().filter(stored).map(|p| {
            relative_error(
                wide(&values[p.range.offset..][..p.range.len]),
                tensor(&file, &format!("{prefix}{}", p.name)),
            )
        });
        errors.fold(0.0, worse)
    }
}

/// The network that the settings of a golden file describe: `arch`, `scale`, and `feat` and `conv`
/// if it has them.
pub fn network(config: &serde_json::Value) -> Network {
    let whole = |key: &str| {
        let value = &config[key];
        let text = value.as_str().and_then(|text| text.parse().ok());
        value.as_u64().or(text).map(|n| n as usize)
    };
    let arch = config["arch"].as_str().unwrap_or("nano");
    let arch = if arch == "realtime" { "nano" } else { arch };
    let mut net = Network::new(arch, whole("scale").unwrap_or(2)).unwrap();
    for (key, names) in [
        ("feat", &["num_feat", "feature_channels"][..]),
        ("conv", &["num_conv"]),
    ] {
        let known = names.iter().find(|name| net.spec(name).is_ok());
        if let (Some(value), Some(name)) = (whole(key), known) {
            net.set(name, value).unwrap();
        }
    }
    net
}

/// A tensor of a golden file; zeros for a tensor that is computed from others.
pub fn or_zeros(file: &SafeTensors, name: &str, p: &Param) -> Vec<f64> {
    if p.init == Init::Derived {
        vec![0.0; p.range.len]
    } else {
        tensor(file, name)
    }
}

/// The larger value; NaN counts as larger than any number.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}
