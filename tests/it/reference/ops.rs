//! The layers of the reference network, forward and backward, as plain loops over f64 NHWC
//! images. Depends on nothing; promises to be obvious rather than fast, so that the real kernels
//! have something to be measured against.

/// A stack of images in NHWC order.
#[derive(Clone, Debug)]
pub struct Picture {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub data: Vec<f64>,
}

impl Picture {
    pub fn zeros(n: usize, h: usize, w: usize, c: usize) -> Picture {
        Picture {
            n,
            h,
            w,
            c,
            data: vec![0.0; n * h * w * c],
        }
    }

    pub fn like(&self, data: Vec<f64>) -> Picture {
        assert_eq!(data.len(), self.data.len());
        Picture { data, ..*self }
    }

    /// Where the channels of pixel (b, y, x) begin.
    pub fn at(&self, b: usize, y: usize, x: usize) -> usize {
        ((b * self.h + y) * self.w + x) * self.c
    }

    /// Calls `visit(output pixel, input pixel, tap)` for every tap of a `k` x `k` window that falls
    /// inside the image.
    fn for_taps(
        &self,
        k: usize,
        mut visit: impl FnMut((usize, usize, usize), (usize, usize, usize), usize),
    ) {
        let r = k / 2;
        for b in 0..self.n {
            for y in 0..self.h {
                for x in 0..self.w {
                    for ky in 0..k {
                        for kx in 0..k {
                            let (sy, sx) = (y + ky, x + kx);
                            if sy >= r && sy - r < self.h && sx >= r && sx - r < self.w {
                                visit((b, y, x), (b, sy - r, sx - r), ky * k + kx);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a convolution's backward returns.
pub struct ConvGradients {
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
    pub input: Picture,
}

/// Dense convolution, zero padding k/2, weight OIHW [out, in, k, k], bias [out].
pub fn conv(input: &Picture, weight: &[f64], bias: &[f64], k: usize) -> Picture {
    let (ci, co) = (input.c, bias.len());
    assert_eq!(weight.len(), co * ci * k * k);
    let taps = by_tap(weight, co, ci, k * k);
    let mut out = Picture::zeros(input.n, input.h, input.w, co);
    out.data
        .chunks_exact_mut(co)
        .for_each(|pixel| pixel.copy_from_slice(bias));
    let shape = out.like(vec![0.0; out.data.len()]);
    input.for_taps(k, |to, from, tap| {
        let o = shape.at(to.0, to.1, to.2);
        let i = input.at(from.0, from.1, from.2);
        for c in 0..ci {
            let x = input.data[i + c];
            let row = &taps[(tap * ci + c) * co..][..co];
            for (y, w) in out.data[o..o + co].iter_mut().zip(row) {
                *y += w * x;
            }
        }
    });
    out
}

pub fn conv_backward(input: &Picture, weight: &[f64], grad: &Picture, k: usize) -> ConvGradients {
    let (ci, co) = (input.c, grad.c);
    let taps = by_tap(weight, co, ci, k * k);
    let mut grad_taps = vec![0.0; taps.len()];
    let mut grad_input = Picture::zeros(input.n, input.h, input.w, ci);
    input.for_taps(k, |to, from, tap| {
        let g = &grad.data[grad.at(to.0, to.1, to.2)..][..co];
        let i = input.at(from.0, from.1, from.2);
        for c in 0..ci {
            let x = input.data[i + c];
            let row = (tap * ci + c) * co;
            let mut sum = 0.0;
            for o in 0..co {
                sum += taps[row + o] * g[o];
                grad_taps[row + o] += g[o] * x;
            }
            grad_input.data[i + c] += sum;
        }
    });
    let mut grad_weight = vec![0.0; weight.len()];
    for t in 0..k * k {
        for i in 0..ci {
            for o in 0..co {
                grad_weight[(o * ci + i) * k * k + t] = grad_taps[(t * ci + i) * co + o];
            }
        }
    }
    ConvGradients {
        weight: grad_weight,
        bias: channel_sums(grad),
        input: grad_input,
    }
}

/// OIHW -> [tap][in][out], so that the inner loops above run over neighbours.
fn by_tap(weight: &[f64], co: usize, ci: usize, area: usize) -> Vec<f64> {
    let mut taps = vec![0.0; weight.len()];
    for o in 0..co {
        for i in 0..ci {
            for t in 0..area {
                taps[(t * ci + i) * co + o] = weight[(o * ci + i) * area + t];
            }
        }
    }
    taps
}

/// Depthwise 3x3 convolution, zero padding 1, weight [c, 1, 3, 3], bias [c].
pub fn depthwise(input: &Picture, weight: &[f64], bias: &[f64]) -> Picture {
    let c = input.c;
    assert_eq!(weight.len(), c * 9);
    let mut out = input.clone();
    out.data
        .chunks_exact_mut(c)
        .for_each(|pixel| pixel.copy_from_slice(bias));
    input.for_taps(3, |to, from, tap| {
        let (o, i) = (input.at(to.0, to.1, to.2), input.at(from.0, from.1, from.2));
        for ch in 0..c {
            out.data[o + ch] += weight[ch * 9 + tap] * input.data[i + ch];
        }
    });
    out
}

pub fn depthwise_backward(input: &Picture, weight: &[f64], grad: &Picture) -> ConvGradients {
    let c = input.c;
    let mut grad_weight = vec![0.0; weight.len()];
    let mut grad_input = Picture::zeros(input.n, input.h, input.w, c);
    input.for_taps(3, |to, from, tap| {
        let (o, i) = (input.at(to.0, to.1, to.2), input.at(from.0, from.1, from.2));
        for ch in 0..c {
            grad_weight[ch * 9 + tap] += grad.data[o + ch] * input.data[i + ch];
            grad_input.data[i + ch] += grad.data[o + ch] * weight[ch * 9 + tap];
        }
    });
    ConvGradients {
        weight: grad_weight,
        bias: channel_sums(grad),
        input: grad_input,
    }
}

/// [c]: the sum over all pixels.
pub fn channel_sums(picture: &Picture) -> Vec<f64> {
    let mut sums = vec![0.0; picture.c];
    for pixel in picture.data.chunks_exact(picture.c) {
        sums.iter_mut().zip(pixel).for_each(|(s, v)| *s += v);
    }
    sums
}

/// For every value of the shuffled image [n, h*s, w*s, c/(s*s)]: the place it comes from. Channel
/// c*s*s + dy*s + dx of pixel (y, x) becomes channel c of pixel (y*s + dy, x*s + dx).
fn for_shuffle(low: &Picture, s: usize, mut visit: impl FnMut(usize, usize)) {
    let high = Picture {
        n: low.n,
        h: low.h * s,
        w: low.w * s,
        c: low.c / (s * s),
        data: vec![],
    };
    for b in 0..high.n {
        for y in 0..high.h {
            for x in 0..high.w {
                for c in 0..high.c {
                    let from = low.at(b, y / s, x / s) + c * s * s + (y % s) * s + x % s;
                    visit(high.at(b, y, x) + c, from);
                }
            }
        }
    }
}

pub fn pixel_shuffle(low: &Picture, s: usize) -> Picture {
    let mut high = Picture::zeros(low.n, low.h * s, low.w * s, low.c / (s * s));
    for_shuffle(low, s, |to, from| high.data[to] = low.data[from]);
    high
}

/// The inverse, which is also its gradient.
pub fn pixel_unshuffle(high: &Picture, s: usize) -> Picture {
    let mut low = Picture::zeros(high.n, high.h / s, high.w / s, high.c * s * s);
    let shape = low.like(vec![0.0; low.data.len()]);
    for_shuffle(&shape, s, |from, to| low.data[to] = high.data[from]);
    low
}

/// Nearest-neighbour upsampling by s.
pub fn nearest(low: &Picture, s: usize) -> Picture {
    let mut high = Picture::zeros(low.n, low.h * s, low.w * s, low.c);
    for b in 0..high.n {
        for y in 0..high.h {
            for x in 0..high.w {
                for c in 0..high.c {
                    let to = high.at(b, y, x) + c;
                    high.data[to] = low.data[low.at(b, y / s, x / s) + c];
                }
            }
        }
    }
    high
}

/// Its adjoint: the sum over every s x s cell.
pub fn nearest_backward(grad: &Picture, s: usize) -> Picture {
    let mut low = Picture::zeros(grad.n, grad.h / s, grad.w / s, grad.c);
    for b in 0..grad.n {
        for y in 0..grad.h {
            for x in 0..grad.w {
                for c in 0..grad.c {
                    let to = low.at(b, y / s, x / s) + c;
                    low.data[to] += grad.data[grad.at(b, y, x) + c];
                }
            }
        }
    }
    low
}

/// A symmetric kernel along the rows, then along the columns, zeros outside, every channel by
/// itself. Being symmetric, it is its own adjoint up to the order of the two passes, which commute.
pub fn filter(input: &Picture, taps: &[f64]) -> Picture {
    let r = taps.len() / 2;
    let mut across = Picture::zeros(input.n, input.h, input.w, input.c);
    let mut down = across.clone();
    for b in 0..input.n {
        for y in 0..input.h {
            for x in 0..input.w {
                for c in 0..input.c {
                    let to = input.at(b, y, x) + c;
                    for (t, tap) in taps.iter().enumerate() {
                        if x + t >= r && x + t - r < input.w {
                            across.data[to] += tap * input.data[input.at(b, y, x + t - r) + c];
                        }
                    }
                }
            }
        }
    }
    for b in 0..input.n {
        for y in 0..input.h {
            for x in 0..input.w {
                for c in 0..input.c {
                    let to = input.at(b, y, x) + c;
                    for (t, tap) in taps.iter().enumerate() {
                        if y + t >= r && y + t - r < input.h {
                            down.data[to] += tap * across.data[input.at(b, y + t - r, x) + c];
                        }
                    }
                }
            }
        }
    }
    down
}
