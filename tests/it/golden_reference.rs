//! Proves the f64 reference networks on the tape (Nano, Stream, Photo, Pro, Compact, SPAN): by
//! finite differences, by the hand-written Nano, and by the golden files, where these are at hand.

use crate::reference;

use reference::differences::check;
use reference::golden::{self, relative_error};
use reference::networks::span::{MEANS, RANGE};
use reference::networks::span_compose::{Conv3xc, compose_all};
use reference::networks::{Architecture, CompactActivation, PlainNetwork, Sizes, SpanForm};
use reference::plain::Activation;
use reference::tensor::Tensor;
use reference::training::Training;
use reference::{Loss, Parameters, Reference, trainable};
use std::collections::BTreeMap;

/// The loss of an output in `[N, C, H, W]`.
fn loss_of<'a>(loss: Loss, target: &'a Tensor) -> impl Fn(&Tensor) -> (f64, Tensor) + 'a {
    move |output| {
        assert_eq!(output.shape, target.shape);
        let (value, grad) = loss.evaluate(&output.data, &target.data);
        (value, output.with(grad))
    }
}

const COMPACT: Architecture = Architecture::Compact {
    activation: CompactActivation::Prelu,
};

fn photo(window: usize) -> Architecture {
    Architecture::Photo { alpha: 0.4, window }
}

fn pro(window: usize) -> Architecture {
    Architecture::Pro { alpha: 0.4, window }
}

/// Whether the gradient of a parameter of Pro is zero but for rounding: the bias of the keys adds the
/// same number to all scores of a query, which does not change their softmax.
fn without_effect(name: &str) -> bool {
    name.ends_with(".token_ca.k_proj.bias")
}

fn span(norm: bool, form: SpanForm) -> Architecture {
    Architecture::Span { norm, form }
}

#[test]
fn gradients_of_networks_match_finite_differences() {
    let fixed = |activation| Architecture::Compact {
        activation: CompactActivation::Fixed(activation),
    };
    for (architecture, scale, features, input) in [
        (Architecture::Nano { alpha: 0.3 }, 2, 4, [1, 3, 4, 5]),
        (Architecture::Stream { alpha: 0.0 }, 2, 4, [1, 3, 5, 4]),
        (Architecture::Stream { alpha: 0.2 }, 3, 3, [2, 3, 3, 2]),
        (photo(4), 2, 8, [1, 3, 5, 6]),
        (photo(2), 3, 8, [2, 3, 3, 2]),
        (pro(4), 2, 4, [1, 3, 5, 3]),
        (pro(2), 1, 8, [2, 3, 2, 3]),
        (COMPACT, 1, 4, [1, 3, 4, 5]),
        (COMPACT, 2, 3, [2, 3, 3, 4]),
        (fixed(Activation::Relu), 3, 4, [1, 3, 3, 4]),
        (fixed(Activation::LeakyRelu(0.1)), 2, 4, [1, 3, 3, 4]),
        (span(false, SpanForm::Expanded), 2, 3, [1, 3, 3, 4]),
        (span(false, SpanForm::Composed), 4, 3, [1, 3, 3, 2]),
        (span(false, SpanForm::Composed), 1, 3, [1, 3, 3, 4]),
    ] {
        let sizes = Sizes {
            scale,
            features,
            blocks: 2,
            groups: 2,
        };
        let what = format!("{architecture:?} x{scale}");
        let network = PlainNetwork::random(architecture, sizes, 3);
        let input = Tensor::random(&input, 0.0, 1.0, 4);
        let output = network.forward(&input);
        let [n, _, h, w] = input.nchw();
        assert_eq!(output.shape, [n, 3, h * scale, w * scale]);
        let target = Tensor::random(&output.shape, 0.0, 1.0, 5);
        let loss = loss_of(Loss::Mse, &target);
        let got = network.gradients(&input, &loss);
        assert_eq!(got.output, output);
        let names: Vec<&String> = network.params.keys().filter(|n| trainable(n)).collect();
        assert_eq!(got.params.keys().collect::<Vec<_>>(), names, "{what}");
        let (noise, names): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| without_effect(name));
        for name in noise {
            let (_, grad) = &got.params[name];
            assert!(grad.iter().all(|g| g.abs() < 1e-15), "{name}: {grad:?}");
        }

        let of = |params: &Parameters, name: &str| {
            let (shape, values) = &params[name];
            Tensor::new(shape, values.clone())
        };
        let mut point: Vec<Tensor> = names.iter().map(|n| of(&network.params, n)).collect();
        let mut grads: Vec<Tensor> = names.iter().map(|n| of(&got.params, n)).collect();
        point.push(input);
        grads.push(got.input);
        let error = check(&what, &point, &grads, 97, |point| {
            let mut moved = network.clone();
            for (name, value) in names.iter().zip(point) {
                moved.params.get_mut(*name).unwrap().1 = value.data.clone();
            }
            loss(&moved.forward(&point[names.len()])).0
        });
        println!("{what}: largest difference {error:.1e} of a gradient's largest value");
    }
}

