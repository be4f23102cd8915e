//! SSIM and MS-SSIM of one image as their definitions read, in f64 with a full 11x11 window at
//! every place. Depends on nothing; promises to be slow and plain.

/// A grey image.
#[derive(Clone)]
struct Plane {
    h: usize,
    w: usize,
    data: Vec<f64>,
}

impl Plane {
    /// 0 outside.
    fn get(&self, y: isize, x: isize) -> f64 {
        let inside = y >= 0 && x >= 0 && (y as usize) < self.h && (x as usize) < self.w;
        if inside {
            self.data[y as usize * self.w + x as usize]
        } else {
            0.0
        }
    }

    fn luma(rgb: &[f64], h: usize, w: usize) -> Plane {
        let unit = |v: f64| v.clamp(0.0, 1.0);
        let data = rgb
            .chunks_exact(3)
            .map(|p| 0.299 * unit(p[0]) + 0.587 * unit(p[1]) + 0.114 * unit(p[2]))
            .collect();
        Plane { h, w, data }
    }

    /// 2x2 means; odd sizes get zeros in front, which count.
    fn half(&self) -> Plane {
        let (h, w) = (self.h.div_ceil(2), self.w.div_ceil(2));
        let mut data = vec![];
        for y in 0..h {
            for x in 0..w {
                let (y, x) = (
                    2 * y as isize - (self.h % 2) as isize,
                    2 * x as isize - (self.w % 2) as isize,
                );
                let cell = self.get(y, x)
                    + self.get(y, x + 1)
                    + self.get(y + 1, x)
                    + self.get(y + 1, x + 1);
                data.push(0.25 * cell);
            }
        }
        Plane { h, w, data }
    }
}

/// (mean SSIM, mean contrast-structure) of two planes.
fn means(a: &Plane, b: &Plane) -> (f64, f64) {
    const C1: f64 = 1e-4;
    const C2: f64 = 9e-4;
    let bell: Vec<f64> = (-5..=5)
        .map(|x| (-(x * x) as f64 / (2.0 * 1.5 * 1.5)).exp())
        .collect();
    let total: f64 = bell.iter().sum();
    // windows inside the image, or centred on every pixel where the image is smaller than a
    // window
    let (border, rows, columns) = if a.h.min(a.w) < 11 {
        (-5, a.h, a.w)
    } else {
        (0, a.h - 10, a.w - 10)
    };
    let (mut ssim, mut structure) = (0.0, 0.0);
    for y in 0..rows as isize {
        for x in 0..columns as isize {
            let mut m = [0.0; 5];
            for i in 0..11 {
                for j in 0..11 {
                    let k = bell[i as usize] / total * bell[j as usize] / total;
                    let (p, q) = (
                        a.get(y + border + i, x + border + j),
                        b.get(y + border + i, x + border + j),
                    );
                    [p, q, p * p, q * q, p * q]
                        .iter()
                        .zip(&mut m)
                        .for_each(|(v, m)| *m += k * v);
                }
            }
            let [p, q, pp, qq, pq] = m;
            let cs = ((2.0 * (pq - p * q) + C2) / (pp - p * p + qq - q * q + C2)).max(0.0);
            let l = (2.0 * p * q + C1) / (p * p + q * q + C1);
            ssim += l * cs;
            structure += cs;
        }
    }
    let count = (rows * columns) as f64;
    (ssim / count, structure / count)
}

/// Mean SSIM of the clamped luma of two RGB [h, w, 3] images.
pub fn ssim(pred: &[f64], target: &[f64], h: usize, w: usize) -> f64 {
    means(&Plane::luma(pred, h, w), &Plane::luma(target, h, w)).0
}

/// Their multi-scale SSIM, with the luminance term in the coarsest level or without.
pub fn multi_scale(pred: &[f64], target: &[f64], h: usize, w: usize, luminance: bool) -> f64 {
    let (mut a, mut b) = (Plane::luma(pred, h, w), Plane::luma(target, h, w));
    let mut score = 1.0;
    for (level, exponent) in [0.0448, 0.2856, 0.3001, 0.2363, 0.1333f64]
        .into_iter()
        .enumerate()
    {
        let (ssim, structure) = means(&a, &b);
        score *= if luminance && level == 4 {
            ssim
        } else {
            structure
        }
        .powf(exponent);
        (a, b) = (a.half(), b.half());
    }
    score
}
