//! The steps of a recipe as a tree, and drawing them: a flat list of steps with all parameters
//! fixed, which is both what is computed and what `--explain` prints. Depends on the families of
//! steps.

use super::blur::Blur;
use super::colour::{ChromaShift, Colour};
use super::drawn::DrawnStep;
use super::draws::{Draws, Stream};
use super::jpeg::Jpeg;
use super::keys::{Keys, Numbers, Range, Reader, Writer, found, nearest, pick};
use super::noise::{GaussianNoise, PoissonNoise};
use super::quantise::Quantise;
use super::resize::{Resize, ToLq};
use super::sharpen::{Halo, Sharpen};
use super::webp::Webp;
use crate::config::yaml::{Data, Node};
use crate::support::rng::key;
use crate::support::text::brief;
use anyhow::{Result, bail};
use serde_json::{Map, Value as Json};

/// A step with the probability that it takes place.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The probability.
    pub probability: f64,
    /// What it does.
    pub kind: Kind,
    /// Its number in the order of the file, which is its part of the key of its draws.
    pub id: u64,
}

/// What a step does, with the ranges of its parameters.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Blur(Blur),
    Resize(Resize),
    ToLq(ToLq),
    GaussianNoise(GaussianNoise),
    PoissonNoise(PoissonNoise),
    Jpeg(Jpeg),
    Webp(Webp),
    Quantise(Quantise),
    Sharpen(Sharpen),
    Halo(Halo),
    ChromaShift(ChromaShift),
    Colour(Colour),
    OneOf(Vec<Choice>),
    Shuffle(Vec<Step>),
    Repeat(Range, Vec<Step>),
}

/// One of the choices of `one_of`.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// Its weight among the choices.
    pub weight: f64,
    /// What is done if it is drawn; may be empty.
    pub steps: Vec<Step>,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            weight: 1.0,
            steps: Vec::new(),
        }
    }
}

impl Choice {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        keys.number(
            "weight",
            &mut self.weight,
            (0.0, 1e6),
            "weight of the choice",
        );
        keys.steps("steps", &mut self.steps, "what is done; may be empty");
    }
}

/// The steps by name, each with one sentence; the order of the documentation.
pub(crate) const STEPS: [(&str, &str); 15] = [
    (
        "blur",
        "a filter of one of several shapes, or a median; the border is mirrored",
    ),
    (
        "resize",
        "another size, drawn, with one of several filters; later steps work at that size",
    ),
    (
        "to_lq",
        "the size of the LQ, where the steps after it shall work at that size",
    ),
    (
        "gaussian_noise",
        "normal noise, the same everywhere, then clamping to 0 to 1",
    ),
    (
        "poisson_noise",
        "shot noise, stronger where it is bright, then clamping to 0 to 1",
    ),
    ("jpeg", "compression as libjpeg does it"),
    ("webp", "lossy compression by libwebp"),
    (
        "quantise",
        "few levels for each channel, with or without dithering",
    ),
    (
        "sharpen",
        "unsharp masking with a threshold and a soft mask, as Real-ESRGAN sharpens its HR",
    ),
    (
        "halo",
        "unsharp masking that overshoots at edges, then clamping to 0 to 1",
    ),
    ("chroma_shift", "Cb and Cr moved against the brightness"),
    (
        "colour",
        "gamma, contrast, brightness, saturation and a colour cast, then clamping to 0 to 1",
    ),
    ("one_of", "one of several lists of steps"),
    ("shuffle", "its steps in a drawn order"),
    ("repeat", "its steps several times, each with its own draws"),
];

