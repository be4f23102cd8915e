//! Decodes pairs, whole or cropped. Depends on `bands`, `predict`, `lq` and zstd. Promises that any
//! payload gives pixels or an error, and that decoding allocates nothing.

use super::bands::{self, Window};
use super::lq::{self, LqBuffers};
use super::{
    Codec, Crop, FRAMES, LQ_FRAME, LQ_OWN, PREFIX_BYTES, bands_of, frame_length_at, lq_predictor,
    predict,
};
use crate::shard::error::{Kind, marked};
use crate::shard::format::{Geometry, u32_at};
use crate::support::isa::Isa;
use anyhow::{Context, Result, bail, ensure};
use zstd::bulk::Decompressor;

/// Memory of a zstd decompression context, measured with zstd 1.5. It counts in the loader's memory
/// bound.
const ZSTD_CONTEXT_BYTES: u64 = 192 << 10;

/// The decoder of one thread with its buffers; it is reused for every record.
pub struct Decoder {
    pub(super) isa: Isa,
    geometry: Geometry,
    /// Planes of the HR: residuals, then green, blue and red.
    planes: Vec<u8>,
    /// Planes of the LQ, likewise.
    lq_planes: Vec<u8>,
    lq_buffers: LqBuffers,
    zstd: Decompressor<'static>,
}

impl Decoder {
    /// Allocates for pairs of one geometry.
    ///
    /// # Errors
    /// zstd cannot be set up.
    pub fn new(geometry: Geometry) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        let zstd = Decompressor::new().context("cannot set up zstd")?;
        Ok(Decoder {
            geometry,
            planes: vec![0; hr.bytes()],
            lq_planes: vec![0; lq.bytes()],
            lq_buffers: LqBuffers::new(hr),
            isa: Isa::detect(),
            zstd,
        })
    }

    /// Memory of one decoder, in bytes.
    pub fn bytes(geometry: Geometry) -> u64 {
        let (lq, hr) = bands_of(geometry);
        (hr.bytes() + lq.bytes() + LqBuffers::bytes(hr)) as u64 + ZSTD_CONTEXT_BYTES
    }

    /// Decodes a payload into the whole LQ patch (`[lq_size, lq_size, 3]`) and the whole HR patch
    /// (`[lq_size * scale, lq_size * scale, 3]`), u8 RGB.
    ///
    /// # Errors
    /// A payload that the codec cannot have written for this geometry; slices of another size.
    pub fn decode(
        &mut self,
        codec: Codec,
        payload: &[u8],
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        self.decode_crop(
            codec,
            payload,
            Crop {
                x: 0,
                y: 0,
                size: self.geometry.lq(),
            },
            lq,
            hr,
        )
    }

    /// Decodes a square crop of a pair: `lq` is `[crop.size, crop.size, 3]`, and `hr` is the same
    /// crop at `scale` times the size.
    ///
    /// # Errors
    /// Those of [`Decoder::decode`], and a crop that does not lie inside the patch.
    pub fn decode_crop(
        &mut self,
        codec: Codec,
        payload: &[u8],
        crop: Crop,
        lq: &mut [u8],
        hr: &mut [u8],
    ) -> Result<()> {
        let (size, scale) = (self.geometry.lq(), self.geometry.scale as usize);
        let inside = |at: usize| at.checked_add(crop.size).is_some_and(|end| end <= size);
        if crop.size == 0 || !inside(crop.x) || !inside(crop.y) {
            let text = format!("the crop {crop:?} does not lie in a patch of {size} x {size}");
            return Err(marked(Kind::Misuse, text));
        }
        let (lq_window, hr_window) = (crop.window(1), crop.window(scale));
        if lq.len() != lq_window.bytes() || hr.len() != hr_window.bytes() {
            let text = format!(
                "the room for the pair has another size than the pair ({crop:?} of a patch of {size} x {size})"
            );
            return Err(marked(Kind::Misuse, text));
        }
        match codec {
            Codec::Raw => {
                let (lq_bytes, whole) = (
                    self.geometry.lq_bytes(),
                    self.geometry.lq_bytes() + self.geometry.hr_bytes(),
                );
                ensure!(
                    payload.len() == whole,
                    "a raw record has {} bytes where a pair has {whole}",
                    payload.len()
                );
                copy_window(&payload[..lq_bytes], size, lq_window, lq);
                copy_window(&payload[lq_bytes..], size * scale, hr_window, hr);
                Ok(())
            }
            Codec::Predict => self.undo_prediction(payload, (lq_window, lq), (hr_window, hr)),
        }
    }

    /// Decodes the windows of the LQ and of the HR from a `predict` payload.
    fn undo_prediction(
        &mut self,
        payload: &[u8],
        lq: (Window, &mut [u8]),
        hr: (Window, &mut [u8]),
    ) -> Result<()> {
        let (lq_bands, hr_bands) = bands_of(self.geometry);
        let (mode, frames) = frames_of(payload)?;
        let predictor = lq_predictor(mode, self.geometry);
        if predictor.is_none() && mode != LQ_OWN {
            bail!(
                "the LQ is predicted in a way this paragon does not know at scale {} ({mode})",
                self.geometry.scale
            );
        }
        let Decoder {
            planes,
            lq_planes,
            lq_buffers,
            zstd,
            isa,
            ..
        } = self;
        let isa = *isa;
        for (number, plane) in planes.chunks_exact_mut(hr_bands.plane()).enumerate() {
            unzip(zstd, number, frames[number], plane)?;
        }
        let (window, image) = hr;
        predict::undo(isa, planes, hr_bands, |r, rows| {
            bands::join_row(isa, rows, hr_bands, r, window, image)
        });
        unzip(zstd, LQ_FRAME, frames[LQ_FRAME], lq_planes)?;
        let (window, image) = lq;
        let Some(predictor) = predictor else {
            predict::undo(isa, lq_planes, lq_bands, |r, rows| {
                bands::join_row(isa, rows, lq_bands, r, window, image)
            });
            return Ok(());
        };
        let (green, others) = lq_planes.split_at_mut(lq_bands.plane());
        for other in others.chunks_exact_mut(lq_bands.plane()) {
            for (d, g) in other.iter_mut().zip(&*green) {
                *d = d.wrapping_add(*g);
            }
        }
        bands::repeat_last_row(planes, hr_bands);
        lq::add(
            isa,
            predictor,
            (planes, hr_bands),
            (lq_planes, lq_bands),
            lq_buffers,
        );
        bands::join(isa, lq_planes, lq_bands, window, image);
        Ok(())
    }
}

