//! The nodes of norms and attention, for images of any size: window padding, rolls and cuts are
//! computed from the shape of the graph's input. Roots, means and softmax are f32 in every
//! precision. Depends on the emitter.

use super::emitter::{Emitter, Value};
use super::format::{Attribute, DataType};
use super::lower::{ConvShape, convolution, gelu};
use crate::plan::{ChannelAttention, RmsNorm, TokenAttention, WindowAttention};
use anyhow::Result;

/// Axis of the rows in NCHW.
const ROWS: i64 = 2;
/// Axis of the columns.
const COLUMNS: i64 = 3;

/// Part of `x` along an axis, from `start` to `end`; lists of one number each.
fn cut(e: &mut Emitter, name: &str, x: &Value, axes: &[i64], from: &[i64], to: &[i64]) -> Value {
    let (from, to, axes) = (e.ints(from), e.ints(to), e.ints(axes));
    e.apply("Slice", name, &[x, &from, &to, &axes])
}

/// Length of the input image along an axis, `[1]`.
fn length(e: &mut Emitter, axis: i64) -> Value {
    let input = e.input();
    let shape = e.memoized("shape", |e| {
        e.node("Shape", "shape", &[&input], DataType::I64, &[])
    });
    let name = format!("shape.{axis}");
    e.memoized(&name.clone(), |e| {
        cut(e, &name, &shape, &[0], &[axis], &[axis + 1])
    })
}

/// Number of windows along an axis, `[1]`.
fn windows(e: &mut Emitter, axis: i64, window: usize) -> Value {
    let length = length(e, axis);
    let name = format!("windows.{axis}.of.{window}");
    e.memoized(&name.clone(), |e| {
        let (more, window) = (e.ints(&[window as i64 - 1]), e.ints(&[window as i64]));
        let sum = e.apply("Add", &format!("{name}.sum"), &[&length, &more]);
        e.apply("Div", &name, &[&sum, &window])
    })
}

/// Length of the image along an axis when it is filled up to whole windows, `[1]`.
fn padded_length(e: &mut Emitter, axis: i64, window: usize) -> Value {
    let count = windows(e, axis, window);
    let name = format!("padded.{axis}.of.{window}");
    e.memoized(&name.clone(), |e| {
        let window = e.ints(&[window as i64]);
        e.apply("Mul", &name, &[&count, &window])
    })
}

/// Integers side by side.
fn joined(e: &mut Emitter, name: &str, parts: &[&Value]) -> Value {
    let axis = [("axis", Attribute::Int(0))];
    e.node("Concat", name, parts, DataType::I64, &axis)
}

/// `x` filled up with zeros to whole windows, at the right and at the bottom.
fn fill_windows(e: &mut Emitter, name: &str, x: &Value, window: usize) -> Value {
    let mut missing = |axis| {
        let (whole, length) = (padded_length(e, axis, window), length(e, axis));
        let name = format!("missing.{axis}.of.{window}");
        e.memoized(&name.clone(), |e| e.apply("Sub", &name, &[&whole, &length]))
    };
    let (rows, columns) = (missing(ROWS), missing(COLUMNS));
    let pads = format!("pads.of.{window}");
    let pads = e.memoized(&pads.clone(), |e| {
        let before = e.ints(&[0; 6]); // before all axes, and after images and channels
        joined(e, &pads, &[&before, &rows, &columns])
    });
    e.apply("Pad", name, &[x, &pads])
}

/// Rows and columns moved by `-shift`, those that leave at one side come back at the other; a
/// negative shift undoes it.
fn roll(e: &mut Emitter, name: &str, x: &Value, shift: i64) -> Value {
    if shift == 0 {
        return x.clone();
    }
    let mut rolled = x.clone();
    for (axis, along) in [(ROWS, "rows"), (COLUMNS, "columns")] {
        let name = |part: &str| format!("{name}.{along}.{part}");
        let first = cut(e, &name("first"), &rolled, &[axis], &[shift], &[i64::MAX]);
        let last = cut(e, &name("last"), &rolled, &[axis], &[0], &[shift]);
        let axis = [("axis", Attribute::Int(axis))];
        rolled = e.node("Concat", &name("rolled"), &[&first, &last], x.kind, &axis);
    }
    rolled
}

