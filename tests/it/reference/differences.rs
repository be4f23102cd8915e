//! Compares gradients with central finite differences. Depends on `tape` and `plain`; promises to
//! change one value at a time and to use nothing of the backward pass that is tested.

use super::plain::dot;
use super::tape::{Tape, Var};
use super::tensor::Tensor;

/// The step. The error of a central difference is of the order of its square, and that of rounding
/// 1e-16 divided by it.
const STEP: f64 = 1e-4;

/// Compares `grads` with the differences of the scalar function `f` at `point`, for every
/// `stride`-th value of every tensor. An error counts relative to the largest value of its
/// tensor's gradient; it must be below 1e-6. Returns the largest.
pub fn check(
    what: &str,
    point: &[Tensor],
    grads: &[Tensor],
    stride: usize,
    f: impl Fn(&[Tensor]) -> f64,
) -> f64 {
    assert_eq!(point.len(), grads.len());
    let mut point = point.to_vec();
    let mut largest = 0f64;
    for (t, grad) in grads.iter().enumerate() {
        assert_eq!(grad.shape, point[t].shape, "{what}: shape of gradient {t}");
        let size = grad.data.iter().fold(0f64, |m, g| m.max(g.abs()));
        assert!(size > 0.0, "{what}: gradient {t} is zero everywhere");
        for j in (0..grad.data.len()).step_by(stride) {
            let here = point[t].data[j];
            point[t].data[j] = here + STEP;
            let plus = f(&point);
            point[t].data[j] = here - STEP;
            let minus = f(&point);
            point[t].data[j] = here;
            let difference = (plus - minus) / (2.0 * STEP);
            let error = (grad.data[j] - difference).abs() / size;
            assert!(
                error < 1e-6,
                "{what}: gradient {t}, value {j} is {:e}, differences give {difference:e}",
                grad.data[j]
            );
            largest = largest.max(error);
        }
    }
    largest
}

/// Checks the backward pass of what `build` records on a tape, with respect to all of `inputs`. The
/// scalar is a sum of the output's values with random factors.
pub fn check_tape(what: &str, inputs: &[Tensor], build: impl Fn(&mut Tape, &[Var]) -> Var) {
    let run = |inputs: &[Tensor]| {
        let mut tape = Tape::default();
        let leaves: Vec<Var> = inputs.iter().map(|x| tape.leaf(x.clone())).collect();
        let output = build(&mut tape, &leaves);
        (tape, leaves, output)
    };
    let (tape, leaves, output) = run(inputs);
    let factors = Tensor::random(&tape.value(output).shape, -1.0, 1.0, 99);
    let grads = tape.backward(output, factors.clone());
    let grads: Vec<Tensor> = leaves
        .iter()
        .map(|&leaf| grads.of(leaf).expect("every input is used").clone())
        .collect();
    let error = check(what, inputs, &grads, 1, |inputs| {
        let (tape, _, output) = run(inputs);
        dot(&tape.value(output).data, &factors.data)
    });
    println!("{what}: largest difference {error:.1e} of the gradient's largest value");
}
