//! Encodes pairs. Depends on `bands`, `predict`, `lq` and zstd. Promises that a payload is never
//! larger than the pixels, and that it does not depend on the instruction set.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::bands::{self, Bands};
use super::lq::{self, LqBuffers};
use super::{Codec, HR_FRAMES, LQ_HALF, LQ_MEAN, LQ_OWN, Prefix, bands_of, lq_predictor, predict};
use crate::shard::format::Geometry;
use crate::support::isa::Isa;
use anyhow::{Context, Result, ensure};
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, ParamSwitch, Strategy};

/// Residuals of photographs have almost no repetitions, so zstd should search for none and encode
/// all bytes by Huffman coding alone: that is smaller, and nearly twice as fast both ways
/// (docs/codec.md). This value is the distance between two places that zstd searches at; it is
/// beyond the end of any plane.
const NO_SEARCH: u32 = 1 << 17;
/// Drawings and flat areas consist of repetitions. A plane that may be such is also compressed with
/// a search, at this level of zstd.
const SEARCH_LEVEL: i32 = 1;
/// Shortest repetition that is searched for: shorter ones cost more than they save.
const SEARCH_MIN_MATCH: u32 = 7;
/// Bytes of a run of residuals that is tested for being all zero.
const RUN_BYTES: usize = 32;
/// The search is tried if at least one in this many runs of a plane is all zero.
const SEARCH_SHARE: usize = 4;
/// Logarithm of zstd's hash table without a search: the smallest, since it is cleared every time.
const SMALLEST_HASH_LOG: u32 = 6;
/// The largest block of a zstd frame, bytes.
const ZSTD_MAX_BLOCK: usize = 1 << 17;
/// The smallest value that zstd takes as the limit of its blocks, bytes.
const ZSTD_MIN_BLOCK: usize = 1 << 10;
/// If the mean absolute residual of the LQ is at most this, the other predictions are not tried.
const GOOD_ENOUGH: u64 = 1;

/// The encoder of one thread with its buffers.
pub struct Encoder {
    pub(super) isa: Isa,
    geometry: Geometry,
    prefix: Prefix,
    /// Planes of the HR: green, blue, red.
    planes: Vec<u8>,
    /// The values that are predicted: green, blue - green, red - green.
    values: Vec<u8>,
    /// Their residuals.
    residuals: Vec<u8>,
    /// Planes of the LQ.
    lq_planes: Vec<u8>,
    /// Residuals of the LQ by the best prediction so far.
    best: Vec<u8>,
    /// Residuals of the LQ by the prediction that is being tried.
    tried: Vec<u8>,
    lq_buffers: LqBuffers,
    packer: Packer,
}

impl Encoder {
    /// Allocates for pairs of one geometry.
    ///
    /// # Errors
    /// zstd cannot be set up.
    pub fn new(geometry: Geometry) -> Result<Self> {
        Self::with_lqs(geometry, 1)
    }

    /// Allocates for records of one geometry with `lqs` LQ patches each; 0 stores HR alone.
    ///
    /// # Errors
    /// zstd cannot be set up.
    pub fn with_lqs(geometry: Geometry, lqs: u16) -> Result<Self> {
        let (lq, hr) = bands_of(geometry);
        let prefix = Prefix { lqs: lqs.into() };
        Ok(Encoder {
            geometry,
            prefix,
            planes: vec![0; hr.bytes()],
            values: vec![0; hr.bytes()],
            residuals: vec![0; hr.bytes()],
            lq_planes: vec![0; lq.bytes()],
            best: vec![0; lq.bytes()],
            tried: vec![0; lq.bytes()],
            lq_buffers: LqBuffers::new(hr),
            isa: Isa::detect(),
            packer: Packer::new(hr.plane().max(lq.bytes()), lq_block(geometry, lq))?,
        })
    }

