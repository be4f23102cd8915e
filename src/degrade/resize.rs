//! Resizing: the filters in use, with or without antialiasing. Sizes decide positions (the ratio is
//! that of the two sizes), so that the corners of the image keep their places and nothing drifts.

use super::area::Area;
use super::canvas::Canvas;
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range, Weights};
use super::table::{Line, Table};
use serde_json::{Value as Json, json};
use std::f64::consts::PI;
use std::fmt;

/// A filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Area,
    Box,
    Bilinear,
    Bicubic,
    Lanczos,
    NearestExact,
}

const FILTERS: &[(&str, Filter)] = &[
    ("area", Filter::Area),
    ("box", Filter::Box),
    ("bilinear", Filter::Bilinear),
    ("bicubic", Filter::Bicubic),
    ("lanczos", Filter::Lanczos),
    ("nearest_exact", Filter::NearestExact),
];

impl Filter {
    fn word(self) -> &'static str {
        let word = FILTERS.iter().find(|(_, filter)| *filter == self);
        word.map_or("", |(word, _)| word)
    }

    /// Half of the width of the filter before it is stretched.
    pub(super) fn support(self) -> f64 {
        match self {
            Filter::Area | Filter::Box | Filter::NearestExact => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight at a distance. Torch's bicubic has a = -0.75 without antialiasing and -0.5 with it.
    pub(super) fn weight(self, x: f64, antialias: bool) -> f64 {
        let x = x.abs();
        match self {
            Filter::Area | Filter::Box | Filter::NearestExact => f64::from(u8::from(x <= 0.5)),
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic => {
                let a = if antialias { -0.5 } else { -0.75 };
                if x <= 1.0 {
                    ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
                } else {
                    0.0
                }
            }
            Filter::Lanczos if x == 0.0 => 1.0,
            Filter::Lanczos if x < 3.0 => {
                3.0 * libm::sin(PI * x) * libm::sin(PI * x / 3.0) / (PI * x * PI * x)
            }
            Filter::Lanczos => 0.0,
        }
    }
}

/// Whether the image becomes larger, smaller, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
    Keep,
}

const DIRECTIONS: &[(&str, Direction)] = &[
    ("up", Direction::Up),
    ("down", Direction::Down),
    ("keep", Direction::Keep),
];

/// The size that the factor multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Current,
    Lq,
}

const BASES: &[(&str, Base)] = &[("current", Base::Current), ("lq", Base::Lq)];

/// The ranges of a resize.
#[derive(Clone, Debug)]
pub(crate) struct Resize {
    directions: Weights<Direction>,
    range: Range,
    relative_to: Weights<Base>,
    keep_as_it_is: bool,
    filters: Weights<Filter>,
    antialias: bool,
    clamp: bool,
}

impl Default for Resize {
    fn default() -> Resize {
        use Direction::{Down, Keep, Up};
        Resize {
            directions: Weights::new(DIRECTIONS, &[(Up, 0.2), (Down, 0.7), (Keep, 0.1)]),
            range: Range::new(0.5, 1.5),
            relative_to: Weights::new(BASES, &[(Base::Current, 1.0)]),
            keep_as_it_is: false,
            filters: all_filters(),
            antialias: true,
            clamp: true,
        }
    }
}

fn all_filters() -> Weights<Filter> {
    use Filter::{Area, Bicubic, Bilinear};
    Weights::new(FILTERS, &[(Area, 1.0), (Bilinear, 1.0), (Bicubic, 1.0)])
}

/// The keys that both resizing steps have.
fn visit_filters(
    keys: &mut dyn Keys,
    filters: &mut Weights<Filter>,
    antialias: &mut bool,
    clamp: &mut bool,
) {
    keys.words("filters", filters.into(), "the filter");
    let about = "whether a reduction averages over all that a pixel covers; without it, bilinear, bicubic and lanczos read \
                 their nearest pixels alone, as torch does by default";
    keys.flag("antialias", antialias, about);
    let about = "whether values are clamped to 0 to 1 after it; bicubic and lanczos overshoot";
    keys.flag("clamp", clamp, about);
}

impl Resize {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        let about = "whether the image becomes larger, smaller, or keeps its size";
        keys.words("directions", (&mut self.directions).into(), about);
        let about = "the factor: above 1 for up, below 1 for down";
        keys.range("range", &mut self.range, Numbers::Real, (0.05, 4.0), about);
        let about = "the size that the factor multiplies";
        keys.words("relative_to", (&mut self.relative_to).into(), about);
        let about = "whether keep leaves the image as it is even where the factor is relative to the LQ size";
        keys.flag("keep_as_it_is", &mut self.keep_as_it_is, about);
        visit_filters(
            keys,
            &mut self.filters,
            &mut self.antialias,
            &mut self.clamp,
        );
    }

    /// The largest side after it over that of the HR, if the largest side before is `side`.
    pub fn largest(&self, side: f64, scale: f64) -> f64 {
        let up = self.directions.possible().any(|d| d == Direction::Up);
        let factor = if up { self.range.high.max(1.0) } else { 1.0 };
        let of = |base| match base {
            Base::Current => side * factor,
            Base::Lq if self.keep_as_it_is => (factor / scale).max(side),
            Base::Lq => factor / scale,
        };
        self.relative_to.possible().map(of).fold(0.0, f64::max)
    }

    /// Draws the size and the filter; `None` if the image stays as it is.
    pub fn draw(
        &self,
        stream: &mut Stream,
        size: (usize, usize),
        lq: (usize, usize),
    ) -> Option<DrawnResize> {
        let direction = self.directions.draw(stream);
        let part = match direction {
            Direction::Up => Range {
                low: self.range.low.max(1.0),
                high: self.range.high.max(1.0),
                ..self.range
            },
            Direction::Down => Range {
                low: self.range.low.min(1.0),
                high: self.range.high.min(1.0),
                ..self.range
            },
            Direction::Keep => Range::new(1.0, 1.0),
        };
        let factor = part.draw(stream);
        let base = self.relative_to.draw(stream);
        let filter = self.filters.draw(stream);
        if direction == Direction::Keep && (base == Base::Current || self.keep_as_it_is) {
            return None;
        }
        let (w, h) = if base == Base::Lq { lq } else { size };
        let side = |n: usize| (libm::floor(n as f64 * factor) as usize).max(1);
        Some(DrawnResize {
            filter,
            antialias: self.antialias,
            clamp: self.clamp,
            from: size,
            to: (side(w), side(h)),
        })
    }
}

