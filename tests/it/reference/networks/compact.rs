//! Compact (SRVGGNetCompact of Real-ESRGAN): convolutions and activations in turn, added to the
//! enlarged input.

use super::{CompactActivation, Convolution, Graph, Sizes, conv_shapes};
use crate::reference::tape::Var;

/// `body.0` 3 -> F, `body.2`, `body.4`, ... F -> F, each followed by an activation (`body.1`,
/// `body.3`, ...); the last convolution F -> 3 s^2, pixel shuffle, plus the input enlarged by
/// nearest neighbour.
pub fn network(graph: &mut Graph, x: Var, scale: usize, activation: CompactActivation) -> Var {
    let mut f = x;
    let mut layer = 0;
    loop {
        f = graph.conv(f, &format!("body.{layer}"), Convolution::dense(3));
        if !graph.has(&format!("body.{}.weight", layer + 2)) {
            break;
        }
        f = match activation {
            CompactActivation::Prelu => {
                let slopes = graph.param(&format!("body.{}.weight", layer + 1));
                graph.tape.prelu(f, slopes)
            }
            CompactActivation::Fixed(activation) => graph.tape.activate(f, activation),
        };
        layer += 2;
    }
    let detail = graph.tape.pixel_shuffle(f, scale);
    let base = graph.tape.nearest(x, scale);
    graph.tape.add(detail, base)
}

/// Names and shapes of the parameters; `sizes.blocks` is the option `num_conv`.
pub fn shapes(activation: CompactActivation, sizes: Sizes) -> Vec<(String, Vec<usize>)> {
    let f = sizes.features;
    let mut shapes = Vec::new();
    for i in 0..=sizes.blocks {
        let inputs = if i == 0 { 3 } else { f };
        shapes.extend(conv_shapes(&format!("body.{}", 2 * i), f, inputs, 3));
        if activation == CompactActivation::Prelu {
            shapes.push((format!("body.{}.weight", 2 * i + 1), vec![f]));
        }
    }
    let last = format!("body.{}", 2 * sizes.blocks + 2);
    shapes.extend(conv_shapes(&last, 3 * sizes.scale.pow(2), f, 3));
    shapes
}