/// Splits a `predict` payload: byte 0 of its prefix, and its frames.
fn frames_of(payload: &[u8]) -> Result<(u8, [&[u8]; FRAMES])> {
    ensure!(
        payload.len() >= PREFIX_BYTES,
        "the record has {} bytes, less than its prefix",
        payload.len()
    );
    let (prefix, mut rest) = payload.split_at(PREFIX_BYTES);
    let mut frames = [&[][..]; FRAMES];
    for (i, frame) in frames.iter_mut().enumerate() {
        let length = u32_at(prefix, frame_length_at(i)) as usize;
        ensure!(
            length <= rest.len(),
            "frame {i} claims {length} bytes where {} are left",
            rest.len()
        );
        (*frame, rest) = rest.split_at(length);
    }
    ensure!(
        rest.is_empty(),
        "{} bytes are left over behind the last frame",
        rest.len()
    );
    Ok((prefix[0], frames))
}

/// Copies a window of an image of `width` pixels.
fn copy_window(from: &[u8], width: usize, window: Window, to: &mut [u8]) {
    for (row, out) in from
        .chunks_exact(width * 3)
        .skip(window.y)
        .zip(to.chunks_exact_mut(window.width * 3))
    {
        out.copy_from_slice(&row[window.x * 3..(window.x + window.width) * 3]);
    }
}

/// Decompresses a frame, which must fill `plane` exactly.
fn unzip(zstd: &mut Decompressor, number: usize, frame: &[u8], plane: &mut [u8]) -> Result<()> {
    let got = zstd
        .decompress_to_buffer(frame, plane)
        .with_context(|| format!("frame {number} is no zstd frame"))?;
    ensure!(
        got == plane.len(),
        "frame {number} unpacks to {got} bytes where {} are expected",
        plane.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_on_a_zstd_context_holds() {
        let mut context = zstd::zstd_safe::DCtx::create();
        let packed = zstd::bulk::compress(&vec![1; 1 << 18], 1).unwrap();
        context
            .decompress(&mut vec![0; 1 << 18][..], &packed)
            .unwrap();
        assert!(
            context.sizeof() as u64 <= ZSTD_CONTEXT_BYTES,
            "{}",
            context.sizeof()
        );
    }
}
