//! Every CUDA kernel against the CPU backend, without a GPU: operation by operation on the same
//! inputs, for each precision, in three orders of lanes and blocks that must agree in every bit;
//! and again under the address sanitizer.

use crate::{kernels_common, network_common, reference};

use kernels_common::{Host, ORDERS, Order, SCALARS, compile, from_activations, to_activations};
use network_common::{Twin, bytes, options, spec};
use paragon::backend::cpu::{CpuBackend, Isa};
use paragon::backend::cuda::{
    Choices, CudaSizing, Depthwise, Launch, Order as LaunchOrder, lower_range, lower_range_for,
};
use paragon::backend::selftest::{SharedBuffer, shared_buffers, stores_halves};
use paragon::backend::{Backend, Scalars, write_floats};
use paragon::model::{Network, Param, Recompute, StepSpec, training_plan};
use paragon::plan::LossKind::{self, Charbonnier, L1, MsSsim, Mse, Ssim};
use paragon::plan::{BufferId, Op, OptimizerKind, Precision, ReconstructBack, Slice};
use reference::golden::relative_error;
use std::path::Path;

pub const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Fp16];

/// Every precision with the units that compute the depthwise step of its Nano blocks.
const UNITS: [(Precision, Depthwise); 5] = [
    (Precision::F32, Depthwise::Tensor),
    (Precision::Bf16, Depthwise::Tensor),
    (Precision::Bf16, Depthwise::Plain),
    (Precision::Fp16, Depthwise::Tensor),
    (Precision::Fp16, Depthwise::Plain),
];

fn read(cpu: &mut CpuBackend, id: BufferId) -> Vec<u8> {
    let mut bytes = vec![0; cpu.plan().buffer(id).bytes as usize];
    cpu.read(id, 0, &mut bytes).unwrap();
    bytes
}

/// A case: scale, batch, LQ size, losses, whether the batch has floats instead of bytes,
/// recomputation.
pub type Case<'a> = (
    usize,
    usize,
    (usize, usize),
    &'a [(LossKind, f32)],
    bool,
    Recompute,
);

/// Runs the operations that `chosen` selects on both backends and compares their outputs.
fn compare(
    case: Case<'_>,
    precision: Precision,
    orders: &[Order],
    sanitize: bool,
    chosen: impl Fn(&Op) -> bool,
) {
    let twin = Twin::new(case.0, 11);
    compare_network(
        (&twin.net, &twin.params),
        case,
        OptimizerKind::AdamW,
        precision,
        orders,
        sanitize,
        chosen,
    );
}

/// The same for a given network with its parameters, and a given optimizer.
pub fn compare_network(
    network: (&Network, &[f32]),
    case: Case<'_>,
    optimizer: OptimizerKind,
    precision: Precision,
    orders: &[Order],
    sanitize: bool,
    chosen: impl Fn(&Op) -> bool,
) {
    let on = (precision, Choices::default());
    compare_on(network, case, optimizer, on, orders, sanitize, chosen);
}

