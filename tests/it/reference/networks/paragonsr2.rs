//! The four variants of ParagonSR2: the same network with different blocks, added to a classical
//! upsampler.

use super::{Activation, Convolution, Graph, Sizes, conv_shapes};
use crate::reference::{plain::Windows, tape::Var, tensor::Tensor};

/// Stream clamps the product of its gate to the range of f16.
pub const GATE_LIMIT: f64 = 65504.0;

/// Heads of the window attention of Photo and Pro.
pub const HEADS: usize = 4;
/// Tokens of Pro's dictionary.
pub const TOKENS: usize = 64;
/// Channels of a query and a key of Pro's dictionary.
pub const TOKEN_CHANNELS: usize = 16;
/// Channels of a mean in Pro's channel attention: at least one, and F / 16.
pub const CHANNEL_REDUCTION: usize = 16;

/// `magic_kernel(x) + detail_gain * conv_out(shuffle(up(conv_mid(body(conv_in(x))))))`. `block` is
/// given the input, the name and the number of each block, counted through all groups.
pub fn network(
    graph: &mut Graph,
    x: Var,
    scale: usize,
    alpha: f64,
    block: impl Fn(&mut Graph, Var, &str, usize) -> Var,
) -> Var {
    let base = graph.tape.magic_kernel(x, scale, alpha);
    let mut f = graph.conv(x, "conv_in", Convolution::dense(3));
    for (number, name) in blocks(graph).iter().enumerate() {
        f = block(graph, f, name, number);
    }
    let f = graph.conv(f, "conv_mid", Convolution::dense(3));
    let up = graph.conv(f, "up.0", Convolution::dense(3));
    let shuffled = graph.tape.pixel_shuffle(up, scale);
    let detail = graph.conv(shuffled, "conv_out", Convolution::dense(3));
    let gain = graph.param("detail_gain");
    let detail = graph.tape.gain(detail, gain);
    graph.tape.add(base, detail)
}

/// The names `body.{group}.blocks.{block}` of the parameters, in the order of use.
fn blocks(graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    for g in 0.. {
        let before = names.len();
        let in_group = (0..).map(|i| format!("body.{g}.blocks.{i}"));
        names.extend(in_group.take_while(|name| graph.has_part(name)));
        if names.len() == before {
            break;
        }
    }
    names
}

/// LayerScale: `x + gamma[channel] * branch`.
fn add_scaled(graph: &mut Graph, x: Var, branch: Var, gamma: &str) -> Var {
    let gamma = graph.param(gamma);
    let zero = graph.tape.leaf(Tensor::zeros(&[graph.channels(x)]));
    let scaled = graph.tape.channel_affine(branch, gamma, zero);
    graph.tape.add(x, scaled)
}

/// `x + gamma * conv2(gelu(dw(conv1(x))))`
pub fn nano_block(graph: &mut Graph, x: Var, name: &str) -> Var {
    let branch = convolutions(graph, x, name);
    add_scaled(graph, x, branch, &format!("{name}.scale.gamma"))
}

/// `conv2(gelu(dw(conv1(x))))`, 2F channels inside.
fn convolutions(graph: &mut Graph, x: Var, name: &str) -> Var {
    let wide = graph.conv(x, &format!("{name}.conv1"), Convolution::dense(1));
    let depthwise = Convolution::depthwise(graph.channels(wide), 3, 1);
    let filtered = graph.conv(wide, &format!("{name}.dw"), depthwise);
    let activated = graph.tape.activate(filtered, Activation::Gelu);
    graph.conv(activated, &format!("{name}.conv2"), Convolution::dense(1))
}

/// `x + gamma * out(clamp(a * b))`, where a and b are the halves of
/// `gate(proj(fuse(concat(dw1(x), dw3(x)))))`. dw1 and dw3 are depthwise 3x3 with dilation 1 and 3;
/// proj has 4F outputs.
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
    let branch = graph.conv(product, &format!("{name}.out"), Convolution::dense(1));
    add_scaled(graph, x, branch, &format!("{name}.scale.gamma"))
}

