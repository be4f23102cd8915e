//! The plain CUDA kernels against the CPU backend, without a GPU: every operation of every network
//! but Nano, as `kernels_host` has those of Nano.

use crate::kernels_common::{Host, ORDERS, Order, SCALARS, compile, to_activations};
use crate::kernels_host::{
    Case, PRECISIONS, barriers, compare_network, compare_on, unnoticed_barriers,
};
use crate::network_common::{noise, spec};
use paragon::backend::cuda::{Choices, CudaSizing, lower_range};
use paragon::model::{Network, Recompute, StepSpec, training_plan};
use paragon::plan::LossKind::{self, L1};
use paragon::plan::{Conv, Op, OptimizerKind, Precision, RmsNorm};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

const L1_ONLY: &[(LossKind, f32)] = &[(L1, 1.0)];

/// A network with settings that make it small, and parameters that give every layer an effect.
fn network(name: &str, scale: usize, settings: &[(&str, usize)]) -> (Network, Vec<f32>) {
    let mut net = Network::new(name, scale).unwrap();
    for &(setting, value) in settings {
        net.set(setting, value).unwrap();
    }
    for setting in ["layer_scale", "detail_gain"] {
        if net.spec(setting).is_ok() {
            net.set(setting, 0.5).unwrap();
        }
    }
    let params = net.params().start_values(11);
    (net, params)
}

/// Compares up to `most` operations of each kind.
fn compare(
    (net, params): &(Network, Vec<f32>),
    case: Case<'_>,
    precision: Precision,
    (orders, sanitize): (&[Order], bool),
    most: usize,
) {
    let wanted = |op: &Op| !matches!(op, Op::Update(_) | Op::PixelLoss(_) | Op::Unpack(_));
    compare_network(
        (net, params),
        case,
        OptimizerKind::AdamW,
        precision,
        orders,
        sanitize,
        first_of_each(most, wanted),
    );
}

/// Chooses up to `most` operations of each kind that is wanted.
fn first_of_each(most: usize, wanted: impl Fn(&Op) -> bool) -> impl Fn(&Op) -> bool {
    let seen = RefCell::new(HashMap::new());
    move |op| {
        let mut seen = seen.borrow_mut();
        let count: &mut usize = seen.entry(op.name()).or_default();
        *count += 1;
        *count <= most && wanted(op)
    }
}

/// Every precision in three orders of lanes, then one of them under the address sanitizer.
fn all(net: &(Network, Vec<f32>), case: Case<'_>, most: usize) {
    for precision in PRECISIONS {
        compare(net, case, precision, (&ORDERS, false), most);
    }
    compare(net, case, Precision::Bf16, (&[Order::Mixed], true), most);
}

/// The same for networks of many operations: one order in fp16, one operation of each kind under the
/// address sanitizer.
fn few_orders(net: &(Network, Vec<f32>), case: Case<'_>, most: usize) {
    for precision in [Precision::F32, Precision::Bf16] {
        compare(net, case, precision, (&ORDERS, false), most);
    }
    compare(net, case, Precision::Fp16, (&[Order::Mixed], false), most);
    compare(net, case, Precision::Bf16, (&[Order::Mixed], true), 1);
}

#[test]
fn compact() {
    let prelu = network("compact", 2, &[("num_feat", 20), ("num_conv", 1)]);
    all(&prelu, (2, 2, (7, 19), L1_ONLY, false, Recompute::None), 9);
    let wide = network("compact", 4, &[("num_feat", 64), ("num_conv", 1)]);
    let case = (4, 1, (9, 17), L1_ONLY, true, Recompute::None);
    compare(&wide, case, Precision::F32, (&[Order::Mixed], false), 9);
    let same = network("compact", 1, &[("num_feat", 3), ("num_conv", 1)]);
    let case = (1, 1, (1, 1), L1_ONLY, false, Recompute::None);
    compare(&same, case, Precision::Fp16, (&[Order::Mixed], false), 9);
}

