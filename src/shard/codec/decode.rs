//! Decodes pairs, whole or cropped. Depends on `bands`, `predict`, `lq` and zstd. Promises that any
//! payload gives pixels or an error, and that decoding allocates nothing.

use super::bands::{self, Window};
use super::lq::{self, LqBuffers};
use super::{Codec, Crop, HR_FRAMES, LQ_OWN, Prefix, bands_of, lq_predictor, predict};
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
    prefix: Prefix,
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
        Self::with_lqs(geometry, 1)
    }

    /// Allocates for records of one geometry with `lqs` LQ patches each.
    ///
    /// # Errors
    /// zstd cannot be set up.
    pub fn with_lqs(geometry: Geometry, lqs: u16) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        let prefix = Prefix { lqs: lqs.into() };
        let zstd = Decompressor::new().context("cannot set up zstd")?;
        Ok(Decoder {
            geometry,
            prefix,
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
        self.decode_part(codec, payload, crop, Some((0, lq)), hr)
    }

    /// Decodes a square crop of the HR of a record and, where `lq` is given, of the LQ patch with
    /// this number.
    ///
    /// # Errors
    /// Those of [`Decoder::decode_crop`]; the record has no LQ patch with this number.
    pub fn decode_part(
        &mut self,
        codec: Codec,
        payload: &[u8],
        crop: Crop,
        lq: Option<(u16, &mut [u8])>,
        hr: &mut [u8],
    ) -> Result<()> {
        let (size, scale) = (self.geometry.lq(), self.geometry.scale as usize);
        let inside = |at: usize| at.checked_add(crop.size).is_some_and(|end| end <= size);
        if crop.size == 0 || !inside(crop.x) || !inside(crop.y) {
            let text = format!("the crop {crop:?} does not lie in a patch of {size} x {size}");
            return Err(marked(Kind::Misuse, text));
        }
        let (lq_window, hr_window) = (crop.window(1), crop.window(scale));
        if let Some((variant, _)) = lq
            .as_ref()
            .filter(|(v, _)| usize::from(*v) >= self.prefix.lqs)
        {
            let text = format!(
                "LQ patch {variant} is asked for, counted from 0, and a record has {}",
                self.prefix.lqs
            );
            return Err(marked(Kind::Misuse, text));
        }
        let lq_fits = lq
            .as_ref()
            .is_none_or(|(_, room)| room.len() == lq_window.bytes());
        if !lq_fits || hr.len() != hr_window.bytes() {
            let text = format!(
                "the room for the pair has another size than the pair ({crop:?} of a patch of {size} x {size})"
            );
            return Err(marked(Kind::Misuse, text));
        }
        match codec {
            Codec::Raw => {
                let lq_bytes = self.geometry.lq_bytes();
                let whole = self.prefix.lqs * lq_bytes + self.geometry.hr_bytes();
                ensure!(
                    payload.len() == whole,
                    "a raw record has {} bytes where a pair has {whole}",
                    payload.len()
                );
                let (lqs, high) = payload.split_at(self.prefix.lqs * lq_bytes);
                if let Some((variant, room)) = lq {
                    copy_window(
                        &lqs[usize::from(variant) * lq_bytes..],
                        size,
                        lq_window,
                        room,
                    );
                }
                copy_window(high, size * scale, hr_window, hr);
                Ok(())
            }
            Codec::Predict => {
                let lq = lq.map(|(variant, room)| (variant, lq_window, room));
                self.undo_prediction(payload, lq, (hr_window, hr))
            }
        }
    }

    /// Decodes the windows of the LQ and of the HR from a `predict` payload.
    fn undo_prediction(
        &mut self,
        payload: &[u8],
        lq: Option<(u16, Window, &mut [u8])>,
        hr: (Window, &mut [u8]),
    ) -> Result<()> {
        let (lq_bands, hr_bands) = bands_of(self.geometry);
        let variant = lq.as_ref().map(|(variant, ..)| usize::from(*variant));
        let frames = frames_of(self.prefix, payload, variant)?;
        let mode = variant.map_or(LQ_OWN, |variant| payload[variant]);
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
            unzip(zstd, number, frames.hr[number], plane)?;
        }
        let (window, image) = hr;
        predict::undo(isa, planes, hr_bands, |r, rows| {
            bands::join_row(isa, rows, hr_bands, r, window, image)
        });
        let Some((variant, window, image)) = lq else {
            return Ok(());
        };
        unzip(zstd, HR_FRAMES + usize::from(variant), frames.lq, lq_planes)?;
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

/// Frames of a `predict` payload.
#[derive(Default)]
struct Frames<'a> {
    /// Green, blue and red of the HR.
    hr: [&'a [u8]; HR_FRAMES],
    /// One LQ patch; empty if none is asked for.
    lq: &'a [u8],
}

/// Splits a `predict` payload into the frames of the HR and that of one LQ patch.
fn frames_of(prefix: Prefix, payload: &[u8], variant: Option<usize>) -> Result<Frames<'_>> {
    ensure!(
        payload.len() >= prefix.bytes(),
        "the record has {} bytes, less than its prefix",
        payload.len()
    );
    let mut rest = &payload[prefix.bytes()..];
    let mut frames = Frames::default();
    for i in 0..prefix.frames() {
        let length = u32_at(payload, prefix.frame_length_at(i)) as usize;
        ensure!(
            length <= rest.len(),
            "frame {i} claims {length} bytes where {} are left",
            rest.len()
        );
        let (frame, after) = rest.split_at(length);
        rest = after;
        match i.checked_sub(HR_FRAMES) {
            None => frames.hr[i] = frame,
            Some(lq) if variant == Some(lq) => frames.lq = frame,
            Some(_) => {}
        }
    }
    ensure!(
        rest.is_empty(),
        "{} bytes are left over behind the last frame",
        rest.len()
    );
    Ok(frames)
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