/// The same with what a card decides.
pub fn compare_on(
    (net, params): (&Network, &[f32]),
    case: Case<'_>,
    optimizer: OptimizerKind,
    (precision, choices): (Precision, Choices),
    orders: &[Order],
    sanitize: bool,
    chosen: impl Fn(&Op) -> bool,
) {
    let Some(program) = compile(precision, sanitize) else {
        return;
    };
    let (scale, batch, lq, losses, float, recompute) = case;
    let spec = StepSpec {
        recompute,
        optimizer,
        ..spec(batch, lq, losses, float)
    };
    // The kernels have no Winograd form, and each operation runs by itself.
    let direct = StepSpec {
        without_winograd: true,
        ..spec.clone()
    };
    let cpu_options = options(Isa::detect(), 2);
    let cpu_plan = training_plan(net, &direct, &cpu_options).unwrap();
    let ports = cpu_plan.ports;
    let mut cpu = CpuBackend::new(cpu_plan, cpu_options).unwrap();
    for port in [ports.parameters, ports.ema] {
        write_floats(&mut cpu, port.unwrap(), params).unwrap();
    }
    let table = net.params();
    let plan = training_plan(net, &spec, &CudaSizing { precision }).unwrap();
    let mut hosts: Vec<Host> = orders
        .iter()
        .map(|&order| Host::new(plan.clone(), program.clone(), order))
        .collect();
    let s = scale;
    let (h, w) = lq;
    let count = plan.ops.len();
    for micro in 0..2 {
        // Gradients of a mean are so small that fp16 would keep few of their bits, so they are
        // scaled here as in training; SPAN's gates make them smaller still.
        let micro_scale = match precision {
            Precision::Fp16 if net.arch == "span" => 32768.0,
            Precision::Fp16 => 512.0,
            _ => 0.5,
        };
        let scalars = Scalars {
            lr: 1e-3,
            step: 3,
            clip: 0.5,
            ema_decay: 0.9,
            micro_scale,
            loss_scale: 1.0,
            accumulate: micro > 0,
        };
        // The batch is copied in here, because the operations run one by one.
        if let Some(layout) = plan.batch {
            let layout_cpu = cpu.plan().batch.unwrap();
            let codes: Vec<u8> = if h == w {
                bytes(batch, 5 + micro).iter().map(|c| c % 8).collect()
            } else {
                vec![0; batch]
            };
            let all = [
                bytes(batch * h * w * 3, micro),
                bytes(batch * h * w * 3 * s * s, 9 + micro),
                codes,
            ]
            .concat();
            cpu.write(layout_cpu.buffer, 0, &all).unwrap();
            hosts
                .iter_mut()
                .for_each(|host| host.bytes(layout.buffer).copy_from_slice(&all));
        } else {
            let floats =
                |n: usize, seed| to_activations(&network_common::noise(n, seed), Precision::F32);
            let (input, target) = (ports.input.unwrap(), ports.target.unwrap());
            cpu.write(input, 0, &floats(batch * h * w * 3, micro))
                .unwrap();
            cpu.write(target, 0, &floats(batch * h * w * 3 * s * s, 9 + micro))
                .unwrap();
        }
        for at in 0..count {
            let op = plan.ops[at].clone();
            if matches!(op, Op::Update(_)) && micro == 0 {
                continue;
            }
            let shared = shared_buffers(cpu.plan(), &plan, at).unwrap();
            let picked = chosen(&op);
            for &SharedBuffer {
                cpu: a,
                device: b,
                read: reads,
                ..
            } in &shared
            {
                if !picked || !reads {
                    continue;
                }
                let mut values = read(&mut cpu, a);
                if stores_halves(cpu.plan(), a, &plan, b) {
                    // Both start from values that the 16-bit type represents exactly.
                    let rounded = to_activations(bytemuck::cast_slice(&values), precision);
                    values = from_activations(&rounded, precision)
                        .iter()
                        .flat_map(|v| v.to_le_bytes())
                        .collect();
                    cpu.write(a, 0, &values).unwrap();
                    hosts
                        .iter_mut()
                        .for_each(|host| host.bytes(b).copy_from_slice(&rounded));
                } else {
                    hosts
                        .iter_mut()
                        .for_each(|host| host.bytes(b).copy_from_slice(&values));
                }
            }
            cpu.run_operation(at, &scalars).unwrap();
            if !picked {
                continue;
            }
            let what = format!(
                "{precision} ({choices:?}) x{scale} {batch} x {h} x {w} {losses:?} {recompute}: operation {at} ({})",
                op.label()
            );
            let launches = lower_range_for(&plan, at..at + 1, choices).unwrap();
            for host in &mut hosts {
                host.run(&scalars, &launches)
                    .unwrap_or_else(|e| panic!("{what}, {:?}: {e}", host.order));
            }
            let (first, rest) = hosts.split_first_mut().unwrap();
            for other in rest {
                for (i, (x, y)) in first.memory.iter().zip(&other.memory).enumerate() {
                    assert!(
                        x == y,
                        "{what}: {} depends on the order of lanes",
                        plan.buffers[i].name
                    );
                }
            }
            for SharedBuffer {
                cpu: a,
                device: b,
                write,
                ..
            } in shared
            {
                if !write {
                    continue;
                }
                let narrow = stores_halves(cpu.plan(), a, &plan, b);
                let (expected, got) = (read(&mut cpu, a), first.bytes(b).to_vec());
                let name = &plan.buffer(b).name;
                let wide =
                    |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
                if name == "metrics" {
                    let (e, g): (Vec<f64>, Vec<f64>) = (
                        bytemuck::pod_collect_to_vec(&expected),
                        bytemuck::pod_collect_to_vec(&got),
                    );
                    let tolerance = if precision == Precision::F32 {
                        1e-6
                    } else {
                        1e-3
                    };
                    assert!(
                        e.iter()
                            .zip(&g)
                            .all(|(e, g)| (e - g).abs() <= tolerance * e.abs()),
                        "{what}: metrics {g:?} for {e:?}"
                    );
                    continue;
                }
                let got = from_activations(&got, if narrow { precision } else { Precision::F32 });
                let expected: Vec<f32> = bytemuck::pod_collect_to_vec(&expected);
                assert!(
                    got.iter().all(|v| v.is_finite()),
                    "{what}: {name} has values that are not finite"
                );
                let tolerance = match precision {
                    Precision::F32 => 2e-6,
                    Precision::Bf16 => 8e-3,
                    Precision::Fp16 => 1e-3,
                };
                if name == "gradients" {
                    // The bias of Pro's keys has no effect: its gradient is rounding.
                    let compared = |p: &&Param| p.trainable && !p.name.ends_with("k_proj.bias");
                    for p in table.params.iter().filter(compared) {
                        let r = p.range.offset..p.range.offset + p.range.len;
                        let error = relative_error(&wide(&got[r.clone()]), &wide(&expected[r]));
                        // NaN must not pass: the CPU's gradients must be finite as well.
                        assert!(
                            error < 2.0 * tolerance,
                            "{what}: the gradient of {} differs by {error:e}",
                            p.name
                        );
                    }
                } else {
                    let error = relative_error(&wide(&got), &wide(&expected));
                    assert!(error < tolerance, "{what}: {name} differs by {error:e}");
                }
            }
        }
    }
}

const L1_ONLY: &[(LossKind, f32)] = &[(L1, 1.0)];
const PIXEL: &[(LossKind, f32)] = &[(L1, 0.7), (Charbonnier, 0.2), (Mse, 0.5)];
const PIXEL_AND_ALL: &[(LossKind, f32)] = &[
    (L1, 0.7),
    (Charbonnier, 0.2),
    (Mse, 0.5),
    (Ssim, 0.3),
    (MsSsim, 0.2),
];
const ALL: &[(LossKind, f32)] = &[(L1, 1.0), (Ssim, 0.3), (MsSsim, 0.2)];
const STRUCTURAL: &[(LossKind, f32)] = &[(MsSsim, 0.4), (Ssim, 0.3)];

/// Shapes with every kind of edge: narrower than a tile, one pixel more than a tile, several tiles.
const CASES: [Case<'_>; 5] = [
    (2, 2, (9, 9), L1_ONLY, false, Recompute::Block),
    (2, 1, (17, 33), PIXEL, false, Recompute::Block),
    (3, 1, (20, 11), L1_ONLY, false, Recompute::Block),
    (4, 1, (8, 19), L1_ONLY, false, Recompute::Block),
    (2, 1, (24, 21), PIXEL, true, Recompute::Block),
];

fn all_cases(chosen: impl Fn(&Op) -> bool + Copy) {
    for precision in PRECISIONS {
        for case in CASES {
            compare(case, precision, &ORDERS, false, chosen);
        }
        compare(CASES[1], precision, &[Order::Forward], true, chosen);
    }
}

#[test]
fn unpacking_pixel_losses_and_optimizer() {
    all_cases(|op| matches!(op, Op::Unpack(_) | Op::PixelLoss(_) | Op::Update(_)));
}

/// The weight decay of Adam is part of the gradient; that of AdamW is not.
#[test]
fn adam() {
    let twin = Twin::new(2, 11);
    for precision in PRECISIONS {
        compare_network(
            (&twin.net, &twin.params),
            CASES[0],
            OptimizerKind::Adam,
            precision,
            &ORDERS,
            false,
            |op| matches!(op, Op::Update(_)),
        );
    }
}

#[test]
fn convolutions() {
    all_cases(|op| matches!(op, Op::Conv(_) | Op::ConvBack(_)));
}

#[test]
fn nano_block() {
    all_cases(|op| matches!(op, Op::NanoBlock(_) | Op::NanoBlockBack(_)));
}

