//! Proves the plain f64 operations before a fast kernel is compared with them: values worked out by
//! hand, the other reference's NHWC loops, and finite differences for every backward pass.

use crate::reference;

use reference::differences::{check, check_tape};
use reference::networks::span_compose::{Conv3xc, ConvTensors};
use reference::plain::{self, Activation, Convolution};
use reference::tensor::Tensor;
use reference::{BLUR, ops};

fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(shape, -1.0, 1.0, seed)
}

/// `0, 1, 2, ...`
fn counted(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    Tensor::new(shape, (0..count).map(|i| i as f64).collect())
}

#[test]
fn layouts_convert_both_ways() {
    let x = counted(&[2, 3, 2, 2]);
    let nhwc = x.to_nhwc();
    assert_eq!(nhwc[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
    assert_eq!(Tensor::from_nhwc([2, 2, 2, 3], &nhwc), x);
}

#[test]
fn convolutions_match_values_by_hand() {
    let x = counted(&[1, 1, 3, 3]);
    let weight = Tensor::new(&[1, 1, 3, 3], (1..=9).map(f64::from).collect());
    let bias = Tensor::new(&[1], vec![0.5]);
    let got = plain::conv2d(&x, &weight, &bias, Convolution::dense(3));
    // the centre: 1*0 + 2*1 + ... + 9*8; the first corner: 5*0 + 6*1 + 8*3 + 9*4
    assert_eq!((got.data[4], got.data[0]), (240.5, 66.5));
    // with dilation 3 all but the central tap are outside a 3x3 image
    let dilated = plain::conv2d(&x, &weight, &bias, Convolution::depthwise(1, 3, 3));
    assert_eq!(dilated, x.map(|v| 5.0 * v + 0.5));
    // a padded 1x1 convolution adds a ring that carries the bias
    let ring = Convolution {
        padding: [1, 1],
        ..Convolution::dense(1)
    };
    let doubled = Tensor::new(&[1, 1, 1, 1], vec![2.0]);
    let padded = plain::conv2d(&x, &doubled, &bias, ring);
    assert_eq!(padded.shape, [1, 1, 5, 5]);
    assert_eq!(padded.data[..7], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]);
    assert_eq!(padded.data[7..9], [2.5, 4.5]);
    // two groups: each output reads its own half of the inputs
    let two = counted(&[1, 2, 1, 1]).map(|v| v + 1.0);
    let weight = Tensor::new(&[2, 1, 1, 1], vec![10.0, 100.0]);
    let groups = Convolution {
        groups: 2,
        ..Convolution::dense(1)
    };
    let got = plain::conv2d(&two, &weight, &Tensor::zeros(&[2]), groups);
    assert_eq!(got.data, [10.0, 200.0]);
}

#[test]
fn convolutions_match_the_nhwc_loops() {
    let x = random(&[2, 4, 5, 7], 1);
    let [n, c, h, w] = x.nchw();
    let picture = ops::Picture {
        n,
        h,
        w,
        c,
        data: x.to_nhwc(),
    };
    let bias = random(&[6], 3);
    for (weight, settings) in [
        (random(&[6, 4, 3, 3], 2), Convolution::dense(3)),
        (random(&[6, 4, 1, 1], 2), Convolution::dense(1)),
    ] {
        let k = weight.shape[2];
        let expected = ops::conv(&picture, &weight.data, &bias.data, k);
        let got = plain::conv2d(&x, &weight, &bias, settings).to_nhwc();
        assert!(reference::golden::relative_error(&got, &expected.data) < 1e-15);
    }
    let (weight, bias) = (random(&[4, 1, 3, 3], 4), random(&[4], 5));
    let expected = ops::depthwise(&picture, &weight.data, &bias.data);
    let got = plain::conv2d(&x, &weight, &bias, Convolution::depthwise(4, 3, 1)).to_nhwc();
    assert!(reference::golden::relative_error(&got, &expected.data) < 1e-15);
}

#[test]
fn convolutions_match_finite_differences() {
    for (what, input, weight, settings) in [
        ("3x3", [2, 3, 4, 5], [4, 3, 3, 3], Convolution::dense(3)),
        ("1x1", [2, 3, 2, 3], [4, 3, 1, 1], Convolution::dense(1)),
        (
            "depthwise",
            [1, 3, 4, 3],
            [3, 1, 3, 3],
            Convolution::depthwise(3, 3, 1),
        ),
        (
            "dilated depthwise",
            [1, 2, 7, 5],
            [2, 1, 3, 3],
            Convolution::depthwise(2, 3, 3),
        ),
        (
            "dilated, image of one pixel",
            [2, 2, 1, 1],
            [2, 1, 3, 3],
            Convolution::depthwise(2, 3, 3),
        ),
        (
            "groups of 2 in, 3 out; 1x3; padding beyond the kernel",
            [1, 4, 3, 5],
            [6, 2, 1, 3],
            Convolution {
                groups: 2,
                dilation: 2,
                padding: [1, 3],
            },
        ),
        (
            "without padding",
            [1, 2, 4, 5],
            [3, 2, 3, 3],
            Convolution {
                padding: [0, 0],
                ..Convolution::dense(3)
            },
        ),
    ] {
        let bias = random(&weight[..1], 3);
        let inputs = [random(&input, 1), random(&weight, 2), bias];
        check_tape(what, &inputs, |tape, v| {
            tape.conv2d(v[0], v[1], v[2], settings)
        });
    }
}

#[test]
fn activations_match_known_values_and_finite_differences() {
    // silu and sigmoid: correctly rounded from a 30-digit evaluation
    for (activation, z, value) in [
        (Activation::Relu, -2.0, 0.0),
        (Activation::Relu, 2.0, 2.0),
        (Activation::LeakyRelu(0.1), -2.0, -0.2),
        (Activation::LeakyRelu(0.1), 2.0, 2.0),
        (Activation::Sigmoid, 0.0, 0.5),
        (Activation::Sigmoid, 1.0, 0.7310585786300049),
        (Activation::Sigmoid, -800.0, 0.0),
        (Activation::Silu, 1.0, 0.7310585786300049),
        (Activation::Silu, -2.0, -0.2384058440442351),
        (Activation::Gelu, 1.0, 0.8413447460685429),
    ] {
        let got = activation.value(z);
        assert!(
            (got - value).abs() <= 3e-16 * value.abs(),
            "{activation:?}({z}) = {got:e}"
        );
    }
    // at the kink PyTorch takes the slope of the negative side
    assert_eq!(Activation::Relu.slope(0.0), 0.0);
    assert_eq!(Activation::LeakyRelu(0.1).slope(0.0), 0.1);
    let x = random(&[2, 3, 3, 4], 1).map(|v| 4.0 * v);
    for activation in [
        Activation::Relu,
        Activation::LeakyRelu(0.1),
        Activation::Silu,
        Activation::Gelu,
        Activation::Sigmoid,
    ] {
        let x = std::slice::from_ref(&x);
        check_tape(&format!("{activation:?}"), x, |tape, v| {
            tape.activate(v[0], activation)
        });
    }
}

#[test]
fn prelu_has_a_slope_for_each_channel() {
    let x = Tensor::new(&[1, 2, 1, 2], vec![-1.0, 2.0, -3.0, 0.0]);
    let slopes = Tensor::new(&[2], vec![0.5, 0.25]);
    assert_eq!(plain::prelu(&x, &slopes).data, [-0.5, 2.0, -0.75, 0.0]);
    let [_, d_slopes] = plain::prelu_backward(&x, &slopes, &x.map(|_| 1.0));
    assert_eq!(d_slopes.data, [-1.0, -3.0]);
    let inputs = [random(&[2, 3, 3, 4], 1), random(&[3], 2)];
    check_tape("prelu", &inputs, |tape, v| tape.prelu(v[0], v[1]));
}

#[test]
fn products_are_clamped() {
    let (a, b) = (
        Tensor::new(&[4], vec![2.0, -300.0, 300.0, 256.0]),
        Tensor::new(&[4], vec![3.0, 300.0, 300.0, 255.875]),
    );
    let limit = 65504.0;
    let got = plain::product(&a, &b, limit);
    assert_eq!(got.data, [6.0, -limit, limit, limit]);
    // as in PyTorch's clamp, a value at the limit still has a gradient
    let [d_a, d_b] = plain::product_backward(&a, &b, &a.map(|_| 1.0), limit);
    assert_eq!(d_a.data, [3.0, 0.0, 0.0, 255.875]);
    assert_eq!(d_b.data, [2.0, 0.0, 0.0, 256.0]);
    let inputs = [random(&[2, 3, 2, 4], 1), random(&[2, 3, 2, 4], 2)];
    for limit in [0.2, f64::INFINITY] {
        let what = format!("product with the limit {limit}");
        check_tape(&what, &inputs, |tape, v| tape.product(v[0], v[1], limit));
    }
}

#[test]
fn sums_and_factors_match_finite_differences() {
    let x = random(&[2, 3, 2, 4], 1);
    let inputs = [x.clone(), random(&[2, 3, 2, 4], 2)];
    check_tape("sum", &inputs, |tape, v| tape.add(v[0], v[1]));
    check_tape("offset", &inputs[..1], |tape, v| tape.offset(v[0], -0.5));
    check_tape("a value used three times", &inputs[..1], |tape, v| {
        let square = tape.product(v[0], v[0], f64::INFINITY);
        tape.add(square, v[0])
    });
    let inputs = [x.clone(), random(&[1, 3, 1, 1], 2), random(&[3], 3)];
    check_tape("channel affine", &inputs, |tape, v| {
        tape.channel_affine(v[0], v[1], v[2])
    });
    let inputs = [x, random(&[], 2)];
    check_tape("gain", &inputs, |tape, v| tape.gain(v[0], v[1]));
}

#[test]
fn channels_are_joined_and_selected() {
    let (a, b) = (counted(&[2, 1, 1, 2]), counted(&[2, 2, 1, 2]));
    let joined = plain::concat(&[&a, &b]);
    assert_eq!(joined.shape, [2, 3, 1, 2]);
    assert_eq!(
        joined.data,
        [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    );
    assert_eq!(plain::select_channels(&joined, 1, 2), b);
    let inputs = [random(&[2, 3, 2, 2], 1), random(&[2, 2, 2, 2], 2)];
    check_tape("concat", &inputs, |tape, v| tape.concat(v));
    check_tape("concat of the same value", &inputs[..1], |tape, v| {
        tape.concat(&[v[0], v[0]])
    });
    check_tape("product of two halves", &inputs[1..], |tape, v| {
        let halves = [0, 1].map(|first| tape.select_channels(v[0], first, 1));
        tape.product(halves[0], halves[1], f64::INFINITY)
    });
}

#[test]
fn resampling_matches_values_by_hand_and_finite_differences() {
    let low = counted(&[1, 4, 1, 2]);
    let high = plain::pixel_shuffle(&low, 2);
    assert_eq!(high.shape, [1, 1, 2, 4]);
    assert_eq!(high.data, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(plain::pixel_shuffle_backward(&high, 2), low);
    let cells = plain::nearest(&counted(&[1, 1, 1, 2]), 2);
    assert_eq!(cells.data, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!(plain::nearest_backward(&cells, 2).data, [0.0, 4.0]);
    for s in [1, 2, 3] {
        let input = random(&[2, 2 * s * s, 2, 3], 1);
        let input = std::slice::from_ref(&input);
        check_tape(&format!("pixel shuffle by {s}"), input, |tape, v| {
            tape.pixel_shuffle(v[0], s)
        });
        check_tape(&format!("nearest by {s}"), input, |tape, v| {
            tape.nearest(v[0], s)
        });
        for alpha in [0.0, 0.4] {
            let what = format!("magic kernel by {s}, alpha {alpha}");
            check_tape(&what, input, |tape, v| tape.magic_kernel(v[0], s, alpha));
        }
    }
    // a constant image stays constant but for the border, which zero padding darkens
    let ones = Tensor::new(&[1, 1, 9, 9], vec![1.0; 81]);
    let enlarged = plain::magic_kernel(&ones, 2, 0.4);
    let row = &enlarged.data[9 * 18..][..18];
    assert!((row[9] - 1.0).abs() < 1e-15);
    let corner = plain::magic_kernel(&ones, 2, 0.0).data[0];
    let kept: f64 = BLUR[2..].iter().sum();
    assert!((corner - kept * kept).abs() < 1e-15);
}

/// Random tensors of a `Conv3XC(a -> b)`.
fn conv3xc(a: usize, b: usize) -> Conv3xc {
    let part = |out: usize, inputs: usize, k: usize, seed| ConvTensors {
        weight: random(&[out, inputs, k, k], seed),
        bias: random(&[out], seed + 10),
    };
    Conv3xc {
        skip: part(b, a, 1, 1),
        first: part(2 * a, a, 1, 2),
        middle: part(2 * b, 2 * a, 3, 3),
        last: part(b, 2 * b, 1, 4),
    }
}

#[test]
fn a_composed_conv3xc_equals_its_four_convolutions() {
    for [a, b] in [[3, 4], [2, 2]] {
        let parts = conv3xc(a, b);
        let x = random(&[2, a, 4, 5], 5);
        let padded = |rings| Convolution {
            padding: [rings; 2],
            ..Convolution::dense(1)
        };
        let conv = |x: &Tensor, part: &ConvTensors, rings| {
            plain::conv2d(x, &part.weight, &part.bias, padded(rings))
        };
        let long = conv(
            &conv(&conv(&x, &parts.first, 1), &parts.middle, 0),
            &parts.last,
            0,
        );
        let expected = long.zip(&conv(&x, &parts.skip, 0), |a, b| a + b);
        let composed = parts.compose();
        let got = plain::conv2d(&x, &composed.weight, &composed.bias, Convolution::dense(3));
        let error = reference::golden::relative_error(&got.data, &expected.data);
        println!("Conv3XC({a} -> {b}): {error:.1e}");
        assert!(error < 2e-15);
    }
}

#[test]
fn the_chain_rule_of_a_composed_conv3xc_matches_finite_differences() {
    let parts = conv3xc(2, 3);
    let tensors = |parts: &Conv3xc| {
        [&parts.skip, &parts.first, &parts.middle, &parts.last]
            .into_iter()
            .flat_map(|part| [part.weight.clone(), part.bias.clone()])
            .collect::<Vec<Tensor>>()
    };
    let parts_of = |tensors: &[Tensor]| {
        let part = |i: usize| ConvTensors {
            weight: tensors[2 * i].clone(),
            bias: tensors[2 * i + 1].clone(),
        };
        Conv3xc {
            skip: part(0),
            first: part(1),
            middle: part(2),
            last: part(3),
        }
    };
    let grad = ConvTensors {
        weight: random(&[3, 2, 3, 3], 20),
        bias: random(&[3], 21),
    };
    let grads = tensors(&parts.compose_backward(&grad));
    let error = check("Conv3XC", &tensors(&parts), &grads, 1, |tensors| {
        let composed = parts_of(tensors).compose();
        plain::dot(&composed.weight.data, &grad.weight.data)
            + plain::dot(&composed.bias.data, &grad.bias.data)
    });
    println!("Conv3XC: largest difference {error:.1e}");
}