    /// Appends the payload of one record to `out`. `lq` is `[lqs, lq_size, lq_size, 3]` (of
    /// [`Encoder::new`], `lqs` is 1), `hr` is `[lq_size * scale, lq_size * scale, 3]`, both u8 RGB.
    /// Returns the codec that was used: `Raw` if prediction does not make the payload smaller.
    ///
    /// # Errors
    /// Slices of another size; zstd fails.
    pub fn encode(
        &mut self,
        codec: Codec,
        lq: &[u8],
        hr: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Codec> {
        let g = self.geometry;
        ensure!(
            lq.len() == g.lq_bytes() * self.prefix.lqs && hr.len() == g.hr_bytes(),
            "the pair does not have the sizes of the set"
        );
        let start = out.len();
        if codec == Codec::Predict {
            self.predict(lq, hr, out)?;
            if out.len() - start < lq.len() + hr.len() {
                return Ok(Codec::Predict);
            }
            out.truncate(start);
        }
        out.extend_from_slice(lq);
        out.extend_from_slice(hr);
        Ok(Codec::Raw)
    }

    fn predict(&mut self, lq: &[u8], hr: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let (lq_bands, hr_bands) = bands_of(self.geometry);
        let start = out.len();
        out.resize(start + self.prefix.bytes(), 0);
        bands::split(self.isa, hr, hr_bands, &mut self.planes);
        predict::residuals(
            self.isa,
            &self.planes,
            hr_bands,
            &mut self.values,
            &mut self.residuals,
        );
        for (number, plane) in self.residuals.chunks_exact(hr_bands.plane()).enumerate() {
            let written = self.packer.push(plane, false, out)?;
            self.note_length(out, start, number, written);
        }
        for (variant, lq) in lq.chunks_exact(self.geometry.lq_bytes()).enumerate() {
            bands::split(self.isa, lq, lq_bands, &mut self.lq_planes);
            out[start + variant] = self.predict_lq(lq_bands, hr_bands)?;
            let written = self.packer.push(&self.best, true, out)?;
            self.note_length(out, start, HR_FRAMES + variant, written);
        }
        Ok(())
    }

    /// Writes the length of a frame into the prefix that begins at `start`.
    fn note_length(&self, out: &mut [u8], start: usize, frame: usize, length: usize) {
        let at = start + self.prefix.frame_length_at(frame);
        out[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
    }

    /// Leaves the residuals of the cheapest prediction of the LQ in `best` and returns its number
    /// (byte 0 of the prefix). The LQ may have come with the images and be made in any way, so this
    /// is decided for every pair: at scale 1 by the compressed size, because the LQ is half of the
    /// pair there, and above by an estimate.
    ///
    /// # Errors
    /// zstd fails.
    fn predict_lq(&mut self, lq: Bands, hr: Bands) -> Result<u8> {
        let mut chosen = (LQ_OWN, u64::MAX);
        for mode in [LQ_HALF, LQ_MEAN, LQ_OWN] {
            match lq_predictor(mode, self.geometry) {
                Some(predictor) => {
                    self.tried.fill(0);
                    lq::add(
                        self.isa,
                        predictor,
                        (&self.planes, hr),
                        (&mut self.tried, lq),
                        &mut self.lq_buffers,
                    );
                    difference(&self.lq_planes, &mut self.tried, lq);
                }
                None if mode == LQ_OWN => predict::residuals(
                    self.isa,
                    &self.lq_planes,
                    lq,
                    &mut self.values,
                    &mut self.tried,
                ),
                None => continue,
            }
            let estimate = cost(self.isa, &self.tried);
            let cost = if self.geometry.scale == 1 {
                self.packer.compress(&self.tried, true)? as u64
            } else {
                estimate
            };
            if cost < chosen.1 {
                chosen = (mode, cost);
                std::mem::swap(&mut self.best, &mut self.tried);
            }
            if estimate <= GOOD_ENOUGH * lq.bytes() as u64 {
                break;
            }
        }
        Ok(chosen.0)
    }
}

/// Replaces a prediction of the planes by its residuals: those of green as they are, and those of
/// blue and red minus those of green.
fn difference(planes: &[u8], prediction: &mut [u8], bands: Bands) {
    for (p, v) in prediction.iter_mut().zip(planes) {
        *p = v.wrapping_sub(*p);
    }
    let (green, rest) = prediction.split_at_mut(bands.plane());
    for other in rest.chunks_exact_mut(bands.plane()) {
        for (d, g) in other.iter_mut().zip(&*green) {
            *d = d.wrapping_sub(*g);
        }
        predict::clear_padding(other, bands);
    }
    predict::clear_padding(green, bands);
}

/// Sum of the absolute residuals: a good enough estimate of their compressed size.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn cost(isa: Isa, residuals: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx2() {
        // SAFETY: an `Isa` with AVX2 exists only where the processor has it
        return unsafe { avx2::cost(residuals) };
    }
    cost_plain(residuals)
}