/// The same with the depthwise step by multiply-adds.
#[test]
fn nano_block_by_multiply_adds() {
    let run = |(precision, unit): (_, Depthwise), case: Case<'_>, orders: &[Order], sanitize| {
        let on = (precision, unit.into());
        let twin = Twin::new(case.0, 11);
        let network = (&twin.net, &twin.params[..]);
        let chosen = |op: &Op| matches!(op, Op::NanoBlock(_) | Op::NanoBlockBack(_));
        let optimizer = OptimizerKind::AdamW;
        compare_on(network, case, optimizer, on, orders, sanitize, chosen);
    };
    let units = UNITS.into_iter().filter(|unit| unit.1 == Depthwise::Plain);
    for unit in units.clone() {
        for case in CASES {
            run(unit, case, &ORDERS, false);
        }
    }
    for unit in units {
        run(unit, CASES[1], &[Order::Forward], true);
    }
}

/// A card with few multiprocessors launches fewer blocks that sum than the plan has room for.
#[test]
fn few_blocks_that_sum() {
    for (precision, depthwise) in UNITS.into_iter().take(3) {
        let case = (2, 2, (40, 33), L1_ONLY, false, Recompute::Block);
        let twin = Twin::new(case.0, 11);
        let network = (&twin.net, &twin.params[..]);
        let on = Choices {
            sum_blocks: 7,
            depthwise,
        };
        // the backward pass of the reconstruction reads what the forward pass has folded
        let sums = |op: &Op| {
            matches!(
                op,
                Op::ConvBack(_)
                    | Op::NanoBlockBack(_)
                    | Op::Reconstruct(_)
                    | Op::ReconstructBack(_)
            )
        };
        let (optimizer, on) = (OptimizerKind::AdamW, (precision, on));
        compare_on(network, case, optimizer, on, &ORDERS[..1], true, sums);
    }
}

#[test]
fn up_head() {
    all_cases(|op| matches!(op, Op::Reconstruct(_) | Op::ReconstructBack(_)));
}

#[test]
fn up_head_of_a_large_scale_and_without_sharpening() {
    let chosen = |op: &Op| matches!(op, Op::Reconstruct(_) | Op::ReconstructBack(_));
    for precision in [Precision::F32, Precision::Bf16] {
        for float in [false, true] {
            compare(
                (8, 1, (5, 3), L1_ONLY, float, Recompute::Block),
                precision,
                &[Order::Mixed],
                false,
                chosen,
            );
            compare(
                (3, 1, (6, 4), L1_ONLY, float, Recompute::Block),
                precision,
                &[Order::Backward],
                true,
                chosen,
            );
            let mut plain = Twin::new(3, 11);
            plain.net.set("upsampler_alpha", 0.0).unwrap();
            compare_network(
                (&plain.net, &plain.params),
                (3, 1, (7, 9), PIXEL, float, Recompute::Block),
                OptimizerKind::AdamW,
                precision,
                &[Order::Mixed],
                false,
                chosen,
            );
        }
    }
}

/// With a small gain the weights of the folded convolution are below the smallest normal fp16 number;
/// the kernels scale them, so that they keep their bits.
#[test]
fn a_small_gain_keeps_its_bits_in_fp16() {
    let mut twin = Twin::new(2, 11);
    let gain = twin.table.params.iter().find(|p| p.name.ends_with("gain"));
    twin.params[gain.unwrap().range.offset] = 1e-4;
    compare_network(
        (&twin.net, &twin.params),
        (2, 1, (17, 33), &[(L1, 100.0)], false, Recompute::Block),
        OptimizerKind::AdamW,
        Precision::Fp16,
        &[Order::Mixed],
        false,
        |op| matches!(op, Op::Reconstruct(_) | Op::ReconstructBack(_)),
    );
}

/// A thread block that computes several tiles moves the halo that neighbouring tiles share instead
/// of computing it again. For every number of thread blocks, the gradient of the input must have
/// the same bits and the sums must be nearly the same, even if rows of tiles begin and end within
/// the tiles of one thread block.
#[test]
fn tiles_of_a_block_share_their_halos() {
    let twin = Twin::new(2, 11);
    for (precision, depthwise) in UNITS {
        let Some(program) = compile(precision, false) else {
            return;
        };
        let plan = training_plan(
            &twin.net,
            &spec(2, (35, 70), L1_ONLY, false),
            &CudaSizing { precision },
        )
        .unwrap();
        let at = plan
            .ops
            .iter()
            .position(|op| matches!(op, Op::NanoBlockBack(_)))
            .unwrap();
        let Op::NanoBlockBack(block) = plan.ops[at].clone() else {
            unreachable!()
        };
        let scalars = Scalars {
            accumulate: false,
            ..SCALARS
        };
        let run_on = |program: &Path, order: Order, blocks: Option<u32>| {
            let mut host = Host::new(plan.clone(), program.to_path_buf(), order);
            host.bytes(block.forward.parameters)
                .copy_from_slice(&to_activations(&twin.params, Precision::F32));
            for (id, seed) in [(block.forward.input, 1), (block.d_output, 2)] {
                let values = network_common::noise(
                    plan.buffer(id).bytes as usize / precision.bytes() as usize,
                    seed,
                );
                host.bytes(id)
                    .copy_from_slice(&to_activations(&values, precision));
            }
            // Zeros take the place of the sums of thread blocks that do not run.
            host.bytes(block.workspace.unwrap()).fill(0);
            let mut launches = lower_range_for(&plan, at..at + 1, depthwise.into()).unwrap();
            // There are 2 x 3 x 5 tiles.
            if let Some(blocks) = blocks {
                launches[0].grid[0] = blocks;
                let tiles = 30u32.div_ceil(blocks) as i32;
                launches[0].arguments.set_int("tiles", tiles).unwrap();
            }
            let kernels = ["nano_block_back", "nano_block_back_plain"];
            assert_eq!(
                launches[0].kernel,
                kernels[usize::from(depthwise == Depthwise::Plain)]
            );
            host.run(&scalars, &launches).unwrap();
            (
                host.bytes(block.d_input).to_vec(),
                from_activations(host.bytes(block.gradients), Precision::F32),
            )
        };
        let run = |order, blocks| run_on(&program, order, blocks);
        let (d_input, sums) = run(Order::Forward, None);
        if let Some(sanitized) = compile(precision, true) {
            assert!(
                run_on(&sanitized, Order::Mixed, Some(2)).0 == d_input,
                "{precision}: under the sanitizer"
            );
        }
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
        for blocks in [1, 2, 4, 7, 15] {
            let all = ORDERS.map(|order| run(order, Some(blocks)));
            assert!(
                all.iter().all(|other| *other == all[0]),
                "{precision}, {blocks} blocks: depends on the order of lanes"
            );
            assert!(
                all[0].0 == d_input,
                "{precision}, {blocks} blocks: the gradient of the input"
            );
            let error = relative_error(&wide(&all[0].1), &wide(&sums));
            assert!(
                error < 1e-5,
                "{precision}, {blocks} blocks: sums differ by {error:e}"
            );
        }
    }
}

