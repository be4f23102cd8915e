//! Proves the plain f64 operations of Photo and Pro (linear layers, RMSNorm, padding, attention)
//! before a fast kernel is compared with them: values worked out by hand, and finite differences for
//! every backward pass.

use crate::reference;

use reference::differences::check_tape;
use reference::golden::relative_error;
use reference::plain::{self, Convolution, Windows};
use reference::tensor::Tensor;

fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::random(shape, -1.0, 1.0, seed)
}

/// `0, 1, 2, ...`
fn counted(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    Tensor::new(shape, (0..count).map(|i| i as f64).collect())
}

#[test]
fn linear_layers_are_convolutions_of_one_pixel() {
    let x = random(&[2, 3, 4, 5], 1);
    let (weight, bias) = (random(&[6, 3], 2), random(&[6], 3));
    let kernel = Tensor::new(&[6, 3, 1, 1], weight.data.clone());
    for bias in [Some(&bias), None] {
        let zero = Tensor::zeros(&[6]);
        let expected = plain::conv2d(&x, &kernel, bias.unwrap_or(&zero), Convolution::dense(1));
        let got = plain::linear(&x, &weight, bias);
        assert!(relative_error(&got.data, &expected.data) < 1e-15);
    }
    let inputs = [x, weight, bias];
    check_tape("linear with bias", &inputs, |tape, v| {
        tape.linear(v[0], v[1], Some(v[2]))
    });
    check_tape("linear without bias", &inputs[..2], |tape, v| {
        tape.linear(v[0], v[1], None)
    });
}

