//! Changes of colour: chroma that does not fit the brightness, and gamma, contrast, brightness,
//! saturation and a cast.

use super::area::Span;
use super::canvas::Canvas;
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range};
use serde_json::{Value as Json, json};
use std::fmt;

/// Intervals of the table of a gamma, between whose entries it is interpolated.
const GAMMA_INTERVALS: usize = 1024;
/// Weights of red, green and blue in the brightness (BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// The ranges of a chroma shift.
#[derive(Clone, Debug)]
pub(crate) struct ChromaShift {
    x: Range,
    y: Range,
}

impl Default for ChromaShift {
    fn default() -> ChromaShift {
        ChromaShift {
            x: Range::new(-1.0, 1.0),
            y: Range::new(-1.0, 1.0),
        }
    }
}

impl ChromaShift {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        use Numbers::Real;
        let about = "pixels to the right; Cb and Cr draw one each";
        keys.range("x", &mut self.x, Real, (-16.0, 16.0), about);
        let about = "pixels downwards; Cb and Cr draw one each";
        keys.range("y", &mut self.y, Real, (-16.0, 16.0), about);
    }

    /// Pixels that it reaches.
    pub fn reach(&self) -> f64 {
        let ends = [self.x.low, self.x.high, self.y.low, self.y.high];
        ends.map(f64::abs).into_iter().fold(0.0, f64::max).ceil()
    }

    /// Draws the shifts of Cb and Cr.
    pub fn draw(&self, stream: &mut Stream) -> [[f64; 2]; 2] {
        [0, 1].map(|_| [self.x.draw(stream), self.y.draw(stream)])
    }
}

/// The ranges of a change of colours.
#[derive(Clone, Debug)]
pub(crate) struct Colour {
    gamma: Range,
    contrast: Range,
    brightness: Range,
    saturation: Range,
    cast: Range,
}

impl Default for Colour {
    fn default() -> Colour {
        Colour {
            gamma: Range::new(0.9, 1.1),
            contrast: Range::new(0.95, 1.05),
            brightness: Range::new(-0.02, 0.02),
            saturation: Range::new(0.9, 1.1),
            cast: Range::new(-0.02, 0.02),
        }
    }
}

impl Colour {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        use Numbers::Real;
        let about = "exponent of all channels; 1 = none";
        keys.range("gamma", &mut self.gamma, Real, (0.1, 10.0), about);
        let about = "factor of the distance from middle grey; 1 = none";
        keys.range("contrast", &mut self.contrast, Real, (0.0, 4.0), about);
        let about = "added to all channels, of 1; 0 = none";
        keys.range("brightness", &mut self.brightness, Real, (-1.0, 1.0), about);
        let about = "factor of the distance from grey; 1 = none, 0 = a grey image";
        keys.range("saturation", &mut self.saturation, Real, (0.0, 4.0), about);
        let about = "added to each channel, drawn for each, of 1; 0 = none";
        keys.range("cast", &mut self.cast, Real, (-1.0, 1.0), about);
    }

    /// Draws the parameters.
    pub fn draw(&self, stream: &mut Stream) -> DrawnColour {
        DrawnColour {
            gamma: self.gamma.draw(stream),
            contrast: self.contrast.draw(stream),
            brightness: self.brightness.draw(stream),
            saturation: self.saturation.draw(stream),
            cast: [0; 3].map(|_| self.cast.draw(stream)),
        }
    }
}

/// A drawn change of colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnColour {
    gamma: f64,
    contrast: f64,
    brightness: f64,
    saturation: f64,
    cast: [f64; 3],
}

impl DrawnColour {
    /// Its parameters for a program.
    pub(crate) fn json(&self) -> Json {
        json!({
            "gamma": self.gamma, "contrast": self.contrast, "brightness": self.brightness,
            "saturation": self.saturation, "cast": self.cast,
        })
    }
}

impl fmt::Display for DrawnColour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [r, g, b] = self.cast;
        write!(
            f,
            "gamma {:.2}, contrast {:.2}, brightness {:+.2}, saturation {:.2}, cast {r:+.2} {g:+.2} {b:+.2}",
            self.gamma, self.contrast, self.brightness, self.saturation
        )
    }
}

