//! The table from operations of a plan to nodes of ONNX: one row for each operation of a forward
//! pass. Depends on the emitter and on the plan's operations, and knows no network: a network that
//! is made of these operations is exported without a line of its own.

use super::attention;
use super::emitter::{Emitter, Value};
use super::format::Attribute;
use super::image;
use crate::plan::{
    Activate, Activation, BufferId, ComposeConv, Concat, Conv, Gate, GateKind, NanoBlock, Op,
    ParamRange, ScaledSum, StreamBlock,
};
use anyhow::{Context, Result, bail};

/// The table: operations of a plan with the function that appends their nodes.
macro_rules! lowerings {
    ($($operation:ident => $lower:path,)*) => {
        /// Operations that can be exported.
        #[cfg(test)]
        pub(super) const NAMES: &[&str] = &[$(stringify!($operation)),*];

        /// Appends the nodes of an operation.
        ///
        /// # Errors
        /// An operation that has no row in the table.
        pub(super) fn lower(e: &mut Emitter, op: &Op) -> Result<()> {
            match op {
                $(Op::$operation(op) => $lower(e, op),)*
                other => bail!(
                    "the operation \"{}\" has no counterpart in ONNX yet, so this network cannot be exported",
                    other.label()
                ),
            }
        }
    };
}

lowerings! {
    Conv => conv,
    Activate => activate,
    Gate => gate,
    Concat => concat,
    ScaledSum => scaled_sum,
    Shuffle => image::shuffle,
    ComposeConv => compose,
    RmsNorm => attention::rms_norm,
    WindowAttention => attention::window_attention,
    ChannelAttention => attention::channel_attention,
    TokenAttention => attention::token_attention,
    NanoBlock => nano_block,
    StreamBlock => stream_block,
    Reconstruct => image::reconstruct,
}

/// Sizes of a convolution with zero padding that keeps height and width.
#[derive(Clone, Copy)]
pub(super) struct ConvShape {
    pub cin: usize,
    pub cout: usize,
    pub kernel: usize,
    pub dilation: usize,
    pub groups: usize,
}

impl ConvShape {
    /// 1x1.
    pub fn point(cin: usize, cout: usize) -> ConvShape {
        ConvShape {
            cin,
            cout,
            kernel: 1,
            dilation: 1,
            groups: 1,
        }
    }

    /// 3x3.
    pub fn square(cin: usize, cout: usize) -> ConvShape {
        ConvShape {
            kernel: 3,
            ..ConvShape::point(cin, cout)
        }
    }

    /// 3x3, each channel by itself.
    pub fn depthwise(channels: usize, dilation: usize) -> ConvShape {
        ConvShape {
            dilation,
            groups: channels,
            ..ConvShape::square(channels, channels)
        }
    }
}

/// Appends a convolution of `x`, with weights and bias of its type; `bias` may be missing.
pub(super) fn convolution(
    e: &mut Emitter,
    name: &str,
    x: &Value,
    shape: ConvShape,
    (weight_name, weight): (&str, &[f32]),
    bias: Option<(&str, &[f32])>,
) -> Value {
    let ConvShape {
        cin,
        cout,
        kernel,
        dilation,
        groups,
    } = shape;
    let dims = [cout, cin / groups, kernel, kernel];
    let weight = e.floats(weight_name, x.kind, &dims, weight);
    let bias = bias.map(|(name, values)| e.floats(name, x.kind, &[cout], values));
    let pad = (dilation * (kernel / 2)) as i64;
    let side = |value: usize| Attribute::Ints(vec![value as i64; 2]);
    let attributes = [
        ("dilations", side(dilation)),
        ("group", Attribute::Int(groups as i64)),
        ("kernel_shape", side(kernel)),
        ("pads", Attribute::Ints(vec![pad; 4])),
        ("strides", side(1)),
    ];
    let mut inputs = vec![x, &weight];
    inputs.extend(&bias);
    e.node("Conv", name, &inputs, x.kind, &attributes)
}

/// A convolution whose weight and bias are parameters.
fn with_parameters(
    e: &mut Emitter,
    name: &str,
    x: &Value,
    shape: ConvShape,
    [weight, bias]: [ParamRange; 2],
) -> Result<Value> {
    let (weight, bias) = (e.parameter(weight)?, e.parameter(bias)?);
    let (weight, bias) = ((&weight.0[..], weight.1), (&bias.0[..], bias.1));
    Ok(convolution(e, name, x, shape, weight, Some(bias)))
}

