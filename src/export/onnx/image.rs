//! The nodes that make the image: pixel shuffle, the enlarged input, the fixed base of ParagonSR2.
//! The sum of base and detail is f32 in every precision, because a colour has 8 bits and bf16 keeps
//! 8 bits after rounding only once. Depends on the emitter.

use super::emitter::{Emitter, Value};
use super::format::{Attribute, DataType};
use super::lower::{ConvShape, convolution};
use crate::model::{BLUR_TAPS, SHARP_TAPS};
use crate::plan::{Reconstruct, Shuffle};
use anyhow::Result;

/// Type of the image path.
const IMAGE: DataType = DataType::F32;

/// Pixel shuffle of PyTorch's order of channels; the value itself at scale 1.
fn pixel_shuffle(e: &mut Emitter, name: &str, x: &Value, scale: usize) -> Value {
    if scale == 1 {
        return x.clone();
    }
    let attributes = [
        ("blocksize", Attribute::Int(scale as i64)),
        ("mode", Attribute::Text("CRD".into())),
    ];
    e.node("DepthToSpace", name, &[x], x.kind, &attributes)
}

/// `x` enlarged by nearest neighbour.
fn nearest(e: &mut Emitter, name: &str, x: &Value, scale: usize) -> Value {
    if scale == 1 {
        return x.clone();
    }
    let scale = scale as f32;
    let sides = [1.0, 1.0, scale, scale];
    let scales = e.floats("scales", IMAGE, &[4], &sides);
    // an input that is left out has an empty name
    let none = Value {
        name: String::new(),
        kind: IMAGE,
    };
    let text = |value: &str| Attribute::Text(value.into());
    let attributes = [
        ("coordinate_transformation_mode", text("asymmetric")),
        ("mode", text("nearest")),
        ("nearest_mode", text("floor")),
    ];
    e.node("Resize", name, &[x, &none, &scales], x.kind, &attributes)
}

pub(super) fn shuffle(e: &mut Emitter, op: &Shuffle) -> Result<()> {
    let x = e.read(op.input)?;
    let image = pixel_shuffle(e, "shuffled", &x, op.scale);
    let mut image = e.wide(&image);
    if let Some(base) = op.base {
        let base = e.read(base)?;
        let base = e.wide(&base);
        let base = nearest(e, "base", &base, op.scale);
        image = e.apply("Add", "sum", &[&base, &image]);
    }
    e.write(op.output, image);
    Ok(())
}

/// Weights `[3, 1, 7, 7]` of `x + alpha * (sharp(x) - x)`. The taps act along rows and columns in
/// turn; both with zero padding are one convolution with zero padding.
fn sharpening(alpha: f32) -> Vec<f32> {
    let (k, alpha) = (SHARP_TAPS.len(), f64::from(alpha));
    let tap = |i: usize| f64::from(SHARP_TAPS[i]);
    let one = (0..k * k).map(|i| {
        let identity = if i == k * k / 2 { 1.0 - alpha } else { 0.0 };
        (alpha * tap(i / k) * tap(i % k) + identity) as f32
    });
    let one: Vec<f32> = one.collect();
    one.repeat(3)
}

/// Side and weights `[3 s^2, 1, side, side]` of enlarging by nearest neighbour and the blur after
/// it, before pixel shuffle: a tap that reads the HR pixel `s Y + dy + t` reads the LQ pixel
/// `Y + floor((dy + t) / s)`. Zeros beyond the edge of the HR image are those beyond the edge of
/// the LQ image, enlarged.
fn enlarging(scale: usize) -> (usize, Vec<f32>) {
    let reach = (BLUR_TAPS.len() / 2) as i64;
    let lq_reach = (reach as usize).div_ceil(scale);
    let k = 2 * lq_reach + 1;
    // along one side: [phase, LQ neighbour]
    let mut side = vec![vec![0.0f64; k]; scale];
    for (phase, row) in side.iter_mut().enumerate() {
        for (tap, t) in BLUR_TAPS.iter().zip(-reach..) {
            let at = (phase as i64 + t).div_euclid(scale as i64) + lq_reach as i64;
            row[at as usize] += f64::from(*tap);
        }
    }
    let mut one = Vec::with_capacity(k * k * scale * scale);
    for down in &side {
        for right in &side {
            one.extend((0..k * k).map(|i| (down[i / k] * right[i % k]) as f32));
        }
    }
    (k, one.repeat(3))
}

pub(super) fn reconstruct(e: &mut Emitter, op: &Reconstruct) -> Result<()> {
    let (input, features) = (e.read(op.input)?, e.read(op.features_in)?);
    let (f, phases) = (op.features, op.scale * op.scale);

    let mut base = e.wide(&input);
    if op.alpha != 0.0 {
        let shape = ConvShape {
            kernel: SHARP_TAPS.len(),
            ..ConvShape::depthwise(3, 1)
        };
        let weight = sharpening(op.alpha);
        base = convolution(e, "sharpened", &base, shape, ("base.sharp", &weight), None);
    }
    let (kernel, weight) = enlarging(op.scale);
    let shape = ConvShape {
        kernel,
        groups: 3,
        ..ConvShape::point(3, 3 * phases)
    };
    let base = convolution(e, "enlarged", &base, shape, ("base.enlarge", &weight), None);
    let base = pixel_shuffle(e, "base", &base, op.scale);

    let [weight, bias] = e.weights(op.parameters, [op.up_weight, op.up_bias])?;
    let (weight, bias) = ((&weight.0[..], weight.1), (&bias.0[..], bias.1));
    let shape = ConvShape::square(f, f * phases);
    let up = convolution(e, "up", &features, shape, weight, Some(bias));
    let up = pixel_shuffle(e, "up.shuffled", &up, op.scale);
    let gain = e.parameter(op.gain)?.1[0];
    let [weight, bias] = e.weights(op.parameters, [op.weight, op.bias])?;
    let [weight, bias] = [weight, bias].map(|(name, values)| {
        let values: Vec<f32> = values.iter().map(|v| v * gain).collect();
        (format!("{name}.with_gain"), values)
    });
    let (weight, bias) = ((&weight.0[..], &weight.1[..]), (&bias.0[..], &bias.1[..]));
    let detail = convolution(
        e,
        "detail",
        &up,
        ConvShape::square(f, 3),
        weight,
        Some(bias),
    );
    let detail = e.wide(&detail);
    let sum = e.apply("Add", "sum", &[&base, &detail]);
    e.write(op.output, sum);
    Ok(())
}
