//! Reads the golden files (safetensors computed in float64 elsewhere) for tests. Depends on
//! `safetensors` and on where reference data lies.
//!
//! `golden/<network>_x<scale>_<N>x<H>x<W>.safetensors` is one forward and backward pass, see
//! [`Network`]; `golden/train_<network>_x<scale>.safetensors` is a training, see [`TrainingRun`].

use crate::common::place;

use super::networks::{Architecture, CompactActivation, PlainNetwork, SpanForm};
use super::tensor::Tensor;
use super::training::{Batch, Recipe, Schedule};
use super::{Parameters, trainable};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};

/// One golden file, in memory.
pub struct Golden {
    bytes: Vec<u8>,
    pub metadata: HashMap<String, String>,
}

/// Opens `golden/<file>`, or says why `test` is skipped.
pub fn open(test: &str, file: &str) -> Option<Golden> {
    let bytes = std::fs::read(place::reference(test, &format!("golden/{file}"))?)
        .expect("a file that can be read");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let metadata = header.metadata().clone().unwrap_or_default();
    Some(Golden { bytes, metadata })
}

impl Golden {
    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a safetensors file")
    }

    /// Shape and values of a tensor (F64, F32 or U8), in file order.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => data
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64)
                .collect(),
            Dtype::U8 => data.iter().map(|b| *b as f64).collect(),
            other => panic!("{name}: unexpected type {other:?}"),
        };
        (view.shape().to_vec(), values)
    }

    /// An NCHW tensor as (n, h, w, NHWC values).
    pub fn picture(&self, name: &str) -> (usize, usize, usize, Vec<f64>) {
        let (shape, values) = self.tensor(name);
        let [n, c, h, w] = shape[..] else {
            panic!("{name}: not NCHW: {shape:?}")
        };
        let mut out = Vec::with_capacity(values.len());
        for b in 0..n {
            for pixel in 0..h * w {
                out.extend((0..c).map(|ch| values[(b * c + ch) * h * w + pixel]));
            }
        }
        (n, h, w, out)
    }

    /// Every tensor whose name begins with `prefix`, without the prefix.
    pub fn parameters(&self, prefix: &str) -> Parameters {
        let tensors = self.tensors();
        let names = tensors
            .names()
            .into_iter()
            .filter_map(|name| name.strip_prefix(prefix).map(|short| (name, short)));
        names
            .map(|(name, short)| (short.to_string(), self.tensor(name)))
            .collect()
    }

    /// The training configuration in the metadata.
    pub fn config(&self) -> serde_json::Value {
        serde_json::from_str(&self.metadata["config"]).expect("JSON under `config`")
    }
}

/// One golden forward and backward pass. The file's tensors, all F32 but the losses (F64):
/// `param.*`, `input`, `target`, `output`, `loss.l1`, `loss.charbonnier`, and of the L1 loss
/// `grad.*` and `grad_input`. Its metadata has `arch`, `scale` and, where they are not fixed by
/// `arch`, the sizes `feat` (Compact, SPAN) and `conv` (Compact: convolutions between the first and
/// the last).
///
/// Shapes: `input` and `d_input` are `[N, 3, H, W]`, `target` and `output`
/// `[N, 3, H * scale, W * scale]`.
pub struct Network {
    pub arch: String,
    pub scale: usize,
    /// The metadata beside `arch` and `scale`: `feat`, `conv`.
    pub settings: BTreeMap<String, usize>,
    /// By state_dict name, with those that are not trained: `base.*` (ParagonSR2),
    /// `*.eval_conv.*` and `no_norm` (SPAN).
    pub params: Parameters,
    pub input: Tensor,
    pub target: Tensor,
    pub output: Tensor,
    /// Means over every value: |p - t|, and sqrt((p - t)^2 + 1e-12).
    pub loss_l1: f64,
    pub loss_charbonnier: f64,
    /// The gradient of the L1 loss with respect to every trainable parameter.
    pub grads: Parameters,
    /// The same with respect to the input.
    pub d_input: Tensor,
}

