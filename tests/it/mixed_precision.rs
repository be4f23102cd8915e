//! bf16 products on the CPU: a network learns as it does in f32, on every unit of this processor,
//! and the command line says which unit is used.

use crate::cli_common;

use cli_common::run;
use paragon::backend::cpu::{Bf16Unit, CpuBackend, CpuOptions, Isa, Products};
use paragon::backend::{Backend, Scalars, read_floats, write_floats};
use paragon::model::{InferenceSpec, Network, Setting, StepSpec, inference_plan, training_plan};
use paragon::plan::{LossKind, Precision};
use paragon::support::rng::mix;

/// LQ pixels of a side, and patches.
const SIDE: usize = 12;
const PATCHES: usize = 2;

/// A small Compact.
fn network() -> Network {
    let mut net = Network::new("compact", 2).unwrap();
    net.set("num_feat", Setting::Whole(16)).unwrap();
    net.set("num_conv", Setting::Whole(2)).unwrap();
    net
}

fn spec() -> StepSpec {
    StepSpec {
        float_input: true,
        ..StepSpec::new(PATCHES, (SIDE, SIDE), vec![(LossKind::L1, 1.0)])
    }
}

/// Patches at HR size `[PATCHES, side, side, 3]`: smooth waves, and detail that the network cannot
/// know. Without the detail, the loss would fall to the size of the rounding.
fn target() -> Vec<f32> {
    let side = 2 * SIDE;
    let mut values = Vec::new();
    for i in 0..PATCHES * side * side * 3 {
        let at = |n: usize| (n as f32 + 0.5) / side as f32;
        let (x, y, patch) = (
            at(i / 3 % side),
            at(i / 3 / side % side),
            i / 3 / side / side,
        );
        let wave = (9.0 * x + 3.0 * patch as f32).sin() * (11.0 * y + (i % 3) as f32).cos();
        let detail = (mix(i as u64) % 1000) as f32 / 1000.0 - 0.5;
        values.push(0.5 + 0.3 * wave + 0.2 * detail);
    }
    values
}

/// The mean of the four HR pixels of each LQ pixel, `[PATCHES, SIDE, SIDE, 3]`.
fn input(target: &[f32]) -> Vec<f32> {
    let row = 2 * SIDE * 3;
    let pixel = |i: usize| {
        let (c, x, y) = (i % 3, i / 3 % SIDE, i / 3 / SIDE);
        let first = 2 * y * row + 6 * x + c;
        let four = [first, first + 3, first + row, first + row + 3];
        four.iter().map(|&at| target[at]).sum::<f32>() / 4.0
    };
    (0..PATCHES * SIDE * SIDE * 3).map(pixel).collect()
}

/// The mean loss of iterations 190 to 199.
fn train(options: CpuOptions) -> f64 {
    let net = network();
    let plan = training_plan(&net, &spec(), &options).unwrap();
    let ports = plan.ports;
    let mut backend = CpuBackend::new(plan, options).unwrap();
    let start = net.params().start_values(1);
    write_floats(&mut backend, ports.parameters.unwrap(), &start).unwrap();
    write_floats(&mut backend, ports.ema.unwrap(), &start).unwrap();
    let target = target();
    let input = input(&target);
    let mut losses = Vec::new();
    for step in 1..=200 {
        let scalars = Scalars {
            lr: 1e-3,
            step,
            clip: f64::INFINITY,
            ema_decay: 0.9,
            micro_scale: 1.0,
            loss_scale: 1.0,
            accumulate: false,
        };
        // a step may overwrite both
        write_floats(&mut backend, ports.input.unwrap(), &input).unwrap();
        write_floats(&mut backend, ports.target.unwrap(), &target).unwrap();
        backend.micro_step(&scalars).unwrap();
        backend.update(&scalars).unwrap();
        losses.push(backend.metrics().unwrap().loss);
    }
    assert!(losses[199] < 0.95 * losses[0], "{losses:?}");
    losses[190..].iter().sum::<f64>() / 10.0
}

#[test]
fn a_network_learns_as_in_f32() {
    let isa = Isa::available()[0];
    let options = CpuOptions::new(2).with_isa(isa);
    let expected = train(options);
    for unit in Bf16Unit::available(isa) {
        let loss = train(options.with_products(Products::Bf16(unit)));
        println!("{unit}: loss {loss}, in f32 {expected}");
        assert!(
            (loss / expected - 1.0).abs() < 2e-2,
            "{unit}: loss {loss}, in f32 {expected}"
        );
    }
}

