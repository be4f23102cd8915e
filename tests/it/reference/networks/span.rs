//! SPAN (Swift Parameter-free Attention Network), with its `Conv3XC` as four convolutions or as
//! the one that these compose to (see `span_compose`).

use super::{Activation, Convolution, Graph, Sizes, SpanForm, conv_shapes};
use crate::reference::{tape::Var, tensor::Tensor};

/// RGB means that `norm` subtracts from the input, which is then multiplied by [`RANGE`].
pub const MEANS: [f64; 3] = [0.4488, 0.4371, 0.4040];
/// See [`MEANS`].
pub const RANGE: f64 = 255.0;

/// `upsampler(conv_cat(concat(f, conv_2(b6), b1, m)))` with f = conv_1(x), b1..b6 the outputs of
/// the blocks, and m = silu(c1(b5)) inside the sixth block.
pub fn network(graph: &mut Graph, x: Var, scale: usize, norm: bool, form: SpanForm) -> Var {
    let x = if norm { normalise(graph, x) } else { x };
    let first = conv3xc(graph, x, "conv_1", form);
    let mut f = first;
    let mut blocks = Vec::new();
    let mut inner = first;
    for i in 1..=6 {
        (f, inner) = block(graph, f, &format!("block_{i}"), form);
        blocks.push(f);
    }
    let last = conv3xc(graph, f, "conv_2", form);
    let all = graph.tape.concat(&[first, last, blocks[0], inner]);
    let f = graph.conv(all, "conv_cat", Convolution::dense(1));
    let f = graph.conv(f, "upsampler.0", Convolution::dense(3));
    graph.tape.pixel_shuffle(f, scale)
}

/// `(x - MEANS) * RANGE`
fn normalise(graph: &mut Graph, x: Var) -> Var {
    let scale = graph.tape.leaf(Tensor::new(&[3], vec![RANGE; 3]));
    let shift = MEANS.map(|mean| -mean * RANGE).to_vec();
    let shift = graph.tape.leaf(Tensor::new(&[3], shift));
    graph.tape.channel_affine(x, scale, shift)
}

/// o1 = c1(x), o2 = c2(silu(o1)), o3 = c3(silu(o2)). Returns
/// `(o3 + x) * (sigmoid(o3) - 0.5)` and `silu(o1)`.
fn block(graph: &mut Graph, x: Var, name: &str, form: SpanForm) -> (Var, Var) {
    let o1 = conv3xc(graph, x, &format!("{name}.c1_r"), form);
    let m1 = graph.tape.activate(o1, Activation::Silu);
    let o2 = conv3xc(graph, m1, &format!("{name}.c2_r"), form);
    let m2 = graph.tape.activate(o2, Activation::Silu);
    let o3 = conv3xc(graph, m2, &format!("{name}.c3_r"), form);
    let attention = graph.tape.activate(o3, Activation::Sigmoid);
    let attention = graph.tape.offset(attention, -0.5);
    let sum = graph.tape.add(o3, x);
    (graph.tape.product(sum, attention, f64::INFINITY), m1)
}

/// `conv.2(conv.1(conv.0(pad(x)))) + sk(x)`. The ring of zeros around the input is added before
/// `conv.0`, so that it carries `conv.0`'s bias; `conv.1` has no padding of its own.
fn conv3xc(graph: &mut Graph, x: Var, name: &str, form: SpanForm) -> Var {
    if form == SpanForm::Composed {
        return graph.conv(x, &format!("{name}.eval_conv"), Convolution::dense(3));
    }
    let padded = |rings| Convolution {
        padding: [rings; 2],
        ..Convolution::dense(1)
    };
    let wide = graph.conv(x, &format!("{name}.conv.0"), padded(1));
    let wide = graph.conv(wide, &format!("{name}.conv.1"), padded(0));
    let long = graph.conv(wide, &format!("{name}.conv.2"), padded(0));
    let short = graph.conv(x, &format!("{name}.sk"), padded(0));
    graph.tape.add(long, short)
}

/// Names and shapes of the trainable parameters.
pub fn shapes(sizes: Sizes) -> Vec<(String, Vec<usize>)> {
    let f = sizes.features;
    let mut shapes = Vec::new();
    let mut conv3xc = |name: &str, inputs: usize| {
        shapes.extend(conv_shapes(&format!("{name}.sk"), f, inputs, 1));
        shapes.extend(conv_shapes(
            &format!("{name}.conv.0"),
            2 * inputs,
            inputs,
            1,
        ));
        shapes.extend(conv_shapes(&format!("{name}.conv.1"), 2 * f, 2 * inputs, 3));
        shapes.extend(conv_shapes(&format!("{name}.conv.2"), f, 2 * f, 1));
    };
    conv3xc("conv_1", 3);
    for i in 1..=6 {
        for c in ["c1_r", "c2_r", "c3_r"] {
            conv3xc(&format!("block_{i}.{c}"), f);
        }
    }
    conv3xc("conv_2", f);
    shapes.extend(conv_shapes("conv_cat", f, 4 * f, 1));
    shapes.extend(conv_shapes("upsampler.0", 3 * sizes.scale.pow(2), f, 3));
    shapes
}