#[test]
fn span() {
    let net = network("span", 2, &[("feature_channels", 20)]);
    few_orders(&net, (2, 1, (6, 18), L1_ONLY, false, Recompute::None), 4);
}

#[test]
fn stream() {
    let net = network("stream", 2, &[]);
    all(&net, (2, 1, (9, 18), L1_ONLY, false, Recompute::None), 2);
    let net = network("stream", 3, &[]);
    let case = (3, 1, (5, 7), L1_ONLY, true, Recompute::None);
    compare(&net, case, Precision::F32, (&[Order::Mixed], false), 2);
    compare(&net, case, Precision::Bf16, (&[Order::Mixed], true), 2);
}

#[test]
fn photo() {
    let net = network("photo", 2, &[("window_size", 8)]);
    few_orders(&net, (2, 2, (11, 18), L1_ONLY, false, Recompute::None), 5);
}

/// With a larger LayerScale features become thousands, of which the channel attentions take small
/// differences.
#[test]
fn pro() {
    let (mut net, _) = network("pro", 2, &[("window_size", 8)]);
    net.set("layer_scale", 0.05).unwrap();
    let params = net.params().start_values(11);
    let net = (net, params);
    let case = (2, 1, (8, 16), L1_ONLY, false, Recompute::None);
    for precision in [Precision::F32, Precision::Bf16] {
        compare(&net, case, precision, (&[Order::Mixed], false), 2);
    }
}

/// A card with few multiprocessors launches fewer blocks that sum than the plan has room for.
#[test]
fn few_blocks_that_sum() {
    let on = Choices {
        sum_blocks: 5,
        ..Choices::default()
    };
    let photo = network("photo", 2, &[("window_size", 8)]);
    let compact = network("compact", 2, &[("num_feat", 64), ("num_conv", 1)]);
    for (net, params) in [network("stream", 2, &[]), photo, compact] {
        for precision in [Precision::F32, Precision::Bf16] {
            let sums = |op: &Op| {
                matches!(
                    op,
                    Op::ConvBack(_) | Op::RmsNormBack(_) | Op::StreamBlockBack(_)
                )
            };
            let case = (2, 1, (40, 33), L1_ONLY, false, Recompute::None);
            let (optimizer, on) = (OptimizerKind::AdamW, (precision, on));
            let (network, chosen) = ((&net, &params[..]), first_of_each(2, sums));
            compare_on(network, case, optimizer, on, &ORDERS[..1], false, chosen);
        }
    }
}