/// The value of a buffer after an activation, in the type of the activations.
fn activated(e: &mut Emitter, buffer: BufferId, activation: Option<Activation>) -> Result<Value> {
    let x = e.read(buffer)?;
    let Some(activation) = activation else {
        return Ok(e.narrow(&x));
    };
    let slopes = activation.slopes().map(|s| e.parameter(s)).transpose()?;
    let key = format!("{} {activation:?}", x.name);
    let x = match activation {
        // an image's colours keep all their bits until the mean has been subtracted
        Activation::Normalize { .. } => e.wide(&x),
        _ => e.narrow(&x),
    };
    let name = |suffix: &str| format!("{}.{suffix}", x.name);
    let value = e.memoized(&key, |e| match activation {
        Activation::Relu => e.apply("Relu", &name("relu"), &[&x]),
        Activation::LeakyRelu { slope } => {
            let attributes = [("alpha", Attribute::Float(slope))];
            e.node("LeakyRelu", &name("leaky"), &[&x], x.kind, &attributes)
        }
        Activation::PRelu { .. } => {
            let (parameter, values) = slopes.unwrap_or_default();
            let slope = e.floats(&parameter, x.kind, &[values.len(), 1, 1], values);
            e.apply("PRelu", &name("prelu"), &[&x, &slope])
        }
        Activation::Silu => {
            let gate = e.apply("Sigmoid", &name("sigmoid"), &[&x]);
            e.apply("Mul", &name("silu"), &[&x, &gate])
        }
        Activation::Gelu => gelu(e, &x),
        Activation::Normalize { mean, factor } => {
            let mean = e.floats("colour.mean", x.kind, &[1, 3, 1, 1], &mean);
            let factor = e.scalar(factor, x.kind);
            let centred = e.apply("Sub", &name("centred"), &[&x, &mean]);
            e.apply("Mul", &name("normalized"), &[&centred, &factor])
        }
    });
    Ok(e.narrow(&value))
}

/// `0.5 x (1 + erf(x / sqrt 2))`: the operator Gelu exists from opset 20 on only, and runtimes
/// recognise these nodes.
pub(super) fn gelu(e: &mut Emitter, x: &Value) -> Value {
    let name = |suffix: &str| format!("{}.{suffix}", x.name);
    let [root, one, half] =
        [std::f32::consts::SQRT_2, 1.0, 0.5].map(|number| e.scalar(number, x.kind));
    let scaled = e.apply("Div", &name("scaled"), &[x, &root]);
    let erf = e.apply("Erf", &name("erf"), &[&scaled]);
    let cdf = e.apply("Add", &name("cdf"), &[&erf, &one]);
    let product = e.apply("Mul", &name("cdf_product"), &[x, &cdf]);
    e.apply("Mul", &name("gelu"), &[&product, &half])
}

fn conv(e: &mut Emitter, op: &Conv) -> Result<()> {
    let x = activated(e, op.input, op.activation)?;
    let [weight, bias] = e.weights(op.parameters, [op.weight, op.bias])?;
    let shape = ConvShape {
        cin: op.cin,
        cout: op.cout,
        kernel: op.kernel,
        dilation: op.dilation,
        groups: op.groups,
    };
    let name = e.label(op.output);
    let (weight, bias) = ((&weight.0[..], weight.1), (&bias.0[..], bias.1));
    let y = convolution(e, &name, &x, shape, weight, Some(bias));
    e.write(op.output, y);
    Ok(())
}

fn activate(e: &mut Emitter, op: &Activate) -> Result<()> {
    let y = activated(e, op.input, Some(op.activation))?;
    e.write(op.output, y);
    Ok(())
}

/// The composed weights are constants of the graph; the convolution that reads them writes them.
fn compose(e: &mut Emitter, op: &ComposeConv) -> Result<()> {
    let (name, _) = e.parameter(op.params.skip[0])?;
    let name = name.strip_suffix(".sk.weight").with_context(|| {
        format!("{name} is no part of a Conv3XC, so its convolution cannot be exported")
    })?;
    e.composed.insert(op.output, name.to_string());
    Ok(())
}

/// The first and the second half of the channels.
fn halves(e: &mut Emitter, x: &Value, channels: usize) -> [Value; 2] {
    let sizes = e.ints(&[channels as i64; 2]);
    let axis = [("axis", Attribute::Int(1))];
    let parts = e.node_of_parts("Split", &x.name, &[x, &sizes], &["first", "second"], &axis);
    let [a, b] = [0, 1].map(|i| parts[i].clone());
    [a, b]
}

/// The product of the halves of x's channels, clamped to `[-limit, limit]`.
fn product_of_halves(e: &mut Emitter, name: &str, x: &Value, channels: usize, limit: f32) -> Value {
    let [a, b] = halves(e, x, channels);
    let product = e.apply("Mul", &format!("{name}.product"), &[&a, &b]);
    let (low, high) = (e.scalar(-limit, x.kind), e.scalar(limit, x.kind));
    e.apply("Clip", name, &[&product, &low, &high])
}

