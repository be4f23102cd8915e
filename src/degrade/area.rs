//! Which part of an image decides which part of the image after a step. From the part of the LQ that
//! is asked for, a [`Degrader`](super::Degrader) goes back through the drawn steps, and before each
//! step it drops the pixels that nothing after it reads. Depends on the drawn steps.
//!
//! What is kept has the bytes that it has in the whole image: filters read the whole radius of their
//! kernel; a JPEG keeps whole blocks of its own grid and the blocks beside them whose chroma is
//! enlarged into the part; noise and ordered dithering are functions of a pixel's place in the whole
//! image. Poisson noise (which counts the levels of the image) and WebP need the whole image, and
//! passed-on errors of dithering need all rows above.

use super::drawn::DrawnStep;

/// Pixels along an axis, from `start` up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// The number of pixels.
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// With `by` pixels more at each end, within a line of `n` pixels.
    pub fn grown(self, by: usize, n: usize) -> Span {
        Span {
            start: self.start.saturating_sub(by),
            end: (self.end + by).min(n),
        }
    }

    /// Grown to multiples of `step`, within a line of `n` pixels.
    pub fn aligned(self, step: usize, n: usize) -> Span {
        Span {
            start: self.start / step * step,
            end: self.end.next_multiple_of(step).min(n),
        }
    }
}

/// A rectangle of pixels of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub x: Span,
    pub y: Span,
}

impl Area {
    /// All of an image of this size.
    pub fn whole((w, h): (usize, usize)) -> Area {
        let all = |end| Span { start: 0, end };
        Area {
            x: all(w),
            y: all(h),
        }
    }

    /// Width and height.
    pub fn size(self) -> (usize, usize) {
        (self.x.len(), self.y.len())
    }

    /// With `by` pixels more on each side, within an image of size `whole`.
    pub fn grown(self, by: usize, whole: (usize, usize)) -> Area {
        Area {
            x: self.x.grown(by, whole.0),
            y: self.y.grown(by, whole.1),
        }
    }

    /// Grown to multiples of `steps` along x and y, within an image of size `whole`.
    pub fn aligned(self, steps: (usize, usize), whole: (usize, usize)) -> Area {
        Area {
            x: self.x.aligned(steps.0, whole.0),
            y: self.y.aligned(steps.1, whole.1),
        }
    }
}

/// For each step the part of the image before it that decides `area` of the image after the last one,
/// and at the end `area` itself. `size` is that of the image before the first step.
pub(super) fn needed(steps: &[DrawnStep], size: (usize, usize), area: Area) -> Vec<Area> {
    let after = |before, step: &DrawnStep| match step {
        DrawnStep::Resize(resize) => resize.to,
        _ => before,
    };
    let mut size = size;
    let mut sizes = Vec::with_capacity(steps.len());
    for step in steps {
        sizes.push(size);
        size = after(size, step);
    }
    let mut needed = vec![area];
    for (step, size) in steps.iter().zip(sizes).rev() {
        let after = needed[needed.len() - 1];
        needed.push(step.input(size, after));
    }
    needed.reverse();
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::tests::{picture, recipe};
    use crate::degrade::{Degrader, Draws, HrView, LqPart, Recipe};

    /// For every preset and for short chains of every step, part by part: what is left out before a step
    /// decides nothing.
    #[test]
    fn a_part_has_the_bytes_that_it_has_in_the_whole() {
        let steps = [
            "blur: {kernels: {isotropic: 1, anisotropic: 1, plateau_isotropic: 1, sinc: 1, motion: 1, median: 1}, size: [3, 11]}",
            "resize: {range: [0.4, 1.5], filters: [area, box, bilinear, bicubic, lanczos, nearest_exact], antialias: false}",
            "resize: {range: [0.4, 1.5], filters: [bilinear, bicubic, lanczos]}",
            "gaussian_noise: {grey: 0.5}",
            "poisson_noise: {grey: 0.5}",
            "jpeg: {sampling: [444, 422, 420]}",
            "quantise",
            "sharpen: {size: [3, 51], threshold: 2}",
            "halo: {sigma: [0.5, 5]}",
            "chroma_shift: {x: [-3, 3], y: [-3, 3]}",
            "colour",
        ];
        let choices = steps.map(|step| format!("{{steps: [{step}]}}")).join(", ");
        let short = recipe(&format!(
            "- repeat: {{times: [1, 3], steps: [one_of: {{choices: [{choices}]}}]}}\n"
        ));
        let presets: Vec<Recipe> = Recipe::presets()
            .map(|name| Recipe::load(name).unwrap())
            .collect();
        let (mut smaller, mut cases) = (0, 0);
        for (recipe, variants) in presets
            .iter()
            .map(|recipe| (recipe, 12))
            .chain([(&short, 80)])
        {
            for scale in [1, 2, 4] {
                // no multiple of a block
                let (w, h) = (132, 100);
                let hr = picture(w, h);
                let view = HrView::packed(&hr, w, h);
                let (lq_w, lq_h) = (w / scale, h / scale);
                let mut degrader = Degrader::new(recipe, scale, w, h);
                let mut whole = vec![0; 3 * lq_w * lq_h];
                for variant in 0..variants {
                    let draws = Draws::new(4, 5, scale as u64, variant);
                    let mut place = draws.stream(1 << 40, 0);
                    let mut span = |n: usize| {
                        if variant % 4 == 3 {
                            // the corner, where blocks are cut
                            return (n - 2, 2);
                        }
                        let length = 1 + place.below(n as u64 / 2) as usize;
                        (place.below((n - length) as u64 + 1) as usize, length)
                    };
                    let ((x, width), (y, height)) = (span(lq_w), span(lq_h));
                    let part = LqPart {
                        x,
                        y,
                        width,
                        height,
                    };
                    let mut lq = vec![0; 3 * width * height];
                    degrader.apply_part(view, &draws, part, &mut lq).unwrap();
                    let steps = degrader.explain(&draws, w, h);
                    let area = Area {
                        x: Span {
                            start: x,
                            end: x + width,
                        },
                        y: Span {
                            start: y,
                            end: y + height,
                        },
                    };
                    let read = needed(&steps, (w, h), area)[0];
                    cases += 1;
                    smaller += u32::from(2 * read.x.len() * read.y.len() < w * h);
                    degrader.apply(view, &draws, &mut whole).unwrap();
                    for (row, found) in lq.chunks_exact(3 * width).enumerate() {
                        let expected = &whole[3 * ((y + row) * lq_w + x)..][..3 * width];
                        assert!(
                            found == expected,
                            "{} x{scale}, {part:?}, row {row}:\n{:?}",
                            recipe.name(),
                            degrader.explain(&draws, w, h)
                        );
                    }
                }
            }
        }
        // the test would show nothing if all of the image were read
        assert!(4 * smaller > cases, "{smaller} of {cases}");
    }
}
