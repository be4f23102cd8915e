//! The plain CUDA convolutions, and those on tensor cores, against a slow f64 version, without a GPU:
//! kernels, dilations, groups and numbers of channels that no network has.

use crate::kernels_common::{
    Host, ORDERS, Order, SCALARS, compile, from_activations, to_activations,
};
use crate::kernels_host::{PRECISIONS, barriers, keep_unnoticed, run_on_few_blocks};
use crate::network_common;
use crate::reference::golden::relative_error;
use paragon::backend::cuda::{CudaSizing, lower_range};
use paragon::model::{Network, StepSpec, training_plan};
use paragon::plan::{
    Activation, Buffer, BufferId, Class, Conv, ConvBack, Destination, Extent, LossKind, Op,
    ParamRange, PlanData, Precision, Sizing, Slice,
};

/// Images, rows, columns; input and output channels; taps, dilation, groups.
type Shape = (usize, usize, usize, usize, usize, usize, usize, usize);

/// Activation functions, with what they need of the test's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Function {
    None,
    Relu,
    Leaky,
    PRelu,
    Silu,
    Gelu,
    Normalize,
}

const CASES: [(Shape, Function); 23] = [
    ((1, 1, 1, 3, 20, 3, 1, 1), Function::None),
    ((2, 4, 7, 3, 7, 3, 1, 1), Function::Normalize),
    ((2, 5, 19, 20, 52, 3, 1, 1), Function::PRelu),
    ((1, 9, 7, 48, 33, 5, 1, 1), Function::Silu),
    ((1, 6, 21, 40, 40, 3, 3, 40), Function::None),
    ((1, 6, 21, 40, 40, 5, 1, 40), Function::Gelu),
    ((1, 5, 6, 20, 20, 3, 1, 20), Function::PRelu),
    ((1, 7, 18, 24, 36, 3, 2, 4), Function::Leaky),
    ((1, 4, 33, 70, 130, 1, 1, 1), Function::Relu),
    ((1, 3, 3, 16, 16, 7, 1, 1), Function::Gelu),
    ((1, 9, 10, 17, 3, 3, 1, 1), Function::None),
    ((1, 18, 20, 64, 70, 3, 1, 1), Function::None),
    ((2, 4, 17, 96, 24, 3, 1, 1), Function::Silu),
    ((1, 33, 5, 16, 12, 3, 1, 1), Function::Leaky),
    ((1, 17, 18, 33, 60, 3, 1, 1), Function::Relu),
    ((1, 9, 37, 64, 192, 1, 1, 1), Function::None),
    ((2, 5, 29, 20, 52, 1, 1, 1), Function::PRelu),
    ((1, 7, 19, 128, 40, 1, 1, 1), Function::Gelu),
    ((1, 17, 18, 36, 16, 1, 1, 1), Function::Leaky),
    ((1, 3, 11, 33, 300, 1, 1, 1), Function::Silu),
    ((1, 27, 11, 70, 70, 3, 1, 70), Function::Silu),
    ((2, 40, 5, 32, 32, 3, 3, 32), Function::None),
    ((1, 9, 26, 17, 17, 7, 1, 17), Function::Relu),
];

/// Whether the kernels with tensor cores compute a case. They round weights and activated inputs to
/// the type of the activations.
fn on_tensor_cores(case: usize, precision: Precision) -> bool {
    precision != Precision::F32 && (matches!(case, 2 | 8) || (11..20).contains(&case))
}

/// A plan of one convolution and its gradients.
struct Setup {
    plan: PlanData,
    conv: Conv,
    back: ConvBack,
}

fn stride(channels: usize) -> usize {
    if channels == 3 {
        3
    } else {
        channels.next_multiple_of(16)
    }
}

/// Whether the test's first function of a case adds the gradient of the input to another.
fn adds(case: usize) -> bool {
    case % 2 == 1
}