fn gate(e: &mut Emitter, op: &Gate) -> Result<()> {
    let a = e.read(op.a)?;
    let name = e.label(op.output);
    let y = match (op.kind, op.b) {
        (GateKind::Attention, Some(b)) => {
            let (b, half) = (e.read(b)?, e.scalar(0.5, a.kind));
            let sigmoid = e.apply("Sigmoid", &format!("{name}.sigmoid"), &[&a]);
            let factor = e.apply("Sub", &format!("{name}.factor"), &[&sigmoid, &half]);
            let sum = e.apply("Add", &format!("{name}.sum"), &[&a, &b]);
            e.apply("Mul", &name, &[&sum, &factor])
        }
        (GateKind::Halves { limit }, _) => product_of_halves(e, &name, &a, op.channels, limit),
        (GateKind::Attention, None) => bail!("the gate {name} lacks its second input"),
    };
    e.write(op.output, y);
    Ok(())
}

fn concat(e: &mut Emitter, op: &Concat) -> Result<()> {
    let parts = op.parts.iter().map(|&(buffer, _)| e.read(buffer));
    let parts = parts.collect::<Result<Vec<Value>>>()?;
    let name = e.label(op.output);
    let axis = [("axis", Attribute::Int(1))];
    let inputs: Vec<&Value> = parts.iter().collect();
    let y = e.node("Concat", &name, &inputs, e.kind, &axis);
    e.write(op.output, y);
    Ok(())
}

/// `a + gamma * b`.
fn residual(
    e: &mut Emitter,
    name: &str,
    a: &Value,
    b: &Value,
    gamma: Option<ParamRange>,
) -> Result<Value> {
    let b = match gamma {
        None => b.clone(),
        Some(range) => {
            let gamma = e.constant(range, b.kind, &[1, range.len, 1, 1])?;
            e.apply("Mul", &format!("{name}.scaled"), &[b, &gamma])
        }
    };
    Ok(e.apply("Add", name, &[a, &b]))
}

fn scaled_sum(e: &mut Emitter, op: &ScaledSum) -> Result<()> {
    let (a, b) = (e.read(op.a)?, e.read(op.b)?);
    let name = e.label(op.output);
    let y = residual(e, &name, &a, &b, op.gamma)?;
    e.write(op.output, y);
    Ok(())
}

fn nano_block(e: &mut Emitter, op: &NanoBlock) -> Result<()> {
    let (f, p) = (op.features, &op.params);
    let x = e.read(op.input)?;
    let block = e.label(op.output);
    let name = |layer: &str| format!("{block}.{layer}");
    let first = [p.conv1_weight, p.conv1_bias];
    let wide = with_parameters(e, &name("conv1"), &x, ConvShape::point(f, 2 * f), first)?;
    let (shape, weights) = (ConvShape::depthwise(2 * f, 1), [p.dw_weight, p.dw_bias]);
    let wide = with_parameters(e, &name("dw"), &wide, shape, weights)?;
    let wide = gelu(e, &wide);
    let last = [p.conv2_weight, p.conv2_bias];
    let y = with_parameters(e, &name("conv2"), &wide, ConvShape::point(2 * f, f), last)?;
    let y = residual(e, &block, &x, &y, Some(p.gamma))?;
    e.write(op.output, y);
    Ok(())
}

/// The largest half-precision number: Stream's products are clamped to it.
const STREAM_LIMIT: f32 = 65504.0;

fn stream_block(e: &mut Emitter, op: &StreamBlock) -> Result<()> {
    let (f, p) = (op.features, &op.params);
    let hidden = 2 * f;
    let x = e.read(op.input)?;
    let block = e.label(op.output);
    let name = |layer: &str| format!("{block}.{layer}");
    let near = with_parameters(e, &name("dw1"), &x, ConvShape::depthwise(f, 1), p.dw1)?;
    let far = with_parameters(e, &name("dw3"), &x, ConvShape::depthwise(f, 3), p.dw3)?;
    let axis = [("axis", Attribute::Int(1))];
    let both = e.node("Concat", &name("both"), &[&near, &far], x.kind, &axis);
    let t = with_parameters(e, &name("fuse"), &both, ConvShape::point(2 * f, f), p.fuse)?;
    let shape = ConvShape::point(f, 2 * hidden);
    let wide = with_parameters(e, &name("proj"), &t, shape, p.proj)?;
    let shape = ConvShape::depthwise(2 * hidden, 1);
    let wide = with_parameters(e, &name("gate"), &wide, shape, p.gate)?;
    let m = product_of_halves(e, &name("m"), &wide, hidden, STREAM_LIMIT);
    let y = with_parameters(e, &name("out"), &m, ConvShape::point(hidden, f), p.out)?;
    let y = residual(e, &block, &x, &y, Some(p.gamma))?;
    e.write(op.output, y);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_a_forward_pass_has_a_row() {
        let training = ["Accumulate", "PixelLoss", "StructuralLoss", "Update"];
        // the input is floats
        let input = ["Unpack"];
        for name in Op::NAMES {
            let forward =
                !name.ends_with("Back") && !training.contains(name) && !input.contains(name);
            assert_eq!(NAMES.contains(name), forward, "{name}");
        }
    }
}