pub(super) fn rms_norm(e: &mut Emitter, op: &RmsNorm) -> Result<()> {
    let x = e.read(op.input)?;
    let x = e.wide(&x);
    let norm = e.label(op.output);
    let name = |part: &str| format!("{norm}.{part}");
    let square = e.apply("Mul", &name("square"), &[&x, &x]);
    let axes = e.ints(&[1]);
    let keep = [("keepdims", Attribute::Int(1))];
    let inputs = [&square, &axes];
    let mean = e.node("ReduceMean", &name("mean"), &inputs, x.kind, &keep);
    let epsilon = e.scalar(op.epsilon, x.kind);
    let mean = e.apply("Add", &name("mean_epsilon"), &[&mean, &epsilon]);
    let root = e.apply("Sqrt", &name("root"), &[&mean]);
    let y = e.apply("Div", &name("unit"), &[&x, &root]);
    let sides = [1, op.channels, 1, 1];
    let (scale, bias) = (
        e.constant(op.scale, x.kind, &sides)?,
        e.constant(op.bias, x.kind, &sides)?,
    );
    let y = e.apply("Mul", &name("scaled"), &[&y, &scale]);
    let y = e.apply("Add", &norm, &[&y, &bias]);
    let mut y = e.narrow(&y);
    // the plan's image has one pixel, so its padded side is the multiple that sides are filled to
    if op.padded.h > 1 {
        y = fill_windows(e, &name("padded"), &y, op.padded.h);
    }
    e.write(op.output, y);
    Ok(())
}

/// Tokens of all windows and heads: `[N heads windows, w^2, d]`, or with the last two axes swapped.
fn tokens(
    e: &mut Emitter,
    op: &WindowAttention,
    x: &Value,
    [rows, columns]: [&Value; 2],
    swapped: bool,
) -> Value {
    let (w, d) = (op.window as i64, (op.channels / op.heads) as i64);
    let name = |part: &str| format!("{}.{part}", x.name);
    let (first, side) = (e.ints(&[-1, d]), e.ints(&[w]));
    let parts = [&first, rows, &side, columns, &side];
    let shape = joined(e, &name("cut_shape"), &parts);
    // [N heads, d, rows of windows, w, columns of windows, w]
    let cut = e.apply("Reshape", &name("cut"), &[x, &shape]);
    let (order, shape) = if swapped {
        (vec![0, 2, 4, 1, 3, 5], [-1, d, w * w])
    } else {
        (vec![0, 2, 4, 3, 5, 1], [-1, w * w, d])
    };
    let order = [("perm", Attribute::Ints(order))];
    let ordered = e.node("Transpose", &name("ordered"), &[&cut], x.kind, &order);
    let shape = e.ints(&shape);
    e.apply("Reshape", &name("tokens"), &[&ordered, &shape])
}

/// The image of tokens `[N heads windows, w^2, d]`: `[N, C, padded h, padded w]`.
fn image_of(
    e: &mut Emitter,
    op: &WindowAttention,
    x: &Value,
    [rows, columns]: [&Value; 2],
) -> Value {
    let (w, d) = (op.window as i64, (op.channels / op.heads) as i64);
    let name = |part: &str| format!("{}.{part}", x.name);
    let (first, last) = (e.ints(&[-1]), e.ints(&[w, w, d]));
    let shape = joined(e, &name("window_shape"), &[&first, rows, columns, &last]);
    let cut = e.apply("Reshape", &name("windows"), &[x, &shape]);
    let order = [("perm", Attribute::Ints(vec![0, 5, 1, 3, 2, 4]))];
    let ordered = e.node("Transpose", &name("ordered"), &[&cut], x.kind, &order);
    let height = padded_length(e, ROWS, op.window);
    let width = padded_length(e, COLUMNS, op.window);
    let first = e.ints(&[-1, op.channels as i64]);
    let shape = joined(e, &name("image_shape"), &[&first, &height, &width]);
    e.apply("Reshape", &name("image"), &[&ordered, &shape])
}

/// Softmax along an axis, in f32.
fn softmax(e: &mut Emitter, name: &str, scores: &Value, axis: i64) -> Value {
    let scores = e.wide(scores);
    let axis = [("axis", Attribute::Int(axis))];
    let weights = e.node("Softmax", name, &[&scores], scores.kind, &axis);
    e.narrow(&weights)
}