#[test]
fn tokens_become_rows() {
    let tokens = counted(&[1, 3, 2]);
    let rows = plain::token_rows(&tokens);
    assert_eq!(rows.shape, [1, 2, 3, 1]);
    assert_eq!(rows.data, [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!(plain::token_rows_backward(&rows), tokens);
    check_tape("token rows", &[random(&[1, 3, 2], 1)], |tape, v| {
        tape.token_rows(v[0])
    });
}

#[test]
fn rms_norm_is_over_the_channels_of_a_pixel() {
    // two pixels with the channels (3, 4) and (0, 0); the mean square of the first is 12.5
    let x = Tensor::new(&[1, 2, 1, 2], vec![3.0, 0.0, 4.0, 0.0]);
    let scale = Tensor::new(&[2, 1, 1], vec![1.0, 10.0]);
    let bias = Tensor::new(&[2, 1, 1], vec![0.5, 0.25]);
    let got = plain::rms_norm(&x, &scale, &bias);
    let root = (12.5 + plain::RMS_EPSILON).sqrt();
    let expected = [3.0 / root + 0.5, 0.5, 40.0 / root + 0.25, 0.25];
    assert!(relative_error(&got.data, &expected) < 1e-15);
    let inputs = [
        random(&[2, 5, 2, 3], 1),
        random(&[5, 1, 1], 2),
        random(&[5, 1, 1], 3),
    ];
    check_tape("RMSNorm", &inputs, |tape, v| {
        tape.rms_norm(v[0], v[1], v[2])
    });
}

#[test]
fn padding_is_at_the_bottom_and_at_the_right() {
    let x = counted(&[1, 1, 2, 2]).map(|v| v + 1.0);
    let padded = plain::pad(&x, [3, 4]);
    assert_eq!(
        padded.data,
        [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    );
    assert_eq!(plain::crop(&padded, [2, 2]), x);
    let input = [random(&[2, 3, 3, 4], 1)];
    check_tape("pad", &input, |tape, v| tape.pad(v[0], [4, 6]));
    check_tape("crop", &input, |tape, v| tape.crop(v[0], [2, 3]));
    check_tape("channel means", &input, |tape, v| tape.channel_means(v[0]));
}

/// With queries of zero, every pixel receives the mean of the values of its window.
#[test]
fn windows_are_rolled_and_wrap_around() {
    let mut qkv = Tensor::zeros(&[1, 3, 4, 4]);
    for pixel in 0..16 {
        qkv.data[32 + pixel] = pixel as f64;
    }
    let windows = |shift| Windows {
        heads: 1,
        window: 2,
        shift,
    };
    let got = plain::window_attention(&qkv, windows(0)).data;
    // the windows {0, 1, 4, 5}, {2, 3, 6, 7}, {8, 9, 12, 13} and {10, 11, 14, 15}
    let top = [2.5, 2.5, 4.5, 4.5];
    let bottom = [10.5, 10.5, 12.5, 12.5];
    assert_eq!(got, [top, top, bottom, bottom].concat());
    let got = plain::window_attention(&qkv, windows(1)).data;
    // {5, 6, 9, 10}, {7, 4, 11, 8}, {13, 14, 1, 2} and the four corners {15, 12, 3, 0}
    let outer = [7.5; 4];
    let inner = [7.5; 4];
    assert_eq!(got, [outer, inner, inner, outer].concat());
    // the four means are the same above; squares tell the windows apart
    for value in &mut qkv.data[32..] {
        *value *= *value;
    }
    let got = plain::window_attention(&qkv, windows(1)).data;
    let outer = [94.5, 92.5, 92.5, 94.5];
    let inner = [62.5, 60.5, 60.5, 62.5];
    assert_eq!(got, [outer, inner, inner, outer].concat());
}

/// One head and one window: the formula written out.
#[test]
fn attention_is_a_softmax_of_scaled_products() {
    let qkv = random(&[1, 6, 2, 2], 1);
    let at = |channel: usize, pixel: usize| qkv.data[channel * 4 + pixel];
    let mut expected = vec![0.0; 8];
    for i in 0..4 {
        let score = |j| (at(0, i) * at(2, j) + at(1, i) * at(3, j)) / 2f64.sqrt();
        let sum: f64 = (0..4).map(|j| score(j).exp()).sum();
        for c in 0..2 {
            expected[c * 4 + i] = (0..4).map(|j| score(j).exp() / sum * at(4 + c, j)).sum();
        }
    }
    let windows = Windows {
        heads: 1,
        window: 2,
        shift: 0,
    };
    let got = plain::window_attention(&qkv, windows);
    assert!(relative_error(&got.data, &expected) < 1e-15);
    // heads are adjacent channels: two heads of one channel each
    let windows = Windows {
        heads: 2,
        ..windows
    };
    let got = plain::window_attention(&qkv, windows);
    for head in 0..2 {
        let parts = [0, 2, 4].map(|part| plain::select_channels(&qkv, part + head, 1));
        let one = plain::concat(&[&parts[0], &parts[1], &parts[2]]);
        let windows = Windows {
            heads: 1,
            ..windows
        };
        let expected = plain::window_attention(&one, windows);
        assert_eq!(plain::select_channels(&got, head, 1), expected);
    }
}

#[test]
fn window_attention_matches_finite_differences() {
    for (shift, size) in [(0, [4, 4]), (1, [4, 2]), (1, [2, 6])] {
        let windows = Windows {
            heads: 2,
            window: 2,
            shift,
        };
        let qkv = [random(&[2, 12, size[0], size[1]], 1)];
        let what = format!("window attention, shift {shift}, {size:?}");
        check_tape(&what, &qkv, |tape, v| tape.window_attention(v[0], windows));
    }
    // an image that is padded, between the two linear layers
    let inputs = [
        random(&[1, 4, 3, 5], 1),
        random(&[12, 4], 2),
        random(&[12], 3),
        random(&[4, 4], 4),
        random(&[4], 5),
    ];
    for shift in [0, 2] {
        let windows = Windows {
            heads: 2,
            window: 4,
            shift,
        };
        let what = format!("padded window attention, shift {shift}");
        check_tape(&what, &inputs, |tape, v| {
            tape.padded_window_attention(v[0], [v[1], v[2]], [v[3], v[4]], windows)
        });
    }
}

#[test]
fn channel_attention_uses_the_mean_of_each_image() {
    let x = Tensor::new(&[2, 1, 1, 2], vec![1.0, 3.0, -1.0, 1.0]);
    let inputs = [x, Tensor::new(&[1, 1], vec![1.0]), random(&[1, 1], 1)];
    let mut tape = reference::tape::Tape::default();
    let leaves = inputs.clone().map(|x| tape.leaf(x));
    let got = tape.channel_attention(leaves[0], leaves[1], leaves[2]);
    // the means are 2 and 0; gelu(0) = 0, and sigmoid(0) = 1 / 2
    let gelu = plain::Activation::Gelu.value(2.0);
    let factor = plain::Activation::Sigmoid.value(gelu * inputs[2].data[0]);
    let expected = [factor, 3.0 * factor, -0.5, 0.5];
    assert!(relative_error(&tape.value(got).data, &expected) < 1e-15);
    let inputs = [
        random(&[2, 4, 2, 3], 1),
        random(&[3, 4], 2),
        random(&[4, 3], 3),
    ];
    check_tape("channel attention", &inputs, |tape, v| {
        tape.channel_attention(v[0], v[1], v[2])
    });
    let inputs = [random(&[2, 3, 2, 3], 1), random(&[2, 3, 1, 1], 2)];
    check_tape("factors of images", &inputs, |tape, v| {
        tape.image_factors(v[0], v[1])
    });
}

#[test]
fn token_attention_matches_values_by_hand_and_finite_differences() {
    // keys 0 and ln 3, so that a query of 1 has the weights 1/4 and 3/4, and a query of 0 halves
    let queries = Tensor::new(&[1, 1, 1, 2], vec![1.0, 0.0]);
    let keys = Tensor::new(&[1, 1, 2, 1], vec![0.0, 3f64.ln()]);
    let values = Tensor::new(&[1, 2, 2, 1], vec![4.0, 8.0, 0.0, 1.0]);
    let got = plain::token_attention(&queries, &keys, &values);
    assert_eq!(got.shape, [1, 2, 1, 2]);
    assert!(relative_error(&got.data, &[7.0, 6.0, 0.75, 0.5]) < 1e-15);

    let inputs = [
        random(&[2, 3, 2, 3], 1),
        random(&[1, 3, 5, 1], 2),
        random(&[1, 4, 5, 1], 3),
    ];
    check_tape("token attention", &inputs, |tape, v| {
        tape.token_attention(v[0], v[1], v[2])
    });
    // the bias of the keys has no effect, so it is not among the inputs that are moved
    let inputs = [
        random(&[2, 3, 2, 3], 1),
        random(&[1, 5, 4], 2),
        random(&[3, 4], 3),
        random(&[4, 4], 4),
        random(&[4], 5),
    ];
    check_tape("dictionary attention", &inputs, |tape, v| {
        let bias = tape.leaf(random(&[3], 6));
        tape.dictionary_attention(v[0], v[1], [v[2], bias], [v[3], v[4]])
    });
}

#[test]
fn a_layer_scale_that_is_used_twice_receives_both_gradients() {
    let inputs = [random(&[2, 3, 2, 2], 1), random(&[1, 3, 1, 1], 2)];
    check_tape("LayerScale, used twice", &inputs, |tape, v| {
        let zero = tape.leaf(Tensor::zeros(&[3]));
        let mut x = v[0];
        for _ in 0..2 {
            let branch = tape.activate(x, plain::Activation::Gelu);
            let scaled = tape.channel_affine(branch, v[1], zero);
            x = tape.add(x, scaled);
        }
        x
    });
}