impl Canvas {
    /// Moves Cb and Cr by parts of pixels (bilinear), with the last pixel repeated at the border.
    pub(super) fn shift_chroma(&mut self, shifts: [[f64; 2]; 2]) {
        let (w, h) = (self.width, self.height);
        let n = w * h;
        let (planes, other) = (&mut self.planes[..3 * n], &mut self.other[..3 * n]);
        for i in 0..n {
            let [r, g, b] = [planes[i], planes[n + i], planes[2 * n + i]];
            let y = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b;
            (other[i], other[n + i], other[2 * n + i]) = (y, (b - y) / 1.772, (r - y) / 1.402);
        }
        for (channel, [dx, dy]) in (1..3).zip(shifts) {
            let (from, to) = (&other[channel * n..][..n], &mut planes[channel * n..][..n]);
            let columns = nearest_two(self.area.x, self.whole.0, dx);
            let rows = nearest_two(self.area.y, self.whole.1, dy);
            for (row, &(top, bottom, below)) in to.chunks_exact_mut(w).zip(&rows) {
                for (out, &(left, right, beside)) in row.iter_mut().zip(&columns) {
                    let along = |y: usize| {
                        let (a, b) = (from[y * w + left], from[y * w + right]);
                        a + beside * (b - a)
                    };
                    let (a, b) = (along(top), along(bottom));
                    *out = a + below * (b - a);
                }
            }
        }
        for i in 0..n {
            let (y, cb, cr) = (other[i], planes[n + i], planes[2 * n + i]);
            let (r, b) = (y + 1.402 * cr, y + 1.772 * cb);
            let g = (y - LUMA[0] * r - LUMA[2] * b) / LUMA[1];
            (planes[i], planes[n + i], planes[2 * n + i]) = (r, g, b);
        }
    }

    /// Changes colours: gamma, contrast and brightness, saturation, cast, each after the other.
    pub(super) fn colour(&mut self, drawn: &DrawnColour) {
        let n = self.width * self.height;
        let table: Vec<f32> = (0..=GAMMA_INTERVALS)
            .map(|i| libm::pow(i as f64 / GAMMA_INTERVALS as f64, drawn.gamma) as f32)
            .collect();
        let tone = |v: f32| {
            let place = v.clamp(0.0, 1.0) * GAMMA_INTERVALS as f32;
            let at = (place as usize).min(GAMMA_INTERVALS - 1);
            let bent = table[at] + (place - at as f32) * (table[at + 1] - table[at]);
            (bent - 0.5) * drawn.contrast as f32 + 0.5 + drawn.brightness as f32
        };
        let (r, rest) = self.planes[..3 * n].split_at_mut(n);
        let (g, b) = rest.split_at_mut(n);
        let cast = drawn.cast.map(|c| c as f32);
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let toned = [tone(*r), tone(*g), tone(*b)];
            let grey = LUMA[0] * toned[0] + LUMA[1] * toned[1] + LUMA[2] * toned[2];
            for ((out, value), cast) in [r, g, b].into_iter().zip(toned).zip(cast) {
                let saturated = grey + drawn.saturation as f32 * (value - grey);
                *out = (saturated + cast).clamp(0.0, 1.0);
            }
        }
    }
}

/// For every pixel of a part of a line of `n` pixels that is moved by `shift`: the two pixels of the part
/// that it comes from, and the share of the second.
fn nearest_two(part: Span, n: usize, shift: f64) -> Vec<(usize, usize, f32)> {
    let last = (n - 1) as f64;
    // at the ends of the part, pixels that nothing reads come from beyond it
    let within = |i: f64| (i as usize).clamp(part.start, part.end - 1) - part.start;
    (part.start..part.end)
        .map(|i| {
            let place = (i as f64 - shift).clamp(0.0, last);
            let first = libm::floor(place);
            let second = (first + 1.0).min(last);
            (within(first), within(second), (place - first) as f32)
        })
        .collect()
}