fn setup(case: usize, precision: Precision, slice: Slice) -> Setup {
    let ((n, h, w, cin, cout, kernel, dilation, groups), function) = CASES[case];
    let net = Network::new("nano", 2).unwrap();
    let spec = StepSpec::new(1, (16, 16), vec![(LossKind::L1, 1.0)]);
    let sizing = CudaSizing { precision };
    let mut plan: PlanData = training_plan(&net, &spec, &sizing).unwrap().into();
    let mut buffer = |bytes: usize| {
        plan.buffers.push(Buffer {
            name: format!("buffer {}", plan.buffers.len()),
            class: Class::Activations,
            bytes: bytes as u64,
            live: 0..2,
            offset: 0,
            parent: None,
        });
        BufferId(plan.buffers.len() as u32 - 1)
    };
    let pixels = n * h * w;
    let value = |channels: usize| {
        pixels
            * if channels == 3 {
                12
            } else {
                channels * precision.bytes() as usize
            }
    };
    let weight = cout * (cin / groups) * kernel * kernel;
    let count = weight + cout + cin;
    let range = |offset, len| ParamRange { offset, len };
    let slopes = range(weight + cout, cin);
    let (input_stride, output_stride) = (stride(cin), cout.next_multiple_of(16));
    let [parameters, gradients] = [buffer(4 * count), buffer(4 * count)];
    let [input, d_input] = [buffer(value(input_stride)), buffer(value(input_stride))];
    let [output, d_output] = [buffer(value(output_stride)), buffer(value(output_stride))];
    let mut conv = Conv {
        extent: Extent { n, h, w },
        cin,
        cout,
        input_stride,
        output_stride,
        kernel,
        dilation,
        groups,
        activation: match function {
            Function::None => None,
            Function::Relu => Some(Activation::Relu),
            Function::Leaky => Some(Activation::LeakyRelu { slope: 0.1 }),
            Function::PRelu => Some(Activation::PRelu { slopes }),
            Function::Silu => Some(Activation::Silu),
            Function::Gelu => Some(Activation::Gelu),
            Function::Normalize => Some(Activation::Normalize {
                mean: [0.1, 0.2, 0.3],
                factor: 2.0,
            }),
        },
        tile_invariant: false,
        tile_alignment: 1,
        weight: range(0, weight),
        bias: range(weight, cout),
        parameters,
        slopes: parameters,
        input,
        output,
        workspace: None,
    };
    let mut back = ConvBack {
        forward: conv.clone(),
        gradients,
        accumulates: !adds(case),
        slope_gradients: gradients,
        d_output,
        d_input: Some(Destination {
            buffer: d_input,
            add: adds(case),
        }),
        slice,
        workspace: None,
    };
    let packed = sizing.workspace(&conv.clone().into()) as usize;
    if packed > 0 {
        conv.workspace = Some(buffer(packed));
    }
    let op: Op = back.clone().into();
    sizing.supports(&op).unwrap();
    back.slice.carry = Some(buffer(sizing.carry(&op) as usize));
    back.workspace = Some(buffer(sizing.workspace(&op) as usize));
    plan.ops = vec![conv.clone().into(), back.clone().into()];
    Setup { plan, conv, back }
}

fn function(f: Function, z: f64, slope: f64, channel: usize) -> f64 {
    match f {
        Function::None => z,
        Function::Relu => z.max(0.0),
        Function::Leaky if z < 0.0 => f64::from(0.1f32) * z,
        Function::PRelu if z < 0.0 => slope * z,
        Function::Leaky | Function::PRelu => z,
        Function::Silu => z / (1.0 + (-z).exp()),
        Function::Gelu => 0.5 * z * (1.0 + crate::reference::erf::erf(z / 2f64.sqrt())),
        Function::Normalize => (z - f64::from([0.1f32, 0.2, 0.3][channel])) * 2.0,
    }
}

/// What a convolution and its backward pass give, each value without the channels that fill a group.
struct Expected {
    output: Vec<f64>,
    d_input: Vec<f64>,
    gradients: Vec<f64>,
}

/// All sums by their definition; the derivative of the function by differences.
fn expected(
    (case, precision): (usize, Precision),
    parameters: &[f64],
    input: &[f64],
    d_output: &[f64],
) -> Expected {
    let ((n, h, w, cin, cout, kernel, dilation, groups), f) = CASES[case];
    let (inputs, outputs, taps) = (cin / groups, cout / groups, kernel * kernel);
    let (weights, slopes) = (cout * inputs * taps, cout * inputs * taps + cout);
    let slope = |c: usize| parameters[slopes + c];
    let operands = |values: Vec<f64>| -> Vec<f64> {
        if !on_tensor_cores(case, precision) {
            return values;
        }
        let single: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        let rounded = from_activations(&to_activations(&single, precision), precision);
        rounded.into_iter().map(f64::from).collect()
    };
    let activated = input.iter().enumerate();
    let activated = activated.map(|(i, &z)| function(f, z, slope(i % cin), i % cin));
    let activated = operands(activated.collect());
    let multiplied = operands(parameters[..weights].to_vec());
    let mut all = Expected {
        output: vec![0.0; n * h * w * cout],
        d_input: vec![0.0; n * h * w * cin],
        gradients: vec![0.0; slopes + cin],
    };
    let reach = (kernel / 2 * dilation) as isize;
    for pixel in 0..n * h * w {
        let (x, y) = ((pixel % w) as isize, (pixel / w % h) as isize);
        for co in 0..cout {
            let d = d_output[pixel * cout + co];
            all.gradients[weights + co] += d;
            let mut sum = parameters[weights + co];
            for tap in 0..taps {
                let row = y - reach + (tap / kernel * dilation) as isize;
                let column = x - reach + (tap % kernel * dilation) as isize;
                if row < 0 || row >= h as isize || column < 0 || column >= w as isize {
                    continue;
                }
                let from = (pixel as isize + (row - y) * w as isize + column - x) as usize;
                for ci in 0..inputs {
                    let at = from * cin + co / outputs * inputs + ci;
                    let weight = (co * inputs + ci) * taps + tap;
                    sum += multiplied[weight] * activated[at];
                    all.gradients[weight] += d * activated[at];
                    all.d_input[at] += d * multiplied[weight];
                }
            }
            all.output[pixel * cout + co] = sum;
        }
    }
    for (i, d) in all.d_input.iter_mut().enumerate() {
        let (z, s, c) = (input[i], slope(i % cin), i % cin);
        if f == Function::PRelu {
            all.gradients[slopes + c] += *d * z.min(0.0);
        }
        let step = 1e-6;
        *d *= (function(f, z + step, s, c) - function(f, z - step, s, c)) / (2.0 * step);
    }
    all
}

