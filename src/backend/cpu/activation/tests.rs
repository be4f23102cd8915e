//! The activations against f64, and the promises about zeros and large values.

use super::super::simd::Kernel;
use super::*;
use crate::plan::ParamRange;
use crate::support::isa::Isa;

const C: usize = 2 * LANES;

struct Forward<'a>(RowActivation, &'a [f32], &'a mut [f32]);

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` chose S for this processor, and both slices are whole pixels
        unsafe {
            apply_row::<S>(
                self.0,
                self.1.as_ptr(),
                C,
                self.1.len(),
                self.2.as_mut_ptr(),
            );
        }
    }
}

struct Backward(RowActivation, BackRow);

impl Kernel for Backward {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `Isa::run` chose S for this processor, and the test has rows of these sizes
        unsafe { back_row::<S>(self.0, self.1) }
    }
}

/// Value and derivative in f64; GELU is tested in its own file.
fn plain(function: Activation, slope: f64, z: f64) -> (f64, f64) {
    let leaky = |slope: f64| {
        if z > 0.0 {
            (z, 1.0)
        } else {
            (slope * z, slope)
        }
    };
    match function {
        Activation::Relu => leaky(0.0),
        Activation::LeakyRelu { slope } => leaky(f64::from(slope)),
        Activation::PRelu { .. } => leaky(slope),
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-z).exp());
            (z * s, s * (1.0 + z * (1.0 - s)))
        }
        _ => unreachable!("not in this test"),
    }
}

fn numbers(count: usize) -> Vec<f32> {
    let special = [
        0.0, -0.0, 1e-30, -1e-30, 1e-40, -1e-40, 60.0, -60.0, 1e30, -1e30,
    ];
    let spread = |i: usize| (i as f32 / count as f32 - 0.5) * 60.0;
    (0..count)
        .map(|i| special.get(i).copied().unwrap_or_else(|| spread(i)))
        .collect()
}

/// All functions with slopes; `slopes` must outlive the result.
fn all(slopes: &[f32]) -> Vec<RowActivation> {
    let range = ParamRange { offset: 0, len: C };
    let slopes = SharedPtr::new(slopes.as_ptr().cast_mut()); // never written
    [
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        Activation::PRelu { slopes: range },
        Activation::Silu,
    ]
    .map(|function| RowActivation { function, slopes })
    .to_vec()
}

#[test]
fn values_are_exact_within_the_stated_error_on_every_instruction_set() {
    let z = numbers(C * 1_001);
    let slopes: Vec<f32> = (0..C).map(|c| 0.3 - 0.02 * c as f32).collect();
    for (isa, f) in Isa::available()
        .into_iter()
        .flat_map(|isa| all(&slopes).into_iter().map(move |f| (isa, f)))
    {
        let mut out = vec![f32::NAN; z.len()];
        isa.run(Forward(f, &z, &mut out));
        for (i, (&z, &out)) in z.iter().zip(&out).enumerate() {
            let (value, _) = plain(f.function, f64::from(slopes[i % C]), f64::from(z));
            let error = (f64::from(out) - value).abs();
            assert!(
                error <= 4e-7 * value.abs() + 1e-16,
                "{isa}, {:?}: {out} for {value} at {z}",
                f.function
            );
        }
    }
}

#[test]
fn gradients_are_exact_within_the_stated_error_on_every_instruction_set() {
    let z = numbers(C * 1_001);
    let d: Vec<f32> = (0..z.len()).map(|i| (i as f32 * 0.37).sin()).collect();
    let slopes: Vec<f32> = (0..C).map(|c| 0.3 - 0.02 * c as f32).collect();
    for (isa, f) in Isa::available()
        .into_iter()
        .flat_map(|isa| all(&slopes).into_iter().map(move |f| (isa, f)))
    {
        for add in [false, true] {
            let (mut out, mut sums) = (vec![0.5; z.len()], [0.0; C]);
            let row = BackRow {
                z: z.as_ptr(),
                d: d.as_ptr(),
                c: C,
                // a number of pixels that the chains do not divide
                len: z.len(),
                out: out.as_mut_ptr(),
                add,
                slope_sums: sums.as_mut_ptr(),
            };
            isa.run(Backward(f, row));
            let (mut expected, mut size) = ([0.0; C], [0.0; C]);
            for i in 0..z.len() {
                let (z, d) = (f64::from(z[i]), f64::from(d[i]));
                let slope = plain(f.function, f64::from(slopes[i % C]), z).1;
                let before = if add { 0.5 } else { 0.0 };
                let error = (f64::from(out[i]) - before - d * slope).abs();
                assert!(
                    error <= 1e-6,
                    "{isa}, {:?}: {} for {} at {z}",
                    f.function,
                    out[i],
                    d * slope
                );
                expected[i % C] += d * z.min(0.0);
                size[i % C] += (d * z.min(0.0)).abs();
            }
            for c in 0..C {
                let trained = matches!(f.function, Activation::PRelu { .. });
                let expected = if trained { expected[c] } else { 0.0 };
                assert!(
                    (f64::from(sums[c]) - expected).abs() <= 1e-6 * size[c],
                    "{isa}: slope {c}"
                );
            }
        }
    }
}
