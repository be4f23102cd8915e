//! Lossy WebP by libwebp, into memory and back.

use super::canvas::{Canvas, to_byte};
use super::draws::Stream;
use super::keys::{Keys, Numbers, Range};
use anyhow::{Result, anyhow, ensure};

/// The ranges of a WebP compression.
#[derive(Clone, Debug)]
pub(crate) struct Webp {
    quality: Range,
    method: Range,
}

impl Default for Webp {
    fn default() -> Webp {
        Webp {
            quality: Range::new(30.0, 95.0),
            method: Range::new(4.0, 4.0),
        }
    }
}

impl Webp {
    /// Visits its keys.
    pub fn visit(&mut self, keys: &mut dyn Keys) {
        use Numbers::Whole;
        let about = "quality of libwebp, a whole number";
        keys.range("quality", &mut self.quality, Whole, (0.0, 100.0), about);
        let about = "effort of libwebp's encoder: 0 is fast, 6 is slow";
        keys.range("method", &mut self.method, Whole, (0.0, 6.0), about);
    }

    /// Draws quality and effort.
    pub fn draw(&self, stream: &mut Stream) -> DrawnWebp {
        DrawnWebp {
            quality: self.quality.draw_whole(stream),
            method: self.method.draw_whole(stream),
        }
    }
}

/// A drawn WebP compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawnWebp {
    pub(crate) quality: u32,
    pub(crate) method: u32,
}

impl Canvas {
    /// Compresses and decompresses; the image is rounded to 8 bits before.
    ///
    /// # Errors
    /// libwebp has no memory, or the image has more than 16,383 pixels on a side.
    pub(super) fn webp(&mut self, drawn: DrawnWebp) -> Result<()> {
        let (w, h) = (self.width, self.height);
        let n = w * h;
        let rgb = &mut self.bytes[..3 * n];
        for (i, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = to_byte(self.planes[channel * n + i]);
            }
        }
        let mut config =
            webp::WebPConfig::new().map_err(|()| anyhow!("libwebp is of another version"))?;
        config.quality = drawn.quality as f32;
        config.method = drawn.method as i32;
        config.lossless = 0;
        let bytes = webp::Encoder::from_rgb(rgb, w as u32, h as u32)
            .encode_advanced(&config)
            .map_err(|error| anyhow!("libwebp cannot encode {w}x{h} pixels: {error:?}"))?;
        let image = webp::Decoder::new(&bytes)
            .decode()
            .ok_or_else(|| anyhow!("libwebp cannot decode {w}x{h} pixels that it encoded"))?;
        ensure!(
            image.len() == 3 * n,
            "libwebp decoded {} bytes of {w}x{h} pixels",
            image.len()
        );
        for (i, pixel) in image.chunks_exact(3).enumerate() {
            for (channel, value) in pixel.iter().enumerate() {
                self.planes[channel * n + i] = f32::from(*value) / 255.0;
            }
        }
        Ok(())
    }
}
