//! The operators of ONNX that exported graphs use, as plain loops. Depends on the interpreter's
//! tensors. Written for clarity: it checks files, it is not what `paragon upscale` runs.

use super::convolution::conv;
use super::format::DataType;
use super::interpret::{Attributes, Data};
use super::layout;
use anyhow::{Context, Result, bail, ensure};
use std::borrow::Cow;

/// The inputs of a node; one that is left out is `None`.
pub(super) struct Inputs<'a>(pub &'a [Option<&'a Data>]);

impl<'a> Inputs<'a> {
    pub fn get(&self, number: usize) -> Result<&'a Data> {
        let found = self.0.get(number).copied().flatten();
        found.with_context(|| format!("input {number} is missing"))
    }

    pub fn floats(&self, number: usize) -> Result<(DataType, &'a [usize], &'a [f32])> {
        let data = self.get(number)?;
        let (kind, values) = data.values()?;
        Ok((kind, data.dims(), values))
    }
}

/// The results of a node.
///
/// # Errors
/// An operator that is not known, or inputs that it cannot have.
pub(super) fn apply(
    operator: &str,
    inputs: &[Option<&Data>],
    attributes: &Attributes,
) -> Result<Vec<Data>> {
    let x = Inputs(inputs);
    let one = |data: Result<Data>| Ok(vec![data?]);
    match operator {
        "Add" => one(binary(&x, |a, b| a + b, |a, b| Some(a + b))),
        "Sub" => one(binary(&x, |a, b| a - b, |a, b| Some(a - b))),
        "Mul" => one(binary(&x, |a, b| a * b, |a, b| Some(a * b))),
        "Div" => one(binary(&x, |a, b| a / b, i64::checked_div)),
        "PRelu" => one(binary(
            &x,
            |v, a| if v < 0.0 { a * v } else { v },
            |_, _| None,
        )),
        "Relu" => one(unary(&x, |v| v.max(0.0))),
        "LeakyRelu" => {
            let slope = attributes.float("alpha", 0.01);
            one(unary(&x, |v| if v < 0.0 { slope * v } else { v }))
        }
        "Sigmoid" => one(unary(&x, |v| 1.0 / (1.0 + (-v).exp()))),
        "Sqrt" => one(unary(&x, f32::sqrt)),
        "Erf" => one(unary(&x, |v| erf(f64::from(v)) as f32)),
        "Clip" => one(clip(&x)),
        "Cast" => one(cast(&x, attributes)),
        "Conv" => one(convolution(&x, attributes)),
        "MatMul" => one(matrix_product(&x)),
        "Softmax" => one(softmax(&x, attributes)),
        "ReduceMean" => one(mean(&x)),
        "GlobalAveragePool" => one(average(&x)),
        "DepthToSpace" => one(layout::depth_to_space(&x, attributes)),
        "Resize" => one(layout::resize(&x, attributes)),
        "Shape" => one(layout::shape(&x)),
        "Reshape" => one(layout::reshape(&x)),
        "Transpose" => one(layout::transpose(&x, attributes)),
        "Concat" => one(layout::concat(&x, attributes)),
        "Split" => layout::split(&x, attributes),
        "Slice" => one(layout::slice(&x)),
        "Pad" => one(layout::pad(&x)),
        other => bail!("the interpreter has no operator {other}"),
    }
}

pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

/// Positions in a tensor with `from` strides, for each place of a tensor with sides `dims`.
pub(super) fn positions(dims: &[usize], from: &[usize], first: usize) -> Vec<usize> {
    let mut out = vec![first];
    for (&side, &stride) in dims.iter().zip(from) {
        let places = out.iter();
        out = places
            .flat_map(|&at| (0..side).map(move |i| at + i * stride))
            .collect();
    }
    out
}