/// Partial sums that nearly cancel: in f32 nothing would be left of the total, and with two f32 the error
/// is that of the last rounding.
#[test]
fn totals_of_sums_that_cancel_keep_their_digits() {
    let precision = Precision::Bf16;
    let Some(program) = compile(precision, false) else {
        return;
    };
    let twin = Twin::new(2, 11);
    let plan = training_plan(
        &twin.net,
        &spec(2, (35, 70), L1_ONLY, false),
        &CudaSizing { precision },
    )
    .unwrap();
    let (at, launches) = (0..plan.ops.len())
        .filter(|&at| matches!(plan.ops[at], Op::ConvBack(_)))
        .map(|at| (at, lower_range(&plan, at..at + 1).unwrap()))
        .find(|(_, launches)| launches[0].kernel == "conv_gradients")
        .unwrap();
    let Op::ConvBack(conv) = plan.ops[at].clone() else {
        unreachable!()
    };
    let (blocks, count) = (launches[0].grid[0] as usize, 16 * 16 * 9 + 16);
    assert!(blocks >= 30 && launches[1].kernel == "reduce_sums");
    // large values, each followed by its negative, a small one added
    let noise = network_common::noise(blocks * count, 3);
    let partials: Vec<f32> = (0..blocks * count)
        .map(|i| match i / count % 2 {
            0 if i / count + 1 < blocks => 1e6 * noise[i],
            0 => noise[i],
            _ => -1e6 * noise[i - count] + noise[i],
        })
        .collect();
    let expected: Vec<f64> = (0..count)
        .map(|i| {
            (0..blocks)
                .map(|b| f64::from(partials[b * count + i]))
                .sum()
        })
        .collect();
    let scalars = Scalars {
        accumulate: false,
        ..SCALARS
    };
    let offset = conv.forward.weight.offset;
    for order in ORDERS {
        let mut host = Host::new(plan.clone(), program.clone(), order);
        host.bytes(conv.workspace.unwrap())[..4 * blocks * count]
            .copy_from_slice(&to_activations(&partials, Precision::F32));
        host.run(&scalars, &launches[1..]).unwrap();
        let totals = from_activations(host.bytes(conv.gradients), Precision::F32);
        let totals: Vec<f64> = totals[offset..offset + count]
            .iter()
            .map(|&v| f64::from(v))
            .collect();
        let error = relative_error(&totals, &expected);
        assert!(error < 1e-6, "{order:?}: {error:e}");
    }
}

/// The gradients of Reconstruct for one image against those for the same image twice, as two
/// slices: the sums must be exactly doubled, the gradient of the features must be the same.
#[test]
fn up_head_carries_sums_between_slices() {
    for precision in PRECISIONS {
        let Some(program) = compile(precision, false) else {
            return;
        };
        let twin = Twin::new(2, 11);
        let sizing = CudaSizing { precision };
        let mut plan = (*training_plan(&twin.net, &spec(1, (19, 17), L1_ONLY, false), &sizing)
            .unwrap())
        .clone();
        let at = plan
            .ops
            .iter()
            .position(|op| matches!(op, Op::ReconstructBack(_)))
            .unwrap();
        let Op::ReconstructBack(whole) = plan.ops[at].clone() else {
            unreachable!()
        };
        let features = whole.forward.features_in;
        let bytes = paragon::plan::Sizing::carry(&sizing, &plan.ops[at]);
        plan.buffers.push(paragon::plan::Buffer {
            bytes,
            parent: None,
            ..plan.buffer(features).clone()
        });
        let carry = BufferId(plan.buffers.len() as u32 - 1);
        let values = to_activations(
            &network_common::noise(
                plan.buffer(features).bytes as usize / precision.bytes() as usize,
                1,
            ),
            precision,
        );
        let gradient = network_common::noise(plan.buffer(whole.d_output).bytes as usize / 4, 2);
        let scalars = Scalars {
            accumulate: false,
            ..SCALARS
        };
        let run = |slices: &[Slice]| {
            let mut host = Host::new(plan.clone(), program.clone(), Order::Mixed);
            host.bytes(whole.forward.parameters)
                .copy_from_slice(&to_activations(&twin.params, Precision::F32));
            // The operations before it make the folded convolution.
            host.run(&scalars, &lower_range(&plan, 0..at).unwrap())
                .unwrap();
            host.bytes(features).copy_from_slice(&values);
            host.bytes(whole.d_output)
                .copy_from_slice(&to_activations(&gradient, Precision::F32));
            for &slice in slices {
                let mut plan = plan.clone();
                plan.ops[at] = Op::ReconstructBack(ReconstructBack {
                    slice,
                    ..whole.clone()
                });
                host.run(&scalars, &lower_range(&plan, at..at + 1).unwrap())
                    .unwrap();
            }
            let sums = from_activations(host.bytes(whole.gradients), Precision::F32);
            (sums, host.bytes(whole.d_features).to_vec())
        };
        let (once, d_once) = run(&[Slice::whole(1)]);
        let part = |first| Slice {
            of: 2,
            first,
            last: !first,
            carry: Some(carry),
        };
        let (twice, d_twice) = run(&[part(true), part(false)]);
        assert!(once.iter().any(|&v| v != 0.0));
        assert!(
            once.iter().zip(&twice).all(|(a, b)| 2.0 * a == *b),
            "{precision}: the sums of two slices"
        );
        assert!(
            d_once == d_twice,
            "{precision}: the gradient of the features"
        );
    }
}