/// The gradients of Photo's parameters after one step, with LayerScale large enough for its blocks to
/// matter.
fn gradients_of_photo(options: CpuOptions) -> (Network, Vec<f32>) {
    let mut net = Network::new("photo", 2).unwrap();
    net.set("layer_scale", Setting::Number(0.5)).unwrap();
    let plan = training_plan(&net, &spec(), &options).unwrap();
    let ports = plan.ports;
    let mut backend = CpuBackend::new(plan, options).unwrap();
    let start = net.params().start_values(1);
    write_floats(&mut backend, ports.parameters.unwrap(), &start).unwrap();
    let target = target();
    write_floats(&mut backend, ports.input.unwrap(), &input(&target)).unwrap();
    write_floats(&mut backend, ports.target.unwrap(), &target).unwrap();
    let scalars = Scalars {
        lr: 1e-3,
        step: 1,
        clip: f64::INFINITY,
        ema_decay: 0.9,
        micro_scale: 1.0,
        loss_scale: 1.0,
        accumulate: false,
    };
    backend.micro_step(&scalars).unwrap();
    let mut gradients = vec![0.0; net.params().trainable()];
    read_floats(&mut backend, ports.gradients.unwrap(), &mut gradients).unwrap();
    (net, gradients)
}

/// Photo's convolutions and its attention are computed on bf16 factors, and the gradients stay within
/// the rounding of those of f32.
#[test]
fn the_gradients_of_attention_are_those_of_f32_but_for_the_rounding() {
    let isa = Isa::available()[0];
    let options = CpuOptions::new(2).with_isa(isa);
    let (net, expected) = gradients_of_photo(options);
    for unit in Bf16Unit::available(isa) {
        let (_, got) = gradients_of_photo(options.with_products(Products::Bf16(unit)));
        for name in ["attn.qkv.weight", "attn.proj.weight", "conv1.weight"] {
            let name = format!("body.1.blocks.2.{name}");
            let table = net.params();
            let range = &table.params.iter().find(|p| p.name == name).unwrap().range;
            let part = |all: &[f32]| all[range.offset..][..range.len].to_vec();
            let sum = |v: f64, (a, b): (&f32, &f32)| v + f64::from(a - b).powi(2);
            let (got, expected) = (part(&got), part(&expected));
            let zeros = vec![0.0; expected.len()];
            let error = got.iter().zip(&expected).fold(0.0, sum);
            let size = zeros.iter().zip(&expected).fold(0.0, sum);
            let relative = (error / size).sqrt();
            println!("{unit} {name}: {relative:.1e}");
            assert!(
                (1e-6..4e-2).contains(&relative),
                "{unit} {name}: {relative:e}"
            );
        }
    }
}

/// Inference in the arena of a training step stays f32, also where the step's products are bf16.
#[test]
fn lent_memory_computes_in_f32() {
    let isa = Isa::available()[0];
    let f32_options = CpuOptions::new(2).with_isa(isa);
    let net = network();
    let tile = InferenceSpec {
        batch: 1,
        lq: (SIDE, SIDE),
        float_input: true,
    };
    for unit in Bf16Unit::available(isa) {
        let options = f32_options.with_products(Products::Bf16(unit));
        let mut plan = training_plan(&net, &spec(), &options).unwrap();
        let tile = inference_plan(&net, &tile, &f32_options).unwrap();
        plan.reserve_between_steps(tile.arena_bytes);
        let mut backend = CpuBackend::new(plan, options).unwrap();
        assert!(backend.description().contains(&unit.to_string()));
        let lent = backend.lend(tile).unwrap();
        assert!(
            !lent.description().contains("bf16"),
            "{}",
            lent.description()
        );
    }
}

#[test]
fn the_plan_says_which_unit_is_used() {
    let shown = run(&["plan", "--device", "cpu", "--precision", "bf16"]).ok();
    match Bf16Unit::detect(Isa::detect()) {
        Some(unit) => assert!(shown.stdout.contains(&format!("bf16 products on {unit}"))),
        None => assert!(shown.stderr.contains("the CPU computes in f32")),
    }
    run(&["plan", "--device", "cpu", "--precision", "fp16"]).refused(1, &["fp16"]);
}

/// A precision leaves the options as they are, or changes the products alone.
#[test]
fn a_precision_chooses_products() {
    let options = CpuOptions::new(3);
    for precision in [None, Some(Precision::F32)] {
        let (same, reason) = options.with_precision(precision).unwrap();
        assert_eq!((same.products(), reason), (Products::F32, None));
    }
    let (chosen, reason) = options.with_precision(Some(Precision::Bf16)).unwrap();
    assert_eq!(chosen.products().unit().is_none(), reason.is_some());
    assert_eq!(chosen.threads(), 3);
    assert!(options.with_precision(Some(Precision::Fp16)).is_err());
    let portable = options.with_isa(Isa::named("portable").unwrap());
    let (portable, reason) = portable.with_precision(Some(Precision::Bf16)).unwrap();
    assert_eq!(portable.products(), Products::F32);
    assert!(reason.unwrap().contains("AMX"));
}
