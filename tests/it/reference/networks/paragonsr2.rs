//! Nano (`paragonsr2_realtime`) and Stream (`paragonsr2_stream`): the same network with different
//! blocks, added to a classical upsampler.

use super::{Activation, Convolution, Graph, Sizes, conv_shapes};
use crate::reference::{tape::Var, tensor::Tensor};

/// Stream clamps the product of its gate to the range of f16.
pub const GATE_LIMIT: f64 = 65504.0;

/// `magic_kernel(x) + detail_gain * conv_out(shuffle(up(conv_mid(body(conv_in(x))))))`.
pub fn network(
    graph: &mut Graph,
    x: Var,
    scale: usize,
    alpha: f64,
    block: fn(&mut Graph, Var, &str) -> Var,
) -> Var {
    let base = graph.tape.magic_kernel(x, scale, alpha);
    let mut f = graph.conv(x, "conv_in", Convolution::dense(3));
    for g in 0.. {
        if !graph.has(&format!("body.{g}.blocks.0.scale.gamma")) {
            break;
        }
        for i in 0.. {
            let name = format!("body.{g}.blocks.{i}");
            if !graph.has(&format!("{name}.scale.gamma")) {
                break;
            }
            let branch = block(graph, f, &name);
            f = add_scaled(graph, f, branch, &format!("{name}.scale.gamma"));
        }
    }
    let f = graph.conv(f, "conv_mid", Convolution::dense(3));
    let up = graph.conv(f, "up.0", Convolution::dense(3));
    let shuffled = graph.tape.pixel_shuffle(up, scale);
    let detail = graph.conv(shuffled, "conv_out", Convolution::dense(3));
    let gain = graph.param("detail_gain");
    let detail = graph.tape.gain(detail, gain);
    graph.tape.add(base, detail)
}

/// LayerScale: `x + gamma[channel] * branch`.
fn add_scaled(graph: &mut Graph, x: Var, branch: Var, gamma: &str) -> Var {
    let gamma = graph.param(gamma);
    let zero = graph.tape.leaf(Tensor::zeros(&[graph.channels(x)]));
    let scaled = graph.tape.channel_affine(branch, gamma, zero);
    graph.tape.add(x, scaled)
}

/// `conv2(gelu(dw(conv1(x))))`, 2F channels inside.
pub fn nano_block(graph: &mut Graph, x: Var, name: &str) -> Var {
    let wide = graph.conv(x, &format!("{name}.conv1"), Convolution::dense(1));
    let depthwise = Convolution::depthwise(graph.channels(wide), 3, 1);
    let filtered = graph.conv(wide, &format!("{name}.dw"), depthwise);
    let activated = graph.tape.activate(filtered, Activation::Gelu);
    graph.conv(activated, &format!("{name}.conv2"), Convolution::dense(1))
}

/// `out(clamp(a * b))`, where a and b are the halves of `gate(proj(fuse(concat(dw1(x), dw3(x)))))`.
/// dw1 and dw3 are depthwise 3x3 with dilation 1 and 3; proj has 4F outputs.
pub fn stream_block(graph: &mut Graph, x: Var, name: &str) -> Var {
    let c = graph.channels(x);
    let near = graph.conv(x, &format!("{name}.dw1"), Convolution::depthwise(c, 3, 1));
    let far = graph.conv(x, &format!("{name}.dw3"), Convolution::depthwise(c, 3, 3));
    let both = graph.tape.concat(&[near, far]);
    let fused = graph.conv(both, &format!("{name}.fuse"), Convolution::dense(1));
    let projected = graph.conv(fused, &format!("{name}.proj"), Convolution::dense(1));
    let wide = graph.channels(projected);
    let gate = Convolution::depthwise(wide, 3, 1);
    let gated = graph.conv(projected, &format!("{name}.gate"), gate);
    let a = graph.tape.select_channels(gated, 0, wide / 2);
    let b = graph.tape.select_channels(gated, wide / 2, wide / 2);
    let product = graph.tape.product(a, b, GATE_LIMIT);
    graph.conv(product, &format!("{name}.out"), Convolution::dense(1))
}

/// Names and shapes of the trainable parameters: those of Stream, or of Nano.
pub fn shapes(stream: bool, sizes: Sizes) -> Vec<(String, Vec<usize>)> {
    let (f, e) = (sizes.features, 2 * sizes.features);
    let mut shapes = Vec::new();
    shapes.extend(conv_shapes("conv_in", f, 3, 3));
    for g in 0..sizes.groups {
        for i in 0..sizes.blocks {
            let convolutions: &[(&str, usize, usize, usize)] = if stream {
                &[
                    ("dw1", f, 1, 3),
                    ("dw3", f, 1, 3),
                    ("fuse", f, 2 * f, 1),
                    ("proj", 2 * e, f, 1),
                    ("gate", 2 * e, 1, 3),
                    ("out", f, e, 1),
                ]
            } else {
                &[("conv1", e, f, 1), ("dw", e, 1, 3), ("conv2", f, e, 1)]
            };
            let block = format!("body.{g}.blocks.{i}");
            for &(name, out, per_group, k) in convolutions {
                shapes.extend(conv_shapes(&format!("{block}.{name}"), out, per_group, k));
            }
            shapes.push((format!("{block}.scale.gamma"), vec![1, f, 1, 1]));
        }
    }
    shapes.extend(conv_shapes("conv_mid", f, f, 3));
    shapes.extend(conv_shapes("up.0", f * sizes.scale.pow(2), f, 3));
    shapes.extend(conv_shapes("conv_out", 3, f, 3));
    shapes.push(("detail_gain".into(), vec![]));
    shapes
}
