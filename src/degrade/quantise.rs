//! Few levels for each channel, as in images with a palette or old video, with or without dithering.

use super::area::{Area, Span};
use super::canvas::Canvas;
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range, Weights};
use serde_json::{Value as Json, json};
use std::fmt;

/// How the error of rounding is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dither {
    /// Not at all.
    None,
    /// By Bayer's matrix of 8x8 thresholds.
    Ordered,
    /// By passing it on to the pixels to the right and below (Floyd and Steinberg).
    Diffusion,
}

const DITHERS: &[(&str, Dither)] = &[
    ("none", Dither::None),
    ("ordered", Dither::Ordered),
    ("diffusion", Dither::Diffusion),
];

/// The ranges of a quantisation.
#[derive(Clone, Debug)]
pub(crate) struct Quantise {
    levels: Range,
    dither: Weights<Dither>,
}

impl Default for Quantise {
    fn default() -> Quantise {
        use Dither::{Diffusion, None, Ordered};
        Quantise {
            levels: Range::new(8.0, 64.0),
            dither: Weights::new(DITHERS, &[(None, 1.0), (Ordered, 1.0), (Diffusion, 1.0)]),
        }
    }
}

impl Quantise {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        let about = "levels of each channel, a whole number";
        let bounds = (2.0, 256.0);
        keys.range("levels", &mut self.levels, Numbers::Whole, bounds, about);
        keys.words("dither", (&mut self.dither).into(), "the dithering");
    }

    /// Draws the levels and the dithering.
    pub fn draw(&self, stream: &mut Stream) -> DrawnQuantise {
        DrawnQuantise {
            levels: self.levels.draw_whole(stream),
            dither: self.dither.draw(stream),
        }
    }
}

/// A drawn quantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawnQuantise {
    pub(crate) levels: u32,
    pub(crate) dither: Dither,
}

impl DrawnQuantise {
    fn word(self) -> &'static str {
        let word = DITHERS.iter().find(|(_, d)| *d == self.dither);
        word.map_or("", |(word, _)| word)
    }

    /// The part of the image before it that decides `area` after it.
    pub(super) fn input(self, whole: (usize, usize), area: Area) -> Area {
        match self.dither {
            Dither::None | Dither::Ordered => area,
            Dither::Diffusion => Area {
                x: Area::whole(whole).x,
                y: Span { start: 0, ..area.y },
            },
        }
    }

    /// Its parameters for a program.
    pub(crate) fn json(self) -> Json {
        json!({"levels": self.levels, "dither": self.word()})
    }
}

impl fmt::Display for DrawnQuantise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} levels, dither {}", self.levels, self.word())
    }
}

/// The threshold of Bayer's matrix at a pixel, from -1/2 to 1/2.
fn bayer(x: usize, y: usize) -> f32 {
    let mut value = 0;
    for bit in 0..3 {
        let (x, y) = (x >> bit & 1, y >> bit & 1);
        value = value << 2 | (x ^ y) << 1 | y;
    }
    (value as f32 + 0.5) / 64.0 - 0.5
}

impl Canvas {
    /// Rounds every channel to its levels.
    pub(super) fn quantise(&mut self, drawn: DrawnQuantise) {
        let (w, h) = (self.width, self.height);
        let (left, top) = (self.area.x.start, self.area.y.start);
        let steps = (drawn.levels - 1) as f32;
        let round = |v: f32| (v * steps).clamp(0.0, steps).round_ties_even() / steps;
        for plane in self.planes[..3 * w * h].chunks_exact_mut(w * h) {
            match drawn.dither {
                Dither::None => plane.iter_mut().for_each(|v| *v = round(*v)),
                Dither::Ordered => {
                    for (i, v) in plane.iter_mut().enumerate() {
                        *v = round(*v + bayer(left + i % w, top + i / w) / steps);
                    }
                }
                Dither::Diffusion => diffuse(plane, w, round),
            }
        }
    }
}

fn diffuse(plane: &mut [f32], w: usize, round: impl Fn(f32) -> f32) {
    for i in 0..plane.len() {
        let x = i % w;
        let rounded = round(plane[i]);
        let error = plane[i].clamp(0.0, 1.0) - rounded;
        plane[i] = rounded;
        let mut pass = |at: usize, inside: bool, share: f32| {
            if let (Some(value), true) = (plane.get_mut(at), inside) {
                *value += error * share;
            }
        };
        pass(i + 1, x + 1 < w, 7.0 / 16.0);
        pass(i + w - 1, x > 0, 3.0 / 16.0);
        pass(i + w, true, 5.0 / 16.0);
        pass(i + w + 1, x + 1 < w, 1.0 / 16.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bayer_has_every_threshold_once() {
        let mut all: Vec<i32> = (0..64)
            .map(|i| ((bayer(i % 8, i / 8) + 0.5) * 64.0 - 0.5).round() as i32)
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..64).collect::<Vec<_>>());
        assert!(bayer(1, 1) - bayer(0, 0) > 0.2, "neighbours differ");
    }
}