/// The values of a tensor of `sides`, repeated to `dims`.
fn repeated<'v, T: Copy>(values: &'v [T], sides: &[usize], dims: &[usize]) -> Result<Cow<'v, [T]>> {
    let missing = dims.len() - sides.len();
    let own = strides(sides);
    let from: Vec<usize> = (0..dims.len())
        .map(|i| match i.checked_sub(missing) {
            Some(i) if sides[i] != 1 => own[i],
            _ => 0,
        })
        .collect();
    for (i, &side) in sides.iter().enumerate() {
        let whole = dims[i + missing];
        ensure!(
            side == 1 || side == whole,
            "{sides:?} does not fit {dims:?}"
        );
    }
    if values.len() == dims.iter().product::<usize>() {
        return Ok(Cow::Borrowed(values));
    }
    let places = positions(dims, &from, 0);
    Ok(places.iter().map(|&at| values[at]).collect())
}

fn binary(
    x: &Inputs,
    floats: impl Fn(f32, f32) -> f32,
    ints: impl Fn(i64, i64) -> Option<i64>,
) -> Result<Data> {
    let (a, b) = (x.get(0)?, x.get(1)?);
    let rank = a.dims().len().max(b.dims().len());
    let side = |data: &Data, i: usize| {
        let missing = rank - data.dims().len();
        i.checked_sub(missing).map_or(1, |i| data.dims()[i])
    };
    let dims: Vec<usize> = (0..rank).map(|i| side(a, i).max(side(b, i))).collect();
    match (a, b) {
        (Data::Ints { .. }, Data::Ints { .. }) => {
            let left = repeated(a.ints()?, a.dims(), &dims)?;
            let right = repeated(b.ints()?, b.dims(), &dims)?;
            let values = left.iter().zip(right.iter()).map(|(&a, &b)| ints(a, b));
            let values = values.collect::<Option<Vec<i64>>>();
            let values = values.context("integers were not expected, or divided by 0")?;
            Ok(Data::Ints { dims, values })
        }
        _ => {
            let ((kind, left), (other, right)) = (a.values()?, b.values()?);
            ensure!(kind == other, "{kind:?} and {other:?} in one node");
            let left = repeated(left, a.dims(), &dims)?;
            let right = repeated(right, b.dims(), &dims)?;
            let pairs = left.iter().zip(right.iter());
            let values = pairs.map(|(&a, &b)| floats(a, b)).collect();
            Ok(Data::floats(kind, dims, values))
        }
    }
}

fn unary(x: &Inputs, f: impl Fn(f32) -> f32) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let values = values.iter().map(|&v| f(v)).collect();
    Ok(Data::floats(kind, dims.to_vec(), values))
}

/// The error function: a Taylor series around 0, a continued fraction of its complement beyond.
fn erf(x: f64) -> f64 {
    let square = x * x;
    if x.abs() < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -square / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..=60)
        .rev()
        .fold(0.0, |f, n| f64::from(n) / 2.0 / (x.abs() + f));
    let complement = (-square).exp() / (x.abs() + fraction) / std::f64::consts::PI.sqrt();
    (1.0 - complement).copysign(x)
}

fn clip(x: &Inputs) -> Result<Data> {
    let bound = |number| -> Result<f32> {
        let bound = x.floats(number)?.2.first();
        bound.copied().context("a bound is empty")
    };
    let (low, high) = (bound(1)?, bound(2)?);
    ensure!(low <= high, "the bounds {low} and {high} are not in order");
    unary(x, |v| v.clamp(low, high))
}

fn cast(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let kind = DataType::of_number(attributes.int("to", 0))?;
    let (_, dims, values) = x.floats(0)?;
    Ok(Data::floats(kind, dims.to_vec(), values.to_vec()))
}

