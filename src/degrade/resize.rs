//! Resizing: the filters in use, with or without antialiasing. Sizes decide positions (the ratio is
//! that of the two sizes), so that the corners of the image keep their places and nothing drifts.

use super::canvas::Canvas;
use super::correlate::BLOCK;
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range, Weights};
use super::lanes::dispatch;
use serde_json::{Value as Json, json};
use std::f64::consts::PI;
use std::fmt;

/// Rows that the horizontal pass computes at a time.
pub(super) const ROWS: usize = 16;

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
    fn support(self) -> f64 {
        match self {
            Filter::Area | Filter::Box | Filter::NearestExact => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight at a distance. Torch's bicubic has a = -0.75 without antialiasing and -0.5 with it.
    fn weight(self, x: f64, antialias: bool) -> f64 {
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

/// The weights of every output along one axis.
pub(crate) struct Table {
    /// First input and number of inputs of each output.
    windows: Vec<(u32, u32)>,
    /// The weights of all outputs in order, which sum to 1 for each.
    weights: Vec<f32>,
}

impl Table {
    /// For an axis that changes from `from` to `to` pixels.
    pub fn new(filter: Filter, antialias: bool, from: usize, to: usize) -> Table {
        let mut table = Table {
            windows: Vec::with_capacity(to),
            weights: Vec::new(),
        };
        let ratio = from as f64 / to as f64;
        for i in 0..to {
            let middle = (i as f64 + 0.5) * ratio;
            match filter {
                // adaptive average pooling, as torch's "area"
                Filter::Area => {
                    let (first, end) = (i * from / to, ((i + 1) * from).div_ceil(to));
                    table.push(first, &vec![1.0; end - first]);
                }
                Filter::NearestExact => table.push((middle as usize).min(from - 1), &[1.0]),
                Filter::Box => {
                    let (low, high) = (i as f64 * ratio, (i + 1) as f64 * ratio);
                    let first = low as usize;
                    let end = (libm::ceil(high) as usize).min(from);
                    let covered =
                        |j: usize| (high.min((j + 1) as f64) - low.max(j as f64)).max(0.0);
                    table.push(first, &(first..end).map(covered).collect::<Vec<_>>());
                }
                _ if antialias => table.push_antialiased(filter, middle, ratio, from),
                _ => table.push_nearest(filter, middle - 0.5, from),
            }
        }
        table
    }

    /// A filter stretched over what an output covers; at the border what is outside is left out.
    fn push_antialiased(&mut self, filter: Filter, middle: f64, ratio: f64, from: usize) {
        let stretch = ratio.max(1.0);
        let reach = filter.support() * stretch;
        let first = libm::floor(middle - reach + 0.5).max(0.0) as usize;
        let end = (libm::floor(middle + reach + 0.5) as usize).min(from);
        let weights = (first..end)
            .map(|j| filter.weight((j as f64 + 0.5 - middle) / stretch, true))
            .collect::<Vec<_>>();
        self.push(first, &weights);
    }

    /// The nearest inputs alone; at the border the last input is repeated.
    fn push_nearest(&mut self, filter: Filter, place: f64, from: usize) {
        let (base, reach) = (libm::floor(place), filter.support() as isize);
        let clamped = |j: isize| (base as isize + j).clamp(0, from as isize - 1) as usize;
        let (first, last) = (clamped(1 - reach), clamped(reach));
        let mut weights = vec![0.0; last - first + 1];
        for j in 1 - reach..=reach {
            weights[clamped(j) - first] += filter.weight(place - base - j as f64, false);
        }
        self.push(first, &weights);
    }

    /// The sum of the weights of every output.
    #[cfg(test)]
    pub fn sums(&self) -> Vec<f32> {
        let mut weights = self.weights.iter();
        let counts = self.windows.iter().map(|(_, count)| *count as usize);
        counts.map(|n| weights.by_ref().take(n).sum()).collect()
    }

    fn push(&mut self, first: usize, weights: &[f64]) {
        let sum: f64 = weights.iter().sum();
        self.windows.push((first as u32, weights.len() as u32));
        self.weights
            .extend(weights.iter().map(|w| (w / sum) as f32));
    }
}

impl Canvas {
    /// Changes the size of all channels.
    pub(super) fn resize(&mut self, drawn: &DrawnResize) {
        let ((w, h), (new_w, new_h)) = ((self.width, self.height), drawn.to);
        if (w, h) != (new_w, new_h) {
            let x = Table::new(drawn.filter, drawn.antialias, w, new_w);
            let y = Table::new(drawn.filter, drawn.antialias, h, new_h);
            for channel in 0..3 {
                let from = &self.planes[channel * w * h..][..w * h];
                let to = &mut self.other[channel * new_w * new_h..][..new_w * new_h];
                if new_h < h {
                    let between = &mut self.padded[..w * new_h];
                    resize_columns(from, between, w, &y.windows, &y.weights);
                    resize_rows(
                        between,
                        to,
                        (w, new_w),
                        &mut self.lines,
                        &x.windows,
                        &x.weights,
                    );
                } else {
                    let between = &mut self.padded[..new_w * h];
                    resize_rows(
                        from,
                        between,
                        (w, new_w),
                        &mut self.lines,
                        &x.windows,
                        &x.weights,
                    );
                    resize_columns(between, to, new_w, &y.windows, &y.weights);
                }
            }
            std::mem::swap(&mut self.planes, &mut self.other);
            (self.width, self.height) = (new_w, new_h);
        }
        if drawn.clamp {
            self.clamp();
        }
    }
}

dispatch! {
    /// Resizes along y: every output row is a weighted sum of input rows.
    fn resize_columns(from: &[f32], to: &mut [f32], w: usize, windows: &[(u32, u32)], weights: &[f32]) {
        let mut weights = weights;
        for (row, &(first, count)) in to.chunks_exact_mut(w).zip(windows) {
            let (these, rest) = weights.split_at(count as usize);
            weights = rest;
            for (block, out) in row.chunks_mut(BLOCK).enumerate() {
                out.fill(0.0);
                for (tap, &weight) in these.iter().enumerate() {
                    let part = &from[(first as usize + tap) * w + block * BLOCK..][..out.len()];
                    for (sum, value) in out.iter_mut().zip(part) {
                        *sum += weight * value;
                    }
                }
            }
        }
    }
}

dispatch! {
    /// Resizes along x, sixteen rows at a time, which `lines` holds pixel by pixel.
    fn resize_rows(
        from: &[f32],
        to: &mut [f32],
        widths: (usize, usize),
        lines: &mut [[f32; ROWS]],
        windows: &[(u32, u32)],
        weights: &[f32],
    ) {
        let (w, new_w) = widths;
        for (rows, out) in from.chunks(ROWS * w).zip(to.chunks_mut(ROWS * new_w)) {
            for (y, row) in rows.chunks_exact(w).enumerate() {
                for (line, value) in lines.iter_mut().zip(row) {
                    line[y] = *value;
                }
            }
            let mut weights = weights;
            for (x, &(first, count)) in windows.iter().enumerate() {
                let (these, rest) = weights.split_at(count as usize);
                weights = rest;
                let mut sums = [0.0f32; ROWS];
                for (line, &weight) in lines[first as usize..].iter().zip(these) {
                    for (sum, value) in sums.iter_mut().zip(line) {
                        *sum += weight * value;
                    }
                }
                for (row, sum) in out.chunks_exact_mut(new_w).zip(sums) {
                    row[x] = sum;
                }
            }
        }
    }
}
