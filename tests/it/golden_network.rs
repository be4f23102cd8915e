//! The CPU backend against numbers computed in float64 from the author's implementation: outputs,
//! gradients, trajectories.

use crate::common;

use common::place::reference;
use common::trajectory::{Trajectory, network, or_zeros};
use common::{nhwc, relative_error, tensor, wide};
use paragon::backend::cpu::{CpuBackend, CpuOptions, Isa};
use paragon::backend::{Backend, Scalars, read_floats, write_floats};
use paragon::model::{
    InferenceSpec, Network, Param, ParamTable, StepSpec, inference_plan, training_plan,
};
use paragon::plan::LossKind;
use safetensors::SafeTensors;

fn scalars() -> Scalars {
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

fn options(isa: Isa) -> CpuOptions {
    CpuOptions::new(2).with_isa(isa)
}

fn load(table: &ParamTable, file: &SafeTensors, prefix: &str) -> Vec<f32> {
    table
        .params
        .iter()
        .flat_map(|p| or_zeros(file, &format!("{prefix}{}", p.name), p))
        .map(|v| v as f32)
        .collect()
}

fn spec(batch: usize, lq: (usize, usize), losses: Vec<(LossKind, f32)>) -> StepSpec {
    StepSpec {
        float_input: true,
        input_gradient: true,
        ..StepSpec::new(batch, lq, losses)
    }
}

/// Compares outputs and gradients with those of golden files.
fn check_files(names: &[&str]) {
    for name in names {
        let Some(path) = reference("golden network", &format!("golden/{name}.safetensors")) else {
            continue;
        };
        let bytes = std::fs::read(path).unwrap();
        let golden = GoldenPass::new(name, &bytes);
        for isa in Isa::available() {
            golden.check_output(isa);
            golden.check_gradients(isa, LossKind::L1, false);
            golden.check_gradients(isa, LossKind::L1, true);
            golden.check_gradients(isa, LossKind::Charbonnier, false);
        }
    }
}

#[test]
fn outputs_and_gradients_match_the_golden_files() {
    check_files(&[
        "realtime_x2_1x33x17",
        "realtime_x2_2x20x28",
        "realtime_x4_1x33x17",
        "realtime_x4_2x20x28",
        "stream_x2_2x20x28",
        "stream_x4_2x20x28",
        "compact_x1_1x20x17",
        "compact_x2_2x18x20",
        "compact_x4_1x16x20",
        "span_x2_1x18x20",
        "span_x4_1x16x12",
    ]);
}

#[test]
fn outputs_and_gradients_of_attention_match_the_golden_files() {
    check_files(&["photo_x2_2x24x20", "pro_x2_1x24x20"]);
}

/// One golden forward and backward pass.
struct GoldenPass<'a> {
    name: &'a str,
    file: SafeTensors<'a>,
    net: Network,
    table: ParamTable,
    params: Vec<f32>,
    /// `[N, 3, h, w]` and `[N, 3, H, W]`
    lq: [usize; 4],
    hr: [usize; 4],
    input: Vec<f32>,
    target: Vec<f32>,
}

impl<'a> GoldenPass<'a> {
    fn new(name: &'a str, bytes: &'a [u8]) -> GoldenPass<'a> {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let config = serde_json::to_value(header.metadata()).unwrap();
        let file = SafeTensors::deserialize(bytes).unwrap();
        let net = network(&config);
        let table = net.params();
        let params = load(&table, &file, "param.");
        let shape = |name: &str| -> [usize; 4] {
            let tensor = file.tensor(name).unwrap();
            tensor.shape().try_into().unwrap()
        };
        let (lq, hr) = (shape("input"), shape("target"));
        let (input, target) = (
            nhwc(&tensor(&file, "input"), lq),
            nhwc(&tensor(&file, "target"), hr),
        );
        GoldenPass {
            name,
            file,
            net,
            table,
            params,
            lq,
            hr,
            input,
            target,
        }
    }

    fn check_output(&self, isa: Isa) {
        let name = self.name;
        let [batch, _, h, w] = self.lq;
        let inference = InferenceSpec {
            batch,
            lq: (h, w),
            float_input: true,
        };
        let plan = inference_plan(&self.net, &inference, &options(isa)).unwrap();
        let ports = plan.ports;
        let mut backend = CpuBackend::new(plan, options(isa)).unwrap();
        write_floats(&mut backend, ports.parameters.unwrap(), &self.params).unwrap();
        write_floats(&mut backend, ports.input.unwrap(), &self.input).unwrap();
        backend.micro_step(&scalars()).unwrap();
        let mut output = vec![0.0; self.target.len()];
        read_floats(&mut backend, ports.output.unwrap(), &mut output).unwrap();
        let expected = nhwc(&tensor(&self.file, "output"), self.hr);
        let error = relative_error(wide(&output), wide(&expected));
        println!("{name} {isa}: output {error:.1e}");
        assert!(error < 1e-6, "{name} {isa}: output is {error:e} away");
    }

    fn check_gradients(&self, isa: Isa, kind: LossKind, direct: bool) {
        let name = self.name;
        let [n, _, h, w] = self.lq;
        let mut spec = spec(n, (h, w), vec![(kind, 1.0)]);
        spec.without_winograd = direct;
        let plan = training_plan(&self.net, &spec, &options(isa)).unwrap();
        let ports = plan.ports;
        let mut backend = CpuBackend::new(plan, options(isa)).unwrap();
        assert_eq!(backend.allocated(), backend.plan().arena_bytes);
        write_floats(&mut backend, ports.parameters.unwrap(), &self.params).unwrap();
        write_floats(&mut backend, ports.input.unwrap(), &self.input).unwrap();
        write_floats(&mut backend, ports.target.unwrap(), &self.target).unwrap();
        backend.micro_step(&scalars()).unwrap();
        let loss = backend.metrics().unwrap().loss;
        let loss_name = format!("loss.{}", kind.name());
        let expected = tensor(&self.file, &loss_name)[0];
        assert!(
            (loss - expected).abs() < 1e-6 * expected,
            "{name} {isa}: {loss_name} {loss} not {expected}"
        );
        if kind != LossKind::L1 {
            return;
        }
        let mut gradients = vec![0.0; self.table.trainable()];
        read_floats(&mut backend, ports.gradients.unwrap(), &mut gradients).unwrap();
        let mut worst = (0.0, String::new());
        // the same number is added to all scores of a pixel, so its gradient is 0 in exact arithmetic
        let compared = |p: &&Param| p.trainable && !p.name.ends_with("token_ca.k_proj.bias");
        for p in self.table.params.iter().filter(compared) {
            let ours = &gradients[p.range.offset..][..p.range.len];
            let expected = tensor(&self.file, &format!("grad.{}", p.name));
            let error = relative_error(wide(ours), expected);
            if error.is_nan() || error > worst.0 {
                worst = (error, p.name.clone());
            }
        }
        let mut d_input = vec![0.0; self.input.len()];
        for part in ports.input_gradients.into_iter().flatten() {
            let mut values = vec![0.0; self.input.len()];
            read_floats(&mut backend, part, &mut values).unwrap();
            d_input.iter_mut().zip(&values).for_each(|(d, v)| *d += v);
        }
        let expected = nhwc(&tensor(&self.file, "grad_input"), self.lq);
        let error = relative_error(wide(&d_input), wide(&expected));
        println!(
            "{name} {isa} direct {direct}: worst gradient {:.1e} ({}), input gradient {error:.1e}",
            worst.0, worst.1
        );
        // a network of many layers of Winograd's form has larger rounding errors
        let deep = !self.net.arch.starts_with("paragonsr2");
        let most = if deep && !direct { 2e-5 } else { 1e-5 };
        assert!(
            worst.0 < most,
            "{name} {isa}: the gradient of {} is {:e} away",
            worst.1,
            worst.0
        );
        assert!(
            error < most,
            "{name} {isa}: the input gradient is {error:e} away"
        );
    }
}