/// Unpacking a batch within the first convolution against unpacking it with a kernel of its own:
/// the same bits in both outputs, for every augmentation.
#[test]
fn unpacking_on_the_way() {
    for precision in PRECISIONS {
        let Some(program) = compile(precision, false) else {
            return;
        };
        let twin = Twin::new(2, 11);
        let plan = training_plan(
            &twin.net,
            &spec(8, (19, 19), L1_ONLY, false),
            &CudaSizing { precision },
        )
        .unwrap();
        let Op::Conv(conv) = plan.ops[1].clone() else {
            unreachable!("the first convolution")
        };
        let batch = plan.batch.unwrap();
        let scalars = Scalars {
            accumulate: false,
            ..SCALARS
        };
        let run = |order: Order, parts: &[std::ops::Range<usize>]| {
            let mut host = Host::new(plan.clone(), program.clone(), order);
            host.bytes(conv.parameters)
                .copy_from_slice(&to_activations(&twin.params, Precision::F32));
            host.bytes(batch.buffer)
                .copy_from_slice(&bytes(batch.bytes(), 3));
            let codes = batch.augment_of(0);
            (0..8).for_each(|code| host.bytes(batch.buffer)[codes + code] = code as u8);
            let launches: Vec<_> = parts
                .iter()
                .flat_map(|part| lower_range(&plan, part.clone()).unwrap())
                .collect();
            host.run(&scalars, &launches).unwrap();
            (
                launches.len(),
                host.bytes(conv.input).to_vec(),
                host.bytes(conv.output).to_vec(),
            )
        };
        let (two, input, output) = run(Order::Forward, &[0..1, 1..2]);
        for order in ORDERS {
            let (one, unpacked, on_the_way) = run(order, std::slice::from_ref(&(0..2)));
            assert_eq!((two, one), (2, 1));
            assert!(
                unpacked == input && on_the_way == output,
                "{precision}, {order:?}"
            );
        }
    }
}

/// The pixel losses computed within Reconstruct against those of a kernel of their own: the
/// gradients must have the same bits, the losses must be nearly the same.
#[test]
fn losses_on_the_way() {
    for (precision, scale) in [
        (Precision::F32, 2),
        (Precision::Bf16, 2),
        (Precision::Fp16, 3),
    ] {
        let Some(program) = compile(precision, false) else {
            return;
        };
        let twin = Twin::new(scale, 11);
        let plan = training_plan(
            &twin.net,
            &spec(2, (19, 17), PIXEL, false),
            &CudaSizing { precision },
        )
        .unwrap();
        let at = plan
            .ops
            .iter()
            .position(|op| matches!(op, Op::Reconstruct(_)))
            .unwrap();
        let Op::Reconstruct(end) = plan.ops[at].clone() else {
            unreachable!()
        };
        let scalars = Scalars {
            micro_scale: 0.5,
            accumulate: false,
            ..SCALARS
        };
        let batch = plan.batch.unwrap();
        let run = |order: Order, ends: &[usize]| {
            let mut host = Host::new(plan.clone(), program.clone(), order);
            host.bytes(end.parameters)
                .copy_from_slice(&to_activations(&twin.params, Precision::F32));
            host.bytes(batch.buffer).copy_from_slice(
                &bytes(batch.bytes(), 3)
                    .iter()
                    .map(|v| v % 8 * 31)
                    .collect::<Vec<_>>(),
            );
            let codes = batch.augment_of(0);
            host.bytes(batch.buffer)[codes..].fill(0);
            let mut kernels = Vec::new();
            for pair in [&[0, at], ends].concat().windows(2) {
                let launches = lower_range(&plan, pair[0]..pair[1]).unwrap();
                kernels.extend(launches.iter().map(|l| l.kernel));
                host.run(&scalars, &launches).unwrap();
            }
            let metrics: Vec<f64> =
                bytemuck::pod_collect_to_vec(host.bytes(plan.ports.metrics.unwrap()));
            (kernels, host.bytes(end.output).to_vec(), metrics[0])
        };
        let (apart, gradient, loss) = run(Order::Forward, &[at + 1, at + 2]);
        assert!(apart.contains(&"pixel_loss"));
        let mut losses = Vec::new();
        for order in ORDERS {
            let (kernels, d_output, fused) = run(order, &[at + 2]);
            assert!(!kernels.contains(&"pixel_loss"));
            assert!(d_output == gradient, "{precision} x{scale}");
            assert!(
                (fused - loss).abs() <= 1e-6 * loss && loss > 0.0,
                "{precision} x{scale}: {fused} for {loss}"
            );
            losses.push(fused);
        }
        assert!(
            losses.iter().all(|l| *l == losses[0]),
            "the loss depends on the order of lanes"
        );
    }
}