/// Random values away from 0, where some functions have no derivative.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let noise = network_common::noise(count, seed);
    noise
        .iter()
        .map(|v| if *v < 0.5 { v - 0.6 } else { v - 0.4 })
        .collect()
}

/// Values of `channels` channels in a buffer that has `stride`, those that fill it being 0, and the
/// same values as the buffer's type has them.
fn spread(
    values: &[f32],
    channels: usize,
    stride: usize,
    precision: Precision,
) -> (Vec<u8>, Vec<f64>) {
    let precision = if stride == 3 {
        Precision::F32
    } else {
        precision
    };
    let mut padded = Vec::new();
    for pixel in values.chunks_exact(channels) {
        padded.extend_from_slice(pixel);
        padded.resize(padded.len() + stride - channels, 0.0);
    }
    let bytes = to_activations(&padded, precision);
    let rounded = gather(&from_activations(&bytes, precision), channels, stride);
    (bytes, rounded)
}

fn gather(values: &[f32], channels: usize, stride: usize) -> Vec<f64> {
    let pixels = values.chunks_exact(stride);
    pixels
        .flat_map(|p| p[..channels].iter().map(|&v| f64::from(v)))
        .collect()
}

fn compare(case: usize, precision: Precision, orders: &[Order], sanitize: bool) {
    let Some(program) = compile(precision, sanitize) else {
        return;
    };
    let Setup { plan, conv, back } = setup(case, precision, Slice::whole(1));
    let pixels = conv.extent.pixels();
    let counted = plan.buffer(conv.parameters).bytes as usize / 4;
    let parameters = values(counted, 1);
    let (input, z) = spread(
        &values(pixels * conv.cin, 2),
        conv.cin,
        conv.input_stride,
        precision,
    );
    let (d_output, d) = spread(
        &values(pixels * conv.cout, 3),
        conv.cout,
        conv.output_stride,
        precision,
    );
    let wide: Vec<f64> = parameters.iter().map(|&v| f64::from(v)).collect();
    let want = expected((case, precision), &wide, &z, &d);
    let d_input = back.d_input.unwrap().buffer;
    let (before, added) = spread(
        &values(pixels * conv.cin, 4),
        conv.cin,
        conv.input_stride,
        precision,
    );
    let earlier = values(counted, 5);
    let mut first: Option<Vec<Vec<u8>>> = None;
    for &order in orders {
        let what = format!("case {case}, {:?}, {precision}, {order:?}", CASES[case]);
        let mut host = Host::new(plan.clone(), program.clone(), order);
        for (id, bytes) in [
            (conv.input, &input),
            (back.d_output, &d_output),
            (d_input, &before),
        ] {
            host.bytes(id).copy_from_slice(bytes);
        }
        host.bytes(conv.parameters)
            .copy_from_slice(&to_activations(&parameters, Precision::F32));
        host.bytes(back.gradients)
            .copy_from_slice(&to_activations(&earlier, Precision::F32));
        host.run(&SCALARS, &lower_range(&plan, 0..2).unwrap())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let read = |host: &mut Host, id: BufferId, channels: usize, stride: usize| {
            let of = if stride == 3 {
                Precision::F32
            } else {
                precision
            };
            let all = from_activations(host.bytes(id), of);
            let fill = all
                .chunks_exact(stride)
                .all(|p| p[channels..].iter().all(|&v| v == 0.0));
            assert!(fill, "{what}: channels that fill a group are not 0");
            gather(&all, channels, stride)
        };
        let limit = match precision {
            Precision::F32 => 2e-6,
            Precision::Bf16 => 5e-3,
            Precision::Fp16 => 7e-4,
        };
        let check = |name: &str, got: &[f64], want: &[f64], limit: f64| {
            let error = relative_error(got, want);
            assert!(error < limit, "{what}: {name} differs by {error:e}");
        };
        let got = read(&mut host, conv.output, conv.cout, conv.output_stride);
        check("output", &got, &want.output, limit);
        let got = read(&mut host, d_input, conv.cin, conv.input_stride);
        let add = |(d, a): (&f64, &f64)| if adds(case) { d + a } else { *d };
        let sum: Vec<f64> = want.d_input.iter().zip(&added).map(add).collect();
        check("d input", &got, &sum, limit);
        let got = from_activations(host.bytes(back.gradients), Precision::F32);
        let slopes = conv.weight.len + conv.bias.len;
        let sums: Vec<f64> = (0..counted)
            .map(|i| {
                let kept = if back.accumulates || i >= slopes {
                    f64::from(earlier[i])
                } else {
                    0.0
                };
                kept + want.gradients[i]
            })
            .collect();
        let got: Vec<f64> = got.iter().map(|&v| f64::from(v)).collect();
        // a few values of an approximated function are rounded to the neighbour; GELU's error is about
        // the rounding of fp16
        let limit = match CASES[case].1 {
            Function::Silu if on_tensor_cores(case, precision) => 1e-4,
            Function::Gelu if on_tensor_cores(case, precision) => limit / 2.0,
            _ => 2e-6,
        };
        check("gradients", &got, &sums, limit);
        let all = first.get_or_insert_with(|| host.memory.clone());
        assert!(*all == host.memory, "{what}: depends on the order of lanes");
    }
}