/// How the block with a number cuts its input: odd blocks are shifted by half a window.
fn windows_of(number: usize, window: usize) -> Windows {
    Windows {
        heads: HEADS,
        window,
        shift: number % 2 * (window / 2),
    }
}

fn rms_norm(graph: &mut Graph, x: Var, name: &str) -> Var {
    let scale = graph.param(&format!("{name}.scale"));
    let bias = graph.param(&format!("{name}.bias"));
    graph.tape.rms_norm(x, scale, bias)
}

fn window_attention(graph: &mut Graph, x: Var, name: &str, windows: Windows) -> Var {
    let qkv = graph.weight_and_bias(&format!("{name}.qkv"));
    let proj = graph.weight_and_bias(&format!("{name}.proj"));
    graph.tape.padded_window_attention(x, qkv, proj, windows)
}

/// `y = x + gamma * conv2(gelu(dw(conv1(norm(x)))))`, then `y + gamma * attn(attn_norm(y))` with
/// the same gamma.
pub fn photo_block(graph: &mut Graph, x: Var, name: &str, number: usize, window: usize) -> Var {
    let gamma = format!("{name}.scale.gamma");
    let normed = rms_norm(graph, x, &format!("{name}.norm"));
    let branch = convolutions(graph, normed, name);
    let y = add_scaled(graph, x, branch, &gamma);
    let normed = rms_norm(graph, y, &format!("{name}.attn_norm"));
    let windows = windows_of(number, window);
    let branch = window_attention(graph, normed, &format!("{name}.attn"), windows);
    add_scaled(graph, y, branch, &gamma)
}

/// Four steps, each with its own gamma: the convolutions of `norm1(x)`; channel attention, of the
/// sum itself; window attention of `norm3`; attention to the dictionary of `norm4`.
pub fn pro_block(graph: &mut Graph, x: Var, name: &str, number: usize, window: usize) -> Var {
    let gamma = |i: usize| format!("{name}.scale{i}.gamma");
    let normed = rms_norm(graph, x, &format!("{name}.norm1"));
    let branch = convolutions(graph, normed, name);
    let x = add_scaled(graph, x, branch, &gamma(1));

    let down = graph.param(&format!("{name}.channel_attn.fc.0.weight"));
    let up = graph.param(&format!("{name}.channel_attn.fc.2.weight"));
    let branch = graph.tape.channel_attention(x, down, up);
    let x = add_scaled(graph, x, branch, &gamma(2));

    let normed = rms_norm(graph, x, &format!("{name}.norm3"));
    let windows = windows_of(number, window);
    let branch = window_attention(graph, normed, &format!("{name}.window_attn"), windows);
    let x = add_scaled(graph, x, branch, &gamma(3));

    let normed = rms_norm(graph, x, &format!("{name}.norm4"));
    let branch = token_attention(graph, normed, &format!("{name}.token_ca"));
    add_scaled(graph, x, branch, &gamma(4))
}

/// `out_proj(attention of q_proj(x) to the dictionary)`
fn token_attention(graph: &mut Graph, x: Var, name: &str) -> Var {
    let layer = |graph: &mut Graph, part: &str| graph.weight_and_bias(&format!("{name}.{part}"));
    let [weight, bias] = layer(graph, "q_proj");
    let queries = graph.tape.linear(x, weight, Some(bias));
    let tokens = graph.param(&format!("{name}.token_dict"));
    let (key, value) = (layer(graph, "k_proj"), layer(graph, "v_proj"));
    let mixed = graph.tape.dictionary_attention(queries, tokens, key, value);
    let [weight, bias] = layer(graph, "out_proj");
    graph.tape.linear(mixed, weight, Some(bias))
}