impl Kind {
    /// The step of a name with its defaults.
    pub fn named(name: &str) -> Option<Kind> {
        Some(match name {
            "blur" => Kind::Blur(Blur::default()),
            "resize" => Kind::Resize(Resize::default()),
            "to_lq" => Kind::ToLq(ToLq::default()),
            "gaussian_noise" => Kind::GaussianNoise(GaussianNoise::default()),
            "poisson_noise" => Kind::PoissonNoise(PoissonNoise::default()),
            "jpeg" => Kind::Jpeg(Jpeg::default()),
            "webp" => Kind::Webp(Webp::default()),
            "quantise" => Kind::Quantise(Quantise::default()),
            "sharpen" => Kind::Sharpen(Sharpen::default()),
            "halo" => Kind::Halo(Halo::default()),
            "chroma_shift" => Kind::ChromaShift(ChromaShift::default()),
            "colour" => Kind::Colour(Colour::default()),
            "one_of" => Kind::OneOf(Vec::new()),
            "shuffle" => Kind::Shuffle(Vec::new()),
            "repeat" => Kind::Repeat(Range::new(1.0, 3.0), Vec::new()),
            _ => return None,
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Kind::Blur(_) => "blur",
            Kind::Resize(_) => "resize",
            Kind::ToLq(_) => "to_lq",
            Kind::GaussianNoise(_) => "gaussian_noise",
            Kind::PoissonNoise(_) => "poisson_noise",
            Kind::Jpeg(_) => "jpeg",
            Kind::Webp(_) => "webp",
            Kind::Quantise(_) => "quantise",
            Kind::Sharpen(_) => "sharpen",
            Kind::Halo(_) => "halo",
            Kind::ChromaShift(_) => "chroma_shift",
            Kind::Colour(_) => "colour",
            Kind::OneOf(_) => "one_of",
            Kind::Shuffle(_) => "shuffle",
            Kind::Repeat(..) => "repeat",
        }
    }

    fn visit(&mut self, keys: &mut dyn Keys) {
        match self {
            Kind::Blur(step) => step.visit(keys),
            Kind::Resize(step) => step.visit(keys),
            Kind::ToLq(step) => step.visit(keys),
            Kind::GaussianNoise(step) => step.visit(keys),
            Kind::PoissonNoise(step) => step.visit(keys),
            Kind::Jpeg(step) => step.visit(keys),
            Kind::Webp(step) => step.visit(keys),
            Kind::Quantise(step) => step.visit(keys),
            Kind::Sharpen(step) => step.visit(keys),
            Kind::Halo(step) => step.visit(keys),
            Kind::ChromaShift(step) => step.visit(keys),
            Kind::Colour(step) => step.visit(keys),
            Kind::OneOf(choices) => {
                keys.choices("choices", choices, "lists of steps with their weights");
            }
            Kind::Shuffle(steps) => keys.steps("steps", steps, "the steps"),
            Kind::Repeat(times, steps) => {
                keys.range(
                    "times",
                    times,
                    Numbers::Whole,
                    (0.0, 8.0),
                    "how often, a whole number; both ends are drawn",
                );
                keys.steps("steps", steps, "the steps");
            }
        }
    }
}

impl Step {
    /// Reads a list of steps.
    pub fn read_list(origin: &str, path: &str, node: &Node) -> Result<Vec<Step>> {
        match &node.data {
            Data::List(list) => list
                .iter()
                .enumerate()
                .map(|(i, item)| Step::read(origin, &format!("{path}[{}]", i + 1), item))
                .collect(),
            _ => bail!(
                "{origin}, line {}: {path}: expected a list of steps, found {}",
                node.line,
                found(node)
            ),
        }
    }

    fn read(origin: &str, path: &str, node: &Node) -> Result<Step> {
        let names = STEPS.iter().map(|(name, _)| *name);
        let empty = Node {
            line: node.line,
            data: Data::Null,
        };
        let (name, keys) = match &node.data {
            Data::Map(entries) if entries.len() == 1 => (&entries[0].0, &entries[0].1),
            Data::Scalar(name) => (name, &empty),
            _ => bail!(
                "{origin}, line {}: {path}: expected one step (`- jpeg: {{quality: 40}}`), found {}",
                node.line,
                match &node.data {
                    Data::Map(entries) => format!(
                        "a mapping of {} keys; the keys of a step belong below its name",
                        entries.len()
                    ),
                    _ => found(node),
                }
            ),
        };
        let Some(kind) = Kind::named(name) else {
            bail!(
                "{origin}, line {}: {path}: unknown step {}; {}",
                node.line,
                brief(name),
                nearest(name, names)
            )
        };
        let mut step = Step {
            probability: 1.0,
            kind,
            id: 0,
        };
        let mut reader = Reader::new(origin, format!("{path}.{name}"), keys)?;
        step.visit(&mut reader);
        if let Some(lacks) = step.lacks() {
            reader.fail(lacks);
        }
        reader.finish()?;
        Ok(step)
    }

    fn lacks(&self) -> Option<&'static str> {
        match &self.kind {
            Kind::OneOf(choices) if choices.is_empty() => {
                Some("expected the key choices with a list of {weight, steps}")
            }
            Kind::Shuffle(steps) | Kind::Repeat(_, steps) if steps.is_empty() => {
                Some("expected the key steps with at least one step")
            }
            _ => None,
        }
    }