impl Network {
    /// Reads `golden/<name>.safetensors`, or prints why `test` is skipped.
    pub fn open(test: &str, name: &str) -> Option<Network> {
        let file = open(test, &format!("{name}.safetensors"))?;
        let tensor = |name: &str| {
            let (shape, values) = file.tensor(name);
            Tensor::new(&shape, values)
        };
        let numbers = file.metadata.iter();
        let mut settings: BTreeMap<String, usize> = numbers
            .filter_map(|(key, value)| Some((key.clone(), value.parse().ok()?)))
            .collect();
        Some(Network {
            arch: file.metadata["arch"].clone(),
            scale: settings.remove("scale").expect("`scale` in the metadata"),
            settings,
            params: file.parameters("param."),
            input: tensor("input"),
            target: tensor("target"),
            output: tensor("output"),
            loss_l1: file.tensor("loss.l1").1[0],
            loss_charbonnier: file.tensor("loss.charbonnier").1[0],
            grads: file.parameters("grad."),
            d_input: tensor("grad_input"),
        })
    }

    /// The reference network with the parameters of the file.
    pub fn plain(&self, form: SpanForm) -> PlainNetwork {
        plain_network(&self.arch, self.scale, &self.params, form)
    }
}

/// One micro-batch as a file stores it: bytes in `[N, H, W, 3]`, of which 255 is 1.0.
pub struct ByteBatch {
    /// `[N, H, W]` of `lq`; `hr` has `scale` times the rows and columns.
    pub size: [usize; 3],
    pub lq: Vec<u8>,
    pub hr: Vec<u8>,
}

impl ByteBatch {
    pub fn floats(&self) -> Batch {
        let unit = |bytes: &[u8]| bytes.iter().map(|&b| f64::from(b) / 255.0).collect();
        let [n, h, w] = self.size;
        Batch {
            n,
            h,
            w,
            input: unit(&self.lq),
            target: unit(&self.hr),
        }
    }
}

/// A golden training with AdamW. The file's tensors: `param_init.*` (F32), the micro-batches `lq.i`
/// and `hr.i` (U8) in the order of their use, for every iteration `loss`, `grad_norm` and `lr`
/// (F64), then `param_final.*` and `ema_final.*` (F32). Its metadata has `config`, a JSON object
/// with the keys `arch`, `scale`, `batch`, `lq_size`, `steps`, `accum_iter`, `losses`, `feat`,
/// `conv` and those that [`recipe_of`] reads.
///
/// The files beside those of Nano train with L1 alone, accum_iter 1, a constant learning rate
/// without warm-up, no clipping, betas (0.9, 0.99), eps 1e-8, weight decay 1e-4 on every parameter,
/// and an EMA of decay 0.999 with power 0.75:
///
/// | file | sizes | iterations | learning rate | batch | LQ |
/// |---|---|---|---|---|---|
/// | `train_stream_x2` | F 32, 2 groups of 3 blocks, alpha 0 | 10 | 1e-3 | 1 | 32 |
/// | `train_photo_x2` | F 64, 4 groups of 4 blocks, alpha 0.4, window 16 | 6 | 5e-4 | 1 | 32 |
/// | `train_pro_x2` | F 64, 6 groups of 6 blocks, alpha 0.4, window 16 | 4 | 5e-4 | 1 | 32 |
/// | `train_compact_x2` | `feat` 24, `conv` 4, PReLU | 10 | 5e-4 | 2 | 24 |
/// | `train_span_x2` | `feat` 32, no `norm` | 10 | 5e-4 | 1 | 24 |
///
/// SPAN is trained in its expanded form: `grad_norm`, moments, decay and EMA are those of the eight
/// tensors of each `Conv3XC`. Its `param_init.*` has `no_norm`, `param_final.*` and `ema_final.*`
/// do not, and none has `eval_conv`. The lists of ParagonSR2 have the fixed `base.*`.
///
/// A test of a training step opens a run, writes `start` into its parameters and their EMA, and for
/// every chunk of `accum_iter` batches runs the micro-batches and the update with the learning rate
/// `recipe.lr_at(iteration)` and the EMA weight `recipe.ema_at(iteration)`, both counted from 1.
/// Then loss and gradient norm must be `loss[i]` and `grad_norm[i]`, and at the end parameters and
/// EMA those of `final_params` and `final_ema`.
pub struct TrainingRun {
    pub arch: String,
    pub scale: usize,
    /// Images in a micro-batch, and the rows and columns of their LQ patches.
    pub batch: usize,
    pub lq_size: usize,
    pub steps: usize,
    /// Micro-batches in an iteration.
    pub accum_iter: usize,
    /// Name and weight: `l1`, `mssim`.
    pub losses: BTreeMap<String, f64>,
    pub recipe: Recipe,
    /// The sizes in `config` that are not fixed by `arch`: `feat`, `conv`.
    pub settings: BTreeMap<String, usize>,
    pub start: Parameters,
    /// `steps * accum_iter` of them.
    pub batches: Vec<ByteBatch>,
    /// The mean of the micro-batches' losses, for every iteration.
    pub loss: Vec<f64>,
    /// The norm of the whole gradient before clipping, for every iteration.
    pub grad_norm: Vec<f64>,
    pub lr: Vec<f64>,
    /// After the last iteration. Empty in a file that was cut to its first iterations.
    pub final_params: Parameters,
    pub final_ema: Parameters,
}