/// The pixel losses computed within the structural ones against those of a kernel of their own, whole
/// and in slices: the gradients must have the same bits, the losses must be nearly the same.
#[test]
fn pixel_losses_within_the_structural_ones() {
    let whole = (2, 2, (19, 17), PIXEL_AND_ALL, false, Recompute::Block);
    let odd = (3, 1, (6, 23), ALL, false, Recompute::Block);
    let slices = (8, 9, (16, 15), STRUCTURAL, false, Recompute::Full);
    for ((scale, batch, lq, losses, float, recompute), precision, orders) in [
        (whole, Precision::Bf16, &ORDERS[..]),
        (odd, Precision::F32, &ORDERS[..]),
        (slices, Precision::Fp16, &[Order::Mixed][..]),
    ] {
        let Some(program) = compile(precision, false) else {
            return;
        };
        let twin = Twin::new(scale, 11);
        let spec = StepSpec {
            recompute,
            ..spec(batch, lq, losses, float)
        };
        let plan = training_plan(&twin.net, &spec, &CudaSizing { precision }).unwrap();
        let pairs: Vec<usize> = (0..plan.ops.len())
            .filter(|&at| matches!(plan.ops[at], Op::PixelLoss(_)))
            .collect();
        assert_eq!(pairs.len() > 1, recompute == Recompute::Full);
        let layout = plan.batch.unwrap();
        let scalars = Scalars {
            micro_scale: 0.5,
            loss_scale: 8.0,
            accumulate: true,
            ..SCALARS
        };
        // Returns the kernels, the gradients of all slices, and the loss.
        let run = |order: Order, together: bool| {
            let mut host = Host::new(plan.clone(), program.clone(), order);
            let batch: Vec<u8> = bytes(layout.bytes(), 3).iter().map(|v| v % 251).collect();
            host.bytes(layout.buffer).copy_from_slice(&batch);
            let codes = layout.augment_of(0);
            host.bytes(layout.buffer)[codes..].fill(0);
            let metrics = plan.ports.metrics.unwrap();
            host.bytes(metrics)[..8].copy_from_slice(&0.25f64.to_le_bytes());
            let (mut kernels, mut gradients) = (Vec::new(), Vec::new());
            for (seed, &at) in pairs.iter().enumerate() {
                let Op::PixelLoss(loss) = &plan.ops[at] else {
                    unreachable!()
                };
                let values = plan.buffer(loss.prediction).bytes as usize / 4;
                let noise = network_common::noise(values, 40 + seed as u64);
                host.bytes(loss.prediction)
                    .copy_from_slice(&to_activations(&noise, Precision::F32));
                let ends = if together {
                    vec![at, at + 2]
                } else {
                    vec![at, at + 1, at + 2]
                };
                for pair in ends.windows(2) {
                    let launches = lower_range(&plan, pair[0]..pair[1]).unwrap();
                    kernels.extend(launches.iter().map(|l| l.kernel));
                    host.run(&scalars, &launches).unwrap();
                }
                gradients.extend_from_slice(host.bytes(loss.d_prediction));
            }
            let metrics: Vec<f64> = bytemuck::pod_collect_to_vec(host.bytes(metrics));
            (kernels, gradients, metrics[0])
        };
        let (apart, gradients, loss) = run(Order::Forward, false);
        assert!(apart.contains(&"pixel_loss") && !apart.contains(&"structural_spread_losses"));
        for &order in orders {
            let (kernels, fused, fused_loss) = run(order, true);
            assert!(!kernels.contains(&"pixel_loss"));
            assert!(fused == gradients, "{losses:?}, {order:?}");
            assert!(
                (fused_loss - loss).abs() <= 1e-6 * loss && loss > 0.25,
                "{losses:?}, {order:?}: {fused_loss} for {loss}"
            );
        }
    }
}

/// Where the prediction is the negative of its target, no window has any similarity: the loss is
/// whole and its gradient is exactly 0, as on the CPU.
#[test]
fn no_similarity_has_no_gradient() {
    let Some(program) = compile(Precision::F32, false) else {
        return;
    };
    let twin = Twin::new(2, 11);
    let sizing = CudaSizing {
        precision: Precision::F32,
    };
    for (kind, weight) in [(Ssim, 0.3), (MsSsim, 0.4)] {
        let spec = spec(2, (10, 13), &[(kind, weight)], false);
        let plan = training_plan(&twin.net, &spec, &sizing).unwrap();
        let is_structural = |op: &Op| matches!(op, Op::StructuralLoss(_));
        let at = plan.ops.iter().position(is_structural).unwrap();
        let Op::StructuralLoss(loss) = plan.ops[at].clone() else {
            unreachable!()
        };
        let layout = plan.batch.unwrap();
        let mut host = Host::new(plan.clone(), program.clone(), Order::Mixed);
        let mut batch = bytes(layout.bytes(), 5);
        batch[layout.augment_of(0)..].fill(0);
        host.bytes(layout.buffer).copy_from_slice(&batch);
        let hr = layout.hr_of(0);
        let negative: Vec<f32> = batch[hr..layout.augment_of(0)]
            .iter()
            .map(|&v| 1.0 - 2.0 * f32::from(v) / 255.0)
            .collect();
        host.bytes(loss.prediction)
            .copy_from_slice(&to_activations(&negative, Precision::F32));
        host.bytes(loss.d_prediction).fill(0);
        host.bytes(loss.metrics).fill(0);
        let launches = lower_range(&plan, at..at + 1).unwrap();
        host.run(&SCALARS, &launches).unwrap();
        let gradient = from_activations(host.bytes(loss.d_prediction), Precision::F32);
        assert!(gradient.iter().all(|&g| g == 0.0), "{kind:?}");
        let metrics: Vec<f64> = bytemuck::pod_collect_to_vec(host.bytes(loss.metrics));
        let whole = f64::from(weight) * f64::from(SCALARS.micro_scale);
        assert!((metrics[0] - whole).abs() < 1e-6 * whole, "{metrics:?}");
    }
}

/// More images than the workspace holds at once.
#[test]
fn structural_losses_of_several_groups() {
    let case = (
        2,
        205,
        (9, 9),
        &[(MsSsim, 0.4)][..],
        false,
        Recompute::Block,
    );
    let chosen = |op: &Op| matches!(op, Op::StructuralLoss(_));
    compare(case, Precision::F32, &[Order::Forward], false, chosen);
}

/// HR sizes smaller than a window, odd, wider and higher than a patch; bytes and floats.
#[test]
fn structural_losses() {
    let chosen = |op: &Op| matches!(op, Op::StructuralLoss(_));
    let cases: [Case<'_>; 4] = [
        (2, 10, (9, 9), STRUCTURAL, false, Recompute::Block),
        (3, 1, (17, 33), STRUCTURAL, false, Recompute::Block),
        (2, 9, (17, 14), ALL, true, Recompute::Block),
        (2, 1, (4, 40), STRUCTURAL, true, Recompute::Block),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        compare(case, PRECISIONS[i % 3], &ORDERS, false, chosen);
    }
    compare(cases[1], Precision::F32, &[Order::Forward], true, chosen);
}

/// The part at HR size runs image by image and keeps sums between the slices. Sums are long as
/// well, with 2 x 364 x 364 pixels.
#[test]
fn slices_carry_their_sums() {
    let case = (2, 2, (182, 182), STRUCTURAL, false, Recompute::Full);
    compare(case, Precision::F32, &[Order::Forward], false, |op| {
        matches!(
            op,
            Op::Conv(_)
                | Op::ConvBack(_)
                | Op::PixelLoss(_)
                | Op::StructuralLoss(_)
                | Op::Reconstruct(_)
                | Op::ReconstructBack(_)
        )
    });
}

/// The largest scale, in slices of eight images and of one, for each precision.
#[test]
fn slices_of_a_large_scale() {
    for precision in PRECISIONS {
        let case = (8, 9, (16, 15), L1_ONLY, false, Recompute::Full);
        compare(case, precision, &[Order::Mixed], false, |op| {
            matches!(
                op,
                Op::Conv(_)
                    | Op::ConvBack(_)
                    | Op::PixelLoss(_)
                    | Op::Reconstruct(_)
                    | Op::ReconstructBack(_)
            )
        });
    }
}