/// The largest relative error of a gradient, with its name. Gradients that are rounding noise are
/// left out.
fn worst_gradient(got: &Parameters, expected: impl Fn(&str) -> Vec<f64>) -> (f64, &str) {
    let compared = got.iter().filter(|(name, _)| !without_effect(name));
    let errors = compared.map(|(name, (_, values))| {
        let error = relative_error(values, &expected(name));
        assert!(error.is_finite(), "{name}");
        (error, name.as_str())
    });
    errors.fold((0.0, ""), |a, b| if b.0 > a.0 { b } else { a })
}

#[test]
fn nano_on_the_tape_equals_nano_with_a_backward_by_hand() {
    for (scale, alpha, [n, h, w]) in [(2, 0.3, [2, 5, 6]), (3, 0.0, [1, 4, 3])] {
        let by_hand = Reference::sized(scale, 4, 2, alpha, 7);
        let network = PlainNetwork {
            architecture: Architecture::Nano { alpha },
            scale,
            params: by_hand.params.clone(),
        };
        let input = Tensor::random(&[n, 3, h, w], 0.0, 1.0, 1);
        let target = Tensor::random(&[n, 3, h * scale, w * scale], 0.0, 1.0, 2);
        let expected = by_hand.gradients(&input.to_nhwc(), &target.to_nhwc(), n, h, w, Loss::Mse);
        let got = network.gradients(&input, loss_of(Loss::Mse, &target));
        let worst = worst_gradient(&got.params, |name| expected.params[name].clone());
        let errors = [
            relative_error(&got.output.to_nhwc(), &expected.output),
            relative_error(&got.input.to_nhwc(), &expected.input),
            (got.loss - expected.loss).abs() / expected.loss,
            worst.0,
        ];
        println!("x{scale}: output, input gradient, loss, worst gradient {errors:?}");
        assert!(errors.iter().all(|&error| error < 1e-13), "{errors:?}");
    }
}

#[test]
fn both_forms_of_span_give_the_same_output_and_gradients() {
    let sizes = Sizes {
        scale: 2,
        features: 6,
        blocks: 6,
        groups: 1,
    };
    let input = Tensor::random(&[2, 3, 4, 5], 0.0, 1.0, 1);
    let target = Tensor::random(&[2, 3, 8, 10], 0.0, 1.0, 2);
    let [expanded, composed] = [SpanForm::Expanded, SpanForm::Composed].map(|form| {
        let network = PlainNetwork::random(span(false, form), sizes, 3);
        network.gradients(&input, loss_of(Loss::Mse, &target))
    });
    let worst = worst_gradient(&composed.params, |name| expanded.params[name].1.clone());
    let errors = [
        relative_error(&composed.output.data, &expanded.output.data),
        relative_error(&composed.input.data, &expanded.input.data),
        worst.0,
    ];
    println!("output, input gradient, worst gradient {errors:?}");
    assert!(errors.iter().all(|&error| error < 1e-12), "{errors:?}");
}

#[test]
fn norm_of_span_is_a_change_of_its_input() {
    let sizes = Sizes {
        scale: 1,
        features: 4,
        blocks: 6,
        groups: 1,
    };
    // after the change the values are in 0..1, as they are without `norm`
    let changed = Tensor::random(&[1, 3, 3, 4], 0.0, 1.0, 1);
    let mut input = changed.clone();
    for (i, value) in input.data.iter_mut().enumerate() {
        *value = *value / RANGE + MEANS[i / 12];
    }
    let target = Tensor::random(&[1, 3, 3, 4], 0.0, 1.0, 2);
    let gradients = |norm, input| {
        let network = PlainNetwork::random(span(norm, SpanForm::Composed), sizes, 3);
        network.gradients(input, loss_of(Loss::Mse, &target))
    };
    let (with, without) = (gradients(true, &input), gradients(false, &changed));
    let worst = worst_gradient(&with.params, |name| without.params[name].1.clone());
    let errors = [
        relative_error(&with.output.data, &without.output.data),
        relative_error(&with.input.data, &without.input.map(|g| g * RANGE).data),
        worst.0,
    ];
    println!("output, input gradient, worst gradient {errors:?}");
    assert!(errors.iter().all(|&error| error < 1e-11), "{errors:?}");
}