#[test]
fn convolutions_of_every_shape() {
    for case in 0..CASES.len() {
        for precision in PRECISIONS {
            let launches =
                lower_range(&setup(case, precision, Slice::whole(1)).plan, 0..2).unwrap();
            let matrix = launches.iter().any(|l| l.kernel.starts_with("matrix_"));
            assert_eq!(matrix, on_tensor_cores(case, precision), "case {case}");
            compare(case, precision, &ORDERS, false);
        }
        compare(case, PRECISIONS[case % 3], &[Order::Mixed], true);
    }
}

/// The barriers of a file of kernels without which every order of lanes gives the same results.
fn unnoticed_barriers(file: &str, precision: Precision, cases: &[usize]) -> Option<Vec<String>> {
    let program = compile(precision, false)?;
    let mut places = barriers(file);
    for &case in cases {
        let Setup { plan, conv, back } = setup(case, precision, Slice::whole(1));
        let mut host = Host::new(plan.clone(), program.clone(), Order::Mixed);
        for (seed, (id, of)) in [
            (conv.parameters, Precision::F32),
            (conv.input, precision),
            (back.d_output, precision),
        ]
        .into_iter()
        .enumerate()
        {
            let count = plan.buffer(id).bytes / of.bytes();
            let values = to_activations(&values(count as usize, seed as u64), of);
            host.bytes(id).copy_from_slice(&values);
        }
        let mut launches = lower_range(&plan, 0..2).unwrap();
        run_on_few_blocks(&mut launches);
        keep_unnoticed(&host, &launches, &mut places);
    }
    Some(places)
}

/// As `kernels_host` has it for the kernels of Nano: dense, pointwise and depthwise convolutions, and
/// one with the gradient of slopes.
#[test]
fn a_missing_barrier_is_noticed() {
    for (file, precision, cases) in [
        ("plain_conv.cu", Precision::F32, &[2, 3, 5, 8][..]),
        ("matrix_conv.cu", Precision::Bf16, &[2, 14]),
        ("matrix_pointwise.cu", Precision::Bf16, &[8, 16]),
    ] {
        let Some(places) = unnoticed_barriers(file, precision, cases) else {
            return;
        };
        assert!(
            places.is_empty(),
            "no order of lanes needs these barriers: {places:?}"
        );
    }
}

/// A convolution that no block has the shared memory for.
#[test]
fn taps_that_reach_too_far_are_refused() {
    let Setup { conv, .. } = setup(2, Precision::F32, Slice::whole(1));
    let far: Op = Conv {
        dilation: 100,
        ..conv
    }
    .into();
    let sizing = CudaSizing {
        precision: Precision::F32,
    };
    let error = format!("{:#}", sizing.supports(&far).unwrap_err());
    assert!(
        error.contains("reach 100 pixels") && error.contains("shared memory"),
        "{error}"
    );
}