/// The deferred sums of a micro-batch have the bits of sums that every operation adds up by itself:
/// in every order of lanes, in slices, and in a second micro-batch.
#[test]
fn sums_added_up_together_are_those_added_up_one_by_one() {
    let slices = (8, 9, (16, 15), L1_ONLY, false, Recompute::Full);
    let structural = (2, 1, (9, 9), ALL, false, Recompute::Block);
    let mut runs: Vec<(Case<'_>, Precision, Order, bool)> = Vec::new();
    for precision in PRECISIONS {
        runs.extend(ORDERS.map(|order| (CASES[0], precision, order, false)));
    }
    runs.extend([
        (slices, Precision::Bf16, Order::Mixed, false),
        (structural, Precision::F32, Order::Mixed, false),
    ]);
    runs.push((CASES[0], Precision::F32, Order::Forward, true));
    for ((scale, batch, lq, losses, float, recompute), precision, order, sanitize) in runs {
        let Some(program) = compile(precision, sanitize) else {
            return;
        };
        let twin = Twin::new(scale, 11);
        let spec = StepSpec {
            recompute,
            ..spec(batch, lq, losses, float)
        };
        let plan = training_plan(&twin.net, &spec, &CudaSizing { precision }).unwrap();
        let layout = plan.batch.unwrap();
        let [mut together, mut single] = [0, 1].map(|_| {
            let mut host = Host::new(plan.clone(), program.clone(), order);
            host.bytes(plan.ports.parameters.unwrap())
                .copy_from_slice(&to_activations(&twin.params, Precision::F32));
            host
        });
        let all = lower_range(&plan, plan.micro.clone()).unwrap();
        // A loss within another operation is added up in another order than one with a kernel of its
        // own.
        let with_loss = |at: usize| {
            let fusion = plan.fusion(at).unwrap_or_default();
            fusion.absorbed || fusion.delayed
        };
        let alone = plan
            .micro
            .clone()
            .filter(|&at| at == 0 || !with_loss(at - 1));
        let each: Vec<_> = alone
            .flat_map(|at| lower_range(&plan, at..at + 1 + usize::from(with_loss(at))).unwrap())
            .collect();
        let sums = |launches: &[Launch], aside: bool| {
            launches
                .iter()
                .filter(|l| {
                    l.kernel == "reduce_sums" && (aside || l.order != LaunchOrder::Concurrent)
                })
                .count()
        };
        // The sums of Reconstruct run on a side stream and are not waited for.
        let (awaited, alone) = (sums(&all, false), sums(&each, true));
        assert!(
            awaited + 5 <= alone,
            "{awaited} launches add up the sums, against {alone} one by one"
        );
        for micro in 0..2 {
            let scalars = Scalars {
                lr: 1e-3,
                step: 1,
                clip: 1.0,
                ema_decay: 0.0,
                micro_scale: 0.5,
                loss_scale: 8.0,
                accumulate: micro > 0,
            };
            let codes = bytes(layout.bytes(), micro)
                .iter()
                .map(|v| v % 8)
                .collect::<Vec<u8>>();
            for (host, launches) in [(&mut together, &all), (&mut single, &each)] {
                host.bytes(layout.buffer).copy_from_slice(&codes);
                host.run(&scalars, launches).unwrap();
            }
            for (i, (x, y)) in together.memory.iter().zip(&single.memory).enumerate() {
                assert!(
                    x == y,
                    "{precision} x{scale}, {order:?}, {recompute}: {} differs",
                    plan.buffers[i].name
                );
            }
            let gradients = from_activations(
                together.bytes(plan.ports.gradients.unwrap()),
                Precision::F32,
            );
            assert!(
                gradients.iter().all(|v| v.is_finite())
                    && gradients.iter().filter(|&&v| v == 0.0).count() < gradients.len() / 10
            );
        }
    }
}

/// If a single barrier is left out, the orders of lanes must disagree, or all of them must give a
/// different result, or the fibers must report an error. Otherwise the barrier is not needed or the
/// tests cannot detect that it is missing.
#[test]
fn a_missing_barrier_is_noticed() {
    type Chosen = fn(&Op) -> bool;
    let block: Chosen = |op| matches!(op, Op::NanoBlock(_) | Op::NanoBlockBack(_));
    let end: Chosen = |op| matches!(op, Op::Reconstruct(_) | Op::ReconstructBack(_));
    let conv: Chosen = |op| matches!(op, Op::Conv(_) | Op::ConvBack(_));
    let losses: Chosen =
        |op| matches!(op, Op::PixelLoss(_) | Op::StructuralLoss(_) | Op::Update(_));
    let both = &[Precision::Bf16, Precision::F32][..];
    let files: [(&str, &[Precision], Chosen); 12] = [
        ("nano_mma.cuh", &both[..1], block),
        ("nano_plain.cuh", &both[1..], block),
        ("reconstruct_mma.cuh", &both[..1], end),
        ("reconstruct_back_mma.cuh", &both[..1], end),
        ("reconstruct_plain.cuh", &both[1..], end),
        ("base.cuh", &both[1..], end),
        ("conv.cu", both, conv),
        ("conv_rgb.cu", &both[1..], conv),
        ("conv_rgb_mma.cuh", &both[..1], conv),
        ("nano_block.cu", &both[1..], block),
        ("reduce.cu", &both[1..], block),
        ("structural.cu", &both[1..], losses),
    ];
    let mut unnoticed = Vec::new();
    // the kernels of both units have the same barriers, and each must need them all
    let twin = Twin::new(2, 11);
    let case = (spec(1, (17, 33), L1_ONLY, false), Precision::Bf16);
    let (net, places) = ((&twin.net, &twin.params[..]), barriers("nano_mma.cuh"));
    let Some(blind) = unnoticed_barriers_on(Depthwise::Plain, net, case, block, &places, true)
    else {
        return;
    };
    unnoticed.extend(blind);
    for (file, precisions, chosen) in files {
        let mut places = barriers(file);
        for &precision in precisions {
            // These files add up the sums of all thread blocks, so all must run.
            let few_blocks = !["nano_block.cu", "reduce.cu"].contains(&file);
            // At scale 2 Reconstruct has one group of slots, and beside structural losses it
            // computes no loss; the second step reaches the barriers that belong to these.
            for (scale, losses) in [(2, ALL), (3, L1_ONLY)] {
                let twin = Twin::new(scale, 11);
                let net = (&twin.net, &twin.params[..]);
                let case = (spec(1, (17, 33), losses, false), precision);
                let Some(blind) = unnoticed_barriers(net, case, chosen, &places, few_blocks) else {
                    return;
                };
                // The modules of the other precision lack kernels that exist for one precision
                // only.
                places = blind;
            }
        }
        unnoticed.extend(places);
    }
    assert!(
        unnoticed.is_empty(),
        "no order of lanes needs these barriers: {unnoticed:?}"
    );
}

/// The places of a kernel file's barriers, as `PARAGON_FIBERS_SKIP` names them.
pub fn barriers(file: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let text = std::fs::read_to_string(path.join(file)).unwrap();
    let lines = text.lines().enumerate();
    let found = lines.filter(|(_, line)| line.trim() == "barrier();");
    let places: Vec<String> = found.map(|(at, _)| format!("{file}:{}", at + 1)).collect();
    assert!(!places.is_empty(), "{file} has no barriers");
    places
}

/// The barriers at `places` without which every order of lanes gives the same result as with them.
/// `few_blocks`: only a few thread blocks run, each over several tiles.
pub fn unnoticed_barriers(
    network: (&Network, &[f32]),
    case: (StepSpec, Precision),
    chosen: fn(&Op) -> bool,
    places: &[String],
    few_blocks: bool,
) -> Option<Vec<String>> {
    unnoticed_barriers_on(Depthwise::Tensor, network, case, chosen, places, few_blocks)
}

/// The same with a given unit for the depthwise step.
fn unnoticed_barriers_on(
    depthwise: Depthwise,
    (net, params): (&Network, &[f32]),
    (spec, precision): (StepSpec, Precision),
    chosen: fn(&Op) -> bool,
    places: &[String],
    few_blocks: bool,
) -> Option<Vec<String>> {
    if places.is_empty() {
        return Some(Vec::new());
    }
    let program = compile(precision, false)?;
    let cpu = training_plan(
        net,
        &StepSpec {
            without_winograd: true,
            ..spec.clone()
        },
        &options(Isa::detect(), 1),
    )
    .unwrap();
    let plan = training_plan(net, &spec, &CudaSizing { precision }).unwrap();
    let with_inputs = |at: usize| {
        let mut host = Host::new(plan.clone(), program.clone(), Order::Mixed);
        for SharedBuffer {
            cpu: a, device: b, ..
        } in shared_buffers(&cpu, &plan, at).unwrap()
        {
            let values = if plan.batch.is_some_and(|batch| batch.buffer == b) {
                bytes(plan.buffer(b).bytes as usize, 3)
                    .iter()
                    .map(|v| v % 8)
                    .collect()
            } else if Some(b) == plan.ports.parameters {
                to_activations(params, Precision::F32)
            } else {
                let narrow = stores_halves(&cpu, a, &plan, b);
                let each = if narrow { 2 } else { 4 };
                to_activations(
                    &network_common::noise(plan.buffer(b).bytes as usize / each, 4),
                    if narrow { precision } else { Precision::F32 },
                )
            };
            host.bytes(b).copy_from_slice(&values);
        }
        host
    };
    let mut kinds = Vec::new();
    let mut places = places.to_vec();
    for at in 0..plan.ops.len() {
        // One operation of every kind, and all convolutions, since they differ.
        let key = (
            plan.ops[at].label(),
            matches!(&plan.ops[at], Op::Conv(_) | Op::ConvBack(_)).then_some(at),
        );
        if !chosen(&plan.ops[at]) || kinds.contains(&key) || places.is_empty() {
            continue;
        }
        kinds.push(key);
        // a pixel loss that Reconstruct computes belongs to it
        let both = plan.fusion(at).is_some_and(|fusion| fusion.absorbed);
        let range = at..at + 1 + usize::from(both);
        let mut launches = lower_range_for(&plan, range, depthwise.into()).unwrap();
        if few_blocks {
            run_on_few_blocks(&mut launches);
        }
        keep_unnoticed(&with_inputs(at), &launches, &mut places);
    }
    Some(places)
}

/// Leaves those of `places` without whose barrier the launches give the same memory in every order of
/// lanes. `host` has the inputs.
pub fn keep_unnoticed(host: &Host, launches: &[Launch], places: &mut Vec<String>) {
    let scalars = Scalars {
        accumulate: false,
        ..SCALARS
    };
    // Returns the memory after a run in an order, or the error of the fibers.
    let run = |order: Order, without: Option<String>| -> Result<Vec<Vec<u8>>, String> {
        let mut host = host.clone();
        (host.order, host.without) = (order, without);
        host.run(&scalars, launches)?;
        Ok(host.memory)
    };
    let whole = run(Order::Mixed, None);
    places.retain(|place| {
        ORDERS
            .iter()
            .all(|&order| run(order, Some(place.clone())) == whole)
    });
}

/// Gives launches whose blocks take any number of tiles so few blocks that each has several.
pub fn run_on_few_blocks(launches: &mut [Launch]) {
    for launch in launches {
        if [
            "plain_conv_weights",
            "plain_depthwise_weights",
            "matrix_conv_weights",
            "matrix_pointwise_weights",
        ]
        .contains(&launch.kernel)
        {
            let splits = launch.arguments.int("splits").unwrap() as u32;
            launch.arguments.set_int("splits", 1).unwrap();
            launch.grid[0] /= splits;
        }
        if ["matrix_conv", "matrix_conv_narrow"].contains(&launch.kernel) {
            launch.grid[0] = launch.arguments.int("slabs").unwrap() as u32;
        }
        if launch.persistent {
            launch.grid[0] = launch.grid[0].min(2);
        }
        if ["nano_block", "conv", "reconstruct"]
            .iter()
            .any(|start| launch.kernel.starts_with(start))
        {
            let blocks = launch.grid[0];
            launch.grid[0] = blocks.min(2);
            if launch.kernel.starts_with("nano_block_back") {
                let tiles = launch.arguments.int("tiles").unwrap() as u32 * blocks;
                let tiles = tiles.div_ceil(launch.grid[0]) as i32;
                launch.arguments.set_int("tiles", tiles).unwrap();
            }
        }
    }
}