fn convolution(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let (kind, dims, input) = x.floats(0)?;
    let (weight_kind, weight_dims, weight) = x.floats(1)?;
    ensure!(
        kind == weight_kind,
        "{kind:?} and {weight_kind:?} in one node"
    );
    let bias = match x.0.get(2) {
        Some(Some(_)) => Some(x.floats(2)?.2),
        _ => None,
    };
    let (&[n, cin, h, w], &[cout, per_group, k, _]) = (dims, weight_dims) else {
        bail!("a convolution of {dims:?} with {weight_dims:?}");
    };
    let (groups, dilation) = (
        attributes.int("group", 1) as usize,
        attributes.list("dilations")?[0],
    );
    ensure!(
        attributes.list("pads")? == [dilation * (k / 2); 4]
            && groups * per_group == cin
            && cout.is_multiple_of(groups)
            && attributes.list("strides")? == [1, 1],
        "only convolutions that keep the size are known"
    );
    let values = conv(
        input,
        (n, h, w),
        weight,
        bias,
        (cin, cout, k, dilation, groups),
    );
    Ok(Data::floats(kind, vec![n, cout, h, w], values))
}

fn matrix_product(x: &Inputs) -> Result<Data> {
    let ((kind, a_dims, a), (_, b_dims, b)) = (x.floats(0)?, x.floats(1)?);
    let (&[batch, m, k], &[other, k2, n]) = (a_dims, b_dims) else {
        bail!("a product of {a_dims:?} and {b_dims:?}");
    };
    ensure!(
        batch == other && k == k2,
        "a product of {a_dims:?} and {b_dims:?}"
    );
    let mut out = vec![0.0; batch * m * n];
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        let first = row / m * k * n;
        for (i, &factor) in a[row * k..][..k].iter().enumerate() {
            let from = &b[first + i * n..][..n];
            out.iter_mut()
                .zip(from)
                .for_each(|(o, &v)| *o += factor * v);
        }
    }
    Ok(Data::floats(kind, vec![batch, m, n], out))
}

/// Number of an axis that may count from the end.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    let at = usize::try_from(at).ok().filter(|&at| at < rank);
    at.with_context(|| format!("{rank} sides have no axis {axis}"))
}

/// The product of the sides before an axis, the side, and the product of those after it.
fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    let (before, after) = (&dims[..axis], &dims[axis + 1..]);
    (before.iter().product(), dims[axis], after.iter().product())
}

fn softmax(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let axis = axis_of(attributes.int("axis", -1), dims.len())?;
    let (before, side, after) = around(dims, axis);
    let mut out = values.to_vec();
    for first in (0..before).flat_map(|i| (0..after).map(move |j| i * side * after + j)) {
        let at = |k: usize| first + k * after;
        let most = (0..side).fold(f32::NEG_INFINITY, |m, k| m.max(values[at(k)]));
        let sum: f32 = (0..side).map(|k| (values[at(k)] - most).exp()).sum();
        (0..side).for_each(|k| out[at(k)] = (values[at(k)] - most).exp() / sum);
    }
    Ok(Data::floats(kind, dims.to_vec(), out))
}

/// Means along one axis.
fn mean(x: &Inputs) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let &[axis] = x.get(1)?.ints()? else {
        bail!("only means along one axis are known");
    };
    let axis = axis_of(axis, dims.len())?;
    let (before, side, after) = around(dims, axis);
    let places = (0..before).flat_map(|i| (0..after).map(move |j| i * side * after + j));
    let means = places.map(|first| {
        let sum: f64 = (0..side)
            .map(|k| f64::from(values[first + k * after]))
            .sum();
        (sum / side as f64) as f32
    });
    let mut sides = dims.to_vec();
    sides[axis] = 1;
    Ok(Data::floats(kind, sides, means.collect()))
}

/// Means over the pixels of each channel.
fn average(x: &Inputs) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let &[n, c, h, w] = dims else {
        bail!("no images: {dims:?}");
    };
    let channels = values.chunks_exact(h * w);
    let means = channels.map(|values| {
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        (sum / (h * w) as f64) as f32
    });
    Ok(Data::floats(kind, vec![n, c, 1, 1], means.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_function_is_exact() {
        // values of Abramowitz and Stegun, table 7.1
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.6, 0.999_763_965_583_471),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - expected).abs() < 1e-14, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