/// The sizes of a golden file's network.
fn sizes_of(arch: &str, scale: usize, settings: &BTreeMap<String, usize>) -> Sizes {
    let [features, blocks, groups] = match arch {
        "paragonsr2_realtime" => [16, 3, 1],
        "paragonsr2_stream" => [32, 3, 2],
        "paragonsr2_photo" => [64, 4, 4],
        "paragonsr2_pro" => [64, 6, 6],
        "compact" => [settings["feat"], settings["conv"], 0],
        _ => [settings["feat"], 6, 0],
    };
    Sizes {
        scale,
        features,
        blocks,
        groups,
    }
}

/// Names and shapes of the trainable parameters.
fn shapes(params: &Parameters) -> Vec<(&str, &[usize])> {
    let trained = params.iter().filter(|(name, _)| trainable(name));
    trained
        .map(|(name, (shape, _))| (name.as_str(), &shape[..]))
        .collect()
}

/// How far a loss may be from a golden one. The author's networks round some values to f32, also in
/// a network of float64; a reference that rounds there too would have no finite differences. Stream
/// rounds the factors and the product of its gate, which moves the loss by up to 3e-12 (a reference
/// that does the same comes within 1e-14). Photo and Pro differ by up to 8e-10; their RMSNorm takes
/// the root in f32, and this alone moves the loss by 5e-10.
fn loss_limit(arch: &str) -> f64 {
    match arch {
        "paragonsr2_stream" => 1e-11,
        "paragonsr2_photo" | "paragonsr2_pro" => 1e-8,
        _ => 1e-13,
    }
}

/// Compares one pass of the reference with the golden file `name`.
fn agrees(name: &str, form: SpanForm) {
    let Some(golden) = golden::Network::open("golden reference", name) else {
        return;
    };
    let network = golden.plain(form);
    let sizes = sizes_of(&golden.arch, golden.scale, &golden.settings);
    let twin = PlainNetwork::random(network.architecture, sizes, 1);
    assert_eq!(shapes(&golden.params), shapes(&twin.params), "{name}");
    assert_eq!(shapes(&golden.grads), shapes(&twin.params), "{name}");

    let got = network.gradients(&golden.input, loss_of(Loss::L1, &golden.target));
    assert_eq!(shapes(&got.params), shapes(&golden.grads), "{name}");
    let charbonnier = Loss::Charbonnier
        .evaluate(&got.output.data, &golden.target.data)
        .0;
    let worst = worst_gradient(&got.params, |name| golden.grads[name].1.clone());
    let errors = [
        relative_error(&got.output.data, &golden.output.data),
        relative_error(&got.input.data, &golden.d_input.data),
        (got.loss - golden.loss_l1).abs() / golden.loss_l1,
        (charbonnier - golden.loss_charbonnier).abs() / golden.loss_charbonnier,
        worst.0,
    ];
    println!(
        "{name} {form:?}: output {:.1e}, input gradient {:.1e}, L1 {:.1e}, Charbonnier {:.1e}, \
         worst gradient {:.1e} ({})",
        errors[0], errors[1], errors[2], errors[3], errors[4], worst.1
    );
    // The files round all but the losses to f32, an error of 3e-8 for a tensor of ordinary values.
    assert!(
        errors.iter().all(|&error| error < 1e-7),
        "{name}: {errors:?}"
    );
    let limit = loss_limit(&golden.arch);
    assert!(errors[2] < limit && errors[3] < limit, "{name}: {errors:?}");
}

#[test]
fn nano_agrees_with_golden_files() {
    agrees("realtime_x2_1x33x17", SpanForm::Composed);
}

#[test]
fn stream_agrees_with_golden_files() {
    for name in ["stream_x2_2x20x28", "stream_x4_2x20x28"] {
        agrees(name, SpanForm::Composed);
    }
}

#[test]
fn photo_agrees_with_a_golden_file() {
    agrees("photo_x2_2x24x20", SpanForm::Composed);
}

#[test]
fn pro_agrees_with_a_golden_file() {
    agrees("pro_x2_1x24x20", SpanForm::Composed);
}

#[test]
fn compact_agrees_with_golden_files() {
    for name in [
        "compact_x1_1x20x17",
        "compact_x2_2x18x20",
        "compact_x4_1x16x20",
    ] {
        agrees(name, SpanForm::Composed);
    }
}

const SPAN_FILES: [&str; 2] = ["span_x2_1x18x20", "span_x4_1x16x12"];

#[test]
fn span_in_its_composed_form_agrees_with_golden_files() {
    for name in SPAN_FILES {
        agrees(name, SpanForm::Composed);
    }
}