/// The resize to the LQ size.
#[derive(Clone, Debug)]
pub(crate) struct ToLq {
    filters: Weights<Filter>,
    antialias: bool,
    clamp: bool,
}

impl Default for ToLq {
    fn default() -> ToLq {
        ToLq {
            filters: Weights::new(FILTERS, &[(Filter::Bicubic, 1.0)]),
            antialias: true,
            clamp: true,
        }
    }
}

impl ToLq {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        visit_filters(
            keys,
            &mut self.filters,
            &mut self.antialias,
            &mut self.clamp,
        );
    }

    /// Draws the filter.
    pub fn draw(
        &self,
        stream: &mut Stream,
        size: (usize, usize),
        lq: (usize, usize),
    ) -> DrawnResize {
        DrawnResize {
            filter: self.filters.draw(stream),
            antialias: self.antialias,
            clamp: self.clamp,
            from: size,
            to: lq,
        }
    }
}

/// A drawn resize.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnResize {
    pub(crate) filter: Filter,
    pub(crate) antialias: bool,
    pub(crate) clamp: bool,
    /// Width and height before.
    pub from: (usize, usize),
    /// Width and height after.
    pub to: (usize, usize),
}

impl DrawnResize {
    /// A resize by the name of its filter, without clamping.
    #[cfg(test)]
    pub(crate) fn named(
        word: &str,
        antialias: bool,
        from: (usize, usize),
        to: (usize, usize),
    ) -> Self {
        let filter = FILTERS.iter().find(|(name, _)| *name == word);
        DrawnResize {
            filter: filter.expect("a filter").1,
            antialias,
            clamp: false,
            from,
            to,
        }
    }

    /// What happens along x and y.
    fn lines(&self) -> [Line; 2] {
        let line = |from, to| Line {
            filter: self.filter,
            antialias: self.antialias,
            from,
            to,
        };
        [line(self.from.0, self.to.0), line(self.from.1, self.to.1)]
    }

    /// The part of the image before it that decides `area` after it.
    pub(super) fn input(&self, area: Area) -> Area {
        if self.from == self.to {
            return area;
        }
        let [x, y] = self.lines();
        Area {
            x: x.read(area.x),
            y: y.read(area.y),
        }
    }

    /// Its parameters for a program.
    pub(crate) fn json(&self) -> Json {
        json!({"filter": self.filter.word(), "antialias": self.antialias, "from": self.from, "to": self.to})
    }
}

impl fmt::Display for DrawnResize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((w, h), (new_w, new_h)) = (self.from, self.to);
        let word = self.filter.word().replace('_', " ");
        write!(f, "{w}x{h} to {new_w}x{new_h}, {word}")?;
        let has_both = self.filter.support() > 0.5;
        match self.antialias {
            true if has_both && (new_w < w || new_h < h) => f.write_str(", antialiased"),
            _ => Ok(()),
        }
    }
}

impl Canvas {
    /// Changes the size of all channels, and keeps `area` of the new image.
    pub(super) fn resize(&mut self, drawn: &DrawnResize, area: Area) {
        if self.whole != drawn.to {
            let ((w, h), (new_w, new_h)) = ((self.width, self.height), area.size());
            let [x, y] = drawn.lines();
            let x = Table::new(x, self.area.x, area.x);
            let y = Table::new(y, self.area.y, area.y);
            for channel in 0..3 {
                let from = &self.planes[channel * w * h..][..w * h];
                let to = &mut self.other[channel * new_w * new_h..][..new_w * new_h];
                if drawn.to.1 < drawn.from.1 {
                    let between = &mut self.padded[..w * new_h];
                    y.columns(from, between, w);
                    x.rows(between, to, w, self.lines.lines());
                } else {
                    let between = &mut self.padded[..new_w * h];
                    x.rows(from, between, w, self.lines.lines());
                    y.columns(between, to, new_w);
                }
            }
            std::mem::swap(&mut self.planes, &mut self.other);
            (self.width, self.height) = (new_w, new_h);
            (self.area, self.whole) = (area, drawn.to);
        }
        if drawn.clamp {
            self.clamp();
        }
    }
}