/// An RMSNorm and the 1x1 convolution after it give the same bits as one launch and as two, with and
/// without padding, whether or not the backward pass reads the normalised values.
#[test]
fn a_norm_and_its_convolution_at_once() {
    let Some(program) = compile(Precision::Bf16, false) else {
        return;
    };
    let (net, params) = network("photo", 2, &[("window_size", 8)]);
    let spec = StepSpec {
        recompute: Recompute::Block,
        ..spec(2, (11, 18), L1_ONLY, false)
    };
    let sizing = |precision| CudaSizing { precision };
    let plan = training_plan(&net, &spec, &sizing(Precision::Bf16)).unwrap();
    let pairs: Vec<(usize, &RmsNorm, &Conv)> = (0..plan.ops.len() - 1)
        .filter_map(|at| match (&plan.ops[at], &plan.ops[at + 1]) {
            (Op::RmsNorm(norm), Op::Conv(conv)) if plan.fusion(at).is_some() => {
                Some((at, norm, conv))
            }
            _ => None,
        })
        .collect();
    // two norms a block; each block runs again for its backward pass, which reads the results
    assert_eq!(pairs.len(), 64);
    let again = |at: usize, norm: &RmsNorm| plan.used_after(norm.output, at + 1);
    assert_eq!(pairs.iter().filter(|p| again(p.0, p.1)).count(), 32);
    let of_floats = training_plan(&net, &spec, &sizing(Precision::F32)).unwrap();
    assert!(pairs.iter().all(|p| of_floats.fusion(p.0).is_none()));
    let alone = |kernel: &str| kernel == "plain_rms_norm";
    let all = lower_range(&plan, plan.micro.clone()).unwrap();
    assert!(!all.iter().any(|launch| alone(launch.kernel)));
    // the first block, which has both norms, and its second pass
    for &(at, norm, conv) in pairs[..2].iter().chain(&pairs[62..]) {
        let run = |order: Order, ranges: &[Range<usize>]| {
            let mut host = Host::new(plan.clone(), program.clone(), order);
            let parameters = to_activations(&noise(params.len(), 7), Precision::F32);
            host.bytes(norm.parameters).copy_from_slice(&parameters);
            let count = norm.extent.pixels() * norm.stride();
            let input = to_activations(&noise(count, at as u64), Precision::Bf16);
            host.bytes(norm.input).copy_from_slice(&input);
            for range in ranges {
                let launches = lower_range(&plan, range.clone()).unwrap();
                host.run(&SCALARS, &launches).unwrap();
            }
            (
                host.bytes(norm.output).to_vec(),
                host.bytes(conv.output).to_vec(),
            )
        };
        let (normed, output) = run(Order::Mixed, &[at..at + 1, at + 1..at + 2]);
        for order in ORDERS {
            let (written, result) = run(order, &[at..at + 2]);
            assert!(result == output, "operation {at}, {order:?}");
            if again(at, norm) {
                assert!(written == normed, "operation {at}, {order:?}");
            } else {
                // as it was before
                assert!(written.iter().all(|&byte| byte == 0xff), "operation {at}");
            }
        }
    }
}

/// Sums that are carried from image to image.
#[test]
fn slices() {
    for (name, settings) in [
        ("compact", &[("num_feat", 20), ("num_conv", 1)][..]),
        ("span", &[("feature_channels", 20)]),
        ("stream", &[]),
        ("photo", &[("window_size", 4)]),
    ] {
        let net = network(name, 2, settings);
        let case = (2, 9, (8, 8), L1_ONLY, false, Recompute::Full);
        compare(&net, case, Precision::F32, (&[Order::Mixed], false), 3);
    }
}

/// As `kernels_host` has it for the kernels of Nano; `kernels_convolutions` has the convolutions.
#[test]
fn a_missing_barrier_is_noticed() {
    type Chosen = fn(&Op) -> bool;
    let norms: Chosen = |op| matches!(op, Op::RmsNormBack(_) | Op::ChannelAttentionBack(_));
    let attention: Chosen = |op| {
        matches!(
            op,
            Op::WindowAttention(_)
                | Op::WindowAttentionBack(_)
                | Op::TokenAttention(_)
                | Op::TokenAttentionBack(_)
        )
    };
    let stream: Chosen = |op| matches!(op, Op::StreamBlock(_) | Op::StreamBlockBack(_));
    let streamed = network("stream", 2, &[]);
    // One window, with more tokens than a tile of keys has.
    let pro = network("pro", 2, &[("window_size", 17)]);
    let photo = network("photo", 2, &[("window_size", 17)]);
    let mut unnoticed = Vec::new();
    for (file, (net, params), chosen, precision) in [
        ("plain.cuh", &pro, norms, Precision::F32),
        ("plain_norm.cu", &pro, norms, Precision::F32),
        ("plain_attention.cu", &pro, attention, Precision::F32),
        ("matrix_attention.cu", &photo, attention, Precision::Bf16),
        ("stream_block.cu", &streamed, stream, Precision::Bf16),
    ] {
        let case = (spec(1, (17, 17), L1_ONLY, false), precision);
        let places = barriers(file);
        let Some(blind) = unnoticed_barriers((net, params), case, chosen, &places, true) else {
            return;
        };
        unnoticed.extend(blind);
    }
    assert!(
        unnoticed.is_empty(),
        "no order of lanes needs these barriers: {unnoticed:?}"
    );
}
