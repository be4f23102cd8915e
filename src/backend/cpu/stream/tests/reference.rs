//! The Stream block and its backward pass in plain loops in f64.

use super::super::rows::CLAMP;
use super::{Case, E, F, Outcome, f64s};
use crate::plan::Extent;

/// The pixel of the image that tap `tap` of a dilated 3x3 convolution reads for pixel `p`.
fn neighbour(extent: Extent, p: usize, tap: usize, dilation: usize) -> Option<usize> {
    let Extent { h, w, .. } = extent;
    let (x, y, image) = (p % w, p / w % h, p / w / h);
    let x = (x + tap % 3 * dilation).checked_sub(dilation)?;
    let y = (y + tap / 3 * dilation).checked_sub(dilation)?;
    (x < w && y < h).then_some((image * h + y) * w + x)
}

/// A depthwise 3x3 convolution on `[pixels][c]`.
fn depthwise(extent: Extent, x: &[f64], [weight, bias]: [&[f64]; 2], dilation: usize) -> Vec<f64> {
    let c = bias.len();
    let mut out = Vec::with_capacity(x.len());
    for p in 0..extent.pixels() {
        let mut sums = bias.to_vec();
        for tap in 0..9 {
            if let Some(q) = neighbour(extent, p, tap, dilation) {
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum += weight[k * 9 + tap] * x[q * c + k];
                }
            }
        }
        out.extend(sums);
    }
    out
}

/// Gradients of [`depthwise`] with respect to x, weight and bias.
fn depthwise_back(
    extent: Extent,
    x: &[f64],
    weight: &[f64],
    dilation: usize,
    dy: &[f64],
) -> [Vec<f64>; 3] {
    let c = weight.len() / 9;
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; 9 * c], vec![0.0; c]);
    for p in 0..extent.pixels() {
        for k in 0..c {
            db[k] += dy[p * c + k];
        }
        for tap in 0..9 {
            if let Some(q) = neighbour(extent, p, tap, dilation) {
                for k in 0..c {
                    dx[q * c + k] += dy[p * c + k] * weight[k * 9 + tap];
                    dw[k * 9 + tap] += dy[p * c + k] * x[q * c + k];
                }
            }
        }
    }
    [dx, dw, db]
}

/// A 1x1 convolution; weight `[cout][cin]`.
fn pointwise(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let cin = weight.len() / bias.len();
    let pixel = |x: &[f64], row: &[f64]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(cin)
        .flat_map(|x| {
            let rows = weight.chunks_exact(cin).zip(bias);
            rows.map(move |(row, bias)| bias + pixel(x, row))
        })
        .collect()
}

/// Gradients of [`pointwise`] with respect to x, weight and bias.
fn pointwise_back(x: &[f64], weight: &[f64], cout: usize, dy: &[f64]) -> [Vec<f64>; 3] {
    let cin = weight.len() / cout;
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; cout]);
    for (p, dy) in dy.chunks_exact(cout).enumerate() {
        for (o, &dy) in dy.iter().enumerate() {
            db[o] += dy;
            for i in 0..cin {
                dx[p * cin + i] += dy * weight[o * cin + i];
                dw[o * cin + i] += dy * x[p * cin + i];
            }
        }
    }
    [dx, dw, db]
}

/// The block and its backward pass in plain loops.
pub fn reference(case: &Case) -> Outcome<f64> {
    let (extent, x, d_output) = (case.extent, f64s(&case.x), f64s(&case.d_output));
    let p: Vec<Vec<f64>> = (0..13).map(|i| case.parameter(i)).collect();
    let pair = |i: usize| [&p[i][..], &p[i + 1][..]];
    let u1 = depthwise(extent, &x, pair(0), 1);
    let u3 = depthwise(extent, &x, pair(2), 3);
    let both = u1.chunks_exact(F).zip(u3.chunks_exact(F));
    let u: Vec<f64> = both.flat_map(|(a, b)| [a, b].concat()).collect();
    let t = pointwise(&u, &p[4], &p[5]);
    let projected = pointwise(&t, &p[6], &p[7]);
    let gate = depthwise(extent, &projected, pair(8), 1);
    let bound = f64::from(CLAMP);
    let products: Vec<f64> = gate
        .chunks_exact(2 * E)
        .flat_map(|g| (0..E).map(|k| g[k] * g[E + k]))
        .collect();
    let m: Vec<f64> = products.iter().map(|v| v.clamp(-bound, bound)).collect();
    let out = pointwise(&m, &p[10], &p[11]);
    let gamma = &p[12];
    let output = (0..x.len()).map(|i| x[i] + gamma[i % F] * out[i]).collect();

    let mut d_gamma = vec![0.0; F];
    (0..x.len()).for_each(|i| d_gamma[i % F] += d_output[i] * out[i]);
    let d_out: Vec<f64> = (0..x.len()).map(|i| d_output[i] * gamma[i % F]).collect();
    let [d_m, out_weight, out_bias] = pointwise_back(&m, &p[10], F, &d_out);
    let mut d_gate = vec![0.0; gate.len()];
    for (i, &product) in products
        .iter()
        .enumerate()
        .filter(|(_, v)| v.abs() <= bound)
    {
        let (a, b) = (i / E * 2 * E + i % E, i / E * 2 * E + E + i % E);
        debug_assert_eq!(product, gate[a] * gate[b]);
        (d_gate[a], d_gate[b]) = (d_m[i] * gate[b], d_m[i] * gate[a]);
    }
    let [d_projected, gate_weight, gate_bias] =
        depthwise_back(extent, &projected, &p[8], 1, &d_gate);
    let [d_t, proj_weight, proj_bias] = pointwise_back(&t, &p[6], 2 * E, &d_projected);
    let [d_u, fuse_weight, fuse_bias] = pointwise_back(&u, &p[4], F, &d_t);
    let half = |i: usize| -> Vec<f64> {
        let pixels = d_u.chunks_exact(2 * F);
        pixels.flat_map(|u| u[i * F..][..F].to_vec()).collect()
    };
    let [d_x1, dw1_weight, dw1_bias] = depthwise_back(extent, &x, &p[0], 1, &half(0));
    let [d_x3, dw3_weight, dw3_bias] = depthwise_back(extent, &x, &p[2], 3, &half(1));
    let d_input = (0..x.len())
        .map(|i| d_output[i] + d_x1[i] + d_x3[i])
        .collect();
    Outcome {
        output,
        d_input,
        gradients: vec![
            dw1_weight,
            dw1_bias,
            dw3_weight,
            dw3_bias,
            fuse_weight,
            fuse_bias,
            proj_weight,
            proj_bias,
            gate_weight,
            gate_bias,
            out_weight,
            out_bias,
            d_gamma,
        ],
    }
}