    /// Visits the keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        let about = "probability that the step takes place";
        keys.number("probability", &mut self.probability, (0.0, 1.0), about);
        self.kind.visit(keys);
    }

    /// The step with all its keys.
    pub fn json(&self) -> Json {
        let mut writer = Writer::default();
        self.clone().visit(&mut writer);
        let mut step = Map::new();
        step.insert(self.kind.name().into(), Json::Object(writer.0));
        Json::Object(step)
    }

    /// Numbers steps in the order of the file.
    pub fn number(steps: &mut [Step], next: &mut u64) {
        for step in steps {
            step.id = *next;
            *next += 1;
            match &mut step.kind {
                Kind::OneOf(choices) => {
                    choices
                        .iter_mut()
                        .for_each(|c| Step::number(&mut c.steps, next));
                }
                Kind::Shuffle(steps) | Kind::Repeat(_, steps) => Step::number(steps, next),
                _ => {}
            }
        }
    }

    fn draw(&self, drawing: &mut Drawing, round: u64) {
        let mut stream = drawing.draws.stream(self.id, round);
        if !stream.chance(self.probability) {
            return;
        }
        let stream = &mut stream;
        let drawn = match &self.kind {
            Kind::Blur(step) => DrawnStep::Blur(step.draw(stream)),
            Kind::Resize(step) => {
                let Some(resize) = step.draw(stream, drawing.size, drawing.lq) else {
                    return;
                };
                DrawnStep::Resize(resize)
            }
            Kind::ToLq(step) => DrawnStep::Resize(step.draw(stream, drawing.size, drawing.lq)),
            Kind::GaussianNoise(step) => DrawnStep::Noise(step.draw(stream)),
            Kind::PoissonNoise(step) => DrawnStep::Noise(step.draw(stream)),
            Kind::Jpeg(step) => DrawnStep::Jpeg(step.draw(stream)),
            Kind::Webp(step) => DrawnStep::Webp(step.draw(stream)),
            Kind::Quantise(step) => DrawnStep::Quantise(step.draw(stream)),
            Kind::Sharpen(step) => DrawnStep::Sharpen(step.draw(stream)),
            Kind::Halo(step) => DrawnStep::Halo(step.draw(stream)),
            Kind::ChromaShift(step) => DrawnStep::ChromaShift(step.draw(stream)),
            Kind::Colour(step) => DrawnStep::Colour(step.draw(stream)),
            Kind::OneOf(choices) => {
                let weights: Vec<f64> = choices.iter().map(|c| c.weight).collect();
                let steps = &choices[pick(&weights, stream)].steps;
                return steps.iter().for_each(|step| step.draw(drawing, round));
            }
            Kind::Shuffle(steps) => {
                return shuffled(steps.len(), stream)
                    .into_iter()
                    .for_each(|i| steps[i].draw(drawing, round));
            }
            Kind::Repeat(times, steps) => {
                for time in 0..times.draw_whole(stream) {
                    let round = key(&[round, u64::from(time) + 1]);
                    steps.iter().for_each(|step| step.draw(drawing, round));
                }
                return;
            }
        };
        if let DrawnStep::Resize(resize) = &drawn {
            drawing.size = resize.to;
        }
        drawing.steps.push(drawn);
    }
}

/// A drawn order of `0..count` (Fisher and Yates).
fn shuffled(count: usize, stream: &mut Stream) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, stream.below(i as u64 + 1) as usize);
    }
    order
}

/// Draws the steps of a recipe in order.
struct Drawing {
    draws: Draws,
    size: (usize, usize),
    lq: (usize, usize),
    steps: Vec<DrawnStep>,
}

/// Draws all steps for an HR patch of `size`, the last of which leaves an image of the LQ size.
pub(crate) fn draw(
    steps: &[Step],
    last: &ToLq,
    draws: Draws,
    size: (usize, usize),
    scale: usize,
) -> Vec<DrawnStep> {
    let lq = (size.0 / scale, size.1 / scale);
    let mut drawing = Drawing {
        draws,
        size,
        lq,
        steps: Vec::new(),
    };
    steps.iter().for_each(|step| step.draw(&mut drawing, 0));
    if drawing.size != lq {
        let resize = last.draw(&mut draws.stream(u64::MAX, 0), drawing.size, lq);
        drawing.steps.push(DrawnStep::Resize(resize));
    }
    drawing.steps
}
