//! Steps with all parameters drawn: computing, printing and describing them.

use super::area::Area;
use super::canvas::Canvas;
use super::colour::DrawnColour;
use super::jpeg::DrawnJpeg;
use super::kernel::DrawnKernel;
use super::noise::DrawnNoise;
use super::quantise::DrawnQuantise;
use super::resize::DrawnResize;
use super::sharpen::{DrawnHalo, DrawnSharpen};
use super::webp::DrawnWebp;
use anyhow::Result;
use serde_json::{Value as Json, json};
use std::fmt;

/// A step with all its parameters drawn.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DrawnStep {
    /// A filter or a median.
    Blur(DrawnKernel),
    /// Another size.
    Resize(DrawnResize),
    /// Gaussian or Poisson noise.
    Noise(DrawnNoise),
    /// JPEG compression.
    Jpeg(DrawnJpeg),
    /// WebP compression.
    Webp(DrawnWebp),
    /// Few levels.
    Quantise(DrawnQuantise),
    /// Unsharp masking.
    Sharpen(DrawnSharpen),
    /// Overshooting edges.
    Halo(DrawnHalo),
    /// Cb and Cr moved by x and y pixels each.
    ChromaShift([[f64; 2]; 2]),
    /// Gamma, contrast, brightness, saturation, cast.
    Colour(DrawnColour),
}

impl DrawnStep {
    /// Changes the part of the image that the canvas has, whose pixels within `area` of the new image are
    /// as if it had the whole image.
    pub(crate) fn apply(&self, canvas: &mut Canvas, area: Area) -> Result<()> {
        match self {
            DrawnStep::Blur(kernel) => canvas.blur(kernel),
            DrawnStep::Resize(resize) => canvas.resize(resize, area),
            DrawnStep::Noise(noise) => canvas.add_noise(noise),
            DrawnStep::Jpeg(jpeg) => canvas.jpeg(*jpeg),
            DrawnStep::Webp(webp) => return canvas.webp(*webp),
            DrawnStep::Quantise(quantise) => canvas.quantise(*quantise),
            DrawnStep::Sharpen(sharpen) => canvas.sharpen(*sharpen),
            DrawnStep::Halo(halo) => canvas.halo(*halo),
            DrawnStep::ChromaShift(shifts) => canvas.shift_chroma(*shifts),
            DrawnStep::Colour(colour) => canvas.colour(colour),
        }
        Ok(())
    }

    /// The part of the image before the step, of size `whole`, that decides `area` of the image after
    /// it.
    pub(crate) fn input(&self, whole: (usize, usize), area: Area) -> Area {
        match self {
            DrawnStep::Blur(kernel) => area.grown(kernel.reach(), whole),
            DrawnStep::Resize(resize) => resize.input(area),
            DrawnStep::Noise(noise) => noise.input(whole, area),
            DrawnStep::Jpeg(jpeg) => jpeg.input(whole, area),
            DrawnStep::Webp(_) => Area::whole(whole),
            DrawnStep::Quantise(quantise) => quantise.input(whole, area),
            DrawnStep::Sharpen(sharpen) => sharpen.input(whole, area),
            DrawnStep::Halo(halo) => halo.input(whole, area),
            DrawnStep::ChromaShift(shifts) => {
                let most = shifts
                    .iter()
                    .flatten()
                    .fold(0.0, |a: f64, b| a.max(b.abs()));
                area.grown(libm::ceil(most) as usize + 1, whole)
            }
            DrawnStep::Colour(_) => area,
        }
    }

    /// Its name and parameters for a program.
    pub fn json(&self) -> Json {
        let mut parameters = match self {
            DrawnStep::Blur(kernel) => kernel.json(),
            DrawnStep::Resize(resize) => resize.json(),
            DrawnStep::Noise(noise) => noise.json(),
            DrawnStep::Jpeg(jpeg) => jpeg.json(),
            DrawnStep::Webp(webp) => json!({"quality": webp.quality, "method": webp.method}),
            DrawnStep::Quantise(quantise) => quantise.json(),
            DrawnStep::Sharpen(s) => {
                json!({"size": s.size, "amount": s.amount, "threshold": s.threshold})
            }
            DrawnStep::Halo(halo) => json!({"sigma": halo.sigma, "amount": halo.amount}),
            DrawnStep::ChromaShift([cb, cr]) => json!({"cb": cb, "cr": cr}),
            DrawnStep::Colour(colour) => colour.json(),
        };
        parameters["step"] = json!(self.name());
        parameters
    }

    /// The weights of a blur's kernel, `[size, size]`, in rows; `None` for other steps and the median.
    pub fn weights(&self) -> Option<Vec<f64>> {
        match self {
            DrawnStep::Blur(kernel) => kernel.filter_weights(),
            _ => None,
        }
    }

    /// The name of the step, as recipes have it.
    pub fn name(&self) -> &'static str {
        match self {
            DrawnStep::Blur(_) => "blur",
            DrawnStep::Resize(_) => "resize",
            DrawnStep::Noise(noise) => noise.name(),
            DrawnStep::Jpeg(_) => "jpeg",
            DrawnStep::Webp(_) => "webp",
            DrawnStep::Quantise(_) => "quantise",
            DrawnStep::Sharpen(_) => "sharpen",
            DrawnStep::Halo(_) => "halo",
            DrawnStep::ChromaShift(_) => "chroma_shift",
            DrawnStep::Colour(_) => "colour",
        }
    }
}

/// One line: the name and the drawn parameters.
impl fmt::Display for DrawnStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.name())?;
        match self {
            DrawnStep::Blur(kernel) => kernel.fmt(f),
            DrawnStep::Resize(resize) => resize.fmt(f),
            DrawnStep::Noise(noise) => noise.fmt(f),
            DrawnStep::Jpeg(jpeg) => jpeg.fmt(f),
            DrawnStep::Webp(webp) => write!(f, "q{}", webp.quality),
            DrawnStep::Quantise(quantise) => quantise.fmt(f),
            DrawnStep::Sharpen(s) => {
                write!(
                    f,
                    "{:.2}, {} taps, from {:.0}/255",
                    s.amount, s.size, s.threshold
                )
            }
            DrawnStep::Halo(halo) => write!(f, "{:.2}, sigma {:.2}", halo.amount, halo.sigma),
            DrawnStep::ChromaShift([cb, cr]) => write!(
                f,
                "Cb {:+.2} {:+.2}, Cr {:+.2} {:+.2}",
                cb[0], cb[1], cr[0], cr[1]
            ),
            DrawnStep::Colour(colour) => colour.fmt(f),
        }
    }
}