/// [`cost`] without vector instructions.
pub(super) fn cost_plain(residuals: &[u8]) -> u64 {
    residuals
        .iter()
        .map(|&d| u64::from((d as i8).unsigned_abs()))
        .sum()
}

/// Largest zstd block of the LQ's frame, in bytes; `None` for zstd's own limit. Every block has a
/// code table of its own. Above scale 1 the LQ is small and one table for its three planes is best;
/// at scale 1 it is as large as the HR, and a table for each plane takes fewer bytes.
fn lq_block(geometry: Geometry, lq: Bands) -> Option<u32> {
    (geometry.scale == 1).then(|| {
        let blocks = lq.plane().div_ceil(ZSTD_MAX_BLOCK);
        lq.plane().div_ceil(blocks).max(ZSTD_MIN_BLOCK) as u32
    })
}

/// Compresses planes of residuals to zstd frames.
struct Packer {
    /// See [`lq_block`].
    lq_block: Option<u32>,
    /// Huffman coding alone.
    literal: Compressor<'static>,
    /// With a search for repetitions.
    searching: Compressor<'static>,
    /// The smaller frame so far.
    frame: Vec<u8>,
    /// The frame of the second try.
    other: Vec<u8>,
}

impl Packer {
    /// Allocates for planes of up to `longest` bytes.
    fn new(longest: usize, lq_block: Option<u32>) -> Result<Self> {
        let with = |parameters: &[CParameter]| -> Result<Compressor<'static>> {
            let mut zstd = Compressor::new(SEARCH_LEVEL).context("cannot set up zstd")?;
            zstd.include_checksum(false)?; // the record has its own checksum
            parameters
                .iter()
                .try_for_each(|p| zstd.set_parameter(*p))
                .context("cannot set up zstd")?;
            Ok(zstd)
        };
        let room = zstd::zstd_safe::compress_bound(longest);
        Ok(Packer {
            lq_block,
            literal: with(&[
                CParameter::Strategy(Strategy::ZSTD_fast),
                CParameter::TargetLength(NO_SEARCH),
                CParameter::HashLog(SMALLEST_HASH_LOG),
                CParameter::MinMatch(SEARCH_MIN_MATCH),
                // by default zstd would store the literals uncompressed
                CParameter::LiteralCompressionMode(ParamSwitch::Enable),
            ])?,
            searching: with(&[CParameter::MinMatch(SEARCH_MIN_MATCH)])?,
            frame: vec![0; room],
            other: vec![0; room],
        })
    }

    /// Appends the frame of a plane (of the LQ, or of the HR) to `out` and returns its length in
    /// bytes.
    fn push(&mut self, plane: &[u8], of_lq: bool, out: &mut Vec<u8>) -> Result<usize> {
        let written = self.compress(plane, of_lq)?;
        out.extend_from_slice(&self.frame[..written]);
        Ok(written)
    }

    /// Leaves the frame of a plane in `frame` and returns its length in bytes.
    fn compress(&mut self, plane: &[u8], of_lq: bool) -> Result<usize> {
        if let Some(lq_block) = self.lq_block {
            let block = if of_lq { lq_block } else { 0 };
            for zstd in [&mut self.literal, &mut self.searching] {
                zstd.set_parameter(CParameter::MaxBlockSize(block))
                    .context("cannot set up zstd")?;
            }
        }
        let mut written = self
            .literal
            .compress_to_buffer(plane, &mut self.frame)
            .context("zstd cannot pack a plane")?;
        let empty = plane
            .as_chunks::<RUN_BYTES>()
            .0
            .iter()
            .filter(|run| **run == [0; RUN_BYTES])
            .count();
        if empty >= plane.len() / RUN_BYTES / SEARCH_SHARE {
            let found = self
                .searching
                .compress_to_buffer(plane, &mut self.other)
                .context("zstd cannot pack a plane")?;
            if found < written {
                written = found;
                std::mem::swap(&mut self.frame, &mut self.other);
            }
        }
        Ok(written)
    }
}
