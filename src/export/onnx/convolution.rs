//! The interpreter's convolution: the one operator that takes its time, so its loops run along rows
//! and its output channels in parallel. Depends on nothing.

use rayon::prelude::*;

/// A convolution with stride 1 and zero padding that keeps `n` images of `h x w` pixels in NCHW;
/// the last argument is input channels, output channels, taps along a side, dilation and groups.
pub(super) fn conv(
    input: &[f32],
    (n, h, w): (usize, usize, usize),
    weight: &[f32],
    bias: Option<&[f32]>,
    (cin, cout, k, dilation, groups): (usize, usize, usize, usize, usize),
) -> Vec<f32> {
    let (ins, outs) = (cin / groups, cout / groups);
    let mut output = vec![0.0; n * cout * h * w];
    let planes = output.par_chunks_exact_mut((h * w).max(1)).enumerate();
    planes.for_each(|(plane, out)| {
        let (image, channel) = (plane / cout, plane % cout);
        out.fill(bias.map_or(0.0, |bias| bias[channel]));
        for i in 0..ins {
            let from = image * cin + channel / outs * ins + i;
            let from = &input[from * h * w..][..h * w];
            for tap in 0..k * k {
                let factor = weight[(channel * ins + i) * k * k + tap];
                let offset = |t: usize| (t as isize - (k / 2) as isize) * dilation as isize;
                add_shifted(
                    out,
                    from,
                    (h, w),
                    (offset(tap / k), offset(tap % k)),
                    factor,
                );
            }
        }
    });
    output
}

/// Adds `factor * from[y + dy, x + dx]` to each `out[y, x]` for which there is such a pixel.
fn add_shifted(
    out: &mut [f32],
    from: &[f32],
    (h, w): (usize, usize),
    (dy, dx): (isize, isize),
    factor: f32,
) {
    let range = |side: usize, d: isize| {
        let first = (-d).clamp(0, side as isize) as usize;
        first..(side as isize - d).clamp(first as isize, side as isize) as usize
    };
    let columns = range(w, dx);
    let count = columns.len();
    if count == 0 {
        return;
    }
    for y in range(h, dy) {
        let source = (y as isize + dy) as usize * w + (columns.start as isize + dx) as usize;
        let source = &from[source..][..count];
        let out = &mut out[y * w + columns.start..][..count];
        out.iter_mut()
            .zip(source)
            .for_each(|(o, &v)| *o += factor * v);
    }
}