#[test]
fn trajectories_of_attention_match_the_golden_files() {
    follow(&["train_photo_x2", "train_pro_x2"]);
}

#[test]
fn trajectories_match_the_golden_files() {
    // The gradient of L1 is a sign, and the float64 predictions come within 1.6e-9 of their targets
    // (iteration 15 of the first file). The signs agree in every iteration only if Reconstruct
    // subtracts exactly and the optimizer has no avoidable rounding.
    follow(&[
        "train_realtime_x2_first2",
        "train_realtime_x2_accum_first1",
        "train_realtime_x2_mssim_first1",
        "train_realtime_x2",
        "train_realtime_x2_accum",
        "train_realtime_x2_mssim",
        "train_stream_x2",
        "train_compact_x2",
        "train_span_x2",
    ]);
}

/// Trains as golden files were trained, and compares losses and parameters.
fn follow(names: &[&str]) {
    for name in names {
        let Some(path) = reference("golden trajectories", &format!("golden/{name}.safetensors"))
        else {
            continue;
        };
        let golden = Trajectory::read(&path);
        for (isa, direct) in Isa::available()
            .into_iter()
            .flat_map(|isa| [(isa, false), (isa, true)])
        {
            let options = options(isa);
            let plan = training_plan(
                &golden.net,
                &StepSpec {
                    without_winograd: direct,
                    ..golden.spec()
                },
                &options,
            )
            .unwrap();
            let ports = plan.ports;
            // In iteration 4 of Pro a float64 prediction comes within 9.6e-9 of its target, less than
            // f32 resolves: the sign of one value of the gradient, and with it a thousandth of the
            // gradient's norm, is open there.
            let open_sign = *name == "train_pro_x2";
            if open_sign {
                let mut backend = CpuBackend::new(plan.clone(), options).unwrap();
                let worst = golden.run(&mut backend, 3);
                assert!(worst[0] < 1e-6 && worst[1] < 1e-5, "{name}: {worst:?}");
            }
            let mut backend = CpuBackend::new(plan, options).unwrap();
            let worst = golden.run(&mut backend, u64::MAX);
            println!(
                "{name} {isa} direct {direct}: worst relative error of loss {:.1e}, gradient norm {:.1e}, learning rate {:.1e}",
                worst[0], worst[1], worst[2]
            );
            let nano = golden.net.arch == "paragonsr2_realtime";
            let (most_loss, most_end) = match (nano, open_sign) {
                (true, _) => (1e-6, 1e-5),
                (_, false) => (1e-5, 1e-4),
                (_, true) => (1e-5, 2e-3),
            };
            let most_norm = if open_sign { 2e-3 } else { 1e-5 };
            assert!(
                worst[0] < most_loss && worst[1] < most_norm && worst[2] < 1e-12,
                "{name}: {worst:?}"
            );
            for (prefix, port) in [
                ("param_final.", ports.parameters),
                ("ema_final.", ports.ema),
            ] {
                if !golden.has_end() {
                    continue;
                }
                let worst = golden.final_error(&mut backend, prefix, port);
                println!("{name} {isa} direct {direct}: {prefix}* worst {worst:.1e}");
                assert!(worst < most_end, "{name}: {prefix}* is {worst:e} away");
            }
        }
    }
}