/// A variant, as far as the names and shapes of its parameters depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variant {
    Nano,
    Stream,
    Photo,
    Pro,
}

/// Names and shapes of the trainable parameters.
pub fn shapes(variant: Variant, sizes: Sizes) -> Vec<(String, Vec<usize>)> {
    let f = sizes.features;
    let mut shapes = Vec::new();
    shapes.extend(conv_shapes("conv_in", f, 3, 3));
    for g in 0..sizes.groups {
        for i in 0..sizes.blocks {
            for (name, shape) in block_shapes(variant, f) {
                shapes.push((format!("body.{g}.blocks.{i}.{name}"), shape));
            }
        }
    }
    shapes.extend(conv_shapes("conv_mid", f, f, 3));
    shapes.extend(conv_shapes("up.0", f * sizes.scale.pow(2), f, 3));
    shapes.extend(conv_shapes("conv_out", 3, f, 3));
    shapes.push(("detail_gain".into(), vec![]));
    shapes
}

/// Names and shapes of the parameters of a block with `f` features.
fn block_shapes(variant: Variant, f: usize) -> Vec<(String, Vec<usize>)> {
    let e = 2 * f;
    let convolutions: &[(&str, usize, usize, usize)] = match variant {
        Variant::Stream => &[
            ("dw1", f, 1, 3),
            ("dw3", f, 1, 3),
            ("fuse", f, 2 * f, 1),
            ("proj", 2 * e, f, 1),
            ("gate", 2 * e, 1, 3),
            ("out", f, e, 1),
        ],
        Variant::Nano | Variant::Photo | Variant::Pro => {
            &[("conv1", e, f, 1), ("dw", e, 1, 3), ("conv2", f, e, 1)]
        }
    };
    let (norms, attention, gammas): (&[&str], _, &[&str]) = match variant {
        Variant::Nano | Variant::Stream => (&[], None, &["scale"]),
        Variant::Photo => (&["norm", "attn_norm"], Some("attn"), &["scale"]),
        Variant::Pro => (
            &["norm1", "norm3", "norm4"],
            Some("window_attn"),
            &["scale1", "scale2", "scale3", "scale4"],
        ),
    };
    let mut shapes = Vec::new();
    for &(name, out, per_group, k) in convolutions {
        shapes.extend(conv_shapes(name, out, per_group, k));
    }
    for name in norms {
        shapes.push((format!("{name}.scale"), vec![f, 1, 1]));
        shapes.push((format!("{name}.bias"), vec![f, 1, 1]));
    }
    if let Some(name) = attention {
        shapes.extend(linear_shapes(&format!("{name}.qkv"), 3 * f, f));
        shapes.extend(linear_shapes(&format!("{name}.proj"), f, f));
    }
    if variant == Variant::Pro {
        let hidden = (f / CHANNEL_REDUCTION).max(1);
        shapes.push(("channel_attn.fc.0.weight".into(), vec![hidden, f]));
        shapes.push(("channel_attn.fc.2.weight".into(), vec![f, hidden]));
        shapes.push(("token_ca.token_dict".into(), vec![1, TOKENS, f]));
        for (name, out) in [
            ("q_proj", TOKEN_CHANNELS),
            ("k_proj", TOKEN_CHANNELS),
            ("v_proj", f),
            ("out_proj", f),
        ] {
            shapes.extend(linear_shapes(&format!("token_ca.{name}"), out, f));
        }
    }
    let gammas = gammas.iter();
    shapes.extend(gammas.map(|name| (format!("{name}.gamma"), vec![1, f, 1, 1])));
    shapes
}

/// Shapes of a linear layer's weight and bias.
fn linear_shapes(name: &str, out: usize, inputs: usize) -> [(String, Vec<usize>); 2] {
    [
        (format!("{name}.weight"), vec![out, inputs]),
        (format!("{name}.bias"), vec![out]),
    ]
}