pub(super) fn window_attention(e: &mut Emitter, op: &WindowAttention) -> Result<()> {
    let (shift, channels) = (op.shift as i64, op.channels as i64);
    let qkv = e.read(op.qkv)?;
    let attention = e.label(op.output);
    let name = |part: &str| format!("{attention}.{part}");
    let rolled = roll(e, &name("roll"), &qkv, shift);
    let sizes = e.ints(&[channels; 3]);
    let axis = [("axis", Attribute::Int(1))];
    let inputs = [&rolled, &sizes];
    let parts = e.node_of_parts("Split", &attention, &inputs, &["q", "k", "v"], &axis);
    let (rows, columns) = (windows(e, ROWS, op.window), windows(e, COLUMNS, op.window));
    let counts = [&rows, &columns];
    let scale = 1.0 / ((op.channels / op.heads) as f32).sqrt();
    let scale = e.scalar(scale, qkv.kind);
    let q = e.apply("Mul", &name("q.scaled"), &[&parts[0], &scale]);
    let q = tokens(e, op, &q, counts, false);
    let k = tokens(e, op, &parts[1], counts, true);
    let v = tokens(e, op, &parts[2], counts, false);
    let scores = e.apply("MatMul", &name("scores"), &[&q, &k]);
    let weights = softmax(e, &name("weights"), &scores, -1);
    let sums = e.apply("MatMul", &name("sums"), &[&weights, &v]);
    let image = image_of(e, op, &sums, counts);
    let image = roll(e, &name("unroll"), &image, -shift);
    let (height, width) = (length(e, ROWS), length(e, COLUMNS));
    let ends = e.memoized("image_size", |e| {
        joined(e, "image_size", &[&height, &width])
    });
    let (starts, axes) = (e.ints(&[0, 0]), e.ints(&[ROWS, COLUMNS]));
    let y = e.apply("Slice", &attention, &[&image, &starts, &ends, &axes]);
    e.write(op.output, y);
    Ok(())
}

pub(super) fn channel_attention(e: &mut Emitter, op: &ChannelAttention) -> Result<()> {
    let x = e.read(op.input)?;
    let attention = e.label(op.output);
    let name = |part: &str| format!("{attention}.{part}");
    let wide = e.wide(&x);
    let mean = e.apply("GlobalAveragePool", &name("mean"), &[&wide]);
    let (down, up) = (e.parameter(op.down)?, e.parameter(op.up)?);
    let shape = ConvShape::point(op.channels, op.hidden());
    let hidden = convolution(e, &name("down"), &mean, shape, (&down.0, down.1), None);
    let hidden = gelu(e, &hidden);
    let shape = ConvShape::point(op.hidden(), op.channels);
    let factor = convolution(e, &name("up"), &hidden, shape, (&up.0, up.1), None);
    let factor = e.apply("Sigmoid", &name("factor"), &[&factor]);
    let factor = e.narrow(&factor);
    let y = e.apply("Mul", &attention, &[&x, &factor]);
    e.write(op.output, y);
    Ok(())
}

/// `rows x weight^T + bias` for `[rows, F]` and a weight `[out, F]`, in f64.
fn linear(rows: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let features = weight.len() / bias.len().max(1);
    let rows = rows.chunks_exact(features.max(1));
    rows.flat_map(|row| {
        let outputs = weight.chunks_exact(features.max(1)).zip(bias);
        outputs.map(|(w, &b)| {
            let products = row
                .iter()
                .zip(w)
                .map(|(x, w)| f64::from(*x) * f64::from(*w));
            f64::from(b) + products.sum::<f64>()
        })
    })
    .collect()
}

/// Keys and values of the tokens do not depend on the image: they are constants, and attention is
/// two 1x1 convolutions with a softmax over the channels between them.
pub(super) fn token_attention(e: &mut Emitter, op: &TokenAttention) -> Result<()> {
    let (query, features, p) = (op.query_channels, op.channels, &op.params);
    let q = e.read(op.query)?;
    let attention = e.label(op.output);
    let name = |part: &str| format!("{attention}.{part}");
    let (token_name, dictionary) = e.parameter(p.tokens)?;
    let count = dictionary.len() / features;
    let [key_weight, key_bias, value_weight, value_bias] =
        [p.key[0], p.key[1], p.value[0], p.value[1]].map(|range| e.parameter(range));
    let keys = linear(dictionary, key_weight?.1, key_bias?.1);
    let values = linear(dictionary, value_weight?.1, value_bias?.1);
    let scale = 1.0 / (query as f64).sqrt();
    let keys: Vec<f32> = keys.iter().map(|k| (k * scale) as f32).collect(); // [count, query]
    let by_feature = (0..features * count).map(|i| values[i % count * features + i / count] as f32);
    let by_feature: Vec<f32> = by_feature.collect(); // [features, count]

    let constant = format!("{token_name}.keys");
    let shape = ConvShape::point(query, count);
    let scores = convolution(e, &name("scores"), &q, shape, (&constant, &keys), None);
    let weights = softmax(e, &name("weights"), &scores, 1);
    let constant = format!("{token_name}.values");
    let shape = ConvShape::point(count, features);
    let y = convolution(
        e,
        &attention,
        &weights,
        shape,
        (&constant, &by_feature),
        None,
    );
    e.write(op.output, y);
    Ok(())
}