#[test]
fn span_in_its_expanded_form_agrees_with_golden_files() {
    for name in SPAN_FILES {
        agrees(name, SpanForm::Expanded);
    }
}

#[test]
fn composed_convolutions_agree_with_eval_conv_of_golden_files() {
    for name in SPAN_FILES {
        let Some(golden) = golden::Network::open("composed convolutions", name) else {
            continue;
        };
        let composed = compose_all(&golden.plain(SpanForm::Expanded).params);
        let stored = golden.params;
        let mut worst = (0f64, String::new());
        let mut count = 0;
        for (name, (shape, expected)) in &stored {
            if !name.contains(".eval_conv.") {
                continue;
            }
            count += 1;
            assert_eq!(&composed[name].0, shape, "{name}");
            let error = relative_error(&composed[name].1, expected);
            if error > worst.0 {
                worst = (error, name.clone());
            }
        }
        println!("{name}: {count} tensors, worst {worst:?}");
        assert_eq!(count, 40);
        assert!(worst.0 < 1e-7, "{worst:?}");
        // one of them by hand: the composition of a single module
        let one = Conv3xc::read(&stored, "block_3.c2_r").compose();
        assert_eq!(one.weight.data, composed["block_3.c2_r.eval_conv.weight"].1);
    }
}

/// Trains the reference on the batches of a golden training and compares every iteration, the final
/// parameters and their EMA.
fn follow(name: &str, form: SpanForm) {
    let Some(golden) = golden::TrainingRun::open("golden reference trainings", name) else {
        return;
    };
    assert_eq!(golden.losses.keys().collect::<Vec<_>>(), ["l1"]);
    assert_eq!(golden.losses["l1"], 1.0);
    let lq = [golden.batch, golden.lq_size, golden.lq_size];
    let network = golden.plain(form);
    let sizes = sizes_of(&golden.arch, golden.scale, &golden.settings);
    let twin = PlainNetwork::random(network.architecture, sizes, 1);
    for params in [&golden.start, &golden.final_params, &golden.final_ema] {
        assert_eq!(shapes(params), shapes(&twin.params), "{name}");
    }
    let mut training = Training::new(network, golden.recipe.clone());
    let mut worst = [0f64; 3];
    assert_eq!(golden.batches.len(), golden.steps * golden.accum_iter);
    for (step, batches) in golden.batches.chunks(golden.accum_iter).enumerate() {
        assert!(batches.iter().all(|batch| batch.size == lq));
        let batches: Vec<_> = batches.iter().map(|batch| batch.floats()).collect();
        let report =
            training.step_with(&batches, |output, target| Loss::L1.evaluate(output, target));
        for (slot, (got, expected)) in [
            (report.loss, golden.loss[step]),
            (report.grad_norm, golden.grad_norm[step]),
            (report.lr, golden.lr[step]),
        ]
        .into_iter()
        .enumerate()
        {
            worst[slot] = worst[slot].max((got - expected).abs() / expected);
        }
    }
    let mut finals = [0f64; 2];
    for (slot, expected) in [&golden.final_params, &golden.final_ema]
        .into_iter()
        .enumerate()
    {
        let compared = |name: &str| trainable(name) && !without_effect(name);
        for (name, (_, expected)) in expected.iter().filter(|(name, _)| compared(name)) {
            let got = if slot == 0 {
                training.network.param(name)
            } else {
                &training.ema[name]
            };
            finals[slot] = finals[slot].max(relative_error(got, expected));
        }
    }
    println!(
        "{name} {form:?}: loss {:.1e}, gradient norm {:.1e}, lr {:.1e}, final parameters {:.1e}, \
         EMA {:.1e}",
        worst[0], worst[1], worst[2], finals[0], finals[1]
    );
    let limit = loss_limit(&golden.arch);
    assert!(
        worst.iter().all(|&error| error < limit),
        "{name}: {worst:?}"
    );
    assert!(
        finals.iter().all(|&error| error < 1e-7),
        "{name}: {finals:?}"
    );
}

#[test]
fn stream_follows_its_golden_training() {
    follow("train_stream_x2", SpanForm::Composed);
}

#[test]
fn photo_follows_its_golden_training() {
    follow("train_photo_x2", SpanForm::Composed);
}

#[test]
fn pro_follows_its_golden_training() {
    follow("train_pro_x2", SpanForm::Composed);
}

#[test]
fn compact_follows_its_golden_training() {
    follow("train_compact_x2", SpanForm::Composed);
}

#[test]
fn span_follows_its_golden_training() {
    follow("train_span_x2", SpanForm::Composed);
}
