//! Compares two networks on the same images, image by image. Depends on the scores alone.

use super::eval::ImageResult;
use serde::Serialize;

/// Two networks compared on the same images, with the first as the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Images that both have measured.
    pub images: usize,
    /// Mean of the second network's PSNR-Y minus that of the first, dB.
    pub psnr_y: f64,
    /// Mean of the second network's SSIM-Y minus that of the first.
    pub ssim_y: f64,
    /// Images on which the second network has the higher PSNR-Y.
    pub better: usize,
    /// Images on which it has the lower one.
    pub worse: usize,
    /// Two-sided sign test over the images that differ: how often a fair coin would be as one-sided
    /// as `better` against `worse`. Below 0.05 the difference is unlikely to be chance.
    pub p_value: f64,
}

/// Compares the results of two networks; images are matched by their names.
pub fn compare(first: &[ImageResult], second: &[ImageResult]) -> Comparison {
    let by_name: std::collections::HashMap<&str, &ImageResult> = first
        .iter()
        .map(|result| (result.name.as_str(), result))
        .collect();
    let pairs: Vec<(&ImageResult, &ImageResult)> = second
        .iter()
        .filter_map(|b| Some((*by_name.get(b.name.as_str())?, b)))
        .collect();
    let count = pairs.len().max(1) as f64;
    let mean = |value: &dyn Fn(&ImageResult) -> f64| {
        pairs.iter().map(|(a, b)| value(b) - value(a)).sum::<f64>() / count
    };
    let higher = |a: &ImageResult, b: &ImageResult| b.network.psnr_y > a.network.psnr_y;
    let better = pairs.iter().filter(|(a, b)| higher(a, b)).count();
    let worse = pairs.iter().filter(|(a, b)| higher(b, a)).count();
    Comparison {
        images: pairs.len(),
        psnr_y: mean(&|r| r.network.psnr_y),
        ssim_y: mean(&|r| r.network.ssim_y),
        better,
        worse,
        p_value: sign_test(better, worse),
    }
}

/// The probability that `better + worse` throws of a fair coin are at least as one-sided as these.
fn sign_test(better: usize, worse: usize) -> f64 {
    let n = better + worse;
    // ln of n! by addition: exact enough for any number of images
    let ln_factorial = |k: usize| (2..=k).map(|i| (i as f64).ln()).sum::<f64>();
    let all = ln_factorial(n) - n as f64 * std::f64::consts::LN_2;
    let few = better.min(worse);
    let mut ln_term = all - ln_factorial(n); // of k = 0
    let mut tail = 0.0;
    for k in 0..=few {
        tail += ln_term.exp();
        ln_term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::eval::Scores;

    #[test]
    fn the_sign_test_gives_the_figures_of_the_binomial_distribution() {
        // 2 * (1 + 10) / 2^10; 2 / 2^5; all throws equal to the middle
        for (better, worse, p) in [
            (9, 1, 22.0 / 1024.0),
            (1, 9, 22.0 / 1024.0),
            (5, 0, 2.0 / 32.0),
            (3, 3, 1.0),
            (0, 0, 1.0),
        ] {
            assert!(
                (sign_test(better, worse) - p).abs() < 1e-12,
                "{better} {worse}"
            );
        }
        // 10,000 throws, three standard deviations: twice the normal tail of 0.00135
        assert!((sign_test(5150, 4850) - 0.0027).abs() < 0.0001);
        assert!(sign_test(100_000, 0) < 1e-300);
    }

    #[test]
    fn images_are_matched_by_their_names() {
        let result = |name: &str, psnr_y: f64| ImageResult {
            name: name.to_string(),
            width: 9,
            height: 9,
            network: Scores {
                psnr_y,
                ..Scores::default()
            },
            bicubic: Scores::default(),
            notes: Vec::new(),
        };
        let first = [result("a", 30.0), result("b", 31.0), result("c", 20.0)];
        let second = [result("c", 20.0), result("a", 30.5), result("b", 30.75)];
        let found = compare(&first, &second[..]);
        assert_eq!(
            (found.images, found.better, found.worse, found.p_value),
            (3, 1, 1, 1.0)
        );
        assert!((found.psnr_y - 0.25 / 3.0).abs() < 1e-12);
        assert_eq!(compare(&first, &second[..1]).images, 1);
    }
}