impl TrainingRun {
    /// Reads `golden/<name>.safetensors`, or prints why `test` is skipped.
    pub fn open(test: &str, name: &str) -> Option<TrainingRun> {
        let file = open(test, &format!("{name}.safetensors"))?;
        let config = file.config();
        let count = |key: &str| config[key].as_u64().expect(key) as usize;
        let bytes = |name: String| {
            let (shape, values) = file.tensor(&name);
            (shape, values.iter().map(|&v| v as u8).collect())
        };
        let (steps, accum_iter) = (count("steps"), count("accum_iter"));
        let batches = (0..steps * accum_iter).map(|i| {
            let (shape, lq) = bytes(format!("lq.{i}"));
            ByteBatch {
                size: [shape[0], shape[1], shape[2]],
                lq,
                hr: bytes(format!("hr.{i}")).1,
            }
        });
        Some(TrainingRun {
            arch: config["arch"].as_str().expect("arch").to_string(),
            scale: count("scale"),
            batch: count("batch"),
            lq_size: count("lq_size"),
            steps,
            accum_iter,
            losses: serde_json::from_value(config["losses"].clone()).expect("losses"),
            recipe: recipe_of(&config),
            start: file.parameters("param_init."),
            batches: batches.collect(),
            loss: file.tensor("loss").1,
            grad_norm: file.tensor("grad_norm").1,
            lr: file.tensor("lr").1,
            final_params: file.parameters("param_final."),
            final_ema: file.parameters("ema_final."),
            settings: ["feat", "conv"]
                .into_iter()
                .filter_map(|key| Some((key.to_string(), config[key].as_u64()? as usize)))
                .collect(),
        })
    }

    /// The reference network with the start values.
    pub fn plain(&self, form: SpanForm) -> PlainNetwork {
        plain_network(&self.arch, self.scale, &self.start, form)
    }
}

/// The optimizer's settings in the configuration of a golden training.
pub fn recipe_of(config: &serde_json::Value) -> Recipe {
    let number = |key: &str| {
        config[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} in the configuration"))
    };
    let count = |value: &serde_json::Value| value.as_u64().expect("a count") as usize;
    Recipe {
        lr: number("lr"),
        betas: (
            config["betas"][0].as_f64().unwrap(),
            config["betas"][1].as_f64().unwrap(),
        ),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        warmup: count(&config["warmup_iter"]),
        schedule: Schedule::MultiStep {
            milestones: config["milestones"]
                .as_array()
                .unwrap()
                .iter()
                .map(count)
                .collect(),
            gamma: number("gamma"),
        },
        clip: config["grad_clip_max_norm"].as_f64(),
        ema_decay: number("ema_decay"),
        ema_power: number("ema_power"),
    }
}

/// The reference network that a golden file describes, with its trainable parameters.
fn plain_network(arch: &str, scale: usize, params: &Parameters, form: SpanForm) -> PlainNetwork {
    let architecture = match arch {
        "paragonsr2_realtime" => Architecture::Nano { alpha: 0.3 },
        "paragonsr2_stream" => Architecture::Stream { alpha: 0.0 },
        "paragonsr2_photo" => Architecture::Photo {
            alpha: 0.4,
            window: 16,
        },
        "paragonsr2_pro" => Architecture::Pro {
            alpha: 0.4,
            window: 16,
        },
        "compact" => Architecture::Compact {
            activation: CompactActivation::Prelu,
        },
        "span" => Architecture::Span {
            norm: !params.contains_key("no_norm"),
            form,
        },
        other => panic!("there is no reference of {other}"),
    };
    let params = params.clone().into_iter();
    PlainNetwork {
        architecture,
        scale,
        params: params.filter(|(name, _)| trainable(name)).collect(),
    }
}

/// ||a - b|| / ||b||
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    difference / square(&mut b.iter().copied()).max(1e-300)
}
